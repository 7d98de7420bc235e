"""How media are read and questions are answered, as the caller may choose."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeVar, get_args

from .errors import UsageError
from .manifest import Manifest
from .media import VideoDecoder
from .prompt import MediaKind
from .sampling import GREEDY, Sampling

T = TypeVar("T")
ReflectMode = Literal["auto", "always", "off"]


@dataclass(frozen=True)
class MediaOptions:
    """How media are read; None takes the bundle's budget. Times in seconds, pixels per image or frame."""

    fps: float | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    strict: bool = False
    decoder: VideoDecoder = "cpu"
    """What decodes videos: FFmpeg on the CPU, or a GPU's NVDEC, which is an error where it cannot."""
    true_seconds: bool = False
    """Time positions from the frames' real distance; the authors' evaluation counts every grid as one second."""

    def __post_init__(self) -> None:
        for name in ("fps", "max_frames", "max_pixels"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} is {value}; pass a positive number, or None for the bundle's own")
        if self.decoder not in get_args(VideoDecoder):
            raise UsageError(f"decoder is {self.decoder!r}; pass {' or '.join(get_args(VideoDecoder))}")
        for name in ("start_s", "end_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name} is {value}; pass seconds from the beginning, 0 or more")
        if self.start_s is not None and self.end_s is not None and self.start_s > self.end_s:
            raise UsageError(f"start_s is {self.start_s:g} and end_s {self.end_s:g}; pass an end after the start")


@dataclass(frozen=True)
class AskOptions:
    """How a question is answered; `steps` None takes the checkpoint's own number."""

    steps: int | None = None
    reflect: ReflectMode = "auto"
    max_new_tokens: int = 128
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise UsageError(f"steps is {self.steps}; pass 0 (no reflection) or more")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; pass 1 or more")
        if self.reflect not in ("auto", "always", "off"):
            raise UsageError(f"reflect is {self.reflect!r}; pass auto, always or off")


def from_names(kind: type[T], values: dict[str, object]) -> T:
    """A dataclass of options from keyword arguments; UsageError names a wrong one and the right ones."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # only called on dataclasses
    if unknown := sorted(set(values) - set(known)):
        raise UsageError(f"unknown option {unknown[0]!r}; choose from {', '.join(known)}")
    return kind(**values)


def reflection_steps(manifest: Manifest, kind: MediaKind, how: AskOptions) -> int:
    """Reflection steps of a question: the caller's, or the checkpoint's own for this kind of medium."""
    reflection = manifest.reflection
    if reflection is None or how.reflect == "off":
        return 0
    if how.steps is not None:
        return how.steps
    return reflection.video_steps if kind == "video" else reflection.image_steps
