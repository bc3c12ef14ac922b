"""LARS against Algorithm 1 of You et al. (2017) in plain numpy, and the schedule of a distillation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgecrafter.models.detector import ecvit
from edgecrafter.models.sizes import SIZES
from edgecrafter.train import optim
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.distill_plan import resolve
from edgecrafter.train.lars import LARS

Array = NDArray[np.float64]
RATES = (0.5, 1.0, 2.0, 0.1, 0.0, 0.3)


def by_hand(
    start: list[Array], gradients: list[list[Array]], decay: float, momentum: float, trust: float, adapt: bool
) -> list[Array]:
    """Algorithm 1, one tensor after the other; without ``adapt`` it is plain momentum."""
    weights = [w.copy() for w in start]
    velocities = [np.zeros_like(w) for w in start]
    for lr, step in zip(RATES, gradients, strict=True):
        for i, g in enumerate(step):
            w, length, slope = weights[i], math.sqrt((weights[i] ** 2).sum()), math.sqrt((g**2).sum())
            local = trust * length / (slope + decay * length) if adapt and length > 0 and slope > 0 else 1.0
            velocities[i] = momentum * velocities[i] + lr * local * (g + decay * w)
            weights[i] = w - velocities[i]
    return weights


@pytest.mark.parametrize("decay, momentum, trust", [(1e-6, 0.9, 0.001), (0.1, 0.5, 0.02), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("adapt", [True, False])
def test_several_steps_equal_the_algorithm(decay: float, momentum: float, trust: float, adapt: bool) -> None:
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (5,), (2, 3, 3, 3), (6,)]
    start = [rng.standard_normal(shape) * 10.0**i for i, shape in enumerate(shapes)]
    start[3][:] = 0  # its length is 0
    gradients = [[rng.standard_normal(shape) * 10.0**-i for i, shape in enumerate(shapes)] for _ in RATES]
    gradients[1][0][:] = 0  # a gradient of 0: only the decay is left
    tensors = [nn.Parameter(torch.from_numpy(w.copy())) for w in start]
    optimizer = LARS(tensors, 1.0, momentum, decay, trust, adapt)
    for lr, step in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = torch.from_numpy(gradient)
        optimizer.step()
    for tensor, wanted in zip(tensors, by_hand(start, gradients, decay, momentum, trust, adapt), strict=True):
        np.testing.assert_allclose(tensor.detach().numpy(), wanted, rtol=1e-12, atol=1e-15)


def test_the_first_step_is_a_share_of_the_length_whatever_the_gradient() -> None:
    for scale in (1e-9, 1.0, 1e9):
        weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        weight.grad = torch.tensor([0.0, scale], dtype=torch.float64)
        LARS([weight], lr=2.0, weight_decay=0.0).step()
        assert weight.tolist() == pytest.approx([3.0, 4.0 - 2.0 * 0.001 * 5.0])


def test_a_parameter_without_a_gradient_stays() -> None:
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = LARS([one, other])
    one.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(other.detach(), torch.ones(3)) and not torch.equal(one.detach(), torch.ones(3))
    one.grad = None
    optimizer.step()  # nobody has one
    assert len(optimizer.state) == 1


def test_state_goes_on() -> None:
    weight = nn.Parameter(torch.arange(1.0, 5.0))
    optimizer = LARS([weight], lr=10.0)
    for _ in range(2):
        weight.grad = weight.detach() * 0.1 + 1
        optimizer.step()
    twin = nn.Parameter(weight.detach().clone())
    again = LARS([twin], lr=10.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, work in ((weight, optimizer), (twin, again)):
        each.grad = torch.ones(4)
        work.step()
    assert torch.equal(weight, twin)


def test_groups_of_a_distillation() -> None:
    """Biases and norms, of 1-d and of any shape, have no decay and no rate of their own; nothing is left out."""
    network = nn.ModuleDict({"student": ecvit(SIZES["p"]), "adapters": nn.ModuleList([nn.Linear(96, 8)])})
    plan = resolve(DistillConfig(), "p", 10000)
    optimizer = optim.alignment(network, plan, "lars")
    weights, others = optimizer.param_groups
    names = {id(p): name for name, p in network.named_parameters()}
    assert {*map(id, weights["params"] + others["params"])} == set(names)
    assert len(weights["params"]) + len(others["params"]) == len(names)
    assert (weights["weight_decay"], weights["adapt"]) == (1e-6, True)
    assert (others["weight_decay"], others["adapt"]) == (0.0, False)
    decayed = {names[id(p)] for p in weights["params"]}
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert {"student.registers", "adapters.0.weight"} <= decayed
    assert {"student.blocks.0.norm1.weight", "adapters.0.bias"} <= {names[id(p)] for p in others["params"]}
    assert isinstance(optimizer, LARS) and weights["momentum"] == 0.9 and weights["trust"] == 0.001
    plain = optim.alignment(network, plan, "adamw")
    assert isinstance(plain, torch.optim.AdamW) and [g["weight_decay"] for g in plain.param_groups] == [1e-6, 0.0]


IMAGENET_AND_COCO = 1_281_167 + 118_287 - 256


@pytest.mark.parametrize("vit, base", [("t", 4.0), ("t+", 4.0), ("s", 9.0), ("s+", 9.0)])
@pytest.mark.parametrize("world", [1, 2])
def test_the_plan_of_the_paper(vit: str, base: float, world: int) -> None:
    plan = resolve(DistillConfig(student=f"ecvit-{vit}"), vit, IMAGENET_AND_COCO, world)
    assert (plan.epochs, plan.effective_batch, plan.batch, plan.steps) == (50, 128, 128 // world, 10931)
    assert plan.lr == pytest.approx(base * math.sqrt(128 / 1536)) and plan.notes == ()
    assert (plan.warmup, plan.weight_decay, plan.clip, plan.gamma) == (5 * plan.steps, 1e-6, 1.0, 1e-3)


def test_rates_step_by_step() -> None:
    """Linear over 5 epochs up to the peak, then half a cosine down to a thousandth of it at the last step."""
    plan = resolve(DistillConfig(batch=100, epochs=50), "t", 1000)
    weight = nn.Parameter(torch.ones(1))
    optimizer = LARS([{"params": [weight], "lr": plan.lr, "initial_lr": plan.lr}])
    found = []
    for step in range(plan.total):
        optim.set_rates(optimizer, plan, step)
        found.append(optimizer.param_groups[0]["lr"] / plan.lr)
    assert plan.total == 500 and plan.warmup == 50
    assert found[:50] == pytest.approx([(i + 1) / 50 for i in range(50)])
    wanted = [1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * (i - 49) / 450)) / 2 for i in range(50, 500)]
    assert found[50:] == pytest.approx(wanted)
    assert found[-1] == pytest.approx(1e-3) and found[274] == pytest.approx((1 + 1e-3) / 2)


@pytest.mark.parametrize(
    "options, pictures, world, wanted",
    [
        ({}, 7680, 1, (128, 60, 50)),  # just enough for the plan of the paper
        ({}, 6400, 1, (128, 50, 60)),  # ... and for its batch
        ({}, 1000, 1, (20, 50, 60)),  # 50 batches an epoch, more epochs
        ({}, 10, 1, (10, 1, 300)),  # one batch of all
        ({"epochs": 3}, 1000, 2, (10, 50, 3)),
        ({"batch": 8, "accumulate": 4, "epochs": 1}, 100, 1, (8, 3, 1)),
        ({"batch": 64, "accumulate": 4, "epochs": 1}, 100, 1, (64, 1, 1)),  # no more parts than there are
    ],
)
def test_plans_for_few_pictures(
    options: dict[str, int], pictures: int, world: int, wanted: tuple[int, int, int]
) -> None:
    plan = resolve(DistillConfig(**options), "t", pictures, world)  # type: ignore[arg-type]
    assert (plan.batch, plan.steps, plan.epochs) == wanted
    assert plan.lr == pytest.approx(4 * math.sqrt(plan.effective_batch / 1536))
    assert 0 < plan.warmup <= max(1, plan.total // 10)


def test_other_bases() -> None:
    assert resolve(DistillConfig(lr=6.0, batch=96), "t", 9600).lr == pytest.approx(6.0 / 4)
    adamw = resolve(DistillConfig(optimizer="adamw"), "s", 10**6)
    assert adamw.lr == pytest.approx(0.0035 * math.sqrt(128 / 1536)) and adamw.weight_decay == 1e-4
    assert resolve(DistillConfig(warmup=0), "t", 10**6).warmup == 0
    with pytest.raises(ValueError, match="3 pictures for 4 processes"):
        resolve(DistillConfig(), "t", 3, 4)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"epochs": 0}, "epochs=0: expected a number of at least 1"),
        ({"lr": -1.0}, "lr=-1.0: expected a number of at least 0"),
        ({"lr": math.nan}, "lr=nan: expected a number"),
        ({"imgsz": 225}, "imgsz=225: expected a multiple of 16"),
        ({"imgsz": 16}, "imgsz=16: expected a multiple of 16, 32 or more"),
        ({"mixup": 1.5}, "mixup=1.5: expected a number between 0 and 1"),
        ({"optimizer": "sgd"}, "optimizer.*sgd"),
        ({"precision": "fp8"}, "precision.*fp8"),
        ({"teacher_blocks": 0}, "teacher_blocks=0: expected"),
        ({"student_blocks": 0}, "student_blocks=0: expected"),
    ],
)
def test_options_out_of_range(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**option)  # type: ignore[arg-type]


def test_options_there_and_back() -> None:
    config = DistillConfig(student="ecvit-s", images=["a"], lr=2.0)
    assert DistillConfig.from_dict(config.to_dict()) == config
    assert config.given() == {"student": "ecvit-s", "images": ["a"], "lr": 2.0}
    with pytest.raises(ValueError, match="learning_rate"):
        DistillConfig.from_dict({"learning_rate": 1})
