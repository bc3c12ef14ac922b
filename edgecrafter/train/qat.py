"""Training for 8 bits: layers that an INT8 export quantises see rounded weights and inputs while they learn.

Weights are rounded per output channel, and inputs in a range that is a moving average of the batches' ranges. Rounding
has the gradient of the identity. The network itself is never changed: what it computes is rounded on the way, inside
``Quantiser.on``. Its weights are saved as they are, in full precision, close to values that rounding does little to;
ranges are not part of a model file, an INT8 export measures them again on its calibration pictures.

Batch norms keep their statistics, so that a convolution sees the weights that it will have when it is merged with its
norm: per channel, rounding before the norm's factor is rounding after it. The two branches of a ``RepBlock`` become one
convolution, and it is the sum that is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgecrafter.models.eightbit import kept, stays
from edgecrafter.nn.conv import ConvNorm, RepBlock
from edgecrafter.train import distributed
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.recipes import Recipe

MOMENTUM = 0.05
"""share of a batch in the moving average of ranges"""
EPOCHS, RATE, AUGMENT = 5, 0.1, "light"
"""of a run that does not say otherwise: epochs, the part of the recipe's learning rate, and augmentation"""
LEVELS, MOST = 255, 127
"""steps of an input's range, and the largest weight"""


def settings(config: TrainConfig, recipe: Recipe, random: bool) -> tuple[TrainConfig, Recipe]:
    """Options and recipe of a run with ``qat``: those of a short fine-tuning where nothing was asked for.

    Raises ``ValueError`` for ``random`` weights, which have nothing to keep.
    """
    if random:
        raise ValueError("qat fine-tunes trained weights: give a file as model, such as model=runs/detect/train")
    chosen: dict[str, Any] = {"epochs": config.epochs or EPOCHS}
    if config.augment == "default":
        chosen["augment"] = AUGMENT
    slow: dict[str, Any] = {"lr": recipe.lr * RATE, "backbone_lr": recipe.backbone_lr * RATE, "reload_best": False}
    return replace(config, **chosen), replace(recipe, **slow)


class Quantiser(nn.Module):
    """The ranges of the inputs of all layers of a network that take 8 bits; they are learned while in training mode."""

    def __init__(self, network: nn.Module, arch: str) -> None:
        """``arch`` (``Size.arch``) says which layers stay in floating point."""
        super().__init__()
        patterns = kept(arch)
        self.names = [name for name in _weights(network) if not stays(name.rpartition(".")[0], patterns)]
        self.register_buffer("low", torch.zeros(len(self.names)))
        self.register_buffer("high", torch.zeros(len(self.names)))

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """Inside, the layers of ``network`` are rounded: the one this was made of, or a copy with the same names."""
        weights = _weights(network)
        places = {weights[name].untyped_storage().data_ptr(): i for i, name in enumerate(self.names)}
        with _Rounding(self, places, _branches(network)):
            yield

    def rounded_input(self, index: int, x: Tensor) -> Tensor:
        """The input of a layer, rounded; in training mode its range is noted first."""
        x = x.float()
        low, high = self.low[index], self.high[index]  # type: ignore[index]
        if self.training:
            self._note(low, high, x.detach())
        scale = ((high - low) / LEVELS).clamp(min=1e-12)
        found = torch.fake_quantize_per_tensor_affine(x, scale, (-low / scale).round().int(), 0, LEVELS)
        return torch.where(high > low, found, x)  # x where nothing was seen yet

    @torch.no_grad()
    def _note(self, low: Tensor, high: Tensor, x: Tensor) -> None:
        found = torch.stack([x.amin().clamp(max=0), x.amax().clamp(min=0)])
        found = distributed.mean(found)
        share = torch.where(high > low, MOMENTUM, 1.0)
        low.lerp_(found[0], share)
        high.lerp_(found[1], share)


@dataclass
class _Branch:
    """The 3x3 branch of a two-branch block."""

    block: RepBlock

    def rounded(self) -> Tensor:
        """The weight with which the sum of both branches is rounded."""
        block = self.block
        three, factor = block.three.conv.weight, _factor(block.three)
        merged = three * factor + F.pad(block.one.conv.weight * _factor(block.one), (1, 1, 1, 1))
        change = (rounded_weight(merged) - merged) / torch.where(factor.abs() < 1e-8, torch.inf, factor)
        return three + change.detach()


class _Rounding(TorchFunctionMode):
    """Linear layers and convolutions on rounded inputs and weights, by the storage of their weights."""

    def __init__(self, quantiser: Quantiser, places: Mapping[int, int], branches: Mapping[int, _Branch | None]) -> None:
        super().__init__()
        self.quantiser, self.places, self.branches = quantiser, places, branches

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (func is not F.linear and func is not F.conv2d) or len(args) < 2:
            return func(*args, **kwargs)
        x, weight, *rest = args
        key = weight.untyped_storage().data_ptr()
        if key not in self.places:
            return func(*args, **kwargs)
        x = self.quantiser.rounded_input(self.places[key], x)
        if key in self.branches:
            branch = self.branches[key]
            return func(x, weight if branch is None else branch.rounded(), *rest, **kwargs)
        return func(x, rounded_weight(weight), *rest, **kwargs)


def rounded_weight(weight: Tensor) -> Tensor:
    """A weight [outputs, ...] in 8 bits per output, with the gradient of the identity."""
    plain = weight.detach().float()
    scale = plain.abs().amax(tuple(range(1, plain.dim())), keepdim=True).clamp(min=1e-12) / MOST
    return weight + ((plain / scale).round() * scale - plain).to(weight.dtype)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of linear layers and convolutions by name, those of attention that are no module's included."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            found[f"{name}.weight"] = module.weight
        elif isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
            found[f"{name}.in_proj_weight"] = module.in_proj_weight
    return found  # type: ignore[return-value]


def _branches(network: nn.Module) -> dict[int, _Branch | None]:
    """Storage of the weights of two-branch blocks -> how the 3x3 branch is rounded, and None for the other."""
    found: dict[int, _Branch | None] = {}
    for module in network.modules():
        if isinstance(module, RepBlock):
            found[module.three.conv.weight.untyped_storage().data_ptr()] = _Branch(module)
            found[module.one.conv.weight.untyped_storage().data_ptr()] = None
    return found


def _factor(part: ConvNorm) -> Tensor:
    """What the norm multiplies the outputs of its convolution by, [outputs, 1, 1, 1]."""
    norm = part.norm
    assert norm.running_var is not None
    return (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
