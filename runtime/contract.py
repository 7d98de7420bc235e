"""The contract between export and runtime: every graph's inputs and outputs, with axes and element types.

The one place where these names stand. `export/` traces graphs to it and writes them into the manifest, the runtime
checks a bundle against it on opening.

    graph    input                               shape                                   element type
    vision   patches                             [grids, patches, patch_values]          uint8
             patch_positions                     [patches, 2]        (row, column)       int64
             windows                             [windows, window_patches]   (-1 = none) int64
             window_slots                        [patches]   (place in flat `windows`)   int64
        ->   embeddings                          [grids, visual_tokens, hidden]          float
    embed    token_ids                           [1, tokens]                             int64
        ->   embeddings                          [1, tokens, hidden]                     float
    decoder  embeddings                          [1, tokens, hidden]                     float
             positions                           [3, tokens]   (time, height, width)     int64
             past_length                         [1]   (cache rows already filled)       int64
             key_cache.i, value_cache.i          [1, kv_heads, capacity, head_dim]       cache
        ->   hidden_post_norm                    [1, tokens, hidden]                     float
             key_cache_out.i, value_cache_out.i  as the inputs; may be the same buffer   cache
    reflect  hidden_post_norm                    [1, tokens, hidden]                     float
        ->   embeddings                          [1, tokens, hidden]                     float
    head     hidden_post_norm                    [1, tokens, hidden]                     float
        ->   logits                              [1, tokens, vocab]                      float32, or float

`hidden_post_norm` is the decoder's state **after** the final RMSNorm: what `head` reads and what reflection feeds back.
`reflect` exists only where the checkpoint has a reflection head; where that is the identity there is no such graph.
"float" is the bundle's activation type, "cache" that, int8 or float8e4m3fn, as the manifest says, which also says what
logits are: bundles of formats before 1.6 rounded them to "float".

A bundle may have the vision graph in segments as well, between the attentions of its blocks (`manifest.VisionForm`).
Rows are the patches of all grids, each grid's in window order; `width` is the vision encoder's, heads * head_dim.

    segment       port                           shape                                   element type
    vision_start  the vision graph's inputs
            ->    residual                       [rows, width]                           float
                  qkv            (of block 0)    [rows, 3 * width]                       float
                  cos, sin       (of one grid)   [patches, head_dim / 2]                 float32
                  window_ends    (rows; first 0) [runs + 1]   (runs = grids * windows)   int32
                  window_ranks   (for the end)   [patches]                               int64
    vision_block  attended                       [rows, width]                           float
                  residual                       [rows, width]                           float
                  weights, as the manifest names them
            ->    residual_out                   [rows, width]                           float
                  qkv            (of the next)   [rows, 3 * width]                       float
    vision_end    attended, residual             [rows, width]                           float
                  window_ranks                   [patches]                               int64
            ->    embeddings                     [grids, visual_tokens, hidden]          float

A row of `qkv` is query, key and value, each head by head and not rotated. Between two segments is attention: row r of
run s is attended by all rows of s; pairs (i, i + head_dim / 2) of queries and keys are rotated by the angles of patch
r mod patches; scores are divided by sqrt(head_dim). Runs are windows, in blocks with full attention whole grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

VISION, EMBED, DECODER, REFLECT, HEAD = "vision", "embed", "decoder", "reflect", "head"

ATTENDED, RESIDUAL = "mlp_inputs", "residual"
"""Outputs [1, tokens, hidden] of one layer's attention, where a bundle has it as a graph of its own for long runs: the
normed sum that the MLP reads, and the sum."""

VISION_START, VISION_BLOCK, VISION_END = "vision_start", "vision_block", "vision_end"
"""Segments of the vision graph."""

FLOAT: Final = "float"
"""Stands for the bundle's activation type (float32, float16 or bfloat16)."""

CacheDtype = Literal["float", "int8", "float8e4m3fn"]
"""Element types that a KV cache can have; all but a float take a byte."""

Axis = int | str


