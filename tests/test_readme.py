"""What the README says works: its Python runs, its commands parse, and its links lead somewhere."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

import edgecrafter as ec
from edgecrafter import catalogue, families
from edgecrafter.cli.commands import COMMANDS
from edgecrafter.cli.parsing import parse
from edgecrafter.data import scenes
from edgecrafter.summary import PAPER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SACRED = (
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[plot]' && .venv/bin/edgecrafter quickstart",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && "
    '.venv/bin/python -m pytest -q -n auto --dist loadfile -m "not slow"',
)


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every ``edgecrafter ...`` line of the shell blocks, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash", text) for line in block.splitlines()]
    return [line for line in lines if line.startswith("edgecrafter ")]


@pytest.mark.parametrize("command", SACRED)
def test_the_two_commands_are_there(command: str) -> None:
    assert command in README.splitlines()


def test_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small data set and with the epochs and sizes of a test; all else as printed."""
    monkeypatch.chdir(tmp_path)
    scenes.write("dataset", train=8, val=2, size=64)
    Image.open("dataset/images/val_00000.jpg").save("street.jpg")
    train = ec.train
    quick = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    monkeypatch.setattr(ec, "train", lambda **options: train(**{**options, "model": smallest(options), **quick}))
    found = blocks("python", README)
    assert found
    for snippet in found:
        exec(compile(snippet, "README.md", "exec"), {})


def smallest(options: dict[str, str]) -> str:
    return options["model"].partition("-")[0] + "-p"


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page.read_text(encoding="utf-8"))])
def test_shell_commands_parse(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = COMMANDS[name]
    parse(command.options(), words, command.positionals)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)", text):
        assert any((ROOT / base / name).exists() for base in ("", "edgecrafter")), f"{page.name} speaks of {name}"


FINDS = {"detect": "boxes", "segment": "masks", "pose": "keypoints"}


def test_the_model_table_is_right() -> None:
    """A row per model, with what was counted here and what the papers' tables say."""
    lines = [line for line in README.splitlines() if line.startswith("| `")]
    rows = {cells[0].strip("`"): cells[1:] for cells in map(split, lines) if len(cells) == 6}
    named = [entry for entry in catalogue.models() if entry.task in FINDS]
    assert list(rows) == [entry.name for entry in named]
    for entry in named:
        known = families.find(entry.name)
        assert known is not None
        finds, parameters, gflops, ap, measured = rows[entry.name]
        assert finds == FINDS[entry.task] and parameters == f"{entry.parameters / 1e6:.1f}"
        published = PAPER.get(entry.name)
        if published is None:
            assert entry.ap is None and ap == "none" and gflops == ("ours" if known.row.ours else "-")
        else:
            assert entry.ap in (None, published.ap) and float(ap) == published.ap
            assert gflops == f"{published.gflops:g}"
        assert measured == ("not on COCO" if known.row.ours else "not measured")


def split(line: str) -> list[str]:
    """The cells of a row of a table; other lines have one."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_documented_options_exist() -> None:
    known = {field.name for command in COMMANDS.values() for field in fields(command.options())}
    for page in PAGES:
        for name in re.findall(r"`--([a-z0-9_-]+)", page.read_text(encoding="utf-8")):
            name = name.replace("-", "_")
            assert name in known | {"help", "config", "debug", "name"}, f"{page.name} speaks of --{name}"
