"""Products are counted as by hand, and the published numbers are met as stated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter import hub
from edgecrafter.metrics import speed
from edgecrafter.models.fuse import fuse
from edgecrafter.summary import PAPER


class Small(nn.Module):
    """A convolution, attention over its cells, and a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 8)
        self.again = self.linear

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(self.linear(x), x, self.again(x))


def test_counted_by_hand() -> None:
    network = Small()
    assert speed.parameters(network) == 3 * 8 * 9 + 8 + 8 * 8 + 8
    cells = 16 * 32
    outside = 2 * 3 * 8 * 9 * cells + 2 * (2 * 8 * 8 * cells)
    attention = 2 * (2 * cells * cells * 8)
    assert speed.flops(network, (32, 64)) == speed.Flops(outside + attention, outside)
    assert network.conv.weight.device.type == "cpu" and network.training


@pytest.mark.parametrize(
    "name, all_products, authors",
    [("s", 49.96, 26.04), ("m", 84.94, 53.05), ("l", 147.22, 99.63), ("x", 204.49, 156.93)],
)
def test_released_models_in_deploy_form(name: str, all_products: float, authors: float) -> None:
    with torch.device("meta"):
        network, _ = hub.create(f"ecdet-{name}")
    counted = speed.flops(fuse(network))
    assert counted.all_products / 1e9 == pytest.approx(all_products, abs=0.005)
    assert authors * 0.995 < counted.paper / 1e9 < authors


@pytest.mark.parametrize(
    "name, all_products, authors, trained, deployed",
    [
        ("s", 25.50, 25.17, 10_519_253, 10_434_867),
        ("m", 57.03, 56.68, 19_787_440, 19_445_565),
        ("l", 91.60, 91.14, 31_487_224, 30_967_267),
        ("x", 203.08, 202.67, 63_011_160, 61_991_235),
    ],
)
def test_rtdetrv4_of_table_1(name: str, all_products: float, authors: float, trained: int, deployed: int) -> None:
    """The authors' counts (released_behaviour 21) hold the projector of the distillation, which is not in our network,
    and norms behind the projections of the encoder's and x's decoder's inputs, which they do not fuse."""
    with torch.device("meta"):
        network, info = hub.create(f"rtdetrv4-{name}")
    fused, width = fuse(network), info.size.width
    projector, norms = width * 768 + 768, 3 * width + (3 * info.size.dec_width if name == "x" else 0)
    assert speed.parameters(network) == trained - projector
    assert speed.parameters(fused) == deployed - projector - norms
    counted = speed.flops(fused)
    assert counted.all_products / 1e9 == pytest.approx(all_products, abs=0.005)
    assert authors * 0.995 < counted.paper / 1e9 < authors
    published = PAPER[f"rtdetrv4-{name}"]
    assert published.parameters <= speed.parameters(network) / 1e6 < published.parameters + 1
    assert abs(counted.all_products / 1e9 - published.gflops) < 0.02 * published.gflops
