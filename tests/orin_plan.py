"""The record of a decoder plan for Jetson Orin."""

from reflectrt.runtime.plans import EnginePlan

PLAN = EnginePlan(
    graph="decoder",
    file="decoder.plan",
    library="tensorrt",
    version="10.16.1.11",
    version_compatible=False,
    architecture="SM87",
    cuda="13",
    capacity=4096,
    profiles=({"tokens": (1, 64, 512)},),
    weight_bytes=1,
    scratch_bytes=(1,),
)
