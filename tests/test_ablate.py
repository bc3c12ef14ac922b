"""A grid of options over seeds: which runs it makes, and what it says of their scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from scipy import stats

from edgecrafter.ablate import Arm, _configs, ablate, score_names
from edgecrafter.ablate_config import AblateConfig
from edgecrafter.data import scenes
from edgecrafter.paired import Paired, table
from edgecrafter.tasks import TASKS, Task
from edgecrafter.train import distil, run, words

QUICK_TRAIN = {"epochs": 1, "batch": 4, "imgsz": 64, "queries": 20, "augment": "none", "workers": 0, "lr": "3e-3"}
QUICK_DISTILL = {"epochs": 1, "batch": 4, "imgsz": 64, "workers": 0, "teacher": "ecdet-p", "teacher_weights": "none"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write(tmp_path_factory.mktemp("data") / "scenes", 8, 4, size=64)


def test_differences_are_taken_seed_by_seed() -> None:
    ours, theirs = [0.5, 0.4, 0.62, 0.3], [0.45, 0.41, 0.5, 0.2]
    found = Paired.of(ours, theirs)
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.065)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.better, found.seeds) == (3, 4)


def test_one_seed_has_no_interval() -> None:
    assert str(Paired.of([0.5], [0.4])) == "+0.100 (one seed), better in 1 of 1"


def test_a_seed_that_an_arm_lacks_is_not_compared() -> None:
    def row(ap: float) -> dict[str, object]:
        return {"scores": {"AP": ap}, "explained": None}

    text = table({"base": {0: row(0.2), 1: row(0.9)}, "other": {0: row(0.3)}}, "base")
    assert "| other | 0.300 | - | 1 | +0.100 (one seed), better in 1 of 1 | - |" in text


def test_words_are_typed() -> None:
    found = words.options(["epochs=20", "lr=3e-3", "teacher=runs/teach/teach", "workers=null", "images=[a, b]"])
    assert found == {"epochs": 20, "lr": 0.003, "teacher": "runs/teach/teach", "workers": None, "images": ["a", "b"]}
    with pytest.raises(ValueError, match="'epochs'"):
        words.options(["epochs"])


def grid(tmp_path: Path, **content: object) -> str:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_grid_is_every_combination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["teacher=ecdet-p", "teacher_weights=none"]
    vary = ["distill.registers=0|1", "train.fused=1|2"]
    ablate(AblateConfig(data="x", vary=vary, distill=options, seeds=[0], dry=True, folder=str(tmp_path)))
    out = capsys.readouterr().out
    assert "5 arms, 1 seeds: scratch, registers=0, fused=1, registers=0, fused=2, registers=1, fused=1" in out


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vary": ["registers=0|1"]}, "expected distill.OPTION"),
        ({"vary": ["distill.registers=0|1"]}, "no teacher given"),
        ({"vary": ["train.fusde=1"]}, "Did you mean 'fused'"),
        ({"vary": ["train.fused=1"], "baseline": "nobody"}, "baseline=nobody: choose one of"),
        ({}, "nothing to compare"),
        ({"vary": ["train.fused=1"], "score": "foo"}, "score=foo: choose one of AP, AP50"),
        ({"vary": ["train.fused=1"], "seeds": []}, "expected one or more numbers, such as seeds=0,1,2"),
        ({"vary": ["distill.epochs=abc|2"], "distill": ["teacher=ecdet-p"]}, "distill: a value of the wrong kind"),
        ({"vary": ["train.fused=1"], "train": ["epochs=abc"]}, "train: a value of the wrong kind"),
        ({"vary": ["train.fused=[1"]}, r"'\[1': expected a value"),
        ({"vary": ["distill.foo=1|2"]}, "distill: unknown option 'foo'"),
    ],
)
def test_wrong_options_are_errors_before_anything_runs(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a training began"))
    with pytest.raises(ValueError, match=message):
        ablate(AblateConfig(data="x", folder=str(tmp_path), **options))  # type: ignore[arg-type]


def test_arms_begin_alike(tmp_path: Path) -> None:
    """The detector of either arm starts from random weights, although ecdet-s has released ones; unless both are
    asked to start from them."""
    arms = [Arm("scratch", {}), Arm("distilled", {}, {"teacher": "dinov2-s"})]
    config = AblateConfig(data="x", model="ecdet-s")
    for arm in arms:
        distilled, trained = _configs(config, arm, 0, tmp_path)
        assert (trained.model, trained.weights) == ("ecdet-s", "none")
        assert distilled is None or distilled.student == "ecvit-t"
        asked = Arm(arm.name, {"weights": "ecdet-s"}, arm.distill)
        assert _configs(config, asked, 0, tmp_path)[1].weights == "ecdet-s"


def test_no_grid_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="grid=.*nowhere.yaml: there is no such file"):
        ablate(AblateConfig(grid=str(tmp_path / "nowhere.yaml")))
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"broken.yaml: not a YAML file \(.*line 1"):
        ablate(AblateConfig(grid=str(tmp_path / "broken.yaml")))


def test_an_unknown_line_of_a_grid_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'seeds'"):
        ablate(AblateConfig(grid=grid(tmp_path, seds=[1])))
    with pytest.raises(ValueError, match="arm a: expected distill and train"):
        ablate(AblateConfig(grid=grid(tmp_path, arms={"a": {"tran": {}}})))


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_scores_of_a_task(task: Task) -> None:
    assert set(task.scores) <= set(score_names(task))


def test_arms_are_run_compared_and_not_run_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {
        "scratch": None,
        "distilled": {"distill": {}},
        "fused": {"distill": {}, "train": {"fused": 1}},  # shares the distillation
    }
    folder = tmp_path / "ablation"
    file = grid(tmp_path, data=str(data), arms=arms, train=QUICK_TRAIN, distill=QUICK_DISTILL, folder=str(folder))
    distilled = []
    original = distil.distill
    monkeypatch.setattr(distil, "distill", lambda config: distilled.append(config.seed) or original(config))
    first = ablate(AblateConfig(grid=file, seeds=[0]))
    assert distilled == [0], "arms that distil alike share one distillation"
    again = ablate(AblateConfig(grid=file, seeds=[0]))
    assert distilled == [0] and json.dumps(again) == json.dumps(first)  # a score may be NaN
    assert list(first["scratch"][0]["scores"]) == score_names(TASKS["detect"])
    scores = {name: rows[0]["scores"]["AP"] for name, rows in first.items()}
    assert set(scores) == set(arms) and all(0 <= value <= 1 for value in scores.values())
    assert first["scratch"][0]["explained"] is None and first["distilled"][0]["explained"] is not None
    assert json.loads((folder / "results.json").read_text())["fused"]["0"]["options"]["train"]["fused"] == 1
    assert (folder / "table.md").read_text() in capsys.readouterr().out
    log = (folder / "arms" / "distilled" / "seed_0" / "log.txt").read_text()
    assert "ViT from backbone.safetensors" in log, "the detector starts from the distilled ViT"
    # one more seed is added; a changed arm is not taken for the old one
    assert set(ablate(AblateConfig(grid=file, seeds=[0, 1]))["distilled"]) == {0, 1}
    changed = grid(tmp_path, data=str(data), arms=arms, train=QUICK_TRAIN | {"epochs": 2}, distill=QUICK_DISTILL)
    with pytest.raises(ValueError, match="was made with other options"):
        ablate(AblateConfig(grid=changed, seeds=[0], folder=str(folder)))
