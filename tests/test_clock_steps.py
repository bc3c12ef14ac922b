"""CLoCKDistill and its comparisons in a training: what changes and what does not, in every kind of run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_clock as clock
import small_training as small
import torch
from test_ddp import SHARES, SIMPLE, together, weights_after
from test_resume import BATCHES, Interrupted, Stopped, assert_same, score
from torch import Tensor, nn

import edgecrafter
from edgecrafter import hub, teachers
from edgecrafter.data import formats, scenes
from edgecrafter.distill.base import Distiller
from edgecrafter.distill.clock import KDDETR, Clock
from edgecrafter.distill.clock_options import ClockOptions
from edgecrafter.distill.detector import DetectorTeacher, Level
from edgecrafter.distill.fgd import FGD
from edgecrafter.distill.fitnet import FitNet
from edgecrafter.tasks import TASKS
from edgecrafter.train import methods, optim
from edgecrafter.train.log import read_rows
from edgecrafter.train.loop import Update, fit, gradients
from edgecrafter.train.state import LAST, WEIGHTS, read
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import Batch, Labels, Outputs

DETECT = TASKS["detect"]


def step_of(name: str, distillers: list[Any], **more: Any) -> SupervisedStep:
    """A step around a small network, the same weights in every call."""
    network, info = clock.network(name, **more)
    loss = DETECT.loss(info.labels, info.size)
    return SupervisedStep(network, DETECT, info.labels, info.input, loss=loss, budget=10, distillers=distillers)


def summed(losses: dict[str, Tensor], prefix: str = "", without: str = "none") -> Tensor:
    chosen = [x for name, x in losses.items() if name.startswith(prefix) and not name.startswith(without)]
    return torch.stack(chosen).sum()


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pupil, who", clock.PAIRS)
def test_detection_is_unchanged(pupil: str, who: str) -> None:
    """T14: losses and gradients of the detection with and without the questions, for every kind of decoder."""
    method = clock.clock(pupil, who)
    batch = clock.batch((2, 0), valid=method.teacher.spec.resize == "keep" == clock.network(pupil)[1].input.resize)
    plain, taught = step_of(pupil, []), step_of(pupil, [method])
    own, both = plain(batch), taught(batch)
    assert set(both) - set(own) == {f"clock_{name}" for name in ("memory", "classes", "l1", "giou")}
    for name, value in own.items():
        torch.testing.assert_close(both[name], value, atol=1e-5, rtol=1e-5, msg=name)
    summed(own).backward()  # type: ignore[no-untyped-call]
    summed(both, without="clock").backward(retain_graph=True)
    found = gradients_of(taught.network)
    largest = max(float(grad.abs().max()) for grad in found.values())
    for name, grad in gradients_of(plain.network).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5 * largest, msg=name)
    # and the questions teach: the whole student, and the ways between the two
    taught.zero_grad()
    answers = summed(both, "clock") - both["clock_memory"]
    assert float(answers.detach()) > 0 and float(both["clock_memory"].detach()) > 0
    (answers + both["clock_memory"]).backward()
    parts = gradients_of(taught.network)
    for place in ("backbone", "encoder", "decoder"):
        assert any(name.startswith(place) and float(grad.abs().sum()) > 0 for name, grad in parts.items()), place
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in method.parameters())
    assert all(p.grad is None for p in method.teacher.network.parameters())


def test_every_pair_has_the_ways_it_needs() -> None:
    """Linear layers only where widths differ, and only where a content of the teacher is given to the student."""

    def trained(pupil: str, who: str, **given: Any) -> list[str]:
        parts = clock.clock(pupil, who, **given).named_parameters()
        return sorted({name.split(".")[0] for name, part in parts if part.requires_grad})

    assert trained("ecdet-p", "ecdet-n") == ["adapter", "query_project"]
    assert trained("ecdet-p", "ecdet-n", target=False) == ["adapter"], "a layer without gradient would stop processes"
    assert trained("ecdet-p", "ecdet-n", tcld=False) == ["adapter"]
    assert trained("ecdet-p", "ecdet-n", lcmd=False) == ["query_project"]
    assert trained("ecdet-p", "ecdet-p") == trained("dab-detr-r18", "dino-r18", mode="summed") == []


def eval_answers(name: str, method: Clock, batch: Batch) -> Outputs:
    """What a student in evaluation mode answers to the questions of ``method``."""
    network, info = clock.network(name)
    return DetectorTeacher(network, info.input, info.labels, name).answers(
        batch.images, method.probes(batch), batch.valid
    )


def losses_of(name: str, method: Clock, batch: Batch) -> dict[str, float]:
    found = method(eval_answers(name, method, batch), batch)
    return {key: float(value.detach()) for key, value in found.items()}


@pytest.mark.parametrize("name, who", [pair for pair in clock.PAIRS if pair[0] != "rtdetrv2-r18"][::2])
def test_padded_questions_teach_nothing(name: str, who: str) -> None:
    """T12: a picture without objects adds nothing to the target group, nor does another one's number of objects."""
    method = clock.clock(name, who, lcmd=False, specific=False, general=0)
    both, full = clock.batch((2, 0)), clock.batch((2, 2))
    twice = replace(both, targets=[both.targets[0]] * 2, images=both.images[:1].repeat(2, 1, 1, 1))
    one = replace(twice, targets=[both.targets[0], both.targets[1]])
    assert losses_of(name, method, one) == pytest.approx(losses_of(name, method, twice), rel=1e-4, abs=1e-6)
    fewer = replace(full, targets=[full.targets[0], both.targets[1]])
    assert losses_of(name, method, both) == pytest.approx(losses_of(name, method, replace(both, images=fewer.images)))
    assert all(value > 0 for value in losses_of(name, method, both).values())


