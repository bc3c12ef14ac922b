"""Export a model: write, describe, prove."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgecrafter.data import check
from edgecrafter.data import formats as layouts
from edgecrafter.export import metadata, parity
from edgecrafter.export.config import ExportConfig
from edgecrafter.export.formats import FORMATS, Format, Options
from edgecrafter.export.graph import graph
from edgecrafter.geometry.sides import KEEP
from edgecrafter.hub import ModelInfo
from edgecrafter.models.network import Detector
from edgecrafter.predict import Predictor, input_size
from edgecrafter.tasks import TASKS

PICTURES = 8
"""of a data set, for the proof"""
LATENCY = {"format": "tensorrt", "half": True, "batch": "1", "imgsz": 640}
"""the protocol behind the latencies of the papers: TensorRT, 16 bits, batch 1, 640 x 640, of the model without
post-processing beyond the choice of the best 300"""
PRESETS: dict[str, dict[str, Any]] = {"latency": LATENCY}


class ParityError(ValueError):
    """An export that does not answer as torch does; its files are kept under a name that says so: ``folder``."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


@dataclass
class Exported:
    """The outcome of an export."""

    folder: Path
    metadata: dict[str, Any]
    parity: parity.Parity | None
    """None: no runtime here can run the files"""

    def __str__(self) -> str:
        sizes = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        lines = [f"export: {self.folder} ({sizes / 1e6:.1f} MB)"]
        lines += [str(self.parity) if self.parity else "parity: NOT CHECKED, no runtime here can run these files"]
        if "int8" in self.metadata:
            lines.append(self.metadata["int8"]["text"])
        return "\n".join(lines)


def export(network: Detector, info: ModelInfo, config: ExportConfig) -> Exported:
    """Write a model for another runtime and compare its answers with torch's.

    Args:
        network: a trained or random one; it is copied, never changed.
        info: of the model.
        config: what to write.

    Raises:
        ValueError: options that do not go together or a missing tool.
        ParityError: the answers differ by more than the tolerance, or int8 costs more AP than ``max_drop``. The files
            are then in a folder whose name ends in ``_failed``.
    """
    config = _with_preset(config)
    kind, precision, batch = _format(config, info)
    size = info.input.size if config.imgsz is None else input_size(config.imgsz)
    annotations = _data(config, info)
    made = graph(network, info, config.graph, size, batch)
    content = metadata.described(made, network, info, kind, size, batch, precision)
    name = f"{info.name}_{kind.module}" + ("" if precision == "fp32" else f"_{precision}")
    target = _free(Path(config.folder).expanduser().resolve() if config.folder else Path("exports") / name)
    with _folder_beside(target) as beside:
        calibration = _calibration(config, info, annotations, size) if precision == "int8" else None
        kind.write(made, beside, Options(precision, content, calibration, config.opset))
        metadata.write(beside, content)
        (beside / "infer.py").write_text(metadata.script(), encoding="utf-8")
        failed, reason = "", None
        try:
            exported = _proved(network, info, config, kind, content, beside, size, annotations)
        except Exception as error:  # what was written is not lost: it is what one looks at to see why
            exported, reason = Exported(beside, content, None), error
            failed = f"the export cannot be proved: {error}"
        failed = failed or _failure(exported, config)
        if failed:
            target = _free(target.with_name(f"{target.name}_failed"))
        metadata.write(beside, exported.metadata)
        kind.describe([beside / part["file"] for part in content["parts"]], exported.metadata)
        os.replace(beside, target)
    exported.folder = target
    if failed:
        raise ParityError(f"{failed}. The files are kept in {target}", target) from reason
    return exported


def _with_preset(config: ExportConfig) -> ExportConfig:
    if not config.preset:
        return config
    if config.preset not in PRESETS:
        raise ValueError(f"preset={config.preset!r} is not known: use one of {', '.join(PRESETS)}")
    preset, plain = PRESETS[config.preset], ExportConfig()
    for name, value in preset.items():
        given = getattr(config, name)
        if given not in (getattr(plain, name), value):
            raise ValueError(f"preset={config.preset} means {name}={value}, not {given}: leave one of them out")
    return replace(config, **preset)


