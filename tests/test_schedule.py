"""The learning rate follows the goldens, and every run gets a plan that makes sense."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import yaml

from edgecrafter import hub
from edgecrafter.data.transforms import Augment
from edgecrafter.geometry.sides import input_size
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.optim import adamw, factor, set_rates
from edgecrafter.train.recipes import RECIPES, Plan, recipe_for, resolve

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedule.json").read_text())
COCO = 118287


@pytest.mark.parametrize(
    "case, warmup, gamma",
    [("flat_cosine", 20, 0.5), ("flat_cosine_gamma_1", 20, 1.0), ("flat_cosine_long_warmup", 70, 0.5)],
)
def test_golden_factors(case: str, warmup: int, gamma: float) -> None:
    for i, expected in GOLDEN[case]["factors"].items():
        assert factor(int(i), total=200, warmup=warmup, flat=60, plain=20, gamma=gamma) == pytest.approx(expected)


@pytest.mark.parametrize(
    "size, epochs, mosaic_until, probability, backbone_lr, decay",
    [  # EdgeCrafter, Table 10
        ("s", 72 + 2, 36, 0.75, 2.5e-5, 1e-4),
        ("m", 60 + 2, 30, 0.75, 2.5e-5, 1e-4),
        ("l", 48 + 2, 24, 1.0, 5e-6, 1.25e-4),
        ("x", 48 + 2, 24, 1.0, 2.5e-6, 1.25e-4),
    ],
)
@pytest.mark.parametrize("world", [1, 4])
def test_published_plan(
    size: str, epochs: int, mosaic_until: int, probability: float, backbone_lr: float, decay: float, world: int
) -> None:
    plan = resolve(TrainConfig(data="coco"), recipe_for(f"ecdet-{size}"), COCO, world)
    steps = COCO // 32
    assert (plan.epochs, plan.steps, plan.effective_batch) == (epochs, steps, 32)
    assert (plan.mosaic_until, plan.plain_from) == (mosaic_until, epochs - 2)
    assert plan.augment == Augment.strong(probability, probability)
    assert (plan.lr, plan.backbone_lr, plan.weight_decay) == (5e-4, backbone_lr, decay)
    assert (plan.clip, plan.gamma, plan.warmup, plan.flat) == (0.1, 0.5, 2000, mosaic_until * steps)
    assert (plan.ema, plan.ema_warmup, plan.notes) == (0.9999, 1000, ())


@pytest.mark.parametrize(
    "size, epochs, mosaic_until, backbone_lr, decay",
    [  # EdgeCrafter, Table 11
        ("s", 90 + 2, 45, 2.5e-5, 1e-4),
        ("m", 90 + 2, 45, 2.5e-5, 1e-4),
        ("l", 72 + 2, 48, 2.5e-6, 1.25e-4),
        ("x", 72 + 2, 48, 2.5e-6, 1.25e-4),
    ],
)
def test_published_plan_of_pose(size: str, epochs: int, mosaic_until: int, backbone_lr: float, decay: float) -> None:
    pictures = 56_599
    plan = resolve(TrainConfig(data="coco"), recipe_for(f"ecpose-{size}"), pictures)
    assert (plan.epochs, plan.steps, plan.effective_batch) == (epochs, pictures // 64, 64)
    assert (plan.mosaic_until, plan.plain_from) == (mosaic_until, epochs - 2)
    assert plan.augment == Augment.strong(0.5, 0.5, 0.5)
    assert (plan.lr, plan.backbone_lr, plan.weight_decay) == (5e-4, backbone_lr, decay)
    assert (plan.warmup, plan.ema_warmup, plan.reload_best, plan.notes) == (500, 2000, False, ())
    rates = [factor(i + 1, plan.total, plan.warmup, plan.flat, plan.plain_steps, plan.gamma, 1) for i in range(600)]
    assert rates[:500] == [(i + 1) / 500 for i in range(500)] and set(rates[500:]) == {1.0}
    assert factor(plan.total, plan.total, 500, plan.flat, plan.plain_steps, plan.gamma, plan.warmup_power) == 1


@pytest.mark.parametrize("size, epochs, mosaic_until", [("s", 74, 36), ("m", 74, 36), ("l", 50, 24), ("x", 50, 24)])
def test_published_plan_of_segmentation(size: str, epochs: int, mosaic_until: int) -> None:
    """As for detection (A.2.3), but for the epochs of M and the backbone's rate of L."""
    plan = resolve(TrainConfig(data="coco"), recipe_for(f"ecinsseg-{size}"), COCO)
    assert (plan.epochs, plan.mosaic_until, plan.effective_batch) == (epochs, mosaic_until, 32)
    assert plan.backbone_lr == (2.5e-5 if size in "sm" else 2.5e-6)
    assert plan.augment.paste == 0 and plan.reload_best and plan.notes == ()


