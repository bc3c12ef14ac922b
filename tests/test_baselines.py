"""FitNet, FGD and MGD: numbers by hand, what learns and what does not, trainings with them; a detector as teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training as small
import torch
import torch.nn.functional as F
from small_data import picture
from test_ddp import SHARES, SIMPLE, together, weights_after
from test_resume import BATCHES, Interrupted, Stopped, assert_same, score
from torch import Tensor, nn

import edgecrafter
from edgecrafter import hub, teachers
from edgecrafter.data import scenes
from edgecrafter.distill import fgd, mgd
from edgecrafter.distill.base import Student
from edgecrafter.distill.detector import DetectorTeacher, Level
from edgecrafter.distill.fgd import FGD, ContextBlock, FGDOptions, attended, focused, looking, relation
from edgecrafter.distill.fitnet import FitNet, FitNetOptions, differences
from edgecrafter.distill.memory import regions
from edgecrafter.distill.mgd import MGD, MGDOptions
from edgecrafter.distill.neck import Neck, NeckDistiller, Pair, objects_of
from edgecrafter.infer import detect
from edgecrafter.train import methods
from edgecrafter.train.log import read_rows
from edgecrafter.train.loop import fit
from edgecrafter.train.state import LAST, WEIGHTS, read
from edgecrafter.types import Batch, InputSpec, Labels, Outputs, Target

L1 = torch.tensor([[[0.25, 0.25, 0.75, 0.75]]])
"""the box of the specification's test L1: 2 x 2 of 4 x 4 cells"""
THERE = torch.tensor([[True]])


def pair(student: float, teacher: float, width: int = 1, side: int = 4, real: Tensor | None = None) -> Pair:
    """Two constant maps."""
    shape = (1, width, side, side)
    return Pair(torch.full(shape, float(student)), torch.full(shape, float(teacher)), real)


def padded(side: int = 4) -> Tensor:
    """All but the last column is picture."""
    real = torch.ones(1, side, side, dtype=torch.bool)
    real[:, :, -1] = False
    return real


# FitNet


def test_fitnet_by_hand() -> None:
    """Mean over channels and cells, sum over levels: 1 + 4."""
    assert float(differences([pair(2, 3, width=2), pair(0, 2, side=2)])) == pytest.approx(5)
    assert float(differences([pair(2, 2, width=2), pair(1, 1)])) == 0


def test_fitnet_leaves_padding_out() -> None:
    one = pair(0, 1, real=padded())
    one.student[..., -1] = 100
    assert float(differences([one])) == pytest.approx(1)


# FGD


@pytest.mark.parametrize("width, value", [(1, 3.0), (5, -0.7), (2, 0.0)])
def test_constant_maps_have_an_attention_of_one(width: int, value: float) -> None:
    where, channels = attended(torch.full((2, width, 3, 4), value), 0.5)
    torch.testing.assert_close(where, torch.ones(2, 3, 4))
    torch.testing.assert_close(channels, torch.ones(2, width))


def test_attention_by_hand() -> None:
    """Two cells of 0 and ln 2: with t = 1 the softmax is 1/3, 2/3, times two cells; with t = 0.5 it is 1/5, 4/5."""
    x = torch.tensor([0.0, -np.log(2)], dtype=torch.float32).view(1, 1, 1, 2)
    torch.testing.assert_close(attended(x, 1.0)[0].flatten(), torch.tensor([2 / 3, 4 / 3]))
    torch.testing.assert_close(attended(x, 0.5)[0].flatten(), torch.tensor([2 / 5, 8 / 5]))
    # the same numbers as channels of one cell
    torch.testing.assert_close(attended(x.view(1, 2, 1, 1), 0.5)[1].flatten(), torch.tensor([2 / 5, 8 / 5]))


def test_attention_of_padded_maps() -> None:
    x = torch.ones(1, 2, 4, 4)
    x[..., -1] = 50
    where, channels = attended(x, 0.5, padded())
    torch.testing.assert_close(where, padded().float())
    torch.testing.assert_close(channels, torch.ones(1, 2))


