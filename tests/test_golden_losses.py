"""The criterion against numbers computed with the authors' released code (tests/golden/losses_det)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecrafter.geometry import bins
from edgecrafter.geometry import boxes as geometry
from edgecrafter.geometry.numbers import inverse_sigmoid
from edgecrafter.losses import masks, matching, terms
from edgecrafter.losses.denoising import Draws, build
from edgecrafter.losses.set_loss import DETECT_COSTS, REFINED, SetLoss, criterion
from edgecrafter.losses.truth import Truth, View
from edgecrafter.models.queries import GroupEmbedding, allowed_pairs
from edgecrafter.models.sizes import RTDETRV4
from edgecrafter.tasks import DETECT
from edgecrafter.types import LayerOutput, MaskMap, Match, Outputs, QueryGroup, Target

GOLDEN = Path(__file__).parent / "golden"
CASES = ("det_mixed", "det_several", "det_all_empty", "seg_mixed")
PARTS = {"": "main", "_0": "aux_0", "_1": "aux_1", "_first": "pre", "_enc": "enc_0", "_dn_first": "dn_pre"}
TERMS = {"mal": "mal", "l1": "bbox", "giou": "giou", "fgl": "fgl", "ddf": "ddf", "mask_ce": "mask_ce",
         "mask_dice": "mask_dice"}  # fmt: skip


@pytest.fixture(scope="module")
def stored():
    return np.load(GOLDEN / "losses_det.npz"), json.loads((GOLDEN / "losses_det.json").read_text())


def tensor(arrays, name):
    return torch.from_numpy(arrays[name])


def layer(arrays, case, part, leaves):
    """A layer's outputs as leaves that collect gradients."""
    got = {}
    for ours, theirs in (("logits", "pred_logits"), ("boxes", "pred_boxes"), ("edges", "pred_corners")):
        key = f"{case}/{part}/{theirs}"
        if key in arrays.files:
            got[ours] = leaves[f"{part}/{theirs}"] = tensor(arrays, key).clone().requires_grad_()
    if "edges" in got:
        got["edges"] = got["edges"].unflatten(-1, (4, bins.BINS))
        got["base"] = tensor(arrays, f"{case}/{part}/ref_points")
    if f"{case}/{part}/pred_masks" in arrays.files:
        dense = leaves[f"{part}/pred_masks"] = tensor(arrays, f"{case}/{part}/pred_masks").clone().requires_grad_()
        B, _, h, w = dense.shape
        identity = torch.eye(h * w).view(1, h * w, h, w).expand(B, -1, -1, -1)
        got["masks"] = MaskMap(dense.flatten(2), identity, torch.zeros(1))
    return LayerOutput(**got)


def packed(dense):
    return torch.from_numpy(np.packbits(dense > 0, axis=-1))


def stored_draws(arrays, case):
    """The random points of a case, in the order in which they were drawn; checks every shape."""
    names = iter(sorted(name for name in arrays.files if name.startswith(f"{case}/rand/")))

    def uniform(shape):
        found = tensor(arrays, next(names))
        assert tuple(shape) == tuple(found.shape)
        return found

    return uniform


def loss_of(case):
    return SetLoss(masks.SEGMENT, masks.SEGMENT_COSTS) if case.startswith("seg") else SetLoss()


def scene(arrays, case):
    """Outputs, targets and leaves of one stored case."""
    leaves: dict[str, torch.Tensor] = {}
    targets = [Target(*(tensor(arrays, f"{case}/target_{i}/{name}") for name in ("labels", "boxes"))) for i in range(2)]
    for i, target in enumerate(targets):
        if f"{case}/target_{i}/masks" in arrays.files:
            target.masks = packed(arrays[f"{case}/target_{i}/masks"])
    noisy = Outputs([layer(arrays, case, f"dn_{i}", leaves) for i in range(3)], layer(arrays, case, "dn_pre", leaves))
    positive = [tensor(arrays, f"{case}/dn_positive_idx_{i}") for i in range(2)]
    image = torch.cat([torch.full_like(p, i) for i, p in enumerate(positive)])
    objects = torch.cat([torch.arange(len(p)) % max(1, len(t.labels)) for p, t in zip(positive, targets, strict=True)])
    queries = noisy.layers[0].logits.shape[1]
    empty = torch.zeros(2, queries, dtype=torch.int64)
    noisy.group = QueryGroup(
        empty,
        torch.zeros(2, queries, 4),
        empty[0],
        answers=Match(image, torch.cat(positive), objects, tuple(len(p) for p in positive)),
    )
    outputs = Outputs(
        [layer(arrays, case, part, leaves) for part in ("aux_0", "aux_1", "main")],
        layer(arrays, case, "pre", leaves),
        layer(arrays, case, "enc_0", leaves),
        groups=[noisy],
    )
    return outputs, targets, leaves


