"""The rival: single-pass decoding in PyTorch as it is run today, timed. Two forms of one loop.

It is the reference's loop (bench/reference.py) with fused attention (sdpa) in a chosen precision: the whole prompt in
one forward pass, one decoder run a token, forced ones too. As the authors publish it every decoding step also encodes
two dummy pictures, one for images and one for videos, which their training needed and whose results are multiplied by
zero; without them is what a careful user would run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from .reference import Medium, Reference, ReferenceAnswer, Run, choose
from .reference_inputs import normalise, prompt, user_text, visual_positions

PUBLISHED_DUMMIES = 2
DUMMY_GRID = (1, 28, 28)
"""784 patches of zeros, the size that the Qwen2.5-VL fine-tuning code of this family uses."""


@dataclass
class LoopTimes:
    """Seconds of one question; `option` is the answer's index."""

    read_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    step_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    option: int = -1

    @property
    def decoder_runs(self) -> int:
        """The prompt's run and one a step."""
        return 1 + len(self.step_s)


class TorchLoop(Reference):
    """A checkpoint in PyTorch with fused attention, on the CPU."""

    def __init__(self, folder: str | Path, dtype: str = "float32", threads: int | None = None) -> None:
        super().__init__(folder)
        if threads:
            torch.set_num_threads(threads)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.model.set_attn_implementation("sdpa")
        self.model.to(self.dtype)
        self.reflection_head.to(self.dtype)

    @torch.no_grad()
    def ask(
        self, media: Sequence[Medium], question: str, options: Sequence[str], steps: int, dummies: int
    ) -> LoopTimes:
        """Answer a multiple-choice question; `dummies` dummy pictures are encoded before every decoding step."""
        times = LoopTimes()
        start = perf_counter()
        video = any(medium.kind == "video" for medium in media)
        run = TimedRun(self, prompt(media, user_text(question, options, video)), steps, times, dummies)
        times.option = choose(run, len(options)).option or 0
        times.total_s = perf_counter() - start
        return times

    def encode(self, medium: Medium) -> Tensor:
        """Embeddings of a medium's visual tokens, [G * N / 4, hidden]."""
        pixels = normalise(medium.patches, self.checkpoint.vision).to(self.dtype)
        embedded: Tensor = self.model.model.visual(pixels, grid_thw=torch.tensor([medium.grid])).pooler_output
        return embedded

    def encode_dummy(self) -> None:
        """Encode a picture of zeros for nothing."""
        grid = torch.tensor([DUMMY_GRID])
        pixels = torch.zeros(int(grid.prod()), self.checkpoint.vision.patch_values, dtype=self.dtype)
        self.model.model.visual(pixels, grid_thw=grid)


class TimedRun(Run):
    """The reference's run with a stopwatch on each part."""

    def __init__(
        self, loop: TorchLoop, pieces: Sequence[str | Medium], steps: int, times: LoopTimes, dummies: int
    ) -> None:
        self.loop, self.times, self.dummies = loop, times, dummies
        with _adding() as seconds:
            super().__init__(loop, pieces, steps)
        times.prefill_s = seconds[0] - times.vision_s

    def _embed_piece(self, piece: str | Medium) -> tuple[Tensor, Tensor]:
        if not isinstance(piece, Medium):
            return super()._embed_piece(piece)
        with _adding() as seconds:
            embedded = self.loop.encode(piece)
        self.times.vision_s += seconds[0]
        return embedded, visual_positions(self.position, piece, self.loop.checkpoint.vision)

    def step(self, embedding: Tensor) -> None:
        """Feed one embedding [1, D] at the next position, after the dummies."""
        with _adding() as seconds:
            for _ in range(self.dummies):
                self.loop.encode_dummy()
            super().step(embedding)
        self.times.step_s.append(seconds[0])

    def finish(self, option_logits: Tensor | None = None) -> ReferenceAnswer:
        """What came out, in float32."""
        self.thoughts = [thought.float() for thought in self.thoughts]
        self.logits = [logits.float() for logits in self.logits]
        return super().finish(None if option_logits is None else option_logits.float())


@contextmanager
def _adding() -> Iterator[list[float]]:
    """A list that holds the block's seconds once it is left."""
    seconds: list[float] = []
    start = perf_counter()
    yield seconds
    seconds.append(perf_counter() - start)
