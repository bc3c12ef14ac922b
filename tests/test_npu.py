"""The npu graph: its parts answer as the network does, by products and maxima, with operators that NPUs have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgecrafter import hub
from edgecrafter.export.graph import graph
from edgecrafter.export.npu import chosen, npu
from edgecrafter.export.npu_forms import Sine
from edgecrafter.export.npu_sampling import Along, Hat, Largest, Products, QualityOfPose
from edgecrafter.models.pose_decoder import PoseQuality, sine
from edgecrafter.nn.deformable import DeformableAttention, PointAttention, split_heads
from edgecrafter.types import InputSpec

WIDE, BORDER = (96, 160), (64, 416)
"""the second has tokens at the border, which are never proposed"""
SMALL = {"queries": 40, "det_layers": 2, "pose_layers": 2}
VIT = {**SMALL, "depth": 2}
CASES = {
    "ecdet-p": VIT,
    "ecinsseg-p": {**VIT, "mask_blocks": 1},
    "ecpose-p": VIT,
    "rtdetrv4-p": SMALL,
    "dfine-s": SMALL,
    "rtdetrv2-r18": SMALL,
}
LEVELS = [(12, 20), (6, 10), (3, 5)]


def made(name, size=WIDE, seed=0):
    """A network whose parts all have a say."""
    torch.manual_seed(seed)
    network, info = hub.create(name, None, InputSpec(size), **CASES[name])
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(std=0.05)
        network.decoder.enc_score.weight.mul_(5)
    return network.eval(), info


def answers(made_npu, images):
    """What the two parts in torch say, with the host's choice between them."""
    encoder, decoder = made_npu.parts
    with torch.inference_mode():
        found = dict(zip(encoder.outputs, encoder.module(images), strict=True))
        given = chosen(found, made_npu.facts["choose"])
        said = dict(zip(decoder.outputs, decoder.module(*given.values()), strict=True))
    return found, said | ({"mask_pixels": found["mask_pixels"]} if "mask_pixels" in found else {})


def pictures(made_npu, size, batch):
    """Images in which no two of the best proposals are so near that rounding could change the order of the queries."""
    encoder, count = made_npu.parts[0], made_npu.facts["choose"]["queries"] + 1
    for seed in range(20):
        images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            proposals = encoder.module(images)[encoder.outputs.index("proposals")]
        gaps = -proposals.sort(dim=1, descending=True).values[:, :count].diff(dim=1)
        if gaps[gaps > 0].min() > 1e-5:
            return images
    raise AssertionError("scores are too near to each other in 20 pictures")


def same(found, wanted, limit):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        assert np.abs(np.asarray(found[name]) - np.asarray(value)).max() < limit, name


def raw(network, info, size, images):
    part = graph(network, info, "raw", size, len(images)).parts[0]
    with torch.inference_mode():
        return dict(zip(part.outputs, part.module(images), strict=True))


