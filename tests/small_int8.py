"""A model whose AP is 1 without training: its own detections are the truth."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgecrafter import hub
from edgecrafter.data import scenes
from edgecrafter.export.formats import onnx as onnx_format
from edgecrafter.export.parts import Part
from edgecrafter.hub import ModelInfo
from edgecrafter.models.network import Detector
from edgecrafter.predict import Predictor
from edgecrafter.types import InputSpec, Labels

SIDE = 64
OBJECTS = 5
"""per picture, on average"""


@contextmanager
def traced_once() -> Iterator[None]:
    """Inside, torch's exporter runs once for each part, which takes seconds, whatever is asked for afterwards."""
    found: dict[str, Any] = {}
    make = onnx_format.model

    def once(part: Part, *args: Any) -> Any:
        key = str((part.name, part.outputs, [each.shape for each in part.inputs.values()], args))
        if key not in found:
            found[key] = make(part, *args)
        return copy.deepcopy(found[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_format, "model", once)
        yield


def model() -> tuple[Detector, ModelInfo]:
    """Size P with random weights whose scores differ between places, and whose boxes move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        labels = Labels(("one", "two"), ids=(1, 2))
        network, info = hub.create("ecdet-p", labels, InputSpec((SIDE, SIDE)), queries=20, depth=3, det_layers=2)
        decoder = network.decoder
        with torch.no_grad():
            for linear in (decoder.enc_score, *decoder.scores):
                linear.weight.mul_(8)
                linear.bias.zero_()
            for mlp in (decoder.enc_box, decoder.first_box, *decoder.boxes):
                mlp.layers[-1].weight.normal_(0, 0.05)
    return network.eval(), info


def write(folder: Path, network: Detector, info: ModelInfo, count: int = 6) -> Path:
    """Pictures with what the network finds as the truth, in COCO's layout."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    predictor = Predictor(network, info, "cpu")
    for split in ("train", "val"):
        content: dict[str, list[object]] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
        paths = [folder / "images" / f"{split}_{index}.png" for index in range(count)]
        for index, path in enumerate(paths):
            array = scenes.scene(np.random.default_rng([7, split == "val", index]), 96).image
            Image.fromarray(np.asarray(array)).save(path)
            content["images"].append({"id": index, "file_name": path.name, "width": 96, "height": 96})
        found = predictor([str(path) for path in paths], conf=0.0)
        scores = torch.cat([each.scores for each in found]).sort(descending=True).values
        least = scores[OBJECTS * count]  # the best of all pictures together, so that nothing else comes before them
        for index, each in enumerate(found):
            each = each.take(each.scores > least)
            for (x0, y0, x1, y1), label in zip(each.boxes.tolist(), each.labels.tolist(), strict=True):
                w, h = x1 - x0, y1 - y0
                row = {"id": len(content["annotations"]) + 1, "image_id": index, "category_id": label + 1, "iscrowd": 0}
                content["annotations"].append({**row, "bbox": [x0, y0, w, h], "area": w * h})
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
