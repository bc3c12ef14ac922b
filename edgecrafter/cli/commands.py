"""The commands: what each one takes, and what it does with the functions of ``edgecrafter.model``.

Nothing heavy is imported before a command runs, so that help is quick.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecrafter.model import Model
    from edgecrafter.train.config import TrainConfig


@dataclass(frozen=True)
class Command:
    """One verb of the command line."""

    summary: str
    run: Callable[[Any], None]
    options: Callable[[], type[Any]]
    """gives the dataclass of its options"""
    positionals: tuple[str, ...]
    """options that words without a name fill, in this order"""
    examples: str

    def usage(self, name: str) -> str:
        words = " ".join(f"[{each.upper()}]" for each in self.positionals)
        return f"edgecrafter {name} {words} [--option value | option=value ...]".replace("  ", " ")


@dataclass
class ValOptions:
    """Score a model on a data set: COCO's average precision of boxes, masks or keypoints, whichever the model finds, a
    table per class, and files to keep."""

    model: str
    """name, weight file or folder of a training run"""
    data: str
    """data set: a folder, a data.yaml or a COCO json; the format is recognised by looking at it"""
    split: str = "val"
    """train, val or test"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; none: the model's own"""
    batch: int = 8
    """pictures per forward pass"""
    workers: int = 2
    """processes that read pictures; 0 reads in the main process"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""
    precision: str = "fp32"
    """fp32, bf16 or fp16"""
    max_det: int | None = None
    """also score with this many detections per picture, for crowded scenes; none: 300 are kept, COCO looks at 100
    (20 for keypoints)"""
    mask_blocks: int | None = None
    """segmentation: how many blocks of the mask head are applied, 0 for all; none: as the model says, which is all,
    but 1 of 4 for released weights, as their authors do"""
    fuse: bool = False
    """score the deploy form: the same answers, faster"""
    project: str = ""
    """folder in which results are stored; empty: runs/detect, runs/segment or runs/pose"""
    name: str = "val"
    """name of this result's folder; a number is appended when it exists"""


@dataclass
class PredictOptions:
    """Find objects in pictures, and save the pictures with boxes, masks or skeletons drawn on them."""

    model: str
    """name, weight file or folder of a training run"""
    source: list[str] = field(default_factory=list)
    """pictures, folders or quoted patterns such as 'photos/*.jpg'; names with commas go without --source"""
    conf: float = 0.4
    """least score of what is shown, 0 to 1"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; none: the model's own"""
    batch: int = 1
    """pictures per forward pass"""
    max_det: int = 300
    """most detections per picture"""
    classes: list[str] = field(default_factory=list)
    """names or 0-based labels of the classes to keep, such as ball,crate; none: all"""
    mask_blocks: int | None = None
    """segmentation: how many blocks of the mask head are applied, 0 for all; none: as the model says, which is all,
    but 1 of 4 for released weights, as their authors do"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""
    save: bool = True
    """write the drawn pictures"""
    json: bool = False
    """print one JSON object per picture instead of words: boxes, masks as COCO's run lengths, keypoints by name"""
    project: str = ""
    """folder in which results are stored; empty: runs/detect, runs/segment or runs/pose"""
    name: str = "predict"
    """name of this result's folder; a number is appended when it exists"""


@dataclass
class ModelsOptions:
    """List the models that can be named, where their weights come from and what their licence says."""

    json: bool = False
    """print JSON instead of a table"""


@dataclass
class InfoOptions:
    """Show what a model is made of: its parts, parameters and FLOPs, counted in both usual ways."""

    model: str = ""
    """name, weight file or folder of a training run; a name needs no download"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; none: the model's own"""
    all: bool = False
    """compare S, M, L and X of every task with the paper's tables instead"""
    json: bool = False
    """print JSON instead of text"""


@dataclass
class ConvertOptions:
    """Rewrite a weight file: released checkpoints to ours and back, bit for bit."""

    source: str
    """file to read: a released .pth or .safetensors, or one of ours"""
    target: str
    """file to write: .safetensors gives our form, .pth the released one"""


