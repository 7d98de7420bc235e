"""Checkpoint -> bundle: trace each graph, lower it for the target, stream its weights, write the manifest."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import onnx_ir as ir
import torch

from ..runtime import contract
from ..runtime import manifest as manifests
from ..runtime.bundle import TOKENIZER
from ..runtime.contract import Signature
from ..runtime.errors import ExportError
from ..runtime.manifest import (
    GraphEntry,
    ImagePixels,
    Manifest,
    ModelFacts,
    Reflection,
    Source,
    StoredWeight,
    Verification,
    VideoPixels,
    VisionForm,
)
from .checkpoint import Checkpoint
from .forms import Forms, lower_forms, write_long, write_shared
from .graphs.makers import graph_makers
from .inputs import GraphConfig
from .prompt import prompt_tokens
from .quantize.apply import quantize
from .quantize.plain import default_recipe, stored_bytes
from .recipe import Recipe
from .segments import segment_bytes, write_segments
from .staging import file_entry, staged
from .targets import ACTIVATIONS, TARGETS, Target
from .trace import trace
from .weights import StoredTensor, bind_weights, share_tied_head, write_weights

Check = Callable[[Path], Verification]
"""Holds a finished bundle folder against its checkpoint; run before the bundle is published."""


class Progress(Protocol):
    """Where an export reports how far it is."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def weights(self, done: int, total: int) -> None:
        """So many of the weights' bytes are written."""


DEFAULT_CONTEXT = 32_768
"""Tokens, where the checkpoint has as many: 128,000 would cost a 7B model 7 GB of KV cache to fill."""
MIN_CONTEXT = 1024
"""Tokens: a picture, a question and its answer, and what the comparison with PyTorch asks."""


@dataclass(frozen=True)
class ExportPlan:
    """What to export to."""

    target: str = "cpu"
    precision: str = "fp32"
    max_context: int | None = None
    """Tokens that prompt and answer may fill; None takes DEFAULT_CONTEXT, or the checkpoint's own if less."""
    recipe: Recipe | None = None
    """How to quantize; None leaves the checkpoint's weights as they are."""


# The authors' evaluation of long videos (Video-MME, MLVU) and Qwen's image defaults.
VIDEO = VideoPixels(2.0, 512, 64 * 784, 460_800, 20_000 * 784)
IMAGE = ImagePixels(4 * 784, 16_384 * 784)


def export_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    plan: ExportPlan,
    progress: Progress,
    check: Check | None = None,
    force: bool = False,
) -> Manifest:
    """Export a checkpoint to a bundle folder, which appears whole or not at all.

    `check` verifies the staged bundle and its record goes into the manifest; a failed check stops the export. Raises
    ExportError (the plan or the checkpoint does not allow it) and ResourceError (disk).
    """
    target = _target(plan)
    dtype = target.precisions[plan.precision]
    context, recipe = _context(checkpoint, plan), _recipe(checkpoint, plan)
    weight_bytes = stored_bytes(checkpoint.tensors, recipe, dtype.itemsize)
    if target.cut_vision:
        weight_bytes += segment_bytes(checkpoint.tensors, dtype.itemsize)
    with staged(folder, needed_bytes=int(1.02 * weight_bytes) + 2**26, force=force) as staging:
        writer = _GraphWriter(checkpoint, staging, target, dtype, recipe, progress, weight_bytes)
        graphs = writer.write_all()
        progress.stage("hash")
        manifest = _manifest(checkpoint, replace(plan, recipe=recipe), context, graphs, staging)
        _write_manifest(staging, manifest)
        if check:
            progress.stage("verify")
            manifest = replace(manifest, verification=_checked(check, staging))
            _write_manifest(staging, manifest)
    return manifest