@pytest.mark.parametrize("name, who", [("ecdet-p", "ecdet-n"), ("dino-r18", "dino-r18")])
def test_a_batch_without_objects(name: str, who: str) -> None:
    """Everything is finite, and every trained part has its gradient (several processes wait for it)."""
    only = clock.clock(name, who, lcmd=False, specific=False, general=0)
    assert losses_of(name, only, clock.batch((0, 0))) == {"clock_classes": 0, "clock_l1": 0, "clock_giou": 0}
    method = clock.clock(name, who)
    step = step_of(name, [method])
    losses = step(clock.batch((0, 0)))
    summed(losses).backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(x) for x in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


@pytest.mark.parametrize("name", ["ecdet-p", "dino-r18", "dab-detr-r18"])
def test_t10_copies(name: str) -> None:
    """Real copies, moved by nothing that float32 can hold, are the weight of one."""
    batch = clock.batch((2, 1))
    three = losses_of(name, clock.clock(name, name), batch)
    real = clock.clock(name, name, jitter=1e-12)
    assert len(real.probes(batch)) == 2 + 3
    real.seen.zero_()
    assert losses_of(name, real, batch) == pytest.approx(three, abs=1e-6, rel=1e-5)
    one = losses_of(name, clock.clock(name, name, copies=1), batch)
    assert one != pytest.approx(three, rel=1e-3)
    alone: dict[str, Any] = {"lcmd": False, "specific": False, "general": 0}
    found = [losses_of(name, clock.clock(name, name, copies=n, **alone), batch) for n in (1, 3)]
    assert found[0] == pytest.approx(found[1])
    assert losses_of(name, clock.clock(name, name, jitter=0.5), batch) != pytest.approx(three, rel=1e-3)


def test_stages_and_temperature() -> None:
    """T13: three layers and two share their last; every option changes what it is about."""
    batch = clock.batch((2, 1))
    assert len(clock.teacher("ecdet-n")(batch.images).layers) == 3
    method = clock.clock("rtdetrv2-r18", clock.teacher("dino-r18"))
    said = eval_answers("rtdetrv2-r18", method, batch)
    assert (len(said.layers), len(method.said.layers)) == (3, 2)  # type: ignore[union-attr]
    plain = {key: float(x.detach()) for key, x in method(said, batch).items()}
    for group in said.groups:
        for layer in group.layers[:-1]:
            layer.logits = layer.logits + 99
    method.probes(batch)
    method.seen.zero_()
    method.probes(batch)
    assert {key: float(x.detach()) for key, x in method(said, batch).items()} == pytest.approx(plain)
    base = losses_of("ecdet-p", clock.clock("ecdet-p", "ecdet-n"), batch)
    for given, changes in (
        ({"temperature": 2}, {"classes"}), ({"classes": "sigmoid"}, {"classes"}), ({"cls": 2}, {"classes"}),
        ({"l1": 1}, {"l1"}), ({"giou": 1}, {"giou"}), ({"stage": "final"}, {"classes", "l1", "giou"}),
        ({"alpha": 1}, {"memory"}), ({"mask": "none"}, {"memory"}), ({"mode": "summed"}, {"classes", "l1", "giou"}),
        ({"general": 3}, {"classes", "l1", "giou"}), ({"specific": False}, {"classes", "l1", "giou"}),
    ):  # fmt: skip
        found = losses_of("ecdet-p", clock.clock("ecdet-p", "ecdet-n", **given), batch)  # type: ignore[arg-type]
        different = {key.removeprefix("clock_") for key in base if found[key] != pytest.approx(base[key], rel=1e-5)}
        assert different == changes, given


