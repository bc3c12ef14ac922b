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
from edgecrafter.models.pose_decoder import point_anchors
from edgecrafter.models.queries import anchors
from edgecrafter.tasks import TASKS

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from checkpoint import released_state  # noqa: E402
from fill import network_input  # noqa: E402

MODELS = ("ecdet_s", "ecdet_l", "ecseg_s", "ecpose_s", "rtv4_s")
STEPS = (8, 4, 2)
PLACES = {  # module -> the part of its output that is stored
    "vit_patch_embed": np.s_[0, :8, ::4, ::4],
    **{f"vit_block_{i}": np.s_[0, ::200, :16] for i in range(12)},
    "stem": np.s_[0, :8, ::16, ::16],
    **{f"stage_{i}": np.s_[0, :8, :: 16 >> i, :: 16 >> i] for i in range(4)},
}


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
    modules = {"aifi": network.encoder.aifi, "vit": network.backbone.vit}
    if hasattr(network.backbone.vit, "blocks"):
        modules["vit_patch_embed"] = network.backbone.vit.stem
        modules |= {f"vit_block_{i}": block for i, block in enumerate(network.backbone.vit.blocks)}
    else:  # HGNetv2
        hg = network.backbone.vit.network
        modules |= {"stem": hg.stem, **{f"stage_{i}": getattr(hg, f"stages_{i}") for i in range(4)}}
    modules |= {f"decoder_layer_{i}": layer for i, layer in enumerate(network.decoder.layers)}
    poses = hasattr(network.decoder, "poses")
    modules["pre_head"] = network.decoder.first_pose if poses else network.decoder.first_box
    modules["last_corner_delta"] = (network.decoder.poses if poses else network.decoder.boxes)[-1]
    hooks = [m.register_forward_hook(lambda _m, _i, out, n=n: heard.__setitem__(n, out)) for n, m in modules.items()]
    with torch.inference_mode():
        outputs = network(torch.from_numpy(network_input(about["image_seed"], 640, 640, about["input"]["normalize"])))
    for hook in hooks:
        hook.remove()
    return outputs, heard


def largest(found, stored):
    return float(np.abs(found.detach().numpy() - stored).max())


def test_golden_layers_and_outputs(golden):
    name, network, _, _, arrays, about = golden
    for form, model in (("as trained", network), ("fused", fuse(network))):
        outputs, heard = forward(model, about)
        worst = {}
        levels_of_cnn = heard["vit"] if name.startswith("rt") else outputs.features  # there, before the projections
        for part, levels in (("backbone", levels_of_cnn), ("encoder", outputs.memory)):
            for i, (level, step) in enumerate(zip(levels, STEPS, strict=True)):
                spread = about["level_stats"][f"{part}_{i}"]["std"]
                worst[part] = max(
                    worst.get(part, 0), largest(level[0, :8, ::step, ::step], arrays[f"{part}_{i}"]) / spread
                )
        last = outputs.layers[-1]
        worst["logits"] = largest(last.logits, arrays["pred_logits"])
        if last.boxes is not None:
            worst["boxes"] = largest(last.boxes, arrays["pred_boxes"])
        if last.masks is not None:
            first = last.masks.of(torch.zeros(4, dtype=torch.int64), torch.arange(4), [4])
            worst["masks"] = largest(first, arrays["pred_masks_first4"].astype(np.float32))
            assert torch.allclose(first, last.masks.dense()[0, :4], atol=1e-3)
        if last.keypoints is not None:
            worst["keypoints"] = largest(last.keypoints.flatten(2), arrays["pred_keypoints"])
        for part, where in PLACES.items():
            if part in arrays:
                kind = part.rstrip("0123456789")
                worst[kind] = max(worst.get(kind, 0), largest(heard[part][where], arrays[part]))
        aifi = heard["aifi"].flatten(2).transpose(1, 2)
        worst["aifi"] = largest(aifi[0, ::50, :16], arrays["aifi"])
        for i in range(len(network.decoder.layers)):
            layer = heard[f"decoder_layer_{i}"][0]
            found = layer[:16, :16] if layer.dim() == 2 else layer[:4, :, :8]
            worst["decoder"] = max(worst.get("decoder", 0), largest(found, arrays[f"decoder_layer_{i}"]))
        for part, key in (("first head", "pre_head"), ("last bins", "last_corner_delta")):
            worst[part] = largest(heard[key][0, : len(arrays[key])], arrays[key])
        print(f"\ngolden {name}, {form}: " + ", ".join(f"{part} {value:.1e}" for part, value in worst.items()))
        assert worst["backbone"] < 1e-3 and worst["encoder"] < 1e-3
        assert worst["logits"] < 2e-3 and worst.get("boxes", 0) < 2e-4
        assert worst.get("masks", 0) < 5e-2 and worst.get("keypoints", 0) < 1e-3
        assert max(worst[p] for p in worst if p not in ("backbone", "encoder", "masks")) < 5e-3


def test_golden_query_selection(golden):
    _, network, _, _, arrays, about = golden
    outputs, _ = forward(network, about)
    count = len(arrays["query_anchor_index"])
    with torch.inference_mode():
        score = selection_scores(network.decoder, outputs.memory)
    assert largest(score.topk(count + 1).values[0], arrays["query_select_logit"]) < 1e-3
    assert set(score.topk(count).indices[0].tolist()) == set(arrays["query_anchor_index"].tolist())


def selection_scores(decoder, memory):
    """The best class logit of every memory token, [B, P]."""
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in memory], dim=1)
    shapes = [tuple(level.shape[2:]) for level in memory]
    if hasattr(decoder, "poses"):
        _, valid = point_anchors(shapes, tokens.device)
        return decoder.enc_score(decoder.enc_norm(decoder.enc_project(tokens * valid[:, None]))).amax(-1)
    _, valid = anchors(shapes, tokens.device)
    tokens = tokens * valid[:, None]
    if decoder.kind.projected:
        tokens = decoder.enc_norm(decoder.enc_project(tokens))
    return decoder.enc_score(tokens).amax(-1)


def test_golden_parameter_counts(golden):
    name, network, _, _, _, about = golden
    # the authors count the projector of RT-DETRv4's distillation and leave the input projections as they are
    projector, norms = (256 * 768 + 768, 3 * 256) if name == "rtv4_s" else (0, 0)
    assert sum(p.numel() for p in network.parameters()) == about["parameters"]["training_model"] - projector
    assert sum(p.numel() for p in fuse(network).parameters()) == about["parameters"]["deploy_model"] - projector - norms


def test_golden_file_is_recognised(golden):
    name, _, info, *_ = golden
    assert info.name == hub.proper(name.replace("_", "-"))
    assert info.labels == TASKS[info.task].labels


def test_golden_round_trip_is_bit_identical(golden, tmp_path):
    _, network, info, state, *_ = golden
    ours = hub.save(network, info, tmp_path / "ours.safetensors")
    hub.convert(ours, tmp_path / "back.pth")
    back = official.unwrap(torch.load(tmp_path / "back.pth", weights_only=True))
    state = {key: value for key, value in state.items() if not key.startswith(official.TRAINING)}
    assert set(back) == set(state)
    computed = official.constants(state)  # by a logarithm, whose last bit is another on another kind of CPU
    for key, value in state.items():
        assert back[key].dtype == value.dtype, key
        assert torch.allclose(back[key], value, rtol=1e-6) if key in computed else torch.equal(back[key], value), key
    again, same = hub.load(ours)
    assert same == info
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
