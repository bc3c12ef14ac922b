"""CLoCKDistill's arithmetic: memory (L1 to L12) and answers (T1 to T10, T13) with numbers by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from edgecrafter.distill import memory
from edgecrafter.distill.clock import _weights
from edgecrafter.distill.clock_options import ClockOptions
from edgecrafter.distill.logits import compare, confidence, divergence, joined, stages
from edgecrafter.distill.memory import ALPHA, BETA, fitted, paired, plain, regions
from edgecrafter.types import LayerOutput

Boxes = list[tuple[float, float, float, float]]
MIDDLE: Boxes = [(0.25, 0.25, 0.75, 0.75)]


def of(boxes: list[Boxes]) -> tuple[Tensor, Tensor]:
    """Boxes of every image, padded, and which are there."""
    most = max(len(each) for each in boxes)
    padded = torch.tensor([[*each, *[(0.0, 0.0, 1.0, 1.0)] * (most - len(each))] for each in boxes])
    there = torch.tensor([[i < len(each) for i in range(most)] for each in boxes], dtype=torch.bool)
    return padded.view(len(boxes), most, 4), there.view(len(boxes), most)


def sums(boxes: list[Boxes], sides: tuple[int, ...] = (4,), width: int = 1, real: Tensor | None = None) -> Any:
    """Of objects and the rest, before alpha and beta, where memories differ by 1 everywhere."""
    teachers = [torch.ones(len(boxes), width, side, side) for side in sides]
    found = [regions(*of(boxes), (side, side), real) for side in sides]
    return tuple(float(x) for x in memory.located([0 * t for t in teachers], teachers, found))


def weighted(pair: tuple[float, float]) -> float:
    return ALPHA * pair[0] + BETA * pair[1]


# memory


def test_l1_one_box() -> None:
    found = regions(*of([MIDDLE]), (4, 4))
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = 1 / 4
    torch.testing.assert_close(found.objects[0], expected)
    torch.testing.assert_close(found.rest[0], torch.where(expected > 0, 0.0, 1 / 12))
    assert sums([MIDDLE]) == pytest.approx((1, 1))
    assert weighted(sums([MIDDLE])) == pytest.approx(5.01e-5)
    assert weighted(sums([MIDDLE], width=2)) == pytest.approx(1.002e-4)


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((0.3, 0.3, 0.6, 0.6), (1, 3), (1, 3)),  # L2
        ((0.25, 0.25, 0.7500001, 0.7500001), (1, 3), (1, 3)),  # L3
        ((0.5, 0.5, 0.51, 0.51), (2, 3), (2, 3)),  # L4
        ((0.5, 0.5, 0.5, 0.5), (2, 3), (2, 3)),
        ((1.0, 1.0, 1.0, 1.0), (3, 4), (3, 4)),
        ((-0.2, 0.0, 0.1, 1.3), (0, 4), (0, 1)),  # reaches out of the picture
    ],
)
def test_l2_to_l4_cells_of_a_box(box: Any, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    found = regions(*of([[box]]), (4, 4)).objects[0]
    expected = torch.zeros(4, 4)
    expected[slice(*rows), slice(*columns)] = 1 / ((rows[1] - rows[0]) * (columns[1] - columns[0]))
    torch.testing.assert_close(found, expected)


def test_l5_to_l10_by_hand() -> None:
    whole: Boxes = [(0, 0, 1, 1), (0, 0, 0.5, 0.5)]
    found = regions(*of([whole]), (4, 4))
    assert found.objects[0, :2, :2].flatten().tolist() == [0.25] * 4
    assert sorted(found.objects[0].flatten().tolist()) == [1 / 16] * 12 + [0.25] * 4
    assert sums([whole]) == pytest.approx((1.75, 0)), "L5"
    assert sums([MIDDLE], (4, 2)) == pytest.approx((2, 1)), "L6"
    assert sums([[]]) == pytest.approx((0, 1)), "L8"
    assert sums([[(0, 0, 0.5, 0.5), (0.25, 0.25, 1, 1)]]) == pytest.approx((1.888889, 1), abs=1e-6), "L9"
    assert weighted(sums([whole, []])) == pytest.approx(4.380e-5), "L10"


def test_l7_padding() -> None:
    real = torch.ones(1, 4, 4, dtype=torch.bool)
    real[..., 3] = False
    found = regions(*of([MIDDLE]), (4, 4), real)
    assert sorted(found.rest.flatten().tolist()) == [0.0] * 8 + [1 / 8] * 8
    assert float(found.rest[..., 3].sum() + found.objects[..., 3].sum()) == 0
    assert sums([MIDDLE], real=real) == pytest.approx((1, 1))


def test_l11_gradients() -> None:
    torch.manual_seed(0)
    adapter = torch.nn.Linear(3, 2)
    own, other = torch.rand(1, 3, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4)
    found = [regions(*of([MIDDLE]), (4, 4))]
    objects, rest = memory.located([adapter(own.movedim(1, -1)).movedim(-1, 1)], [other], found)
    torch.autograd.backward(ALPHA * objects + BETA * rest)
    assert own.grad is not None and (own.grad.abs().sum(1) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert other.grad is None
    assert [float(x) for x in memory.located([other], [other], found)] == [0, 0]


def naive(boxes: list[Boxes], teacher: Tensor, student: Tensor) -> tuple[float, float]:
    """Three loops over images, tokens and boxes."""
    objects = rest = 0.0
    B, _, H, W = teacher.shape
    for b in range(B):
        areas: dict[tuple[int, int], int] = {}
        for row in range(H):
            for column in range(W):
                for x1, y1, x2, y2 in boxes[b]:
                    left, right = math.floor(x1 * W + 1e-4), math.ceil(x2 * W - 1e-4)
                    top, bottom = math.floor(y1 * H + 1e-4), math.ceil(y2 * H - 1e-4)
                    left, top = min(max(left, 0), W - 1), min(max(top, 0), H - 1)
                    right, bottom = min(max(right, left + 1), W), min(max(bottom, top + 1), H)
                    if left <= column < right and top <= row < bottom:
                        area = (right - left) * (bottom - top)
                        areas[row, column] = min(area, areas.get((row, column), area))
        free = max(1, H * W - len(areas))
        for row in range(H):
            for column in range(W):
                square = float((teacher[b, :, row, column] - student[b, :, row, column]).square().sum())
                if (row, column) in areas:
                    objects += square / areas[row, column]
                else:
                    rest += square / free
    return objects / B, rest / B


@pytest.mark.parametrize("case", range(50))
def test_l12_naive_loops(case: int) -> None:
    chance = random.Random(case)
    boxes: list[Boxes] = []
    for _ in range(2):
        corners = [[sorted((chance.random(), chance.random())) for _ in "xy"] for _ in range(chance.randrange(8))]
        boxes.append([(x[0], y[0], x[1], y[1]) for x, y in corners])
    shape = chance.randrange(1, 9), chance.randrange(1, 9)
    torch.manual_seed(case)
    teacher, student = torch.rand(2, 3, *shape), torch.rand(2, 3, *shape)
    padded, there = of(boxes)
    found = memory.located([student], [teacher], [regions(padded, there, shape)])
    assert [float(x) for x in found] == pytest.approx(naive(boxes, teacher, student), rel=1e-5, abs=1e-6)
    order = torch.randperm(padded.shape[1])
    again = memory.located([student], [teacher], [regions(padded[:, order], there[:, order], shape)])
    assert [float(x) for x in again] == [float(x) for x in found]


def test_many_boxes_are_drawn_in_parts() -> None:
    torch.manual_seed(0)
    low = torch.rand(1, 3 * memory.CHUNK + 5, 2) * 0.8
    boxes = torch.cat([low, low + 0.02 + torch.rand_like(low) * 0.2], dim=-1)
    there = torch.ones(boxes.shape[:2], dtype=torch.bool)
    found = regions(boxes, there, (16, 16)).objects
    cut = (boxes[:, i : i + 7] for i in range(0, boxes.shape[1], 7))
    parts = [regions(part, there[:, : part.shape[1]], (16, 16)).objects for part in cut]
    assert torch.equal(found, torch.stack(parts).amax(0)), "the smallest box weighs most"


def test_levels_by_stride() -> None:
    assert paired((8, 16, 32), (8, 16, 32, 64)) == [0, 1, 2]
    assert paired((8, 16, 32, 64), (8, 16, 32)) == [0, 1, 2, 2]
    assert paired((32,), (8, 16, 32, 64)) == [2]
    assert paired((8, 16, 32), (32,)) == [0, 0, 0]
    assert paired((8, 16), (4, 16, 8)) == [2, 1], "never by number"


def test_a_students_map_on_the_teachers_grid() -> None:
    x, grid = torch.rand(1, 2, 7, 6), torch.rand(1, 2, 8, 6)
    assert fitted(x, grid).shape == grid.shape and fitted(x, x) is x
    torch.testing.assert_close(fitted(torch.full_like(x, 3.0), grid), torch.full_like(grid, 3.0))
    ramp = torch.arange(4.0).view(1, 1, 1, 4)
    torch.testing.assert_close(fitted(ramp, torch.zeros(1, 1, 1, 2)).flatten(), torch.tensor([0.5, 2.5]))


def test_memory_without_objects() -> None:
    """Table 1 and 5, "memory": the mean over channels and real tokens, summed over levels."""
    one, other = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)
    real = torch.ones(2, 4, 4, dtype=torch.bool)
    real[1, :, 2:] = False
    one[1, :, :, 2:] = 100
    assert float(plain([one, one[..., :2]], [other, other[..., :2]], [real, None])) == pytest.approx(8)


@pytest.mark.parametrize(
    "width, levels, alpha", [(256, 4, 5e-5), (256, 1, 5e-5), (32, 3, 1 / 1875), (256, 3, 1 / 15000), (64, 3, 1 / 3750)]
)
def test_weights_of_the_memory(width: int, levels: int, alpha: float) -> None:
    """The paper's for its own three detectors, in proportion for others."""
    assert _weights(ClockOptions(), width, levels) == pytest.approx((alpha, alpha / 500))
    assert _weights(ClockOptions(alpha=3, beta=0), width, levels) == (3, 0)


