"""Public checkpoints of the classic detectors: made of our own networks by the reverse tables, and read again.

No public file was at hand, so that nothing here says that the tables name what such files really hold; the tables of
Hugging Face are also met by transformers' own state dicts (``test_detr_parity``).
"""

from __future__ import annotations

import argparse
import random
import re

import pytest
import torch
from safetensors.torch import save_file

from edgecrafter import hub, load
from edgecrafter.cli import main
from edgecrafter.data import scenes
from edgecrafter.families import FAMILIES
from edgecrafter.models.detr import convert
from edgecrafter.models.detr.names import AUTHORS, DAB, DEFORMABLE, DINO, HF, MM, TABLES
from edgecrafter.registry import COCO_IDS
from edgecrafter.start import origin, start
from edgecrafter.tasks import COCO
from edgecrafter.types import Labels

FAMILY = {DAB: "dab-detr", DEFORMABLE: "deformable-detr", DINO: "dino"}
CASES = list(TABLES)
NECK_BIAS = r"backbone\.pyramid\.(projections|further)\.\d\.0\.bias"
"""MMDetection's have none"""
WRAPPER = {MM: "state_dict", AUTHORS: "model"}


@pytest.fixture
def narrow(monkeypatch):
    """Rows of the three families that are quick to build; six layers, as the tables have them."""
    for family in FAMILY.values():
        sizes = FAMILIES[family].sizes
        for size in ("r18", "r50", "r101"):
            row = sizes[size].changed(width=32, enc_ffn=40, det_ffn=48, enc_layers=2, queries=12)
            monkeypatch.setitem(sizes, size, row)


def model(arch, labels=COCO, size="r18"):
    torch.manual_seed(0)
    network, info = hub.create(f"{FAMILY[arch]}-{size}", labels)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(torch.randn_like(value) * 0.1)
        for name, value in network.named_parameters():
            if name == convert.TABLE:
                value[-1] = 0.0
        for name, value in network.named_buffers():
            if name.endswith("points.scale"):
                value.fill_(0.25)
    return network, info


