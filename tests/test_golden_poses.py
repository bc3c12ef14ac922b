"""The pose criterion and its denoising against numbers computed with the authors' released code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecrafter.geometry import keypoints as geometry
from edgecrafter.losses import matching, poses
from edgecrafter.losses.denoising import answers
from edgecrafter.losses.pose_denoising import Draws, build, denoising
from edgecrafter.losses.set_loss import SetLoss
from edgecrafter.losses.truth import Truth
from edgecrafter.models.pose_decoder import PoseGroups
from edgecrafter.models.queries import allowed_pairs
from edgecrafter.types import LayerOutput, Outputs, QueryGroup, Target

GOLDEN = Path(__file__).parent / "golden"
CASES = ("pose_mixed", "pose_several")
SIGMAS = geometry.COCO_SIGMAS
LOSS = SetLoss(poses.table(SIGMAS), poses.costs(SIGMAS))
PARTS = {"": "main", "_0": "aux_0", "_1": "aux_1", "_first": "pre", "_enc": "enc_0", "_dn_first": "dn_pre"}
NAMES = {"aux_0": "0", "aux_1": "1"}


@pytest.fixture(scope="module")
def stored():
    return np.load(GOLDEN / "losses_pose.npz"), json.loads((GOLDEN / "losses_pose.json").read_text())


def tensor(arrays, name):
    return torch.from_numpy(arrays[name])


def targets_of(arrays, case):
    """Two targets; the stored keypoints are 34 coordinates and 17 flags."""
    found = []
    for i in range(2):
        labels, boxes, area, points = (
            tensor(arrays, f"{case}/target_{i}/{name}") for name in ("labels", "boxes", "area", "keypoints")
        )
        keypoints = torch.cat([points[:, :34].unflatten(1, (17, 2)), points[:, 34:, None]], dim=-1)
        found.append(Target(labels, boxes, keypoints=keypoints, area=area))
    return found


def scene(arrays, case):
    leaves: dict[str, torch.Tensor] = {}

    def layer(part):
        for name in ("pred_logits", "pred_keypoints"):
            leaves[f"{part}/{name}"] = tensor(arrays, f"{case}/{part}/{name}").clone().requires_grad_()
        points = leaves[f"{part}/pred_keypoints"].unflatten(-1, (17, 2))
        return LayerOutput(leaves[f"{part}/pred_logits"], keypoints=points)

    targets = targets_of(arrays, case)
    counts = [len(target.labels) for target in targets]
    noisy = Outputs([layer(f"dn_{i}") for i in range(3)], layer("dn_pre"))
    queries, slots = noisy.layers[0].logits.shape[1], max(counts)
    empty = torch.zeros(2, queries, dtype=torch.int64)
    known = answers([torch.arange(count) for count in counts], slots, queries // (2 * slots))
    noisy.group = QueryGroup(empty, torch.zeros(2, queries, 4), empty[0], answers=known)
    layers = [layer(part) for part in ("aux_0", "aux_1", "main")]
    return Outputs(layers, layer("pre"), layer("enc_0"), groups=[noisy]), targets, leaves


@pytest.mark.parametrize("case", CASES)
def test_terms_and_gradients(stored, case):
    arrays, numbers = stored
    outputs, targets, leaves = scene(arrays, case)
    losses = LOSS(outputs, targets)
    wanted = numbers[case]["weighted"]
    worst = 0.0
    for name, value in losses.items():
        term, _, suffix = name.partition("_")
        part = PARTS.get("_" + suffix if suffix else "", suffix)
        key = f"loss_{term}" + ("" if part == "main" else f"_{NAMES.get(part, part)}")
        worst = max(worst, abs(value.item() - wanted[key]) / wanted[key])
        assert value.item() == pytest.approx(wanted[key], rel=2e-5), name
    assert len(losses) == len(wanted)
    sum(losses.values()).backward()
    difference = max(
        float((leaf.grad - tensor(arrays, f"{case}/grad/{name}")).abs().max()) for name, leaf in leaves.items()
    )
    print(f"\ngolden {case}: terms within {worst:.1e} relative, gradients within {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_assignments_and_union(stored, case):
    arrays, _ = stored
    outputs, targets, _ = scene(arrays, case)
    layers = [outputs.layers[-1], *outputs.layers[:-1], outputs.first, outputs.encoder]
    matches = matching.hungarian(layers, Truth(targets), LOSS.costs)
    named = zip(("main", "aux_0", "aux_1", "pre", "enc_0"), matches, strict=True)
    for part, match in (*named, ("union", matching.union(matches))):
        for i in range(2):
            here = match.image == i
            assert match.query[here].tolist() == arrays[f"{case}/match/{part}_{i}_query"].tolist()
            assert match.object[here].tolist() == arrays[f"{case}/match/{part}_{i}_target"].tolist()
    costs = matching.total(layers[:1], Truth(targets), LOSS.costs)[0]
    for i, target in enumerate(targets):
        wanted = tensor(arrays, f"{case}/match/main_{i}_cost")
        torch.testing.assert_close(costs[i, :, : len(target.labels)], wanted, rtol=1e-5, atol=1e-5)


def test_oks(stored):
    arrays, _ = stored
    found, true = (tensor(arrays, f"oks/{name}").unflatten(-1, (17, 2)) for name in ("pred", "gt"))
    visible, area = tensor(arrays, "oks/visible").float(), tensor(arrays, "oks/area")
    likeness = geometry.oks(found, true, visible, area, torch.tensor(SIGMAS))
    torch.testing.assert_close(likeness, tensor(arrays, "oks/oks_unclamped"), rtol=2e-5, atol=1e-7)
    assert likeness[-1] == 0, "the last one has no visible keypoint"


def padded_draws(arrays, counts, groups):
    """The stored draws run over the objects of both images, group by group, positives and then negatives."""
    slots = max(counts)
    rows = np.full((len(counts), 2 * slots * groups), -1)
    number = 0
    for half in range(2 * groups):
        for image, count in enumerate(counts):
            rows[image, half * slots : half * slots + count] = np.arange(number, number + count)
            number += count
    relabel = arrays["denoise/draw_0"]
    label = np.zeros(len(relabel), dtype=np.int64)
    label[relabel < 0.25] = arrays["denoise/draw_1"]
    far, low = arrays["denoise/draw_3"][:, 1:, 0], arrays["denoise/draw_4"][:, 1:, 0]
    negative = np.repeat(np.arange(2 * groups) % 2 == 1, sum(counts))
    far[negative] = low
    columns = (relabel, label, far, arrays["denoise/draw_2"])
    return Draws(*(torch.from_numpy(np.where(_wide(rows >= 0, c), c[rows], 0.5).astype(c.dtype)) for c in columns))


def _wide(chosen, column):
    return chosen.reshape(*chosen.shape, *[1] * (column.ndim - 1))


def test_released_denoising(stored):
    arrays, numbers = stored
    targets = targets_of(arrays, "denoise")
    counts = [len(target.labels) for target in targets]
    groups = numbers["denoise"]["num_group"]
    classes = 80
    draws = padded_draws(arrays, counts, groups)
    group = build(targets, [torch.arange(c) for c in counts], classes, groups, draws, SIGMAS, "released")
    table = PoseGroups(81, 17, 16)
    table.labels.weight.data = tensor(arrays, "denoise/label_table")
    table.keypoints.weight.data = tensor(arrays, "denoise/keypoint_table")
    content, places = table(group, classes)
    torch.testing.assert_close(content.detach(), tensor(arrays, "denoise/query"), rtol=0, atol=1e-6)
    torch.testing.assert_close(places.logit(), tensor(arrays, "denoise/pose_unact"), rtol=0, atol=1e-4)
    assert torch.equal(~allowed_pairs([group], 20, torch.device("cpu")), tensor(arrays, "denoise/attn_mask"))


def test_noise_of_the_paper_is_what_oks_says(stored):
    """Positives keep 0.5 to 1 of their OKS and negatives 0.1 to 0.5, in every direction; unlabelled points stay."""
    arrays, _ = stored
    targets = targets_of(arrays, "pose_several")
    group = denoising(targets, 2, SIGMAS, torch.Generator().manual_seed(1))
    slots, queries = 5, group.labels.shape[1]
    assert queries == 2 * 5 * 4
    for image, target in enumerate(targets):
        for query in range(queries):
            index = query % slots
            if index >= len(target.labels):
                assert group.labels[image, query] == 2
                continue
            labelled = target.keypoints[index, :, 2] > 0
            moved = group.keypoints[image, query] - target.keypoints[index, :, :2]
            assert not moved[~labelled].any()
            alone = moved.square().sum(-1) / (2 * target.area[index] * (2 * torch.tensor(SIGMAS)).square())
            share = (-alone[labelled]).exp()
            low, high = (0.1, 0.5) if query // slots % 2 else (0.5, 1.0)
            assert share.min() >= low - 1e-4 and share.max() <= high + 1e-4
    ways = (group.keypoints[1] - targets[1].keypoints[0, :, :2])[::5].sign().flatten(0, 1)
    assert {tuple(way) for way in ways.tolist()} >= {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_a_batch_without_people_has_no_queries():
    empty = Target(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), keypoints=torch.zeros(0, 17, 3), area=torch.zeros(0)
    )
    group = denoising([empty, empty], 1, SIGMAS)
    assert group.keypoints.shape == (2, 0, 17, 2) and len(group.answers) == 0
