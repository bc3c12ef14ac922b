"""Names, files, recognition, transfer, and what happens without a network."""

from __future__ import annotations

import pickle

import pytest
import torch

from edgecrafter import download, hub, registry
from edgecrafter.models import official
from edgecrafter.models.fuse import fuse
from edgecrafter.models.sizes import SIZES
from edgecrafter.start import origin, start
from edgecrafter.types import InputSpec, Labels, Skeleton

LABELS = Labels(("cat", "dog"), (1, 18))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network, info = hub.create("ecdet-p", LABELS, InputSpec((96, 128)), registers=2)
    return network, info, hub.save(network, info, tmp_path / "model.safetensors")


def test_a_file_holds_everything(saved):
    network, info, path = saved
    again, same = hub.load(path)
    assert same == info
    assert same.input.size == (96, 128) and same.labels.ids == (1, 18) and same.size.registers == 2
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())
    assert not list(path.parent.glob(".*")), "nothing is left beside the file"


def test_a_fused_model_is_not_saved(saved, tmp_path):
    network, info, _ = saved
    with pytest.raises(ValueError, match="fused model cannot be saved"):
        hub.save(fuse(network), info, tmp_path / "fused.safetensors")


def test_unknown_names_list_the_known():
    with pytest.raises(FileNotFoundError, match="neither a file nor a known model.*ecdet-s"):
        hub.load("ecdet-huge")
    with pytest.raises(ValueError, match="unknown model 'yolo'.*ecdet-s"):
        hub.create("yolo", LABELS)
    with pytest.raises(ValueError, match="no released weights.*train it first"):
        hub.load("ecdet-p")


def test_no_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGECRAFTER_CACHE", str(tmp_path))

    def refuse(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match="ecdet_s.pth elsewhere and put it at .*ecdet_s.pth"):
        hub.load("ecdet-s")


def test_a_download_happens_once_and_prints_the_licence(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("EDGECRAFTER_CACHE", str(tmp_path))
    calls = []

    def fetch(url, target, hash_prefix=None, progress=True):
        calls.append(url)
        torch.save({}, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    row = registry.find("ecdet-m")
    assert download.download(row) == download.download(row) == tmp_path / "ecdet_m.pth"
    assert calls == [row.url]
    said = capsys.readouterr().out
    assert said.count("non-commercial") == 1
    assert f"sha256 {download.sha256(tmp_path / 'ecdet_m.pth')}" in said


def test_a_download_that_was_cut_off_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGECRAFTER_CACHE", str(tmp_path))

    def fetch(url, target, hash_prefix=None, progress=True):
        with open(target, "wb") as file:
            file.write(b"PK half a file")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(FileNotFoundError, match="not complete"):
        hub.load("ecdet-s")
    assert not list(tmp_path.iterdir())


def test_states_and_unfinished_runs_point_to_the_model(tmp_path):
    (tmp_path / "weights").mkdir()
    torch.save({"network": {}, "optimizer": {}, "progress": {}}, tmp_path / "weights" / "last.pt")
    with pytest.raises(ValueError, match="state of a training run.*last.safetensors"):
        hub.load(tmp_path / "weights" / "last.pt")
    with pytest.raises(FileNotFoundError, match="not been evaluated yet.*last.safetensors"):
        hub.load(tmp_path)


def test_every_registry_row_is_complete():
    for row in registry.REGISTRY:
        assert row.url.startswith("https://") and row.licence and row.commercial_use in ("yes", "no", "check")
        assert row.sha256 == "" or len(row.sha256) == 64


def test_released_files_of_other_models_name_the_nearest(tmp_path):
    network, _ = hub.create("ecdet-s", LABELS)
    state = official.to_official(network.state_dict())
    del state["decoder.dec_score_head.0.bias"]
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="nearest is ecdet-s with 1 different entries.*scores.0.bias"):
        hub.load(tmp_path / "a.pth")
    torch.save({"model": {"module.weight": torch.zeros(1)}}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="1 unknown entries.*module.weight"):
        hub.load(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["rtdetrv4-p", "deim-s", "dfine-s"])
def test_files_of_rtdetrv4_are_told_by_their_projector(tmp_path, name):
    """Without it they could be of DEIM or D-FINE, whose networks are another one with the same entries."""
    small = {"width": 64, "csp_width": 16, "enc_ffn": 128, "det_ffn": 128, "queries": 100}
    network, info = hub.create(name, LABELS, **small)
    state = official.to_official(network.state_dict())
    for given in (state, {**state, "something.else": torch.zeros(1)}):
        torch.save({"model": given}, tmp_path / "a.pth")
        with pytest.raises(
            ValueError, match="looks like RT-DETRv4, DEIM or D-FINE, without .*feature_proj.*no reading of"
        ):
            hub.load(tmp_path / "a.pth")
    projector = {"encoder.feature_projector.0.weight": torch.zeros(768, 64)}
    torch.save({"model": state | projector}, tmp_path / "b.pth")
    assert hub.load(tmp_path / "b.pth")[1].name == "rtdetrv4-p"
    hub.convert(hub.save(network, info, tmp_path / "own.safetensors"), tmp_path / "own.pth")
    assert hub.load(tmp_path / "own.pth")[1] == info, "our own files say what they are"


def test_ambiguous_files_name_the_candidates(monkeypatch, tmp_path):
    monkeypatch.setitem(SIZES, "q", SIZES["p"])
    network, _ = hub.create("ecdet-p", LABELS)
    torch.save({"model": official.to_official(network.state_dict())}, tmp_path / "p.pth")
    with pytest.raises(ValueError, match="fits more than one model: ecdet-p, ecdet-q"):
        hub.load(tmp_path / "p.pth")


def test_released_safetensors_of_a_hub_page(tmp_path):
    from safetensors.torch import save_file

    network, _ = hub.create("ecdet-n", Labels(("a",) * 1))
    state = {k: v.clone().contiguous() for k, v in official.to_official(network.state_dict()).items()}
    save_file(state, tmp_path / "model.safetensors")
    _, info = hub.load(tmp_path / "model.safetensors")
    assert info.name == "ecdet-n" and len(info.labels) == 1


@pytest.mark.parametrize("name", ["ecdet-p", "ecinsseg-p", "ecpose-p"])
def test_own_models_of_all_tasks_come_back_from_the_released_layout(tmp_path, name):
    """With their classes, keypoints and options, which the layout itself has no place for."""
    labels = Labels(("cat", "dog"), (3, 9), Skeleton(("nose", "left", "right"), flip_pairs=((1, 2),)))
    network, info = hub.create(name, labels, InputSpec((64, 96)))
    hub.convert(hub.save(network, info, tmp_path / "own.safetensors"), tmp_path / "own.pth")
    again, same = hub.load(tmp_path / "own.pth")
    assert same == info
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())


