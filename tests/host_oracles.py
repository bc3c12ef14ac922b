"""transformers' D-FINE and RT-DETRv2 as black boxes beside our networks: where their numbers go, and numbers that show.

The oracles are built from configurations and called; nothing else of them is used.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from edgecrafter.types import Labels

LABELS = Labels(tuple("abcde"))
SMALL = {"enc_ffn": 128, "det_ffn": 96, "det_layers": 3, "queries": 30}
CASES = {  # our model, and the options that make it small; unequal widths as the largest of either family has them
    "dfine-s": {"width": 64, "csp_width": 16, "csp_depth": 2},
    "dfine-x": {"width": 96, "dec_width": 64, "csp_width": 48, "csp_depth": 2, "backbone": "timm:hgnetv2_b0"},
    "rtdetrv2-r18": {"width": 64, "csp_width": 32},
    "rtdetrv2-r50": {"width": 96, "dec_width": 64, "csp_width": 96, "backbone": "timm:resnet26d"},
}

STAGE = r"^(encoder\.(?:top_down|bottom_up)\.\d)"
LAYER = r"^model\.decoder\.layers\.(\d)"
SHARED = (  # transformers' names -> ours, one after the other
    (r"^model\.encoder_input_proj\.(\d)\.0", r"backbone.pyramid.projections.\1.conv"),
    (r"^model\.encoder_input_proj\.(\d)\.1", r"backbone.pyramid.projections.\1.norm"),
    (r"^model\.decoder_input_proj\.(\d)\.0", r"decoder.enter.\1.conv"),
    (r"^model\.decoder_input_proj\.(\d)\.1", r"decoder.enter.\1.norm"),
    (r"o_proj", "out_proj"),
    (r"^model\.encoder\.aifi\.0\.layers\.0\.self_attn_layer_norm", "encoder.aifi.norm1"),
    (r"^model\.encoder\.aifi\.0\.layers\.0\.self_attn", "encoder.aifi.attention"),
    (r"^model\.encoder\.aifi\.0\.layers\.0\.final_layer_norm", "encoder.aifi.norm2"),
    (r"^model\.encoder\.aifi\.0\.layers\.0\.mlp\.(?:layers\.0|fc1)", "encoder.aifi.linear1"),
    (r"^model\.encoder\.aifi\.0\.layers\.0\.mlp\.(?:layers\.1|fc2)", "encoder.aifi.linear2"),
    (r"^model\.encoder\.lateral_convs", "encoder.laterals"),
    (r"^model\.encoder\.fpn_blocks", "encoder.top_down"),
    (r"^model\.encoder\.pan_blocks", "encoder.bottom_up"),
    (r"^model\.enc_output\.0", "decoder.enc_project"),
    (r"^model\.enc_output\.1", "decoder.enc_norm"),
    (r"^model\.enc_score_head", "decoder.enc_score"),
    (r"^model\.enc_bbox_head", "decoder.enc_box"),
    (r"^model\.decoder\.query_pos_head", "decoder.position"),
    (r"^model\.decoder\.class_embed", "decoder.scores"),
    (r"^model\.decoder\.bbox_embed", "decoder.boxes"),
    (LAYER + r"\.self_attn_layer_norm", r"decoder.layers.\1.norm1"),
    (LAYER + r"\.encoder_attn_layer_norm", r"decoder.layers.\1.norm2"),
    (LAYER + r"\.final_layer_norm", r"decoder.layers.\1.ffn.norm"),
    (LAYER + r"\.mlp\.(?:layers\.0|fc1)", r"decoder.layers.\1.ffn.linear1"),
    (LAYER + r"\.mlp\.(?:layers\.1|fc2)", r"decoder.layers.\1.ffn.linear2"),
    (LAYER + r"\.self_attn", r"decoder.layers.\1.self_attn"),
)
ROWS = {
    "dfine": (
        (r"^model\.backbone\.model\.embedder", "backbone.vit.network.stem"),
        (r"^model\.backbone\.model\.encoder\.stages\.(\d)", r"backbone.vit.network.stages_\1"),
        (r"(network\..*)\.convolution", r"\1.conv"),
        (r"(network\..*)\.normalization", r"\1.bn"),
        (r"^model\.encoder\.downsample_convs\.(\d)\.conv1", r"encoder.downs.\1.point"),
        (r"^model\.encoder\.downsample_convs\.(\d)\.conv2", r"encoder.downs.\1.depth"),
        *SHARED,
        (STAGE + r"\.conv1", r"\1.split"),
        (STAGE + r"\.conv4", r"\1.merge"),
        (STAGE + r"\.conv2", r"\1.stage1.smooth"),
        (STAGE + r"\.conv3", r"\1.stage2.smooth"),
        (STAGE + r"\.csp_rep(\d)\.conv1", r"\1.stage\2.enter"),
        (STAGE + r"\.csp_rep(\d)\.conv2", r"\1.stage\2.skip"),
        (STAGE + r"\.csp_rep(\d)\.bottlenecks\.(\d)\.conv1", r"\1.stage\2.blocks.\3.three"),
        (STAGE + r"\.csp_rep(\d)\.bottlenecks\.(\d)\.conv2", r"\1.stage\2.blocks.\3.one"),
        (r"^model\.decoder\.reg_scale", "decoder.curvature"),
        (r"^model\.decoder\.up", "decoder.spread"),
        (r"^model\.decoder\.pre_bbox_head", "decoder.first_box"),
        (r"^model\.decoder\.lqe_layers\.(\d)\.reg_conf", r"decoder.quality.\1.mlp"),
        (LAYER + r"\.encoder_attn\.num_points_scale", r"decoder.layers.\1.cross_attn.scale"),
        (LAYER + r"\.encoder_attn\.sampling_offsets", r"decoder.layers.\1.cross_attn.offsets"),
        (LAYER + r"\.encoder_attn\.attention_weights", r"decoder.layers.\1.cross_attn.weights"),
        (LAYER + r"\.gateway\.gate", r"decoder.layers.\1.gate.linear"),
        (LAYER + r"\.gateway\.norm", r"decoder.layers.\1.gate.norm"),
    ),
    "rtdetrv2": (
        (r"^model\.backbone\.model\.embedder\.embedder\.2\.normalization", "backbone.vit.network.bn1"),
        *(
            (rf"^model\.backbone\.model\.embedder\.embedder\.{i}\.{part}", f"backbone.vit.network.conv1.{3 * i + j}")
            for i in range(3)
            for j, part in enumerate(("convolution", "normalization"))
        ),
        *(
            (rf"^model\.backbone\.model\.encoder\.stages\.{i}\.layers", f"backbone.vit.network.layer{i + 1}")
            for i in range(4)
        ),
        *(
            (rf"(network\..*)\.layer\.{i}\.{theirs}", rf"\1.{ours}{i + 1}")
            for i in range(3)
            for theirs, ours in (("convolution", "conv"), ("normalization", "bn"))
        ),
        (r"(network\..*)\.shortcut\.(?:1\.)?convolution", r"\1.downsample.1"),
        (r"(network\..*)\.shortcut\.(?:1\.)?normalization", r"\1.downsample.2"),
        (r"^model\.encoder\.downsample_convs", "encoder.downs"),
        *SHARED,
        (STAGE + r"\.conv1", r"\1.enter"),
        (STAGE + r"\.conv2", r"\1.skip"),
        (STAGE + r"\.conv3", r"\1.smooth"),
        (STAGE + r"\.bottlenecks\.(\d)\.conv1", r"\1.blocks.\2.three"),
        (STAGE + r"\.bottlenecks\.(\d)\.conv2", r"\1.blocks.\2.one"),
        (LAYER + r"\.encoder_attn\.n_points_scale", r"decoder.layers.\1.cross_attn.points.scale"),
        (LAYER + r"\.encoder_attn\.sampling_offsets", r"decoder.layers.\1.cross_attn.points.offsets"),
        (LAYER + r"\.encoder_attn\.attention_weights", r"decoder.layers.\1.cross_attn.points.weights"),
        (LAYER + r"\.encoder_attn\.value_proj", r"decoder.layers.\1.cross_attn.value"),
        (LAYER + r"\.encoder_attn\.output_proj", r"decoder.layers.\1.cross_attn.output"),
    ),
}
TWICE = ("class_embed.", "bbox_embed.")  # transformers lists the heads a second time
BOTTLENECK = {"layer_type": "bottleneck", "depths": [2, 2, 2, 2], "hidden_sizes": [256, 512, 1024, 2048]}
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
HGNET = {  # B0
    "embedding_size": 16,
    "hidden_sizes": [64, 256, 512, 1024],
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
}


def oracle_of(size):
    """transformers' network for the row of a size."""
    transformers = pytest.importorskip("transformers", reason="the oracles are transformers' networks")
    deep = size.backbone.endswith("26d")
    backbone = HGNET if size.arch == "dfine" else BOTTLENECK if deep else BASIC
    backbone = {
        "model_type": "hgnet_v2" if size.arch == "dfine" else "rt_detr_resnet",
        "out_features": ["stage2", "stage3", "stage4"],
        **backbone,
    }
    plain = {
        "backbone_config": backbone,
        "encoder_in_channels": backbone["hidden_sizes"][1:],
        "encoder_hidden_dim": size.width,
        "decoder_in_channels": [size.width] * 3,
        "encoder_ffn_dim": size.enc_ffn,
        "d_model": size.dec_width or size.width,
        "decoder_ffn_dim": size.det_ffn,
        "decoder_layers": size.det_layers,
        "num_queries": size.queries,
        "num_labels": len(LABELS),
        "num_denoising": 0,
    }
    if size.arch == "dfine":
        config = transformers.DFineConfig(
            **plain,
            hidden_expansion=size.csp_width * 2 / size.width,
            depth_mult=size.csp_depth / 3,
            decoder_n_points=[3, 6, 3],
            reg_scale=size.curvature,
        )
        return transformers.DFineForObjectDetection(config)
    config = transformers.RTDetrV2Config(**plain, hidden_expansion=size.csp_width / size.width)
    return transformers.RTDetrV2ForObjectDetection(config)


