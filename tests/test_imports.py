"""The floors of the package hold, and importing it does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgecrafter

PACKAGE = Path(edgecrafter.__file__).parent

FLOORS = (
    ("geometry", "files", "ablate_config", "benchmark_config"),
    ("types",),
    ("nn",),
    ("models",),
    ("data",),
    ("losses", "postprocess", "metrics", "draw", "sheet"),
    ("infer", "results", "registry", "distill", "paired", "curves", "benchmark_report"),
    ("tasks", "download"),
    ("families",),
    ("released",),
    ("hub",),
    ("vits",),
    ("around", "deployed"),
    ("start", "evaluate", "teachers"),
    ("predict", "train", "summary", "catalogue"),
    ("advise", "pipeline", "export"),
    ("model",),
    ("beside", "maps"),
    ("figures",),
    ("quickstart", "ablate", "features", "attention", "benchmark"),
    ("cli",),
)
"""from the ground up; a unit imports only from floors below its own"""

WINGS = {"data", "losses", "postprocess", "metrics", "draw", "sheet"}
"""these know types, geometry and other wings, never a model"""

HEAVY = ("scipy", "timm", "torchvision", "faster_coco_eval", "matplotlib", "huggingface_hub", "jsonargparse")

RANK = {unit: rank for rank, floor in enumerate(FLOORS) for unit in floor}


def imports(source: str) -> Iterator[str]:
    """The units of edgecrafter that a module imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "edgecrafter" else [module]
        yield from (name.split(".")[1] for name in names if name.startswith("edgecrafter."))


def wrong(unit: str, source: str) -> list[str]:
    """What a module of ``unit`` imports but must not."""
    others = set(imports(source)) & set(RANK) - {unit}
    upward = {other for other in others if RANK[other] >= RANK[unit]}
    if unit in WINGS:
        upward |= others - WINGS - {"types", "geometry", "files"}
    return sorted(upward)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    unit = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if unit in ("__init__", "__main__"):
        return
    assert unit in RANK, f"give {unit} a floor in this test"
    assert wrong(unit, path.read_text()) == []


def test_the_page_about_the_floors_is_true() -> None:
    """Units come first in a line of the block, one space between them, then two or more and what they are."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.partition("## Floors")[2].partition("```\n")[2].partition("\n```")[0]
    listed = [sorted(line.partition("  ")[0].split()) for line in block.splitlines()]
    assert listed == [sorted(floor) for floor in reversed(FLOORS)]
    units = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(RANK) == {unit for unit in units if not unit.startswith("__")}


@pytest.mark.parametrize(
    "unit, source",
    [
        ("nn", "from edgecrafter.models import vit"),  # upwards
        ("data", "from edgecrafter.models.vit import ECViT"),  # a wing that knows models
        ("predict", "from edgecrafter.train import run"),  # a neighbour on the same floor
        ("models", "def f():\n    from edgecrafter import hub"),  # hidden in a function
    ],
)
def test_a_wrong_import_is_found(unit: str, source: str) -> None:
    assert wrong(unit, source)


def run(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; old = set(sys.modules); import edgecrafter; print(sorted(set(sys.modules) - old))"
    assert "torch" not in run(code) and "numpy" not in run(code)


@pytest.mark.parametrize("command", ["train", "teach", "distill", "pipeline", "ablate"])
def test_help_is_quick(command: str) -> None:
    code = f"import sys; from edgecrafter.cli import main; main([{command!r}, '--help']); print('torch' in sys.modules)"
    assert run(code).endswith("False\n")


def test_the_list_of_models_is_quick() -> None:
    code = "import sys; from edgecrafter.cli import main; main(['models']); print('torch' in sys.modules)"
    assert run(code).endswith("False\n")


def test_the_facade_is_light_next_to_torch() -> None:
    code = f"""
import sys, time, random, torch
seed, threads, python = torch.initial_seed(), torch.get_num_threads(), random.getstate()
start = time.process_time()
import edgecrafter
edgecrafter.Model, edgecrafter.quickstart
print(time.process_time() - start)
assert not torch.cuda.is_initialized(), "CUDA was started"
assert (seed, threads, python) == (torch.initial_seed(), torch.get_num_threads(), random.getstate())
heavy = [name for name in {HEAVY!r} if name in sys.modules and name not in sys.stdlib_module_names]
assert not heavy, heavy
"""
    assert float(run(code)) < 0.5


def test_public_names_stay_functions_after_their_submodules_are_imported() -> None:
    code = """
import edgecrafter.train.config, edgecrafter.predict, edgecrafter.quickstart
import edgecrafter as ec
assert all(callable(getattr(ec, name)) for name in ec.__all__), [n for n in ec.__all__ if not callable(getattr(ec, n))]
from edgecrafter.train.config import TrainConfig
assert ec.TrainConfig is TrainConfig
"""
    run(code)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="quickstart"):
        _ = edgecrafter.fit
