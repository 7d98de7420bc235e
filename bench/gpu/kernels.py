"""A decoder step's kernels alone, at the 7B shape over random weights: right, how fast, and where the time goes.

    python -m reflectrt.bench.gpu.kernels --out FILE    # 17 GB on the GPU, no files; needs torch

Each format's steps are compared with torch in float32 over the same rounded weights and cache (two layers), then timed
(all layers): whole steps, and each of a layer's five kernels with the others left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from ...runtime.contract import cache_names
from ...runtime.engines.cuda_graph import CapturedWork
from ...runtime.engines.cuda_kernels import KernelGpu, Launch
from ...runtime.engines.cuda_steps import StepKernels
from ...runtime.engines.device_memory import Block, DeviceBuffer, Pool
from ...runtime.kernels.arguments import Mail
from ...runtime.manifest import Manifest, StepForm, StepLayer, StepLinear
from .ceilings import measure_ceilings
from .measure import timed
from .report import environment
from .shape import TEXT_7B

CONTEXT, CAPACITY = 18_432, 18_688
FORMATS = ("bf16", "fp8", "int8", "int8-blocks", "int4")
CACHES = ("float", "int8", "float8e4m3fn")
TOKENS = (1, 5)
KERNELS = ("q k v", "attention", "output", "gate and up", "down")
RUNS, IN_A_ROW = 15, 4
FEW_LAYERS = 2
SHAPE = TEXT_7B
WIDTH = SHAPE.heads * SHAPE.head_dim
ROWS = {
    "qkv": (WIDTH + 2 * SHAPE.kv_heads * SHAPE.head_dim, SHAPE.hidden),
    "output": (SHAPE.hidden, WIDTH),
    "gate": (SHAPE.mlp, SHAPE.hidden),
    "up": (SHAPE.mlp, SHAPE.hidden),
    "down": (SHAPE.hidden, SHAPE.mlp),
}
"""[rows, inputs] of a layer's matrices."""
TYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.uint8: "uint8", torch.int8: "int8",
         torch.float8_e4m3fn: "float8e4m3fn"}  # fmt: skip

Tensors = dict[str, torch.Tensor]


class PartialGpu(KernelGpu):
    """A GPU that launches all kernels of a step, or one of a layer's five, the `chosen`."""

    chosen: int | None = None
    seen = 0

    def launch(self, function: Any, how: Launch, arguments: Any) -> None:
        """Queue it, if it is one of those."""
        if self.chosen is None or (self.seen - 1) % len(KERNELS) == self.chosen:
            super().launch(function, how, arguments)
        self.seen += 1

    def only(self, chosen: int | None) -> None:
        """Choose, before a step is captured."""
        self.chosen, self.seen = chosen, 0


@dataclass(frozen=True)
class Stored:
    """A matrix as a bundle stores it, and [rows, inputs] in float32 as it is read."""

    weight: torch.Tensor
    scales: torch.Tensor | None
    meant: torch.Tensor


