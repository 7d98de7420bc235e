"""ReflectRT: ask questions about huge images and long videos on your own hardware.

    import reflectrt

    model = reflectrt.load("bundle")
    video = model.open("clip.mp4", fps=2)
    answer = video.ask("Which digit flashes?", options=["3", "7"])

README.md has the rest.
"""

from .runtime import Answer, MediaReport, Model, ReflectRTError, Sampling, Session, load

__version__ = "0.1.0"
__all__ = ["Answer", "MediaReport", "Model", "ReflectRTError", "Sampling", "Session", "__version__", "load"]
