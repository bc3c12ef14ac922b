"""The loss of a set of queries as a table: which term applies to which view, with which weight and which pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from edgecrafter.geometry.numbers import on_device
from edgecrafter.losses import matching, terms
from edgecrafter.losses.matching import Cost
from edgecrafter.losses.truth import Truth, Uniform, View
from edgecrafter.types import LayerOutput, Match, Outputs, Target

ALL = frozenset({"final", "layer", "first", "encoder", "group", "group_final", "group_first"})
REFINED = frozenset({"final", "layer", "group", "group_final"})
STUDENTS = frozenset({"layer", "group"})


@dataclass(frozen=True)
class Term:
    """One row of a loss table."""

    name: str
    fn: Callable[[View, Truth, Match, Tensor], Tensor]
    weight: float
    views: frozenset[str] = ALL
    """kinds of views it applies to"""
    matched: Literal["own", "union"] = "own"


DETECT = (
    Term("mal", terms.mal, 1.0),
    Term("l1", terms.l1, 5.0, matched="union"),
    Term("giou", terms.giou, 2.0, matched="union"),
    Term("fgl", terms.fgl, 0.15, views=REFINED, matched="union"),
    Term("ddf", terms.ddf, 1.5, views=STUDENTS, matched="union"),
)
"""EdgeCrafter, Table 10."""

PLAIN = (Term("l1", terms.l1, 5.0), Term("giou", terms.giou, 2.0))
"""of decoders without edges: every layer is held against its own assignment"""

CRITERIA: dict[str, tuple[Term, ...]] = {
    "mal": DETECT,
    "vfl": (Term("vfl", terms.vfl, 1.0), *DETECT[1:]),
    "plain": (Term("vfl", terms.vfl, 1.0), *PLAIN),
    "focal": (Term("focal", terms.focal, 1.0), *PLAIN),
    "focal2": (Term("focal", terms.focal, 2.0), *PLAIN),
}
"""name in a size's row -> its loss table: EdgeCrafter, RT-DETRv4 and DEIM; D-FINE; RT-DETRv2; DAB-DETR and DINO;
Deformable DETR"""

DETECT_COSTS = (Cost(matching.classes, 2.0), Cost(matching.l1, 5.0), Cost(matching.giou, 2.0))
"""As released."""


def criterion(name: str, curvature: float) -> SetLoss:
    """The loss of boxes for the row of a size: the table of this name, for edges of this curvature."""
    fgl = partial(terms.fgl, curvature=curvature)
    return SetLoss([replace(row, fn=fgl) if row.fn is terms.fgl else row for row in CRITERIA[name]])


class SetLoss(nn.Module):
    """Outputs and targets of a batch -> named, weighted terms; their sum is the loss.

    ``reduce_count`` makes the mean over ranks of a vector of counts; it is set by the training step. Names are the
    term's and a suffix: none for the last layer, ``_0``, ``_1``, ... for earlier ones, ``_first``, ``_enc``,
    ``_dn_0``, ..., ``_dn_first``. The same names appear for every batch, with and without objects.
    """

    def __init__(self, table: Sequence[Term] = DETECT, costs: Sequence[Cost] = DETECT_COSTS) -> None:
        super().__init__()
        self.table = tuple(table)
        self.costs = tuple(costs)
        self.reduce_count: Callable[[Tensor], Tensor] = lambda counts: counts

    def forward(self, outputs: Outputs, targets: list[Target], uniform: Uniform | None = None) -> dict[str, Tensor]:
        """``uniform`` gives the random places that mask terms look at; None: torch's own random numbers."""
        device = outputs.layers[-1].logits.device
        truth = Truth(targets, uniform or (lambda shape: torch.rand(shape, device=device)))
        losses: dict[str, Tensor] = {}
        for view in self.views(outputs, truth):
            for term in self.table:
                if view.kind in term.views:
                    own = term.matched == "own"
                    pairs, count = (view.own, view.own_count) if own else (view.union, view.union_count)
                    losses[term.name + view.suffix] = term.weight * term.fn(view, truth, pairs, count)
        return losses

    def views(self, outputs: Outputs, truth: Truth) -> Iterator[View]:
        """Everything that is to be supervised, once."""
        device = outputs.layers[-1].logits.device
        own = list(_own_layers(outputs))
        matches = matching.hungarian([layer for _, _, layer in own], truth, self.costs)
        union = matching.union(matches)
        answers = [_answers(group, device) for group in outputs.groups]
        counts = self._counts([sum(truth.counts), len(union), *(len(match) for match in answers)], device)
        last = outputs.layers[-1]
        balance = terms.balance(len(union), last.logits.shape[1], len(truth.counts), last.logits)
        *matches, union = _moved([*matches, union], device)
        for (suffix, kind, layer), match in zip(own, matches, strict=True):
            yield View(suffix, kind, layer, match, union, counts[0], counts[1], last.base, last, balance)
        for group, match, count in zip(outputs.groups, answers, counts[2:], strict=True):
            for suffix, kind, layer in _group_layers(group):
                base, teacher = group.layers[0].base, group.layers[-1]
                yield View(suffix, kind, layer, match, match, count, count, base, teacher, balance)

    def _counts(self, counts: Sequence[int], device: torch.device) -> Tensor:
        return self.reduce_count(on_device(counts, device)).clamp(min=1)


def _own_layers(outputs: Outputs) -> Iterator[tuple[str, str, LayerOutput]]:
    yield "", "final", outputs.layers[-1]
    for i, layer in enumerate(outputs.layers[:-1]):
        yield f"_{i}", "layer", layer
    if outputs.first is not None:
        yield "_first", "first", outputs.first
    if outputs.encoder is not None:
        yield "_enc", "encoder", outputs.encoder


def _group_layers(group: Outputs) -> Iterator[tuple[str, str, LayerOutput]]:
    for i, layer in enumerate(group.layers):
        yield f"_dn_{i}", "group_final" if i == len(group.layers) - 1 else "group", layer
    if group.first is not None:
        yield "_dn_first", "group_first", group.first


def _answers(group: Outputs, device: torch.device) -> Match:
    assert group.group is not None and group.group.answers is not None, "a supervised group needs its known pairs"
    return group.group.answers.to(device)


def _moved(matches: Sequence[Match], device: torch.device) -> list[Match]:
    """All matches on the device, in one transfer."""
    sizes = [len(match) for match in matches]
    rows = torch.stack([torch.cat([getattr(m, name) for m in matches]) for name in ("image", "query", "object")])
    parts = torch.split(rows.to(device, non_blocking=True), sizes, dim=1)
    return [Match(part[0], part[1], part[2], match.counts) for part, match in zip(parts, matches, strict=True)]