def test_a_file_with_other_keypoints_is_recognised(tmp_path):
    network, _ = hub.create("ecpose-p", Labels(("cat",), skeleton=Skeleton(("a", "b", "c"))), label_rows=81)
    torch.save({"model": official.to_official(network.state_dict())}, tmp_path / "p.pth")
    _, info = hub.load(tmp_path / "p.pth")
    assert info.labels.names == ("class 0",) and info.labels.skeleton.names == (
        "keypoint 0",
        "keypoint 1",
        "keypoint 2",
    )


def test_options_at_loading(tmp_path):
    """Only those that a task names: they fit the weights all the same."""
    network, info = hub.create("ecinsseg-p", LABELS, InputSpec((64, 64)))
    path = hub.save(network, info, tmp_path / "m.safetensors")
    loaded, again = hub.load(path, mask_blocks=1)
    assert again.size.mask_blocks == 1 and loaded.decoder.masks.used == 1
    assert hub.load(path)[0].decoder.masks.used == 3
    with pytest.raises(ValueError, match="queries=7 does not go with ecinsseg-p.*it takes mask_blocks"):
        hub.load(path, queries=7)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"model": Harmful()}))
    with pytest.raises(ValueError, match="refused because loading them could run code"):
        hub.load(tmp_path / "bad.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"not a file")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        hub.load(tmp_path / "bad.safetensors")


def test_start_takes_class_rows_by_name(saved):
    network, _, path = saved
    labels = Labels(("mouse", "dog"))
    other, info, lines, random_vit = start(origin(path), labels, (64, 64))
    assert info.labels == labels and "1 of 2 classes by name" in "\n".join(lines)
    assert not random_vit and start(origin("ecdet-p"), labels, (64, 64), weights=str(path), depth=8).random_vit
    old, new = network.state_dict(), other.state_dict()
    assert torch.equal(new["decoder.enc_score.weight"][1], old["decoder.enc_score.weight"][1])
    assert not torch.equal(new["decoder.enc_score.weight"][0], old["decoder.enc_score.weight"][0])
    assert torch.equal(new["backbone.vit.registers"], old["backbone.vit.registers"])
    assert new["decoder.enc_score.bias"][0] == pytest.approx(-4.595, abs=1e-3), "new rows keep the focal prior"


def test_start_from_a_distilled_vit(tmp_path):
    network, _ = hub.create("ecdet-n", LABELS)
    vit = {
        k.removeprefix(official.OFFICIAL_VIT): v
        for k, v in official.to_official(network.state_dict()).items()
        if k.startswith(official.OFFICIAL_VIT)
    }
    torch.save(vit, tmp_path / "vit.pth")
    other, _, lines, _ = start(origin("ecdet-n"), LABELS, backbone=tmp_path / "vit.pth")
    assert any("ViT from vit.pth" in line for line in lines)
    assert torch.equal(other.backbone.vit.blocks[3].fc1.weight, network.backbone.vit.blocks[3].fc1.weight)
    with pytest.raises(ValueError, match="does not fit"):
        start(origin("ecdet-p"), LABELS, backbone=tmp_path / "vit.pth")


def test_names_of_the_key_map_are_one_to_one():
    with torch.device("meta"):
        state = hub.create("ecdet-l")[0].state_dict()
    theirs = [official.official_name(name) for name in state]
    assert len(set(theirs)) == len(theirs)
    assert [official.our_name(name) for name in theirs] == list(state)