def reverse(case, state):
    """Our state dict under the names of another origin, as such a file would be: with 91 rows of classes but for
    MMDetection, with all heads that it lists, without what it leaves out."""
    origin_of, arch = case
    rows = [(theirs, ours) for theirs, ours in TABLES[case]]
    found = {}
    for name, value in state.items():
        if name.endswith("points.scale"):
            continue
        if name == convert.TABLE:
            value = value[:-1] if origin_of == MM else spread(value)
        elif origin_of != MM and convert.is_class_row(name):
            value = spread(value)
        if origin_of == MM and re.fullmatch(NECK_BIAS, name):
            assert arch != DAB
            continue
        names = listed(name, rows)
        assert names, name
        for theirs, third in names:
            found[theirs] = value if third is None else value.chunk(3)[third]
    if origin_of == MM:
        found["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    items = list(found.items())
    random.Random(0).shuffle(items)
    return dict(items)


def listed(name, rows):
    """Their names of one of our entries: all of them where heads are listed several times."""
    found = []
    for theirs, ours in rows:
        ours, _, third = ours.partition("/")
        pattern = re.escape(ours).replace(r"\#", "#").replace("#", r"(\d+)").replace(r"\*", "(.+)")
        match = re.fullmatch(pattern, name)
        if match:
            parts = iter(match.groups())
            found.append((re.sub(r"[#*]", lambda _, p=parts: next(p), theirs), int(third) if third else None))
    heads = [each for each in found if re.search("class_embed|bbox_embed|bbox_predictor|branches", each[0])]
    return heads or ([each for each in found if each[1] is not None] or found)[: 3 if "in_proj" in name else 1]


def spread(value):
    """Class rows at COCO's category ids, among others that mean nothing; the last row of a table stays the last."""
    rows = 92 if len(value) == 81 else 91
    wide = torch.full((rows, *value.shape[1:]), 9.0)
    wide[list(COCO_IDS)] = value[:80]
    return wide


def written(case, state, path):
    if case[0] == HF:
        save_file({k: v.clone().contiguous() for k, v in state.items()}, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    about = {"args": argparse.Namespace(lr=1e-4, names=["a"])} if case[0] == AUTHORS else {"meta": {"epoch": 12}}
    torch.save({WRAPPER[case[0]]: state, **about}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_public_file_comes_back(narrow, case, tmp_path):
    network, info = model(case[1])
    state = reverse(case, network.state_dict())
    assert convert.arch_of(state) == case[1]
    file = written(case, state, tmp_path / "public")
    again, found = hub.read(file)
    assert found.name == info.name and found.labels == COCO and found.size == info.size and found.input == info.input
    assert "Apache" in found.licence and found.source == file.name
    ours = network.state_dict()
    assert set(again) == set(ours)
    for name, value in ours.items():
        left_out = case[0] == MM and re.fullmatch(NECK_BIAS, name)
        assert torch.equal(again[name], torch.zeros_like(value) if left_out else value), name


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_unknown_and_missing_entries_are_listed(narrow, case, tmp_path):
    network, _ = model(case[1])
    state = reverse(case, network.state_dict())
    with pytest.raises(ValueError, match=r"2 unknown entries.*further\.weight, more\.bias"):
        hub.read(
            written(case, {**state, "further.weight": torch.zeros(1), "more.bias": torch.zeros(1)}, tmp_path / "a")
        )
    gone = next(
        name
        for name in state
        if name.endswith(
            "encoder.layers.1.self_attn.out_proj.weight"
            if case[1] == DAB and case[0] != MM
            else "layer2.0.conv1.weight"
        )
    )
    less = {name: value for name, value in state.items() if name != gone}
    with pytest.raises(ValueError, match=rf"nearest is {FAMILY[case[1]]}-r18 with 1 different entries.*\(missing\)"):
        hub.read(written(case, less, tmp_path / "b"))


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == DEFORMABLE], ids=" ".join)
def test_variants_with_refined_boxes_are_refused(narrow, case, tmp_path):
    network, _ = model(DEFORMABLE)
    state = reverse(case, network.state_dict())
    head = next(name for name in state if re.search(r"(class_embed|cls_branches)\.3\.weight", name))
    state[head] = state[head] + 1
    with pytest.raises(ValueError, match="heads for each layer"):
        hub.read(written(case, state, tmp_path / "a"))


def test_files_of_mmdetection_2_are_refused(tmp_path):
    torch.save({"state_dict": {"bbox_head.transformer.level_embeds": torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="MMDetection 3"):
        hub.read(tmp_path / "a.pth")


def test_packed_projections_need_all_three(narrow, tmp_path):
    network, _ = model(DEFORMABLE)
    state = reverse((HF, DEFORMABLE), network.state_dict())
    state = {name: value for name, value in state.items() if name != "model.decoder.layers.2.self_attn.k_proj.bias"}
    with pytest.raises(ValueError, match=r"decoder\.layers\.2\.self_attn\.in_proj_bias \(missing\)"):
        hub.read(written((HF, DEFORMABLE), state, tmp_path / "a"))


def test_the_depth_is_told_by_the_backbone(narrow, tmp_path):
    network, _ = model(DINO, size="r50")
    file = written((MM, DINO), reverse((MM, DINO), network.state_dict()), tmp_path / "a")
    assert hub.read(file)[1].name == "dino-r50"


def test_a_public_file_is_used(narrow, tmp_path, capsys):
    """Described, asked, and trained from: class rows go by name."""
    network, _ = model(DINO)
    file = written((AUTHORS, DINO), reverse((AUTHORS, DINO), network.state_dict()), tmp_path / "public")
    loaded = load(file)
    main(["info", str(file)])
    said = capsys.readouterr().out
    assert "dino-r18" in said and "80 classes" in said
    scenes.write(tmp_path / "data", train=1, val=1, size=64)
    (result,) = loaded.predict(next((tmp_path / "data").rglob("*.[jp][pn]g")), conf=0.0, imgsz=[96, 160])
    assert len(result.boxes)
    labels = Labels(("dog", "kite", "thing"))
    for begun in (start(origin("dino-r18"), labels, weights=str(file)), start(origin(file), labels)):
        state = begun.network.state_dict()
        names = [COCO.names.index(name) for name in ("dog", "kite")]
        for name in ("decoder.scores.2.weight", "decoder.enc_score.bias", convert.TABLE):
            assert torch.equal(state[name][:2], network.state_dict()[name][names]), name
        assert not begun.random_vit and begun.info.size.frozen and "Apache" in begun.info.licence
        assert torch.equal(
            state["backbone.vit.network.bn1.running_mean"], network.backbone.vit.network.bn1.running_mean
        )


@pytest.mark.parametrize("arch", [DAB, DEFORMABLE])
def test_single_heads_go_by_class_name_too(narrow, arch, tmp_path):
    network, info = model(arch, Labels(("a", "b", "c")))
    file = hub.save(network, info, tmp_path / "a.safetensors")
    begun = start(origin(file), Labels(("c", "a", "d")))
    bias = begun.network.decoder.score.bias
    assert torch.equal(bias[:2], network.decoder.score.bias[[2, 0]])
