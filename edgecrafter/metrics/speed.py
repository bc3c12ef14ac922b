"""What a network costs: parameters and floating-point operations, counted without computing anything."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgecrafter.types import Outputs


class Flops(NamedTuple):
    """Floating-point operations of one image, two per multiply-add (not in billions)."""

    all_products: int
    """every convolution, matrix and attention product: what a device has to compute"""
    paper: int
    """the same without the score and value products of attention, which the counter behind the published numbers does
    not see. It does see norms and activations, which are not in here: this is 0.1 to 0.4 % below it (ECDet-S 25.94
    against 26.04 billion, M 52.92 / 53.05, L 99.44 / 99.63, X 156.71 / 156.93; deploy form, 640 x 640)"""


def parameters(network: nn.Module) -> int:
    """Number of parameters; a shared one counts once, buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, size: tuple[int, int] = (640, 640)) -> Flops:
    """Count the products of a forward pass in evaluation mode for one RGB image of ``size`` (height, width).

    Runs a copy of the network on torch's meta device: shapes only. Norms, activations, softmax and sampling are not
    counted. The published numbers are of the deploy form at 640 x 640 (``models.fuse``).
    """
    from torch.utils.flop_counter import FlopCounterMode  # which takes triton along: imported where it is used

    shadow = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    counter, attention = FlopCounterMode(display=False), _Attention()
    with torch.no_grad(), attention, counter:
        answer = shadow(torch.empty(1, 3, *size, device="meta"))
        masks = answer.layers[-1].masks if isinstance(answer, Outputs) else None
        if masks is not None:
            masks.dense()  # the published numbers are of networks that compute the masks of all queries
    total = int(counter.get_total_flops())
    return Flops(total, total - attention.products)


class _Attention(TorchFunctionMode):
    """Adds up the score and value products of every ``scaled_dot_product_attention``."""

    products = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.products += _products(*args[:3])
        return func(*args, **(kwargs or {}))


def _products(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Query [..., N, D], key [..., M, D], value [..., M, V]: two products over N x M pairs."""
    *heads, rows, width = query.shape
    return 2 * math.prod(heads) * rows * key.shape[-2] * (width + value.shape[-1])