def _target(plan: ExportPlan) -> Target:
    if plan.target not in TARGETS:
        raise ExportError(f"target {plan.target!r} is not built yet; this version exports for {', '.join(TARGETS)}")
    target = TARGETS[plan.target]
    if plan.precision not in target.precisions:
        raise ExportError(
            f"target {plan.target} does not run {plan.precision} yet; choose from {', '.join(target.precisions)}"
        )
    if plan.max_context is not None and plan.max_context < MIN_CONTEXT:
        raise ExportError(f"--max-context {plan.max_context} has no room for a picture; pass {MIN_CONTEXT} or more")
    return target


def _context(checkpoint: Checkpoint, plan: ExportPlan) -> int:
    """Tokens of the bundle's context."""
    own = checkpoint.text.max_positions
    if plan.max_context is None:
        return min(DEFAULT_CONTEXT, own)
    if plan.max_context > own:
        raise ExportError(
            f"--max-context {plan.max_context} is more than the checkpoint was made for; pass {own} or less"
        )
    return plan.max_context


def _recipe(checkpoint: Checkpoint, plan: ExportPlan) -> Recipe | None:
    """The plan's recipe, held against precision and checkpoint; a plain one where the precision needs no ranges."""
    recipe = plan.recipe or default_recipe(checkpoint, plan.precision)
    if recipe is None:
        return None
    if recipe.precision != plan.precision:
        raise ExportError(f"the recipe is for {recipe.precision}; pass --precision {recipe.precision}")
    if recipe.kv_cache and recipe.kv_cache.type not in TARGETS[plan.target].caches:
        raise ExportError(f"target {plan.target} does not quantize the KV cache yet; calibrate without --kv-cache")
    if recipe.checkpoint and recipe.checkpoint != (found := checkpoint.fingerprint()):
        raise ExportError(
            f"the recipe was calibrated on another checkpoint ({recipe.checkpoint[:12]}, this is {found[:12]}); "
            "calibrate this one"
        )
    return TARGETS[plan.target].adapt(recipe)


def _checked(check: Check, folder: Path) -> Verification:
    verification = check(folder)
    if not verification.passed:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in verification.figures.items())
        raise ExportError(
            f"the exported graphs do not agree with PyTorch ({figures}); nothing was written, please report this"
        )
    return verification


class _GraphWriter:
    """Writes the graphs of one bundle, tracking which checkpoint tensors they use."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        target: Target,
        dtype: torch.dtype,
        recipe: Recipe | None,
        progress: Progress,
        total_bytes: int,
    ) -> None:
        self.checkpoint, self.folder, self.target, self.dtype = checkpoint, folder, target, dtype
        self.recipe, self.progress, self.total, self.done = recipe, progress, total_bytes, 0
        self.used: set[str] = set()
        self.stored: dict[str, StoredTensor] = {}

    def write_all(self) -> dict[str, GraphEntry]:
        """Every graph that the checkpoint needs; ExportError where a tensor of the checkpoint goes unused."""
        entries = {name: self.write(name, make, sig) for name, make, sig in self._graphs()}
        if left := sorted(set(self.checkpoint.tensors) - self.used):
            raise ExportError(f"the graphs do not use {len(left)} tensors of the checkpoint: {', '.join(left[:10])}")
        return entries

    def _graphs(self) -> list[tuple[str, Callable[[], torch.nn.Module], Signature]]:
        checkpoint = self.checkpoint
        signatures = contract.signatures(_model_facts(checkpoint, 1).sizes())
        makers = graph_makers(checkpoint.text, checkpoint.vision, checkpoint.reflection, self.dtype)
        return [(name, make, signatures[name]) for name, make in makers.items()]

    def write(self, name: str, make: Callable[[], torch.nn.Module], signature: Signature) -> GraphEntry:
        """Trace, bind, quantize, lower and save one graph."""
        self.progress.stage(name)
        model = trace(make, GraphConfig(signature, self.dtype), name)
        self.used |= bind_weights(model, self.checkpoint)
        if self.recipe:
            quantize(model, self.recipe, name, self.target.numbers)
        forms = lower_forms(model, name, self.target, self.checkpoint.text)
        model = forms.short
        tied = name == contract.HEAD and self.checkpoint.text.tied
        if not (tied and share_tied_head(model, self.stored, self.folder)):
            self.stored |= write_weights(model, self.folder, f"{name}.onnx.data", self._wrote)
        ir.save(model, self.folder / f"{name}.onnx")
        sizes = _model_facts(self.checkpoint, 1, self.target.cache_dtype(self.recipe)).sizes()
        final = contract.signatures(sizes)[name]
        block_form, weights = self._write_bound(name, forms)
        return GraphEntry(
            f"{name}.onnx",
            final.inputs,
            final.outputs,
            long_form=write_long(forms, name, self.folder),
            weights=weights,
            step_form=forms.steps,
            block_form=block_form,
        )

    def _write_bound(self, name: str, forms: Forms) -> tuple[VisionForm | None, tuple[StoredWeight, ...]]:
        """Save a graph's segments, if it has some, and its weights that are inputs."""
        if forms.segments is None:
            return None, write_shared(forms, name, self.folder, self._wrote)
        return write_segments(forms.segments, self.stored, self.folder, self._wrote)

    def _wrote(self, count: int) -> None:
        self.done += count
        self.progress.weights(self.done, self.total)


