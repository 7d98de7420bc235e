"""Keep a report in the bundle that it is about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..runtime import manifest as manifests
from ..runtime.bundle import open_bundle
from ..runtime.errors import ResourceError
from ..runtime.manifest import Verification


def record(bundle: Path, verification: Verification) -> None:
    """Put a verification into a bundle's manifest, whole or not at all. Raises ResourceError (a read-only disk)."""
    manifest = replace(open_bundle(bundle).manifest, verification=verification)
    partial = bundle / f".{manifests.FILE_NAME}.partial"
    try:
        partial.write_text(manifests.dump(manifest), encoding="utf-8")
        partial.replace(bundle / manifests.FILE_NAME)
    except OSError as error:
        raise ResourceError(f"{bundle} cannot be written ({error.strerror}); copy it to a disk of yours") from None
