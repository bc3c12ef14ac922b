"""The command line: what it understands, what it says, and the commands from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgecrafter import hub
from edgecrafter.ablate_config import AblateConfig
from edgecrafter.cli import main, parsing
from edgecrafter.cli.commands import COMMANDS
from edgecrafter.cli.parsing import UsageError, parse
from edgecrafter.data import check, images, scenes
from edgecrafter.types import InputSpec, Labels, Skeleton

SIZE = (64, 64)


@dataclass
class Options:
    """Options to try the parser with."""

    model: str
    """the model"""
    source: list[str] = field(default_factory=list)
    """pictures"""
    data: str = ""
    epochs: int | None = None
    batch: int = 8
    lr: float | None = None
    imgsz: int | list[int] | None = None
    save: bool = False
    """one line
    and another"""
    resume: bool | str = False
    conf: float = 0.4


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("model=a epochs=3", {"epochs": 3}),
        ("--model a --epochs 3", {"epochs": 3}),
        ("--model=a --epochs=3", {"epochs": 3}),
        ("a b.jpg c.jpg", {"source": ["b.jpg", "c.jpg"]}),
        ("a epochs=3 b.jpg", {"source": ["b.jpg"], "epochs": 3}),
        ("b.jpg model=a", {"source": ["b.jpg"]}),  # a named option is no longer positional
        ("a --batch-size 4 lr0=1e-3", {"batch": 4, "lr": 1e-3}),
        ("a dataset_dir=x threshold=0.5", {"data": "x", "conf": 0.5}),
        ("a imgsz=640", {"imgsz": 640}),
        ("a imgsz=384,640", {"imgsz": [384, 640]}),
        ("a imgsz=384x640", {"imgsz": [384, 640]}),
        ("a --imgsz [384,640]", {"imgsz": [384, 640]}),
        ("a --save", {"save": True}),
        ("a --save b.jpg", {"save": True, "source": ["b.jpg"]}),
        ("a --save false", {"save": False}),
        ("a --no-save", {"save": False}),
        ("a --save yes", {"save": True}),
        ("a --resume", {"resume": True}),
        ("a --resume runs/x", {"resume": "runs/x"}),
        ("a --resume --save", {"resume": True, "save": True}),
        ("a data=x=1/y", {"data": "x=1/y"}),
        ("a --lr=-1", {"lr": -1.0}),
        ("a source=[b.jpg,c.jpg]", {"source": ["b.jpg", "c.jpg"]}),
        ("a --source b.jpg,c.jpg --source d.jpg", {"source": ["b.jpg", "c.jpg", "d.jpg"]}),
        ("a --source 0,1", {"source": ["0", "1"]}),
        ("a null 1e3 [0] {x} a: 😀 007", {"source": ["null", "1e3", "[0]", "{x}", "a:", "😀", "007"]}),
        ("a --source [0,1] --source yes", {"source": ["0", "1", "yes"]}),
        ("a source=['b,c','d']", {"source": ["b,c", "d"]}),
        ("a --source [ab]*.jpg", {"source": ["[ab]*.jpg"]}),
        ("model=a --source b.jpg c.jpg", {"source": ["b.jpg", "c.jpg"]}),  # a list that was named goes on
        ("a b,c.jpg [d]", {"source": ["b,c.jpg", "[d]"]}),  # a word by itself is one file
    ],
)
def test_understood(words: str, wanted: dict) -> None:
    assert parse(Options, words.split(), ("model", "source")) == Options(**{"model": "a", **wanted})


@pytest.mark.parametrize(
    "words, message",
    [
        ("a --epoch 3", "unknown option --epoch. Did you mean --epochs?"),
        ("a batchsize=3", "Did you mean --batch?"),
        ("a --zzz 3", "Known: model, source, data"),
        ("a epochs=many", "--epochs many: expected int or None"),
        ("a --conf", "--conf needs a value"),
        ("a --conf --save", "--conf needs a value"),
        ("epochs=3", "missing --model"),
        ("a -x", "unexpected '-x'"),
        ("a --config", "--config needs a file"),
    ],
)
def test_refused(words: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Options, words.split(), ("model", "source"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("model: a\nbatch_size: 2\nimgsz: [64, 96]\nsave: true\nlr:\nsource: [x.jpg]\n")
    found = parse(Options, ["--config", str(file), "batch=3", "source=y.jpg"], ("model", "source"))
    assert found == Options("a", ["y.jpg"], batch=3, imgsz=[64, 96], save=True)
    file.write_text("model: a\nsource: [0, b]\n")
    assert parse(Options, ["--config", str(file)]).source == ["0", "b"]
    assert parse(Options, ["--config", str(file), "source=[]"]).source == []
    file.write_text("options:\n  model: b\nplan: {steps: 3}\n")  # the args.yaml of a run
    assert parse(Options, [f"config={file}"]).model == "b"


@pytest.mark.parametrize("text", ["epochz: 3", "- a\n- b", "a: [", ""])
def test_a_wrong_config_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(UsageError):
        parse(Options, ["a", "--config", str(file)], ("model",))


def test_help_is_the_text_below_the_fields() -> None:
    assert parsing.docs_of(Options) == {"model": "the model", "source": "pictures", "save": "one line and another"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    options = COMMANDS[name].options()
    explained = parsing.docs_of(options)
    for option in fields(options):
        assert explained[option.name], option.name
        assert f"--{option.name}" in text
    assert "examples:" in text and f"edgecrafter {name}" in text
    assert all(ours in ALL_OPTIONS for ours in parsing.ALIASES.values())


def test_lists_show_their_defaults() -> None:
    text = parsing.help_text(AblateConfig, "", "")
    assert "--seeds list[int] [0,1,2]\n" in text and "--train list[str]\n" in text


ALL_OPTIONS = {option.name for command in COMMANDS.values() for option in fields(command.options())}


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["trainn"], 2, "edgecrafter: error: unknown command 'trainn'. Did you mean 'train'?"),
        (["val", "--model"], 2, "--model needs a value"),
        (["predict", "ecdet-s"], 2, "no pictures given"),
        (["info"], 2, "no model given"),
        (["info", "ecdet-q"], 1, "known: ecdet-p"),
        (["info", "ecdet-p", "imgsz=100"], 1, "multiples of 32"),
        (["val", "nowhere.safetensors", "data"], 1, "neither a file nor a known model"),
        (["convert", "ecdet-p", "x.safetensors"], 1, "has no released weights"),
        (["predict", "ecpose-p", "x.jpg"], 1, "ecpose-p has no released weights"),
        (["quickstart", "task=masks"], 1, "task 'masks' is not known: choose one of detect, segment, pose"),
    ],
)
def test_errors_are_one_line(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    said = capsys.readouterr().err
    assert said.startswith("edgecrafter: error: ") and said.count("\n") == 1
    assert message in said


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="known: ecdet-p"):
        main(["info", "ecdet-q", "--debug"])
    monkeypatch.setenv("EDGECRAFTER_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="known: ecdet-p"):
        main(["info", "ecdet-q"])


def test_too_little_memory_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: RuntimeError) -> None:
        def run(_: object) -> None:
            raise error

        monkeypatch.setitem(COMMANDS, "models", replace(COMMANDS["models"], run=run))

    fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore."))
    assert main(["models"]) == 1
    said = capsys.readouterr().err
    assert "smaller --batch or --imgsz" in said and "(CUDA out of memory)" in said and said.count("\n") == 1
    fail(RuntimeError("a mistake"))
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["models"])


def test_help_and_version_and_python_m() -> None:
    found = subprocess.run([sys.executable, "-m", "edgecrafter"], capture_output=True, text=True, timeout=100)
    assert found.returncode == 0 and all(name in found.stdout for name in COMMANDS)
    found = subprocess.run([sys.executable, "-m", "edgecrafter", "fly"], capture_output=True, text=True, timeout=100)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert main(["--version"]) == 0


def test_models_lists_sources_and_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows[:6]] == ["ecdet-p", "ecdet-n", "ecdet-s", "ecdet-m", "ecdet-l", "ecdet-x"]
    assert all(row["licence"] and row["commercial_use"] in ("yes", "no", "check") for row in rows)
    assert all(row["sha256"] for row in rows if row["url"])
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert "51.7" in table and "paper" in table and "24 August 2026" in table


def test_info_counts_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "ecdet-s", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 9_884_102 and found["deploy_parameters"] == 9_811_307
    assert found["gflops"] == pytest.approx(49.96, abs=0.01)
    assert found["paper_gflops"] == pytest.approx(26.04, rel=0.01)
    assert main(["info", "ecdet-p", "--imgsz", "64,96"]) == 0
    text = capsys.readouterr().out
    assert "64 x 96" in text and "paper's way" in text and "deploy form" in text


@pytest.mark.slow  # counts two dozen networks
def test_info_all_sets_the_paper_beside(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("ec")}
    assert rows["ecdet-l"] == ["32.97", "32.66", "31", "147.2", "99.4", "101", "57.0"]
    assert [rows[f"{name}-s"][-1] for name in ("ecinsseg", "ecpose")] == ["43.0", "68.9"] and len(rows) == 12
    assert sum(", published" in line for line in lines if line.startswith("  ecdet-")) == 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set and an untrained model file."""
    folder = tmp_path_factory.mktemp("world")
    scenes.write(folder / "data", train=8, val=3, size=96)
    torch.manual_seed(0)
    network, info = hub.create("ecdet-p", Labels(("ball", "crate", "star", "kite")), InputSpec(size=SIZE))
    hub.save(network, info, folder / "model.safetensors")
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def test_predict_draws_and_prints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "model.safetensors", "data/images", "--conf", "0", "max_det=2", "--name", "drawn"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 12 and "train_00000.jpg" in said[0]
    assert len(list((here / "runs/detect/drawn").glob("*.jpg"))) == 11
    with Image.open(here / "runs/detect/drawn/val_00000.jpg") as picture:
        assert picture.size == (96, 96)


