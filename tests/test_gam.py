"""GAM: the weight of DSI follows the share of the AIFI in the gradients, in every kind of run."""

from __future__ import annotations

import itertools
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_training as small
import torch
from test_ddp import SHARES, together
from test_resume import BATCHES, Interrupted, Stopped, assert_same, score
from torch import Tensor, nn

from edgecrafter import hub, teachers
from edgecrafter.distill import gam
from edgecrafter.distill.base import Student
from edgecrafter.distill.gam import BANDS, Band
from edgecrafter.distill.injection import DSI, DSIOptions
from edgecrafter.losses.set_loss import SetLoss
from edgecrafter.models.sizes import RTDETRV4, SIZES
from edgecrafter.train import distributed, optim
from edgecrafter.train.log import read_rows
from edgecrafter.train.loop import Update, fit, gradients
from edgecrafter.train.scales import Scales
from edgecrafter.train.state import BEST, LAST, WEIGHTS, read
from edgecrafter.types import Batch

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses_distill.json").read_text())["adaptive_weight"]


def dsi(model: str = "ecdet-p", size: tuple[int, int] = (64, 64), stop: int = 99, seed: int = 0, **given: Any) -> DSI:
    """DSI with a small teacher of random weights."""
    row = (RTDETRV4 if model.startswith("rt") else SIZES)[model.partition("-")[2]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DSI(DSIOptions(**given), teachers.teacher("ecvit-p", 1, weights="none"), Student(model, row, size, stop))


def test_golden_settings() -> None:
    for size, wanted in GOLDEN["constants"].items():
        band = BANDS[size]
        found = {"rho": band.rho, "delta": band.delta, "default": band.default, "initial": band.initial}
        assert found == {key: wanted[key] for key in found}


def test_golden_rule() -> None:
    assert len(GOLDEN["rows"]) == 480
    for row in GOLDEN["rows"]:
        ended = row["epoch"] >= row["stop_epoch"]
        found = gam.released(row["current_weight"], row["share_percent"], BANDS[row["scale"]], ended)
        assert found == pytest.approx(row["new_weight"], rel=1e-5), row


BAND = Band(rho=10, delta=2, initial=5, default=20)


@pytest.mark.parametrize(
    "share, weight",
    [
        (8, 5), (10, 5), (12, 5),  # inside, borders included
        (4, 5 * 12 / 4), (7.99, 5 * 12 / 7.99),  # below: towards the upper border
        (16, 5 * 8 / 16), (50, 5 * 8 / 50),  # above: towards the lower one
        (0, 5),  # nothing to divide by
    ],
)  # fmt: skip
def test_rule_of_the_paper(share: float, weight: float) -> None:
    assert gam.paper(5, share, BAND) == pytest.approx(weight)


def test_released_rule_by_hand() -> None:
    """Odds of the far border over odds of the share, between a tenth and ten times."""
    assert gam.released(5, 4, BAND, False) == pytest.approx(5 * (0.12 / 0.88) / (0.04 / 0.96))
    assert gam.released(5, 16, BAND, False) == pytest.approx(5 * (0.08 / 0.92) / (0.16 / 0.84))
    assert gam.released(5, 0.01, BAND, False) == pytest.approx(50)
    assert gam.released(5, 90, BAND, False) == pytest.approx(0.5)
    assert gam.released(5, 0, BAND, False) == gam.released(5, 10, BAND, True) == 20


@pytest.mark.parametrize("rho, delta", [(0, 0), (2, 2), (1, 3), (100, 1), (99, 1), (float("nan"), 1)])
def test_bands_that_make_no_sense(rho: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected a share in percent and a smaller tolerance"):
        Band(rho, delta, 1, 1)


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("first", [0.01, 2.0, 1e4])
@pytest.mark.parametrize("own, part, noise", [(0, 1, 0), (5, 0.5, 0.02)])
def test_the_share_enters_its_band_and_stays(rule: str, first: float, own: float, part: float, noise: float) -> None:
    """A training in which the other losses give the AIFI ``own`` of a gradient of 100 and DSI ``part`` of its own.

    Where DSI alone moves the share, the odds of the released rule hit the border itself; where it is one of two, as in
    a training, the share ends well inside, in spite of noise.
    """
    band, weight, shares = Band(11, 1, first, 20), first, []
    for epoch in range(40):
        share = 100 * (own + part * weight) / (100 + weight) * (1 + noise * (-1) ** epoch)
        shares.append(share)
        weight = gam.paper(weight, share, band) if rule == "paper" else gam.released(weight, share, band, False)
    inside = [band.low - 1e-6 <= share <= band.high + 1e-6 for share in shares]
    assert not inside[0] and all(inside[15:]), shares


def test_a_share_that_cannot_be_had_is_looked_for_without_end() -> None:
    """DSI gives the AIFI 2 % of its gradient: no weight makes that 11. An epoch takes at most ten times the weight."""
    band, weights = Band(11, 1, 5, 20), [5.0]
    for _ in range(20):
        share = 100 * 0.02 * weights[-1] / (100 + weights[-1])
        weights.append(gam.released(weights[-1], share, band, False))
    assert weights[-1] > 1e9 and all(b <= 10 * a * (1 + 1e-9) for a, b in itertools.pairwise(weights))


class Tiny(nn.Module):
    """An encoder with AIFI and more, a backbone, a decoder; every gradient is set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.decoder = nn.Linear(1, 1), nn.Linear(1, 1)
        self.encoder = nn.ModuleDict({"aifi": nn.Linear(1, 1), "fusion": nn.Linear(1, 1)})

    def give(self, factor: float = 1.0) -> None:
        values = {"backbone": 1.0, "decoder": -2.0, "encoder.aifi": -3.0, "encoder.fusion": 4.0}
        for name, parameter in self.named_parameters():
            parameter.grad = torch.full_like(parameter, factor * values[name.rpartition(".")[0]])


@pytest.mark.parametrize(
    "rule, whole",
    [
        ("paper", 2 * (1 + 2 + 3 + 4)),
        ("none", 2 * (1 + 2 + 3 + 4)),
        ("released", 2 * (1 + 2 + 3 + 4) + 0.5 * 64),  # the projector too
    ],
)
def test_share_by_hand(rule: str, whole: float) -> None:
    """In a single process without a wrapper, where the released code finds nothing; clipped gradients, the same."""
    method, network = dsi(gam=rule, rho=None if rule == "none" else 5.0), Tiny()
    for factor in (1.0, 100.0):
        network.give(factor)
        parameters = list(method.parameters())
        for i, parameter in enumerate(parameters):  # 64 x 96 weights and 96 biases
            parameter.grad = torch.zeros_like(parameter)
            if i == 0:
                parameter.grad.flatten()[:64] = 0.5 * factor
        if factor > 1:
            nn.utils.clip_grad_norm_([*network.parameters(), *parameters], 0.1)
        method.after_backward(network)
    assert float(method.steps) == 2
    found = method.end_epoch(0)
    assert found["dsi/share"] == pytest.approx(100 * 6 / whole, rel=1e-5)
    assert float(method.steps) == float(method.total) == 0


def test_parameters_without_gradients_count_nothing() -> None:
    network = Tiny()
    assert float(gam.share(network.encoder.parameters(), network.parameters())) == 0
    network.give()
    network.backbone.zero_grad()
    network.decoder.zero_grad()
    assert float(gam.share(network.encoder.aifi.parameters(), network.parameters())) == pytest.approx(100 * 3 / 7)  # type: ignore[union-attr]


def test_an_epoch_of_skipped_steps_changes_nothing() -> None:
    method = dsi(gam="released", rho=5, weight=3)
    found = method.end_epoch(0)
    assert found["dsi/weight"] == 3 and found["dsi/share"] != found["dsi/share"]
    assert float(method.weight) == 3


def test_the_last_phase_has_the_default_weight() -> None:
    method, network = dsi(gam="released", rho=20, delta=19, weight=3, default=7, stop=2), Tiny()
    weights = []
    for epoch in range(4):
        network.give()
        method.after_backward(network)
        weights.append(method.end_epoch(epoch)["dsi/weight"])
    assert weights == [3, 3, 3, 7], "set at the end of the first epoch of the phase, as released"


@pytest.mark.parametrize(
    "model, given, rule, band",
    [
        ("rtdetrv4-s", {}, "released", Band(11, 1, 5, 20)),
        ("rtdetrv4-x", {"gam": "paper"}, "paper", Band(2, 0.25, 20, 20)),
        ("rtdetrv4-m", {"weight": 9.0, "delta": 0.5}, "released", Band(3.5, 0.5, 9, 15)),
        ("rtdetrv4-l", {"rho": 4.0}, "released", Band(4, 0.4, 15, 15)),
        ("rtdetrv4-s", {"gam": "none"}, "none", None),
        ("rtdetrv4-p", {}, "none", None),
        ("ecdet-s", {}, "none", None),
        ("ecdet-s", {"rho": 5.0}, "released", Band(5, 0.5, 20, 20)),
        ("ecdet-s", {"rho": 5.0, "weight": 2.0, "gam": "paper"}, "paper", Band(5, 0.5, 2, 2)),
    ],
)
def test_settings_of_a_model(model: str, given: dict[str, Any], rule: str, band: Band | None) -> None:
    method = dsi(model, **given)
    assert (method.rule, method.band) == (rule, band)
    assert float(method.weight) == (band.initial if band else 20)
    wanted = {} if band is None else {"rho": band.rho, "delta": band.delta, "default": band.default}
    assert method.settings() == {**vars(method.options), "gam": rule, "weight": float(method.weight), **wanted}


PLAN = small.plan(4, 2)
SCALE = 64.0
"""small enough for half precision from the first step on"""
CASES: dict[str, dict[str, Any]] = {"fp32": {}, "fp16": {"precision": "fp16"}}


def started(folder: Path, plan: Any = PLAN, seed: int = 0, done: int = 0, **given: Any) -> Any:
    """Step, state and journal of a detector with DSI and GAM, whose share is far from its band."""
    options = {key: given.pop(key) for key in ("precision", "loss", "budget", "freeze") if key in given}
    method = dsi(**{"stop": plan.plain_from, "gam": "released", "rho": 3.0, "weight": 2.0, "seed": seed, **given})
    made = small.training(folder, plan, seed, done=done, distillers=[method], **options)
    made[1].scaler = torch.amp.GradScaler("cpu", SCALE, enabled=made[1].scaler.is_enabled())
    return made


@pytest.mark.parametrize("after, case", [(3, "fp32"), (7, "fp16")])
def test_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, after: int, case: str) -> None:
    """Network, projector, weight of the loss and its sums, to the bit."""
    step, state, journal = started(tmp_path / "straight", **CASES[case])
    fit(step, small.Batches(BATCHES), score, state, journal)  # type: ignore[arg-type]
    step, state, journal = started(tmp_path / "broken", **CASES[case])
    state.save()
    with pytest.raises(Stopped):
        fit(step, Interrupted(BATCHES, after), score, state, journal)  # type: ignore[arg-type]
    step, state, journal = started(tmp_path / "broken", seed=9, done=after // 2, **CASES[case])
    state.load(read(tmp_path / "broken" / WEIGHTS / LAST))
    fit(step, small.Batches(BATCHES), score, state, journal)  # type: ignore[arg-type]
    for name in (LAST, BEST):
        one, other = (read(tmp_path / folder / WEIGHTS / name) for folder in ("straight", "broken"))
        assert_same(one, other)
    assert {"0.weight", "0.total", "0.steps", "0.projectors.f5.inner.weight"} <= one["beside"].keys()
    rows = [read_rows(tmp_path / folder / "results.csv") for folder in ("straight", "broken")]
    for column in ("dsi", "dsi/weight", "dsi/share"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]]
    weights = [float(row["dsi/weight"]) for row in rows[0]]
    assert weights[0] == 2 and len(set(weights)) > 2, "the weight moves"


def test_the_sums_are_in_the_state(tmp_path: Path) -> None:
    step, state, _ = started(tmp_path)
    update = Update(step, state)
    update(gradients(step, [BATCHES[0]], state), [BATCHES[0]])
    method = step.distillers[0]
    saved = {name: value.clone() for name, value in state.state_dict()["beside"].items()}
    assert float(saved["0.steps"]) == 1 and 0 < float(saved["0.total"]) < 100
    method.end_epoch(0)
    assert float(method.steps) == 0 and float(method.weight) != float(saved["0.weight"])
    state.beside.load_state_dict(saved)
    assert_same(saved, dict(state.beside.state_dict()))


SIMPLE: dict[str, Any] = {"budget": 0, "freeze": ("norm",)}
OWN = SetLoss([replace(term, matched="own") for term in small.PLAIN.table])


def taken(folder: Path, batches: list[list[Batch]], **options: Any) -> tuple[dict[str, Tensor], DSI, Any]:
    """One step for each list of parts: the losses of the last, the method, and the step."""
    step, state, _ = started(folder, small.plan(1, len(batches)), **options)
    forward, update = distributed.wrap(step), Update(step, state)
    for parts in batches:
        optim.set_rates(state.optimizer, state.plan, state.progress.step)
        losses = gradients(forward, parts, state)
        update(losses, parts)
        state.progress.step += 1
    return losses, step.distillers[0], step


def test_accumulated_parts_equal_one_batch(tmp_path: Path) -> None:
    parts = [small.batch((3, 1), 1), small.batch((0, 2), 2)]
    (losses, method, _), (whole_losses, whole, _) = (
        taken(tmp_path, [batches], loss=OWN, **SIMPLE) for batches in (parts, [small.joined(parts)])
    )
    assert float(losses["dsi"]) == pytest.approx(float(whole_losses["dsi"]), rel=1e-5)
    assert float(method.steps) == float(whole.steps) == 1
    assert float(method.total) == pytest.approx(float(whole.total), rel=1e-3)
    for name in ("weight", "bias"):
        one, other = (getattr(m.projectors["f5"].inner, name) for m in (method, whole))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_of_parts_equal_those_of_one_batch(tmp_path: Path) -> None:
    parts, found = [small.batch((3, 1), 1), small.batch((0, 2), 2)], []
    for batches in (parts, [small.joined(parts)]):
        step, state, _ = started(tmp_path, loss=OWN, **SIMPLE)
        gradients(step, batches, state)
        found.append({name: p.grad for name, p in step.named_parameters() if p.requires_grad})
    largest = max(float(grad.abs().max()) for grad in found[1].values())
    assert any("projectors" in name for name in found[1])
    for name, grad in found[1].items():
        torch.testing.assert_close(found[0][name], grad, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_the_share_is_that_of_unscaled_gradients(tmp_path: Path) -> None:
    """The same with a scaler as without, but for half precision; bf16 alike."""
    batch = [[small.batch((3, 1), 1)]]
    shares = {
        precision: float(taken(tmp_path, batch, precision=precision, loss=OWN, **SIMPLE)[1].total)
        for precision in ("fp32", "fp16", "bf16")
    }
    print(shares)
    assert shares["fp16"] == pytest.approx(shares["fp32"], rel=0.02)
    assert shares["bf16"] == pytest.approx(shares["fp32"], rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_skipped_step_does_not_count(tmp_path: Path, precision: str) -> None:
    step, state, _ = started(tmp_path, precision=precision)
    update, batch, method = Update(step, state), BATCHES[0], step.distillers[0]
    update(gradients(step, [batch], state), [batch])
    total = float(method.total)
    assert total > 0
    losses = gradients(step, [batch], state)
    next(step.network.encoder.aifi.parameters()).grad.fill_(float("inf"))  # what overflow leaves
    _, stepped = update(losses, [batch])
    assert not stepped
    assert (float(method.steps), float(method.total)) == (1, total)


def _in_two(rank: int, folder: Path) -> dict[str, Any]:
    """What GAM found in this process, and the weight that follows; and the sizes of a training at several."""
    found: dict[str, Any] = {"sizes": torch.tensor([Scales((640, 640), 4, 99, 7).of(step) for step in range(20)])}
    for case, given in TWO.items():
        batches = [[batch] for batch in SHARES[rank]]
        _, method, step = taken(folder / str(rank), batches, **given)
        share = float(method.total) / float(method.steps)
        method.end_epoch(0)
        projected = {name: value.clone() for name, value in method.state_dict().items()}
        found[case] = {"share": share, "weight": float(method.weight), **projected}
        assert not any("teacher" in name for name in step.state_dict())
    return found


TWO: dict[str, dict[str, Any]] = {
    "simple": {"loss": small.PLAIN, **SIMPLE},
    "everything": {"projector": "conv1x1", "position": "hybrid"},
}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    first, second = together(_in_two, tmp_path)
    assert_same(first, second)
    _, alone, _ = taken(tmp_path, [[small.joined(pair)] for pair in zip(*SHARES, strict=True)], **TWO["simple"])
    share = float(alone.total) / float(alone.steps)
    alone.end_epoch(0)
    print(f"share {share:.4f}, in two processes {first['simple']['share']:.4f}")
    assert first["simple"]["share"] == pytest.approx(share, rel=1e-3)
    assert first["simple"]["weight"] == pytest.approx(float(alone.weight), rel=1e-3)
    assert first["simple"]["weight"] != 2


def test_a_share_out_of_reach_is_spoken_of() -> None:
    """A weight that only grows drowns the detection: said once it is far from where it began."""
    method = dsi(gam="released", rho=5.0, weight=2.0)
    method.weight.fill_(60.0)
    method.total.fill_(1.0)
    method.steps.fill_(1.0)
    with pytest.warns(UserWarning, match="rho=5 is out of reach"):
        method.end_epoch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # within its band nothing is said
        method.total.fill_(5.0)
        method.steps.fill_(1.0)
        method.end_epoch(1)


@pytest.mark.parametrize("position", ["s3", "s4", "s5", "all"])
def test_without_f5_nothing_is_modulated(position: str) -> None:
    """A loss that does not reach the AIFI makes its share smaller the more it weighs: the weight would run away."""
    assert dsi("rtdetrv4-s", position=position).band is None
    for given in ({"gam": "released"}, {"gam": "paper"}, {"rho": 2.0}):
        with pytest.raises(ValueError, match=f"position={position}: GAM looks at the AIFI"):
            dsi("rtdetrv4-s", position=position, **given)
    assert dsi("rtdetrv4-s", position="hybrid").band == BANDS["s"]


def test_a_weight_of_zero_would_stay() -> None:
    with pytest.raises(ValueError, match="weight=0: GAM multiplies it"):
        dsi(rho=5.0, weight=0.0)
    assert dsi(weight=0.0, gam="none").first == 0


def test_a_frozen_aifi_has_no_share() -> None:
    network = hub.create("ecdet-p")[0]
    method = dsi(rho=5.0)
    method.check(network)
    network.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="AIFI, which is frozen"):
        method.check(network)
    dsi(gam="none").check(network)
