"""Open a medium once, ask many times: frames -> patches -> embeddings -> KV prefix -> answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from .answer import Answer, MediaReport, letter
from .bundle import TOKENIZER, Bundle
from .clock import Clock
from .engine import Array, Engine
from .errors import BundleError, LimitError, MediaError, UsageError
from .generate import Plan, Token, answer_choice, answer_freely
from .manifest import Manifest
from .media import ImageBudget, Media, MediaLimits, PatchLayout, VideoBudget, open_media
from .prefetch import prefetch
from .prompt import MediaKind, Question
from .sampling import GREEDY, Sampler, Sampling
from .stream import Stream
from .tokenizer import Tokenizer
from .vision import encode

PATCHES_PER_RUN = 4096
"""Patches of one vision run (of whole grids, at least one): large matrix products, activations of tens of MB."""
CHUNKS_AHEAD = 2
"""Chunks of patches read ahead of the vision encoder."""
RESERVE_TOKENS = 256
"""Room kept behind a medium for a question and its answer, where the caller does not say."""

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
    true_seconds: bool = False
    """Time positions from the frames' real distance; the authors' evaluation counts every grid as one second."""


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


class Model:
    """A bundle on a device."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle, self.engine = bundle, engine
        self.manifest: Manifest = bundle.manifest
        self.tokenizer = Tokenizer(bundle.file(TOKENIZER))
        if self.tokenizer.size > self.manifest.model.vocab:
            raise BundleError(
                f"{bundle.path}: the tokenizer has {self.tokenizer.size} tokens, "
                f"the model {self.manifest.model.vocab}; export the bundle again"
            )

    def open(
        self,
        *media: str | Path | Media,
        reserve_tokens: int = RESERVE_TOKENS,
        progress: Callable[[int, int], None] | None = None,
        **options: object,
    ) -> Session:
        """Read media (paths, or any `Media`) into a session; options are the fields of `MediaOptions`.

        `progress` is called with visual tokens done and in all. Raises MediaError, LimitError (longer than the context:
        refused before any pixel is decoded) and ResourceError.
        """
        if not media:
            raise UsageError("no medium to open; pass the path of a video or image")
        chosen = _from_names(MediaOptions, options)
        opened = [self._open_one(m, chosen) if isinstance(m, (str, Path)) else m for m in media]
        return Session(self, opened, chosen, reserve_tokens, progress)

    def tokens_needed(self, question: Question, kind: MediaKind, options: AskOptions) -> int:
        """Tokens that a question and its answer take behind the medium."""
        steps = _steps(self.manifest, kind, options)
        text = len(self._question_ids(question, kind))
        answer = len(self.manifest.prompt.answer_prefix) if question.options else options.max_new_tokens
        return text + answer + steps + 2

    def _question_ids(self, question: Question, kind: MediaKind) -> list[int]:
        return [*self.tokenizer.encode(question.prompt(kind)), *self.manifest.prompt.closing]

    def _open_one(self, path: str | Path, options: MediaOptions) -> Media:
        manifest = self.manifest
        model, image, video = manifest.model, manifest.image, manifest.video
        return open_media(
            Path(path),
            layout=PatchLayout(model.patch, model.temporal_patch, model.merge),
            image_budget=ImageBudget(image.min_pixels, options.max_pixels or image.max_pixels),
            video_budget=VideoBudget(
                fps=options.fps or video.fps,
                max_frames=options.max_frames or video.max_frames,
                min_pixels=video.min_pixels,
                max_pixels=options.max_pixels or video.max_pixels,
                total_pixels=video.total_pixels,
            ),
            limits=MediaLimits(),
            start_s=options.start_s,
            end_s=options.end_s,
        )