def _manifest(
    checkpoint: Checkpoint, plan: ExportPlan, context: int, graphs: dict[str, GraphEntry], folder: Path
) -> Manifest:
    target = TARGETS[plan.target]
    cache_dtype = target.cache_dtype(plan.recipe)
    (folder / TOKENIZER).write_bytes((checkpoint.path / TOKENIZER).read_bytes())
    return Manifest(
        format=manifests.FORMAT,
        version=(manifests.FORMAT_MAJOR, manifests.FORMAT_MINOR),
        target=plan.target,
        precision=plan.precision,
        activation=ACTIVATIONS[target.precisions[plan.precision]],
        model=_model_facts(checkpoint, context, cache_dtype),
        prompt=prompt_tokens(checkpoint.tokens, checkpoint.tokenizer()),
        reflection=_reflection(checkpoint),
        image=_image(checkpoint),
        video=VIDEO,
        graphs=graphs,
        source=Source(Path(checkpoint.source).name, checkpoint.fingerprint(), checkpoint.dtype),
        tools=_tools(),
        engine=target.engine_for(cache_dtype),
        recipe=plan.recipe.summary() if plan.recipe else None,
        verification=None,
        plans=(),
        files={file.name: file_entry(file) for file in sorted(folder.iterdir())},
    )


def _model_facts(
    checkpoint: Checkpoint, max_context: int, cache_dtype: contract.CacheDtype = contract.FLOAT
) -> ModelFacts:
    text, vision = checkpoint.text, checkpoint.vision
    return ModelFacts(
        hidden=text.hidden,
        layers=text.layers,
        kv_heads=text.kv_heads,
        head_dim=text.head_dim,
        vocab=text.vocab,
        channels=vision.in_channels,
        patch=vision.patch,
        temporal_patch=vision.temporal_patch,
        merge=vision.merge,
        window=vision.window,
        tokens_per_second=vision.tokens_per_second,
        max_context=max_context,
        cache_dtype=cache_dtype,
    )


def _image(checkpoint: Checkpoint) -> ImagePixels:
    budget = checkpoint.image_budget
    return ImagePixels(budget.min_pixels, budget.max_pixels) if budget else IMAGE


def _reflection(checkpoint: Checkpoint) -> Reflection | None:
    facts = checkpoint.reflection
    if facts is None:
        return None
    return Reflection(facts.begin_id, facts.step_id, facts.end_id, facts.head, facts.image_steps, facts.video_steps)


def _tools() -> dict[str, str]:
    packages = ("reflectrt", "torch", "onnx", "onnx-ir", "onnxscript", "optimum")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    file = folder / manifests.FILE_NAME
    file.write_text(manifests.dump(manifest), encoding="utf-8")
    file_entry(file)  # flushed like the others; nothing records its hash but the bundle's own identity