@dataclass(frozen=True)
class Port:
    """One input or output of a graph: its name, its axes (a number, or the name of a free size) and element type."""

    name: str
    axes: tuple[Axis, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, in binding order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes that fix a model's signatures (counts; `patch_values` = channels * temporal_patch * patch^2)."""

    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    vocab: int
    patch_values: int
    window_patches: int
    cache_dtype: str = FLOAT
    logits_dtype: str = "float32"


def cache_names(layers: int) -> list[str]:
    """Names of the decoder's cache inputs, in binding order: key and value of layer 0, of layer 1, ..."""
    return [f"{kind}_cache.{layer}" for layer in range(layers) for kind in ("key", "value")]


def cache_output(name: str) -> str:
    """Name of the output that carries the updated cache `name`."""
    kind, layer = name.split(".")
    return f"{kind}_out.{layer}"


def signatures(sizes: Sizes) -> dict[str, Signature]:
    """Signature of every graph of a model of these sizes, by graph name."""
    tokens = (1, "tokens", sizes.hidden)
    cache = (1, sizes.kv_heads, "capacity", sizes.head_dim)
    caches = cache_names(sizes.layers)
    return {
        VISION: Signature(
            (
                Port("patches", ("grids", "patches", sizes.patch_values), "uint8"),
                Port("patch_positions", ("patches", 2), "int64"),
                Port("windows", ("windows", sizes.window_patches), "int64"),
                Port("window_slots", ("patches",), "int64"),
            ),
            (Port("embeddings", ("grids", "visual_tokens", sizes.hidden), FLOAT),),
        ),
        EMBED: Signature((Port("token_ids", (1, "tokens"), "int64"),), (Port("embeddings", tokens, FLOAT),)),
        DECODER: Signature(
            (
                Port("embeddings", tokens, FLOAT),
                Port("positions", (3, "tokens"), "int64"),
                Port("past_length", (1,), "int64"),
                *(Port(name, cache, sizes.cache_dtype) for name in caches),
            ),
            (
                Port("hidden_post_norm", tokens, FLOAT),
                *(Port(cache_output(name), cache, sizes.cache_dtype) for name in caches),
            ),
        ),
        REFLECT: Signature((Port("hidden_post_norm", tokens, FLOAT),), (Port("embeddings", tokens, FLOAT),)),
        HEAD: Signature(
            (Port("hidden_post_norm", tokens, FLOAT),),
            (Port("logits", (1, "tokens", sizes.vocab), sizes.logits_dtype),),
        ),
    }


def layer_attention(decoder: Signature) -> Signature:
    """Signature of the first layer of a decoder up to what its MLP reads, without its weights."""
    caches = cache_names(1)
    hidden = decoder.outputs[0].axes
    inputs = ("embeddings", "positions", "past_length", *caches)
    updated = [cache_output(name) for name in caches]
    return Signature(
        tuple(port for port in decoder.inputs if port.name in inputs),
        (
            Port(ATTENDED, hidden, FLOAT),
            *(port for port in decoder.outputs if port.name in updated),
            Port(RESIDUAL, hidden, FLOAT),
        ),
    )


def vision_segments(vision: Signature, heads: int, head_dim: int) -> dict[str, Signature]:
    """Signature of every segment of a vision graph with so many heads; a block's without its weights."""
    width = heads * head_dim
    attended, residual = (Port(name, ("rows", width), FLOAT) for name in ("attended", "residual"))
    qkv = Port("qkv", ("rows", 3 * width), FLOAT)
    ranks = Port("window_ranks", ("patches",), "int64")
    angles = (Port(name, ("patches", head_dim // 2), "float32") for name in ("cos", "sin"))
    return {
        VISION_START: Signature(
            vision.inputs, (residual, qkv, *angles, Port("window_ends", ("run_ends",), "int32"), ranks)
        ),
        VISION_BLOCK: Signature((attended, residual), (Port("residual_out", ("rows", width), FLOAT), qkv)),
        VISION_END: Signature((attended, residual, ranks), vision.outputs),
    }
