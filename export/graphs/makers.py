"""The modules of a model's graphs, by the contract's names, to be made when they are traced."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ...runtime import contract
from ..facts import ReflectionFacts, TextFacts, VisionFacts
from .decoder import Decoder
from .embed import Embed
from .head import Head
from .reflect import Reflect
from .vision import Vision

Makers = dict[str, Callable[[], nn.Module]]


def graph_makers(
    text: TextFacts, vision: VisionFacts, reflection: ReflectionFacts | None, activation: torch.dtype
) -> Makers:  # fmt: skip
    """What makes each graph of a model that computes in this type; `reflect` only where its head is a module."""
    makers: Makers = {
        contract.VISION: lambda: Vision(vision),
        contract.EMBED: lambda: Embed(text, activation),
        contract.DECODER: lambda: Decoder(text),
        contract.HEAD: lambda: Head(text, activation),
    }
    if reflection and reflection.head != "identity":
        makers[contract.REFLECT] = lambda: Reflect(text, reflection)
    return makers
