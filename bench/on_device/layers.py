"""What a library says of the layers of a plan that it has loaded: their types, to be held against the recipe.

TensorRT-RTX prints them while it builds, where `build` checks them; TensorRT tells only through its engine inspector,
on the device. No such text was seen here, so it is sent back as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...runtime.engines.tensorrt_library import Library
from ...runtime.engines.tensorrt_loading import load_plan
from ...runtime.plans import EnginePlan
from .steps import Figures


def plan_layers(library: Library, folder: Path, plans: Iterable[EnginePlan]) -> Figures:
    """The layers of each plan by its file; one plan is on the device at a time. Raises CompatibilityError."""
    return {plan.file: _layers(library, load_plan(library, folder / plan.file, plan)) for plan in plans}


def _layers(library: Library, engine: Any) -> Any:
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(library.api.LayerInformationFormat.JSON)
    try:
        return json.loads(text)
    except ValueError:  # another form than documented: whoever reads the report can make something of it
        return text
