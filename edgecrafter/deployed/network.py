"""An exported model in the place of a network: everything that predicts and scores takes it as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecrafter.deployed import infer
from edgecrafter.geometry.sides import FRAME, KEEP
from edgecrafter.hub import ModelInfo, is_export
from edgecrafter.types import InputSpec, LayerOutput, MaskMap, Outputs

__all__ = ["Deployed", "is_export", "load"]


class Deployed(nn.Module):
    """Images [B, 3, H, W], RGB in 0..1, of the size of the export -> ``Outputs`` with one layer, on the same device.

    It has no weights that torch could see and cannot be trained. The runtime works on the CPU (TensorRT on its GPU).
    """

    def __init__(self, session: infer.Session) -> None:
        super().__init__()
        self.session = session
        self.meta = session.meta

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Outputs:
        """``valid`` [B, h, w] bool says where pictures are; None: everywhere. Pictures that keep their ratio may come
        in less than the whole size: they are padded."""
        if torch.is_autocast_enabled(images.device.type):
            raise ValueError(f"precision: an export has the one that it was written in, {self.meta['precision']}")
        values = images.detach().float().cpu().numpy()
        there = np.ones_like(values[:, 0]) if valid is None else valid.cpu().numpy().astype(np.float32)
        if self.meta["input"]["resize"] == KEEP:
            below, right = (
                max(0, side - given) for side, given in zip(self.session.size, values.shape[2:], strict=True)
            )
            values = np.pad(values, ((0, 0), (0, 0), (0, below), (0, right)))
            there = np.pad(there, ((0, 0), (0, below), (0, right)))
        found = self.session.run(values, there)
        named = {name: torch.from_numpy(value).to(images.device) for name, value in found.items()}
        return Outputs([_layer(named, self.meta)])


def _layer(found: dict[str, Tensor], meta: Mapping[str, Any]) -> LayerOutput:
    """What a raw graph says; of a full one, the chosen pairs as so many queries with one class each."""
    if "logits" in found:
        layer = LayerOutput(found["logits"], found.get("boxes"), keypoints=found.get("keypoints"))
        if "mask_queries" in found:
            bias = torch.full((1,), float(meta["facts"]["mask_bias"]), device=layer.logits.device)
            layer.masks = MaskMap(found["mask_queries"], found["mask_pixels"], bias)
        return layer
    scores, labels, boxes = found["scores"].clamp(0, 1), found["labels"], found["boxes"]
    logits = torch.full((*scores.shape, len(meta["model"]["labels"]["names"])), -torch.inf, device=scores.device)
    logits.scatter_(2, labels[..., None], scores.double().logit().float()[..., None])
    layer = LayerOutput(logits, keypoints=found.get("keypoints"))
    if layer.keypoints is None:
        layer.boxes = torch.cat([(boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]], dim=-1)
    if "masks" in found:
        same = torch.eye(scores.shape[1], device=scores.device).expand(len(scores), -1, -1)
        layer.masks = MaskMap(same, found["masks"], torch.zeros(1, device=scores.device))
    return layer


def load(path: str | Path, device: str | torch.device = "", threads: int | None = None) -> tuple[Deployed, ModelInfo]:
    """An export and what it is, with the input of its graph.

    Args:
        path: the folder, or a model file in it; an ONNX or OpenVINO file works alone, too.
        device: only ``cpu``, or empty; the runtime decides.
        threads: of the runtime; None: as it likes.

    Raises:
        FileNotFoundError, ValueError: not an export, an incomplete one, or a device that it does not run on.
        ImportError: the runtime is not installed.
    """
    if str(device) not in ("", "cpu"):
        raise ValueError(f"device={device}: an export runs where its runtime does; leave the device out, or give cpu")
    folder, meta = _described(Path(path).expanduser())
    session = infer.open_session(folder, meta, threads)
    info = ModelInfo.from_json(json.dumps(meta["model"]))
    given = meta["input"]
    resize = FRAME if given["resize"] == KEEP else given["resize"]
    spec = InputSpec((given["size"][0], given["size"][1]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize)
    return Deployed(session).eval(), replace(info, input=spec)


def _described(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of an export and its metadata, from beside the file or from within."""
    folder = path if (path / infer.METADATA).is_file() else path.parent
    beside = folder / infer.METADATA
    if beside.is_file():
        meta = infer.metadata(folder)
        if path in (folder, beside) or path.name in [part["file"] for part in meta["parts"]]:
            return folder, meta
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    text = _within(path)
    if text is None:
        raise ValueError(
            f"{path} was not exported by edgecrafter: there is no {infer.METADATA} beside it that names it, and none "
            "inside (only ONNX and OpenVINO files are searched: copy the folder of an export as a whole). What another "
            "tool has exported has outputs of its own; export the model with edgecrafter export"
        )
    meta = infer.checked(text, path)
    if len(meta["parts"]) == 1:
        meta["parts"][0]["file"] = path.name
    return folder, meta


def _within(path: Path) -> str | None:
    """The metadata inside a file; None: there are none."""
    if path.suffix == ".onnx":
        runtime = infer.SESSIONS["onnxruntime"].runtime()
        try:
            session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"{path}: not a readable ONNX file: {str(error).splitlines()[0]}") from None
        return session.get_modelmeta().custom_metadata_map.get("edgecrafter")  # type: ignore[no-any-return]
    if path.suffix == ".xml":
        try:
            model = infer.SESSIONS["openvino"].runtime().Core().read_model(str(path))
        except Exception as error:
            raise ValueError(f"{path}: not a readable OpenVINO file: {str(error).splitlines()[0]}") from None
        return str(model.get_rt_info(["edgecrafter"]).value) if model.has_rt_info(["edgecrafter"]) else None
    return None
