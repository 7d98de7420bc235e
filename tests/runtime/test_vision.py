import numpy as np
import pytest
import torch
from reflectrt.runtime import contract
from reflectrt.runtime.vision import NO_PATCH, vision_layout
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

# Height and width in patches; a window is 8 x 8 of them. All but four are cut at an edge or two.
GRIDS = [
    *((8, 8), (16, 8), (8, 24), (32, 32)),
    *((2, 2), (4, 6), (8, 10), (10, 8), (14, 10), (10, 14), (18, 34), (6, 40), (2, 26), (46, 2), (30, 22), (64, 18)),
]


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_windows_hold_the_patches_that_transformers_windows_hold(height: int, width: int) -> None:
    groups, bounds = get_vision_window_index(torch.tensor([[1, height, width]]), 2, 112, 14)
    patches = (4 * groups[:, None] + torch.arange(4)).flatten().tolist()
    theirs = [set(patches[a:b]) for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False)]
    windows = vision_layout(height, width, 2, 8).windows
    assert [set(row[row != NO_PATCH].tolist()) for row in windows] == theirs


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_slots_lead_back_from_windows_to_patches(height: int, width: int) -> None:
    layout = vision_layout(height, width, 2, 8)
    np.testing.assert_array_equal(layout.windows.reshape(-1)[layout.slots], np.arange(height * width))
    assert (layout.windows == NO_PATCH).sum() == layout.windows.size - height * width


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_patch_positions_are_those_of_transformers(height: int, width: int) -> None:
    theirs = get_vision_position_ids(torch.tensor([[1, height, width]]), 2)
    np.testing.assert_array_equal(vision_layout(height, width, 2, 8).positions, theirs.numpy())


def test_layout_has_the_contract_s_shapes() -> None:
    layout = vision_layout(10, 14, 2, 8)
    sizes = contract.Sizes(4, 1, 1, 2, 64, 1176, 64)
    axes = {port.name: port.axes for port in contract.signatures(sizes)["vision"].inputs}
    free = {"patches": 140, "windows": 4}
    for name, array in (
        ("patch_positions", layout.positions),
        ("windows", layout.windows),
        ("window_slots", layout.slots),
    ):
        assert array.shape == tuple(free.get(axis, axis) for axis in axes[name])
        assert array.dtype == np.int64
