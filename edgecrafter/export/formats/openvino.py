"""OpenVINO, by way of the ONNX file: as fast as what it makes of the torch program, and its layers keep their names."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgecrafter.export.formats import Options
from edgecrafter.export.formats import onnx as onnx_format
from edgecrafter.export.parts import Graph
from edgecrafter.files import written_beside

EXECUTION: dict[str, dict[str, str]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "fp16": {"INFERENCE_PRECISION_HINT": "f32"},
    "int8": {},
}
"""precision -> properties that the session gives OpenVINO (``execution`` of the metadata, where they can be changed).

Left alone, OpenVINO computes in bfloat16 on CPUs that have it, 8 bits of mantissa. In 32 bits that is not what was
asked for. In ``fp16`` weights are stored in 16 bits and everything is computed in 32; on a GPU, or where accuracy
matters less than time, take ``f16`` or ``bf16``. In ``int8`` the runtime may do as it likes with what is not in 8 bits,
above all the products of attention; ``f32`` makes the answers the same on all machines.
"""


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.xml`` and ``<part>.bin`` for every part; the metadata are in each, as ``rt_info/edgecrafter``."""
    import openvino

    options.metadata["execution"] = EXECUTION[options.precision]
    for part in graph.parts:
        proto = onnx_format.prepared(graph, part, options)
        model = converted(proto)
        if options.precision == "int8":
            from edgecrafter.export.int8 import openvino_int8

            model = openvino_int8(model, proto, part, options.calibration)
        model.set_rt_info("", ["edgecrafter"])
        path = folder / f"{part.name}.xml"
        openvino.save_model(model, path, compress_to_fp16=options.precision == "fp16")
        describe(path, options.metadata)


def describe(path: Path, metadata: dict[str, Any]) -> None:
    """Put the metadata into a file, as ``rt_info/edgecrafter``."""
    tree = ElementTree.parse(path)
    place = tree.find("rt_info/edgecrafter")
    assert place is not None, "written by OpenVINO just now"
    place.set("value", json.dumps(metadata))
    with written_beside(path) as beside:
        tree.write(beside, encoding="utf-8", xml_declaration=True)


def converted(proto: Any) -> Any:
    """An ONNX model as ``openvino.Model``; nodes and tensors have the same names."""
    import onnx
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        return openvino.convert_model(path)
