"""TensorRT, for NVIDIA GPUs: an engine for the very GPU and version that it is built with, from the ONNX model.

Networks are strongly typed, the only kind since TensorRT 11: the types of the ONNX model are those of the engine, and
16 bits stay out of softmax, norms, reference points and boxes (``half``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecrafter.export.formats import Options
from edgecrafter.export.formats import onnx as onnx_format
from edgecrafter.export.parts import Graph, Part

BATCHES = (1, 8, 32)
"""least, usual and most images of an engine with a dynamic batch"""
WORKSPACE = 4 << 30
"""bytes that building and running may use at most for intermediate results"""


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.engine`` for every part; an engine cannot hold metadata.

    Raises ValueError where there is no GPU, and with the parser's own words for a graph that it cannot take.
    """
    import tensorrt as trt

    for part in graph.parts:
        proto = onnx_format.prepared(graph, part, options)
        if options.precision == "fp16":
            from edgecrafter.export.half import halved

            proto = halved(proto)
        engine = build(trt, proto.SerializeToString(), part, graph.dynamic)
        (folder / f"{part.name}.engine").write_bytes(engine)


def build(trt: Any, model: bytes, part: Part, dynamic: bool) -> bytes:
    """The engine of one ONNX model; ``trt`` is the module ``tensorrt``."""
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except Exception as error:
        raise ValueError(
            f"tensorrt: no builder ({error}). An engine is built on the GPU that will run it: this takes an NVIDIA GPU "
            "and its driver. Export format=onnx here and build there"
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ValueError(f"tensorrt cannot take {part.name}: {said}. Try graph=npu, or opset=17")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.clear_flag(trt.BuilderFlag.TF32)  # 32 bits are to be 32 bits
    if dynamic:
        config.add_optimization_profile(_profile(builder, part))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(f"tensorrt could not build an engine of {part.name}: see its messages above")
    return bytes(engine)


def _profile(builder: Any, part: Part) -> Any:
    """Every input with the batches of ``BATCHES``."""
    profile = builder.create_optimization_profile()
    for name, example in part.inputs.items():
        least, usual, most = ((batch, *example.shape[1:]) for batch in BATCHES)
        profile.set_shape(name, least, usual, most)
    return profile
