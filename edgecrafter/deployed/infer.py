"""Run an exported EdgeCrafter model: this file travels with it and needs numpy, pillow and the runtime, nothing else.

    python infer.py street.jpg photos/ --conf 0.5 --json found.json --draw drawn

or from Python, with ``metadata.json`` and the model files in the folder:

    from infer import Model
    model = Model("folder")
    for found in model.predict(["street.jpg"]):
        print(found.boxes, found.scores, [model.names[label] for label in found.labels])

What happens to a picture, for those who port this to another language: it is turned upright (EXIF), made RGB,
stretched to the input's size with Pillow's bilinear filter and divided by 255 (``prepare``); mean and deviation are
applied inside the graph. The outputs become detections in ``Model._found``.

Letters: B images, Q queries, C classes, N detections, K keypoints, D width, h x w cells of a mask, H x W pixels.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

Array = NDArray[Any]
Picture = str | Path | Image.Image | NDArray[np.uint8]
Run = Callable[[dict[str, Array]], Sequence[Array]]
"""inputs by name -> outputs in the order of the metadata"""

METADATA = "metadata.json"
VERSION = 1
LIMIT = 16384
"""most pixels of a side of the input, and most images of a batch, that are believed"""
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"}
FILL = 114
"""gray around a picture that does not fill the input"""
COLOURS = (
    (230, 60, 50),
    (40, 150, 240),
    (60, 190, 70),
    (250, 170, 20),
    (160, 90, 220),
    (20, 190, 190),
    (240, 100, 180),
)


@dataclass
class Mask:
    """One mask: ``pixels`` bool [h, w] of a window whose upper left corner is at ``left``, ``top``; False elsewhere."""

    size: tuple[int, int]
    """height, width of the picture"""
    left: int
    top: int
    pixels: NDArray[np.bool_]

    def array(self) -> NDArray[np.bool_]:
        """The whole picture, bool [H, W]."""
        found = np.zeros(self.size, bool)
        h, w = self.pixels.shape
        found[self.top : self.top + h, self.left : self.left + w] = self.pixels
        return found

    def to_coco(self) -> dict[str, Any]:
        """COCO's run-length code, as pycocotools reads it: lengths of runs down the columns, beginning with out."""
        height, total = self.size[0], self.size[0] * self.size[1]
        columns = np.pad(self.pixels.T, ((0, 0), (1, 1)))
        column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
        edges = (column + self.left) * height + row + self.top
        joined = edges[1:] == edges[:-1]  # a run that reaches the bottom goes on at the top of the next column
        edges = edges[~(np.append(joined, False) | np.append(False, joined))] if len(edges) else edges
        counts = np.diff(edges[edges < total], prepend=0, append=total).tolist()
        letters = []
        for place, count in enumerate(counts):
            number, more = count - (counts[place - 2] if place > 2 else 0), True
            while more:  # groups of five bits, low ones first; a sixth says that more follow
                bits, number = number & 31, number >> 5
                more = number != (-1 if bits & 16 else 0)
                letters.append(chr(48 + bits + 32 * more))
        return {"size": list(self.size), "counts": "".join(letters)}


@dataclass
class Found:
    """What was found in one picture, best first."""

    title: str
    path: str | None
    size: tuple[int, int]
    """height, width of the upright picture"""
    labels: NDArray[np.int64]
    """[N], 0-based"""
    scores: NDArray[np.float32]
    """[N] in 0..1"""
    boxes: NDArray[np.float32]
    """[N, 4] xyxy in pixels, inside the picture"""
    masks: list[Mask] | None = None
    keypoints: NDArray[np.float32] | None = None
    """[N, K, 3]: x, y in pixels, and 1; three zeros for a keypoint that the class does not have"""


