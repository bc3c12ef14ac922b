"""AdamW with its parameter groups, and the flat-cosine learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from edgecrafter.models.official import VIT
from edgecrafter.train.lars import LARS
from edgecrafter.train.recipes import Plan

BESIDE = "beside"
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def groups(network: nn.Module, norms_at_base: bool = False, decay_norms: bool = False) -> list[list[str]]:
    """Names of the trained parameters in four groups (EdgeCrafter as released).

    0: backbone (ViT); 1: norms and biases of it; 2: all other norms and biases; 3: the rest. Groups 1 and 2 have no
    weight decay. Parameters that need no gradient are in no group. The pyramid's projections belong to the rest.
    The backbone's norms are in group 2 with ``norms_at_base``, or in group 0 with ``decay_norms`` (``Recipe``).
    """
    norms, plain = _norms(network), _without_decay(network)
    inner = 2 if norms_at_base else 0 if decay_norms else 1
    found: list[list[str]] = [[], [], [], []]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            if name.startswith(VIT):
                found[inner if name in norms else 1 if name in plain else 0].append(name)
            else:
                found[2 if name in plain else 3].append(name)
    return found


def _without_decay(network: nn.Module) -> set[str]:
    """Parameters of norm layers, and biases: ``in_proj_bias`` of an attention is one."""
    return _norms(network) | {name for name, _ in network.named_parameters() if name.endswith("bias")}


def _norms(network: nn.Module) -> set[str]:
    """Parameters of norm layers."""
    return {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }


def adamw(network: nn.Module, plan: Plan, beside: nn.Module | None = None) -> torch.optim.AdamW:
    """AdamW over the four groups of ``groups``, also when some are empty. Raises ``ValueError`` if all are.

    What is trained ``beside`` the network (projectors) joins the last two. Where the recipe has ``slow`` parts, they
    leave the last two for two more groups, at a tenth of the rate.
    """
    parameters = dict(network.named_parameters())
    chosen = groups(network, plan.norms_at_base, plan.decay_norms)
    if beside is not None and any(chosen):
        plain = _without_decay(beside)
        for name, parameter in beside.named_parameters(prefix=BESIDE):
            if parameter.requires_grad:
                chosen[2 if name.removeprefix(BESIDE + ".") in plain else 3].append(name)
                parameters[name] = parameter
    if not any(chosen):
        raise ValueError("every parameter is frozen: nothing is left to train. Shorten the list `freeze`")
    decays = [plan.weight_decay, 0.0, 0.0, plan.weight_decay]
    rates = [plan.backbone_lr, plan.backbone_lr, plan.lr, plan.lr]
    for names, decay in zip(chosen[2:], decays[2:], strict=True) if plan.slow else ():
        chosen.append([name for name in names if any(part in name for part in plan.slow)])
        names[:] = [name for name in names if name not in chosen[-1]]
        decays.append(decay)
        rates.append(0.1 * plan.lr)
    return torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in names], "lr": lr, "initial_lr": lr, "weight_decay": decay}
            for names, lr, decay in zip(chosen, rates, decays, strict=True)
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=_fused(parameters.values()),
    )


def alignment(network: nn.Module, plan: Plan, name: str) -> torch.optim.Optimizer:
    """LARS or AdamW of a distillation, over two groups: weights; norms and biases, which have no decay and, in LARS,
    no rate of their own."""
    plain = _without_decay(network)
    named = [(key, p) for key, p in network.named_parameters() if p.requires_grad]
    decayed, others = ([p for key, p in named if (key in plain) == flag] for flag in (False, True))
    groups: list[dict[str, Any]] = [
        {"params": decayed, "lr": plan.lr, "initial_lr": plan.lr, "weight_decay": plan.weight_decay},
        {"params": others, "lr": plan.lr, "initial_lr": plan.lr, "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=_fused(p for _, p in named))
    groups[1]["adapt"] = False
    return LARS(groups)


def _fused(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") for p in parameters)


def factor(i: int, total: int, warmup: int, flat: int, plain: int, gamma: float, power: int = 2) -> float:
    """Factor on the learning rate at iteration ``i`` of ``total``.

    A rise with ``power`` over ``warmup`` iterations (quadratic; linear for pose), 1 until ``flat``, a cosine down to
    ``gamma`` which is reached ``plain`` iterations before the end (RT-DETRv4 and EdgeCrafter as released).
    """
    if i <= warmup:
        return float((i / warmup) ** power) if warmup else 1.0
    if i <= flat:
        return 1.0
    if i >= total - plain:
        return gamma
    return gamma + (1 - gamma) * (1 + math.cos(math.pi * (i - flat) / (total - flat - plain))) / 2


def set_rates(optimizer: torch.optim.Optimizer, plan: Plan, step: int) -> float:
    """Set the learning rates for 0-based ``step``, from the plan and the step alone: resuming needs no other state.

    Returns the factor. That of step 0 is ``1 / warmup`` to the power of the plan; the released training applies the
    factors one step late, which gives its first step the full rate and its second one none.
    """
    value = factor(step + 1, plan.total, plan.warmup, plan.flat, plan.plain_steps, plan.gamma, plan.warmup_power)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * value
    return value
