"""Every option of a benchmark, with a line of help each. Nothing else is imported: help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BenchmarkConfig:
    """How fast and how good a model is in every format: the very files that are timed are scored. A yardstick runs in
    turns with them, so that figures of different machines can be compared."""

    model: str = ""
    """name, weight file or folder of a training run"""
    weights: str = "auto"
    """auto (the model's own), or none: random ones, for times without scores"""
    formats: list[str] = field(default_factory=lambda: ["torch", "onnx", "openvino"])
    """what to compare: torch, onnx, openvino and so on, with -fp16 or -int8 behind: onnx-int8; or folders of exports"""
    data: str = ""
    """data set to score on, and to calibrate int8; its pictures are the ones that are timed; empty: generated pictures,
    and no scores"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; none: the model's own"""
    batch: int = 1
    """pictures per call"""
    threads: int = 0
    """threads of every runtime (ExecuTorch and Core ML have their own); 0: as many as there are cores"""
    rounds: int = 20
    """turns of everything that are counted, after three that are not"""
    graph: str = "raw"
    """of the exports: raw, full or npu"""
    yardstick: str = "resnet50"
    """torchvision model in 32 bits that is exported and run the same way; none: no yardstick"""
    folder: str = "runs/benchmark/benchmark"
    """where table, plot and exports go; a number is appended when it exists"""