def test_one_class_is_compared_by_sigmoid() -> None:
    labels = Labels(("one",))
    method = Clock(ClockOptions(), clock.teacher("ecdet-n", labels=labels), clock.student("ecdet-p", labels), 0)
    assert method.independent and "one class: its scores are compared by sigmoid" in method.report()[1]
    plain = clock.clock("ecdet-p", "ecdet-n")
    assert not plain.independent and len(plain.report()) == 1


# the memory of whole networks


def test_memories_of_other_levels_sizes_and_widths() -> None:
    """Four levels and three, by stride; a cell less on a side; padding; the teacher's grid counts."""
    method = clock.clock("ecdet-p", "dino-r18", tcld=False, alpha=1.0, beta=1.0)
    assert method.places == [0, 1, 2] and clock.clock("dino-r18", "ecdet-p", tcld=False).places == [0, 1, 2, 2]
    method.adapter = nn.Identity()
    given = [torch.ones(2, 4, side, side) for side in (8, 4, 2, 1)]
    given[3] += 50
    batch = clock.batch((1, 0))
    own = [torch.zeros(2, 4, side, side + 1) for side in (7, 4, 2)]
    # image 0: 4 channels on 3 levels, objects and rest; image 1 has the rest only; mean over images
    full = [float(r.objects[0].any()) + float(r.rest[0].any()) for r in _regions(batch, (8, 4, 2))]
    assert float(method.remembered(own, given, batch)) == pytest.approx(4 * (sum(full) + 3) / 2)
    sums = method.sums.tolist()
    assert sum(sums[:2]) == pytest.approx(4 * (sum(full) + 3) / 2) and sums[2] == 1
    assert method.end_epoch(0) == {"clock/objects": pytest.approx(sums[0]), "clock/rest": pytest.approx(sums[1])}
    assert method.sums.tolist() == [0, 0, 0]


def _regions(batch: Batch, sides: tuple[int, ...]) -> list[Any]:
    from edgecrafter.distill.memory import regions
    from edgecrafter.distill.neck import objects_of

    return [regions(*objects_of(batch), (side, side)) for side in sides]


def test_pictures_of_any_size_for_a_teacher_of_squares() -> None:
    """A student that keeps ratios has sides that the teacher does not take: they are padded, its maps are cut."""
    teacher = clock.teacher("ecdet-p")
    images = torch.randint(0, 256, (2, 3, 67, 90), dtype=torch.uint8)
    said = teacher(images)
    assert [tuple(x.shape[2:]) for x in said.memory] == [(9, 12), (5, 6), (3, 3)]
    whole = clock.network("ecdet-p", seed=1)[0].eval()
    with torch.no_grad():
        padded = whole(nn.functional.pad(teacher.spec.normalise(images), (0, 6, 0, 29)))
    for one, other in zip(said.memory, padded.memory, strict=True):
        torch.testing.assert_close(one, other[:, :, : one.shape[2], : one.shape[3]])
    method = clock.clock("dino-r18", "ecdet-p", tcld=False)
    batch = replace(clock.batch((2, 0)), images=images, valid=torch.ones(2, 67, 90, dtype=torch.bool))
    losses = step_of("dino-r18", [method])(batch)
    assert torch.isfinite(losses["clock_memory"]) and float(losses["clock_memory"].detach()) > 0


