"""The commands: name, summary, options, words without a name, examples; what they do is in ``actions``.

Nothing heavy is imported before a command runs, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecrafter.cli import actions
from edgecrafter.cli.options import (
    AttentionOptions,
    ConvertOptions,
    FeaturesOptions,
    InfoOptions,
    KittiOptions,
    ModelsOptions,
    PredictOptions,
    QuickstartOptions,
    ValOptions,
)

if TYPE_CHECKING:
    from edgecrafter.ablate_config import AblateConfig
    from edgecrafter.benchmark_config import BenchmarkConfig
    from edgecrafter.export.config import ExportConfig
    from edgecrafter.pipeline.config import PipelineConfig
    from edgecrafter.train.config import TrainConfig
    from edgecrafter.train.distill_config import DistillConfig
    from edgecrafter.train.teach import TeachConfig


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


def _train_options() -> type[TrainConfig]:
    from edgecrafter.train.config import TrainConfig

    return TrainConfig


def _teach_options() -> type[TeachConfig]:
    from edgecrafter.train.teach import TeachConfig

    return TeachConfig


def _ablate_options() -> type[AblateConfig]:
    from edgecrafter.ablate_config import AblateConfig

    return AblateConfig


def _benchmark_options() -> type[BenchmarkConfig]:
    from edgecrafter.benchmark_config import BenchmarkConfig

    return BenchmarkConfig


def _export_options() -> type[ExportConfig]:
    from edgecrafter.export.config import ExportConfig

    return ExportConfig


def _pipeline_options() -> type[PipelineConfig]:
    from edgecrafter.pipeline.config import PipelineConfig

    return PipelineConfig


def _distill_options() -> type[DistillConfig]:
    from edgecrafter.train.distill_config import DistillConfig

    return DistillConfig


COMMANDS = {
    "train": Command(
        "train a model on your own pictures",
        actions.train,
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
    "teach": Command(
        "stage 1: adapt an image backbone to detection, as a teacher",
        actions.teach,
        _teach_options,
        ("model", "data"),
        """\
