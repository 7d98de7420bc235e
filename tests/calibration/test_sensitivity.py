from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exports import Exports
from reflectrt.calibration.recorder import Replay, record
from reflectrt.calibration.samples import Sample, read_lines
from reflectrt.calibration.sensitivity import measure, propose, spare
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.quantize.plain import default_recipe
from reflectrt.export.recipe import EIGHT_BITS, GraphRecipe, LinearRecipe, Origin, Recipe
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.engines.onnxruntime import OrtCpuEngine
from reflectrt.runtime.session import Model

GATE, UP = (f"model.language_model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))
PATCH = "model.visual.patch_embed.proj.weight"


@pytest.fixture
def samples(pictures: Path) -> list[Sample]:
    return read_lines(pictures)[:3]


@pytest.fixture
def recipe(exports: Exports) -> Recipe:
    """A gate with a range that fits, an up projection and a vision layer with one far too narrow."""
    plain = default_recipe(Checkpoint.open(exports.checkpoint()), "int4")
    assert plain is not None
    narrow, fitting = LinearRecipe("int8", 0.001), LinearRecipe("int8", 0.03)
    graphs = {"decoder": GraphRecipe({GATE: fitting, UP: narrow}), "vision": GraphRecipe({PATCH: narrow})}
    return replace(plain, precision="int8", graphs=graphs, origin=Origin("minmax", None, 3, ""))


def test_a_replay_gives_the_logits_of_the_run_that_was_recorded(exports: Exports, samples: list[Sample]) -> None:
    bundle = open_bundle(exports.bundle())
    (recording, *_) = record(bundle, samples, max_frames=4)
    engine = OrtCpuEngine(bundle)
    graphs = {name: engine.graph(name) for name in bundle.manifest.graphs}
    logits = Replay(bundle, graphs).logits(recording, {})
    answer = Model(bundle, engine).open(*samples[0].media).ask(samples[0].question, samples[0].options)
    letters = list(bundle.manifest.prompt.letters[:4])
    scores = np.exp(logits[-1, letters] - np.logaddexp.reduce(logits[-1, letters]))
    assert answer.option_scores is not None
    np.testing.assert_allclose(scores, list(answer.option_scores.values()), rtol=1e-3)
    assert len(recording.judged) == 1 + 1  # the step and the answer
    again = Replay(bundle, graphs).logits(recording, {"vision": engine.graph("vision")})
    np.testing.assert_allclose(again, logits, atol=1e-4)


def test_a_layer_with_a_bad_range_does_more_damage(exports: Exports, samples: list[Sample], recipe: Recipe) -> None:
    seen: list[int] = []
    damage = measure(exports.bundle(), samples, recipe, lambda done, _: seen.append(done))
    assert seen == [1, 2, 3]
    assert damage[UP] > 10 * damage[GATE] > 0
    assert damage[PATCH] > 10 * damage[GATE]


def test_a_budget_spares_the_worst_layers_that_fit(exports: Exports) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    damage = {GATE: 0.1, UP: 0.5, PATCH: 0.0}
    assert propose(checkpoint, damage, 1.0) == [UP, GATE]
    assert propose(checkpoint, damage, 0.0) == []
    one = np.prod(checkpoint.tensors[UP].shape) / sum(np.prod(checkpoint.tensors[w].shape) for w in damage)
    assert propose(checkpoint, damage, float(one) * 1.01) == [UP]


def test_a_spared_layer_keeps_eight_bits_of_weight(recipe: Recipe) -> None:
    spared = spare(recipe, {UP: 0.5}, [UP])
    assert spared.graph("decoder").linears == recipe.graph("decoder").linears | {UP: EIGHT_BITS}
    assert spared.origin is not None
    assert (spared.origin.damage, spared.origin.spared) == ({UP: 0.5}, (UP,))


def test_a_spared_layer_of_8_bit_weights_stays_as_it_is(recipe: Recipe) -> None:
    weights = {"decoder": GraphRecipe({UP: EIGHT_BITS, GATE: EIGHT_BITS})}
    spared = spare(replace(recipe, precision="int8-weights", graphs=weights), {UP: 0.5}, [UP])
    assert spared.graph("decoder").linears == {GATE: EIGHT_BITS}


def test_what_sparing_would_not_widen_is_not_measured(exports: Exports, samples: list[Sample], recipe: Recipe) -> None:
    decoder = GraphRecipe(recipe.graph("decoder").linears | {GATE: EIGHT_BITS})
    mixed = replace(recipe, graphs={**recipe.graphs, "decoder": decoder})
    assert set(measure(exports.bundle(), samples, mixed, lambda *_: None)) == {UP, PATCH}
