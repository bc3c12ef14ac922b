"""The averaged weights are the released ones' kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecrafter.train.ema import Average

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedule.json").read_text())["ema"]


class Toy(nn.Module):
    """A parameter, a float buffer and an integer buffer."""

    whole: torch.Tensor
    running: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("running", torch.zeros(1))
        self.register_buffer("whole", torch.zeros((), dtype=torch.int64))

    def fill(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.running.fill_(10 * value)
            self.whole.fill_(int(value))


@pytest.mark.parametrize("warmup", [1000, 2000])
def test_golden_decay(warmup: int) -> None:
    average = Average(Toy(), 0.9999, warmup)
    for update, expected in GOLDEN[f"decay_0_9999_warmups_{warmup}"].items():
        assert average.rate(int(update)) == pytest.approx(expected, rel=1e-12)


def test_golden_trace() -> None:
    network = Toy()
    average = Average(network, 0.9999, 1000)
    for update, (weight, running, whole) in enumerate(GOLDEN["trace"]["values"], 1):
        network.fill(update)
        average.update()
        assert average.network.weight.item() == pytest.approx(weight, rel=1e-6)
        assert average.network.running.item() == pytest.approx(running, rel=1e-6)
        assert average.network.whole.item() == whole


def test_state_holds_the_counter() -> None:
    network = Toy()
    one, two = Average(network, 0.99, 10), Average(network, 0.99, 10)
    for value in (1.0, 2.0):
        network.fill(value)
        one.update()
    two.load_state_dict(one.state_dict())
    network.fill(5.0)
    one.update()
    two.update()
    assert two.updates == 3
    assert torch.equal(one.network.weight, two.network.weight)


def test_decay_0_is_a_copy_and_the_average_is_never_trained() -> None:
    network = Toy()
    average = Average(network, 0.0, 10)
    network.fill(3.0)
    average.update()
    assert average.network.weight.item() == 3.0
    assert not average.network.weight.requires_grad and not average.network.training