edgecrafter teach ecteacher-s dataset                   # DINOv3-S in ecdet-l, the paper's teacher of ecvit-t
edgecrafter teach ecteacher-b dataset --batch 8 --accumulate 4
edgecrafter teach --model ecdet-x --backbone dinov3-b --data dataset         # the same as ecteacher-b
edgecrafter teach ecdet-l dataset --backbone dinov2-s   # free: Apache-2.0, no account
edgecrafter teach ecdet-l dataset --backbone dinov3-s --backbone_weights dinov3_s.safetensors   # a file of yours
edgecrafter teach ecdet-l dataset --backbone timm:convnext_small.dinov3_lvd1689m
edgecrafter teach ecdet-n dataset                       # no other backbone: its own ViT is the teacher
edgecrafter teach --resume                              # go on with the newest of runs/teach""",
    ),
    "distill": Command(
        "stage 2: teach a small vision transformer, without labels",
        actions.distill,
        _distill_options,
        ("student", "teacher", "images"),
        """\
edgecrafter distill ecvit-t runs/teach/teach imagenet/train coco/train2017
edgecrafter distill --student ecvit-t --teacher runs/teach/teach --images photos dataset
edgecrafter distill ecvit-t dinov2-s photos             # a backbone as it is, without stage 1
edgecrafter distill ecvit-t dinov2-s photos --optimizer adamw --registers 0 --stem vanilla
edgecrafter distill ecvit-t --images photos --advise runs/teach/teach,dinov2-s,dinov2-b   # which teacher?
edgecrafter distill --resume                            # go on with the newest of runs/distill
torchrun --nproc-per-node 2 -m edgecrafter distill ecvit-t runs/teach/teach photos        # two GPUs
edgecrafter train ecdet-s dataset --backbone runs/distill/distill            # stage 3""",
    ),
    "pipeline": Command(
        "all stages in one go, with and without distillation, and a report",
        actions.pipeline,
        _pipeline_options,
        ("model", "data"),
        """\
edgecrafter pipeline ecdet-s dataset                    # teacher, distillation, detector with and without it
edgecrafter pipeline ecdet-s dataset --dry              # only say what would be done and how long it takes
edgecrafter pipeline ecdet-p dataset --epochs 40 --imgsz 320 --teach epochs=40 --distill epochs=30
edgecrafter pipeline ecdet-s dataset --teacher dinov2-s --images photos          # free backbone, more pictures
edgecrafter pipeline ecdet-s dataset --teacher runs/teach/teach --tasks segment  # a finished teacher; masks too
edgecrafter pipeline ecdet-s dataset --distill optimizer=adamw,teacher_blocks=3,registers=2 --train lr=1e-3
edgecrafter pipeline --resume                           # go on with the newest of runs/pipeline""",
    ),
    "ablate": Command(
        "compare options of distillation and training over several seeds",
        actions.ablate,
        _ablate_options,
        ("grid",),
        """\
edgecrafter ablate --data dataset --vary 'distill.registers=0|1|2' --distill teacher=runs/teach/teach --seeds 0,1,2
edgecrafter ablate --data dataset --vary 'train.fused=1|2' --train epochs=20     # without distillation
edgecrafter ablate grid.yaml --dry                      # arms named in a file, as in experiments/
edgecrafter ablate grid.yaml --seeds 0,1,2,3,4          # more seeds: what is there is not done again""",
    ),
    "val": Command(
        "score a model on a data set",
        actions.val,
        lambda: ValOptions,
        ("model", "data"),
        """\
edgecrafter val runs/detect/train dataset
edgecrafter val ecinsseg-s coco --mask_blocks 0         # all blocks of the mask head
edgecrafter val ecdet-s coco split=val batch=16 device=cuda precision=bf16""",
    ),
    "predict": Command(
        "find objects in pictures",
        actions.predict,
        lambda: PredictOptions,
        ("model", "source"),
        """\
edgecrafter predict ecdet-s street.jpg
edgecrafter predict ecinsseg-s street.jpg               # masks
edgecrafter predict ecpose-s street.jpg                 # persons with 17 keypoints
edgecrafter predict runs/detect/train photos --conf 0.5 --classes person,dog
edgecrafter predict ecdet-s 'photos/*.jpg' --json --save false > found.jsonl""",
    ),
    "features": Command(
        "draw the feature maps of detectors and teachers",
        actions.features,
        lambda: FeaturesOptions,
        ("source",),
        """\
edgecrafter features --model runs/detect/plain --model runs/detect/distilled street.jpg
edgecrafter features --model ecdet-s --model dinov2-s 'photos/*.jpg' --imgsz 640
edgecrafter features --model runs/detect/train --model ecdet-n --weights none --basis own street.jpg""",
    ),
    "attention": Command(
        "draw where detectors look for what they find",
        actions.attention,
        lambda: AttentionOptions,
        ("source",),
        """\
edgecrafter attention --model runs/detect/teacher --model runs/detect/plain --model runs/detect/distilled street.jpg
edgecrafter attention --model runs/detect/distilled 'photos/*.jpg' --layer 1,2,3
edgecrafter attention --model runs/detect/plain --model runs/detect/distilled street.jpg --conf 0 --max_det 20""",
    ),
    "models": Command(
        "list the models, their sources and licences",
        actions.models,
        lambda: ModelsOptions,
        (),
        """\
edgecrafter models
edgecrafter models --json""",
    ),
    "info": Command(
        "show parameters and FLOPs of a model",
        actions.info,
        lambda: InfoOptions,
        ("model",),
        """\
edgecrafter info ecdet-s
edgecrafter info ecpose-m
edgecrafter info runs/detect/train --imgsz 320
edgecrafter info --all""",
    ),
    "export": Command(
        "write a model for another runtime, and prove that it answers as torch does",
        actions.export,
        _export_options,
        ("model",),
        """\
edgecrafter export runs/detect/train                    # ONNX: boxes, scores, labels; with infer.py beside it
edgecrafter export ecdet-s --format openvino --imgsz 384,640
edgecrafter export ecdet-s --graph raw --batch dynamic  # logits and boxes of all queries, any number of pictures
edgecrafter export runs/detect/train --half             # 16 bits where that is safe
edgecrafter export runs/detect/train --int8 --data dataset --max-drop 0.01   # refuses to lose more AP
edgecrafter export runs/detect/train --graph npu        # for chips without GridSample and TopK
edgecrafter export runs/detect/train --preset latency   # TensorRT as in the papers; needs an NVIDIA GPU""",
    ),
    "benchmark": Command(
        "how fast and how good a model is in every format, beside a yardstick",
        actions.benchmark,
        _benchmark_options,
        ("model",),
        """\
edgecrafter benchmark ecdet-s                           # torch, ONNX Runtime and OpenVINO against ResNet-50
edgecrafter benchmark runs/detect/train --data dataset --formats torch,onnx,openvino,openvino-int8 --threads 2
edgecrafter benchmark runs/detect/train --formats exports/ecdet-s_onnx       # an export that is there""",
    ),
    "convert": Command(
        "rewrite a weight file, released form to ours or back",
        actions.convert,
        lambda: ConvertOptions,
        ("source", "target"),
        """\
edgecrafter convert ecdet_s.pth ecdet_s.safetensors
edgecrafter convert ecdet_s.safetensors released.pth""",
    ),
    "kitti-to-coco": Command(
        "write the labels of KITTI as COCO files",
        actions.kitti_to_coco,
        lambda: KittiOptions,
        ("source", "target"),
        """\
edgecrafter kitti-to-coco kitti kitti_coco              # seven classes, the default split
edgecrafter kitti-to-coco kitti:three,drop:kitti kitti_three""",
    ),
    "quickstart": Command(
        "try everything in a few minutes, without data",
        actions.quickstart,
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
    rows = [f"  {name:<15}{command.summary}" for name, command in COMMANDS.items()]
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
