"""The definition of right: VisReflect's single-pass decoding as a plain loop over transformers' own model.

Float32, eager attention, one token at a time, written to be read beside the description of the method
(arXiv 2606.30288). Exported bundles are held against it. Two things are not transformers': reflection, which
it does not have, and position ids, on which its releases differ (`reference_inputs.visual_positions`).
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging as hf_logging

from ..export.checkpoint import Checkpoint
from ..export.facts import ReflectionFacts
from ..runtime.errors import UsageError
from .reference_inputs import Medium, normalise, prompt, text_positions, user_text, visual_positions

__all__ = ["Medium", "Reference", "ReferenceAnswer"]

ANSWER_PREFIX = "The answer is:"

Reflect = Literal["auto", "always", "off"]


@dataclass(frozen=True)
class ReferenceAnswer:
    """Everything an exported model's answer is compared with."""

    tokens: tuple[int, ...]
    """From `<BOR>` on, with the stop token where one came."""
    reflection: NDArray[np.float32]
    """[K, hidden]: the decoder's state after the final norm, after each reflection step of all windows."""
    logits: NDArray[np.float32]
    """[S, vocab]: the logits at each position where a token was chosen, before any is ruled out."""
    option_logits: NDArray[np.float32] | None
    """[options]: those of the letters; None for free text."""
    option: int | None
    """Index of the chosen option; None for free text."""
    text: str
    """What the tokens spell, without special ones."""