@pytest.mark.parametrize("real", [None, padded()])
def test_fgd_of_the_box_l1(real: Tensor | None) -> None:
    """Constant maps, C = 1, difference 1: objects and the rest weigh 1 each."""
    one = pair(1, 2, real=real)
    objects, rest = focused(one, attended(one.teacher, 0.5, real), regions(L1, THERE, (4, 4), real))
    assert float(objects) == pytest.approx(1) and float(rest) == pytest.approx(1)


def test_fgd_weights_by_the_teachers_attention() -> None:
    one = pair(0, 0)
    one.teacher[0, 0, 1, 1] = 2.0  # in the box; the student has 0 there
    where, _ = attended(one.teacher, 0.5)
    expected = 16 * np.exp(4) / (15 + np.exp(4))
    assert float(where[0, 1, 1]) == pytest.approx(expected)
    objects, rest = focused(one, attended(one.teacher, 0.5), regions(L1, THERE, (4, 4)))
    assert float(objects) == pytest.approx(2**2 * expected / 4) and float(rest) == 0


def test_difference_of_attention_by_hand() -> None:
    one = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[1.0]])
    other = torch.tensor([[[0.5, 1.5]]]), torch.tensor([[1.0]])
    assert float(looking(one, other)) == pytest.approx(1)
    both = tuple(torch.cat([a, a]) for a in one), tuple(torch.cat([a, b]) for a, b in zip(other, one, strict=True))
    assert float(looking(*both)) == pytest.approx(0.5), "mean over images"


def test_context_block() -> None:
    """Nothing is added at first; then the same everywhere, the mean of cells whose scores are equal."""
    block, x = ContextBlock(4), torch.rand(2, 4, 3, 3)
    torch.testing.assert_close(block(x), x)
    nn.init.zeros_(block.score.weight)
    nn.init.eye_(block.widen.weight)
    added = block(x) - x
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    narrow = block.norm(block.narrow(x.mean((2, 3)))).relu()
    torch.testing.assert_close(added[:, :2, 0, 0], narrow)
    torch.testing.assert_close(added[:, 2:], torch.zeros_like(added[:, 2:]))
    x4 = torch.rand(1, 4, 4, 4)
    cut = block(x4[..., :3]) - x4[..., :3]
    x4[..., -1] = 70
    torch.testing.assert_close((block(x4, padded()) - x4)[..., :3], cut, msg="padding says nothing")


# MGD


@pytest.mark.parametrize("real, cells", [(None, 4), (padded(2), 2)])
def test_mgd_by_hand(real: Tensor | None, cells: int) -> None:
    """Nothing hidden, a generator that changes nothing, C = 2, 2 x 2 cells, difference 1: 8 alpha."""
    make = mgd.generator(2)
    for layer in (make[0], make[2]):
        nn.init.dirac_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    one = pair(3, 4, width=2, side=2, real=real)
    shown = mgd.kept(np.random.default_rng(0), (1, 1, 2, 2), 0.0)
    with torch.no_grad():
        assert float(relation(make(one.student * shown), one.teacher, one.real)) == pytest.approx(2 * cells)


def test_hidden_cells() -> None:
    rng = np.random.default_rng(0)
    shown = mgd.kept(rng, (4, 1, 100, 100), 0.65)
    assert float(shown.mean()) == pytest.approx(0.35, abs=0.01) and set(shown.unique().tolist()) == {0.0, 1.0}
    assert float(mgd.kept(rng, (1, 1, 8, 8), 1.0).sum()) == 0 and float(mgd.kept(rng, (1, 1, 8, 8), 0.0).mean()) == 1


# settings


