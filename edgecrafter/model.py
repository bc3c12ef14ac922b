"""The face of the package: a loaded model, and one function per verb of the command line."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecrafter import catalogue, hub, registry
from edgecrafter.around import untrained
from edgecrafter.data import check, formats
from edgecrafter.evaluate import Scores, evaluate
from edgecrafter.geometry.sides import input_size
from edgecrafter.hub import ModelInfo
from edgecrafter.infer import choose_device, device_of
from edgecrafter.models.fuse import fuse
from edgecrafter.models.network import Detector
from edgecrafter.predict import Predictor, Source
from edgecrafter.results import Result
from edgecrafter.summary import Summary, summarise
from edgecrafter.tasks import TASKS
from edgecrafter.train.config import TrainConfig

if TYPE_CHECKING:
    from edgecrafter.deployed.network import Deployed
    from edgecrafter.export.config import ExportConfig
    from edgecrafter.export.run import Exported
    from edgecrafter.pipeline.report import Report
    from edgecrafter.train.distil import Distilled
    from edgecrafter.train.run import Trained

Side = int | tuple[int, int] | list[int] | None
"""input size in pixels: one number for a square, or height and width, multiples of 32; None: the model's own. Of models
that keep the ratio of pictures the limits: one number for the short side, or short and long"""


@dataclass
class Model:
    """A network together with its classes and its way to prepare pictures.

    ``network`` is an ordinary ``torch.nn.Module``; ``info`` says name, task, labels, input and licence. Of an exported
    model it runs the export: that one predicts and can be scored, and nothing else.
    """

    network: Detector | Deployed
    info: ModelInfo

    @property
    def names(self) -> tuple[str, ...]:
        """Class names: ``names[label]``."""
        return self.info.labels.names

    @property
    def device(self) -> torch.device:
        return device_of(self.network)

    def to(self, device: str | torch.device) -> Model:
        """The same model on another device."""
        self.network.to(device)
        return self

    def predict(
        self,
        source: Source,
        conf: float = 0.4,
        imgsz: int | Sequence[int] | None = None,
        batch: int = 1,
        max_det: int = 300,
        classes: str | int | Sequence[str | int] | None = None,
    ) -> list[Result]:
        """Find objects; one result per picture, boxes in pixels of the original picture.

        Segmentation fills ``result.masks`` (run lengths; ``.array()`` makes pixels [N, h, w]), pose fills
        ``result.keypoints`` [N, K, 3] (x, y in pixels, and 1).

        Args:
            source: path, folder, glob pattern, PIL picture, uint8 RGB array [H, W, 3], or a list of these.
            conf: least score in 0..1.
            imgsz: input size in pixels, one number or (height, width); None: the model's own. For models that keep the
                ratio of pictures the limits of their sides, one number for the short one or (short, long).
            batch: pictures per forward pass.
            max_det: most detections per picture.
            classes: names or 0-based labels to look for; None: all.

        Raises:
            FileNotFoundError, ValueError: nothing to read, an unreadable picture, or an unknown class.
        """
        return self.predictor()(source, conf, imgsz, batch, max_det, classes)

    def predictor(self) -> Predictor:
        """What ``predict`` uses; its ``stream`` gives results one by one, for large folders."""
        return Predictor(self.network, self.info, self.device)

    __call__ = predict

    def val(
        self,
        data: str | Path,
        split: str = "val",
        batch: int = 8,
        imgsz: Side = None,
        workers: int = 0,
        precision: str = "fp32",
        max_det: int | None = None,
        progress: bool = True,
    ) -> Scores:
        """Score the model on a data set with COCO's numbers. ``split`` is train, val or test.

        ``overall["AP"]`` is that of boxes, of masks for segmentation (boxes are there as ``box_AP``), or of keypoints
        for pose; the data need the masks or keypoints. Pictures that cannot be read are left out with a warning. Raises
        ValueError and FileNotFoundError for data that cannot be used, as training does.
        """
        truth = TASKS[self.info.task].truth
        annotations = check.usable(formats.load(Path(data), split, self.info.labels, truth=truth))
        for note in annotations.notes:
            warnings.warn(note, stacklevel=2)
        return evaluate(
            self.network,
            self.info,
            annotations,
            batch=batch,
            workers=workers,
            precision=precision,
            size=self._size(imgsz),
            max_det=max_det,
            progress=progress,
        )

    def fuse(self) -> Model:
        """A new model in deploy form: same answers, fewer and cheaper layers; it cannot be trained."""
        return Model(fuse(self.detector()), self.info)

    def summary(self, imgsz: Side = None) -> Summary:
        """Parameters and FLOPs, both ways of counting."""
        return summarise(self.detector(), self.info, self._size(imgsz))

    def _size(self, imgsz: Side) -> tuple[int, int] | None:
        return None if imgsz is None else input_size(imgsz, self.info.input.resize)

    def export(self, config: ExportConfig | None = None, **options: Any) -> Exported:
        """Write the model for another runtime and compare its answers with torch's; the options are the fields of
        ``ExportConfig``: ``model.export(format="openvino", batch="dynamic")``.

        The folder also holds ``metadata.json`` and ``infer.py``, which needs neither torch nor this package; ``load``
        takes it, too. Raises ValueError for options that do not go together, and ``ParityError``, one, where the
        answers differ too much.
        """
        from edgecrafter.export.config import ExportConfig
        from edgecrafter.export.run import export
        from edgecrafter.train.config import unknown

        unknown(ExportConfig, options)
        return export(self.detector(), self.info, config or ExportConfig(**options))

    def save(self, path: str | Path) -> Path:
        """Write weights, classes, input and licence as one safetensors file.

        Raises ValueError for a model in deploy form, which no file holds.
        """
        return hub.save(self.detector(), self.info, path)

    def detector(self) -> Detector:
        """The network with its weights. Raises ValueError for an export, which has none that torch could use."""
        if not isinstance(self.network, Detector):
            raise ValueError(
                f"this {self.info.name} is an export, which can predict and be scored; for anything else load the "
                "weights that it was made of"
            )
        return self.network


def load(model: str | Path | Model, device: str = "", backbone: nn.Module | None = None, **options: Any) -> Model:
    """Load a model for use.

    Args:
        model: a name such as ``"ecdet-s"`` (downloaded once), a file of this package, a released checkpoint, the folder
            of a training run, or an export: its folder, or the file in it, such as ``"exports/ecdet-s_onnx"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; empty: a GPU if there is one.
        backbone: the module that the model was built around, if it was one that came from Python: files do not hold
            its code, only its weights.
        options: ``mask_blocks=0`` applies all blocks of a segmentation model's mask head, where released weights apply
            one. Other tasks take none.

    Raises:
        ValueError, FileNotFoundError: an unknown name, a missing file or one that is not a model, or an option that
            does not fit it.
    """
    if isinstance(model, Model):
        if options or backbone is not None:
            given = [*options, *([] if backbone is None else ["backbone"])]
            raise ValueError(f"{', '.join(given)}: such options go with a name or a file, this model is loaded already")
        return model.to(device) if device else model
    if hub.is_export(model):
        return _export(model, device, [*options, *([] if backbone is None else ["backbone"])])
    network, info = hub.load(model, choose_device(device), backbone, **options)
    return Model(network, info)


def _export(path: str | Path, device: str, options: Sequence[str]) -> Model:
    """An exported model; it takes no options."""
    from edgecrafter.deployed import network

    if options:
        raise ValueError(f"{', '.join(options)}: {path} is an export and takes no such options; export it with them")
    return Model(*network.load(path, device))


def predict(model: str | Path | Model, source: Source, device: str = "", **options: Any) -> list[Result]:
    """``load(model).predict(source, ...)``."""
    return load(model, device).predict(source, **options)


def val(model: str | Path | Model, data: str | Path, device: str = "", **options: Any) -> Scores:
    """``load(model).val(data, ...)``."""
    return load(model, device).val(data, **options)


def train(**options: Any) -> Trained:
    """Train a model; the options are the fields of ``TrainConfig``, the same as on the command line.

    ``train(model="ecdet-s", data="dataset", epochs=74)``; ``ecinsseg-s`` learns masks, ``ecpose-s`` keypoints.
    ``backbone`` may also be an ``nn.Module``, images [B, 3, H, W] -> maps. Raises ValueError for an unknown option or a
    wrong value.
    """
    from edgecrafter.train import run

    values, module = _without_module(options, "backbone")
    return run.train(TrainConfig.from_dict(values), module)


def teach(**options: Any) -> Trained:
    """Adapt an image backbone to detection, as a teacher (stage 1); the options are the fields of ``TeachConfig``.

    ``teach(model="ecteacher-s", data="dataset")``, or ``teach(model="ecdet-x", backbone="dinov2-b", data="dataset")``;
    ``backbone`` may also be an ``nn.Module``. Raises as ``train`` does.
    """
    from edgecrafter.train.teach import TeachConfig, teach

    values, module = _without_module(options, "backbone")
    return teach(TeachConfig.from_dict(values), module)


def distill(**options: Any) -> Distilled:
    """Distil a teacher into a small vision transformer, without labels (stage 2); the options are the fields of
    ``DistillConfig``.

    ``distill(student="ecvit-t", teacher="runs/teach/teach", images=["photos"])``; ``teacher`` may also be an
    ``nn.Module``. Then ``train(model="ecdet-s", backbone=FOLDER, ...)``. Raises ValueError for an unknown option or a
    wrong value.
    """
    from edgecrafter.train import distil
    from edgecrafter.train.distill_config import DistillConfig

    values, module = _without_module(options, "teacher")
    config = DistillConfig.from_dict(values)
    if config.advise:
        raise ValueError("advise: compare teachers with edgecrafter.advise.advise(config), or on the command line")
    return distil.distill(config, module)


def pipeline(**options: Any) -> Report | None:
    """All stages in one go, with and without distillation; the options are the fields of ``PipelineConfig``.

    ``pipeline(model="ecdet-s", data="dataset", distill=["optimizer=adamw"])``; ``dry=True`` only says how long it would
    take. Raises ValueError for an unknown option or a wrong value.
    """
    from edgecrafter.pipeline import run
    from edgecrafter.pipeline.config import PipelineConfig

    return run.pipeline(PipelineConfig.from_dict(options))


def _without_module(options: dict[str, Any], name: str) -> tuple[dict[str, Any], nn.Module | None]:
    """``options`` without the one of this name if it is a module, and that module."""
    module = options.get(name)
    if not isinstance(module, nn.Module):
        return options, None
    return {key: value for key, value in options.items() if key != name}, module


def info(model: str | Path | Model, imgsz: Side = None) -> Summary:
    """Parameters and FLOPs of a model. A registry name needs no weights: the network is built from its size."""
    if isinstance(model, Model):
        return model.summary(imgsz)
    if str(model).lower() in registry.TEACHERS:
        return Model(*untrained(str(model).lower())).summary(imgsz)
    if hub.proper(str(model)) in hub.names():
        network, found = hub.create(str(model))
        licence = next(entry.licence for entry in catalogue.models() if entry.name == found.name)
        return Model(network, replace(found, licence=licence)).summary(imgsz)
    return load(model, "cpu").summary(imgsz)


def convert(source: str | Path, target: str | Path) -> Path:
    """Rewrite a weight file: a ``.pth`` target gets the released layout and keys, ``.safetensors`` ours.

    Tensors are kept bit for bit, but for what only the authors' training reads: a ``.pth`` of RT-DETRv4 that is written
    here has no ``encoder.feature_projector``. Raises ValueError for other suffixes.
    """
    hub.convert(source, target)
    return Path(target)
