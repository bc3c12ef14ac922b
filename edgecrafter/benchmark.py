"""How fast and how good a model is, format by format, beside a yardstick; all from the same files."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib import metadata as installed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from edgecrafter import hub
from edgecrafter import model as face
from edgecrafter.benchmark_config import BenchmarkConfig
from edgecrafter.benchmark_report import STEPS, Benchmark, Row
from edgecrafter.data import formats as layouts
from edgecrafter.data import images as files
from edgecrafter.data import scenes
from edgecrafter.deployed import infer as runtimes
from edgecrafter.export.formats import FORMATS, Options
from edgecrafter.export.parts import Graph, Part
from edgecrafter.export.run import ParityError
from edgecrafter.geometry.sides import KEEP
from edgecrafter.model import Model
from edgecrafter.models.fuse import fuse
from edgecrafter.postprocess import decode
from edgecrafter.predict import pixels
from edgecrafter.train.state import new_folder

WARM = 3
PAUSE = 0.05
"""seconds between two that take turns: the threads of runtimes keep turning for a while, in each other's way"""
CONF = 0.25
"""least score in the post-processing that is timed"""
PICTURES = 8
PEAK = """
import pathlib, resource, sys
status = pathlib.Path("/proc/self/status")  # what getrusage says begins with the parent's peak on Linux
lines = status.read_text().splitlines() if status.exists() else []
found = [float(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")]
print(*found or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)])
"""
"""prints the peak memory of a process in megabytes"""
TORCH = "torch"
T = TypeVar("T")


def benchmark(config: BenchmarkConfig) -> Benchmark:
    """Measure, and leave the table in ``config.folder``.

    Raises ValueError for formats that are not known or cannot be run here, and what exporting and scoring raise.
    """
    if not config.model:
        raise ValueError("model is missing: say what to measure, such as edgecrafter benchmark runs/detect/train")
    if config.batch < 1 or config.rounds < 1 or config.threads < 0:
        raise ValueError(
            f"batch={config.batch}, rounds={config.rounds}: at least 1; threads={config.threads}: at least 0"
        )
    kinds = [_kind(name, config.graph) for name in config.formats]
    threads = config.threads or os.cpu_count() or 1
    target = Path(config.folder)
    folder = new_folder(target.parent, target.name)
    with _threads(threads):
        loaded = _loaded(config)
        size = loaded._size(config.imgsz) or loaded.info.input.size
        if loaded.info.input.resize == KEEP:
            raise ValueError(f"{loaded.info.name} keeps the ratio of pictures: inputs of many sizes are not timed here")
        pictures = _pictures(config, folder)
        artefacts = [
            _artefact(config, loaded, size, name, kind, folder, threads)
            for name, kind in zip(config.formats, kinds, strict=True)
        ]
        yardsticks = _yardsticks(config, size, kinds, folder, threads)
        rows = [_row(config, each) for each in artefacts]
        _time(config, artefacts, rows, yardsticks, pictures, size)
    found = Benchmark(folder, _conditions(config, loaded, size, threads), rows)
    found.write()
    return found


def _loaded(config: BenchmarkConfig) -> Model:
    if config.weights == "auto":
        return face.load(config.model, "cpu")
    if config.weights != "none" or config.data:
        raise ValueError(f"weights={config.weights}: auto, or none, which is for times only: without data")
    return Model(*hub.create(config.model))


@dataclass
class _Artefact:
    """A model that can be run, and its files."""

    name: str
    kind: str
    model: Model
    folder: Path | None
    """of the export; None: torch"""
    source: str


def _kind(name: str, graph: str) -> str:
    """The format of a name such as ``onnx-int8``, or of the folder of an export."""
    if (Path(name) / runtimes.METADATA).is_file():
        return str(runtimes.metadata(Path(name))["format"])
    kind, _, precision = name.partition("-")
    if kind != TORCH and kind not in FORMATS:
        raise ValueError(f"formats={name}: not known; use {TORCH}, {', '.join(FORMATS)} or the folder of an export")
    known = ("fp32",) if kind == TORCH else FORMATS[kind].precisions
    if precision and precision not in known:
        raise ValueError(f"formats={name}: {kind} is written in {', '.join(known)} here")
    if kind != TORCH and graph not in FORMATS[kind].graphs:
        raise ValueError(f"graph={graph}: {kind} takes {' or '.join(FORMATS[kind].graphs)}")
    if kind != TORCH and not (FORMATS[kind].runtime and runtimes.SESSIONS[FORMATS[kind].runtime].available()):
        raise ValueError(f"formats={name}: nothing here can run it; pip install 'edgecrafter[{FORMATS[kind].extra}]'")
    return kind