def test_plans_of_older_runs_are_read() -> None:
    """An older run can go on: what its plan does not say is what it did."""
    plan = resolve(TrainConfig(), recipe_for("ecdet-s"), 1000)
    values = plan.to_dict()
    for new in ("warmup_power", "reload_best"):
        del values[new]
    del values["augment"]["paste"]
    assert Plan.from_dict(values) == plan


@pytest.mark.parametrize("task", RECIPES)
def test_any_run_has_a_valid_plan(task: str) -> None:
    rng = random.Random(0)
    for size in RECIPES[task]:
        for _ in range(300):
            pictures, world = int(10 ** rng.uniform(0.7, 5)), rng.choice([1, 2, 4])
            config = TrainConfig(
                epochs=rng.choice([None, 1, 2, 3, 4, 5, 7, 10, 30, 100, 1000]),
                batch=rng.choice([None, 1, 2, 7, 32, 500]),
                accumulate=rng.choice([1, 2, 5]),
                warmup=rng.choice([None, 0, 10**6]),
            )
            check(resolve(config, recipe_for(f"{task}-{size}"), pictures, world), pictures, world)


def check(plan: Plan, pictures: int, world: int) -> None:
    """Phases in order, all pictures of a step exist, and a rate that rises, stays and falls."""
    assert 0 <= plan.mosaic_until <= plan.plain_from <= plan.epochs
    assert plan.plain_from >= 1
    assert plan.steps >= 1 and plan.batch >= 1 and plan.accumulate >= 1
    assert plan.steps * plan.effective_batch <= pictures
    assert plan.effective_batch == plan.batch * plan.accumulate * world
    assert plan.warmup <= plan.flat <= max(plan.total, 1)
    assert 0 <= plan.ema < 1 and plan.ema_warmup >= 1
    assert plan.backbone_lr > 0 and plan.lr > 0
    sample = sorted({*range(0, plan.total, max(1, plan.total // 200)), plan.total - 1})
    rates = [
        factor(i + 1, plan.total, plan.warmup, plan.flat, plan.plain_steps, plan.gamma, plan.warmup_power)
        for i in sample
    ]
    assert all(0 < rate <= 1 for rate in rates)
    rising = [rate for i, rate in zip(sample, rates, strict=True) if i + 1 <= plan.warmup]
    falling = rates[len(rising) :]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    "epochs, mosaic, plain", [(1, 0, 0), (2, 1, 0), (3, 1, 1), (6, 2, 2), (20, 9, 2), (148, 73, 2)]
)
def test_phases_follow_the_epochs(epochs: int, mosaic: int, plain: int) -> None:
    plan = resolve(TrainConfig(epochs=epochs), recipe_for("ecdet-s"), 1000)
    assert (plan.mosaic_until, plan.epochs - plan.plain_from) == (mosaic, plain)
    strengths = [plan.augment_of(epoch) for epoch in range(epochs)]
    assert strengths[:mosaic] == [Augment.strong(0.75, 0.75)] * mosaic
    assert strengths[mosaic : epochs - plain] == [Augment.strong(0, 0)] * (epochs - plain - mosaic)
    assert strengths[epochs - plain :] == [Augment(flip=0.5)] * plain


def test_rates_and_average_follow_the_batch() -> None:
    plan = resolve(TrainConfig(batch=8), recipe_for("ecdet-s"), COCO)
    assert plan.lr == pytest.approx(5e-4 / 2) and plan.backbone_lr == pytest.approx(2.5e-5 / 2)
    assert plan.ema == pytest.approx(0.9999**0.25) and plan.ema_warmup == 4000
    together = resolve(TrainConfig(batch=4, accumulate=4), recipe_for("ecdet-s"), COCO, world=2)
    assert (together.effective_batch, together.lr, together.ema) == (32, 5e-4, 0.9999)


def test_small_data() -> None:
    plan = resolve(TrainConfig(), recipe_for("ecdet-s"), 300)
    assert plan.epochs == 300 and "small data set" in plan.notes[0]
    assert 1 / (1 - plan.ema) == pytest.approx(plan.total / 10), "the average must catch up in a short run"
    asked = resolve(TrainConfig(epochs=5), recipe_for("ecdet-s"), 300)
    assert asked.epochs == 5 and "few" in asked.notes[0]
    tiny = resolve(TrainConfig(epochs=9, accumulate=4), recipe_for("ecdet-s"), 5)
    assert (tiny.batch, tiny.accumulate, tiny.steps) == (5, 1, 1) and len(tiny.notes) == 4


def test_random_backbone_learns_at_the_full_rate() -> None:
    recipe = recipe_for("ecdet-x")
    assert resolve(TrainConfig(), recipe, COCO, random_backbone=True).backbone_lr == 5e-4
    asked = resolve(TrainConfig(backbone_lr=1e-6), recipe, COCO, random_backbone=True)
    assert asked.backbone_lr == 1e-6


def test_rates_depend_on_the_step_alone() -> None:
    plan = resolve(TrainConfig(epochs=10), recipe_for("ecdet-s"), 640)
    optimizer = adamw(hub.create("ecdet-p")[0], plan)
    assert set_rates(optimizer, plan, 0) == pytest.approx(1 / plan.warmup**2), "the first step is the gentlest"
    seen = []
    for step in (150, 3, 150):  # any order, as after a resume
        set_rates(optimizer, plan, step)
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen[0] == seen[2] != seen[1]
    assert seen[0][0] / seen[0][3] == pytest.approx(plan.backbone_lr / plan.lr)


def test_plan_and_options_survive_yaml() -> None:
    config = TrainConfig(data="x", imgsz=96, freeze=["norm"])
    plan = resolve(config, recipe_for("ecdet-p"), 50)
    stored = yaml.safe_load(yaml.safe_dump({"plan": plan.to_dict(), "options": config.to_dict()}))
    assert Plan.from_dict(stored["plan"]) == plan
    assert TrainConfig.from_dict(stored["options"]) == config
    assert config.given() == {"data": "x", "imgsz": [96, 96], "freeze": ["norm"]}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "epochs=0: expected a number of at least 1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"mosaic": 1.5}, "mosaic=1.5: expected a number between 0 and 1"),
        ({"precision": "half"}, "choose one of auto, fp32, bf16, fp16"),
        ({"augment": "wild"}, "choose one of"),
        ({"imgsz": 100}, r"multiples of 32, for example \[96, 96\]"),
        ({"imgsz": [64, 64, 64]}, "imgsz"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)  # type: ignore[arg-type]


def test_every_option_has_help() -> None:
    source = (Path(__file__).parents[1] / "edgecrafter" / "train" / "config.py").read_text().splitlines()
    starts = [i for i, line in enumerate(source) if line.startswith("    ") and line[4:].split(":")[0] in fields_of()]
    assert len(starts) == len(fields_of()) <= 45  # options of a method are its own: keep this number small
    assert all(source[i + 1].startswith('    """') for i in starts)
    assert [input_size(64), input_size([32, 64])] == [(64, 64), (32, 64)]


def fields_of() -> list[str]:
    return list(TrainConfig.__dataclass_fields__)


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ValueError, match="ecdet-s"):
        recipe_for("ecdet-huge")
    known = list(itertools.chain(*([f"{family}-{size}" for size in rows] for family, rows in RECIPES.items())))
    assert sorted(known) == sorted(hub.names()) and all(recipe_for(name).epochs for name in known)