@dataclass
class QuickstartOptions:
    """Make a small data set, train a small model on it, score it and draw what it finds: minutes on two CPU cores."""

    task: str = "detect"
    """detect (boxes), segment (masks) or pose (keypoints)"""
    data: str = ""
    """your own data set instead of the generated scenes"""
    folder: str = "quickstart"
    """where everything is written"""
    epochs: int | None = None
    """passes over the training pictures; none: chosen for a few minutes on two cores"""
    imgsz: int | None = None
    """input size in pixels, a multiple of 32; none: small for the scenes, 256 for your own data"""
    seed: int = 0
    """of the scenes and of the training"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""


def train(options: TrainConfig) -> None:
    """Train and say where the result is."""
    from edgecrafter.train import run

    run.train(options)


def val(options: ValOptions) -> None:
    """Score and print the table."""
    from edgecrafter.train.state import new_folder, run_project

    loaded = _load(options)
    loaded = loaded.fuse() if options.fuse else loaded
    scores = loaded.val(
        options.data,
        options.split,
        batch=options.batch,
        imgsz=options.imgsz,
        workers=options.workers,
        precision=options.precision,
        max_det=options.max_det,
    )
    print(scores.table())
    print(f"{scores.images} pictures, {scores.images_per_second:.1f} per second")
    print(f"written to {scores.write(new_folder(run_project(options.project, loaded.info.task), options.name))}")


def predict(options: PredictOptions) -> None:
    """Print what was found in each picture, and save the drawings."""
    from edgecrafter.cli.parsing import UsageError
    from edgecrafter.train.state import new_folder, run_project

    if not options.source:
        raise UsageError("no pictures given. Example: edgecrafter predict ecdet-s street.jpg")
    loaded = _load(options)
    results = loaded.predictor().stream(
        options.source,
        conf=options.conf,
        imgsz=options.imgsz,
        batch=options.batch,
        max_det=options.max_det,
        classes=options.classes or None,
    )
    folder = None
    for result in results:
        numbered = result.path is not None and result.path.name != result.title
        title = f"{result.title} ({result.path})" if numbered else result.title
        print(json.dumps(result.to_dict()) if options.json else f"{title}: {result.summary()}")
        if options.save:
            folder = folder or new_folder(run_project(options.project, loaded.info.task), options.name)
            result.save(folder)
    if folder is not None and not options.json:
        print(f"drawn pictures in {folder}")


def models(options: ModelsOptions) -> None:
    """Print the registry."""
    from edgecrafter import catalogue

    entries = catalogue.models()
    rows = [entry.to_dict() for entry in entries]
    print(json.dumps(rows, indent=2) if options.json else catalogue.table(entries))


def info(options: InfoOptions) -> None:
    """Print a summary, or the comparison with the paper."""
    from edgecrafter import model
    from edgecrafter.cli.parsing import UsageError
    from edgecrafter.summary import PAPER, compare

    if not options.model and not options.all:
        raise UsageError("no model given. Example: edgecrafter info ecdet-s, or edgecrafter info --all")
    found = [model.info(name, options.imgsz) for name in (PAPER if options.all else [options.model])]
    if options.json:
        print(json.dumps([each.to_dict() for each in found], indent=2))
    else:
        print(compare(found) if options.all else found[0])


def convert(options: ConvertOptions) -> None:
    """Convert and say what came out."""
    from edgecrafter import model

    print(f"written to {model.convert(options.source, options.target)}")


def quickstart(options: QuickstartOptions) -> None:
    """The whole journey in a few minutes."""
    from edgecrafter.quickstart import quickstart

    quickstart(**asdict(options))


def _load(options: ValOptions | PredictOptions) -> Model:
    from edgecrafter import model

    changes = {} if options.mask_blocks is None else {"mask_blocks": options.mask_blocks}
    return model.load(options.model, options.device, **changes)


def _train_options() -> type[TrainConfig]:
    from edgecrafter.train.config import TrainConfig

    return TrainConfig


COMMANDS = {
    "train": Command(
        "train a model on your own pictures",
        train,
        _train_options,
        ("model", "data"),
        """\
edgecrafter train ecdet-s dataset
edgecrafter train model=ecdet-s data=dataset/data.yaml epochs=74 batch=8 imgsz=640
edgecrafter train ecinsseg-s dataset                    # masks: polygons or run lengths in the annotations
edgecrafter train ecpose-s dataset                      # keypoints: names and pairs come from the data
edgecrafter train ecinsseg-s dataset --weights runs/detect/train/weights/best.safetensors   # from a detector
edgecrafter train ecdet-p dataset --imgsz 320 --device cpu
edgecrafter train runs/detect/train/weights/best.safetensors other_dataset   # start from own weights
edgecrafter train --resume --project runs/detect                             # go on after an interruption
torchrun --nproc-per-node 4 -m edgecrafter train ecdet-s dataset             # four GPUs""",
    ),
    "val": Command(
        "score a model on a data set",
        val,
        lambda: ValOptions,
        ("model", "data"),
        """\
edgecrafter val runs/detect/train dataset
edgecrafter val ecinsseg-s coco --mask_blocks 0         # all blocks of the mask head
edgecrafter val ecdet-s coco split=val batch=16 device=cuda precision=bf16""",
    ),
    "predict": Command(
        "find objects in pictures",
        predict,
        lambda: PredictOptions,
        ("model", "source"),
        """\
edgecrafter predict ecdet-s street.jpg
edgecrafter predict ecinsseg-s street.jpg               # masks
edgecrafter predict ecpose-s street.jpg                 # persons with 17 keypoints
edgecrafter predict runs/detect/train photos --conf 0.5 --classes person,dog
edgecrafter predict ecdet-s 'photos/*.jpg' --json --save false > found.jsonl""",
    ),
    "models": Command(
        "list the models, their sources and licences",
        models,
        lambda: ModelsOptions,
        (),
        """\
edgecrafter models
edgecrafter models --json""",
    ),
    "info": Command(
        "show parameters and FLOPs of a model",
        info,
        lambda: InfoOptions,
        ("model",),
        """\
edgecrafter info ecdet-s
edgecrafter info ecpose-m
edgecrafter info runs/detect/train --imgsz 320
edgecrafter info --all""",
    ),
    "convert": Command(
        "rewrite a weight file, released form to ours or back",
        convert,
        lambda: ConvertOptions,
        ("source", "target"),
        """\
edgecrafter convert ecdet_s.pth ecdet_s.safetensors
edgecrafter convert ecdet_s.safetensors released.pth""",
    ),
    "quickstart": Command(
        "try everything in a few minutes, without data",
        quickstart,
        lambda: QuickstartOptions,
        (),
        """\
edgecrafter quickstart
edgecrafter quickstart --task segment
edgecrafter quickstart --task pose --folder poses
edgecrafter quickstart --data dataset --folder first_try""",
    ),
}


def overview() -> str:
    """What ``edgecrafter --help`` prints."""
    rows = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: edgecrafter COMMAND [--option value | option=value ...]",
            "",
            "Compact real-time detection, segmentation and pose estimation on small vision transformers.",
            "",
            "commands:",
            *rows,
            "",
            "edgecrafter COMMAND --help explains the options and shows examples. New here? Try: edgecrafter quickstart",
        ]
    )
