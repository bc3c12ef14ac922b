"""RKNN, for Rockchip's neural processing units (RK3588 and others), through rknn-toolkit2.

The toolkit wants torch 2.4 or older and this package a newer one, so that it runs in a Python of its own, which the
environment variable RKNN_PYTHON names. The units compute in float16, or in 8 bits.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgecrafter.export.formats import Options
from edgecrafter.export.formats import onnx as onnx_format
from edgecrafter.export.parts import Graph, Part

TARGET = "rk3588"
"""the chip; another one: the environment variable RKNN_TARGET"""


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.rknn`` for every part. int8 is for the part that takes pictures, the others stay in float16.

    Raises ValueError where no Python with the toolkit is known, and with the toolkit's own words.
    """
    python = toolkit_python()
    import onnx

    for part in graph.parts:  # of opset 17, as all npu graphs are: the toolkit's ONNX knows no later Split
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            onnx.save(onnx_format.prepared(graph, part, options), work / "part.onnx")
            quantised = options.precision == "int8" and "images" in part.inputs
            spec = {
                "onnx": str(work / "part.onnx"),
                "rknn": str((folder / f"{part.name}.rknn").resolve()),
                "target": os.environ.get("RKNN_TARGET", TARGET),
                "metadata": _short(options.metadata),
                "dataset": _dataset(work, part, options) if quantised else None,
            }
            run(python, spec, work)


def toolkit_python() -> str:
    """The Python to run the toolkit with: RKNN_PYTHON, or this one."""
    named = os.environ.get("RKNN_PYTHON")
    if named and shutil.which(named) is None:
        raise ValueError(
            f"RKNN_PYTHON={named}: no such program; expected the Python of an environment with rknn-toolkit2"
        )
    if not named and importlib.util.find_spec("rknn") is None:
        raise ValueError(
            "format=rknn: rknn cannot be imported here, and wants an older torch than edgecrafter. Make rknn-toolkit2 "
            "an environment of its own (python -m venv rknn && rknn/bin/pip install rknn-toolkit2 'setuptools<80') and "
            "set RKNN_PYTHON=rknn/bin/python"
        )
    return named or sys.executable


def run(python: str, spec: Mapping[str, Any], work: Path) -> None:
    """Have ``rknn_build`` do what ``spec`` says, in ``work``: alone there, as the toolkit imports a module ``onnx``."""
    script, told = work / "rknn_build.py", work / "spec.json"
    shutil.copyfile(Path(__file__).with_name("rknn_build.py"), script)
    told.write_text(json.dumps(spec), encoding="utf-8")
    done = subprocess.run([python, str(script), str(told)], cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        part, said = Path(spec["rknn"]).stem, (done.stderr + done.stdout).strip()[-1500:]
        raise ValueError(f"rknn-toolkit2 could not convert {part}: {said}")


def _short(metadata: Mapping[str, Any]) -> str:
    """What fits of the metadata: the toolkit takes less than 1024 characters."""
    kept = {
        name: metadata[name] for name in ("edgecrafter", "graph", "precision", "sha256", "licence") if name in metadata
    }
    name = metadata.get("model", {}).get("name", "")
    return json.dumps({**kept, "name": name})[:1023]


def _dataset(work: Path, part: Part, options: Options) -> str:
    """The file that lists the files of the calibration inputs."""
    names, lines = list(part.inputs), []
    for number, feed in enumerate(options.calibration.feeds(names, len(part.inputs["images"]))):
        files = [work / f"{number}_{name}.npy" for name in names]
        for name, file in zip(names, files, strict=True):
            np.save(file, feed[name])
        lines.append(" ".join(str(file) for file in files))
    (work / "dataset.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(work / "dataset.txt")
