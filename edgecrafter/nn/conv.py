"""Convolution blocks of the hybrid encoder, and their fused forms.

Every block that has a cheaper form at inference offers ``fused() -> nn.Module``, a new module with the same output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and an activation if asked for; padding keeps the size at stride 1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]

    def fused(self) -> nn.Module:
        """One convolution with bias."""
        weight, bias = folded(self)
        conv = nn.Conv2d(
            self.conv.in_channels,
            self.conv.out_channels,
            self.conv.kernel_size,  # type: ignore[arg-type]
            self.conv.stride,  # type: ignore[arg-type]
            self.conv.padding,  # type: ignore[arg-type]
            groups=self.conv.groups,
        )
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return conv if isinstance(self.act, nn.Identity) else nn.Sequential(conv, _in_place(self.act))


class RepBlock(nn.Module):
    """SiLU of the sum of a 3x3 and a 1x1 branch, one 3x3 convolution when fused (RepVGG without identity)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.three = ConvNorm(width, width, 3)
        self.one = ConvNorm(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.three(x) + self.one(x))

    def fused(self) -> nn.Module:
        """One 3x3 convolution with bias, and the activation."""
        (three, bias3), (one, bias1) = folded(self.three), folded(self.one)
        conv = nn.Conv2d(three.shape[1], three.shape[0], 3, padding=1)
        conv.weight = nn.Parameter(three + F.pad(one, (1, 1, 1, 1)))
        conv.bias = nn.Parameter(bias3 + bias1)
        return nn.Sequential(conv, nn.SiLU(inplace=True))


class CSP2(nn.Module):
    """Half of a 1x1 convolution's output goes through ``depth`` two-branch blocks and is added to the other half."""

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = ConvNorm(inputs, 2 * width, act=nn.SiLU())
        self.blocks = nn.Sequential(*(RepBlock(width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = self.enter(x).chunk(2, dim=1)
        return kept + self.blocks(worked)  # type: ignore[no-any-return]


class CSPStage(nn.Module):
    """Two 1x1 convolutions; one's output goes through ``depth`` two-branch blocks and is added to the other's, and
    ``smooth`` follows: a 3x3 convolution unless given (the stage of RT-DETRv4, DEIM and D-FINE)."""

    def __init__(self, inputs: int, width: int, depth: int, smooth: nn.Module | None = None) -> None:
        super().__init__()
        self.enter = ConvNorm(inputs, width, act=nn.SiLU())
        self.skip = ConvNorm(inputs, width, act=nn.SiLU())
        self.blocks = nn.Sequential(*(RepBlock(width) for _ in range(depth)))
        self.smooth = smooth or ConvNorm(width, width, 3, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(self.blocks(self.enter(x)) + self.skip(x))  # type: ignore[no-any-return]


class ELAN(nn.Module):
    """Two stages in a row; the halves of the input's 1x1 convolution and both stages are merged by another."""

    def __init__(
        self, inputs: int, width: int, hidden: int, depth: int, stage: Callable[[int, int, int], nn.Module] = CSP2
    ) -> None:
        super().__init__()
        self.split = ConvNorm(inputs, 2 * width, act=nn.SiLU())
        self.stage1 = stage(width, hidden, depth)
        self.stage2 = stage(hidden, hidden, depth)
        self.merge = ConvNorm(2 * width + 2 * hidden, width, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        both = self.split(x)
        first = self.stage1(both[:, both.shape[1] // 2 :])
        return self.merge(torch.cat([both, first, self.stage2(first)], dim=1))  # type: ignore[no-any-return]


def folded(block: ConvNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals convolution and batch norm in evaluation mode."""
    norm = block.norm
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    weight = block.conv.weight.detach() * scale[:, None, None, None]
    return weight, norm.bias.detach() - norm.running_mean * scale


def _in_place(act: nn.Module) -> nn.Module:
    return nn.SiLU(inplace=True) if isinstance(act, nn.SiLU) else act
