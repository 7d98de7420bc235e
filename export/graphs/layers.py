"""Building blocks of the traced graphs, each one ONNX operator or two.

Weights keep the checkpoint's names, so that a node's weight leads to the checkpoint's tensor. Modules are built and
traced on fake tensors: no weight is in memory until the bundle is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.onnx import ops

Array = NDArray[Any]
Attributes = dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]


class Linear(nn.Module):
    """`x @ weight + bias` with the weight stored [in, out], the layout that MatMul reads without a transpose.

    The checkpoint holds [out, in]; the exporter transposes while it streams (`export/weights.py`).
    """

    def __init__(self, size_in: int, size_out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_in, size_out))
        self.bias = nn.Parameter(torch.empty(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 (ONNX `RMSNormalization`)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        attributes: Attributes = {"axis": -1, "epsilon": self.eps, "stash_type": 1}
        return ops.symbolic("RMSNormalization", (x, self.weight), attributes, dtype=x.dtype, shape=x.shape, version=23)


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, the MLP of both Qwen2.5-VL's decoder and its vision encoder."""

    def __init__(self, size: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = Linear(size, inner, bias)
        self.up_proj = Linear(size, inner, bias)
        self.down_proj = Linear(inner, size, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        hidden: Tensor = gate * torch.sigmoid(gate) * self.up_proj(x)
        return self.down_proj(hidden)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def split_last(x: Tensor, parts: int) -> Sequence[Tensor]:
    """Equal parts of the last axis (ONNX `Split`; the tracer writes `chunk` as a sequence, which engines refuse)."""
    shape = (*x.shape[:-1], x.shape[-1] // parts)
    attributes: Attributes = {"axis": -1, "num_outputs": parts}
    return ops.symbolic_multi_out(
        "Split", (x,), attributes, dtypes=[x.dtype] * parts, shapes=[shape] * parts, version=18
    )


def unflatten(x: Tensor, axis: int, sizes: tuple[int, int]) -> Tensor:
    """Split one axis into two; a size of -1 follows from the other."""
    return torch.unflatten(x, axis, sizes)


def split_heads(x: Tensor, heads: int, head_dim: int) -> Tensor:
    """[B, T, heads * head_dim] -> [B, heads, T, head_dim]."""
    return unflatten(x, -1, (heads, head_dim)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, heads, T, head_dim] -> [B, T, heads * head_dim]."""
    return x.transpose(1, 2).flatten(2)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_dim/2) of x [B, H, T, head_dim] by angles given as cos, sin [B, T, head_dim/2]."""
    return ops.rotary_embedding(x, cos, sin)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over [B, H, T, head_dim]; `mask` is true where a query may look (broadcast to B, H, T, S)."""
    return ops.attention(query, key, value, attn_mask=mask)[0]


def scatter_into_cache(cache: Tensor, update: Tensor, past_length: Tensor) -> Tensor:
    """The cache [1, H, capacity, head_dim] with `update` [1, H, T, head_dim] written from row `past_length` [1] on."""
    attributes: Attributes = {"axis": 2, "mode": "linear"}
    return ops.symbolic(
        "TensorScatter",
        (cache, update, past_length),
        attributes,
        dtype=cache.dtype,
        shape=cache.shape,
        version=24,
    )


def inverse_frequencies(size: int, theta: float) -> Array:
    """`theta ** (-2 i / size)` for i in [0, size/2): the rotary frequencies, float32 [size / 2] (RoFormer, 3.2.2)."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)
