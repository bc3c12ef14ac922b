"""Small data sets with masks and keypoints, written for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgecrafter.data import formats
from edgecrafter.data.annotations import Annotations
from edgecrafter.types import Labels

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
OTHER = [40, 40, 60, 40, 60, 55]
HEIGHT, WIDTH = 60, 80


def record(key: int, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": key, "image_id": 1, "category_id": category, "bbox": [10, 10, 50, 45], "area": 700, **more}


def coco(
    folder: Path, objects: list[dict[str, Any]], split: str = "train", kind: str = "instances", **person: Any
) -> Path:
    """One picture with a good object (id 1) and others; ``person`` goes to the only category."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "person", **person}],
    }
    file = folder / "annotations" / f"{kind}_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data))
    return folder


def masked(folder: Path, segmentation: Any, **more: Any) -> Annotations:
    """A good object and one (id 2) with this segmentation."""
    objects = [record(1, segmentation=[SQUARE]), record(2, segmentation=segmentation, **more)]
    return formats.load(coco(folder, objects), truth="masks")


NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [20, 20, 2, 25, 15, 1, 0, 0, 0]


def posed(folder: Path, *objects: dict[str, Any], labels: Labels | None = None, **person: Any) -> Annotations:
    """A data set whose category has ``NAMES``, unless ``person`` says otherwise."""
    person = {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]} | person
    return formats.load(coco(folder, list(objects), **person), labels=labels, truth="keypoints")


def pixels(data: Annotations, row: int) -> np.ndarray:
    from faster_coco_eval.core import mask

    size = data.sizes[data.image_index()[row]].tolist()
    if code := data.masks.code(row):
        return mask.decode({"size": size, "counts": code}).astype(bool)
    rings = [ring.flatten().tolist() for ring in data.masks.polygons(row)]
    return mask.decode(mask.merge(mask.frPyObjects(rings, *size))).astype(bool)


def coded(found: np.ndarray) -> dict[str, Any]:
    from faster_coco_eval.core import mask

    code = mask.encode(np.asfortranarray(found.astype(np.uint8)))
    return {"size": list(found.shape), "counts": code["counts"].decode("ascii")}


BLOB = np.zeros((HEIGHT, WIDTH), dtype=bool)
BLOB[20:40, 5:30] = True
BLOB[25:30, 10:20] = False
