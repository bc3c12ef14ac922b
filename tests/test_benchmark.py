"""The benchmark: the same files are timed and scored, and the page says what was measured."""

import json
from pathlib import Path

import pytest

from edgecrafter import hub
from edgecrafter.benchmark import benchmark
from edgecrafter.benchmark_config import BenchmarkConfig
from edgecrafter.benchmark_report import Benchmark, Row
from edgecrafter.data import scenes
from edgecrafter.types import Labels

pytest.importorskip("onnxruntime")

NUMBERS = {f"{step}_{p}_ms" for step in ("before", "network", "after", "total") for p in ("p50", "p95")}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder = tmp_path_factory.mktemp("benchmark")
    data = scenes.write(folder / "data", 2, 3, size=96, seed=0)
    network, info = hub.create("ecdet-p", labels=Labels(tuple(scenes.SHAPES)), depth=2, det_layers=2)
    weights = hub.save(network, info, folder / "weights.safetensors")
    return benchmark(
        BenchmarkConfig(
            model=str(weights), formats=["torch", "onnx"], data=str(data), imgsz=64, threads=1, rounds=3,
            yardstick="mobilenet_v3_small", folder=str(folder / "out"),
        )
    )  # fmt: skip


def test_everything_is_measured_and_written(found: Benchmark) -> None:
    content = json.loads((found.folder / "benchmark.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["torch", "onnx"]
    for row in content["rows"]:
        assert row.keys() >= NUMBERS and all(row[name] > 0 for name in NUMBERS)
        assert all(len(values) == 3 for values in row["seconds"].values()) and len(row["yardstick"]) == 3
        assert row["size_mb"] > 1 and row["peak_mb"] > 20 and set(row["scores"]) == {"AP", "AP50", "AP75"}
        assert row["per_second"] == pytest.approx(3 / sum(sum(v[i] for v in row["seconds"].values()) for i in range(3)))
    assert content["rows"][1]["parity"]["passed"] and content["rows"][0]["parity"] is None
    assert content["rows"][0]["scores"]["AP"] == pytest.approx(content["rows"][1]["scores"]["AP"], abs=0.02)
    assert content["rows"][1]["peak_mb"] < 0.8 * content["rows"][0]["peak_mb"], "an export needs no torch"
    conditions = content["conditions"]
    assert conditions["threads"] == 1 and conditions["input"] == "64 x 64" and "onnxruntime" in conditions["versions"]
    page = (found.folder / "benchmark.md").read_text()
    assert "network / mobilenet_v3_small" in page and found.table() in page
    assert (found.folder / "benchmark.png").stat().st_size > 5000


def test_the_ratio_is_the_median_of_pairs() -> None:
    row = Row("x", 1.0, None, None)
    row.seconds["network"], row.yardstick = [2.0, 3.0, 40.0], [1.0, 2.0, 4.0]
    assert row.ratio() == 2.0
    row.yardstick = []
    assert row.ratio() is None


@pytest.mark.parametrize(
    "options, says",
    [
        ({"model": ""}, "model is missing"),
        ({"rounds": 0}, "rounds=0"),
        ({"formats": ["nope"]}, "formats=nope: not known"),
        ({"formats": ["torch-int8"]}, "torch is written in fp32"),
        ({"yardstick": "nope", "weights": "none"}, "yardstick=nope"),
        ({"weights": "none", "data": "somewhere"}, "weights=none"),
    ],
)
def test_what_cannot_be_measured(tmp_path: Path, options: dict[str, object], says: str) -> None:
    config = {"model": "ecdet-p", "imgsz": 64, "formats": ["torch"], "folder": str(tmp_path / "out"), **options}
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        benchmark(BenchmarkConfig(**config))  # type: ignore[arg-type]
