"""One row per model, format and precision: does it export, how close is it, how fast is it beside torch, how large?

Random weights with spread scores, unless files are given: they cost the same, and the best detections are the best by
far, so that a comparison means something. torch and the runtime take turns; ratios are medians. Use an idle machine.

    python benchmarks/formats.py [--models ecdet-n,ecpose-n] [--formats onnx,openvino] [--size 320] [--write]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

import edgecrafter as ec
from edgecrafter import hub
from edgecrafter.benchmark import _processor
from edgecrafter.deployed import infer as runtimes
from edgecrafter.deployed.network import load
from edgecrafter.export.formats import FORMATS
from edgecrafter.export.formats import onnx as onnx_format
from edgecrafter.export.parts import Part
from edgecrafter.export.run import ParityError
from edgecrafter.model import Model

PAGE = Path(__file__).parent
MODELS = "ecdet-n,ecinsseg-n,ecpose-n,rtdetrv4-p,deim-s,dfine-s,rtdetrv2-r18,dab-detr-r18,deformable-detr-r18,dino-r18"
Clock = Callable[[], Any]


def lively(name: str) -> Model:
    """A model by name with random weights, of which none is zero and whose scores are spread; or a trained one."""
    if Path(name).exists():
        return ec.load(name, "cpu")
    torch.manual_seed(3)
    network, info = hub.create(name)
    with torch.no_grad():
        for key, parameter in network.decoder.named_parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(std=0.1)
            if "score" in key and key.endswith("weight"):
                parameter.mul_(20)
    return Model(network.eval(), info)


@contextmanager
def traced_once() -> Iterator[None]:
    """Inside, torch's exporter runs once for each graph of a model, which takes most of the time of an export."""
    found: dict[str, Any] = {}
    make = onnx_format.model

    def once(part: Part, *given: Any) -> Any:
        own = sorted({type(block).__name__ + str("attend" in vars(block)) for block in part.module.modules()})
        key = str((part.name, part.outputs, [each.shape for each in part.inputs.values()], given, own))
        if key not in found:
            found[key] = make(part, *given)
        return copy.deepcopy(found[key])

    onnx_format.model = once  # type: ignore[assignment]
    try:
        yield
    finally:
        onnx_format.model = make


def row(model: Model, kind: str, precision: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """The cells of one export."""
    graph = args.graph if args.graph in FORMATS[kind].graphs else FORMATS[kind].graphs[0]
    options: dict[str, Any] = {"format": kind, "graph": graph, "imgsz": args.size, "folder": str(folder)}
    try:
        found = model.export(**options, half=precision == "fp16", int8=precision == "int8", data=args.data)
        status = "passes" if found.parity else "written, not run"
    except ParityError as error:
        folder = error.folder
        found, status = None, "differs"
    except Exception as error:
        if args.trace:
            traceback.print_exc()
        return [kind, precision, graph, f"fails: {str(error).splitlines()[0][:90]}", "", "", ""]
    meta = runtimes.metadata(folder if found is None else found.folder)
    parity = meta.get("parity")
    place = folder if found is None else found.folder
    size = sum(path.stat().st_size for path in place.iterdir() if path.name not in ("infer.py", "metadata.json")) / 1e6
    close = "" if parity is None else f"{parity['box_px']:.2g} px, {parity['score']:.2g}"
    if parity and parity["missing"]:
        close += f", {parity['missing']} of {parity['detections']} missing"
    ratio = "" if parity is None else beside(model, place, args)
    return [kind, precision, graph, status, close, ratio, f"{size:.1f} MB"]


def beside(model: Model, place: Path, args: argparse.Namespace) -> str:
    """Time of the exported network relative to torch's fused one, in turns."""
    deployed, info = load(place, threads=args.threads)
    height, width = info.input.size
    image = torch.rand(1, 3, height, width)
    normal, fused = model.info.input.normalise(image), model.fuse().network
    ratios = []
    with torch.inference_mode():
        for number in range(args.rounds + 2):
            theirs, ours = clocked(lambda: deployed(image)), clocked(lambda: fused(normal))
            ratios += [theirs / ours] if number > 1 else []
    return f"{statistics.median(ratios):.2f}"


def clocked(work: Clock) -> float:
    """Seconds of a call; one that does not count comes before it."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--formats", default="onnx,onnx-fp16,openvino,openvino-fp16")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--graph", default="raw")
    parser.add_argument("--data", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trace", action="store_true", help="print why something failed")
    parser.add_argument("--write", action="store_true", help="append to a page beside this script")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    heads = ["model", "format", "precision", "graph", "proof", "differences", "time / torch", "size"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    print("\n".join(lines))
    for name in args.models.split(","):
        model = lively(name)
        with traced_once():
            for each in args.formats.split(","):
                kind, _, precision = each.partition("-")
                with tempfile.TemporaryDirectory() as folder:
                    cells = row(model, kind, precision or "fp32", args, Path(folder) / "export")
                lines.append(f"| {' | '.join([model.info.name, *cells])} |")
                print(lines[-1], flush=True)
    if args.write:
        given = " ".join(f"--{key} {value}" for key, value in vars(args).items() if value and key != "write")
        head = (
            f"`python benchmarks/formats.py {given}`, {_processor()}, {os.cpu_count()} cores, torch {torch.__version__}"
        )
        page = PAGE / f"{date.today()}_formats.md"
        before = page.read_text() if page.exists() else f"# Exports beside torch, {date.today()}\n"
        page.write_text("\n".join([before, head, "", *lines, ""]))


if __name__ == "__main__":
    main()