def _format(config: ExportConfig, info: ModelInfo) -> tuple[Format, str, int | None]:
    """The format, the precision and the batch (None: any)."""
    if config.format not in FORMATS:
        raise ValueError(f"format={config.format!r} is not known: use one of {', '.join(FORMATS)}")
    kind = FORMATS[config.format]
    if config.half and config.int8:
        raise ValueError("half and int8: give one of them; what int8 leaves out stays in 32 bits")
    precision = "fp16" if config.half else "int8" if config.int8 else "fp32"
    if precision not in kind.precisions:
        raise ValueError(f"format={config.format} is written in {', '.join(kind.precisions)} here, not in {precision}")
    if config.graph not in kind.graphs:
        raise ValueError(f"format={config.format} takes graph={' or '.join(kind.graphs)}, not {config.graph}")
    if config.graph == "npu" and info.input.resize == KEEP:
        raise ValueError(
            f"{info.name}: the classic detectors have no npu graph; use graph=full or raw with format=onnx"
        )
    if config.int8 and not config.data:
        raise ValueError("int8 needs pictures like those that it will see: give data=DATASET")
    if config.max_drop is not None and not config.int8:
        raise ValueError("max_drop is for int8: 16 and 32 bits are judged by the differences to torch")
    if config.calibrate != ExportConfig.calibrate and not config.int8:
        raise ValueError("calibrate is for int8: give both, or neither")
    if config.opset is not None and not kind.opset:
        raise ValueError(f"opset={config.opset}: format={config.format} is not made of an ONNX file; leave it out")
    return kind, precision, _batch(config, kind)


def _batch(config: ExportConfig, kind: Format) -> int | None:
    if config.batch == "dynamic":
        if not kind.dynamic or config.graph == "npu":
            raise ValueError(
                f"batch=dynamic: format={config.format} graph={config.graph} has fixed shapes; give a number"
            )
        return None
    if not str(config.batch).isdigit() or int(config.batch) < 1:
        raise ValueError(f"batch={config.batch}: expected a number of images, 1 or more, or dynamic")
    if kind.single and int(config.batch) > 1:
        raise ValueError(f"batch={config.batch}: format={config.format} takes one image per call; leave it out")
    return int(config.batch)


def _data(config: ExportConfig, info: ModelInfo) -> Any:
    """The validation split, or None."""
    if not config.data:
        return None
    return check.usable(layouts.load(Path(config.data), "val", info.labels, truth=TASKS[info.task].truth))


def _calibration(config: ExportConfig, info: ModelInfo, annotations: Any, size: tuple[int, int]) -> Any:
    from edgecrafter.export.calibration import Calibration

    return Calibration.of(config.data, info, size, config.calibrate)


def _proved(
    network: Detector,
    info: ModelInfo,
    config: ExportConfig,
    kind: Format,
    content: dict[str, Any],
    folder: Path,
    size: tuple[int, int],
    annotations: Any,
) -> Exported:
    """Run what was written, if something here can."""
    from edgecrafter.deployed.infer import SESSIONS

    if not kind.runtime or not SESSIONS[kind.runtime].available():
        return Exported(folder, content, None)
    from edgecrafter.deployed.network import load

    deployed, seen = load(folder)
    found = [str(annotations.path(i)) for i in range(min(PICTURES, len(annotations)))] if config.data else []
    pictures = parity.pictures(config.images, found)
    precision = content["precision"]
    # torch sees the very inputs of the export: of this size, and padded in the same way
    same = replace(info, input=replace(info.input, size=size, resize=seen.input.resize))
    network = copy.deepcopy(network)
    reference = Predictor(network, same, config.device)
    result = parity.compare(reference, Predictor(deployed, seen), pictures, size, parity.TOLERANCES.get(precision))
    content["parity"] = result.to_dict()
    if precision == "int8":
        from edgecrafter.export.int8 import report

        content["int8"] = report(network, same, deployed, seen, annotations, size)
    return Exported(folder, content, result)


def _failure(exported: Exported, config: ExportConfig) -> str:
    """What is wrong with an export; empty: nothing."""
    if exported.parity is not None and not exported.parity.passed:
        return str(exported.parity)
    if config.max_drop is not None:
        if "int8" not in exported.metadata:
            return f"max_drop={config.max_drop}: nothing here can run {config.format}, so that the drop is not known"
        drop = exported.metadata["int8"]["drop"]
        if not drop <= config.max_drop:
            return f"int8 costs {drop:.4f} AP, more than max_drop={config.max_drop}"
    return ""


def _free(folder: Path) -> Path:
    """The folder, or one with a number behind it where that exists."""
    number, found = 2, folder
    while found.exists():
        found, number = folder.with_name(f"{folder.name}{number}"), number + 1
    return found


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder to write into, which is gone afterwards unless it was renamed."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        with torch.inference_mode(False):
            yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