class Model:
    """An export, ready to use.

    Args:
        folder: with ``metadata.json`` and the model files; None: the folder of this script.
        threads: of the runtime; None: as it likes.

    Raises ``FileNotFoundError``, ``ValueError`` and ``ImportError`` that say what is missing.
    """

    def __init__(self, folder: str | Path | None = None, threads: int | None = None) -> None:
        folder = Path(__file__).parent if folder is None else Path(folder)
        self.meta = metadata(folder)
        self.session = open_session(folder, self.meta, threads)
        labels = self.meta["model"]["labels"]
        self.names: list[str] = labels["names"]
        self.used = [label for label in range(len(self.names)) if label not in labels.get("unused", [])]
        self.skeleton: dict[str, Any] | None = labels.get("skeleton")
        self.owned: NDArray[np.bool_] | None = None
        """[C, K], the keypoints that each class has; None: all have all"""
        if self.skeleton and labels.get("keypoints"):
            self.owned = np.zeros((len(self.names), len(self.skeleton["names"])), bool)
            for label, own in enumerate(labels["keypoints"]):
                self.owned[label, own] = True

    def predict(
        self,
        pictures: Picture | Sequence[Picture],
        conf: float = 0.4,
        max_det: int = 300,
        classes: Sequence[str | int] | None = None,
        batch: int = 1,
    ) -> list[Found]:
        """One ``Found`` per picture, in order.

        Args:
            pictures: files, folders, PIL pictures or uint8 RGB arrays [H, W, 3].
            conf: least score.
            max_det: most detections per picture.
            classes: names or numbers of those to look for; None: all.
            batch: pictures per call of the runtime.

        Raises ``FileNotFoundError`` and ``ValueError`` for what is no picture and for an unknown class.
        """
        if batch < 1:
            raise ValueError(f"batch={batch}: expected 1 or more")
        items, found = listed(pictures), []
        while group := list(islice(items, batch)):
            found += self.detect(group, conf, max_det, classes)
        return found

    def detect(
        self, group: Sequence[Item], conf: float = 0.4, max_det: int = 300, classes: Sequence[str | int] | None = None
    ) -> list[Found]:
        """The same for pictures that have been read, in one call of the runtime."""
        if not 0 <= conf <= 1 or max_det < 1:
            raise ValueError(f"conf={conf}, max_det={max_det}: expected a score from 0 to 1, and 1 or more")
        wanted = self._chosen(classes)
        pixels, valid = zip(*(prepare(item.picture, self.meta) for item in group), strict=True)
        outputs = self.session.run(np.stack(pixels), np.stack(valid))
        rows = [{name: value[row] for name, value in outputs.items()} for row in range(len(group))]
        return [self._found(item, row, conf, max_det, wanted) for item, row in zip(group, rows, strict=True)]

    def _found(self, item: Item, answers: dict[str, Array], conf: float, max_det: int, wanted: list[int]) -> Found:
        """The outputs for one picture -> detections in its pixels.

        The score of a query and a class is the sigmoid of its logit; the best pairs are kept. A query may appear with
        several classes.
        """
        if "logits" in answers:  # [Q, C] of a raw graph
            with np.errstate(over="ignore"):
                scores = (1 / (1 + np.exp(-answers["logits"][:, wanted]))).ravel()
            labels = np.tile(wanted, len(answers["logits"]))
            queries = np.repeat(np.arange(len(answers["logits"])), len(wanted))
        else:  # a full graph has chosen
            scores, labels, queries = answers["scores"], answers["labels"], np.arange(len(answers["scores"]))
            scores = np.where(np.isin(labels, wanted), scores, np.float32(-1))
        if not np.isfinite(scores).all():
            raise ValueError(f"{item.title}: the model's answer is not finite. Export it again, in fp32")
        kept = np.flatnonzero(scores >= np.float32(conf))
        kept = kept[np.argsort(-scores[kept], kind="stable")[:max_det]]
        scores, labels, queries = scores[kept], labels[kept].astype(np.int64), queries[kept]
        height, width = size = (item.picture.height, item.picture.width)
        scale = np.array([width, height], np.float32)
        points, owned = None, None
        if "keypoints" in answers:  # the box is the extent of the keypoints that the class has
            points = answers["keypoints"][queries] * scale
            owned = np.ones(points.shape[:2], bool) if self.owned is None else self.owned[labels]
            low, high = (np.where(owned[..., None], points, np.float32(far)) for far in (np.inf, -np.inf))
            boxes = np.concatenate([low.min(1), high.max(1)], axis=1)
            points = np.concatenate([points, np.ones_like(points[..., :1])], axis=2) * owned[..., None]
        else:
            boxes = answers["boxes"][queries]
            if "logits" in answers:  # centre and size
                boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
            boxes = boxes * np.tile(scale, 2)
        x0, y0, x1, y1 = boxes.T
        inside = (x1 > 0) & (y1 > 0) & (x0 < width) & (y0 < height)
        if points is None:
            inside &= (x1 > x0) & (y1 > y0)
        boxes = np.clip(boxes, 0, np.tile(scale, 2)).astype(np.float32)[inside]
        found = Found(item.title, item.path, size, labels[inside], scores[inside], boxes)
        found.masks = self._masks(answers, queries[inside], size)
        found.keypoints = None if points is None else points[inside].astype(np.float32)
        return found

    def _masks(self, answers: dict[str, Array], queries: Array, size: tuple[int, int]) -> list[Mask] | None:
        """The masks of some queries of a picture; one that is asked for twice is made once."""
        if "masks" in answers:
            logits: Iterator[Array] = (answers["masks"][query] for query in np.unique(queries))
        elif "mask_queries" in answers:
            cells, bias = answers["mask_pixels"], self.meta["facts"].get("mask_bias", 0.0)
            flat = cells.reshape(len(cells), -1)
            rows = (answers["mask_queries"][query] for query in np.unique(queries))
            logits = ((row @ flat + np.float32(bias)).reshape(cells.shape[1:]) for row in rows)
        else:
            return None
        made = {query: mask(each, size) for query, each in zip(np.unique(queries).tolist(), logits, strict=True)}
        return [made[query] for query in queries.tolist()]

    def _chosen(self, classes: Sequence[str | int] | None) -> list[int]:
        """Labels of classes given by name or number, sorted; None: all that stand for something."""
        if classes is None:
            return self.used
        known = {**{str(label): label for label in self.used}, **{self.names[label]: label for label in self.used}}
        given = [classes] if isinstance(classes, (str, int)) else list(classes)
        for each in given:
            if str(each) not in known:
                listed = ", ".join(f"{label} {self.names[label]}" for label in self.used)
                raise ValueError(f"class {each!r} is not one of the model's: {listed}")
        return sorted({known[str(each)] for each in given}) or self.used

    def summary(self, found: Found) -> str:
        """The detections in words: ``3 ball, 1 crate``."""
        counted = Counter(self.names[label] for label in found.labels.tolist()).most_common()
        return ", ".join(f"{count} {name}" for name, count in counted) or "nothing found"

    def to_dict(self, found: Found) -> dict[str, Any]:
        """Plain values for JSON: path, size and one entry per detection with label, name, score, box (xyxy), and as far
        as there are any ``mask`` (COCO's run lengths) and ``keypoints`` (name, x and y of each)."""
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
        entries: list[dict[str, Any]] = [
            {"label": label, "name": self.names[label], "score": score, "box": box} for label, score, box in rows
        ]
        if found.keypoints is not None:
            for entry, points in zip(entries, found.keypoints.tolist(), strict=True):
                names = self.skeleton["names"] if self.skeleton else range(len(points))
                own = zip(names, points, strict=True)
                entry["box_from"] = "keypoints"
                entry["keypoints"] = [{"name": str(name), "x": x, "y": y} for name, (x, y, there) in own if there]
        for entry, each in zip(entries, found.masks or [], strict=False):
            entry["mask"] = each.to_coco()
        return {"path": found.path, "size": list(found.size), "detections": entries}

    def draw(self, picture: Image.Image, found: Found) -> Image.Image:
        """A copy of the picture with masks, boxes, keypoints and names."""
        picture = picture.copy()
        for label, each in zip(found.labels.tolist(), found.masks or [], strict=False):
            window = Image.fromarray(each.pixels.astype(np.uint8) * 115)
            picture.paste(COLOURS[label % len(COLOURS)], (each.left, each.top), window)
        pen, unit = ImageDraw.Draw(picture), (picture.width * picture.height) ** 0.5
        line, font = max(1, round(unit / 320)), ImageFont.load_default(max(10, round(unit / 42)))
        edges = self.skeleton["edges"] if self.skeleton else []
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
        for row, (label, score, box) in enumerate(rows):
            colour = COLOURS[label % len(COLOURS)]
            pen.rectangle(box, outline=colour, width=line)
            text, place = f"{self.names[label]} {score:.2f}", (box[0], max(0, box[1] - 1.3 * font.size))  # type: ignore[union-attr]
            pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
            pen.text(place, text, fill=(0, 0, 0), font=font)
            points = [] if found.keypoints is None else found.keypoints[row].tolist()
            for a, b in edges if points else []:
                if points[a][2] and points[b][2]:
                    pen.line([*points[a][:2], *points[b][:2]], colour, line)
            for x, y, there in points:
                if there:
                    pen.circle((x, y), 1.5 * line, fill=colour)
        return picture


