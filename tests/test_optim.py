"""Parameter groups are the released ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecrafter import hub
from edgecrafter.models import official
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.optim import adamw, groups
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
