"""Training for 8 bits: what is rounded, that it helps, and that runs go on as they were."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import small_training as small
import torch
from torch import Tensor, nn

from edgecrafter import hub
from edgecrafter.models.fuse import fuse
from edgecrafter.nn.conv import RepBlock
from edgecrafter.train import qat
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.loop import fit
from edgecrafter.train.qat import Quantiser, rounded_weight
from edgecrafter.train.recipes import recipe_for
from edgecrafter.train.state import LAST, WEIGHTS, read
from edgecrafter.train.steps import SupervisedStep

BATCHES = [small.batch([2, 1], seed=1), small.batch([0, 3], seed=2)]


class Tiny(nn.Module):
    """A block of two branches and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = RepBlock(4), nn.Linear(4, 4)
        for norm in (self.block.three.norm, self.block.one.norm):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.2, 3)  # type: ignore[union-attr]
            nn.init.normal_(norm.weight, 0, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def test_weights_are_rounded_per_channel_and_learn() -> None:
    weight = torch.tensor([[1.0, 0.301], [0.01, -0.005]], requires_grad=True)
    found = rounded_weight(weight)
    steps = (found / torch.tensor([[1 / 127], [0.01 / 127]])).detach()
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    (grad,) = torch.autograd.grad(found.sum(), weight)
    assert (grad == 1).all()


def test_both_branches_are_rounded_as_the_convolution_that_they_become(tiny: Tiny) -> None:
    x = torch.randn(2, 4, 6, 6)
    wanted = tiny.block.fused()
    with torch.no_grad():
        wanted[0].weight.copy_(rounded_weight(wanted[0].weight))  # type: ignore[index]
        with Quantiser(tiny, "ec").eval().on(tiny):  # nothing seen yet: inputs are left as they are
            found = tiny.block(x)
        torch.testing.assert_close(found, wanted(x), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, tiny.block(x), atol=1e-4)


def test_inputs_are_rounded_in_the_range_that_was_seen(tiny: Tiny) -> None:
    quantiser = Quantiser(tiny, "ec")
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad(), quantiser.on(tiny):
        tiny(x)
        low = quantiser.low.clone()
        quantiser.eval()
        tiny(10 * x)
    assert torch.equal(quantiser.low, low) and low[0] == x.min()  # type: ignore[arg-type]
    index = quantiser.names.index("block.three.conv.weight")
    found = quantiser.rounded_input(index, 100 * x)
    assert found.max() == pytest.approx(float(x.max()), abs=0.05) and len(found.unique()) <= 256


def test_layers_of_the_preset_and_the_network_stay_as_they_are() -> None:
    network, info = hub.create("ecdet-p", small.LABELS, queries=20)
    quantiser = Quantiser(network, info.size.arch)
    assert "backbone.vit.blocks.0.attn.qkv.weight" in quantiser.names
    assert "encoder.aifi.attention.in_proj_weight" in quantiser.names
    assert not [name for name in quantiser.names if name.startswith(("decoder.boxes", "decoder.scores"))]
    before, images = copy.deepcopy(network.state_dict()), torch.rand(1, 3, 64, 64)
    network.eval()
    with torch.no_grad():
        plain = network(images).memory[0]
        with quantiser.on(network):
            network(images)
            rounded = network(images).memory[0]
        after = network(images).memory[0]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(after, plain) and (rounded - plain).norm() > 1e-3 * plain.norm()


def error(network: nn.Module, quantiser: Quantiser, images: Tensor, wanted: list[Tensor]) -> Tensor:
    """Relative squared difference of the rounded memory from what it should be."""
    with quantiser.on(network):
        found = network(images).memory
    return torch.stack([(a - b).square().mean() / b.var() for a, b in zip(found, wanted, strict=True)]).mean()


def test_fine_tuning_takes_back_what_rounding_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "MOST", 7)  # four bits: of eight, random weights hardly notice
    torch.manual_seed(0)
    network, info = hub.create("ecdet-p", small.LABELS, queries=20)
    network.eval()  # as in a run: norms keep their statistics
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = [level.clone() for level in network(images).memory]
    quantiser = Quantiser(network, info.size.arch)
    before = float(error(network, quantiser, images, wanted).detach())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    for _ in range(6):
        optimizer.zero_grad()
        error(network, quantiser, images, wanted).backward()
        optimizer.step()
    after = float(error(network, quantiser.eval(), images, wanted).detach())
    assert after < 0.5 * before
    with torch.no_grad():  # and merged norms change nothing of it
        plain, merged = network(images).memory[0], fuse(network)(images).memory[0]
    torch.testing.assert_close(plain, merged, atol=1e-3, rtol=1e-3)


def training(folder: Path, epochs: int) -> tuple[SupervisedStep, Any, Any]:
    made = small.plan(epochs, len(BATCHES), reload_best=False)
    step, state, journal = small.training(folder, made)
    quantiser = Quantiser(step.network, "ec")
    step = SupervisedStep(step.network, step.task, step.labels, step.spec, budget=10, quantiser=quantiser)
    state.beside = nn.ModuleList([quantiser])
    return step, state, journal


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    step, state, journal = training(tmp_path / "whole", 2)
    statistics = step.network.encoder.laterals[0].norm.running_mean.clone()
    fit(step, small.Batches(BATCHES), lambda network: {"AP": 0.5}, state, journal)
    assert torch.equal(step.network.encoder.laterals[0].norm.running_mean, statistics)
    assert (state.beside[0].high > 0).sum() > 30

    step, state, journal = training(tmp_path / "parts", 2)

    def stop(network: nn.Module, best: bool) -> None:
        if state.progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(step, small.Batches(BATCHES), lambda network: {"AP": 0.5}, state, journal, keep=stop)
    step, state, journal = training(tmp_path / "parts", 2)
    state.load(read(tmp_path / "parts" / WEIGHTS / LAST))
    assert state.progress.epoch == 1
    fit(step, small.Batches(BATCHES), lambda network: {"AP": 0.5}, state, journal)
    one, other = (read(tmp_path / name / WEIGHTS / LAST) for name in ("whole", "parts"))
    for part in ("network", "beside"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    for name, value in one["average"]["network"].items():
        assert torch.equal(value, other["average"]["network"][name])


def test_a_run_is_a_short_fine_tuning_unless_told_otherwise() -> None:
    recipe = recipe_for("ecdet-s")
    config, slower = qat.settings(TrainConfig(qat=True), recipe, random=False)
    assert config.epochs == 5 and config.augment == "light"
    assert slower.lr == pytest.approx(recipe.lr / 10) and not slower.reload_best
    config, _ = qat.settings(TrainConfig(qat=True, epochs=2, augment="strong"), recipe, random=False)
    assert config.epochs == 2 and config.augment == "strong"
    with pytest.raises(ValueError, match="qat fine-tunes trained weights"):
        qat.settings(TrainConfig(qat=True), recipe, random=True)
    with pytest.raises(ValueError, match="qat and compile"):
        TrainConfig(qat=True, compile=True)
