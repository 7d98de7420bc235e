"""What can go wrong, as types. Every message says what happened and what to do about it, on one line."""


class ReflectRTError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is the command line's exit status."""

    exit_code = 1


class UsageError(ReflectRTError):
    """A request that cannot be meant: an empty question, 27 options, an unknown name."""

    exit_code = 2


class MediaError(ReflectRTError):
    """A file that is missing, is not the media it claims to be, or cannot be decoded."""


class LimitError(ReflectRTError):
    """A medium or request larger than a limit; the message names the limit and the setting that changes the need."""


class BundleError(ReflectRTError):
    """A bundle that is missing, incomplete, altered or malformed."""


class CompatibilityError(ReflectRTError):
    """A bundle, library or device that does not fit the others."""


class ResourceError(ReflectRTError):
    """Not enough memory or disk; the message gives need, free and the setting that changes the need."""


class NumericError(ReflectRTError):
    """NaN or infinity where a number was due; the message names the stage."""


class ExportError(ReflectRTError):
    """A checkpoint that cannot be read or exported."""
