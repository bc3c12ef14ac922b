"""Networks against numbers computed with the authors' released code, layer by layer, through the real key map."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecrafter import hub
from edgecrafter.models import official
from edgecrafter.models.fuse import fuse
from edgecrafter.models.queries import anchors

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from checkpoint import released_state  # noqa: E402
from fill import network_input  # noqa: E402

MODELS = ("ecdet_s", "ecdet_l")
STEPS = (8, 4, 2)


@pytest.fixture(scope="module", params=MODELS)
def golden(request, tmp_path_factory):
    """The network loaded from a file in the released layout, its stored numbers and its description."""
    name = request.param
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp(name) / "released.pth"
    state = released_state(name, GOLDEN)
    torch.save({"date": "", "last_epoch": 0, "model": {}, "ema": {"module": state, "updates": 1}}, file)
    network, info = hub.load(file)
    about = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    return name, network, info, state, np.load(GOLDEN / f"{name}.npz"), about


def forward(network, about):
    """Outputs, and what the hooked modules said."""
    heard = {}
    modules = {"stem": network.backbone.vit.stem, "aifi": network.encoder.aifi}
    modules |= {f"vit_block_{i}": block for i, block in enumerate(network.backbone.vit.blocks)}
    modules |= {f"decoder_layer_{i}": layer for i, layer in enumerate(network.decoder.layers)}
    modules["pre_head"] = network.decoder.first_box
    modules["last_corner_delta"] = network.decoder.boxes[-1]
    hooks = [m.register_forward_hook(lambda _m, _i, out, n=n: heard.__setitem__(n, out)) for n, m in modules.items()]
    with torch.inference_mode():
        outputs = network(torch.from_numpy(network_input(about["image_seed"], 640, 640, True)))
    for hook in hooks:
        hook.remove()
    return outputs, heard


def largest(found, stored):
    return float(np.abs(found.numpy() - stored).max())


def test_golden_layers_and_outputs(golden):
    name, network, _, _, arrays, about = golden
    for form, model in (("as trained", network), ("fused", fuse(network))):
        outputs, heard = forward(model, about)
        worst = {}
        for part, levels in (("backbone", outputs.features), ("encoder", outputs.memory)):
            for i, (level, step) in enumerate(zip(levels, STEPS, strict=True)):
                spread = about["level_stats"][f"{part}_{i}"]["std"]
                worst[part] = max(
                    worst.get(part, 0), largest(level[0, :8, ::step, ::step], arrays[f"{part}_{i}"]) / spread
                )
        last = outputs.layers[-1]
        worst["logits"] = largest(last.logits, arrays["pred_logits"])
        worst["boxes"] = largest(last.boxes, arrays["pred_boxes"])
        for i in range(len(network.backbone.vit.blocks)):
            worst["vit"] = max(
                worst.get("vit", 0), largest(heard[f"vit_block_{i}"][0, ::200, :16], arrays[f"vit_block_{i}"])
            )
        worst["vit patches"] = largest(heard["stem"][0, :8, ::4, ::4], arrays["vit_patch_embed"])
        aifi = heard["aifi"].flatten(2).transpose(1, 2)
        worst["aifi"] = largest(aifi[0, ::50, :16], arrays["aifi"])
        for i in range(len(network.decoder.layers)):
            found = heard[f"decoder_layer_{i}"][0, :16, :16]
            worst["decoder"] = max(worst.get("decoder", 0), largest(found, arrays[f"decoder_layer_{i}"]))
        worst["first box"] = largest(heard["pre_head"][0, :16], arrays["pre_head"])
        worst["last edges"] = largest(heard["last_corner_delta"][0, :8], arrays["last_corner_delta"])
        print(f"\ngolden {name}, {form}: " + ", ".join(f"{part} {value:.1e}" for part, value in worst.items()))
        assert worst["backbone"] < 1e-3 and worst["encoder"] < 1e-3
        assert worst["logits"] < 2e-3 and worst["boxes"] < 2e-4
        assert max(worst[p] for p in ("vit", "vit patches", "aifi", "decoder", "first box", "last edges")) < 5e-3


def test_golden_query_selection(golden):
    _, network, _, _, arrays, about = golden
    outputs, _ = forward(network, about)
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in outputs.memory], dim=1)
    _, valid = anchors([tuple(level.shape[2:]) for level in outputs.memory], tokens.device)
    with torch.inference_mode():
        score = network.decoder.enc_score(tokens * valid[:, None]).amax(-1)
    best = score.topk(301).values[0]
    assert largest(best, arrays["query_select_logit"]) < 1e-3
    assert set(score.topk(300).indices[0].tolist()) == set(arrays["query_anchor_index"].tolist())


def test_golden_parameter_counts(golden):
    _, network, _, _, _, about = golden
    assert sum(p.numel() for p in network.parameters()) == about["parameters"]["training_model"]
    assert sum(p.numel() for p in fuse(network).parameters()) == about["parameters"]["deploy_model"]


def test_golden_file_is_recognised(golden):
    name, _, info, *_ = golden
    assert info.name == name.replace("_", "-")
    assert info.labels.names[0] == "person" and info.labels.ids[-1] == 90


def test_golden_round_trip_is_bit_identical(golden, tmp_path):
    _, network, info, state, *_ = golden
    ours = hub.save(network, info, tmp_path / "ours.safetensors")
    hub.convert(ours, tmp_path / "back.pth")
    back = official.unwrap(torch.load(tmp_path / "back.pth", weights_only=True))
    assert set(back) == set(state)
    different = [k for k, v in state.items() if back[k].dtype != v.dtype or not torch.equal(back[k], v)]
    assert not different
    again, same = hub.load(ours)
    assert same == info
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
