"""Segmentation and pose start from a trained detector: what is taken, what is new, and that it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecrafter import hub, vits
from edgecrafter.models.detector import ecvit
from edgecrafter.models.sizes import SIZES
from edgecrafter.start import origin, start
from edgecrafter.tasks import TASKS
from edgecrafter.types import InputSpec, Labels, Skeleton

LABELS = Labels(("cat", "dog"), skeleton=Skeleton(("nose", "tail")))


@pytest.fixture
def detector(tmp_path):
    torch.manual_seed(1)
    network, info = hub.create("ecdet-p", Labels(("dog", "bird")), InputSpec((64, 64)))
    return network.state_dict(), hub.save(network, info, tmp_path / "detector.safetensors")


@pytest.mark.parametrize("task", ("segment", "pose"))
def test_backbone_and_encoder_of_a_detector(detector, task):
    given, path = detector
    torch.manual_seed(2)
    network, info, lines, random_vit = start(
        origin(f"{TASKS[task].prefix}-p"), LABELS, (64, 64), weights=str(path), queries=50
    )
    own = network.state_dict()
    shared = [name for name in own if name.startswith(("backbone.", "encoder."))]
    assert all(torch.equal(own[name], given[name]) for name in shared) and not random_vit
    text = "\n".join(lines)
    assert "weights of ecdet-p (detect)" in text and f"encoder {sum(n.startswith('enc') for n in own)} of" in text
    same = [n for n in own if n.startswith("decoder.") and n in given and own[n].shape == given[n].shape]
    taken = [n for n in same if torch.equal(own[n], given[n]) and given[n].any() and own[n].dim() > 1]
    if task == "segment":
        assert len(taken) > 20 and "decoder.masks" in text, "the decoder of boxes is taken, the mask head is new"
        assert torch.equal(own["decoder.enc_score.weight"][1], given["decoder.enc_score.weight"][0]), "dog by name"
    else:
        assert not taken and "decoder 0 of" in text, "entries of the pose decoder that happen to fit are another thing"
    assert info.task == task and info.source.startswith("from ")


def test_released_masks_are_trained_with_all_blocks(tmp_path):
    network, info = hub.create("ecseg-p", LABELS, InputSpec((64, 64)), mask_blocks=1)
    path = hub.save(network, info, tmp_path / "released.safetensors")
    _, trained, lines, _ = start(origin(path), LABELS)
    assert trained.size.mask_blocks == 0 and "all mask blocks" in lines[-1]
    _, trained, lines, _ = start(origin("ecseg-p"), LABELS, weights=str(path))
    assert trained.size.mask_blocks == 0 and "all mask blocks" in lines[-1]
    path = hub.save(hub.build(trained), trained, tmp_path / "ours.safetensors")
    assert "all mask blocks" not in "\n".join(start(origin(path), LABELS)[2]), "ours are trained with all anyway"


def test_released_pose_weights_give_their_person_to_our_classes(tmp_path):
    """Two channels and 81 label rows become our one class, taken by its name."""
    torch.manual_seed(0)
    network, info = hub.create("ecpose-p")
    assert info.labels.used == (1,) and info.size.label_rows == 81
    person = Labels(("person",), skeleton=info.labels.skeleton)
    path = hub.save(network, info, tmp_path / "released.safetensors")
    ours, trained, _, _ = start(origin(path), person)
    assert trained.size.label_rows == 0 and ours.decoder.groups.labels.weight.shape[0] == 1
    for name in ("enc_score", "groups.labels"):
        row = ours.decoder.get_submodule(name).weight[0]
        assert torch.equal(row, network.decoder.get_submodule(name).weight[1])


def test_pose_needs_keypoints():
    with pytest.raises(ValueError, match="the classes cup have no keypoints"):
        hub.create("ecpose-p", Labels(("cup",)))


def test_keypoints_are_taken_by_name(tmp_path):
    """Rows of keypoints in another order; what mixes all of them starts new."""
    network, info = hub.create("ecpose-p", Labels(("cat",), skeleton=Skeleton(("nose", "left", "right"))))
    path = hub.save(network, info, tmp_path / "m.safetensors")
    turned = Labels(("cat",), skeleton=Skeleton(("right", "nose", "tail")))
    other, _, lines, _ = start(origin(path), turned)
    for name in ("keypoints", "groups.keypoints"):
        old, new = (each.decoder.get_submodule(name).weight for each in (network, other))
        assert torch.equal(new[0], old[2]) and torch.equal(new[1], old[0]) and not torch.equal(new[2], old[1])
    assert "decoder.enc_pose.layers.3.weight" in "\n".join(lines)
    same, _, lines, _ = start(origin(path), info.labels)
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in network.state_dict().items())


def test_weights_of_another_size_are_an_error(tmp_path):
    network, info = hub.create("ecdet-n", LABELS)
    path = hub.save(network, info, tmp_path / "n.safetensors")
    with pytest.raises(ValueError, match="entries of the backbone fit: the weights are of a model of another size"):
        start(origin("ecpose-p"), LABELS, weights=str(path))


@pytest.mark.parametrize("name, proper", [("ECSEG-S", "ecinsseg-s"), ("ecpose-n", "ecpose-n"), ("a/File", "a/file")])
def test_proper_names(name, proper):
    assert hub.proper(name) == proper


def kind_of(name: str, folder: Path) -> Path:
    """A file of a model, small and random."""
    network, info = hub.create(name, LABELS)
    return hub.save(network, info, folder / f"{name}.safetensors")


def test_weights_around_another_backbone_are_refused(tmp_path: Path) -> None:
    file = kind_of("rtdetrv4-p", tmp_path)
    for name in ("ecdet-p", "ecinsseg-p", "rtdetrv2-r18"):
        with pytest.raises(ValueError, match=f"{name} is built around .*, of rtdetrv4-p, around timm:hgnetv2_b0"):
            start(origin(name), LABELS, weights=file)
    with pytest.raises(ValueError, match="rtdetrv4-p is built around timm:hgnetv2_b0 and the weights, of ecdet-p"):
        start(origin("rtdetrv4-p"), LABELS, weights=kind_of("ecdet-p", tmp_path))


def test_weights_of_an_architecture_with_other_activations_are_spoken_of(tmp_path: Path) -> None:
    found = start(origin("dfine-s"), LABELS, weights=kind_of("rtdetrv4-s", tmp_path))
    assert any("compute something else with their weights" in line for line in found.lines)
    assert found.info.name == "dfine-s" and found.info.size.arch == "dfine"


def test_a_family_with_a_backbone_of_its_own(tmp_path: Path) -> None:
    """Random with weights=none, another one on request; never a ViT of ours, and no options of one."""
    plain = start(origin("rtdetrv4-p"), LABELS, weights="none")
    assert plain.random_vit and "weights: none" in plain.lines[0]
    file = kind_of("rtdetrv4-p", tmp_path)
    for given in ("rtdetrv4-p", file):
        other = start(origin(given), LABELS, backbone="timm:resnet18d", backbone_weights="none")
        assert other.info.size.backbone == "timm:resnet18d" and other.random_vit
    weights = file_of_backbone(tmp_path / "hg.safetensors")
    given = start(origin("rtdetrv4-p"), LABELS, weights="none", backbone_weights=str(weights))
    assert not given.random_vit, "weights of the backbone that were asked for are taken with weights=none, too"
    for option, value in (("registers", 4), ("stem", "vanilla"), ("fused", 4), ("fusion", "concat"), ("norm", False)):
        with pytest.raises(ValueError, match=f"{option}={value} is of our vision transformers, not of timm:hgnetv2_b0"):
            start(origin("rtdetrv4-p"), LABELS, weights="none", **{option: value})
    vit = tmp_path / "vit.safetensors"
    vits.save(ecvit(SIZES["p"]), SIZES["p"], vit, {})
    with pytest.raises(ValueError, match="a vision transformer of ours has no place in it"):
        start(origin("rtdetrv4-p"), LABELS, backbone=vit)


def file_of_backbone(path: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    whole = timm.create_model("hgnetv2_b0").state_dict()
    save_file({name: value.contiguous() for name, value in whole.items()}, path)
    return path