def test_presets() -> None:
    assert fgd.PRESETS == {
        "one_stage": (1e-3, 5e-4, 5e-4, 5e-6, 0.5),
        "two_stage": (5e-5, 2.5e-5, 5e-5, 5e-7, 0.5),
        "anchor_free": (1.6e-3, 8e-4, 8e-4, 8e-6, 0.8),
    }
    assert mgd.PRESETS == {"one_stage": (2e-5, 0.65), "two_stage": (5e-7, 0.45)}
    assert FGDOptions(preset="two_stage", gamma=0.0).weights() == (5e-5, 2.5e-5, 0.0, 5e-7, 0.5)
    assert MGDOptions(masked=0.3).weights() == (2e-5, 0.3)


@pytest.mark.parametrize(
    "given, message",
    [
        (["fgd", "preset=retinanet"], "preset=retinanet: choose one of one_stage, two_stage, anchor_free"),
        (["fgd", "alpha=-1"], "alpha=-1: expected a number of at least 0"),
        (["fgd", "temperature=0"], "temperature=0: expected a number above 0"),
        (["mgd", "masked=1.5"], "masked=1.5: expected a share between 0 and 1"),
        (["fitnet", "features=backbone"], "features=backbone: choose one of neck, memory, both"),
        (["fitnet", "lambda=1"], "unknown option 'lambda'"),
    ],
)
def test_options_that_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        methods.parsed(given)
    assert message in str(error.value)


# a detector as teacher


def random_teacher(name: str, seed: int = 1, labels: Labels | None = small.LABELS) -> DetectorTeacher:
    return teachers.detector(name, "none", seed, labels)


def pictures(count: int = 2, side: int = 96) -> Tensor:
    return small.batch([1] * count, side=side).images


@pytest.mark.parametrize(
    "name, layers", [("ecdet-n", 3), ("rtdetrv4-p", 3), ("rtdetrv2-r18", 3), ("ecinsseg-n", 3), ("ecpose-n", 3)]
)
def test_every_layer_and_nothing_else_differs(name: str, layers: int) -> None:
    """The last layer, features and memory are those of the network in evaluation mode, in both calls."""
    teacher = random_teacher(name)
    found = teacher(pictures())
    assert len(found.layers) == layers
    again = random_teacher(name).network.eval()
    with torch.no_grad():
        plain = again(teacher.spec.normalise(pictures()))
    assert len(plain.layers) == 1
    for part in ("logits", "boxes", "keypoints"):
        one, other = getattr(found.layers[-1], part), getattr(plain.layers[-1], part)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    for part in ("features", "memory"):
        for one, other in zip(getattr(found, part), getattr(plain, part), strict=True):
            torch.testing.assert_close(one, other)
    flagged = [module for module in teacher.network.modules() if module.training]
    assert flagged[0] is teacher.network.decoder and len(flagged) <= 2
    assert not any(isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout)) for module in flagged)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_answers_are_float32_without_gradients() -> None:
    teacher = random_teacher("ecinsseg-p").prepare(torch.device("cpu"), torch.bfloat16)
    found = teacher(pictures())
    for value in (found.layers[0].logits, found.layers[1].edges, found.first.boxes, *found.features, *found.memory):  # type: ignore[union-attr]
        assert value is not None and value.dtype == torch.float32 and not value.requires_grad
    assert found.layers[0].masks is not None and found.layers[0].masks.pixels.dtype == torch.float32
    whole = random_teacher("ecinsseg-p")(pictures()).memory[0]
    assert 0 < float((found.memory[0] - whole).abs().max()) < 0.5, "autocast was on"


