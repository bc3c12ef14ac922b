"""Parameter groups are the released ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecrafter import hub
from edgecrafter.models import official
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.optim import NORMS, adamw, groups
from edgecrafter.train.recipes import Plan, recipe_for, resolve
from edgecrafter.train.steps import freeze_parts
from edgecrafter.types import Labels

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedule.json").read_text())["optimizer_ecdet_s"]


def plan_of(size: str) -> Plan:
    return resolve(TrainConfig(), recipe_for(f"ecdet-{size}"), 118287)


def test_golden_groups() -> None:
    with torch.device("meta"):
        network, _ = hub.create("ecdet-s")
    ours = {official.official_name(name): i for i, names in enumerate(groups(network)) for name in names}
    assert ours == GOLDEN["group_of"]
    fixed = [official.official_name(name) for name, p in network.named_parameters() if not p.requires_grad]
    assert sorted(fixed) == sorted(GOLDEN["not_optimized"])
    optimizer = adamw(network, plan_of("s"))
    for group, golden in zip(optimizer.param_groups, GOLDEN["groups"], strict=True):
        assert group["lr"] == golden["lr"] and group["weight_decay"] == golden["weight_decay"]
        assert len(group["params"]) == golden["tensors"]
        assert sum(p.numel() for p in group["params"]) == golden["parameters"]
        assert list(group["betas"]) == GOLDEN["betas"] and group["eps"] == GOLDEN["eps"]


def test_attention_input_bias_has_no_decay() -> None:
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "norm": nn.LayerNorm(8)})
    _, _, plain, decayed = groups(network)
    assert set(plain) == {"attention.in_proj_bias", "attention.out_proj.bias", "norm.weight", "norm.bias"}
    assert set(decayed) == {"attention.in_proj_weight", "attention.out_proj.weight"}


def test_freeze() -> None:
    network, _ = hub.create("ecdet-p", Labels(("thing",)))
    still = freeze_parts(network, ("backbone.vit", "norm"))
    vit, plain_vit, *_ = groups(network)
    assert not vit and not plain_vit
    assert "backbone.vit.blocks.0" in still
    norms = [name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(norms) <= set(still)
    assert len(adamw(network, plan_of("p")).param_groups) == 4, "empty groups stay, so that states fit"
    with pytest.raises(ValueError, match="freeze='backbon' is the beginning of no parameter's name"):
        freeze_parts(network, ("backbon",))
    freeze_parts(network, ("backbone", "encoder", "decoder"))
    with pytest.raises(ValueError, match="nothing is left to train"):
        adamw(network, plan_of("p"))


def made(name: str) -> tuple[nn.Module, Plan]:
    """A network without weights, and its plan; the backbone counts as pretrained."""
    pytest.importorskip("timm")
    return hub.create(name)[0], resolve(TrainConfig(), recipe_for(name), 118287)


@pytest.mark.parametrize("name", ["rtdetrv4-s", "rtdetrv4-l", "deim-m", "dfine-s"])
def test_groups_of_rtdetrv4(name: str) -> None:
    """S and M train the backbone's norms at the base rate, L and X at the backbone's; none of them decays (ours)."""
    network, plan = made(name)
    assert plan.norms_at_base == (name in ("rtdetrv4-s", "deim-m")) and not plan.decay_norms
    optimizer = adamw(network, plan)
    base, slow = plan.lr, plan.backbone_lr
    assert base > slow
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    norms = {f"{n}.{k}" for n, m in network.named_modules() if isinstance(m, NORMS) for k, _ in m.named_parameters()}
    inside = 0
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        group, vit = of[id(parameter)], key.startswith("backbone.vit.")
        inside += vit and key in norms
        slowly = vit and not (key in norms and plan.norms_at_base)
        plain = key in norms or key.endswith("bias")
        assert (group["lr"], group["weight_decay"]) == (slow if slowly else base, 0 if plain else plan.weight_decay), (
            key
        )
    assert inside > 20


def test_the_slip_of_the_release_is_an_option() -> None:
    """``decay_norms``: the backbone's norms at its rate and with decay, all else as before."""
    network, plan = made("rtdetrv4-l")
    ours, theirs = groups(network), groups(network, decay_norms=True)
    moved = set(theirs[0]) - set(ours[0])
    assert moved and moved == set(ours[1]) - set(theirs[1])
    assert all(isinstance(network.get_submodule(key.rpartition(".")[0]), nn.BatchNorm2d) for key in moved)
    assert ours[2:] == theirs[2:]
    optimizer = adamw(network, replace(plan, decay_norms=True))
    assert len(optimizer.param_groups[0]["params"]) == len(theirs[0])


def test_what_is_trained_beside_the_network_is_in_the_last_groups() -> None:
    network, _ = hub.create("ecdet-p", Labels(("thing",)))
    beside = nn.ModuleList([nn.ModuleDict({"linear": nn.Linear(3, 4), "norm": nn.BatchNorm2d(4)})])
    plan = plan_of("s")
    before, after = adamw(network, plan), adamw(network, plan, beside)
    counts = [[len(group["params"]) for group in each.param_groups] for each in (before, after)]
    assert [b - a for a, b in zip(*counts, strict=True)] == [0, 0, 3, 1]
    of = {id(p): group for group in after.param_groups for p in group["params"]}
    for key, parameter in beside.named_parameters():
        decay = plan.weight_decay if key == "0.linear.weight" else 0
        assert (of[id(parameter)]["lr"], of[id(parameter)]["weight_decay"]) == (plan.lr, decay)


def test_slow_parts_learn_at_a_tenth_of_the_rate() -> None:
    """Offsets of the sampling and the layer of the reference points of Deformable DETR, as MMDetection has it."""
    network, plan = made("deformable-detr-r18")
    optimizer = adamw(network, plan)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    slow = set()
    for key, parameter in network.named_parameters():
        if parameter.requires_grad and not key.startswith("backbone"):
            rate = of[id(parameter)]["lr"] / plan.lr
            assert rate == pytest.approx(0.1) or rate == 1
            slow |= {key} if rate < 1 else set()
    assert slow == {key for key, _ in network.named_parameters() if ".offsets." in key or "decoder.point." in key}
    assert len(slow) == 2 * 12 + 2, "six layers each in encoder and decoder"
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == sum(p.requires_grad for p in network.parameters()), "nothing twice, nothing left out"
    assert len(adamw(*made("dino-r18")).param_groups) == 4