@torch.no_grad()
def randomise(network, images):
    """Numbers without zeros and ones everywhere, and norms that fit them: nothing that is wrong can hide."""
    random = torch.Generator().manual_seed(0)
    for name, value in network.named_parameters():
        if name not in ("decoder.spread", "decoder.curvature"):
            noise = torch.randn(value.shape, generator=random)
            value.copy_(noise / value[0].numel() ** 0.5 if value.dim() > 1 else value + 0.1 * noise)
    network.decoder.position.layers[-1].weight *= 20  # beyond the limit that D-FINE has there

    def fit(norm, inputs):
        (x,) = inputs
        norm.running_mean.copy_(0.5 * x.mean((0, 2, 3)))
        square = (x - norm.running_mean[:, None, None]).square().mean((0, 2, 3))
        norm.running_var.copy_(square * (0.8 + 0.4 * torch.rand(len(square), generator=random)))

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    network.eval()(images)
    for hook in hooks:
        hook.remove()


def place(name, rows):
    """Where an entry of transformers' is in ours: a name and the third of it, None for all."""
    for theirs, ours in rows:
        name = re.sub(theirs, ours, name)
    found = re.fullmatch(r"(.*)\.([qkv])_proj\.(\w+)", name)
    return (f"{found[1]}.in_proj_{found[3]}", "qkv".index(found[2])) if found else (name, None)


