"""Eight bits: after training, with ranges from calibration pictures, and with what that costs.

Weights take int8, one scale per output channel; activations take uint8, one scale per tensor. Which layers are left in
floating point is said by ``models.eightbit``.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgecrafter.data.annotations import Annotations
from edgecrafter.evaluate import evaluate
from edgecrafter.export import layers
from edgecrafter.export.calibration import Calibration
from edgecrafter.export.parts import Part
from edgecrafter.hub import ModelInfo
from edgecrafter.models.eightbit import kept, stays

IMAGES = "images"
"""the input of parts that calibration pictures can be fed to"""
OPERATORS = ["Conv", "MatMul", "Gemm"]


def onnx_int8(proto: Any, path: Path, part: Part, calibration: Calibration) -> None:
    """Write an ONNX model with quantised convolutions and matrix products (QDQ) for ONNX Runtime.

    Args:
        proto: the model in 32 bits; it is changed.
        path: of the file to write.
        part: of the graph. One that takes no pictures (the decoder of the npu graph) is written in 32 bits.
        calibration: pictures, and the layers to leave.
    """
    import onnx

    nodes = layers.layers_of(proto)
    chosen = [node for node, layer in nodes.items() if not stays(layer, calibration.kept)]
    if IMAGES in part.inputs and chosen:
        feeds = calibration.feeds(list(part.inputs), len(part.inputs[IMAGES]))
        proto = quantised(proto, ranges(proto, feeds), chosen)
    onnx.save(proto, path)


def ranges(proto: Any, feeds: Iterator[dict[str, Any]]) -> Any:
    """The least and greatest value of every input and output of the layers of an ONNX model, over all ``feeds``."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        plain, augmented = Path(folder) / "model.onnx", str(Path(folder) / "augmented.onnx")
        onnx.save(proto, plain)
        calibrator = create_calibrator(
            plain, OPERATORS, augmented_model_path=augmented, calibrate_method=CalibrationMethod.MinMax
        )
        for feed in feeds:
            calibrator.collect_data(_Reader(iter([feed])))
        return calibrator.compute_data()


def quantised(proto: Any, found: Any, chosen: Sequence[str]) -> Any:
    """A copy of an ONNX model with 8 bits in the nodes called ``chosen``; ``found`` are its ``ranges``."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copied = copy.deepcopy(proto)
    bias_in_rows(copied)
    with _quiet():
        quantizer = QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,  # kernels of x86 multiply unsigned by signed
            tensors_range=found,
            nodes_to_quantize=list(chosen),
            nodes_to_exclude=[],
            op_types_to_quantize=list(OPERATORS),
            # sums of products are 32 bits wide: rounding them to 8 would cost accuracy and time
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        quantizer.quantize_model()
    return quantizer.model.model


def bias_in_rows(proto: Any) -> None:
    """Give the biases of matrix products the shape [1, 1, N].

    ONNX Runtime makes one ``Gemm`` of a product and a bias [N], for which it has no 8-bit kernel without rounding the
    result. With this shape it keeps them apart, and the product becomes a ``MatMulIntegerToFloat``.
    """
    from onnx import numpy_helper

    values = {each.name: each for each in proto.graph.initializer}
    products = {n.output[0] for n in proto.graph.node if n.op_type == "MatMul"}
    made: set[str] = set()
    for node in proto.graph.node:
        if node.op_type != "Add" or not products & set(node.input):
            continue
        for place, name in enumerate(node.input):
            if name in values and len(values[name].dims) == 1:
                rows = f"{name}.rows"
                if rows not in made:
                    made.add(rows)
                    array = numpy_helper.to_array(values[name])
                    proto.graph.initializer.append(numpy_helper.from_array(array[None, None], rows))
                node.input[place] = rows
    used = {name for node in proto.graph.node for name in node.input}
    left = [each for each in proto.graph.initializer if each.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(left)


class _Reader:
    """What ONNX Runtime's calibration reads from."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self.feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' own remarks."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def openvino_int8(model: Any, proto: Any, part: Part, calibration: Calibration) -> Any:
    """An OpenVINO model with quantised convolutions and matrix products, by NNCF.

    ``proto`` is the ONNX model that ``model`` was made of, whose nodes have the same names.
    """
    if IMAGES not in part.inputs:
        return model
    try:
        import nncf
    except ImportError as error:
        raise ValueError(f"int8 for OpenVINO needs NNCF ({error}): pip install 'edgecrafter[openvino]'") from None
    present = {node.get_friendly_name() for node in model.get_ordered_ops()}
    nodes = layers.layers_of(proto)
    left = [n for n, layer in nodes.items() if n in present and stays(layer, calibration.kept)]
    feeds = list(calibration.feeds(list(part.inputs), len(part.inputs[IMAGES])))
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
        ignored_scope=nncf.IgnoredScope(names=left, validate=False),
    )


def report(
    network: nn.Module,
    info: ModelInfo,
    deployed: nn.Module,
    seen: ModelInfo,
    annotations: Annotations,
    size: tuple[int, int],
) -> dict[str, Any]:
    """What 8 bits cost on a validation split: ``AP`` of the export, ``AP_fp32`` of torch, their difference ``drop``.

    ``network`` and ``info`` are the model; ``deployed`` and ``seen`` what ``deployed.network.load`` gave for the
    export; ``size`` is the input's. AP is of what the task counts first: boxes, masks or keypoints. ``kept`` are the
    patterns of layers in floating point, and ``text`` says all of it in a line.
    """
    ours = evaluate(network, info, annotations, batch=1, size=size).overall["AP"]
    theirs = evaluate(deployed, seen, annotations, batch=1).overall["AP"]
    if math.isnan(ours):
        raise ValueError(f"{annotations.root}: no objects in the validation split, so that INT8 cannot be judged there")
    drop = ours - theirs
    text = f"int8: AP {theirs:.4f} against {ours:.4f} in 32 bits, {drop:+.4f} lost, on {len(annotations)} pictures"
    return {
        "AP": round(theirs, 5),
        "AP_fp32": round(ours, 5),
        "drop": round(drop, 5),
        "images": len(annotations),
        "kept": list(kept(info.size.arch)),
        "text": text,
    }