# Pictures


@dataclass
class Item:
    """A picture with a name."""

    title: str
    path: str | None
    picture: Image.Image


def listed(pictures: Picture | Sequence[Picture]) -> Iterator[Item]:
    """The pictures that are meant, upright RGB. A file of a folder that cannot be read is passed over with a note."""
    several = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    for index, each in enumerate(several):
        title = f"picture_{index:04d}.jpg"
        if isinstance(each, Image.Image):
            yield Item(title, None, upright(each))
        elif isinstance(each, np.ndarray):
            if each.dtype != np.uint8 or not (each.ndim == 2 or (each.ndim == 3 and each.shape[2] in (1, 3))):
                raise ValueError(f"array of {each.dtype} {list(each.shape)}: expected uint8 [height, width, 3], RGB")
            flat = each.reshape(each.shape[:2]) if each.size == each.shape[0] * each.shape[1] else each
            yield Item(title, None, Image.fromarray(flat).convert("RGB"))
        elif Path(each).is_dir():
            for path in sorted(Path(each).iterdir()):
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
                    try:
                        yield Item(path.name, str(path), read(path))
                    except ValueError as error:
                        print(f"skipped: {error}", file=sys.stderr)
        else:
            yield Item(Path(each).name, str(each), read(Path(each)))


def read(path: Path) -> Image.Image:
    """The picture of a file, upright RGB; ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    try:
        with Image.open(path) as picture:
            picture.load()
            return upright(picture)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ValueError(f"{path}: cannot be read as a picture: {error}") from error


def upright(picture: Image.Image) -> Image.Image:
    """RGB as EXIF says it is held; 16-bit gray is divided by 257."""
    try:
        turned = ImageOps.exif_transpose(picture)
    except (SyntaxError, ValueError, TypeError, KeyError):  # broken EXIF data
        turned = picture
    if turned.mode.startswith("I;16") or (turned.mode == "I" and picture.format == "PNG"):
        return Image.fromarray(((np.asarray(turned).astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if turned.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {turned.mode}) have no defined white; convert it to 8 or 16 bits")
    return turned.convert("RGB")


def prepare(picture: Image.Image, meta: Mapping[str, Any]) -> tuple[Array, Array]:
    """A picture as float32 [3, H, W] in 0..1, and where it is in the input, float32 [H, W].

    It fills the input, or with ``resize`` "keep" its upper left part, with the ratio kept.
    """
    height, width = h, w = meta["input"]["size"]
    if meta["input"]["resize"] == "keep":
        scale = min(height / picture.height, width / picture.width)
        h, w = (max(1, int(side * scale + 0.5)) for side in (picture.height, picture.width))
    canvas, valid = np.full((height, width, 3), FILL, np.uint8), np.zeros((height, width), np.float32)
    canvas[:h, :w], valid[:h, :w] = np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR)), 1
    return canvas.transpose(2, 0, 1).astype(np.float32) / np.float32(255), valid


def mask(logits: Array, size: tuple[int, int]) -> Mask:
    """The pixels of a picture of ``size`` (H, W) where logits [h, w], interpolated (bilinear, corners not aligned), are
    above 0. Only the window that the cells above 0 reach is looked at."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits of a mask are not finite. Export the model again, in fp32")
    rows, columns = (np.flatnonzero((logits > 0).any(axis)) for axis in (1, 0))
    top, y, fy = _taps(rows, logits.shape[0], size[0])
    left, x, fx = _taps(columns, logits.shape[1], size[1])
    if not len(x) or not len(y):
        return Mask(size, 0, 0, np.zeros((0, 0), bool))
    band = logits[y[0] : y[-1] + 2]
    wide = band[:, x] * (1 - fx) + band[:, np.minimum(x + 1, logits.shape[1] - 1)] * fx
    steps = np.diff(wide, axis=0, append=wide[-1:])
    return Mask(size, left, top, wide[y - y[0]] + steps[y - y[0]] * fy[:, None] > 0)


