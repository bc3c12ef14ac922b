"""What the loop does besides learning: bad steps, large batches in parts, memory, stopping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_training as small
import torch
from torch import Tensor, nn

from edgecrafter.data.transforms import Augment
from edgecrafter.losses.set_loss import SetLoss
from edgecrafter.losses.truth import Uniform
from edgecrafter.train.log import read_rows, term_of
from edgecrafter.train.loop import BAD_STEPS, fit, gradients, probe
from edgecrafter.train.state import new_folder
from edgecrafter.train.steps import SupervisedStep, worst_batch
from edgecrafter.types import Batch, Outputs, Target


def scores_of(*values: float) -> Any:
    """A score function that gives these numbers in turn."""
    rest = list(values)
    return lambda network: {"AP": rest.pop(0)}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class Poisoned(SetLoss):
    """Not finite at chosen calls."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def forward(self, outputs: Outputs, targets: list[Target], uniform: Uniform | None = None) -> dict[str, Tensor]:
        losses = super().forward(outputs, targets, uniform)
        self.calls += 1
        if self.calls in self.bad:
            losses["giou_0"] = losses["giou_0"] * float("nan")
        return losses


def test_bad_step_leaves_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = small.batch([2, 1], seed=1), small.batch([3, 3], seed=2)
    step, state, journal = small.training(tmp_path / "a", small.plan(1, 2), loss=Poisoned({2}))
    fit(step, small.Batches([good, bad]), scores_of(0.5), state, journal)  # type: ignore[arg-type]
    clean, clean_state, clean_journal = small.training(tmp_path / "b", small.plan(1, 2))
    fit(clean, small.Batches([good]), scores_of(0.5), clean_state, clean_journal)  # type: ignore[arg-type]
    assert same(snapshot(step.network), snapshot(clean.network)), "statistics of batch norms included"
    assert same(snapshot(state.average.network), snapshot(clean_state.average.network))
    said = capsys.readouterr().out
    assert "step 1 skipped, not finite: giou_0" in said and "2-0.png, 2-1.png" in said
    assert [row["skipped"] for row in read_rows(tmp_path / "a" / "results.csv")] == ["1"]


def test_many_bad_steps_end_the_training(tmp_path: Path) -> None:
    plan = small.plan(1, BAD_STEPS + 5)
    step, state, journal = small.training(tmp_path, plan, loss=Poisoned(set(range(3, 99))))
    batches = small.Batches([small.batch([1, 1], seed) for seed in range(plan.steps)])
    with pytest.raises(ValueError, match=f"giou_0; .*{BAD_STEPS + 1}-0.png.* {BAD_STEPS} such steps in a row"):
        fit(step, batches, scores_of(0.5), state, journal)  # type: ignore[arg-type]
    assert state.progress.step == 2 + BAD_STEPS - 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(tmp_path: Path, precision: str) -> None:
    step, state, journal = small.training(tmp_path, small.plan(1, 3), precision=precision)
    before = snapshot(step.network)
    losses = step(small.batch([2, 0]))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    batches = small.Batches([small.batch([2, 1], seed) for seed in range(3)])
    fit(step, batches, scores_of(0.5), state, journal)  # type: ignore[arg-type]
    assert not same(before, snapshot(step.network))
    assert state.scaler.is_enabled() == (precision == "fp16")


def test_accumulated_parts_equal_one_batch(tmp_path: Path) -> None:
    parts = [small.batch(counts, seed) for seed, counts in enumerate([(4, 1), (0, 0), (1, 2)])]
    own = SetLoss([replace(term, matched="own") for term in small.PLAIN.table])
    options: dict[str, Any] = {"loss": own, "budget": 0, "freeze": ("norm",)}
    found = []
    for batches in (parts, [small.joined(parts)]):
        step, state, _ = small.training(tmp_path, small.plan(), **options)
        losses = gradients(step, batches, state)
        found.append((losses, {n: p.grad for n, p in step.network.named_parameters() if p.requires_grad}))
    (losses, grads), (whole_losses, whole_grads) = found
    for name, value in whole_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5)
    largest = max(float(g.abs().max()) for g in whole_grads.values() if g is not None)
    for name, grad in whole_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_noise_depends_on_seed_step_and_part(tmp_path: Path) -> None:
    step, _, _ = small.training(tmp_path, small.plan(), freeze=("norm",))
    truth = small.batch([3, 2])

    def loss(at: int, part: int = 0) -> float:
        return float(step(truth, at, part)["mal_dn_0"].detach())

    assert loss(5) == loss(5)
    assert len({loss(5), loss(6), loss(5, 1)}) == 3


def test_probe_leaves_everything_as_it_was(tmp_path: Path) -> None:
    step, _, _ = small.training(tmp_path, small.plan())
    before, random = snapshot(step), torch.get_rng_state()
    probe(step, step, worst_batch((64, 96), 2, 30, small.LABELS, torch.device("cpu")))
    assert same(before, snapshot(step))
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in step.parameters())


def test_out_of_memory_has_a_remedy(tmp_path: Path) -> None:
    class Full(nn.Module):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    step, _, _ = small.training(tmp_path, small.plan())
    with pytest.raises(ValueError, match=r"8 pictures of 64 x 64 with 30 objects.*batch=4 accumulate=2"):
        probe(Full(), step, worst_batch((64, 64), 8, 30, small.LABELS, torch.device("cpu")))


def test_worst_batch() -> None:
    batch = worst_batch((64, 96), 2, 7, small.LABELS, torch.device("cpu"))
    assert batch.images.shape == (2, 3, 64, 96) and batch.images.dtype == torch.uint8
    boxes = batch.targets[0].boxes
    assert len(boxes) == 7 and len(boxes.unique(dim=0)) == 7
    assert ((boxes[:, :2] - boxes[:, 2:] / 2) >= 0).all() and ((boxes[:, :2] + boxes[:, 2:] / 2) <= 1).all()


