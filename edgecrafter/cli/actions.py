"""What each command does with the functions of the package, and what it prints. Nothing heavy is imported before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecrafter.ablate_config import AblateConfig
    from edgecrafter.benchmark_config import BenchmarkConfig
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
    from edgecrafter.export.config import ExportConfig
    from edgecrafter.figures import Drawn
    from edgecrafter.model import Model
    from edgecrafter.pipeline.config import PipelineConfig
    from edgecrafter.train.config import TrainConfig
    from edgecrafter.train.distill_config import DistillConfig
    from edgecrafter.train.teach import TeachConfig


def train(options: TrainConfig) -> None:
    """Train and say where the result is."""
    from edgecrafter.train import run

    run.train(options)


def teach(options: TeachConfig) -> None:
    """Train a teacher and say where it is and what comes next."""
    from edgecrafter.train.teach import teach

    teach(options)


def distill(options: DistillConfig) -> None:
    """Distil a teacher into a vision transformer, or compare teachers first."""
    if options.advise:
        from edgecrafter.advise import advise

        advise(options)
        return
    from edgecrafter.train import distil

    distil.distill(options)


def pipeline(options: PipelineConfig) -> None:
    """Run all stages and print the report."""
    from edgecrafter.pipeline.run import pipeline

    pipeline(options)


def ablate(options: AblateConfig) -> None:
    """Run a grid and print the comparison."""
    from edgecrafter.ablate import ablate

    ablate(options)


def export(options: ExportConfig) -> None:
    """Export, and say where the files are and how close they are."""
    from edgecrafter import model

    if not options.model:
        raise ValueError("model is missing: say what to export, such as edgecrafter export runs/detect/train")
    print(model.load(options.model, options.device).export(options))


def benchmark(options: BenchmarkConfig) -> None:
    """Measure, print the table and say where everything is."""
    from edgecrafter.benchmark import benchmark

    found = benchmark(options)
    print(found.table())
    print(f"results: {found.folder}")


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


def features(options: FeaturesOptions) -> None:
    """Save the maps of each picture, and say which have one basis."""
    _ask(options, "features")
    from edgecrafter.features import stream

    chosen = (options.device, options.imgsz, options.weights, options.basis, options.seed)
    _save(stream(options.model, options.source, *chosen), options, "features")


def attention(options: AttentionOptions) -> None:
    """Save the heat maps of each picture, and say which networks found nothing."""
    _ask(options, "attention")
    from edgecrafter.attention import stream

    chosen = (options.conf, options.max_det, options.layer, options.seed)
    drawn = stream(options.model, options.source, options.device, options.imgsz, options.weights, *chosen)
    _save(drawn, options, "attention")


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
    from edgecrafter import families, hub

    known = families.find(hub.convert(options.source, options.target).name)
    lacks = known.family.sign if known and options.target.endswith(".pth") else None
    note = f"; without {lacks}, which only the authors' training reads: code that wants every entry will miss it"
    print(f"written to {options.target}{note if lacks else ''}")


def kitti_to_coco(options: KittiOptions) -> None:
    """Write both splits and say what they hold."""
    from edgecrafter.data.formats.kitti_coco import write

    print("\n".join(write(options.source, options.target)))


def quickstart(options: QuickstartOptions) -> None:
    """The whole journey in a few minutes."""
    from edgecrafter.quickstart import quickstart

    quickstart(**asdict(options))


def _ask(options: FeaturesOptions | AttentionOptions, command: str) -> None:
    """Raise ``UsageError`` where there is no model or no picture."""
    from edgecrafter.cli.parsing import UsageError

    for given, name in ((options.model, "model"), (options.source, "pictures")):
        if not given:
            example = f"edgecrafter {command} --model ecdet-s --model ecdet-m street.jpg"
            raise UsageError(f"no {name} given. Example: {example}")


def _save(pictures: Iterable[Drawn], options: FeaturesOptions | AttentionOptions, project: str) -> None:
    """Write what was drawn into a new folder, and say where and what has to be known of it."""
    from edgecrafter.train.state import new_folder, run_project

    folder = None
    for drawn in pictures:
        folder = folder or new_folder(run_project(options.project, project), options.name)
        print(": ".join([str(drawn.save(folder)), *filter(None, [" ".join(drawn.notes)])]))


def _load(options: ValOptions | PredictOptions) -> Model:
    from edgecrafter import model

    changes: dict[str, Any] = {} if options.mask_blocks is None else {"mask_blocks": options.mask_blocks}
    return model.load(options.model, options.device, **changes)