def _artefact(
    config: BenchmarkConfig, loaded: Model, size: tuple[int, int], name: str, kind: str, folder: Path, threads: int
) -> _Artefact:
    if kind == TORCH:
        return _Artefact(name, kind, Model(fuse(loaded.detector()), loaded.info), None, config.model)
    where = Path(name)
    if not (where / runtimes.METADATA).is_file():
        precision = name.partition("-")[2]
        try:
            where = loaded.export(
                format=kind, half=precision == "fp16", int8=precision == "int8", graph=config.graph, imgsz=list(size),
                batch=str(config.batch), data=config.data, folder=str(folder / name),
            ).folder  # fmt: skip
        except ParityError as error:  # it is timed all the same; the table says how far it is from torch
            print(f"{name}: {error}", file=sys.stderr)
            where = error.folder
    made = runtimes.metadata(where)["input"]
    if tuple(made["size"]) != tuple(size) or made["batch"] not in (None, config.batch):
        raise ValueError(
            f"formats={name}: made for {made['size'][0]} x {made['size'][1]} pixels and batch {made['batch']}, not for "
            f"imgsz={size[0]},{size[1]} and batch={config.batch}; give what it was made for"
        )
    from edgecrafter.deployed.network import load

    return _Artefact(name, kind, Model(*load(where, threads=threads)), where, str(where))  # type: ignore[arg-type]


def _row(config: BenchmarkConfig, artefact: _Artefact) -> Row:
    """Everything but the times."""
    scores = None
    if config.data:
        overall = artefact.model.val(config.data, batch=config.batch, progress=False).overall
        scores = {name: value for name, value in overall.items() if name in ("AP", "AP50", "AP75")}
    parity = None
    if artefact.folder is not None:
        parity = runtimes.metadata(artefact.folder).get("parity")
    return Row(artefact.name, _megabytes(artefact), scores, _peak(artefact, config.weights), parity=parity)


def _megabytes(artefact: _Artefact) -> float:
    """Of what a device needs: the files of an export, or the weights."""
    if artefact.folder is None:
        return float(
            sum(each.numel() * each.element_size() for each in artefact.model.network.state_dict().values()) / 1e6
        )
    names = {"infer.py", runtimes.METADATA}
    return (
        sum(path.stat().st_size for path in artefact.folder.rglob("*") if path.is_file() and path.name not in names)
        / 1e6
    )


