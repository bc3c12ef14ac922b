"""Backbones of timm, of Hugging Face and from Python: what they give, where their weights come from, what is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_training as small
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgecrafter as ec
from edgecrafter import hub, summary, teachers
from edgecrafter.models import foreign, libraries
from edgecrafter.models.fetch import fetched
from edgecrafter.models.foreign import Foreign, adopt
from edgecrafter.start import origin, start
from edgecrafter.tasks import TASKS
from edgecrafter.train.steps import SupervisedStep

LABELS = small.LABELS
VITS = ("vit_small_patch16_dinov3", "vit_small_patch14_dinov2", "vit_tiny_patch16_224")
TINY = "timm:vit_tiny_patch16_224"


def stirred(network: nn.Module, seed: int = 0) -> Any:
    """With weights that are not zero anywhere, in evaluation mode."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


def pictures(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def around(backbone: str | nn.Module, name: str = "ecdet-p", **options: Any) -> tuple[nn.Module, hub.ModelInfo]:
    torch.manual_seed(0)
    made = start(origin(name), LABELS, (64, 64), backbone=backbone, backbone_weights="none", queries=20, **options)
    return made.network, made.info


# what timm's networks give


@pytest.mark.parametrize("name", [*VITS, "vit_base_patch16_dinov3"])
def test_maps_of_a_vit_are_its_own_tokens_without_class_and_registers(name: str) -> None:
    """Taken from the blocks themselves, by hooks; the patches are the last tokens."""
    network = stirred(libraries.build(f"timm:{name}"))
    patch, inner = network.facts.stride, network.network
    height, width = 4 * patch, 6 * patch
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *found: seen.append(found[2])) for block in inner.blocks]
    images = pictures(height, width)
    with torch.no_grad():
        maps = network.features(images, 3)
        for hook in hooks:
            hook.remove()
        assert len(seen) == len(inner.blocks) and seen[0].shape[1] == 24 + inner.num_prefix_tokens
        for found, tokens in zip(maps, seen[-3:], strict=True):
            wanted = inner.norm(tokens)[:, inner.num_prefix_tokens :].transpose(1, 2).reshape(found.shape)
            assert torch.allclose(found, wanted, atol=1e-5)
            assert found.shape == (2, network.facts.widths[0], 4, 6)
        plain = Foreign(inner, libraries.build(f"timm:{name}", norm=False).read, network.facts).features(images, 1)[0]
        tokens = seen[-1][:, inner.num_prefix_tokens :].transpose(1, 2).reshape(plain.shape)
        assert torch.allclose(plain, tokens, atol=1e-5) and not torch.allclose(plain, maps[-1], atol=0.1)


@pytest.mark.parametrize("name", ["test_vit2", "eva02_tiny_patch14_224"])
def test_a_norm_behind_the_mean_is_applied_to_every_token(name: str) -> None:
    """As the network does it to the mean: a norm that is not of the tokens but has their width."""
    network = stirred(libraries.build(f"timm:{name}"))
    inner, patch = network.network, network.facts.stride
    assert isinstance(inner.norm, nn.Identity) and isinstance(inner.fc_norm, nn.LayerNorm)
    images = pictures(4 * patch, 6 * patch)
    with torch.no_grad():
        tokens = inner.forward_features(images)[:, inner.num_prefix_tokens :]
        (found,) = network.features(images, 1)
        assert torch.allclose(found.flatten(2).transpose(1, 2), inner.fc_norm(tokens), atol=1e-5)
        (plain,) = libraries.build(f"timm:{name}", norm=False).read(inner, images, 1)
        assert torch.allclose(plain.flatten(2).transpose(1, 2), tokens, atol=1e-5)
    assert not any("fc_norm" in each for each in foreign.freeze_unused(network))


def test_a_vit_without_a_final_norm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *given, **options: create(*given, final_norm=False, **options))
    with pytest.warns(UserWarning, match="timm:test_vit has no final norm"):
        libraries.build("timm:test_vit")


