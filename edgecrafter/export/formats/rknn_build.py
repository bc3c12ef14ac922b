"""Runs under the Python that has rknn-toolkit2, which needs an older torch than this package: imports nothing of it.

python rknn_build.py SPEC.json
"""

import json
import sys
from typing import Any


def build(spec: dict[str, Any]) -> None:
    """``spec``: onnx, rknn (files), target, metadata (text), dataset (file of calibration inputs, or null)."""
    from rknn.api import RKNN

    rknn = RKNN(verbose=False)

    def done(code: int, what: str) -> None:
        if code != 0:
            raise SystemExit(f"rknn-toolkit2: {what} failed ({code}), see its messages above")

    rknn.config(target_platform=spec["target"], custom_string=spec["metadata"])
    done(rknn.load_onnx(model=spec["onnx"]), "load_onnx")
    done(rknn.build(do_quantization=spec["dataset"] is not None, dataset=spec["dataset"]), "build")
    done(rknn.export_rknn(spec["rknn"]), "export_rknn")
    if spec.get("probe"):
        simulate(rknn, spec["probe"])
    rknn.release()


def simulate(rknn: Any, probe: dict[str, Any]) -> None:
    """Answer ``probe["inputs"]`` (.npy files) by the toolkit's simulator, into ``probe["outputs"]`` (.npz)."""
    import numpy as np

    if rknn.init_runtime() != 0:
        raise SystemExit("rknn-toolkit2: the simulator did not start")
    arrays = [np.load(path) for path in probe["inputs"]]
    layouts = ["nchw" if array.ndim == 4 else "nhwc" for array in arrays]
    np.savez(probe["outputs"], *rknn.inference(inputs=arrays, data_format=layouts))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        build(json.load(file))