def thirds(values, name, third):
    return values[name] if third is None else values[name].chunk(3)[third]


@torch.no_grad()
def fill(oracle, network, rows):
    """Our numbers in their place. All of ours are used but the table of denoising, which the oracles are without."""
    ours = network.state_dict()
    unused = {name for name in ours if not name.endswith("num_batches_tracked")} - {"decoder.groups.table.weight"}
    for name, value in oracle.state_dict().items():
        if name.startswith(TWICE) or name.endswith("num_batches_tracked"):
            continue
        where, third = place(name, rows)
        if where.startswith("backbone.vit.network.layer1.0.downsample") and where not in ours:
            value.copy_(identity(where, value))
            continue
        value.copy_(thirds(ours, where, third))
        unused.discard(where)
    assert not unused


def identity(name, value):
    """What makes the first shortcut of ResNet-18 and -34 do nothing: timm's have none there."""
    if value.dim() == 4:
        return torch.eye(len(value))[:, :, None, None]
    one = 1 - 1e-5 if name.endswith("var") else 1.0  # to which a norm adds 1e-5
    return torch.zeros_like(value) if name.endswith(("bias", "mean")) else torch.full_like(value, one)


def refine(network, oracle):
    """Everything before the decoders in double precision: random deep networks magnify the rounding of float32."""

    def rounded(_module, _inputs, answer):
        return [level.float() for level in answer[0]], answer[1].float()

    def theirs_rounded(_module, _inputs, answer):
        answer.last_hidden_state = [level.float() for level in answer.last_hidden_state]
        return answer

    network.backbone.double()
    network.encoder.double().register_forward_hook(rounded)
    for part in (oracle.model.backbone, oracle.model.encoder_input_proj, oracle.model.encoder):
        part.double()
    oracle.model.encoder.register_forward_hook(theirs_rounded)