@pytest.mark.parametrize("size", [(64, 96), (96, 32)])
@pytest.mark.parametrize("name", [*VITS[:2], "convnext_atto", "resnet18"])
def test_a_detector_gets_the_grids_it_wants(name: str, size: tuple[int, int]) -> None:
    network = stirred(libraries.build(f"timm:{name}"))
    height, width = size
    strides = (16, 16) if network.plain else (8, 16, 32)
    with torch.no_grad():
        found = [tuple(x.shape[1:]) for x in network(pictures(height, width))]
    widths = network.facts.widths * (2 if network.plain else 1)
    assert found == [(w, height // s, width // s) for w, s in zip(widths, strides, strict=True)]


def test_patch_14_sees_the_whole_picture_resized_and_a_teacher_its_own_grid() -> None:
    network = stirred(libraries.build("timm:vit_small_patch14_dinov2"))
    images = pictures(64, 96)
    with torch.no_grad():
        small_images = F.interpolate(images, size=(56, 84), mode="bilinear", align_corners=False, antialias=True)
        assert torch.equal(network(images)[-1], network.features(small_images, 1)[0])
        assert network.features(images, 1)[0].shape[2:] == (5, 7)  # 70 x 98, the nearest multiples of 14
        assert network.features(pictures(224, 224), 1)[0].shape[2:] == (16, 16)


def test_a_hierarchy_teaches_with_its_map_of_stride_16() -> None:
    network = stirred(libraries.build("timm:resnet18"))
    with torch.no_grad():
        (found,) = network.features(pictures(), 1)
        assert torch.equal(found, network.network(pictures())[3]) and found.shape[1] == 256


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_a_hierarchy_of_transformers_gives_its_levels(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    spec = "hf:" + json.dumps({"model_type": kind, "_name_or_path": "tiny"} | config.to_diff_dict())
    network = stirred(libraries.build(spec))
    assert network.facts.widths == (16, 24, 32)
    with torch.no_grad():
        states = network.network(pictures(), output_hidden_states=True).hidden_states
        maps = network(pictures())
        assert [x.shape[1:] for x in maps] == [(16, 8, 12), (24, 4, 6), (32, 2, 3)]
        assert all(torch.equal(x, state) for x, state in zip(maps, states[-3:], strict=True))
        assert torch.equal(network.features(pictures(), 1)[0], maps[1])


@pytest.mark.parametrize(
    "spec, message",
    [
        ("timm:vit_smal_dinov3", "timm has no model"),
        ("timm:resnet18.nothing", "has no weights 'nothing' of resnet18, has .*resnet18.a1_in1k"),
        ("flax:vit", "expected timm:NAME, hf:OWNER/NAME"),
        ("module:Net", "hand it in again"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        libraries.build(spec)


def test_networks_of_one_size_are_refused_in_time() -> None:
    swin = "timm:swin_tiny_patch4_window7_224"
    with pytest.raises(ValueError, match=f"{swin} does not take pictures of every size .*224"):
        around(swin)
    teacher = teachers.teacher(swin, blocks=1, weights="none")
    assert teacher.widths((224, 224)) == [384]
    with pytest.raises(ValueError, match=f"{swin} does not take pictures of 64 x 64"):
        teacher.widths((64, 64))


@pytest.mark.filterwarnings("ignore:.*has no final norm")
def test_a_network_that_is_not_what_its_library_says_is_refused() -> None:
    with pytest.raises(ValueError, match="gives maps of .* channels instead of"):
        around("timm:samvit_base_patch16")


def test_options_of_our_vit_do_not_go_with_others() -> None:
    with pytest.raises(ValueError, match="registers=0 is of our vision transformers, not of timm:resnet18"):
        around("timm:resnet18", registers=0)


# normalisation


def test_pictures_are_normalised_as_the_library_says(tmp_path: Path) -> None:
    network, info = around(TINY)
    assert info.input.mean == info.input.std == (0.5, 0.5, 0.5)
    seen: list[Tensor] = []
    network.get_submodule("backbone.vit").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    step = SupervisedStep(network, TASKS["detect"], LABELS, info.input)
    batch = small.batch([2, 1])
    step(batch)
    assert torch.allclose(seen[-1], batch.images / 255 * 2 - 1, atol=1e-6)
    path = hub.save(network, info, tmp_path / "model.safetensors")
    assert hub.load(path)[1].input.mean == (0.5, 0.5, 0.5)
    for given in (path, TINY):
        teacher = teachers.teacher(given, weights="none" if given == TINY else "pretrained")
        assert teacher.spec.mean == teacher.spec.std == (0.5, 0.5, 0.5)


# learning


@pytest.mark.parametrize("name", [TINY, "timm:xcit_nano_12_p16_224", "timm:convnext_atto", "timm:resnet18"])
def test_every_trained_parameter_has_a_gradient(name: str) -> None:
    network, info = around(name)
    step = SupervisedStep(network, TASKS["detect"], LABELS, info.input)
    torch.stack(list(step(small.batch([2, 3])).values())).sum().backward()
    vit = network.get_submodule("backbone.vit")
    trained = [name for name, p in vit.named_parameters() if p.requires_grad]
    assert len(trained) > 20
    assert not [name for name in trained if vit.get_parameter(name).grad is None]
    frozen = {name for name, p in vit.named_parameters() if not p.requires_grad}
    assert bool(frozen) == ("xcit" in name) and all("cls_" in each or "norm" in each for each in frozen)


def test_looking_at_a_module_leaves_every_part_in_its_mode() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.BatchNorm2d(8))
    module[1].eval()
    network = adopt(module)
    foreign.check(network)
    foreign.freeze_unused(network)
    assert [part.training for part in (module, *module)] == [True, True, False]
    with pytest.raises(RuntimeError), foreign.evaluating(module):
        module(torch.zeros(1, 4, 32, 32))
    assert [part.training for part in (module, *module)] == [True, True, False]


def test_frozen_are_only_those_that_no_map_depends_on() -> None:
    network = libraries.build(TINY, norm=False)
    assert foreign.freeze_unused(network) == ["network.norm.weight", "network.norm.bias"]
    assert network.training and foreign.freeze_unused(network) == []


# kept in files


def test_saved_and_loaded_again_without_a_network(tmp_path: Path) -> None:
    for name in (TINY, "timm:resnet18"):
        network, info = around(name)
        path = hub.save(stirred(network), info, tmp_path / "model.safetensors")
        found = ec.load(path, "cpu")
        with torch.no_grad():
            assert torch.equal(found.network(pictures()).layers[-1].boxes, network(pictures()).layers[-1].boxes)
        assert found.info == info and str(tmp_path) not in info.to_json()
        counted = ec.info(path)
        assert counted.backbone == name and f"backbone: {name}" in str(counted)
        assert sum(counted.parts.values()) == counted.parameters and counted.parts.keys() == summary.AROUND.keys()
        with pytest.raises(ValueError, match=f"ecdet-p around {name} has no released layout"):
            ec.convert(path, tmp_path / "model.pth")
        ec.convert(path, tmp_path / "again.safetensors")


class Patches(nn.Module):
    """One map of stride 16."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 16, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images)


def test_a_module_is_handed_in_again(tmp_path: Path) -> None:
    module = Patches()
    network, info = around(module)
    assert info.size.vit == 24 and info.size.backbone == "module:Patches"
    path = hub.save(stirred(network), info, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="hand it in again.*backbone=module"):
        ec.load(path)
    found = ec.load(path, "cpu", backbone=Patches())
    with torch.no_grad():
        assert torch.equal(found.network(pictures()).layers[-1].boxes, network.eval()(pictures()).layers[-1].boxes)
    with pytest.raises(ValueError, match="backbone: such options go with a name"):
        ec.load(found, backbone=module)
    again = start(origin(path), LABELS, backbone=Patches(), queries=20)
    weight = again.network.get_parameter("backbone.vit.network.embed.weight")
    assert torch.equal(weight, module.embed.weight), "training goes on with the weights of the file"


def test_modules_that_answer_otherwise() -> None:
    with pytest.raises(ValueError, match=r"Linear|expected a map \[B, D, h, w\]"):
        adopt(nn.Flatten())
    with pytest.raises(ValueError, match=r"Conv2d does not take a picture of 224 x 224 \(.*channels"):
        adopt(nn.Conv2d(4, 8, 16, 16))
    levels = nn.ModuleList(nn.Conv2d(3, 8, s, s) for s in (4, 8, 16))

    class Levels(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [level(images) for level in levels]

    with pytest.raises(ValueError, match=r"stride \[4, 8, 16\]; a detector needs one of each of 8, 16 and 32"):
        adopt(Levels())
    with pytest.raises(ValueError, match=r"gives 1 map\(s\), 2 are to be joined; use fusion=mean"):
        around(Patches(), fusion="concat")


# Hugging Face


def tiny_config(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    numbers = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    made = {
        "dinov2": lambda: transformers.Dinov2Config(**numbers, image_size=70, patch_size=14),
        "dinov3_vit": lambda: transformers.DINOv3ViTConfig(**numbers, image_size=64, num_register_tokens=4),
        "vit": lambda: transformers.ViTConfig(**numbers, image_size=64),
    }
    return made[kind]()


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_of_pictures_and_words_the_part_that_sees(kind: str, tmp_path: Path) -> None:
    """Blocks by hooks; the norm behind them is applied to all tokens."""
    transformers = pytest.importorskip("transformers")
    numbers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    words = numbers | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(
        text_config=words, vision_config=numbers | {"image_size": 64, "patch_size": 16}
    )
    whole = stirred(transformers.AutoModel.from_config(config))
    whole.save_pretrained(tmp_path / "both")
    with pytest.warns(UserWarning, match="does not say how pictures are normalised"):
        network = libraries.build(f"hf:{tmp_path / 'both'}", weights="pretrained").eval()
    seen: list[Tensor] = []
    for layer in whole.vision_model.encoder.layers:
        layer.register_forward_hook(lambda *found: seen.append(found[2]))
    with torch.no_grad():
        whole.vision_model(pictures(), interpolate_pos_encoding=True)
        wanted = [whole.vision_model.post_layernorm(x[:, -24:]).transpose(1, 2).reshape(2, 32, 4, 6) for x in seen]
        found = network.features(pictures(), 2)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(found, wanted, strict=True))
    assert libraries.build(network.facts.spec).network.state_dict().keys() == network.network.state_dict().keys()
    unused = foreign.freeze_unused(network)
    assert all("head" in each for each in unused) and bool(unused) == (kind == "Siglip")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the Hub has them, of three tiny networks."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("repositories")
    for seed, kind in enumerate(("dinov2", "dinov3_vit", "vit")):
        stirred(transformers.AutoModel.from_config(tiny_config(kind)), seed).save_pretrained(folder / kind)
        said = json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]})
        (folder / kind / "preprocessor_config.json").write_text(said)
    return folder


@pytest.mark.parametrize("kind, prefix", [("dinov2", 1), ("dinov3_vit", 5), ("vit", 1)])
def test_networks_of_transformers(repositories: Path, kind: str, prefix: int) -> None:
    network = libraries.build(f"hf:{repositories / kind}", weights="pretrained").eval()
    patch = network.facts.stride
    assert patch == (14 if kind == "dinov2" else 16) and network.facts.std == (0.1, 0.2, 0.3)
    images, inner = pictures(4 * patch, 6 * patch), network.network
    extra = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.no_grad():
        tokens = inner(images, **extra).last_hidden_state  # behind the final norm
        assert tokens.shape[1] == 24 + prefix
        wanted = tokens[:, prefix:].transpose(1, 2).reshape(2, 32, 4, 6)
        assert torch.allclose(network.features(images, 1)[0], wanted, atol=1e-5)
        assert len(network.features(images, 3)) == 3
        plain = libraries.build(f"hf:{repositories / kind}", norm=False, weights="pretrained").eval()
        final = inner.norm if kind == "dinov3_vit" else inner.layernorm
        raw = plain.features(images, 1)[0].flatten(2).transpose(1, 2)
        assert torch.allclose(final(raw), tokens[:, prefix:], atol=1e-5) and not torch.allclose(raw, tokens[:, prefix:])
        assert network(pictures(64, 96))[0].shape == (2, 32, 4, 6)
    with pytest.raises(ValueError, match="gives 3 maps, 4 are asked for"):
        network.features(images, 4)
    assert all("mask_token" in each or "pooler" in each for each in foreign.freeze_unused(network))


def test_a_model_around_one_of_them_needs_no_hub_to_open(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(origin("ecdet-p"), LABELS, (64, 64), backbone=f"hf:{repositories / 'dinov2'}", queries=20)
    assert made.info.input.mean == (0.4, 0.5, 0.6) and not made.random_vit
    path = hub.save(made.network, made.info, tmp_path / "model.safetensors")
    assert str(repositories) not in made.info.to_json()
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *_, **__: pytest.fail("asked the Hub"))
    found, info = hub.load(path)
    with torch.no_grad():
        wanted = made.network.eval()(pictures()).layers[-1].boxes
        assert torch.equal(found(pictures()).layers[-1].boxes, wanted)
    assert ec.info(path).backbone == "hf:dinov2" and info.input == made.info.input


def test_their_weights_may_be_a_file(repositories: Path, tmp_path: Path) -> None:
    spec = libraries.build(f"hf:{repositories / 'vit'}").facts.spec
    wanted = libraries.build(f"hf:{repositories / 'vit'}", weights="pretrained").state_dict()
    for weights in (repositories / "vit", repositories / "vit" / "model.safetensors"):
        found = libraries.build(spec, weights=str(weights)).state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(ValueError, match=r"entries are missing in its weights, for example|does not hold the weights"):
        libraries.build(spec, weights=str(repositories / "dinov2" / "model.safetensors"))
    (tmp_path / "broken.pth").write_text("no weights")
    with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
        libraries.build(spec, weights=str(tmp_path / "broken.pth"))


# where weights come from


def test_weights_from_a_file(tmp_path: Path) -> None:
    for name in ("vit_tiny_patch16_224", "resnet18"):
        whole = stirred(timm.create_model(name))
        state = {key: value for key, value in whole.state_dict().items() if not key.startswith(("head.", "fc."))}
        torch.save({"state_dict": state}, tmp_path / "weights.pth")
        network = libraries.build(f"timm:{name}", weights=str(tmp_path / "weights.pth")).eval()
        with torch.no_grad():
            deepest = whole.forward_features(pictures(224, 224))
            found = network.features(pictures(224, 224), 1)[0] if network.plain else network(pictures(224, 224))[-1]
        deepest = deepest[:, 1:].transpose(1, 2).reshape(found.shape) if network.plain else deepest
        assert torch.allclose(found, deepest, atol=1e-4)
    for name in ("resnet34", "vit_tiny_patch16_224", "vit_small_patch16_dinov3"):
        with pytest.raises(ValueError, match=f"weights.pth does not hold the weights of timm:{name}"):
            libraries.build(f"timm:{name}", weights=str(tmp_path / "weights.pth"))
    with pytest.raises(FileNotFoundError, match="no such file; expected pretrained, none or a file"):
        libraries.build(TINY, weights=str(tmp_path / "nowhere.pth"))


NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
OFFLINE = """
import sys
from edgecrafter.models import libraries
try:
    network = libraries.build("timm:{name}", weights="pretrained")
    print(float(network.network.pos_embed.mean()), float(network.network.blocks[5].mlp.fc1.weight.std()))
except ValueError as error:
    print(error)
"""


def offline(cache: Path) -> str:
    kept = {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"), "HF_HUB_OFFLINE": "1", "TORCH_HOME": str(cache)}
    command = [sys.executable, "-c", OFFLINE.format(name=NAME)]
    found = subprocess.run(command, env={**os.environ, **kept}, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "fetching" in found.stderr.splitlines()[0] and NAME in found.stderr
    return found.stdout.strip()


def test_pretrained_weights_come_out_of_the_cache(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = stirred(timm.create_model(NAME))
    place = tmp_path / "hub" / f"models--timm--{NAME}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(network.state_dict(), place / "snapshots" / ("0" * 40) / "model.safetensors")
    mean, spread = (float(value) for value in offline(tmp_path).split())
    assert mean == pytest.approx(network.pos_embed.mean().item(), abs=1e-9)
    assert spread == pytest.approx(network.blocks[5].mlp.fc1.weight.std().item(), abs=1e-9)


def test_without_them_the_remedies_are_named(tmp_path: Path) -> None:
    said = offline(tmp_path)
    assert said.startswith(f"timm:{NAME}: its weights cannot be had (") and "\n" not in said
    assert all(word in said for word in ("backbone_weights=FILE", "teacher_weights=FILE", "none in"))
    assert "gated" not in said and "dinov" not in said


@pytest.mark.parametrize("name", ["timm:vit_base_patch16_dinov3.lvd1689m", "hf:facebook/DINOv3-vits16"])
def test_what_is_gated_is_said_of_dinov3_alone(name: str) -> None:
    def fetch() -> None:
        raise OSError("401 Client Error\nno access")

    with pytest.raises(ValueError) as error:
        fetched(name, fetch)
    said = str(error.value)
    assert said.startswith(f"{name}: its weights cannot be had (401 Client Error no access). DINOv3 is gated: accept")
    assert "dinov2-s or dinov2-b" in said and "backbone_weights=FILE" in said and "\n" not in said