def test_pictures_are_normalised_the_teachers_way() -> None:
    teacher = random_teacher("ecdet-p")
    before = teacher(pictures())
    teacher.spec = replace(teacher.spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert not torch.allclose(teacher(pictures()).memory[0], before.memory[0])
    torch.testing.assert_close(teacher(pictures()).memory, teacher(pictures().float() / 255).memory)


def test_levels() -> None:
    assert random_teacher("ecdet-n").levels()["features"] == [Level(128, 8), Level(128, 16), Level(128, 32)]
    assert [level.width for level in random_teacher("rtdetrv4-p").levels()["memory"]] == [64, 64, 64]


def test_classes_in_the_same_order() -> None:
    teacher = random_teacher("ecdet-p")
    teacher.same_classes(Labels(("one", "two", "three"), (7, 8, 9)))
    with pytest.raises(ValueError, match=r"3 classes and the student 3; class 1 is 'two' there and 'three' here"):
        teacher.same_classes(Labels(("one", "three", "two")))
    with pytest.raises(ValueError, match=r"3 classes and the student 2; class 2 is 'three' there and 'none' here"):
        teacher.same_classes(Labels(("one", "two")))


def test_teachers_by_file_run_and_name(tmp_path: Path) -> None:
    network, info = hub.create("ecdet-p", small.LABELS)
    file = hub.save(
        network, replace(info, licence="all rights"), tmp_path / "runs" / "large" / WEIGHTS / "best.safetensors"
    )
    for given in (file, tmp_path / "runs" / "large", str(file)):
        teacher = teachers.detector(given)
        assert (teacher.name, teacher.licence) == ("ecdet-p of large", "all rights")
        assert teacher.labels == small.LABELS
        torch.testing.assert_close(dict(teacher.network.state_dict()), dict(network.state_dict()))
    control = teachers.detector(file, "none", seed=3)
    assert control.name == "ecdet-p, random" and control.licence == ""
    assert not torch.equal(control.network.decoder.enc_score.weight, network.decoder.enc_score.weight)  # type: ignore[union-attr]
    again = teachers.detector(file, "none", seed=3)
    torch.testing.assert_close(dict(again.network.state_dict()), dict(control.network.state_dict()))
    state = torch.get_rng_state()
    assert len(teachers.detector("ecdet-n", "none").labels) == 80
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are taken"


@pytest.mark.parametrize(
    "given, weights, error, message",
    [
        ("", "pretrained", ValueError, "no teacher given: teacher=RUN or FILE of a detector"),
        ("ecdet-n", "file.pth", ValueError, "teacher_weights=file.pth: expected pretrained"),
        ("ecdet-n", "pretrained", ValueError, "ecdet-n has no released weights"),
        ("nowhere", "none", FileNotFoundError, "nowhere is neither a file nor a known model"),
        ("nowhere", "pretrained", FileNotFoundError, "nowhere is neither a file nor a known model"),
    ],
)
def test_teachers_that_are_refused(given: str, weights: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        teachers.detector(given, weights)


# the methods


def student_of(model: str, size: tuple[int, int] = (64, 64)) -> Student:
    return Student(model, hub.described(model, small.LABELS, queries=20).size, size, 99)


def method(name: str, model: str = "ecdet-p", teacher: str = "ecdet-n", seed: int = 0, **given: Any) -> NeckDistiller:
    kinds: dict[str, Any] = {"fitnet": (FitNet, FitNetOptions), "fgd": (FGD, FGDOptions), "mgd": (MGD, MGDOptions)}
    make, options = kinds[name]
    more = {"seed": seed} if name == "mgd" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: NeckDistiller = make(options(**given), random_teacher(teacher), student_of(model), **more)
        return found


NAMES = ("fitnet", "fgd", "mgd")


def test_widths_are_projected_only_where_they_differ() -> None:
    neck = Neck([Level(64, 8), Level(64, 16), Level(32, 32)], [Level(64, 8), Level(64, 16), Level(64, 32)])
    assert [type(part) for part in neck.project] == [nn.Identity, nn.Identity, nn.Conv2d]
    assert not list(method("fitnet", teacher="ecdet-p").parameters())
    assert len(list(method("fitnet").parameters())) == 2 * 3
    assert len(list(method("fitnet", features="both").parameters())) == 2 * 6


def test_levels_are_paired_by_stride() -> None:
    """A teacher with one level more on either side; the student's maps are brought to the teacher's grid."""
    neck = Neck([Level(1, 8), Level(1, 16)], [Level(1, 4), Level(1, 8), Level(1, 16), Level(1, 32)])
    teacher = [torch.full((1, 1, side, side), float(side)) for side in (33, 17, 9, 5)]
    student = [torch.full((1, 1, side, side), float(side)) for side in (16, 8)]
    found = neck(student, teacher, None)
    assert [float(each.teacher.mean()) for each in found] == [17, 9]
    assert [float(each.student.mean()) for each in found] == [16, 8]
    assert all(each.student.shape == each.teacher.shape for each in found)


@pytest.mark.parametrize("levels, places", [(1, [2]), (3, [0, 1, 2]), (4, [0, 1, 2, 2])])
def test_students_of_any_number_of_levels(levels: int, places: list[int]) -> None:
    """DAB-DETR has one, Deformable DETR and DINO four, the last of which follows the teacher's nearest."""
    student = student_of("ecdet-p")
    student = student._replace(row=student.row.changed(levels=levels))
    distiller = FitNet(FitNetOptions(), random_teacher("ecdet-n"), student)
    assert distiller.necks["features"].places == places  # type: ignore[union-attr]


def test_objects_of_padded_batches() -> None:
    """Boxes are shares of the picture, which fills half of the width and a quarter of the height of the input."""
    valid = torch.zeros(2, 64, 64, dtype=torch.bool)
    valid[0] = True
    valid[1, :16, :32] = True
    box = torch.tensor([[0.5, 0.5, 1.0, 0.5]])
    targets = [Target(torch.tensor([0]), box), Target(torch.tensor([0, 0]), box.repeat(2, 1))]
    boxes, present = objects_of(Batch(torch.zeros(2, 3, 64, 64), targets, valid))
    assert present.tolist() == [[True, False], [True, True]]
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0, 0.25, 1, 0.75]))
    torch.testing.assert_close(boxes[1, 1], torch.tensor([0, 0.0625, 0.5, 0.1875]))
    empty = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2
    assert objects_of(Batch(torch.zeros(2, 3, 64, 64), empty))[0].shape == (2, 0, 4)