@pytest.mark.parametrize("mask", ["location", "none"])
def test_padding_of_pictures_is_no_memory(mask: str) -> None:
    method = clock.clock("dino-r18", "dino-r18", tcld=False, mask=mask)
    batch = clock.batch((1, 2), valid=True)
    torch.manual_seed(0)
    own, given = ([torch.rand(2, 32, side, side) for side in (8, 4, 2, 1)] for _ in range(2))
    before = float(method.remembered(own, given, batch))
    for level in own[:2]:
        level[1, :, :, level.shape[3] * 5 // 8 + 1 :] = 70
    assert float(method.remembered(own, given, batch)) == pytest.approx(before, rel=1e-6)
    assert float(method.remembered(own, given, replace(batch, valid=None))) > 2 * before


# every method


def method_of(name: str, who: str = "ecdet-n", pupil: str = "ecdet-p", **given: Any) -> Distiller:
    """Through the table of methods, as a run makes it."""
    kind, make = methods.METHODS[name]
    options = kind(teacher="ecvit-p" if name == "dsi" else who, teacher_weights="none", **given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(options, clock.student(pupil), 0)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_teaches_the_student_alone(name: str) -> None:
    """T15: after three steps the teacher and what questions are made of are what they were, the student is not, and
    has nothing of the method."""
    method: Any = method_of(name)
    step = step_of("ecdet-p", [method])
    frozen = {key: value.clone() for key, value in method.teacher.network.state_dict().items()}
    table = None if getattr(method, "targets", None) is None else method.targets.table.clone()
    before = {key: value.clone() for key, value in step.network.state_dict().items()}
    optimizer = optim.adamw(step.network, small.plan(), step.distillers)
    for i in range(3):
        losses = step(clock.batch((2, 0), seed=i))
        own = {key: loss for key, loss in losses.items() if key.startswith(name)}
        assert own and all(torch.isfinite(loss) for loss in own.values())
        optimizer.zero_grad()
        summed(own).backward()  # type: ignore[no-untyped-call]
        backbone = [p.grad for p in step.network.backbone.parameters() if p.requires_grad]
        assert any(grad is not None and float(grad.abs().sum()) > 0 for grad in backbone)
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
        optimizer.step()
    assert_same(frozen, dict(method.teacher.network.state_dict()))
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.network.parameters())
    if name == "clock":
        assert table is not None and torch.equal(table, method.targets.table)
    assert not [key for key in step.state_dict() if "teacher" in key]
    after = step.network.state_dict()
    assert after.keys() == hub.create("ecdet-p", clock.LABELS, queries=20)[0].state_dict().keys()
    assert sum(not torch.equal(before[key], value) for key, value in after.items()) > 20


def test_summed_positions_are_not_trained() -> None:
    method = clock.clock("ecdet-p", "ecdet-n", mode="summed")
    step = step_of("ecdet-p", [method])
    before = {key: value.clone() for key, value in method.targets.state_dict().items()}  # type: ignore[union-attr]
    assert any(key.startswith("place.") for key in before)
    optimizer = optim.adamw(step.network, small.plan(), step.distillers)
    optimizer.zero_grad()
    summed(step(clock.batch((2, 1)))).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert_same(before, dict(method.targets.state_dict()))  # type: ignore[union-attr]


@pytest.mark.parametrize("name, model", [
    *(("clock", model) for model in ("ecdet-p", "dino-r18", "dab-detr-r18", "deformable-detr-r18")),
    *((name, "ecdet-p") for name in ("kd-detr", "fitnet", "fgd")),
])  # fmt: skip
def test_a_student_like_its_teacher_has_nothing_to_learn(name: str, model: str) -> None:
    """T9. (MGD makes the teacher's map of a part of the student's, DSI compares with another kind of network.)"""
    who, batch = clock.teacher(model, seed=0), clock.batch((2, 1), valid=model != "ecdet-p")
    if name in ("clock", "kd-detr"):
        method: Any = clock.clock(model, who, kind=KDDETR if name == "kd-detr" else Clock)
    else:
        kind, _ = methods.METHODS[name]
        make: Any = {"fitnet": FitNet, "fgd": FGD}[name]
        method = make(kind(), who, clock.student(model))
    with torch.no_grad():
        asked = method.probes(batch)
        same = clock.teacher(model, seed=0).answers(batch.images, asked, batch.valid)
        other = clock.teacher(model, seed=5).answers(batch.images, asked, batch.valid)
        if model == "ecdet-p" and isinstance(method, Clock):
            # its own queries are of the tokens that were chosen, a student's of those at the boxes that came of them
            assert method.said is not None
            method.said.layers = same.groups[0].layers
        said = getattr(method, "said", None)
        alike = {key: float(x) for key, x in method(same, batch).items()}
        if said is not None:
            method.said = said
        apart = {key: float(x) for key, x in method(other, batch).items()}
    assert alike and all(value < 2e-5 for value in alike.values()), alike
    assert sum(apart.values()) > 1e-2 or name == "fgd"
    assert all(apart[key] > alike[key] for key in apart)


def test_kd_detr_is_clock_without_memory_and_objects() -> None:
    batch = clock.batch((2, 1))
    found = losses_of("ecdet-p", clock.clock("ecdet-p", "ecdet-n", kind=KDDETR), batch)
    same = losses_of("ecdet-p", clock.clock("ecdet-p", "ecdet-n", lcmd=False, target=False), batch)
    assert {key.removeprefix("kd-detr_"): value for key, value in found.items()} == {
        key.removeprefix("clock_"): value for key, value in same.items()
    }
    method: Any = method_of("kd-detr")
    assert isinstance(method, KDDETR) and method.targets is None and method.columns == ()
    assert method.report()[0].startswith("KD-DETR: answers to specific, 300 general questions follow ecdet-n")
    assert "(KD-DETR)" in method.licence()


# who can teach whom


@pytest.mark.parametrize("pupil, who, message", [
    ("dino-r18", "ecdet-p", "made of its memory"),
    ("dab-detr-r18", "rtdetrv4-p", "made of its memory"),
    ("deformable-detr-r18", "dino-r18", "taught by its own kind only"),
    ("ecdet-p", "ecpose-p", "answers are compared box by box"),
    ("ecpose-p", "ecdet-p", "ecpose-p: answers are compared box by box"),
])  # fmt: skip
def test_pairs_that_cannot_talk(pupil: str, who: str, message: str) -> None:
    """Refused before anything runs; memories can be compared all the same."""
    teacher = clock.teacher(who, labels=small.LABELS)
    with pytest.raises(ValueError, match=message):
        clock.clock(pupil, teacher)
    method = clock.clock(pupil, teacher, tcld=False)
    assert method.probes(clock.batch((1, 1))) == [] and method.said is not None


def test_classes_must_agree_only_where_answers_are_compared() -> None:
    others = clock.teacher("ecdet-n", labels=Labels(("one", "three", "two")))
    with pytest.raises(ValueError, match="class 1 is 'three' there and 'two' here"):
        clock.clock("ecdet-p", others)
    clock.clock("ecdet-p", others, tcld=False)


def test_masks_can_be_taught_by_boxes() -> None:
    method = clock.clock("ecinsseg-p", "ecdet-p")
    found = method(eval_answers("ecinsseg-p", method, clock.batch((1, 1))), clock.batch((1, 1)))
    assert set(found) == {"clock_memory", "clock_classes", "clock_l1", "clock_giou"}


def test_names_of_networks_as_teachers() -> None:
    """A control with random weights takes the student's classes."""
    method: Any = method_of("clock", who="dino-r18")
    assert method.teacher.labels == clock.LABELS and method.general == 900
    assert method.teacher.levels()["memory"] == [Level(256, stride) for stride in (8, 16, 32, 64)]
    assert method.alpha == pytest.approx(5e-5 * 4 / 3) and teachers.detector("dino-r18", "none").labels != clock.LABELS


# kinds of runs


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    plan = small.plan(2, 2)

    def started(folder: Path, seed: int = 0, done: int = 0) -> Any:
        method = clock.clock("ecdet-p", "ecdet-n", seed=seed, mode="summed", jitter=0.2)
        method.seed = 0
        return small.training(folder, plan, seed, done=done, distillers=[method])

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
    beside = one["beside"]
    assert int(beside["0.seen"]) == 4 and {"0.targets.table", "0.query_project.weight", "0.adapter.bias"} <= set(beside)
    rows = [read_rows(tmp_path / folder / "results.csv") for folder in ("straight", "broken")]
    for column in ("clock", "clock/objects", "clock/rest"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]] and float(rows[0][0][column]) > 0


