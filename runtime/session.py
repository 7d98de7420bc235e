"""Open a medium once, ask many times: frames -> patches -> embeddings -> KV prefix -> answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from .answer import Answer, MediaReport, letter
from .bundle import TOKENIZER, Bundle
from .clock import Clock
from .context import Need, check_media_fit, check_question_fit
from .engine import Array, Engine
from .errors import BundleError, MediaError, UsageError
from .generate import Plan, Token, answer_choice, answer_freely
from .manifest import Manifest
from .media import ImageBudget, Media, PatchLayout, VideoBudget, open_media
from .options import AskOptions, MediaOptions, from_names, reflection_steps
from .prefetch import prefetch
from .prompt import MediaKind, Question
from .sampling import Sampler
from .stream import Stream
from .tokenizer import TextStream, Tokenizer
from .vision import encode

CHUNKS_AHEAD = 2
"""Chunks of patches read ahead of the vision encoder."""
RESERVE_TOKENS = 256
"""Room kept behind a medium for a question and its answer, where the caller does not say."""


class Model:
    """A bundle on a device."""

    def __init__(self, bundle: Bundle, engine: Engine, clock: Callable[[], Clock] = Clock) -> None:
        """`clock` makes the clock of each opening and of each question; a profiler passes one that keeps spans."""
        self.bundle, self.engine, self.make_clock = bundle, engine, clock
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
        reserve_tokens: int | Need = RESERVE_TOKENS,
        progress: Callable[[int, int], None] | None = None,
        **options: object,
    ) -> Session:
        """Read media (paths, or any `Media`) into a session; options are the fields of `MediaOptions`.

        `reserve_tokens` is room for a question and its answer (`need` says how much one takes). `progress` is called
        with visual tokens done and in all. Raises MediaError, LimitError (longer than the context: refused before any
        pixel is decoded) and ResourceError.
        """
        if not media:
            raise UsageError("no medium to open; pass the path of a video or image")
        chosen = from_names(MediaOptions, options)
        clock = self.make_clock()
        with clock.stage("read"):
            opened = [self.open_medium(m, chosen) if isinstance(m, (str, Path)) else m for m in media]
        need = reserve_tokens if isinstance(reserve_tokens, Need) else Need(reserve_tokens)
        return Session(self, opened, chosen, need, clock, progress)

    def need(self, question: Question, kind: MediaKind, options: AskOptions) -> Need:
        """Tokens that a question and its answer take behind the medium."""
        steps = reflection_steps(self.manifest, kind, options)
        text = len(self._question_ids(question, kind)) + 2  # and `<BOR>` and `<EOR>`
        if question.options:
            return Need(text + len(self.manifest.prompt.answer_prefix), steps)
        return Need(text, steps, options.max_new_tokens)

    def open_medium(self, path: str | Path, options: MediaOptions) -> Media:
        """A file as this model sees it: its size in tokens is known, its pixels are not read yet."""
        manifest = self.manifest
        model, image, video = manifest.model, manifest.image, manifest.video
        least = (model.patch * model.merge) ** 2
        if options.max_pixels is not None and options.max_pixels < least:
            raise UsageError(f"max_pixels is {options.max_pixels}; pass {least} (one token) or more")
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
            decoder=options.decoder,
            start_s=options.start_s,
            end_s=options.end_s,
        )

    def _question_ids(self, question: Question, kind: MediaKind) -> list[int]:
        return [*self.tokenizer.encode(question.prompt(kind)), *self.manifest.prompt.closing]


class Session:
    """Opened media with their KV prefix. Not safe for two threads at once."""

    def __init__(
        self,
        model: Model,
        media: Sequence[Media],
        options: MediaOptions,
        need: Need,
        clock: Clock,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._model, self._options, self._clock = model, options, clock
        for item in media:
            _check_strict(item, options)
        self.kind: MediaKind = "video" if any(item.kind == "video" for item in media) else "image"
        prefix = self._prefix_tokens(media)
        check_media_fit(model.manifest, media, prefix, need)
        self._stream = Stream(model.engine, model.manifest, prefix + need.total)
        self.media = self._prefill(media, progress)
        self._mark = self._stream.mark()
        self._opening = clock.timings()

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the session's KV cache has room for."""
        return self._stream.cache.capacity

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
        if isinstance(options, str):
            raise UsageError(f"options are {options!r}, one text; pass a list of texts")
        asked, chosen = Question(question, tuple(options)), from_names(AskOptions, how)
        self._check_letters(asked)
        need = self._model.need(asked, self.kind, chosen)
        check_question_fit(self._model.manifest, self.kind, self._mark.tokens, need)
        clock = self._model.make_clock()
        self._stream.roll_back(self._mark)
        before = self._stream.runs
        ids = self._model._question_ids(asked, self.kind)
        answer = (
            self._choose(asked, ids, self._plan(chosen, multiple_choice=True), clock)
            if asked.options
            else self._write(asked, ids, chosen, clock, on_text)
        )
        return replace(answer, forwards=self._stream.runs - before, timings=self._timings(clock))

    def _timings(self, clock: Clock) -> dict[str, float]:
        """Seconds of this question; the first one's hold those of opening the media."""
        timings = {stage: seconds + self._opening.get(stage, 0.0) for stage, seconds in clock.timings().items()}
        self._opening = {}
        return timings

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
        text = TextStream(self._model.tokenizer, on_text)
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
            steps=reflection_steps(manifest, self.kind, how),
            forced=multiple_choice or how.reflect == "always",
            max_new_tokens=how.max_new_tokens,
        )

    def _stack(self, states: Sequence[Array]) -> Array:
        hidden = self._model.manifest.model.hidden
        return np.stack(states) if states else np.empty((0, hidden), np.float32)

    def _check_letters(self, asked: Question) -> None:
        """A small tokenizer may lack tokens of their own for late letters; then those options cannot be told apart."""
        letters = self._model.manifest.prompt.letters[: len(asked.options)]
        if len(set(letters)) < len(letters):
            most = next(n for n in range(len(letters), 0, -1) if len(set(letters[:n])) == n)
            raise UsageError(f"{len(letters)} options, but this checkpoint tells only {most} letters apart; pass fewer")

    def _prefix_tokens(self, media: Sequence[Media]) -> int:
        prompt = self._model.manifest.prompt
        around = len(prompt.visual_open) + len(prompt.visual_close)
        return len(prompt.opening) + sum(item.visual_tokens + around for item in media)

    def _prefill(self, media: Sequence[Media], progress: Callable[[int, int], None] | None) -> tuple[MediaReport, ...]:
        """Feed everything that does not depend on the question."""
        prompt, stream = self._model.manifest.prompt, self._stream
        total = sum(item.visual_tokens for item in media)
        stream.hold(prompt.opening)
        reports: list[MediaReport] = []
        for item in media:
            stream.hold(prompt.visual_open)
            for done in self._feed_media(item):
                if progress:
                    progress(sum(report.visual_tokens for report in reports) + done, total)
            stream.hold(prompt.visual_close)
            _check_strict(item, self._options)
            reports.append(_report(item))
        return tuple(reports)

    def _feed_media(self, item: Media) -> Iterator[int]:
        """Read, encode and prefill one medium chunk by chunk; yields its visual tokens so far."""
        model, step, engine = self._model.manifest.model, self._time_step(item), self._model.engine
        _, height, width = item.grid
        per_run = max(1, engine.vision_patches // (height * width))
        first = 0
        with closing(prefetch(self._read(item, per_run), CHUNKS_AHEAD)) as chunks:
            for patches in chunks:
                grid = (patches.shape[0], height, width)
                with self._clock.stage("vision", engine.wait):
                    embeddings = encode(engine, model, patches, grid)
                with self._clock.stage("prefill", engine.wait):
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
