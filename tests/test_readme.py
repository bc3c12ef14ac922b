"""What the README says works: its Python runs, its commands parse, and its links lead somewhere."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

import edgecrafter as ec
from edgecrafter import catalogue
from edgecrafter.cli.commands import COMMANDS
from edgecrafter.cli.parsing import parse
from edgecrafter.data import scenes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SACRED = (
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[plot]' && .venv/bin/edgecrafter quickstart",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/python -m pytest -q -m \"not slow\"",
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


def test_the_model_table_is_right() -> None:
    for entry in catalogue.models():
        if entry.task not in ("backbone", "teacher"):
            row = next(line for line in README.splitlines() if line.startswith(f"| `{entry.name}`"))
            assert f"| {entry.parameters / 1e6:.1f} |" in row
            assert (str(entry.ap) if entry.ap else "none") in row


def test_documented_options_exist() -> None:
    known = {field.name for command in COMMANDS.values() for field in fields(command.options())}
    for page in PAGES:
        for name in re.findall(r"`--([a-z_]+)", page.read_text(encoding="utf-8")):
            assert name in known | {"help", "config", "debug", "name"}, f"{page.name} speaks of --{name}"