class Reference:
    """A checkpoint in transformers, with reflection. All of it float32 on the CPU."""

    def __init__(self, folder: str | Path) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.tokenizer = self.checkpoint.tokenizer()
        # Reported as unexpected, and read below: `reflection_head.*`.
        with _quiet_loading():
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                self.checkpoint.path, dtype=torch.float32, attn_implementation="eager"
            )
        self.model.train(False)
        self.reflection_head = _reflection_head(self.checkpoint)

    @torch.no_grad()
    def vision(self, medium: Medium) -> NDArray[np.float32]:
        """The embeddings of a medium's visual tokens, [G * N / 4, hidden]."""
        pixels = normalise(medium.patches, self.checkpoint.vision)
        grid = torch.tensor([medium.grid])
        embeddings: Tensor = self.model.model.visual(pixels, grid_thw=grid).pooler_output
        return _array(embeddings)

    @torch.no_grad()
    def answer(
        self,
        media: Sequence[Medium],
        question: str,
        options: Sequence[str] = (),
        *,
        steps: int | None = None,
        reflect: Reflect = "auto",
        max_new_tokens: int = 64,
    ) -> ReferenceAnswer:
        """Answer a question by multiple choice (with `options`) or by greedy free text.

        `steps` (K) defaults to 4 with a video and 1 without; 0 is the baseline. `reflect` "auto" lets the
        model open windows itself in free text, "always" begins with one, "off" is K = 0. Raises UsageError
        for steps without reflection tokens.
        """
        video = any(medium.kind == "video" for medium in media)
        steps = self._steps(steps, video) if reflect != "off" else 0
        run = Run(self, prompt(media, user_text(question, options, video)), steps)
        if options:
            return choose(run, len(options))
        return write(run, forced=reflect == "always", max_new_tokens=max_new_tokens)

    def _steps(self, steps: int | None, video: bool) -> int:
        reflection = self.checkpoint.reflection
        if reflection is None:
            if steps:
                raise UsageError("this checkpoint has no reflection tokens; ask with steps=0")
            return 0
        own = reflection.video_steps if video else reflection.image_steps
        return own if steps is None else steps

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are spelled out."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class Run:
    """One sequence while it is decoded: the cache, the next position, and what came out so far."""

    def __init__(self, reference: Reference, pieces: Sequence[str | Medium], steps: int) -> None:
        self.reference = reference
        self.steps = steps
        self.tokens: list[int] = []
        self.thoughts: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.cache = DynamicCache(config=reference.model.config.get_text_config())
        self.position = 0
        self.hidden = self._prefill(pieces)

    @property
    def reflection(self) -> ReflectionFacts | None:
        """The reflection tokens; None for a plain Qwen2.5-VL."""
        return self.reference.checkpoint.reflection

    def _prefill(self, pieces: Sequence[str | Medium]) -> Tensor:
        """Feed the prompt, text and media in order; returns the last hidden state [1, D]."""
        embeddings, positions = [], []
        for piece in pieces:
            embedded, placed = self._embed_piece(piece)
            embeddings.append(embedded)
            positions.append(placed)
            self.position = int(placed.max()) + 1
        return self._forward(torch.cat(embeddings), torch.cat(positions, dim=1))

    def _embed_piece(self, piece: str | Medium) -> tuple[Tensor, Tensor]:
        """Embeddings [T, D] and positions [3, T] of a text or a medium that starts at the next position."""
        if isinstance(piece, Medium):
            embedded = torch.from_numpy(self.reference.vision(piece))
            return embedded, visual_positions(self.position, piece, self.reference.checkpoint.vision)
        ids = self.reference.ids(piece)
        return self._embed(ids), text_positions(self.position, len(ids))

    def _embed(self, ids: Sequence[int]) -> Tensor:
        embedded: Tensor = self.reference.model.get_input_embeddings()(torch.tensor(ids))
        return embedded

    def _forward(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Run the decoder on [T, D] at positions [3, T]; the last state after the final norm, [1, D]."""
        output = self.reference.model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[0, -1:]

    def step(self, embedding: Tensor) -> None:
        """Feed one embedding [1, D] at the next position."""
        self.hidden = self._forward(embedding, text_positions(self.position, 1))
        self.position += 1

    def feed(self, token: int) -> None:
        """Feed one token."""
        self.step(self._embed([token]))

    def force(self, token: int) -> None:
        """Emit a token that was not chosen, and feed it."""
        self.tokens.append(token)
        self.feed(token)

    def think(self) -> None:
        """After `<BOR>`: emit `<VR>` K times, feed the last hidden state each time; force `<EOR>`."""
        if self.reflection is None:
            raise AssertionError("a window opened without reflection tokens")
        for _ in range(self.steps):
            self.tokens.append(self.reflection.step_id)
            self.step(self.reference.reflection_head(self.hidden))
            self.thoughts.append(self.hidden[0])
        self.force(self.reflection.end_id)

    def open_window(self) -> None:
        """Force `<BOR>` and reflect, unless this is the baseline."""
        if self.steps and self.reflection is not None:
            self.force(self.reflection.begin_id)
            self.think()

    def score(self) -> Tensor:
        """Logits [V] of the next token."""
        logits: Tensor = self.reference.model.lm_head(self.hidden)[0]
        self.logits.append(logits)
        return logits

    def finish(self, option_logits: Tensor | None = None) -> ReferenceAnswer:
        """What came out."""
        hidden = self.reference.checkpoint.text.hidden
        reflection = torch.stack(self.thoughts) if self.thoughts else torch.empty(0, hidden)
        special = _special_ids(self.reference.checkpoint)
        return ReferenceAnswer(
            tokens=tuple(self.tokens),
            reflection=_array(reflection),
            logits=_array(torch.stack(self.logits)),
            option_logits=None if option_logits is None else _array(option_logits),
            option=None if option_logits is None else int(option_logits.argmax()),
            text=self.reference.tokenizer.decode([i for i in self.tokens if i not in special]),
        )


def choose(run: Run, options: int) -> ReferenceAnswer:
    """Multiple choice: reflect, force "The answer is:", take the best letter as it follows that."""
    prefix = run.reference.ids(ANSWER_PREFIX)
    run.open_window()
    for token in prefix:
        run.force(token)
    after = [run.reference.ids(f"{ANSWER_PREFIX} {letter}") for letter in string.ascii_uppercase[:options]]
    letters = [ids[len(prefix)] for ids in after]
    option_logits = run.score()[letters]
    run.tokens.append(letters[int(option_logits.argmax())])
    return run.finish(option_logits)


def write(run: Run, *, forced: bool, max_new_tokens: int) -> ReferenceAnswer:
    """Greedy free text until a stop token or `max_new_tokens` chosen ones; forced ones do not count."""
    if forced:
        run.open_window()
    for left in reversed(range(max_new_tokens)):
        token = int(allowed(run.score(), run).argmax())
        run.tokens.append(token)
        if token in run.reference.checkpoint.tokens.stop or not left:
            break
        run.feed(token)
        if run.steps and run.reflection is not None and token == run.reflection.begin_id:
            run.think()
    return run.finish()


def allowed(logits: Tensor, run: Run) -> Tensor:
    """Logits with the three reflection tokens ruled out in the baseline (K = 0)."""
    if run.reflection is None or run.steps:
        return logits
    ruled_out = [run.reflection.begin_id, run.reflection.step_id, run.reflection.end_id]
    return logits.index_fill(0, torch.tensor(ruled_out), -torch.inf)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No bar and no report from transformers while it loads; errors still raise."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _reflection_head(checkpoint: Checkpoint) -> nn.Module:
    """What a hidden state goes through before it is fed back: nothing, one linear layer or two."""
    reflection = checkpoint.reflection
    if reflection is None or reflection.head == "identity":
        return nn.Identity()
    if reflection.head == "linear":
        return _linear(checkpoint, "reflection_head")
    return nn.Sequential(_linear(checkpoint, "reflection_head.0"), nn.GELU(), _linear(checkpoint, "reflection_head.2"))


def _linear(checkpoint: Checkpoint, name: str) -> nn.Linear:
    state = {
        part: checkpoint.read(f"{name}.{part}").float()
        for part in ("weight", "bias")
        if f"{name}.{part}" in checkpoint.tensors
    }
    outputs, inputs = state["weight"].shape
    layer = nn.Linear(inputs, outputs, bias="bias" in state)
    layer.load_state_dict(state)
    return layer


def _special_ids(checkpoint: Checkpoint) -> set[int]:
    reflection = checkpoint.reflection
    thinking = (reflection.begin_id, reflection.step_id, reflection.end_id) if reflection else ()
    return {*checkpoint.tokens.stop, *thinking}


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.numpy()
    return array