# answers


ROUNDED = 6e-6
"""the specification's numbers for T = 10 were made in float32, whose rounding is multiplied by 100; those that are told
apart here are of float64, and the printed ones are held against float32"""


def logits(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_t1_and_t2_divergence() -> None:
    teacher, student = logits(2, 0), logits(0, 0)
    assert float(divergence(teacher, student, 1)) == pytest.approx(0.327813, abs=1e-6)
    assert float(confidence(teacher)) == pytest.approx(0.880797, abs=1e-6)
    for temperature, expected in ((2, 0.443776), (4, 0.484798), (10, 0.497511)):
        assert float(divergence(teacher, student, temperature)) == pytest.approx(expected, abs=1e-6)
    assert float(divergence(teacher.float(), student.float(), 10)) == pytest.approx(0.497505, abs=ROUNDED)


def test_t3_limit_of_a_large_temperature() -> None:
    teacher, student = logits(3, -1, -1), logits(1, 0, -2)
    assert float(divergence(teacher, student, 1)) == pytest.approx(0.242362, abs=1e-6)
    assert float(divergence(teacher, student, 10)) == pytest.approx(0.794119, abs=1e-6)
    assert float(divergence(teacher.float(), student.float(), 10)) == pytest.approx(0.794118, abs=ROUNDED)
    difference = teacher - student
    centred = difference - difference.mean()
    assert float(centred.square().sum() / 6) == pytest.approx(0.777778, abs=1e-6)
    assert float(divergence(teacher, student, 100)) == pytest.approx(0.777778, abs=3e-3)


def test_t4_each_class_for_itself() -> None:
    assert float(divergence(logits(2, 0), logits(0, 0), 1, True)) == pytest.approx(0.327813, abs=1e-6)


def answer(scores: list[list[float]], boxes: list[list[float]]) -> LayerOutput:
    return LayerOutput(torch.tensor([scores]), torch.tensor([boxes]))


FIRST = answer([[2, 0]], [[0.5, 0.5, 0.2, 0.2]]), answer([[0, 0]], [[0.5, 0.5, 0.4, 0.4]])
SECOND = answer([[-1, -1]], [[0.2, 0.2, 0.2, 0.2]]), answer([[0, -1]], [[0.4, 0.2, 0.2, 0.2]])
"""teacher and student"""


def both(pairs: Any) -> tuple[LayerOutput, LayerOutput]:
    return tuple(  # type: ignore[return-value]
        LayerOutput(torch.cat([p[i].logits for p in pairs], 1), torch.cat([p[i].boxes for p in pairs], 1))
        for i in (0, 1)
    )


@pytest.mark.parametrize("pair, weight, l1, giou", [(FIRST, 0.880797, 0.1, 0.75), (SECOND, 0.268941, 0.05, 1.0)])
def test_t5_and_t6_boxes(pair: Any, weight: float, l1: float, giou: float) -> None:
    found = compare(pair[0], pair[1], torch.ones(1, 1), 1.0, False)
    assert float(found.weight) == pytest.approx(weight, abs=1e-6)
    assert float(found.l1 / found.weight) == pytest.approx(l1, abs=1e-6)
    assert float(found.giou / found.weight) == pytest.approx(giou, abs=1e-6)


@pytest.mark.parametrize(
    "temperature, second, classes, total", [(1, 0.120114, 0.279229, 2.337708), (10, 0.124949, 0.410359, 2.468838)]
)
def test_t7_two_questions(temperature: float, second: float, classes: float, total: float) -> None:
    found = compare(*both([FIRST, SECOND]), torch.ones(1, 2), temperature, False)
    assert float(divergence(SECOND[0].logits, SECOND[1].logits, temperature)) == pytest.approx(second, abs=1e-6)
    means = [float(value / found.weight) for value in found[:3]]
    assert means == pytest.approx([classes, 0.088304, 0.808479], abs=1e-6)
    assert sum(w * m for w, m in zip((1, 5, 2), means, strict=True)) == pytest.approx(total, abs=3e-6)
    # as two groups
    groups = joined([compare(*pair, torch.ones(1, 1), temperature, False) for pair in (FIRST, SECOND)])
    assert [float(x) for x in groups] == pytest.approx([float(x) for x in found])


def test_t8_a_shift_of_all_logits() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(7, 3), torch.randn(7, 3)
    for independent in (False, True):
        before, after = (divergence(teacher, x, 10, independent) for x in (student, student + 5))
        assert torch.allclose(before, after, atol=1e-4) is not independent


@pytest.mark.parametrize("independent", [False, True])
def test_t9_a_student_like_its_teacher(independent: bool) -> None:
    torch.manual_seed(0)
    teacher = LayerOutput(3 * torch.randn(2, 5, 4), torch.rand(2, 5, 4) * 0.5 + 0.2)
    student = LayerOutput(teacher.logits.clone().requires_grad_(), teacher.boxes.clone().requires_grad_())  # type: ignore[union-attr]
    found = compare(teacher, student, torch.ones(2, 5), 10, independent)
    assert all(abs(float(x.detach() / found.weight)) < 1e-7 for x in found[:3])
    torch.autograd.backward(found.classes)
    assert student.logits.grad is not None and float(student.logits.grad.abs().max()) < 1e-5


def test_t10_equal_copies_are_a_weight() -> None:
    other, target = FIRST, SECOND
    three = compare(*both([other, target, target, target]), torch.ones(1, 4), 10, False)
    one = joined([compare(*other, torch.ones(1, 1), 10, False), compare(*target, torch.full((1, 1), 3.0), 10, False)])
    assert [float(x) for x in one] == pytest.approx([float(x) for x in three], abs=1e-6)
    alone = [compare(*target, torch.full((1, 1), n), 10, False) for n in (1.0, 3.0)]
    assert [float(x / alone[0].weight) for x in alone[0]] == pytest.approx(
        [float(x / alone[1].weight) for x in alone[1]]
    )


def test_t13_stages() -> None:
    six, three = [FIRST[0]] * 6, [FIRST[1]] * 3
    assert stages(six, three) == stages(six, three, final=True) == [(5, 2)]
    assert stages(three, three) == [(0, 0), (1, 1), (2, 2)]
    assert stages(three, three, final=True) == [(2, 0), (2, 1), (2, 2)]


def test_padding_counts_nothing() -> None:
    found = compare(*both([FIRST, SECOND]), torch.tensor([[1.0, 0.0]]), 10, False)
    alone = compare(*FIRST, torch.ones(1, 1), 10, False)
    assert [float(x) for x in found] == [float(x) for x in alone]
