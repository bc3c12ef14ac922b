"""What CLoCKDistill asks teacher and student, who can be asked by whom, and the probe of a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_clock as clock
import torch

from edgecrafter import ablate, hub
from edgecrafter.ablate_config import AblateConfig
from edgecrafter.distill import probe, questions, targets
from edgecrafter.distill.clock_options import ClockOptions, KDDETROptions
from edgecrafter.distill.questions import Ways
from edgecrafter.distill.targets import Positions, Targets
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.train import methods
from edgecrafter.types import Batch, QueryGroup, Target

# options


@pytest.mark.parametrize(
    "given, message",
    [
        (["clock", "mask=boxes"], "mask=boxes: choose one of location, none"),
        (["clock", "mode=sum"], "mode=sum: choose one of native, summed"),
        (["clock", "classes=focal"], "classes=focal: choose one of softmax, sigmoid"),
        (["clock", "stage=last"], "stage=last: choose one of same, final"),
        (["clock", "alpha=-1"], "alpha=-1: expected a number of at least 0"),
        (["clock", "temperature=0"], "temperature=0: expected a number above 0"),
        (["clock", "jitter=2"], "jitter=2: expected a number between 0 and 1"),
        (["clock", "copies=0"], "copies=0: expected 1 or more; target=false leaves the objects out"),
        (["clock", "general=2.5"], "general=2.5: expected a whole number"),
        (["clock", "lcmd=false", "tcld=false"], "nothing is left to learn"),
        (["clock", "target=false", "specific=false", "general=0"], "no questions: give target, specific or general"),
        (["kd-detr", "target=true"], "unknown option 'target'"),
        (["kd-detr", "temperature=-1"], "temperature=-1: expected a number above 0"),
    ],
)
def test_options_that_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        methods.parsed(given)
    assert message in str(error.value)


def test_kd_detr_is_clock_without_memory_and_objects() -> None:
    assert KDDETROptions(temperature=4, cls=2).as_clock() == ClockOptions(
        temperature=4, cls=2, lcmd=False, target=False
    )


@pytest.mark.parametrize("student, theirs, message", [
    ("memory", "memory", ""), ("memory", "learned", ""), ("memory", "placed", ""), ("empty", "placed", ""),
    ("placed", "placed", ""), ("learned", "empty", ""),
    ("learned", "memory", "made of its memory"), ("empty", "memory", "made of its memory"),
    ("placed", "learned", "taught by its own kind only"), ("placed", "memory", "taught by its own kind only"),
])  # fmt: skip
def test_who_can_be_asked_by_whom(student: str, theirs: str, message: str) -> None:
    if not message:
        questions.check(Ways(theirs, 8), Ways(student, 8))
        return
    with pytest.raises(ValueError, match=message) as error:
        questions.check(Ways(theirs, 8), Ways(student, 8))
    assert "tcld=false" in str(error.value)


# questions


def test_questions_of_a_batch() -> None:
    batch = Batch(
        torch.zeros(3, 3, 64, 64),
        [clock.target([1, 2], 0), clock.target([], 1), clock.target([0], 2)],
    )
    labels, boxes, real = targets.collected(batch, torch.Generator())
    assert real.tolist() == [[True, True], [False, False], [True, False]]
    assert labels[real].tolist() == [1, 2, 0]
    torch.testing.assert_close(boxes[real], torch.cat([t.boxes for t in batch.targets]))
    empty = Batch(torch.zeros(2, 3, 8, 8), [clock.target([], 0)] * 2)
    assert [x.shape for x in targets.collected(empty, torch.Generator())] == [(2, 0), (2, 0, 4), (2, 0)]


def test_at_most_so_many_objects_are_asked_for() -> None:
    many = Target(torch.arange(1000), torch.rand(1000, 4))
    batch = Batch(torch.zeros(1, 3, 8, 8), [many])
    labels, boxes, real = targets.collected(batch, torch.Generator().manual_seed(0))
    assert real.all() and len(set(labels[0].tolist())) == targets.MOST == labels.shape[1]
    assert labels[0].max() > targets.MOST, "a random choice"
    assert torch.equal(boxes[0], many.boxes[labels[0]])


@pytest.mark.parametrize("name", clock.FAMILIES)
@pytest.mark.parametrize("mode", targets.MODES)
def test_what_the_teacher_is_asked(name: str, mode: str) -> None:
    """Contents by class and place, references at the boxes; padding is empty and in the middle."""
    decoder: Any = clock.teacher(name).network.decoder
    made = Targets(decoder, 3, mode, 0)
    labels, real = torch.tensor([[0, 2], [0, 0]]), torch.tensor([[True, True], [True, False]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.3, 0.1, 0.1]]] * 2)
    group = made(decoder, labels, boxes, real)
    assert group.valid is real and not group.sees_own and not group.content.requires_grad  # type: ignore[union-attr]
    torch.testing.assert_close(group.boxes[real], boxes[real])
    assert group.boxes[1, 1].tolist() == [0.5] * 4 and float(group.content[1, 1].abs().max()) == 0  # type: ignore[index]
    if hasattr(decoder, "groups"):
        torch.testing.assert_close(made.table, decoder.groups.table.weight[:3])
    else:
        assert float(made.table.std()) == pytest.approx(0.02, rel=0.3)
    content = group.content[0] - made.table[labels[0]]  # type: ignore[index]
    ways = questions.ways_of(decoder)
    if ways.contents == "placed" and mode == "native":
        _, own = decoder.queries.weight.chunk(2, dim=-1)
        assert {int((own - row).abs().sum(-1).argmin()) for row in content} == {
            int((decoder.point(decoder.queries.weight.chunk(2, -1)[0]).sigmoid() - box[:2]).norm(dim=-1).argmin())
            for box in boxes[0]
        }
    elif mode == "native" or ways.contents == "placed":
        assert float(content.detach().abs().max()) < 1e-6
    else:
        torch.testing.assert_close(content, made.place(boxes[0]), atol=1e-6, rtol=1e-5)  # type: ignore[misc]
    assert (group.position is not None) is (ways.contents == "placed")
    assert not any(part.requires_grad for part in made.parameters())
    assert {"table", *(f"place.{key}" for key in (made.place.state_dict() if made.place else ()))} == set(
        made.state_dict()
    )


def test_random_positions_have_their_size() -> None:
    decoder: Any = clock.teacher("deformable-detr-r18").network.decoder
    place = Positions(decoder, 32, torch.Generator().manual_seed(0))
    assert float(place(torch.rand(500, 4)).square().mean().sqrt()) == pytest.approx(0.1, rel=0.05)


def test_positions_are_the_teachers_own() -> None:
    """Where it makes them of boxes; a copy."""
    for name in ("ecdet-p", "dino-r18", "dab-detr-r18"):
        decoder: Any = clock.teacher(name).network.decoder
        place = Positions(decoder, questions.ways_of(decoder).width, torch.Generator())
        for key, value in place.mlp.state_dict().items():
            assert torch.equal(value, decoder.position.state_dict()[key])
        assert place.mlp is not decoder.position


def test_jittered_copies() -> None:
    decoder: Any = clock.teacher("dino-r18").network.decoder
    made, batch = Targets(decoder, 3, "native", 0), clock.batch((2, 0))
    (exact, weight), *noisy = made.copies(decoder, batch, 3, 0.4, torch.Generator().manual_seed(0))
    assert torch.equal(exact.boxes[0], batch.targets[0].boxes) and len(noisy) == 2
    assert weight.tolist() == noisy[0][1].tolist() == [[1, 1], [0, 0]]
    for group, _ in noisy:
        moved = (group.boxes[0] - exact.boxes[0]).abs()
        sides = exact.boxes[0, :, 2:].repeat(1, 2)
        assert (moved > 0).any() and (moved <= 0.4 * sides + 1e-6).all()
    assert not torch.equal(noisy[0][0].boxes, noisy[1][0].boxes)
    ((_, heavy),) = made.copies(decoder, batch, 3, 0.0, torch.Generator())
    assert heavy.tolist() == [[3, 3], [0, 0]]


def test_general_questions() -> None:
    """Drawn by the generator alone; contents of DINO are its own in random order."""
    for name in clock.FAMILIES:
        decoder: Any = clock.teacher(name).network.decoder
        one, other, third = (
            questions.general(decoder, 2, 20, torch.Generator().manual_seed(seed), torch.device("cpu"))
            for seed in (1, 1, 2)
        )
        assert torch.equal(one.boxes, other.boxes) and not torch.equal(one.boxes, third.boxes)
        assert one.boxes.shape == (2, 20, 4) and one.boxes.min() > 0 and one.boxes.max() < 1
        ways = questions.ways_of(decoder)
        if ways.contents == "memory":
            assert one.from_memory
        elif ways.contents == "empty":
            assert one.content is not None and not one.content.any()
        elif ways.contents == "learned":
            assert one.content is not None
            order = [
                [int((decoder.queries.weight - row).abs().sum(-1).argmin()) for row in each] for each in one.content
            ]
            assert [sorted(each) for each in order] == [list(range(20))] * 2 and order[0] != order[1]


@pytest.mark.parametrize("name", ["ecdet-p", "dino-r18", "dab-detr-r18", "deformable-detr-r18"])
def test_specific_questions_are_the_teachers_own(name: str) -> None:
    """Asked from outside, a network with learned queries answers as it does by itself. (Those of others are of the
    memory at their boxes, not of the token they were chosen by.)"""
    teacher, images = clock.teacher(name), clock.batch((1, 1)).images
    said = teacher(images)
    own = questions.specific(teacher.network.get_submodule("decoder"), said)
    assert own.boxes.shape == said.layers[-1].boxes.shape  # type: ignore[union-attr]
    if name == "ecdet-p":
        assert own.from_memory and torch.equal(own.boxes, said.encoder.boxes)  # type: ignore[union-attr,arg-type]
        return
    (again,) = teacher(images, [own]).groups
    for one, other in zip(said.layers, again.layers, strict=True):
        torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-5, rtol=1e-4)


def test_segments_equal_a_mask() -> None:
    """T11: attention inside every segment alone is attention under the mask of all."""
    from edgecrafter.models.detr.dab import ConditionalSelfAttention
    from edgecrafter.models.queries import allowed_pairs

    torch.manual_seed(0)
    sizes, own = (3, 5, 2), 4
    groups = [questions.asked(torch.rand(2, size, 4)) for size in sizes]
    allowed = allowed_pairs(groups, own, torch.device("cpu"))
    x, position = torch.randn(2, sum(sizes) + own, 16), torch.randn(2, sum(sizes) + own, 16)
    cuts = [*sizes, own]
    naive = torch.block_diag(*(torch.ones(n, n) for n in cuts)).bool()  # type: ignore[no-untyped-call]
    assert allowed is not None and torch.equal(allowed, naive)
    for attention in (PositionedAttention(16, 4), ConditionalSelfAttention(16, 4)):
        torch.nn.init.normal_(getattr(attention, "in_proj_weight", torch.empty(1)))
        whole = attention(x, position, allowed)
        parts = [attention(a, b, None) for a, b in zip(*(torch.split(t, cuts, 1) for t in (x, position)), strict=True)]
        torch.testing.assert_close(whole, torch.cat(parts, 1), atol=1e-5, rtol=1e-5)


def perturbed(group: QueryGroup) -> QueryGroup:
    from dataclasses import replace

    return replace(group, boxes=group.boxes * 0.7, content=None if group.content is None else group.content + 3)


@pytest.mark.parametrize("name", clock.FAMILIES)
def test_groups_and_padding_are_isolated(name: str) -> None:
    """T11 and 2.3: one call with all groups is a call for each; what padding holds changes nothing."""
    teacher, batch = clock.teacher(name), clock.batch((2, 0))
    decoder: Any = teacher.network.decoder
    rng = torch.Generator().manual_seed(0)
    ((target, _),) = Targets(decoder, 3, "native", 0).copies(decoder, batch, 3, 0.0, rng)
    groups = [
        questions.specific(decoder, teacher(batch.images)),
        questions.general(decoder, 2, 11, rng, torch.device("cpu")),
        target,
    ]
    said, plain_ = teacher(batch.images, groups), teacher(batch.images)
    apart = [teacher(batch.images, [group]).groups[0] for group in groups]
    for found, alone in zip([said, *said.groups], [plain_, *apart], strict=True):
        for one, other in zip(found.layers, alone.layers, strict=True):
            torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(one.boxes, other.boxes, atol=1e-5, rtol=1e-4)
    changed = teacher(batch.images, [*groups[:2], perturbed(target)])
    for found, alone in zip([said, *said.groups[:2]], [changed, *changed.groups[:2]], strict=True):
        torch.testing.assert_close(found.layers[-1].logits, alone.layers[-1].logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(said.groups[2].layers[-1].logits[0], changed.groups[2].layers[-1].logits[0], atol=1e-3)
    # one object beside padding answers as if it were alone; garbage in the padding is seen by nobody
    labels, boxes = torch.tensor([[1, 0]] * 2), torch.tensor([[[0.4, 0.5, 0.3, 0.2], [0.5, 0.5, 0.9, 0.9]]] * 2)
    made, here = Targets(decoder, 3, "native", 0), torch.ones(2, 2, dtype=torch.bool)
    garbage = made(decoder, labels, boxes, here)
    garbage.valid = torch.tensor([[True, False]] * 2)
    alone = made(decoder, labels[:, :1], boxes[:, :1], here[:, :1])
    with_padding, without = (teacher(batch.images, [group]).groups[0].layers[-1] for group in (garbage, alone))
    torch.testing.assert_close(with_padding.logits[:, :1], without.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(with_padding.boxes[:, :1], without.boxes, atol=1e-5, rtol=1e-4)


# the probe


def test_probe_by_hand() -> None:
    """Two of three objects are named, boxes are half as wide as they should be."""
    batch = clock.batch((2, 1))
    fake = clock.Fake(named=2)
    found = probe.probe(fake, fake.targets, [batch])  # type: ignore[arg-type]
    assert found.accuracy == pytest.approx(2 / 3) and found.iou == pytest.approx(0.5, abs=1e-5)
    assert (found.objects, found.pictures) == (3, 2)
    assert "66.7 % of 3 objects in 2 pictures rightly, mean IoU 0.50: weak" in str(found)
    assert "mode=summed or fit_steps=500" in str(found)
    good = probe.Found(0.95, 0.8, 100, 50)
    assert str(good).endswith("95.0 % of 100 objects in 50 pictures rightly, mean IoU 0.80: usable")
    assert str(probe.Found(0.95, 0.75, 100, 50)).count("weak") == 1
    none = probe.probe(fake, fake.targets, [clock.batch((0, 0))])  # type: ignore[arg-type]
    assert str(none) == "target questions: no objects in 2 pictures"


def test_a_probe_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = clock.Fake(named=9)
    endless = iter(lambda: clock.batch((1, 1)), None)
    assert probe.probe(fake, fake.targets, endless).pictures == probe.PICTURES == 200  # type: ignore[arg-type]
    monkeypatch.setattr(probe, "SECONDS", 0.0)
    assert probe.probe(fake, fake.targets, endless).pictures == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", targets.MODES)
@pytest.mark.parametrize("name", ["ecdet-p", "dino-r18", "deformable-detr-r18"])
def test_questions_are_fitted_to_the_teacher(name: str, mode: str) -> None:
    teacher, batch = clock.teacher(name), clock.batch((2, 1))
    made = Targets(teacher.network.decoder, 3, mode, 0)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    frozen = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    losses = probe.fit(teacher, made, [clock.batch((0, 0)), batch], 12)
    assert len(losses) == 12 and losses[-1] < losses[0] - 1e-3
    assert all(not torch.equal(before[key], value) for key, value in made.state_dict().items() if "bias" not in key)
    assert not made.table.requires_grad and not any(p.requires_grad for p in made.parameters())
    assert all(torch.equal(frozen[key], value) for key, value in teacher.network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.network.parameters())


def test_nothing_to_fit_to() -> None:
    teacher = clock.teacher("ecdet-p")
    made = Targets(teacher.network.decoder, 3, "native", 0)
    with pytest.raises(ValueError, match="no objects in the training pictures"):
        probe.fit(teacher, made, [clock.batch((0, 0))], 3)


# experiments


def test_the_grid_of_the_papers_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm is a training that can be begun, and the methods are those of the tables."""
    path = Path(__file__).parents[1] / "experiments" / "clock_tables.yaml"
    config = AblateConfig(grid=str(path), folder=str(tmp_path))
    monkeypatch.setattr(ablate, "_cell", lambda *_: pytest.fail("a training began"))
    assert ablate.ablate(replace(config, dry=True)) == {}
    shared, arms = ablate._with_file(config)
    found = {arm.name: ablate._configs(shared, arm, 0, tmp_path)[1] for arm in ablate._arms(shared, arms)}
    kinds = {name: [method for method, _ in methods.parsed(each.distill)] for name, each in found.items()}
    assert kinds["full"] == ["clock"] and kinds["student alone"] == [] and kinds["KD-DETR"] == ["kd-detr"]
    options = dict(methods.parsed(found["memory by place"].distill))["clock"]
    assert options.lcmd and not options.tcld and options.mask == "location"
    assert {each.epochs for name, each in found.items() if "36" not in name} == {12}
    layers = {(each.enc_layers, each.det_layers) for each in found.values()}
    assert layers == {(None, None), (3, None), (None, 3), (3, 3)}
    row = hub.described("dino-r18", clock.LABELS, enc_layers=3).size
    assert (row.enc_layers, row.det_layers) == (3, 6)
    with pytest.raises(ValueError, match="enc_layers=3: only dab-detr, deformable-detr and dino"):
        hub.described("ecdet-p", clock.LABELS, enc_layers=3)
