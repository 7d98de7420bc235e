"""How long the GPU's runs may be: as long as is fast, less where memory is short, refused where that is too much."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ResourceError

ROW_BYTES = "reflectrt.row_bytes"
"""Where a graph's file says how much each row of a run takes (`export/lower/cuda_scratch.py` counts it)."""
SHARE = 0.5
"""Of the memory that is free beside the weights: what runs may take. The rest is for the KV cache and its buffers."""


@dataclass(frozen=True)
class Runs:
    """Rows of the longest runs: tokens of the decoder, patches of the vision encoder."""

    tokens: int
    patches: int


FAST = Runs(8192, 32_768)
"""Measured on an H100: 112 temporal grids of 288 patches a run take 5 % less than 56, more gain nothing; their 8,064
tokens in one run take 3 % less than in two, 18,432 tokens of text in one another 3 %, for twice the memory."""
LEAST = Runs(512, 4096)
"""Shorter ones would leave a GPU mostly idle."""


@dataclass(frozen=True)
class RowBytes:
    """Bytes of intermediate values for each row, as the exporter counted them; 0 where a bundle does not say."""

    token: int
    patch: int

    def need(self, runs: Runs) -> int:
        """Both graphs' bytes: each keeps what its longest run took."""
        return runs.tokens * self.token + runs.patches * self.patch


def plan_runs(row: RowBytes, free: int) -> Runs:
    """The longest runs for `free` bytes beside the weights. Raises ResourceError with need and free."""
    least = row.need(LEAST)
    if least > free:
        raise ResourceError(
            f"the shortest runs ({LEAST.tokens} tokens, {LEAST.patches} patches) need {least / 1e6:.0f} MB on the GPU "
            f"beside the weights, {free / 1e6:.0f} MB are free; stop what else runs there, or export with "
            "--precision int4"
        )
    fast = row.need(FAST)
    scale = min(1.0, SHARE * free / fast) if fast else 1.0
    return Runs(max(LEAST.tokens, int(scale * FAST.tokens)), max(LEAST.patches, int(scale * FAST.patches)))
