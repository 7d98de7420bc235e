"""`reflectrt ask`: media and questions -> answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..progress import show_tokens
from ..runtime import load
from ..runtime.answer import Answer
from ..runtime.options import AskOptions
from ..runtime.prompt import Question
from ..runtime.sampling import Sampling
from ..runtime.session import Model, Session
from .arguments import add_bundle, add_device, add_json, command, count, positive, rate, seconds


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "ask",
        run,
        "answer questions about a video or images",
        'reflectrt ask bundle clip.mp4 -q "What flashes?" -o "a square" -o "a disc"',
    )
    add_bundle(parser)
    parser.add_argument("media", metavar="MEDIA", nargs="+", type=Path, help="a video, or one or more images")
    _add_question(parser)
    _add_media(parser)
    _add_free_text(parser)
    parser.add_argument("--threads", metavar="N", type=positive, help="CPU threads (default: all cores)")
    add_device(parser)
    add_json(parser)


def _add_question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("question").add_argument
    add(
        "-q", "--question", metavar="TEXT", action="append", required=True,
        help="a question; repeat it to ask several about the same media",
    )  # fmt: skip
    add(
        "-o", "--option", metavar="TEXT", action="append", default=[],
        help="an option to choose from; repeat it. Without options the answer is free text",
    )  # fmt: skip
    add(
        "--steps", metavar="K", type=count,
        help="reflection steps (default: the checkpoint's, 1 for images and 4 for video)",
    )  # fmt: skip
    add(
        "--reflect", choices=("auto", "always", "off"), default="auto",
        help="auto: always for multiple choice, the model decides in free text (default: %(default)s)",
    )  # fmt: skip


def _add_media(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("media").add_argument
    add("--fps", metavar="F", type=rate, help="frames a second to look at (default: the bundle's, 2)")
    add("--max-frames", metavar="N", type=positive, help="frames at most (default: the bundle's, 512)")
    add("--max-pixels", metavar="N", type=positive, help="pixels of one image or frame at most (default: the bundle's)")
    add("--start", metavar="S", type=seconds, help="look at the video from this second on")
    add("--end", metavar="S", type=seconds, help="look at the video up to this second")
    add(
        "--true-seconds", action="store_true",
        help="time positions from the frames' real distance (default: one second a pair, as the authors do)",
    )  # fmt: skip
    add(
        "--decoder", choices=("cpu", "nvdec"), default="cpu",
        help="what decodes videos: the CPU, or an NVIDIA GPU's own unit (default: %(default)s)",
    )  # fmt: skip
    add("--strict", action="store_true", help="make every warning about the media an error")


def _add_free_text(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("free text").add_argument
    add("--max-new-tokens", metavar="N", type=positive, default=128, help="length of the answer (default: %(default)s)")
    add(
        "--temperature",
        metavar="T",
        type=float,
        default=0.0,
        help="0 takes the likeliest token (default), more samples",
    )
    add(
        "--top-p",
        metavar="P",
        type=float,
        default=1.0,
        help="sample among the likeliest tokens that sum to P (default: 1)",
    )
    add("--seed", metavar="N", type=count, default=0, help="seed of sampling (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Ask, and print the answers."""
    questions = [Question(text, tuple(arguments.option)) for text in arguments.question]
    options = _ask_options(arguments)
    model = load(arguments.bundle, arguments.device, arguments.threads)
    if model.manifest.reflection is None and (arguments.steps or arguments.reflect == "always"):
        print(
            "note: this bundle is a plain Qwen2.5-VL without reflection tokens; asking without",
            file=sys.stderr,
        )
    session = _open_session(model, arguments, questions, options)
    for report in session.media:
        for warning in report.warnings:
            print(f"warning: {report.path}: {warning}", file=sys.stderr)
    answers = []
    for question in questions:
        answers.append(_ask_one(session, question, options, show=not arguments.json))
    if arguments.json:
        print(json.dumps(_ask_json(model, session, answers)))
    return 0


def _ask_options(arguments: argparse.Namespace) -> AskOptions:
    return AskOptions(
        steps=arguments.steps,
        reflect=arguments.reflect,
        max_new_tokens=arguments.max_new_tokens,
        sampling=Sampling(arguments.temperature, arguments.top_p, arguments.seed),
    )


def _open_session(
    model: Model, arguments: argparse.Namespace, questions: Sequence[Question], options: AskOptions
) -> Session:
    # Which prompt a medium gets is known once it is open; the longer of the two is room enough.
    needs = [model.need(question, kind, options) for question in questions for kind in ("image", "video")]
    with show_tokens() as progress:
        return model.open(
            *arguments.media,
            reserve_tokens=max(needs, key=lambda need: need.total),
            progress=progress,
            fps=arguments.fps,
            max_frames=arguments.max_frames,
            max_pixels=arguments.max_pixels,
            start_s=arguments.start,
            end_s=arguments.end,
            strict=arguments.strict,
            decoder=arguments.decoder,
            true_seconds=arguments.true_seconds,
        )


def _ask_one(session: Session, question: Question, options: AskOptions, show: bool) -> Answer:
    if show and not question.options:
        answer = session.ask(question.text, on_text=_stream_text, **_fields(options))
        print()
        return answer
    answer = session.ask(question.text, question.options, **_fields(options))
    if show:
        score = (answer.option_scores or {}).get(answer.option or "", 0.0)
        print(f"{answer.option}. {answer.text}  ({score:.0%})")
    return answer


def _stream_text(piece: str) -> None:
    print(piece, end="", flush=True)


def _fields(options: AskOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def _ask_json(model: Model, session: Session, answers: Sequence[Answer]) -> dict[str, Any]:
    reports = [asdict(report) for report in session.media]
    single = reports[0]["grid"] if len(reports) == 1 else [report["grid"] for report in reports]
    manifest = model.manifest
    return {
        "answers": [asdict(answer) | {"reflection": answer.reflection.tolist()} for answer in answers],
        "media": {
            "frames": sum(report["frames"] for report in reports),
            "grid": single,
            "visual_tokens": sum(report["visual_tokens"] for report in reports),
            "items": reports,
        },
        "warnings": [warning for report in reports for warning in report["warnings"]],
        "bundle": {
            "target": manifest.target,
            "precision": manifest.precision,
            "sha256": model.bundle.sha256,
        },
    }
