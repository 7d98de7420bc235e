from pathlib import Path

import pytest
from checkpoints import SHAPES
from exports import Exports
from reflectrt.bench.random_checkpoint import make_checkpoint
from reflectrt.bench.verify import check_memory, check_source, verify
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.runtime.errors import CompatibilityError, ResourceError


def test_another_checkpoint_is_named_before_anything_is_compared(exports: Exports) -> None:
    bundle = exports.bundle("small")
    check_source(bundle, Checkpoint.open(exports.checkpoint("small")))
    with pytest.raises(CompatibilityError, match="was exported from small"):
        check_source(bundle, Checkpoint.open(exports.checkpoint("plain")))


def test_other_weights_do_not_agree(exports: Exports, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path, like=SHAPES["small"], seed=99)
    record = verify(exports.bundle("small"), other)
    assert not record.passed
    assert record.figures["reflection_cosine"] < 0.9


def test_a_comparison_that_memory_does_not_hold_is_refused_with_numbers() -> None:
    check_memory(1000)
    with pytest.raises(ResourceError, match=r"needs 4400000\.6 GB of memory, .* GB are free"):
        check_memory(10**15)


def test_the_demo_bundle_carries_a_passed_verification() -> None:
    from reflectrt.runtime.bundle import open_bundle

    record = open_bundle(Path(__file__).parents[2] / "assets" / "demo").manifest.verification
    assert record is not None
    assert record.passed
    assert record.figures["agreement_high"] >= 0.995