def _taps(used: Array, cells: int, pixels: int) -> tuple[int, NDArray[np.int64], NDArray[np.float32]]:
    """Along one side: the first pixel that the cells from the first to the last of ``used`` reach, and of all that they
    reach the lower of the two cells to mix, and the share of the upper one."""
    at = np.clip((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0, cells - 1)
    reached = np.flatnonzero((at > used[0] - 1) & (at < used[-1] + 1)) if len(used) else used
    low = at[reached].astype(np.int64)
    return int(reached[0]) if len(reached) else 0, low, (at[reached] - low).astype(np.float32)


# Runtimes


class Session:
    """An export that a runtime has opened. A subclass says how to open a file and to run it.

    Args:
        folder: with the files.
        meta: the metadata.
        threads: of the runtime; None: as it likes.

    Raises ``ImportError`` where the runtime is not installed, ``ValueError`` and what the runtime raises for bad files.
    """

    modules: tuple[str, ...] = ()
    """any of these has to be there"""
    package = ""
    """what to install"""

    def __init__(self, folder: Path, meta: Mapping[str, Any], threads: int | None = None) -> None:
        self.meta, self.size, self.batch = meta, tuple(meta["input"]["size"]), meta["input"]["batch"]
        self.parts = []
        for part in meta["parts"]:
            path = folder / Path(part["file"]).name
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing: the folder of an export is copied as a whole")
            self.parts.append((part, self.open(path, part, threads)))

    @classmethod
    def available(cls) -> bool:
        """Whether the runtime can be imported here."""
        return any(importlib.util.find_spec(name.partition(".")[0]) is not None for name in cls.modules)

    @classmethod
    def runtime(cls) -> Any:
        """The runtime, imported. Raises ``ImportError`` that says what to install."""
        for name in cls.modules:
            try:
                return importlib.import_module(name)
            except ImportError as error:
                reason = error
        raise ImportError(f"{cls.modules[0]} cannot be imported ({reason}): pip install {cls.package}") from reason

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        """What runs one file."""
        raise NotImplementedError

    def run(self, images: Array, valid: Array | None = None) -> dict[str, Array]:
        """Images float32 [B, 3, H, W] in 0..1, and where the pictures are, [B, H, W] (None: everywhere) -> the outputs
        of the raw or the full graph by name, each [B, ...].

        Any number of images: where that of the graph is fixed they go in bit by bit, and the last one is repeated.
        """
        if images.shape[2:] != self.size:
            raise ValueError(
                f"input of {images.shape[2]} x {images.shape[3]} pixels (height x width): this export takes "
                f"{self.size[0]} x {self.size[1]} only. For another size export the model again with imgsz"
            )
        inputs = {"images": images, "valid": np.ones_like(images[:, 0]) if valid is None else valid}
        found, step, last = [], self.batch or len(images), len(images) - 1
        for start in range(0, len(images), step):
            rows = np.minimum(np.arange(start, start + step), last)
            found.append(self._graph({name: value[rows] for name, value in inputs.items()}))
        return {name: np.concatenate([each[name] for each in found])[: last + 1] for name in found[0]}

    def _graph(self, inputs: dict[str, Array]) -> dict[str, Array]:
        found = self._part(0, inputs)
        if self.meta["graph"] != "npu":
            return found
        answers = self._part(1, choose(found, self.meta["facts"]["choose"]))
        return {**answers, **({"mask_pixels": found["mask_pixels"]} if "mask_pixels" in found else {})}

    def _part(self, index: int, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run one file on those of the inputs that it takes."""
        part, run = self.parts[index]
        answers = run({name: np.ascontiguousarray(inputs[name], np.float32) for name in part["inputs"]})
        named = zip(part["outputs"], answers, strict=True)
        return {name: np.asarray(each).astype(np.int64 if name == "labels" else np.float32) for name, each in named}


def choose(found: dict[str, Array], facts: Mapping[str, Any]) -> dict[str, Array]:
    """Between the two files of an npu graph: the encoder's outputs -> the decoder's inputs.

    The tokens with the best proposals become queries, and each has an anchor at its cell of the three levels.
    """
    best = np.argsort(-found["proposals"], axis=1, kind="stable")[:, : facts["queries"]]
    rows = []
    for level, (h, w) in enumerate(facts["levels"]):
        y, x = np.mgrid[:h, :w].reshape(2, -1) + 0.5
        sides = [np.full(h * w, facts["anchor_sizes"][level])] * 2 if facts["anchor_sizes"] else []
        rows.append(np.stack([x / w, y / h, *sides], axis=1))
    places = np.concatenate(rows)
    anchors = np.log(places / (1 - places))
    if facts["anchor_sizes"]:  # of boxes, those at the border are put out of reach
        inside = ((places > facts["margin"]) & (places < 1 - facts["margin"])).all(1, keepdims=True)
        anchors = np.where(inside, anchors, facts["outside"])
    memory = {name: value for name, value in found.items() if name.startswith("memory_")}
    content = np.take_along_axis(found["tokens"], best[..., None], axis=1)
    return {**memory, "content": content, "anchors": anchors[best]}


class OnnxRuntime(Session):
    modules, package = ("onnxruntime",), "onnxruntime"

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        ort, names = self.runtime(), list(part["outputs"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(names, inputs)


class OpenVino(Session):
    modules, package = ("openvino",), "openvino"

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        # without the hint of 32 bits, CPUs that have bfloat16 would use it
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        config |= self.meta.get("execution", {"INFERENCE_PRECISION_HINT": "f32"})
        config |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        model = self.runtime().Core().compile_model(str(path), "CPU", config)

        def run(inputs: dict[str, Array]) -> list[Array]:
            found = model(inputs)
            return [found[name] for name in part["outputs"]]

        return run


class LiteRt(Session):
    """Inputs and outputs are told by the number in their names in the signature: ``args_0``, ``output_0``."""

    modules = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")
    package = "ai-edge-litert"

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        runner = self.runtime().Interpreter(model_path=str(path), num_threads=threads).get_signature_runner()
        ins, outs = sorted(runner.get_input_details(), key=_number), sorted(runner.get_output_details(), key=_number)

        def run(inputs: dict[str, Array]) -> list[Array]:
            found = runner(**dict(zip(ins, inputs.values(), strict=True)))
            return [found[name] for name in outs]

        return run


def _number(name: str) -> int:
    return int("0" + name[len(name.rstrip("0123456789")) :])


class ExecuTorch(Session):
    """Its Python bindings bring torch along, and take nothing but its tensors."""

    modules, package = ("executorch.runtime",), "executorch"

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        program = self.runtime().Runtime.get().load_program(str(path))
        method, tensor = program.load_method("forward"), sys.modules["torch"].from_numpy

        def run(inputs: dict[str, Array]) -> list[Array]:
            assert program is not None  # which the method does not keep alive
            return [each.numpy() for each in method.execute([tensor(each) for each in inputs.values()])]

        return run


class Ncnn(Session):
    """One picture at a time: blobs have no dimension for the batch."""

    modules, package = ("ncnn",), "ncnn"

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        ncnn, half = self.runtime(), self.meta["precision"] == "fp16"
        net = ncnn.Net()
        net.opt.use_vulkan_compute, net.opt.num_threads = False, threads or net.opt.num_threads
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
        if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
            raise ValueError(f"{path}: ncnn cannot read it, or {path.stem}.bin beside it")

        def run(inputs: dict[str, Array]) -> list[Array]:
            extractor = net.create_extractor()
            for place, value in enumerate(inputs.values()):
                extractor.input(f"in{place}", ncnn.Mat(value[0]).clone())
            return [np.array(extractor.extract(f"out{place}")[1])[None] for place in range(len(part["outputs"]))]

        return run


class TensorRt(Session):
    modules, package = ("tensorrt",), "tensorrt cuda-python"

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        trt = self.runtime()
        try:
            cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise ImportError(f"cuda.bindings cannot be imported ({error}): pip install cuda-python") from error
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ValueError(f"{path}: made for another GPU or another TensorRT; export it again on this machine")
        context = engine.create_execution_context()

        def done(found: tuple[Any, ...]) -> Any:
            if int(found[0]):
                raise RuntimeError(f"CUDA: {found[0]}")
            return found[-1]

        def run(inputs: dict[str, Array]) -> list[Array]:
            arrays = {}
            for name, value in inputs.items():
                if not context.set_input_shape(name, value.shape):
                    raise ValueError(f"{path}: the engine takes no {name} of shape {value.shape}; fewer at a time?")
                arrays[name] = value.astype(trt.nptype(engine.get_tensor_dtype(name)))
            for name in part["outputs"]:
                arrays[name] = np.empty(
                    tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))
                )
            places = {name: done(cuda.cudaMalloc(value.nbytes)) for name, value in arrays.items()}
            there, back = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            try:
                for name, value in arrays.items():
                    context.set_tensor_address(name, places[name])
                    if name in inputs:
                        done(cuda.cudaMemcpy(places[name], value.ctypes.data, value.nbytes, there))
                if not context.execute_async_v3(0):
                    raise RuntimeError(f"{path}: TensorRT could not run it, see its messages")
                done(cuda.cudaDeviceSynchronize())
                for name in part["outputs"]:
                    done(cuda.cudaMemcpy(arrays[name].ctypes.data, places[name], arrays[name].nbytes, back))
            finally:
                for place in places.values():
                    cuda.cudaFree(place)
            return [arrays[name] for name in part["outputs"]]

        return run


class CoreMl(Session):
    modules, package = ("coremltools",), "coremltools"

    @classmethod
    def available(cls) -> bool:
        return sys.platform == "darwin" and super().available()

    def open(self, path: Path, part: Mapping[str, Any], threads: int | None) -> Run:
        if sys.platform != "darwin":
            raise ValueError(f"{path}: Core ML runs on macOS only, and this is {sys.platform}")
        model = self.runtime().models.MLModel(str(path))

        def run(inputs: dict[str, Array]) -> list[Array]:
            found = model.predict(inputs)
            return [found[name] for name in part["outputs"]]

        return run


SESSIONS: dict[str, type[Session]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "litert": LiteRt,
    "executorch": ExecuTorch,
    "ncnn": Ncnn,
    "tensorrt": TensorRt,
    "coreml": CoreMl,
}
"""``metadata["runtime"]`` -> what runs it"""


def metadata(folder: Path) -> dict[str, Any]:
    """``metadata.json`` of an export. Raises ``FileNotFoundError``, and ``ValueError`` for something else."""
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the folder of an export is copied as a whole")
    return checked(path.read_text(encoding="utf-8"), path)


def checked(text: str, origin: Path) -> dict[str, Any]:
    """The metadata that ``text`` holds. Raises ``ValueError``, naming ``origin``, if it is not of an export."""
    try:
        meta: dict[str, Any] = json.loads(text)
        version = meta["edgecrafter"]
        missing = {"model", "runtime", "graph", "input", "parts", "facts"} - set(meta)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{origin} does not hold the metadata of an export of edgecrafter") from None
    if version != VERSION or missing:
        raise ValueError(f"{origin}: made by another version of edgecrafter ({version}); use the infer.py beside it")
    try:
        sides, batch, parts = list(meta["input"]["size"]), meta["input"]["batch"], len(meta["parts"])
        counts = [*sides, 1 if batch is None else batch]
        sound = len(sides) == 2 and all(type(n) is int and 1 <= n <= LIMIT for n in counts)
        sound = sound and parts == (2 if meta["graph"] == "npu" else 1)
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise ValueError(f"{origin}: input or parts are damaged; copy the folder of the export again")
    return meta


def open_session(folder: Path, meta: Mapping[str, Any], threads: int | None = None) -> Session:
    """The session of an export. Raises ``ValueError`` for a runtime that is not known, and as ``Session``."""
    if meta["runtime"] not in SESSIONS:
        raise ValueError(f"format {meta.get('format')!r} cannot be run here; known runtimes: {', '.join(SESSIONS)}")
    try:
        return SESSIONS[meta["runtime"]](folder, meta, threads)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # every runtime has errors of its own
        raise ValueError(f"{folder}: {meta['runtime']} cannot open it: {str(error).splitlines()[0]}") from error


def main(words: Sequence[str] | None = None) -> int:
    """The command line; gives back the exit code."""
    parser = argparse.ArgumentParser(description="Find objects in pictures with an exported EdgeCrafter model.")
    parser.add_argument("pictures", nargs="+", help="files or folders")
    parser.add_argument("--conf", type=float, default=0.4, help="least score (default 0.4)")
    parser.add_argument("--max-det", type=int, default=300, help="most detections per picture (default 300)")
    parser.add_argument("--classes", help="names or numbers with commas between them; default: all")
    parser.add_argument("--json", help="file to write what was found to")
    parser.add_argument("--draw", help="folder to write drawn pictures into")
    parser.add_argument("--threads", type=int, help="of the runtime")
    given = parser.parse_args(words)
    try:
        model = Model(threads=given.threads)
        classes = given.classes.split(",") if given.classes else None
        rows, spent = [], 0.0
        for item in listed(given.pictures):
            start = time.perf_counter()
            (found,) = model.detect([item], given.conf, given.max_det, classes)
            spent += time.perf_counter() - start
            rows.append(model.to_dict(found))
            print(f"{item.title}: {model.summary(found)}")
            if given.draw:
                Path(given.draw).mkdir(parents=True, exist_ok=True)
                model.draw(item.picture, found).save(Path(given.draw) / f"{len(rows):04d}_{Path(item.title).stem}.jpg")
        if given.json:
            Path(given.json).write_text(json.dumps(rows), encoding="utf-8")
        if not rows:
            raise FileNotFoundError(f"no pictures in {', '.join(given.pictures)}")
        print(f"{len(rows)} pictures, {1000 * spent / len(rows):.1f} ms each without reading", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        print(f"infer.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