def _peak(artefact: _Artefact, weights: str) -> float:
    """Megabytes of a fresh process that predicts once; an export runs without torch, by the script beside it."""
    if artefact.folder is None:
        given = f"benchmark._loaded(BenchmarkConfig({artefact.source!r}, {weights!r}))"
        imports = "from edgecrafter import benchmark; from edgecrafter.benchmark_config import BenchmarkConfig"
        work = f"{imports}; {given}.fuse().predict(picture)"
    else:
        place = repr(str(artefact.folder.resolve()))
        work = f"import sys; sys.path.insert(0, {place}); import infer; infer.Model({place}).predict([picture])"
    code = (
        "import numpy; from PIL import Image; picture = Image.fromarray(numpy.zeros((480, 640, 3), 'uint8'))\n"
        f"{work}\n{PEAK}"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{artefact.name}: it does not run in a process of its own; what it said stands above")
    return float(done.stdout.split()[-1])


def _pictures(config: BenchmarkConfig, folder: Path) -> list[Path]:
    """Files to time with."""
    if config.data:
        annotations = layouts.load(Path(config.data), "val")
        return [annotations.path(index) for index in range(min(PICTURES, len(annotations)))]
    place = folder / "pictures"
    place.mkdir()
    found = []
    for index in range(PICTURES):
        path = place / f"scene_{index}.jpg"
        Image.fromarray(scenes.scene(np.random.default_rng([20, index]), 640).image).save(path, quality=92)
        found.append(path)
    return found


def _yardsticks(
    config: BenchmarkConfig, size: tuple[int, int], kinds: Sequence[str], folder: Path, threads: int
) -> dict[str, Callable[[], Any]]:
    """For every format a call of the yardstick, in 32 bits, exported and run the same way."""
    if config.yardstick in ("", "none"):
        return {}
    from torchvision import models

    if config.yardstick not in models.list_models(module=models):
        raise ValueError(f"yardstick={config.yardstick}: torchvision has no such model for classification")
    network = models.get_model(config.yardstick, weights=None).eval()
    images = torch.rand(config.batch, 3, *size, generator=torch.Generator().manual_seed(0))
    found: dict[str, Callable[[], Any]] = {}
    for kind in dict.fromkeys(kinds):
        if kind == TORCH:
            found[kind] = lambda: network(images)
            continue
        place = folder / f"{config.yardstick}_{kind}"
        place.mkdir()
        graph = Graph("raw", [Part("model", _Alone(network), {"images": images}, ("logits",))], False)
        FORMATS[kind].write(graph, place, Options())
        part = {"file": f"model{FORMATS[kind].suffix}", "inputs": {"images": list(images.shape)}, "outputs": ["logits"]}
        meta = {"input": {"size": list(size), "batch": config.batch}, "parts": [part], "graph": "raw",
                "runtime": FORMATS[kind].runtime, "precision": "fp32", "facts": {}, "format": kind}  # fmt: skip
        session = runtimes.open_session(place, meta, threads)
        found[kind] = lambda session=session: session.run(images.numpy())  # type: ignore[misc]
    return found


class _Alone(nn.Module):
    """A network with one answer as a part of a graph has it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.network(images),)


def _time(
    config: BenchmarkConfig,
    artefacts: Sequence[_Artefact],
    rows: Sequence[Row],
    yardsticks: dict[str, Callable[[], Any]],
    pictures: Sequence[Path],
    size: tuple[int, int],
) -> None:
    """Rounds in which everything has its turn, the yardstick of a format right beside it.

    Every turn is two calls, of which the second counts: after a pause the first is slower by as much as 30 ms, which is
    more of a fast model than of a slow one.
    """
    with torch.inference_mode():
        for number in range(WARM + config.rounds):
            chosen = [pictures[(number * config.batch + i) % len(pictures)] for i in range(config.batch)]
            for artefact, row in zip(artefacts, rows, strict=True):
                seconds = _second(partial(_call, artefact.model, chosen, size))
                beside = _second(partial(_clocked, yardsticks[artefact.kind])) if yardsticks else None
                if number >= WARM:
                    for step, value in zip(STEPS, seconds, strict=True):
                        row.seconds[step].append(value)
                    row.yardstick += [] if beside is None else [beside]


def _call(model: Model, paths: Sequence[Path], size: tuple[int, int]) -> tuple[float, float, float]:
    """Seconds of the three steps for some pictures."""
    start = time.perf_counter()
    pictures = [files.read(path) for path in paths]
    inputs = model.info.input.normalise(torch.stack([pixels(picture, size) for picture in pictures]))
    ready = time.perf_counter()
    layer = model.network(inputs).layers[-1]
    answered = time.perf_counter()
    sizes = [(picture.height, picture.width) for picture in pictures]
    decode(layer, sizes, conf=CONF, owned=model.info.labels.owned())
    return ready - start, answered - ready, time.perf_counter() - answered


def _second(call: Callable[[], T]) -> T:
    time.sleep(PAUSE)
    call()
    return call()


def _clocked(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _conditions(config: BenchmarkConfig, loaded: Model, size: tuple[int, int], threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    tools = ("torch", "onnxruntime", "openvino", "ai-edge-litert", "executorch", "ncnn", "tensorrt")
    versions = {}
    for tool in tools:
        try:
            versions[tool] = installed.version(tool)
        except installed.PackageNotFoundError:
            continue
    return {
        "model": loaded.info.name,
        "source": loaded.info.source,
        "input": f"{size[0]} x {size[1]}",
        "batch": config.batch,
        "threads": threads,
        "rounds": config.rounds,
        "yardstick": "" if config.yardstick == "none" else config.yardstick,
        "data": config.data or "generated pictures of 640 x 640",
        "graph": config.graph,
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}{_gpu()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": date.today().isoformat(),
    }


def _gpu() -> str:
    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