def part_of(suffix):
    return PARTS.get(suffix, suffix[1:])


@pytest.mark.parametrize("case", CASES)
def test_terms_and_gradients(stored, case, record_property):
    arrays, numbers = stored
    outputs, targets, leaves = scene(arrays, case)
    losses = loss_of(case)(outputs, targets, stored_draws(arrays, case))
    wanted = numbers[case]["weighted"]
    worst, seen = 0.0, set()
    for name, value in losses.items():
        term = max((term for term in TERMS if name.startswith(term)), key=len)
        part = part_of(name.removeprefix(term))
        key = f"loss_{TERMS[term]}" + ("" if part == "main" else f"_{part}")
        seen.add(key)
        worst = max(worst, abs(value.item() - wanted[key]) / max(1.0, abs(wanted[key])))
        assert value.item() == pytest.approx(wanted[key], rel=2e-5, abs=1e-6), name
    assert all(wanted[key] == 0 for key in set(wanted) - seen), "only the last denoising layer's ddf is missing, and 0"
    sum(losses.values()).backward()
    difference = max(
        float((leaf.grad - tensor(arrays, f"{case}/grad/{name}")).abs().max()) if leaf.numel() else 0.0
        for name, leaf in leaves.items()
        if f"{case}/grad/{name}" in arrays.files
    )
    print(f"\ngolden {case}: terms within {worst:.1e} relative, gradients within {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_assignments_and_union(stored, case):
    arrays, _ = stored
    outputs, targets, _ = scene(arrays, case)
    layers = [outputs.layers[-1], *outputs.layers[:-1], outputs.first, outputs.encoder]
    truth, costs = Truth(targets, stored_draws(arrays, case)), loss_of(case).costs
    matches = matching.hungarian(layers, truth, costs)
    for part, match in zip(("main", "aux_0", "aux_1", "pre", "enc_0"), matches, strict=True):
        compare(arrays, f"{case}/match/{part}", match)
    compare(arrays, f"{case}/match/union", matching.union(matches))
    if f"{case}/match/main_0_cost" not in arrays.files:
        return
    truth = Truth(targets)
    found = matching.total(layers[:1], truth, costs)[0] if sum(truth.counts) else torch.zeros(2, 20, 0)
    for i, target in enumerate(targets):
        stored_cost = tensor(arrays, f"{case}/match/main_{i}_cost")
        torch.testing.assert_close(found[i, :, : len(target.labels)], stored_cost, rtol=1e-5, atol=1e-5)


def compare(arrays, key, match):
    for i in range(2):
        here = match.image == i
        assert match.query[here].tolist() == arrays[f"{key}_{i}_query"].tolist()
        assert match.object[here].tolist() == arrays[f"{key}_{i}_target"].tolist()


@pytest.mark.parametrize("curvature", (4, 8))
def test_bins(stored, curvature):
    arrays, _ = stored
    key = f"fdr/c{curvature}"
    values = torch.tensor(bins.weighting(0.5, curvature))
    torch.testing.assert_close(values, tensor(arrays, f"{key}/W"), rtol=1e-6, atol=1e-6)
    base = tensor(arrays, f"{key}/ref")
    index, upper = bins.encode(base, geometry.cxcywh_to_xyxy(tensor(arrays, f"{key}/gt_cxcywh")), values, curvature)
    assert index.flatten().tolist() == arrays[f"{key}/bin"].astype(int).tolist()
    torch.testing.assert_close(upper.flatten(), tensor(arrays, f"{key}/weight_right"), rtol=1e-4, atol=1e-5)
    decoded = bins.decode(base, tensor(arrays, f"{key}/distance"), curvature)
    torch.testing.assert_close(decoded, tensor(arrays, f"{key}/decoded_cxcywh"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size, curvature, other", [("x", 8.0, 4.0), ("s", 4.0, 8.0)])
def test_edges_are_judged_with_the_curvature_of_their_decoder(stored, size, curvature, other):
    """RT-DETRv4-X has finer bins than the others; every view, by name and by the row of the size."""
    outputs, targets, _ = scene(stored[0], "det_several")
    truth = Truth(targets)
    for loss in (criterion("mal", curvature), DETECT.loss(DETECT.labels, RTDETRV4[size])):
        losses, seen = loss(outputs, targets), 0
        for view in loss.views(outputs, truth):
            if view.kind in REFINED:
                right, wrong = (
                    0.15 * terms.fgl(view, truth, view.union, view.union_count, curvature=c).item()
                    for c in (curvature, other)
                )
                seen += 1
                assert losses["fgl" + view.suffix].item() == pytest.approx(right, rel=1e-6)
                assert abs(right - wrong) > 0.002 * right
        assert seen == sum(name.startswith("fgl") for name in losses) == 6


def test_denoising_queries(stored):
    arrays, numbers = stored
    groups = numbers["denoise"]["num_group"]
    targets = [
        Target(tensor(arrays, f"denoise/target_{i}/labels"), tensor(arrays, f"denoise/target_{i}/boxes"))
        for i in range(2)
    ]
    draws = Draws(
        relabel=tensor(arrays, "denoise/draw_label_u"),
        label=tensor(arrays, "denoise/draw_new_label").long(),
        sign=tensor(arrays, "denoise/draw_sign_bit") > 0.5,
        move=tensor(arrays, "denoise/draw_box_u"),
    )
    group = build(targets, [torch.arange(len(t.labels)) for t in targets], 5, groups, draws)
    assert torch.equal(group.labels, tensor(arrays, "denoise/query_class"))
    _, boxes = GroupEmbedding(5, 8)([group])
    found = inverse_sigmoid(group.boxes, 1e-5)
    torch.testing.assert_close(found, tensor(arrays, "denoise/query_box_unact"), rtol=0, atol=1e-4)
    torch.testing.assert_close(boxes[0], found.sigmoid())
    assert torch.equal(~allowed_pairs([group], 20, torch.device("cpu")), tensor(arrays, "denoise/attn_mask"))
    for i in range(2):
        here = group.answers.image == i
        assert group.answers.query[here].tolist() == arrays[f"denoise/positive_idx_{i}"].tolist()


def test_targets_of_the_edges(stored):
    """The bins shared by all layers, from the stored base and union."""
    arrays, _ = stored
    outputs, targets, _ = scene(arrays, "det_several")
    truth = Truth(targets)
    own = [outputs.layers[-1], *outputs.layers[:-1], outputs.first, outputs.encoder]
    pairs = matching.union(matching.hungarian(own, truth, DETECT_COSTS))
    last = outputs.layers[-1]
    values = torch.tensor(bins.weighting())
    index, _ = bins.encode(last.base[pairs.image, pairs.query], truth.boxes_xyxy[truth.index(pairs)], values)
    assert index.flatten().tolist() == arrays["det_several/fgl_targets/bin"].astype(int).tolist()


def test_mask_terms_at_given_points(stored):
    arrays, numbers = stored
    logits, points = tensor(arrays, "points/mask_logits"), tensor(arrays, "points/coords")
    true = packed(arrays["points/target_masks"])
    found, labels = masks.bilinear(logits, points), masks.nearest(true, points)
    torch.testing.assert_close(found, tensor(arrays, "points/sampled_logits"), rtol=0, atol=1e-5)
    assert torch.equal(labels, tensor(arrays, "points/sampled_labels"))
    whole = tensor(arrays, "points/pairwise_ce") + tensor(arrays, "points/pairwise_dice")
    torch.testing.assert_close(masks.compared(found[None], labels[None])[0], whole, rtol=1e-5, atol=1e-5)
    truth = Truth([Target(torch.zeros(5, dtype=torch.int64), torch.zeros(5, 4), masks=true)])
    pairs = Match(torch.zeros(5, dtype=torch.int64), torch.arange(5), torch.arange(5))
    view = View("", "final", LayerOutput(logits), pairs, pairs, torch.tensor(5.0), torch.tensor(5.0))
    view.sampled = (found, labels)
    for term, name in ((masks.mask_ce, "loss_mask_ce"), (masks.mask_dice, "loss_mask_dice")):
        assert term(view, truth, pairs, view.own_count).item() == pytest.approx(numbers["points"][name], rel=2e-5)


def test_uncertain_points(stored):
    arrays, _ = stored
    given = iter([tensor(arrays, "points/uncertain_candidates"), tensor(arrays, "points/uncertain_random")])
    logits = tensor(arrays, "points/mask_logits")
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))

    found = masks.uncertain(logits, Truth([empty], lambda _shape: next(given)), count=64)
    wanted = tensor(arrays, "points/uncertain_selected")
    assert torch.equal(found[:, 48:], wanted[:, 48:])
    for here, there in zip(found[:, :48], wanted[:, :48], strict=True):  # the order of equals means nothing
        assert sorted(here.tolist()) == sorted(there.tolist())
