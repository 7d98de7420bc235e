"""The training loop: phases of batches, one optimiser, curves as JSON lines, checkpoints that resume exactly."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .scenes import Batch

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
SHARD = 14 * 2**20  # bytes of a resume file's part


class Source(Protocol):
    """Where batches come from: scenes or records."""

    def batches(self, tokenizer: Tokenizer, seed: int, first: int, count: int) -> Dataset[Batch]:
        """Batches `first` to `first + count` of a seed, always the same."""


@dataclass(frozen=True)
class Phase:
    """`steps` steps, each over one batch of every source."""

    steps: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Schedule:
    """AdamW with warm-up and cosine decay to `floor` of the rate; `seconds` stops early where it is not 0."""

    phases: tuple[Phase, ...]
    rate: float
    warmup: int = 100
    floor: float = 0.05
    clip: float = 1.0
    seed: int = 0
    seconds: float = 0.0
    workers: int = 0

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def rate_at(self, progress: float, step: int) -> float:
        """Learning rate; progress is 0..1, of steps or of seconds, whichever is further."""
        decay = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.rate * min(1.0, (step + 1) / self.warmup) * decay


def train(
    parameters: Sequence[nn.Parameter], loss: Loss, schedule: Schedule, tokenizer: Tokenizer, out: Path,
    resume: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a schedule; returns the state that `resume` takes: the optimiser's and the number of steps done."""
    device = parameters[0].device
    optimiser = torch.optim.AdamW(parameters, lr=schedule.rate, betas=(0.9, 0.95), weight_decay=0.01)
    done = 0
    if resume is not None:
        optimiser.load_state_dict(resume["optimiser"])
        done = int(resume["step"])
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (out / "curve.jsonl").open("a", encoding="utf-8") as curve:
        for step, batches in _steps(schedule, tokenizer, done):
            elapsed = time.monotonic() - start
            if schedule.seconds and elapsed > schedule.seconds:
                break
            progress = max(step / schedule.steps, elapsed / schedule.seconds if schedule.seconds else 0.0)
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate_at(progress, step)
            parts = _step(parameters, loss, optimiser, batches, schedule.clip, device)
            done = step + 1
            if step % 50 == 0 or done == schedule.steps:
                values = {name: round(float(value), 4) for name, value in parts.items()}
                line = {"step": step, "seconds": round(time.monotonic() - start, 1), **values}
                curve.write(json.dumps(line) + "\n")
                curve.flush()
                print(json.dumps(line), flush=True)
    return {"optimiser": optimiser.state_dict(), "step": done}


def _step(
    parameters: Sequence[nn.Parameter], loss: Loss, optimiser: torch.optim.Optimizer, batches: Sequence[Batch],
    clip: float, device: torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    optimiser.zero_grad(set_to_none=True)
    named: dict[str, Tensor] = {}
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            total, parts = loss(to_device(batch, device))
        torch.autograd.backward(total)
        named |= {f"{batch.kind} {name}": value for name, value in parts.items()}
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    return named


def _steps(schedule: Schedule, tokenizer: Tokenizer, done: int) -> Iterator[tuple[int, list[Batch]]]:
    """Step numbers from `done` on and a batch of every source."""
    first = 0
    for phase in schedule.phases:
        begin = max(first, done)
        count = first + phase.steps - begin
        if count > 0:
            loaders = [load(each, tokenizer, schedule.seed, begin, count, schedule.workers) for each in phase.sources]
            for number, batches in enumerate(zip(*loaders, strict=True)):
                yield begin + number, list(batches)
        first += phase.steps


def load(source: Source, tokenizer: Tokenizer, seed: int, first: int, count: int, workers: int) -> DataLoader[Batch]:
    """Batches in order, drawn by `workers` processes (0: here)."""
    return DataLoader(
        source.batches(tokenizer, seed, first, count), batch_size=None, num_workers=workers,
        prefetch_factor=3 if workers else None,
    )  # fmt: skip


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **tensors)


def save_parts(tensors: dict[str, Tensor], folder: Path, name: str) -> None:
    """Save tensors in files of at most SHARD bytes: name-0.pt, name-1.pt, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    part: dict[str, Tensor] = {}
    size = number = 0
    for key, tensor in tensors.items():
        if part and size + tensor.nbytes > SHARD:
            torch.save(part, folder / f"{name}-{number}.pt")
            part, size, number = {}, 0, number + 1
        part[key] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    torch.save(part, folder / f"{name}-{number}.pt")


def load_parts(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what `save_parts` wrote."""
    merged: dict[str, Tensor] = {}
    for path in sorted(folder.glob(f"{name}-*.pt")):
        merged |= torch.load(path, map_location="cpu", weights_only=True)
    return merged
