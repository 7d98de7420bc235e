"""ReflectRT: ask questions about huge images and long videos on your own hardware.

    import reflectrt

    model = reflectrt.load("bundle")
    video = model.open("clip.mp4", fps=2)
    answer = video.ask("Which digit flashes?", options=["3", "7"])

README.md has the rest.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime import Answer, MediaReport, Model, ReflectRTError, Sampling, Session, load
else:

    def __getattr__(name: str) -> object:
        # When first asked for: numpy and the media libraries take a while, in which the command line can already be
        # interrupted.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import runtime

        return getattr(runtime, name)


__version__ = "0.1.0"
__all__ = ["Answer", "MediaReport", "Model", "ReflectRTError", "Sampling", "Session", "__version__", "load"]