@pytest.mark.parametrize("size, batch", [(WIDE, 1), (BORDER, 2)], ids=["wide", "border"])
@pytest.mark.parametrize("name", CASES)
def test_the_parts_answer_as_the_network(name, size, batch):
    network, info = made(name, size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    halves = npu(network, info, size, batch)
    images = pictures(halves, size, batch)
    _, said = answers(halves, images)
    same(said, raw(network, info, size, images), 1e-4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(tensor.dim() <= 4 for part in halves.parts for tensor in part.inputs.values())


def test_only_static_graphs_of_networks_with_levels():
    network, info = made("ecdet-p")
    with pytest.raises(ValueError, match="number of images"):
        npu(network, info, WIDE, None)
    with pytest.raises(ValueError, match="multiples of 32"):
        npu(network, info, (100, 160), 1)
    classic, described = hub.create("deformable-detr-r18", None, det_layers=1, enc_layers=1)
    with pytest.raises(ValueError, match="deformable-detr-r18 has no npu graph"):
        npu(classic, described, WIDE, 1)


@pytest.mark.parametrize("limit", [1 << 23, 4000])
@pytest.mark.parametrize("kind, places", [(DeformableAttention, 4), (PointAttention, 2)])
def test_products_read_what_sampling_reads(kind, places, limit, monkeypatch):
    """Also at places outside of the maps, and a few queries at a time."""
    monkeypatch.setattr("edgecrafter.export.npu_sampling.CELLS", limit)
    torch.manual_seed(0)
    attention = kind(32, 8, (3, 6, 3))
    for layer in (attention.offsets, attention.weights):
        torch.nn.init.normal_(layer.weight, std=0.3)
    memory = [torch.randn(2, 32, h, w) for h, w in LEVELS]
    query, where = torch.randn(2, 17, 32), torch.rand(2, 17, places) * 1.4 - 0.2
    values = split_heads(memory, 8)
    with torch.no_grad():
        found, wanted = Products(attention, LEVELS)(query, where, values), attention(query, where, values)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_hats_are_bilinear_with_zeros_outside():
    values = torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    points = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.3
    wanted = F.grid_sample(values, 2 * points[:, None] - 1, align_corners=False)[0, :, 0].mT
    rows, columns = Hat(6)(points[0, :, 1:] * 6), Hat(10)(points[0, :, :1] * 10)
    assert torch.allclose((rows[:, :, None] * columns[:, None]).flatten(1) @ values[0].flatten(1).mT, wanted, atol=1e-5)


@pytest.mark.parametrize("numbers", ["random", "ties", "all equal", "negative"])
def test_maxima_are_topk_exactly(numbers):
    x = torch.rand(3, 7, 33, generator=torch.Generator().manual_seed(0))
    x = {"random": x, "ties": (x * 4).round(), "all equal": torch.full_like(x, 1 / 33), "negative": -5 * x}[numbers]
    assert torch.equal(Largest(4)(x), x.topk(4).values)


def test_pose_quality_and_sine_without_more_dimensions():
    torch.manual_seed(0)
    quality = PoseQuality(5)
    level, points = torch.randn(2, 24, 12, 20), torch.rand(2, 7, 5, 2) * 1.2 - 0.1
    with torch.no_grad():
        assert torch.allclose(QualityOfPose(quality, (12, 20))(level, points), quality(level, points), atol=1e-5)
    assert torch.allclose(Sine(24)(points), sine(points, 24), atol=2e-6)


def test_half_of_the_offsets_belong_to_each_axis():
    attention = PointAttention(32, 8, (3, 6, 3))
    query, where = torch.randn(1, 5, 32), torch.rand(1, 5, 2)
    values = split_heads([torch.zeros(1, 32, h, w) for h, w in LEVELS], 8)
    with torch.no_grad():
        spots = attention.spots(query, where, values)
        widths = torch.tensor([20.0] * 3 + [10] * 6 + [5] * 3)
        found = Along(attention, LEVELS, 0)(query, where).view(1, 5, 8, 12)
    assert torch.allclose(found, spots[..., 0] * widths, atol=1e-4)


# ONNX: what is written, and what of it is forbidden


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Name of a model -> its graph and the files of opset 17, each once."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from edgecrafter.export.formats.onnx import model
    from edgecrafter.export.opset import lowered

    known = {}

    def write(name):
        if name not in known:
            network, info = made(name)
            halves, folder = npu(network, info, WIDE, 1), tmp_path_factory.mktemp(name)
            for part in halves.parts:
                onnx.save(lowered(model(part, False, 18)), folder / f"{part.name}.onnx")
            known[name] = network, info, halves, folder
        return known[name]

    return write


SLOW = [name for name in CASES if name not in ("ecdet-p",)]
EXPORTED = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)


@EXPORTED
def test_onnx_runtime_answers_as_the_network(name, written):
    ort = pytest.importorskip("onnxruntime")
    network, info, halves, folder = written(name)
    images = pictures(halves, WIDE, 1)
    given, said = {"images": images}, []
    for part in halves.parts:
        session = ort.InferenceSession(folder / f"{part.name}.onnx", providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_inputs()] == list(part.inputs)
        numbers = session.run(list(part.outputs), {key: value.numpy() for key, value in given.items()})
        said.append({key: torch.from_numpy(value) for key, value in zip(part.outputs, numbers, strict=True)})
        given = chosen(said[0], halves.facts["choose"])
    found, wanted = said[1], raw(network, info, WIDE, images)
    same(found | {key: said[0][key] for key in wanted.keys() & said[0].keys()}, wanted, 1e-4)


@EXPORTED
def test_nothing_forbidden_is_written(name, written):
    from edgecrafter.export.audit import audit

    *_, halves, folder = written(name)
    for part in halves.parts:
        found = audit(folder / f"{part.name}.onnx")
        found.require()
        assert found.rank <= 4 and found.opset == 17
        assert "MatMul" in found.table() and "nothing in it is forbidden" in found.table()
        assert not {"GridSample", "TopK", "Gather", "GatherElements", "ScatterND", "NonZero"} & found.operators.keys()


class Whole(torch.nn.Module):
    """What the raw graph does of all that is forbidden."""

    def forward(self, x):
        best = x.flatten(2).amax(1).topk(3).indices
        spots = F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False)
        rows = x.flatten(2).gather(2, best[:, None].expand(-1, x.shape[1], -1))
        return spots, rows, x.unflatten(1, (2, -1)) * 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    given = (torch.rand(1, 4, 6, 6),)
    program = torch.onnx.export(Whole().eval(), given, dynamo=True, opset_version=18, verbose=False)
    file = tmp_path_factory.mktemp("whole") / "whole.onnx"
    onnx.save(program.model_proto, file)
    return file


@pytest.mark.parametrize(
    "what", ["GridSample", "TopK", "5 dimensions from", "GatherElements with computed indices", "whole numbers from"]
)
def test_the_audit_names_what_is_forbidden(what, whole):
    from edgecrafter.export.audit import audit

    found = audit(whole)
    assert found.rank == 5
    assert any(each.startswith(what) and each.endswith(")") for each in found.forbidden), found.forbidden
    assert f"not for NPUs: {what}" in found.table()
    with pytest.raises(ValueError, match=r"whole.onnx is not a graph for NPUs: .*GridSample \(.+\)"):
        found.require()


def test_the_audit_finds_shapes_that_are_not_known(tmp_path):
    onnx = pytest.importorskip("onnx")
    from edgecrafter.export.audit import audit

    def value(name):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3])

    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"], "act")], "g", [value("x")], [value("y")])
    onnx.save(onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "any.onnx")
    assert audit(tmp_path / "any.onnx").forbidden == ["unknown shape from Relu (act)"]
