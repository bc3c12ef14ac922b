"""Every option of an export, with a line of help each. Nothing else is imported: help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ExportConfig:
    """Write a model for another runtime, with everything that is needed to use it, and prove that it answers as torch
    does. The folder holds the model, metadata.json and infer.py, a script that needs neither torch nor this package."""

    model: str = ""
    """name, weight file or folder of a training run"""
    format: str = "onnx"
    """onnx, onnxruntime (ONNX with that runtime's own operators), openvino, tensorrt, litert, executorch, coreml, ncnn
    or rknn"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; none: the model's own"""
    batch: str = "1"
    """images per call: a number, or dynamic"""
    half: bool = False
    """16 bits; softmax, norms, reference points and boxes keep 32"""
    int8: bool = False
    """8 bits where it costs little; the calibration pictures come from `data`"""
    data: str = ""
    """data set: calibrates int8 and says what it costs in AP; its pictures prove the export"""
    graph: str = "full"
    """full (boxes, scores, labels), raw (logits and boxes of all queries), or npu (two files of static shapes without
    GridSample, TopK and tensors of 5 dimensions; the queries are chosen outside)"""
    max_drop: float | None = None
    """int8: most AP that may be lost, such as 0.01; more is an error; none: any"""
    calibrate: int = 128
    """int8: pictures to calibrate with"""
    images: list[str] = field(default_factory=list)
    """pictures or folders for the proof; empty: those of `data`, else generated ones"""
    opset: int | None = None
    """of ONNX files, 17 or more; none: 20 (17 for npu)"""
    preset: str = ""
    """latency: the protocol of the papers, TensorRT in 16 bits at batch 1 and 640 x 640"""
    folder: str = ""
    """where to write; empty: exports/MODEL_FORMAT..., a number is appended when it exists"""
    device: str = "cpu"
    """where torch answers for the proof"""
