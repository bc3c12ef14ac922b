"""The deploy form: a new network with convolutions and norms merged and unused heads dropped."""

from __future__ import annotations

import copy
from typing import Any, Protocol, runtime_checkable

from torch import nn

from edgecrafter.models.network import Detector


@runtime_checkable
class Fusible(Protocol):
    """A block that has a cheaper form with the same output in evaluation mode."""

    def fused(self) -> nn.Module: ...


def fuse(network: Detector) -> Detector:
    """A fused copy in evaluation mode; ``network`` is left as it is.

    Every block with a cheaper form is replaced by it. The score and quality heads that only training reads are dropped,
    as in the released deploy form; the label table of the groups stays, so that the parameter counts are the published.
    """
    copied = copy.deepcopy(network).eval()
    _replace(copied)
    decoder: Any = copied.decoder
    for name in decoder.last_only:
        heads = getattr(decoder, name)
        setattr(decoder, name, nn.ModuleList([*(nn.Identity() for _ in heads[:-1]), heads[-1]]))
    return copied


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Fusible):
            setattr(module, name, child.fused())
        else:
            _replace(child)