def store(matrix: torch.Tensor, kind: str) -> Stored:
    """A matrix in one of FORMATS; by code of its own, so that kernels and exporter cannot agree in a mistake."""
    rows, inputs = matrix.shape
    if kind == "bf16":
        weight = matrix.bfloat16()
        return Stored(weight, None, weight.float())
    if kind == "fp8":
        scales = matrix.abs().amax(1, keepdim=True) / 448
        weight = (matrix / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
        return Stored(weight, scales, weight.float() * scales)
    bits, block = {"int8": (8, inputs), "int8-blocks": (8, 128), "int4": (4, 32)}[kind]
    zero = 1 << bits - 1
    grouped = matrix.view(rows, inputs // block, block)
    scales = (grouped.abs().amax(2) / (zero - 1)).bfloat16()
    whole = (grouped / scales.float()[..., None]).round().clamp(-zero, zero - 1)
    meant = (whole * scales.float()[..., None]).view(rows, inputs)
    bytes_ = (whole + zero).to(torch.uint8)
    weight = bytes_ if bits == 8 else bytes_[..., ::2] | bytes_[..., 1::2] << 4
    return Stored(weight.contiguous(), scales, meant)


class Step:
    """Random weights and a cache on the GPU, and the kernels over them."""

    def __init__(self, kind: str, cache: str, layers: int, keep: bool) -> None:
        """`keep` the matrices in float32, to compare with."""
        self.gpu = PartialGpu()
        self.kind, self.cache, self.layers = kind, cache, layers
        self.meant: Tensors = {}
        self.stored: Tensors = {}
        self.mails: list[torch.Tensor] = []
        for index in range(layers):
            self._draw_layer(index, keep)
        self.stored["norm"] = norm_weight()
        self.given = self._caches()
        form = StepForm(
            SHAPE.heads,
            SHAPE.rms_eps,
            SHAPE.rope_theta,
            SHAPE.mrope_section,
            tuple(map(self._names, range(layers))),
            "norm",
        )
        torch.cuda.synchronize()
        self.weights = {name: buffer(tensor) for name, tensor in self.stored.items()}
        self.kernels = StepKernels(self.gpu, Pool(self.gpu), manifest(layers, cache), form, self.weights)

    def _draw_layer(self, index: int, keep: bool) -> None:
        for name, (rows, inputs) in ROWS.items():
            found = store(torch.randn(rows, inputs, device="cuda") * inputs**-0.5, self.kind)
            self.stored[f"{index}.{name}"] = found.weight
            if found.scales is not None:
                self.stored[f"{index}.{name}.scales"] = found.scales
            if keep:
                self.meant[f"{index}.{name}"] = found.meant
        self.stored |= {f"{index}.norm": norm_weight(), f"{index}.mlp_norm": norm_weight()}
        self.stored[f"{index}.bias"] = (torch.randn(ROWS["qkv"][0], device="cuda") * 0.1).bfloat16()
        if self.cache != "float":
            for name in ("key", "value"):
                scale = torch.rand(SHAPE.kv_heads, SHAPE.head_dim, device="cuda") + 1
                self.stored[f"{index}.{name}_scale"] = scale * (5 / 127 if self.cache == "int8" else 5 / 448)

    def _names(self, index: int) -> StepLayer:
        def linear(name: str) -> StepLinear:
            scales = f"{index}.{name}.scales"
            return StepLinear(f"{index}.{name}", scales if scales in self.stored else None)

        scales = () if self.cache == "float" else (f"{index}.key_scale", f"{index}.value_scale")
        return StepLayer(
            f"{index}.norm", linear("qkv"), f"{index}.bias", linear("output"), f"{index}.mlp_norm",
            linear("gate"), linear("up"), linear("down"), scales,
        )  # fmt: skip

    def _caches(self) -> Tensors:
        found = {}
        for place, name in enumerate(cache_names(self.layers)):
            rows = torch.randn(1, SHAPE.kv_heads, CAPACITY, SHAPE.head_dim, device="cuda")
            found[name] = self.to_cache(rows, place // 2, ("key", "value")[place % 2])
        return found

    def to_cache(self, rows: torch.Tensor, layer: int, name: str) -> torch.Tensor:
        """Keys or values [..., kv_heads, n, head_dim] as the cache has them."""
        if self.cache == "float":
            return rows.bfloat16()
        scaled = rows / self.stored[f"{layer}.{name}_scale"][:, None, :]
        return (
            scaled.round().clamp(-128, 127).to(torch.int8)
            if self.cache == "int8"
            else scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
        )

    def from_cache(self, rows: torch.Tensor, layer: int, name: str) -> torch.Tensor:
        """The same in float32."""
        return (
            rows.float() if self.cache == "float" else rows.float() * self.stored[f"{layer}.{name}_scale"][:, None, :]
        )

    def capture(self, inputs: Tensors, hidden: torch.Tensor) -> CapturedWork:
        """A step over `inputs` and the caches, which must be kept, as `hidden` must be."""
        tokens, positions = hidden.shape[1], inputs["positions"].flatten().tolist()
        mail = Mail(CONTEXT, inputs["embeddings"].data_ptr(), hidden.data_ptr(), tuple(positions))
        self.mails.append(torch.frombuffer(bytearray(mail), dtype=torch.uint8).cuda())
        torch.cuda.synchronize()
        caches = {name: buffer(tensor) for name, tensor in self.given.items()}
        return self.kernels.capture(tokens, self.mails[-1].data_ptr(), caches)


def manifest(layers: int, cache: str) -> Manifest:
    """What the kernels read of one."""
    model = SimpleNamespace(
        hidden=SHAPE.hidden, layers=layers, kv_heads=SHAPE.kv_heads, head_dim=SHAPE.head_dim, cache_dtype=cache
    )
    prompt = SimpleNamespace(answer_prefix=(1, 2, 3, 4))
    return cast(Manifest, SimpleNamespace(model=model, activation="bfloat16", prompt=prompt))


def norm_weight() -> torch.Tensor:
    """Of a norm."""
    return (torch.rand(SHAPE.hidden, device="cuda") + 0.5).bfloat16()


def buffer(tensor: torch.Tensor) -> DeviceBuffer:
    """A tensor's memory; the tensor must be kept."""
    return DeviceBuffer(Block(tensor.data_ptr(), tensor.nbytes), 0, tuple(tensor.shape), TYPES[tensor.dtype])


def inputs(tokens: int) -> Tensors:
    """Of a step behind CONTEXT rows."""
    positions = torch.arange(tokens).expand(3, tokens) + torch.tensor([[900], [40], [77]])
    return {
        "embeddings": torch.randn(1, tokens, SHAPE.hidden, device="cuda").bfloat16(),
        "positions": positions.contiguous().cuda(),
    }


def reference(step: Step, given: Tensors) -> torch.Tensor:
    """What the step is to give, [tokens, hidden], in float32."""
    x = given["embeddings"][0].float()
    tokens = len(x)
    pairs = SHAPE.head_dim // 2
    axes = torch.repeat_interleave(torch.arange(3), torch.tensor(SHAPE.mrope_section)).cuda()
    angles = given["positions"][axes].T * SHAPE.rope_theta ** (-torch.arange(pairs, device="cuda") / pairs)
    cos, sin = angles.float().cos()[:, None], angles.float().sin()[:, None]

    def normed(rows: torch.Tensor, name: str) -> torch.Tensor:
        return rows * torch.rsqrt(rows.pow(2).mean(1, keepdim=True) + SHAPE.rms_eps) * step.stored[name].float()

    def turned(rows: torch.Tensor) -> torch.Tensor:
        first, second = rows[..., :pairs], rows[..., pairs:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    names = cache_names(step.layers)
    for index in range(step.layers):
        qkv = normed(x, f"{index}.norm") @ step.meant[f"{index}.qkv"].T + step.stored[f"{index}.bias"].float()
        q, k, v = (
            part.view(tokens, -1, SHAPE.head_dim)
            for part in torch.split(qkv, [WIDTH, *[SHAPE.kv_heads * SHAPE.head_dim] * 2], 1)
        )
        rows = []
        for place, (name, new) in enumerate((("key", turned(k)), ("value", v))):
            old = step.given[names[2 * index + place]][0, :, :CONTEXT]
            both = torch.cat((old.float(), step.to_cache(new.transpose(0, 1), index, name).float()), 1)
            rows.append(step.from_cache(both, index, name).repeat_interleave(SHAPE.heads // SHAPE.kv_heads, 0))
        scores = turned(q).transpose(0, 1) @ rows[0].transpose(1, 2) * SHAPE.head_dim**-0.5
        late = torch.arange(CONTEXT + tokens, device="cuda") > CONTEXT + torch.arange(tokens, device="cuda")[:, None]
        attended = scores.masked_fill(late, -torch.inf).softmax(-1) @ rows[1]
        x = x + attended.transpose(0, 1).reshape(tokens, WIDTH) @ step.meant[f"{index}.output"].T
        h = normed(x, f"{index}.mlp_norm")
        inner = torch.nn.functional.silu(h @ step.meant[f"{index}.gate"].T) * (h @ step.meant[f"{index}.up"].T)
        x = x + inner @ step.meant[f"{index}.down"].T
    return normed(x, "norm")


def error(kind: str, cache: str, tokens: int) -> float:
    """Relative distance of a step's state from torch's, which rounds only what is stored. Two runs must agree."""
    step, given = Step(kind, cache, FEW_LAYERS, keep=True), inputs(tokens)
    wanted = reference(step, given)
    found = []
    for _ in range(2):
        hidden = torch.full((1, tokens, SHAPE.hidden), torch.nan, device="cuda").bfloat16()
        torch.cuda.synchronize()
        step.capture(given, hidden).replay()
        step.gpu.wait()
        found.append(hidden[0].float())
    if not torch.equal(*found):
        worst = (found[0] - found[1]).abs().max()
        raise RuntimeError(f"two steps over the same inputs differ by {worst} ({kind}, {cache}, {tokens} tokens)")
    return float((found[0] - wanted).norm() / wanted.norm())


def times(kind: str, cache: str) -> dict[str, Any]:
    """Milliseconds of whole steps by tokens, bytes read, and microseconds a layer of each kernel of one token."""
    step = Step(kind, cache, SHAPE.layers, keep=False)
    found: dict[str, Any] = {}
    for tokens in TOKENS:
        given, hidden = inputs(tokens), torch.empty(1, tokens, SHAPE.hidden, device="cuda").bfloat16()
        torch.cuda.synchronize()
        found[f"{tokens}_ms"] = 1e3 * _seconds(step, step.capture(given, hidden))
        if tokens == 1:
            found["kernels_us"] = dict(_by_kernel(step, given, hidden))
    found["bytes"] = sum(t.nbytes for t in step.stored.values()) + sum(
        t[:, :, :CONTEXT].nbytes for t in step.given.values()
    )
    return found


def _by_kernel(step: Step, given: Tensors, hidden: torch.Tensor) -> Iterator[tuple[str, float]]:
    for index, name in enumerate(KERNELS):
        step.gpu.only(index)
        yield name, 1e6 * _seconds(step, step.capture(given, hidden)) / step.layers
    step.gpu.only(None)


def _seconds(step: Step, work: CapturedWork) -> float:
    """Of one of IN_A_ROW steps that are queued one behind the other, as those of an answer are."""

    def run() -> None:
        for _ in range(IN_A_ROW):
            work.replay()
        step.gpu.wait()

    return timed(run, RUNS, warm_up=3) / IN_A_ROW


def measure(formats: tuple[str, ...], caches: tuple[str, ...]) -> dict[str, Any]:
    """Errors and times of all formats over a float cache, and of all caches under fp8."""
    pairs = [(kind, "float") for kind in formats] + [("fp8", cache) for cache in caches if cache != "float"]
    found: dict[str, Any] = {}
    for kind, cache in pairs:
        errors: dict[str, float] = {f"{tokens}_error": error(kind, cache, tokens) for tokens in (*TOKENS, 8)}
        torch.cuda.empty_cache()
        found[f"{kind}, {cache} cache"] = times(kind, cache) | errors
        torch.cuda.empty_cache()
    return found


def table(results: Mapping[str, Any]) -> str:
    """What was found, in a few lines."""
    ceiling = results["ceilings"]["copy_tbps"]
    lines = []
    for name, one in results["steps"].items():
        share = one["bytes"] / one["1_ms"] / 1e9 / ceiling
        kernels = " ".join(f"{value:.1f}" for value in one["kernels_us"].values())
        errors = " ".join(f"{one[f'{tokens}_error']:.4f}" for tokens in (*TOKENS, 8))
        lines.append(f"{name:26} {one['1_ms']:.3f} {one['5_ms']:.3f} ms  {share:.0%}  us {kernels}  errors {errors}")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--caches", nargs="+", default=CACHES, choices=CACHES)
    options = parser.parse_args()
    ceilings = measure_ceilings()
    results = {
        "environment": environment(),
        "shape": f"Qwen2.5-VL-7B, random weights, {CONTEXT} rows in the cache",
        "ceilings": {"matmul_tflops": ceilings.matmul_tflops, "copy_tbps": ceilings.copy_tbps},
        "steps": measure(tuple(options.formats), tuple(options.caches)),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