@pytest.mark.parametrize(
    "values, patience, epochs, best",
    [((0.1, 0.3, 0.2, 0.3), 2, 4, 1), ((0.1, 0.2, 0.3, 0.4, 0.5), 2, 5, 4), ((float("nan"), 0.0, 0.0), 0, 3, 1)],
)
def test_best_epoch_and_patience(
    tmp_path: Path, values: tuple[float, ...], patience: int, epochs: int, best: int
) -> None:
    step, state, journal = small.training(tmp_path, small.plan(len(values), 1))
    kept: list[bool] = []
    batches = small.Batches([small.batch([1, 1])])
    fit(step, batches, scores_of(*values), state, journal, patience=patience, keep=lambda _, b: kept.append(b))  # type: ignore[arg-type]
    assert (state.progress.epoch, state.progress.best_epoch) == (epochs, best)
    assert max(i for i, flag in enumerate(kept) if flag) == best
    assert len(read_rows(tmp_path / "results.csv")) == epochs


@pytest.mark.parametrize("reload_best, judged", [(True, [3, 4, 6]), (False, [3, 6])])
def test_epochs_that_are_evaluated(tmp_path: Path, reload_best: bool, judged: list[int]) -> None:
    """Also before going back to the best weights: those of long ago would throw the training away."""
    step, state, journal = small.training(tmp_path, small.plan(6, 1, reload_best=reload_best))
    batches, score = small.Batches([small.batch([1, 1])]), scores_of(0.1, 0.2, 0.3)
    fit(step, batches, score, state, journal, val_every=3)  # type: ignore[arg-type]
    assert [int(row["epoch"]) for row in read_rows(tmp_path / "results.csv") if row["val/AP"]] == judged
    assert state.progress.reloaded == reload_best


def test_without_strong_augmentation_nothing_is_reloaded(tmp_path: Path) -> None:
    step, state, journal = small.training(tmp_path, small.plan(3, 1, augment=Augment.NONE))
    fit(step, small.Batches([small.batch([1, 1])]), scores_of(0.3, 0.2, 0.1), state, journal)  # type: ignore[arg-type]
    assert not state.progress.reloaded


def test_best_weights_come_back_when_the_strong_augmentation_ends(tmp_path: Path) -> None:
    plan = small.plan(6, 1)
    assert plan.plain_from == 4
    starts: list[dict[str, Tensor]] = []
    ends: list[dict[str, Tensor]] = []
    values = [0.1, 0.9, 0.2, 0.3, 0.95, 0.1]

    class Watched(small.Batches):
        def __iter__(self) -> Iterator[Batch]:
            starts.append(snapshot(step.network))
            return super().__iter__()

    def score(network: nn.Module) -> dict[str, float]:
        ends.append(snapshot(step.network))
        return {"AP": values[len(ends) - 1]}

    step, state, journal = small.training(tmp_path, plan)
    fit(step, Watched([small.batch([2, 1])]), score, state, journal)  # type: ignore[arg-type]
    assert same(starts[4], ends[1]) and not same(starts[4], ends[3])
    assert all(same(starts[i], ends[i - 1]) for i in (1, 2, 3, 5)), "at no other time"
    assert state.progress.reloaded and state.progress.best_epoch == 4
    assert state.progress.step == 6 and state.average.updates == 2 + 2


def test_frozen_parts_stay(tmp_path: Path) -> None:
    step, state, journal = small.training(tmp_path, small.plan(1, 2), freeze=("backbone",))
    before = snapshot(step.network)
    fit(step, small.Batches([small.batch([1, 1])] * 2), scores_of(0.5), state, journal)  # type: ignore[arg-type]
    after = snapshot(step.network)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"encoder", "decoder"}, "statistics of frozen batch norms do not move"


def test_every_trained_parameter_gets_a_gradient_even_without_objects(tmp_path: Path) -> None:
    step, state, _ = small.training(tmp_path, small.plan())
    gradients(step, [small.batch([0, 0])], state)
    missing = [name for name, p in step.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_journal_sums_terms(tmp_path: Path) -> None:
    terms = ("mask", "mask_ce", "mal")
    assert [term_of(name, terms) for name in ("mal", "mal_dn_0", "mask_ce_1", "mask_0", "fitnet")] == [
        "mal", "mal", "mask_ce", "mask", "fitnet",
    ]  # fmt: skip
    _, _, journal = small.training(tmp_path, small.plan(1, 2))
    journal.begin(0, 2)
    for value in (1.0, 3.0):
        journal.step({"mal": torch.tensor(value), "mal_0": torch.tensor(2 * value)}, 3 * value, 2, True)
    journal.end(2, 1e-3, {"AP": 0.25})
    (row,) = read_rows(tmp_path / "results.csv")
    assert (row["mal"], row["loss"], row["val/AP"], row["l1"]) == ("6", "6", "0.25", "nan")


def test_half_written_row_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("epoch,loss\n1,2.5\n2,3.")
    assert read_rows(tmp_path / "results.csv") == [{"epoch": "1", "loss": "2.5"}]


def test_new_folder_counts_up(tmp_path: Path) -> None:
    names = [new_folder(tmp_path, "train").name for _ in range(3)]
    assert names == ["train", "train2", "train3"]
    assert new_folder(tmp_path, "train", exist_ok=True).name == "train"


def test_step_has_no_state_of_its_own(tmp_path: Path) -> None:
    step, _, _ = small.training(tmp_path, small.plan())
    assert isinstance(step, SupervisedStep)
    assert {name.split(".")[0] for name in step.state_dict()} == {"network"}
