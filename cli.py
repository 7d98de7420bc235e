"""The command line: `reflectrt export | ask | verify | inspect`.

Results go to stdout (`--json`: one JSON object and nothing else), progress and warnings to stderr. Exit status 0 is success,
2 wrong usage, 1 anything else, with one line `error: what, and what to do`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .progress import ExportProgress, show_tokens
from .runtime import load
from .runtime.answer import Answer
from .runtime.bundle import open_bundle
from .runtime.errors import ReflectRTError, UsageError
from .runtime.manifest import Manifest, Verification
from .runtime.prompt import Question
from .runtime.sampling import Sampling
from .runtime.session import AskOptions, Model, Session

TARGETS = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parsed = build_parser().parse_args(arguments)
    return run_guarded(lambda: parsed.run(parsed))


def run_guarded(run: Callable[[], int]) -> int:
    """Run a command's body; what goes wrong becomes one line on stderr and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return run()
    except ReflectRTError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output is gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _terminate(*_: object) -> NoReturn:
    """Leave through the stack, so that temporary folders are removed."""
    raise SystemExit(143)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is."""
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = Parser(prog="reflectrt", description=__doc__ and "Ask questions about huge images and long videos.")
    parser.add_argument("--version", action="version", version=f"reflectrt {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_export, _add_ask, _add_verify, _add_inspect):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_export(commands: Any) -> None:
    parser = _command(
        commands, "export", run_export, "turn a checkpoint into a bundle", "reflectrt export shenxq/VisReflect-7B-Video bundle"
    )
    add_export_arguments(parser)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `export`, which `optimum-cli export visreflect` shares."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face folder or hub id (qwen2_5_vl)")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the folder to write")
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="what will run it (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="arithmetic (default: %(default)s)")
    parser.add_argument("--max-context", metavar="N", type=_positive, default=32_768, help="tokens that prompt and answer may fill (default: %(default)s)")
    parser.add_argument("--no-verify", action="store_true", help="skip the comparison with PyTorch after the export")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")


def _add_ask(commands: Any) -> None:
    parser = _command(
        commands,
        "ask",
        _ask,
        "answer questions about a video or images",
        'reflectrt ask bundle clip.mp4 -q "What flashes?" -o "a square" -o "a disc"',
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="a folder written by `reflectrt export`")
    add("media", metavar="MEDIA", nargs="+", type=Path, help="a video, or one or more images")
    add("-q", "--question", metavar="TEXT", action="append", required=True, help="a question; repeat it to ask several about the same media")
    add("-o", "--option", metavar="TEXT", action="append", default=[], help="an option of a multiple-choice question; repeat it. Without options the answer is free text")
    add("--steps", metavar="K", type=_count, help="reflection steps (default: the checkpoint's, 1 for images, 4 for video)")
    add("--reflect", choices=("auto", "always", "off"), default="auto", help="auto: always for multiple choice, the model's decision in free text (default: %(default)s)")
    add("--fps", metavar="F", type=_rate, help="frames a second to look at (default: the bundle's, 2)")
    add("--max-frames", metavar="N", type=_positive, help="frames at most (default: the bundle's, 512)")
    add("--max-pixels", metavar="N", type=_positive, help="pixels of one image or frame at most")
    add("--start", metavar="S", type=_seconds, help="look at the video from this second on")
    add("--end", metavar="S", type=_seconds, help="look at the video up to this second")
    add("--true-seconds", action="store_true", help="time positions from the real distance of frames (default: one second a pair, as the checkpoints were evaluated)")
    add("--strict", action="store_true", help="fail on damaged media instead of answering from what can be read")
    add("--max-new-tokens", metavar="N", type=_positive, default=128, help="length of a free-text answer (default: %(default)s)")
    add("--temperature", metavar="T", type=float, default=0.0, help="0 takes the likeliest token (default), more samples")
    add("--top-p", metavar="P", type=float, default=1.0, help="sample among the likeliest tokens that sum to P (default: 1)")
    add("--seed", metavar="N", type=int, default=0, help="seed of sampling (default: 0)")
    add("--threads", metavar="N", type=_positive, help="CPU threads (default: all cores)")
    _add_device(parser)
    _add_json(parser)


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands, "verify", _verify, "hold a bundle against its checkpoint in PyTorch", "reflectrt verify bundle --against checkpoint"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a folder written by `reflectrt export`")
    parser.add_argument("--against", metavar="CHECKPOINT", required=True, help="the checkpoint it was exported from")
    _add_json(parser)


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", _inspect, "show what a bundle holds", "reflectrt inspect bundle")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a folder written by `reflectrt export`")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what the bundle was exported for")


def _positive(text: str) -> int:
    value = _count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too small, pass 1 or more")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _rate(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 frames a second show nothing, pass more")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def run_export(arguments: argparse.Namespace) -> int:
    """Export as the parsed options say, showing progress and the verification's figures on stderr."""
    try:
        from .bench.verify import verify
        from .export.bundle import ExportPlan, export_bundle
        from .export.checkpoint import Checkpoint
    except ModuleNotFoundError as error:
        raise UsageError(f"export needs {error.name}; run `pip install 'reflectrt[export]'`") from None
    checkpoint = Checkpoint.open(arguments.checkpoint)
    plan = ExportPlan(arguments.target, arguments.precision, arguments.max_context)
    with ExportProgress() as progress:
        check = None if arguments.no_verify else lambda folder: verify(folder, checkpoint.path)
        manifest = export_bundle(checkpoint, arguments.bundle, plan, progress, check, arguments.force)
    size = sum(entry.size for entry in manifest.files.values())
    print(f"{arguments.bundle}: {size / 1e6:.1f} MB, {manifest.target} {manifest.precision}", file=sys.stderr)
    print(_verification_line(manifest.verification), file=sys.stderr)
    return 0


