"""A decoder's steps by our own kernels (`runtime/kernels/step.cu`): up to MAX_TOKENS tokens, every weight read once.

ONNX Runtime's products of one row read memory at 61 to 83 % of what a copy does, its 8-bit ones at less, and it
launches a dozen kernels a layer. These are five a layer, captured once for each KV cache and number of tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np

from ..contract import FLOAT, cache_names
from ..kernels import source
from ..kernels.arguments import (
    FLOATS,
    FP8,
    GATE_UP,
    INNER_STEP,
    INT8,
    PAIR,
    QKV,
    RESIDUAL,
    Attention,
    Begin,
    Finish,
    Mail,
    Product,
)
from ..kernels.nvrtc import Compiled, Nvrtc
from ..manifest import Manifest, ModelFacts, StepForm
from .cuda_graph import CapturedWork
from .cuda_kernels import KernelGpu, Launch
from .cuda_matrices import Layer, Matrix, layer_weights, weight_named
from .device_memory import DeviceBuffer, Pool
from .step_blocks import (
    ATTENTION_WARPS,
    BLOCKS,
    FINISH_WARPS,
    MAX_TOKENS,
    UNIT_KEYS,
    attention_bytes,
    most_tokens,
    normed_bytes,
    ring_depth,
    row_blocks,
    tile_pairs,
    warps_for,
)

SOURCES = ("step.cu", "step_numbers.cu", "step_ends.cu", "step_product.cu", "step_attention.cu")
CACHES = {FLOAT: FLOATS, "int8": INT8, "float8e4m3fn": FP8}
WARP = 32

Buffers = Mapping[str, DeviceBuffer]


class StepKernels:
    """The decoder's steps on one GPU."""

    def __init__(self, gpu: KernelGpu, pool: Pool, manifest: Manifest, form: StepForm, weights: Buffers) -> None:
        """Raises BundleError where the form does not fit its weights, CompatibilityError without NVIDIA's compiler."""
        self._gpu, self._model = gpu, manifest.model
        self.layers = [layer_weights(names, weights, manifest.model, form) for names in form.layers]
        self.norm, self._heads = weight_named(weights, form.norm), form.heads
        self.most_tokens = most_tokens(gpu.shared_bytes(), manifest.model.hidden)
        self._programs = Programs(gpu, manifest, form, self.layers, self.most_tokens)
        stretches = max(1, gpu.processors() // manifest.model.kv_heads)
        self._space = Space(gpu, pool, manifest, form, self.layers, stretches)

    def capture(self, tokens: int, mail: int, caches: Buffers) -> CapturedWork:
        """Record a step of so many tokens over these very caches; what else it reads and writes, `Mail` says.

        `mail` is the address of one on the device. Raises ValueError for a KV cache with room for no multiple of
        UNIT_KEYS rows, behind which attention would read.
        """
        capacity = caches[cache_names(1)[0]].shape[2]
        if capacity % UNIT_KEYS:
            raise ValueError(f"a cache of {capacity} rows is no multiple of {UNIT_KEYS}")
        program = self._programs[tokens]
        return self._gpu.capture(lambda: self._queue(program, mail, caches))

    def _queue(self, program: Program, mail: int, buffers: Buffers) -> None:
        """The kernels of a step, one behind the other."""
        space = self._space
        begin = Begin(
            mail,
            space.frequencies.address,
            space.axes.address,
            space.residual.address,
            space.turns.address,
        )
        self._gpu.launch(program.begin, Launch((64, 1, 1), 256, early=False), begin)
        names = cache_names(self._model.layers)
        for index, layer in enumerate(self.layers):
            caches = [buffers[name] for name in names[2 * index : 2 * index + 2]]
            self._queue_layer(program, layer, caches, mail + Mail.past_length.offset)
        finish = Finish(space.residual.address, self.norm.address, mail)
        self._gpu.launch(program.finish, Launch((program.tokens, 1, 1), WARP * FINISH_WARPS), finish)

    def _queue_layer(self, program: Program, layer: Layer, caches: list[DeviceBuffer], past_length: int) -> None:
        space = self._space
        cache = {
            "past_length": past_length,
            "cache": _addresses(*caches),
            "cache_scales": _addresses(*layer.cache_scales),
            "capacity": caches[0].shape[2],
        }
        qkv = {"norm": layer.norm, "bias": layer.bias, "turns": space.turns, "out": space.queries}
        self._product(program, QKV, (layer.qkv,), qkv, cache)
        self._attention(program, cache | {"out_half": layer.output.format != FLOATS})
        self._product(program, RESIDUAL, (layer.output,), {"x": space.attended}, {"step": 1.0})
        half = layer.down.format != FLOATS
        gate_up = {"norm": layer.mlp_norm, "out": space.inner}
        self._product(program, GATE_UP, (layer.gate, layer.up), gate_up, {"out_half": half})
        self._product(program, RESIDUAL, (layer.down,), {"x": space.inner}, {"step": INNER_STEP if half else 1.0})

    def _product(
        self, program: Program, kind: int, matrices: tuple[Matrix, ...], buffers: Buffers, more: Mapping[str, object]
    ) -> None:
        matrix = matrices[0]
        pairs, blocks = matrix.rows * len(matrices) // 2, self._gpu.processors() * BLOCKS[kind]
        given = Product(
            weight=_addresses(*(one.weight for one in matrices)),
            scales=_addresses(*(one.scales for one in matrices if one.scales)),
            inputs=matrix.inputs,
            pairs=pairs,
            of_tile=tile_pairs(pairs, blocks),
            blocks=matrix.inputs // matrix.block,
            shift=matrix.shift,
            residual=self._space.residual.address,
            **{name: buffer.address for name, buffer in buffers.items()},
            **more,
        )
        how = Launch((blocks, 1, 1), WARP * warps_for(matrix.parts), program.shared_bytes(kind))
        self._gpu.launch(program.products[matrix.kernel(kind)], how, given)

    def _attention(self, program: Program, more: Mapping[str, object]) -> None:
        space = self._space
        given = Attention(
            queries=space.queries.address,
            sums=space.sums.address,
            shares=space.shares.address,
            tickets=space.tickets.address,
            out=space.attended.address,
            **more,
        )
        queries = self._heads // self._model.kv_heads * program.tokens
        blocks = max(self._gpu.processors(), self._model.kv_heads * row_blocks(queries))
        how = Launch((blocks, 1, 1), WARP * ATTENTION_WARPS, program.attention_bytes)
        self._gpu.launch(program.attention, how, given)


class Programs:
    """The kernels by number of tokens: compiled ahead on a thread for those that every answer needs."""

    def __init__(
        self, gpu: KernelGpu, manifest: Manifest, form: StepForm, layers: list[Layer], most_tokens: int
    ) -> None:
        self._gpu, self._manifest, self._form, self._layers = gpu, manifest, form, layers
        self._compiler, self._source = Nvrtc(), source(*SOURCES)
        self._compiled: dict[int, Future[Compiled]] = {}
        self._loaded: dict[int, Program] = {}
        forced = 1 + len(manifest.prompt.answer_prefix)
        for tokens in {1, min(forced, most_tokens)}:
            self._compile(tokens)

    def __getitem__(self, tokens: int) -> Program:
        """The kernels for so many tokens."""
        if tokens not in self._loaded:
            compiled = self._compile(tokens).result()
            self._loaded[tokens] = Program(self._gpu, compiled, self._kernels(), tokens, self._manifest.model)
        return self._loaded[tokens]

    def _compile(self, tokens: int) -> Future[Compiled]:
        if tokens not in self._compiled:
            given = (self._source, self._gpu.facts().capability, self._macros(tokens), list(self._kernels()))
            self._compiled[tokens] = self._compiler.ahead(*given)
        return self._compiled[tokens]

    def _kernels(self) -> dict[str, int]:
        """Instances of the product that the layers need, and what each is for."""
        products = (product for layer in self._layers for product in layer.products())
        return {matrix.kernel(kind): kind for matrix, kind in products}

    def _macros(self, tokens: int) -> dict[str, str | int]:
        model = self._manifest.model
        return {
            "TOKENS": tokens,
            "HIDDEN": model.hidden,
            "HEADS": self._form.heads,
            "KV_HEADS": model.kv_heads,
            "HEAD_DIM": model.head_dim,
            "EPSILON": f"{self._form.epsilon!r}f",
            "BF16": int(self._manifest.activation == "bfloat16"),
            "CACHE": CACHES[model.cache_dtype],
            "RING_DEPTH": ring_depth(model, self._gpu.shared_bytes()),
        }


class Program:
    """The kernels for one number of tokens, on the GPU."""

    def __init__(
        self, gpu: KernelGpu, compiled: Compiled, kinds: Mapping[str, int], tokens: int, model: ModelFacts
    ) -> None:
        module = gpu.load(compiled.code)
        self.tokens, self.attention_bytes = tokens, attention_bytes(model, gpu.shared_bytes())
        self._normed_bytes = normed_bytes(tokens, model.hidden)
        self.begin, self.finish = gpu.function(module, "begin"), gpu.function(module, "finish")
        self.attention = gpu.function(module, "attention", self.attention_bytes)
        self.products = {
            name: gpu.function(module, compiled.names[name], self.shared_bytes(kind)) for name, kind in kinds.items()
        }

    def shared_bytes(self, kind: int) -> int:
        """Shared memory of a product: of one that norms its inputs, which lie there."""
        return 0 if kind == RESIDUAL else self._normed_bytes


class Space:
    """What the kernels of a step hand to one another, for up to MAX_TOKENS tokens; and the angles' frequencies."""

    def __init__(
        self, gpu: KernelGpu, pool: Pool, manifest: Manifest, form: StepForm, layers: list[Layer], stretches: int
    ) -> None:
        model, self._gpu, self._pool = manifest.model, gpu, pool
        width, queries = form.heads * model.head_dim, MAX_TOKENS * form.heads
        exponents = np.arange(0, model.head_dim, 2, dtype=np.float32) / np.float32(model.head_dim)
        self.frequencies = self._filled((1.0 / np.float32(form.rope_theta) ** exponents).astype(np.float32))
        self.axes = self._filled(np.repeat(np.arange(3, dtype=np.int32), form.mrope_section))
        self.residual = self._pool.buffer((MAX_TOKENS, model.hidden), "float32")
        self.turns = self._pool.buffer((MAX_TOKENS, model.head_dim), "float32")
        self.queries = self._pool.buffer((MAX_TOKENS, width), manifest.activation)
        self.attended = self._pool.buffer((MAX_TOKENS, width), manifest.activation)
        self.inner = self._pool.buffer((MAX_TOKENS, max(layer.gate.rows for layer in layers)), manifest.activation)
        self.sums = self._pool.buffer((stretches, queries, model.head_dim), "float32")
        self.shares = self._pool.buffer((stretches, queries, 2), "float32")
        self.tickets = self._filled(np.zeros(queries, np.int32))

    def _filled(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> DeviceBuffer:
        buffer = self._pool.buffer(array.shape, array.dtype.name)
        self._gpu.upload(array.ctypes.data, buffer.address, array.nbytes)
        return buffer


def _addresses(*buffers: DeviceBuffer) -> ctypes.Array[ctypes.c_uint64]:
    return PAIR(*(buffer.address for buffer in buffers))
