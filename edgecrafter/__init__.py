"""edgecrafter: compact real-time detectors on small vision transformers.

    import edgecrafter as ec

    model = ec.load("ecdet-s")
    results = model.predict("street.jpg")
    ec.train(model="ecdet-s", data="dataset", epochs=74)

Names are imported when they are first used, so that ``import edgecrafter`` itself costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecrafter.attention import attention
    from edgecrafter.catalogue import models
    from edgecrafter.features import features
    from edgecrafter.model import Model, convert, distill, info, load, pipeline, predict, teach, train, val
    from edgecrafter.quickstart import quickstart
    from edgecrafter.results import Result
    from edgecrafter.train.config import TrainConfig
    from edgecrafter.train.distill_config import DistillConfig
    from edgecrafter.train.teach import TeachConfig

__version__ = "0.1.0"

_HOMES = {
    "DistillConfig": "edgecrafter.train.distill_config",
    "Model": "edgecrafter.model",
    "Result": "edgecrafter.results",
    "TeachConfig": "edgecrafter.train.teach",
    "TrainConfig": "edgecrafter.train.config",
    "attention": "edgecrafter.attention",
    "convert": "edgecrafter.model",
    "distill": "edgecrafter.model",
    "features": "edgecrafter.features",
    "info": "edgecrafter.model",
    "load": "edgecrafter.model",
    "models": "edgecrafter.catalogue",
    "pipeline": "edgecrafter.model",
    "predict": "edgecrafter.model",
    "quickstart": "edgecrafter.quickstart",
    "teach": "edgecrafter.model",
    "train": "edgecrafter.model",
    "val": "edgecrafter.model",
}

__all__ = [
    "DistillConfig",
    "Model",
    "Result",
    "TeachConfig",
    "TrainConfig",
    "attention",
    "convert",
    "distill",
    "features",
    "info",
    "load",
    "models",
    "pipeline",
    "predict",
    "quickstart",
    "teach",
    "train",
    "val",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgecrafter' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keeps ``edgecrafter.train`` and the like the public functions.

    Importing a submodule sets it as an attribute of its package, which would hide the function of the same name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