def test_questions_are_drawn_anew_and_by_the_seed() -> None:
    batch = clock.batch((1, 0))

    def drawn(seed: int) -> list[Tensor]:
        method = clock.clock("ecdet-p", "ecdet-n", seed=seed)
        return [method.probes(batch)[1].boxes for _ in range(2)]

    state = torch.get_rng_state()
    one, again, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(torch.get_rng_state(), state), "the noise of the denoising stays what it is"
    assert torch.equal(torch.stack(one), torch.stack(again))
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])


def test_accumulated_steps(tmp_path: Path) -> None:
    """Memory: two parts are one large batch. Answers are weighed within each part; every part draws its questions."""
    parts = [small.batch((1, 2), 1), small.batch((2, 1), 2)]
    found = []
    for batches in ([parts], [[small.joined(parts)]]):
        method = clock.clock("ecdet-p", "ecdet-n", tcld=False)
        found.append(weights_after(batches, tmp_path, distillers=[method], **SIMPLE))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
    method = clock.clock("ecdet-p", "ecdet-n")
    step, state, _ = small.training(tmp_path / "all", small.plan(1, 1, accumulate=2), distillers=[method])
    _, taken = Update(step, state)(gradients(step, parts, state), parts)
    assert taken and int(method.seen) == 2


def _in_two(rank: int, folder: Path) -> dict[str, Any]:
    method = clock.clock("ecdet-p", "ecdet-n", general=0)
    batches = [[batch] for batch in SHARES[rank]]
    weights = weights_after(batches, folder / str(rank), distillers=[method], **SIMPLE)
    everything = clock.clock("ecdet-p", "ecdet-n", specific=False, jitter=0.3)
    more = weights_after(batches, folder / f"more{rank}", distillers=[everything])
    return {"simple": weights | {f"beside.{k}": v for k, v in method.state_dict().items()}, "everything": more}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The sum of the weights is that of all processes, one of which has a batch without objects."""
    first, second = together(_in_two, tmp_path)
    for case in ("simple", "everything"):
        ones, others = ({k: v for k, v in found[case].items() if "sums" not in k} for found in (first, second))
        assert_same(ones, others)
    method = clock.clock("ecdet-p", "ecdet-n", general=0)
    joined = [[small.joined(pair)] for pair in zip(*SHARES, strict=True)]
    alone = weights_after(joined, tmp_path, distillers=[method], **SIMPLE)
    alone |= {f"beside.{k}": v for k, v in method.state_dict().items() if k != "sums"}
    largest = max(float((first["simple"][name] - value).abs().max()) for name, value in alone.items())
    print(f"largest difference {largest:.1e}")
    assert largest <= 1e-5


def test_half_precision() -> None:
    method = clock.clock("ecdet-p", "dino-r18")
    batch = clock.batch((2, 0))
    whole = step_of("ecdet-p", [method])(batch)
    method = clock.clock("ecdet-p", "dino-r18")
    network, info = clock.network("ecdet-p")
    method.prepare(torch.device("cpu"), torch.bfloat16)
    step = SupervisedStep(network, DETECT, info.labels, info.input, precision="bf16", budget=10, distillers=[method])
    for name, value in step(batch).items():
        if name.startswith("clock"):
            assert value.dtype == torch.float32
            assert float(value.detach()) == pytest.approx(float(whole[name].detach()), rel=0.15), name


def test_training_of_ecdet_by_dino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the public function: the probe speaks, the questions are fitted, and the model has nothing of it."""
    data = scenes.write(tmp_path / "data", train=4, val=2, size=96)
    teacher, info = clock.network("dino-r18", labels=formats.load(str(data), "train").labels)
    file = hub.save(teacher, replace(info, licence="ask the owner"), tmp_path / "dino.safetensors")
    trained = edgecrafter.train(
        model="ecdet-p", data=str(data), epochs=1, batch=2, imgsz=64, weights="none", device="cpu", workers=0,
        queries=20, project=str(tmp_path / "runs"), distill=["clock", f"teacher={file}", "fit_steps=3"],
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "target questions: fitted in 3 steps, loss" in said and "objects in 4 pictures rightly, mean IoU" in said
    assert "CLoCKDistill: memory (alpha 0.000533" in said
    (row,) = read_rows(trained.folder / "results.csv")
    assert float(row["clock"]) > 0 and float(row["clock/objects"]) > 0 and row["step"] == "2"
    beside = read(trained.folder / WEIGHTS / LAST)["beside"]
    assert int(beside["0.seen"]) == 2
    assert not torch.equal(beside["0.targets.table"], teacher.decoder.groups.table.weight[:-1])  # type: ignore[union-attr]
    loaded = edgecrafter.load(trained.best, "cpu")
    assert "taught by dino-r18 of dino.safetensors (CLoCKDistill): ask the owner" in loaded.info.licence
    plain = hub.create("ecdet-p", loaded.info.labels, queries=20)[0]
    assert loaded.network.state_dict().keys() == plain.state_dict().keys()
