"""`make demo`: ask a bundle about real media, and show what comes back.

Until the reference checkpoint is trained, the bundle in `assets/demo` has random weights: everything runs as it will,
but the answers mean nothing.
"""

from __future__ import annotations

from pathlib import Path

from .runtime import Answer, Session, load

HERE = Path(__file__).parent
BUNDLE = HERE / "assets" / "demo"
CLIP = HERE / "assets" / "media" / "bikes.mp4"
PHOTO = HERE / "assets" / "media" / "coffee.jpg"
THINGS = ["a cup of coffee", "people on bicycles", "a cat", "a pagoda"]


def main() -> None:
    """Ask about a filmed clip twice, and about a photograph."""
    model = load(BUNDLE)
    print(f"bundle: {model.manifest.source.name}, {model.manifest.precision}, on {model.engine.device}")
    print("NOTE: random weights; this shows that everything runs, the answers mean nothing.\n")
    clip = model.open(CLIP)
    show(clip, clip.ask("What is in the video?", THINGS))
    show(clip, clip.ask("Is anybody moving?", ["yes", "no"]))
    photo = model.open(PHOTO)
    show(photo, photo.ask("What is in the picture?", THINGS))


def show(session: Session, answer: Answer) -> None:
    """One answer with what it took."""
    media, seconds = session.media[0], answer.timings
    print(f"{Path(media.path).name}: {media.frames} frames, {media.visual_tokens} visual tokens")
    print(f"  Q: {answer.question}\n  A: {answer.option}. {answer.text}")
    print(f"  {len(answer.reflection)} reflection steps, {answer.forwards} decoder runs, {seconds['total']:.2f} s")
    stages = "  ".join(f"{name} {seconds[name]:.3f}" for name in ("read", "vision", "prefill", "reflect", "decode"))
    print(f"  seconds: {stages}\n")


if __name__ == "__main__":
    main()