def answers(distiller: NeckDistiller, batch: Batch) -> Outputs:
    """What the teacher says, as if it were a student's, with gradients."""
    found = distiller.teacher(batch.images)
    return replace(
        found, **{p: [x.clone().requires_grad_() for x in getattr(found, p)] for p in ("features", "memory")}
    )


@pytest.mark.parametrize("name", ["fitnet", "fgd"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name: str) -> None:
    distiller, batch = method(name, teacher="ecdet-p"), small.batch([2, 0])
    same = answers(distiller, batch)
    assert all(float(loss.detach()) == 0 for loss in distiller(same, batch).values())
    same.features[1].data += 0.1
    assert all(float(loss.detach()) > 0 for loss in distiller(same, batch).values())


def test_parts_of_fgd_have_their_weights() -> None:
    batch = small.batch([2, 1])
    plain, double = (method("fgd", alpha=a, gamma=0.0) for a in (1e-3, 2e-3))
    with torch.no_grad():
        same = answers(method("fgd", teacher="ecdet-p"), batch)
        one, other = plain(same, batch), double(same, batch)
    assert set(one) == {"fgd_objects", "fgd_rest", "fgd_attention", "fgd_relation"}
    assert float(other["fgd_objects"]) == pytest.approx(2 * float(one["fgd_objects"]))
    assert float(other["fgd_rest"]) == pytest.approx(float(one["fgd_rest"])) and float(one["fgd_attention"]) == 0


class Padding(nn.Module):
    """Stands for a detector that takes padded pictures: its levels are means of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.weight = nn.Identity(), nn.Parameter(torch.rand(64, 3))

    def forward(self, images: Tensor, groups: Any = (), valid: Tensor | None = None) -> Outputs:
        maps = [torch.einsum("dc,bchw->bdhw", self.weight, F.avg_pool2d(images, stride)) for stride in (8, 16, 32)]
        return Outputs([], features=maps, memory=maps)


@pytest.mark.parametrize("name", NAMES)
def test_padding_teaches_nothing(name: str) -> None:
    """Whatever the student has there; and objects lie where the picture is."""
    distiller = method(name, teacher="ecdet-p")
    distiller.teacher = DetectorTeacher(Padding(), InputSpec(), small.LABELS, "padding")
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    valid[1, 32:] = False
    batch = replace(small.batch([1, 2]), valid=valid)
    batch.images[1, :, 32:] = 0

    def losses(beyond: float) -> dict[str, float]:
        torch.manual_seed(0)
        maps = [torch.rand(2, 64, 64 // stride, 64 // stride) for stride in (8, 16, 32)]
        for each in maps:
            each[1, :, each.shape[2] // 2 :] = beyond
        distiller.seen = torch.tensor(0)  # type: ignore[assignment]
        return {key: float(loss) for key, loss in distiller(Outputs([], features=maps), batch).items()}

    with torch.no_grad():
        first, second = losses(0.0), losses(30.0)
        assert first == pytest.approx(second, rel=1e-5) and all(0 < value < 1e4 for value in first.values())
        batch = replace(batch, valid=None)
        assert losses(0.0) != pytest.approx(losses(30.0), rel=1e-2)


@pytest.mark.parametrize("features, places", [("neck", 1), ("memory", 1), ("both", 2)])
def test_fitnet_of_the_memory(features: str, places: int) -> None:
    distiller, batch = method("fitnet", teacher="ecdet-p", features=features), small.batch([1, 1])
    same = answers(distiller, batch)
    same.features[0].data += 1.0
    same.memory[0].data += 2.0
    expected = {"neck": 1.0, "memory": 4.0, "both": 5.0}[features]
    assert float(distiller(same, batch)["fitnet"].detach()) == pytest.approx(expected, rel=1e-4)
    assert len(distiller.necks) == places


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["ecdet-p", "rtdetrv4-p", "ecinsseg-p", "ecpose-p"])
def test_gradients_reach_the_student_and_the_methods_own_parts(name: str, model: str, tmp_path: Path) -> None:
    """And nothing of the teacher; nothing of either is in the student's state."""
    distiller = method(name, model)
    task = {"ecinsseg-p": "segment", "ecpose-p": "pose"}.get(model, "detect")
    step, _, _ = small.training(tmp_path, small.plan(), task=task, model=model, distillers=[distiller])
    frozen = {key: value.clone() for key, value in distiller.teacher.network.state_dict().items()}
    losses = step(small.batch([2, 0]))
    own = {key: loss for key, loss in losses.items() if key.startswith(name)}
    assert own and all(torch.isfinite(loss) and loss > 0 for loss in own.values())
    torch.stack(list(own.values())).sum().backward()
    backbone = [p.grad for p in step.network.backbone.parameters() if p.requires_grad]
    assert any(grad is not None and float(grad.abs().sum()) > 0 for grad in backbone)
    assert all(p.grad is None for p in step.network.decoder.parameters()), "the maps before the encoder"
    parts = dict(distiller.named_parameters())
    assert parts and all(p.grad is not None for p in parts.values())
    still = [key for key, p in parts.items() if not float(p.grad.abs().sum())]  # type: ignore[union-attr]
    assert all(".narrow." in key or ".norm." in key or ".score." in key for key in still), "behind zeros, at first"
    assert all(p.grad is None for p in distiller.teacher.network.parameters())
    assert_same(frozen, dict(distiller.teacher.network.state_dict()))
    assert not [key for key in distiller.state_dict() if "teacher" in key]
    plain = hub.create(model, small.LABELS, queries=20)[0]
    assert step.network.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """Masks of MGD, trained parts and all."""

    def started(folder: Path, seed: int = 0, done: int = 0) -> Any:
        distiller = method(name, seed=seed)
        if isinstance(distiller, MGD):
            distiller.seed = 0
        return small.training(folder, plan, seed, done=done, distillers=[distiller])

    plan = small.plan(2, 2)
    step, state, journal = started(tmp_path / "straight")
    fit(step, small.Batches(BATCHES), score, state, journal)  # type: ignore[arg-type]
    step, state, journal = started(tmp_path / "broken")
    state.save()
    with pytest.raises(Stopped):
        fit(step, Interrupted(BATCHES, 3), score, state, journal)  # type: ignore[arg-type]
    step, state, journal = started(tmp_path / "broken", seed=9, done=1)
    state.load(read(tmp_path / "broken" / WEIGHTS / LAST))
    fit(step, small.Batches(BATCHES), score, state, journal)  # type: ignore[arg-type]
    one, other = (read(tmp_path / folder / WEIGHTS / LAST) for folder in ("straight", "broken"))
    assert_same(one, other)
    assert any("necks.features.project.0.weight" in key for key in one["beside"])
    if name == "mgd":
        assert int(one["beside"]["0.seen"]) == 4
    rows = [read_rows(tmp_path / folder / "results.csv") for folder in ("straight", "broken")]
    assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]] and float(rows[0][0][name]) > 0


