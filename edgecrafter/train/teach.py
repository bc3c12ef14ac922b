"""Stage 1 of EdgeCrafter: an image backbone is adapted to detection inside an ECDet, and so becomes a teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgecrafter import registry
from edgecrafter.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from edgecrafter.train.run import Trained


@dataclass
class TeachConfig(TrainConfig):
    """Options of ``edgecrafter teach`` and ``edgecrafter.teach``: those of a training, of a detector around another
    library's image backbone. The result is a detector like any other, and a teacher for ``edgecrafter distill``."""

    model: str = "ecteacher-s"
    """ecteacher-s (DINOv3-S in ecdet-l) or ecteacher-b (DINOv3-B in ecdet-x), as in the paper; or a detector's name,
    with `backbone`; or a weight file to start from"""
    backbone: str | None = None
    """the image backbone to adapt: dinov3-s, dinov3-b, dinov2-s, dinov2-b (see `edgecrafter models`), timm:NAME,
    hf:OWNER/NAME; none: that of the teacher named as `model`, or the detector's own vision transformer"""
    project: str = "runs/teach"
    """folder in which runs are stored"""
    name: str = "teach"
    """name of this run's folder; a number is appended when it exists"""

    def training(self) -> TrainConfig:
        """The same as options of a training: a teacher's name becomes its detector and its backbone.

        Of a run that goes on only what was asked for is passed on, to be compared with the options it was started with.
        """
        values: dict[str, Any] = self.given() if self.resume else self.to_dict()
        model = str(values.get("model", "")).lower()
        if model in registry.TEACHERS:
            detector, backbone = registry.TEACHERS[model]
            values["model"], values["backbone"] = detector, self.backbone or backbone
        return TrainConfig.from_dict({**values, "project": self.project})


def teach(config: TeachConfig, backbone: nn.Module | None = None) -> Trained:
    """Train a detector around an image backbone; folder, files and errors as of ``train.run.train``.

    ``backbone``: a module to adapt instead of the one that the options name.
    """
    from edgecrafter import hub
    from edgecrafter.train import distributed, machine, run

    training = config.training()
    if backbone is not None and not training.resume:
        training = replace(training, backbone=None)
    with distributed.session(machine.device(config.device)):
        if not training.resume and backbone is None and training.backbone is None:
            if not hub.resolve(training.model).is_file():
                hub.parse(training.model)  # first of all: is it a model?
            distributed.say(f"no other backbone was asked for: of {training.model} its own ViT is the teacher")
        found = run.train(training, backbone)
        distributed.say(f"teacher: edgecrafter distill --teacher {found.folder} --images PICTURES")
    return found