def _verification_line(record: Verification | None) -> str:
    if record is None:
        return "not verified against PyTorch"
    figures = ", ".join(f"{name} {_figure(value)}" for name, value in record.figures.items())
    return f"{'agrees' if record.passed else 'DOES NOT AGREE'} with PyTorch: {figures}"


def _figure(value: float) -> str:
    return f"{value:.7f}" if 0.99 < value < 1 else f"{value:.3g}"


def _ask(arguments: argparse.Namespace) -> int:
    questions = [Question(text, tuple(arguments.option)) for text in arguments.question]
    options = _ask_options(arguments)
    model = load(arguments.bundle, arguments.device, arguments.threads)
    if model.manifest.reflection is None and (arguments.steps or arguments.reflect == "always"):
        print("note: this bundle is a plain Qwen2.5-VL without reflection tokens; asking without", file=sys.stderr)
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
    reserve = max(model.tokens_needed(q, kind, options) for q in questions for kind in ("image", "video"))
    with show_tokens() as progress:
        return model.open(
            *arguments.media,
            reserve_tokens=reserve,
            progress=progress,
            fps=arguments.fps,
            max_frames=arguments.max_frames,
            max_pixels=arguments.max_pixels,
            start_s=arguments.start,
            end_s=arguments.end,
            strict=arguments.strict,
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


def _verify(arguments: argparse.Namespace) -> int:
    try:
        from .bench.verify import verify
        from .export.checkpoint import Checkpoint
    except ModuleNotFoundError as error:
        raise UsageError(f"verify needs {error.name}; run `pip install 'reflectrt[export]'`") from None
    checkpoint = Checkpoint.open(arguments.against)
    record = verify(arguments.bundle, checkpoint.path, progress=lambda side: print(side, file=sys.stderr))
    print(json.dumps(asdict(record)) if arguments.json else _verification_line(record))
    return 0 if record.passed else 1


def _inspect(arguments: argparse.Namespace) -> int:
    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    if arguments.json:
        print(json.dumps(asdict(manifest) | {"sha256": bundle.sha256}))
    else:
        print("\n".join(_describe(manifest, bundle.sha256)))
    return 0


def _describe(manifest: Manifest, sha256: str) -> list[str]:
    model, reflection = manifest.model, manifest.reflection
    size = sum(entry.size for entry in manifest.files.values())
    steps = f"{reflection.image_steps} for images, {reflection.video_steps} for video" if reflection else "none: a plain Qwen2.5-VL"
    lines = {
        "checkpoint": f"{manifest.source.name} ({manifest.source.dtype}, {manifest.source.fingerprint[:12]})",
        "runs on": f"{manifest.target}, {manifest.precision}, " + ", ".join(f"{k} {v} or newer" for k, v in manifest.engine.items()),
        "decoder": f"{model.layers} layers, hidden {model.hidden}, {model.kv_heads} KV heads of {model.head_dim}, vocabulary {model.vocab}",
        "context": f"{model.max_context} tokens",
        "reflection": steps,
        "video": f"{manifest.video.fps:g} frames/s, {manifest.video.max_frames} at most, {manifest.video.total_pixels // 784} tokens of 28 x 28 px x 2 frames" ,
        "images": f"{manifest.image.min_pixels} to {manifest.image.max_pixels} px",
        "verified": _verification_line(manifest.verification),
        "size": f"{size / 1e6:.1f} MB in {len(manifest.files)} files",
        "sha256": sha256,
    }
    return [f"{name:11} {text}" for name, text in lines.items()]


if __name__ == "__main__":
    sys.exit(main())