def test_predict_as_json_lines_without_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.safetensors", "data/images/val_00000.jpg", "--json", "save=false", "conf=0", "--classes", "ball"]
    assert main(["predict", *words, "--name", "nothing"]) == 0
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found["size"] == [96, 96]
    assert {each["name"] for each in found["detections"]} == {"ball"}
    assert not (here / "runs/detect/nothing").exists()


def test_a_broken_picture_in_a_folder_is_a_warning_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mixed").mkdir()
    (here / "mixed/broken.jpg").write_text("no picture")
    Image.open(here / "data/images/val_00000.jpg").save(here / "mixed/fine.jpg")
    assert main(["predict", "model.safetensors", "mixed", "--save", "false"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("fine.jpg: ")
    assert said.err.startswith("edgecrafter: warning: ") and "broken.jpg" in said.err and said.err.count("\n") == 1


def test_pictures_of_one_name_are_all_drawn(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("s1", "s2"):
        (here / "many" / name).mkdir(parents=True)
        Image.open(here / "data/images/val_00000.jpg").save(here / "many" / name / "a.jpg")
    assert main(["predict", "model.safetensors", "many/**/*.jpg", "--name", "same"]) == 0
    assert {path.name for path in (here / "runs/detect/same").iterdir()} == {"a.jpg", "a_2.jpg"}
    assert f"a_2.jpg ({Path('many/s2/a.jpg')}): " in capsys.readouterr().out


def test_an_error_of_a_process_that_reads_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("x.jpg: cannot be read")

    monkeypatch.setattr(images, "read", broken)
    monkeypatch.setattr(check, "usable", lambda annotations, *_: annotations)
    assert main(["val", "model.safetensors", "data", "workers=1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "edgecrafter: error: x.jpg: cannot be read"


def test_mask_blocks_go_with_masks_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shot = "data/images/val_00000.jpg"
    for command, rest in (("predict", shot), ("val", "data")):
        assert main([command, "model.safetensors", rest, "--mask_blocks", "0"]) == 1
        assert "mask_blocks=0 does not go with ecdet-p" in capsys.readouterr().err


def test_all_or_some_mask_blocks_are_applied_and_results_go_to_the_tasks_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network, info = hub.create("ecseg-p", Labels(("ball", "crate", "star", "kite")), InputSpec(size=SIZE))
    hub.save(network, info, here / "masks.safetensors")
    found = []
    for options in ([], ["mask_blocks=0"], ["mask_blocks=3"], ["mask_blocks=1"]):
        assert main(["predict", "masks.safetensors", "data/images/val_00000.jpg", "conf=0", "--json", *options]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        found.append([each["mask"] for each in json.loads(line)["detections"]])
    assert found[0] == found[1] == found[2] != found[3]
    assert (here / "runs/segment/predict4/val_00000.jpg").is_file()
    assert main(["predict", "masks.safetensors", "data/images/val_00000.jpg", "mask_blocks=9"]) == 1
    assert "the mask head has 3 blocks" in capsys.readouterr().err


def test_poses_are_printed_with_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skeleton = Skeleton(("nose", "left", "right"), ((0, 1), (0, 2)), ((1, 2),))
    torch.manual_seed(0)
    labels = Labels(("nobody", "kite"), skeleton=skeleton, unused=(0,))
    network, info = hub.create("ecpose-p", labels, InputSpec(size=SIZE))
    hub.save(network, info, here / "poses.safetensors")
    assert main(["predict", "poses.safetensors", "data/images/val_00000.jpg", "conf=0", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)["detections"]
    assert found and {each["name"] for each in found} == {"kite"}
    assert [point["name"] for point in found[0]["keypoints"]] == list(skeleton.names)
    assert {each["box_from"] for each in found} == {"keypoints"}
    assert (here / "runs/pose/predict/val_00000.jpg").is_file()
    assert main(["predict", "poses.safetensors", "data/images/val_00000.jpg", "--classes", "nobody"]) == 1
    assert "class 'nobody' is not one of the model's: 1 kite" in capsys.readouterr().err


def test_val_writes_scores(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["val", "model.safetensors", "data", "workers=0", "--fuse", "--name", "scored"]) == 0
    assert "AP50" in capsys.readouterr().out
    scores = json.loads((here / "runs/detect/scored/metrics.json").read_text())
    assert scores["images"] == 3 and len(scores["per_class"]) == 4


def test_convert_there_and_back_keeps_every_bit(here: Path) -> None:
    assert main(["convert", "model.safetensors", "released.pth"]) == 0
    assert main(["convert", "released.pth", "again.safetensors"]) == 0
    first, second = (hub.read(here / name)[0] for name in ("model.safetensors", "again.safetensors"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_convert_says_what_is_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, info = hub.create("rtdetrv4-p", Labels(("cup",)))
    hub.save(network, info, here / "rt.safetensors")
    for source, target, more in (
        ("rt.safetensors", "rt.pth", "; without encoder.feature_projector.0.weight, which only the authors' training"),
        ("rt.pth", "again.safetensors", ""),
        ("model.safetensors", "ec.pth", ""),
    ):
        assert main(["convert", source, target]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"written to {target}{more}") and ("without" in line) == bool(more)


def test_train_then_use_the_folder_of_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["epochs=1", "batch_size=4", "imgsz=64", "workers=0"]
    assert main(["train", "ecdet-p", "data", *small, "device=cpu", "project=runs", "name=first"]) == 0
    assert (here / "runs/first/args.yaml").is_file()
    assert main(["predict", "runs/first", "data/images/val_00000.jpg", "save=false"]) == 0
    assert main(["train", "--config", "runs/first/args.yaml", "--name", "second"]) == 0
    assert (here / "runs/second/results.csv").read_text() != ""
    capsys.readouterr()


def test_a_list_may_hold_options_of_something_else() -> None:
    from edgecrafter.ablate_config import AblateConfig

    found = parsing.parse(AblateConfig, ["--train", "epochs=20,lr=3e-3", "--distill", "images=[a,b]", "--seeds", "3,4"])
    assert (found.train, found.distill, found.seeds) == (["epochs=20", "lr=3e-3"], ["images=[a,b]"], [3, 4])
    found = parsing.parse(AblateConfig, ["--train", "model=ecdet-n", "--model", "ecdet-s"])  # a name that both know
    assert (found.train, found.model) == (["model=ecdet-n"], "ecdet-s")
    with pytest.raises(parsing.UsageError, match="--train needs a value"):
        parsing.parse(AblateConfig, ["--train", "--model", "ecdet-s"])
