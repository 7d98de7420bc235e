"""fp8 products: what cuBLASLt is told, once for each shape."""

from typing import Any

import pytest
from kernel_fakes import FakeGpu
from reflectrt.runtime.engines import cuda_products
from reflectrt.runtime.engines.cuda_products import Fp8Products, Operands, Shape
from reflectrt.runtime.errors import CompatibilityError, ReflectRTError

SHAPE, OPERANDS = Shape(37, 256, 512, 1024), Operands(1000, 2000, 3000, 4000, 5000)


class FakeLibrary:
    """cuBLASLt that counts its calls; `found` algorithms fit."""

    def __init__(self, found: int = 1, status: int = 0) -> None:
        self.found, self.status = found, status
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name == "cublasLtMatmulAlgoGetHeuristic":
                arguments[-1]._obj.value = self.found
            return self.status if name == "cublasLtMatmul" else 0

        return call

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def products(library: FakeLibrary) -> Fp8Products:
    gpu = FakeGpu()
    return Fp8Products(gpu, gpu, lambda _: library)  # type: ignore[arg-type]


def test_a_shape_is_planned_once() -> None:
    library = FakeLibrary()
    multiply = products(library).multiply
    for shape in (SHAPE, SHAPE, Shape(38, 256, 512, 1024)):
        multiply(shape, OPERANDS)
    assert len(library.named("cublasLtMatmulAlgoGetHeuristic")) == 2
    assert len(library.named("cublasLtMatmul")) == 3


def test_rows_are_the_library_s_columns() -> None:
    library = FakeLibrary()
    products(library).multiply(SHAPE, OPERANDS)
    layouts = [
        (arguments[1], *(size.value for size in arguments[2:]))
        for arguments in library.named("cublasLtMatrixLayoutCreate")
    ]
    assert layouts == [
        (cuda_products.FP8, 256, 512, 256),
        (cuda_products.FP8, 256, 37, 256),
        (cuda_products.BFLOAT16, 512, 37, 1024),
    ]


@pytest.mark.parametrize("added", [False, True])
def test_a_product_is_added_to_what_is_there_or_not(added: bool) -> None:
    library = FakeLibrary()
    products(library).multiply(Shape(37, 256, 512, 1024, added), OPERANDS)
    ((_, _, alpha, weight, _, x, _, beta, *_),) = library.named("cublasLtMatmul")
    assert (alpha._obj.value, beta._obj.value) == (1.0, float(added))
    assert (weight.value, x.value) == (OPERANDS.weight, OPERANDS.x)


def test_faults_are_told() -> None:
    with pytest.raises(ReflectRTError, match="has no fp8 product for"):
        products(FakeLibrary(found=0)).multiply(SHAPE, OPERANDS)
    with pytest.raises(ReflectRTError, match=r"failed in cublasLtMatmul \(15\)"):
        products(FakeLibrary(status=15)).multiply(SHAPE, OPERANDS)

    def absent(name: str) -> Any:
        raise OSError(name)

    gpu = FakeGpu()
    with pytest.raises(CompatibilityError, match=r"cuBLASLt .* is not installed"):
        Fp8Products(gpu, gpu, absent)  # type: ignore[arg-type]