class Session:
    """Opened media with their KV prefix. Not safe for two threads at once."""

    def __init__(
        self,
        model: Model,
        media: Sequence[Media],
        options: MediaOptions,
        reserve_tokens: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._model, self._options = model, options
        self._clock = Clock()
        for item in media:
            _check_strict(item, options)
        self.kind: MediaKind = "video" if any(item.kind == "video" for item in media) else "image"
        prefix = self._prefix_tokens(media)
        _check_context(model.manifest, media, prefix, reserve_tokens)
        self._stream = Stream(model.engine, model.manifest, prefix + reserve_tokens)
        self.media = self._prefill(media, progress)
        self._mark = self._stream.mark()
        self._opening: Clock | None = self._clock

    def ask(
        self,
        question: str,
        options: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        **how: object,
    ) -> Answer:
        """Answer a question about the media; `how` are the fields of `AskOptions`.

        With `options` the answer is one of them; without, it is free text, which `on_text` gets piece by piece. Raises
        UsageError, LimitError (no room left in the context) and NumericError.
        """
        asked, chosen = Question(question, tuple(options)), _from_names(AskOptions, how)
        self._check_room(asked, chosen)
        clock, self._opening = self._opening or Clock(), None
        self._stream.roll_back(self._mark)
        before = self._stream.runs
        ids = self._model._question_ids(asked, self.kind)
        answer = (
            self._choose(asked, ids, self._plan(chosen, multiple_choice=True), clock)
            if asked.options
            else self._write(asked, ids, chosen, clock, on_text)
        )
        return replace(answer, forwards=self._stream.runs - before, timings=clock.timings())

    def _choose(self, asked: Question, ids: list[int], plan: Plan, clock: Clock) -> Answer:
        choice = answer_choice(self._stream, ids, len(asked.options), plan, clock)
        return Answer(
            question=asked.text,
            text=asked.options[choice.option],
            option=letter(choice.option),
            option_scores={letter(i): float(score) for i, score in enumerate(choice.scores)},
            tokens=choice.tokens,
            reflection=self._stack(choice.reflection),
            forwards=0,
            timings={},
        )

    def _write(
        self,
        asked: Question,
        ids: list[int],
        how: AskOptions,
        clock: Clock,
        on_text: Callable[[str], None] | None,
    ) -> Answer:
        plan = self._plan(how, multiple_choice=False)
        tokens: list[Token] = []
        text = _Text(self._model.tokenizer, on_text)
        for token in answer_freely(self._stream, ids, plan, Sampler(how.sampling), clock):
            tokens.append(token)
            text.add(token.id)
        return Answer(
            question=asked.text,
            text=text.finish(),
            option=None,
            option_scores=None,
            tokens=tuple(token.id for token in tokens),
            reflection=self._stack([token.hidden for token in tokens if token.hidden is not None]),
            forwards=0,
            timings={},
        )

    def _plan(self, how: AskOptions, multiple_choice: bool) -> Plan:
        manifest = self._model.manifest
        return Plan(
            reflection=manifest.reflection,
            steps=_steps(manifest, self.kind, how),
            forced=multiple_choice or how.reflect == "always",
            max_new_tokens=how.max_new_tokens,
        )

    def _stack(self, states: Sequence[Array]) -> Array:
        hidden = self._model.manifest.model.hidden
        return np.stack(states) if states else np.empty((0, hidden), np.float32)

    def _check_room(self, asked: Question, how: AskOptions) -> None:
        need = self._mark.length + self._model.tokens_needed(asked, self.kind, how)
        limit = self._model.manifest.model.max_context
        if need > limit:
            raise LimitError(
                f"medium, question and answer take {need} tokens, the context holds {limit}; "
                "use a smaller --max-frames, --max-pixels or --max-new-tokens, or export with a larger --max-context"
            )

    def _prefix_tokens(self, media: Sequence[Media]) -> int:
        prompt = self._model.manifest.prompt
        around = len(prompt.visual_open) + len(prompt.visual_close)
        return len(prompt.opening) + sum(item.visual_tokens + around for item in media)

    def _prefill(self, media: Sequence[Media], progress: Callable[[int, int], None] | None) -> tuple[MediaReport, ...]:
        """Feed everything that does not depend on the question."""
        prompt, stream = self._model.manifest.prompt, self._stream
        total = sum(item.visual_tokens for item in media)
        with self._clock.stage("prefill"):
            stream.feed_tokens(prompt.opening)
        reports: list[MediaReport] = []
        for item in media:
            stream.feed_tokens(prompt.visual_open)
            for done in self._feed_media(item):
                if progress:
                    progress(sum(report.visual_tokens for report in reports) + done, total)
            stream.feed_tokens(prompt.visual_close)
            _check_strict(item, self._options)
            reports.append(_report(item))
        return tuple(reports)

    def _feed_media(self, item: Media) -> Iterator[int]:
        """Read, encode and prefill one medium chunk by chunk; yields its visual tokens so far."""
        model, step = self._model.manifest.model, self._time_step(item)
        _, height, width = item.grid
        per_run = max(1, PATCHES_PER_RUN // (height * width))
        first = 0
        with closing(prefetch(self._read(item, per_run), CHUNKS_AHEAD)) as chunks:
            for patches in chunks:
                grid = (patches.shape[0], height, width)
                with self._clock.stage("vision"):
                    embeddings = encode(self._model.engine, model, patches, grid)
                with self._clock.stage("prefill"):
                    self._stream.feed_visual(embeddings, grid, step, first)
                first += grid[0]
                yield first * height * width // model.merge**2
        self._stream.end_visual((first, height, width), step)

    def _read(self, item: Media, grids_per_chunk: int) -> Iterator[Array]:
        """The medium's patches, with the time that reading takes on the clock."""
        chunks = iter(item.patches(grids_per_chunk))
        while True:
            with self._clock.stage("read"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _time_step(self, item: Media) -> float:
        """M-RoPE positions between temporal grids."""
        if item.kind == "image":
            return 0.0
        seconds = item.second_per_grid if self._options.true_seconds else 1.0
        return seconds * self._model.manifest.model.tokens_per_second


class _Text:
    """Turns tokens into text as they come; half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None] | None) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._shown = 0

    def add(self, token: int) -> None:
        self._ids.append(token)
        if self._on_text:
            text = self._tokenizer.decode(self._ids)
            if not text.endswith("�"):
                self._show(text)

    def finish(self) -> str:
        text = self._tokenizer.decode(self._ids)
        self._show(text)
        return text.strip()

    def _show(self, text: str) -> None:
        if self._on_text and len(text) > self._shown:
            self._on_text(text[self._shown :])
            self._shown = len(text)


def _from_names(kind: type[T], values: dict[str, object]) -> T:
    """A dataclass of options from keyword arguments; UsageError names a wrong one and the right ones."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # only called on dataclasses
    if unknown := sorted(set(values) - set(known)):
        raise UsageError(f"unknown option {unknown[0]!r}; choose from {', '.join(known)}")
    return kind(**values)


def _steps(manifest: Manifest, kind: MediaKind, how: AskOptions) -> int:
    """Reflection steps of a question: the caller's, or the checkpoint's own for this kind of medium."""
    reflection = manifest.reflection
    if reflection is None or how.reflect == "off":
        return 0
    if how.steps is not None:
        return how.steps
    return reflection.video_steps if kind == "video" else reflection.image_steps


def _check_context(manifest: Manifest, media: Sequence[Media], prefix: int, reserve: int) -> None:
    """Refuse media that the context cannot hold, naming a setting that fits."""
    limit = manifest.model.max_context
    if prefix + reserve <= limit:
        return
    room = max(0, limit - reserve - (prefix - sum(item.visual_tokens for item in media)))
    raise LimitError(
        f"{media[0].path}: {prefix + reserve} tokens with question and answer, the context holds {limit}; "
        + _cure(manifest, media, room)
    )


def _cure(manifest: Manifest, media: Sequence[Media], room: int) -> str:
    """The setting, with a number, that brings the visual tokens under `room`; none where none does."""
    larger = "export with a larger --max-context"
    pixels_per_token = (manifest.model.patch * manifest.model.merge) ** 2
    share = room // len(media)  # of each medium
    largest = max(item.visual_tokens // item.grid[0] for item in media)
    tokens = min(largest, share)  # of one temporal grid
    if all(item.kind == "image" for item in media):
        setting, floor = "", manifest.image.min_pixels
    else:
        grids = share // max(1, tokens)
        setting, floor = f"--max-frames {grids * manifest.model.temporal_patch} ", manifest.video.min_pixels
    if tokens < largest and tokens * pixels_per_token < floor:
        return f"question and answer leave too little room: shorten them, or {larger}"
    return f"pass {setting}--max-pixels {tokens * pixels_per_token} or {larger}"


def _check_strict(item: Media, options: MediaOptions) -> None:
    """With `strict`, a warning is an error."""
    if options.strict and item.warnings:
        raise MediaError(f"{item.path}: {item.warnings[0]}; ask without --strict to go on all the same")


def _report(item: Media) -> MediaReport:
    return MediaReport(
        path=str(item.path),
        kind=item.kind,
        frames=item.frames,
        grid=item.grid,
        visual_tokens=item.visual_tokens,
        seconds_per_grid=item.second_per_grid,
        warnings=tuple(item.warnings),
    )