def _in_two(rank: int, folder: Path) -> dict[str, Any]:
    """Weights of the network and of what is trained beside it, after steps in two processes."""
    found = {}
    for names in (("fitnet", "fgd"), ("mgd",)):
        distillers = [method(name) for name in names]
        batches = [[batch] for batch in SHARES[rank]]
        weights = weights_after(batches, folder / str(rank), distillers=distillers, **SIMPLE)
        beside = {f"{d.name}.{key}": value for d in distillers for key, value in d.state_dict().items()}
        found["-".join(names)] = weights | beside
    return found


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """One of them has a batch without objects. (Cells that MGD hides depend on how many pictures a process has.)"""
    first, second = together(_in_two, tmp_path)
    assert_same(first, second)
    distillers = [method("fitnet"), method("fgd")]
    joined = [[small.joined(pair)] for pair in zip(*SHARES, strict=True)]
    alone = weights_after(joined, tmp_path, distillers=distillers, **SIMPLE)
    alone |= {f"{d.name}.{key}": value for d in distillers for key, value in d.state_dict().items()}
    largest = max(float((first["fitnet-fgd"][name] - value).abs().max()) for name, value in alone.items())
    assert largest <= 1e-5, largest


def test_mgd_hides_other_cells_in_every_batch_and_for_every_seed() -> None:
    batch = small.batch([1, 1])
    with torch.no_grad():
        same = answers(method("mgd", teacher="ecdet-p"), batch)
        first = method("mgd", teacher="ecdet-p")
        values = [float(first(same, batch)["mgd"]) for _ in range(3)]
        again = method("mgd", teacher="ecdet-p")
        other = method("mgd", teacher="ecdet-p")
        other.seed = 1  # type: ignore[assignment]
        assert [float(again(same, batch)["mgd"]) for _ in range(3)] == values
        assert len({*values, float(other(same, batch)["mgd"])}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_training_with_the_method(name: str, tmp_path: Path) -> None:
    """Through the public function: files, licence, and a model that has nothing of it."""
    data = scenes.write(tmp_path / "data", train=4, val=2, size=96)
    teacher, info = hub.create("ecdet-n", Labels(("ball",)))
    file = hub.save(teacher, replace(info, licence="ask the owner"), tmp_path / "large.safetensors")
    trained = edgecrafter.train(
        model="ecdet-p", data=str(data), epochs=1, batch=2, imgsz=64, weights="none", device="cpu", workers=0,
        queries=20, project=str(tmp_path / "runs"), distill=[name, f"teacher={file}"],
    )  # fmt: skip
    (row,) = read_rows(trained.folder / "results.csv")
    assert float(row[name]) > 0 and row["step"] == "2"
    loaded = edgecrafter.load(trained.best, "cpu")
    assert f"taught by ecdet-n of large.safetensors ({name}): ask the owner" in loaded.info.licence
    plain = hub.create("ecdet-p", loaded.info.labels, queries=20)[0]
    assert loaded.network.state_dict().keys() == plain.state_dict().keys()
    image = torch.from_numpy(np.array(picture((64, 64)))).permute(2, 0, 1)[None]
    assert len(detect(loaded.network, loaded.info.input, image, [(64, 64)])) == 1
