"""Names of the authors' released checkpoints, both ways, as data.

The tables list (ours, theirs) with ``#`` for a number and ``*`` for the rest of a name; the first row that fits wins.
The decoders for boxes (with masks or without) and for poses have a table each. Loading is strict: every key must be
known, every tensor must have its shape, constants must have their value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgecrafter.models.pose_decoder import point_anchors, sine_periods
from edgecrafter.models.queries import anchors

COMMON = (
    ("backbone.vit.periods", "backbone.backbone.rope_embed.periods"),
    ("backbone.vit.registers", "backbone.backbone.register_token"),
    ("backbone.vit.stem.*", "backbone.backbone.patch_embed.*"),
    ("backbone.vit.blocks.#.fc1.*", "backbone.backbone.blocks.#.mlp.fc1.*"),
    ("backbone.vit.blocks.#.fc2.*", "backbone.backbone.blocks.#.mlp.fc2.*"),
    ("backbone.vit.blocks.*", "backbone.backbone.blocks.*"),
    ("backbone.pyramid.projections.*", "backbone.projector.*"),
    ("encoder.aifi.attention.*", "encoder.encoder.0.layers.0.self_attn.*"),
    ("encoder.aifi.*", "encoder.encoder.0.layers.0.*"),
    ("encoder.laterals.*", "encoder.lateral_convs.*"),
    ("encoder.downs.#.point.*", "encoder.downsample_convs.#.0.cv1.*"),
    ("encoder.downs.#.depth.*", "encoder.downsample_convs.#.0.cv2.*"),
    *(
        row
        for ours, theirs in (("top_down", "fpn_blocks"), ("bottom_up", "pan_blocks"))
        for row in (
            (f"encoder.{ours}.#.split.*", f"encoder.{theirs}.#.cv1.*"),
            *(
                row
                for stage, cv in (("stage1", "cv2"), ("stage2", "cv3"))
                for row in (
                    (f"encoder.{ours}.#.{stage}.enter.*", f"encoder.{theirs}.#.{cv}.0.conv1.*"),
                    (f"encoder.{ours}.#.{stage}.blocks.#.three.*", f"encoder.{theirs}.#.{cv}.0.bottlenecks.#.conv1.*"),
                    (f"encoder.{ours}.#.{stage}.blocks.#.one.*", f"encoder.{theirs}.#.{cv}.0.bottlenecks.#.conv2.*"),
                )
            ),
            (f"encoder.{ours}.#.merge.*", f"encoder.{theirs}.#.cv4.*"),
        )
    ),
    ("decoder.spread", "decoder.up"),
    ("decoder.curvature", "decoder.reg_scale"),
    ("decoder.layers.#.cross_attn.scale", "decoder.decoder.layers.#.cross_attn.num_points_scale"),
    ("decoder.layers.#.cross_attn.offsets.*", "decoder.decoder.layers.#.cross_attn.sampling_offsets.*"),
    ("decoder.layers.#.cross_attn.weights.*", "decoder.decoder.layers.#.cross_attn.attention_weights.*"),
    ("decoder.layers.#.gate.linear.*", "decoder.decoder.layers.#.gateway.gate.*"),
    ("decoder.layers.#.gate.norm.*", "decoder.decoder.layers.#.gateway.norm.*"),
    ("decoder.layers.#.ffn.norm.*", "decoder.decoder.layers.#.norm2.*"),
)
BOXES = (
    *COMMON,
    ("decoder.groups.table.*", "decoder.denoising_class_embed.*"),
    ("decoder.enc_score.*", "decoder.enc_score_head.*"),
    ("decoder.enc_box.*", "decoder.enc_bbox_head.*"),
    ("decoder.position.*", "decoder.query_pos_head.*"),
    ("decoder.first_box.*", "decoder.pre_bbox_head.*"),
    ("decoder.scores.*", "decoder.dec_score_head.*"),
    ("decoder.boxes.*", "decoder.dec_bbox_head.*"),
    ("decoder.quality.#.mlp.*", "decoder.decoder.lqe_layers.#.reg_conf.*"),
    ("decoder.layers.#.self_attn.*", "decoder.decoder.layers.#.self_attn.*"),
    ("decoder.layers.#.norm1.*", "decoder.decoder.layers.#.norm1.*"),
    ("decoder.masks.bias", "decoder.decoder.segmentation_head.bias"),
    ("decoder.masks.blocks.#.depth.*", "decoder.decoder.segmentation_head.blocks.#.dwconv.*"),
    ("decoder.masks.blocks.#.point.*", "decoder.decoder.segmentation_head.blocks.#.pwconv1.*"),
    ("decoder.masks.blocks.#.norm.*", "decoder.decoder.segmentation_head.blocks.#.norm.*"),
    ("decoder.masks.pixels.*", "decoder.decoder.segmentation_head.spatial_features_proj.*"),
    ("decoder.masks.queries.norm.*", "decoder.decoder.segmentation_head.query_features_block.norm_in.*"),
    ("decoder.masks.queries.linear1.*", "decoder.decoder.segmentation_head.query_features_block.layers.0.*"),
    ("decoder.masks.queries.linear2.*", "decoder.decoder.segmentation_head.query_features_block.layers.2.*"),
    ("decoder.masks.queries.project.*", "decoder.decoder.segmentation_head.query_features_proj.*"),
    ("decoder.layers.#.ffn.*", "decoder.decoder.layers.#.*"),
)
POSES = (
    *COMMON,
    ("decoder.groups.labels.*", "decoder.label_enc.*"),
    ("decoder.groups.keypoints.*", "decoder.pose_enc.*"),
    ("decoder.instance.*", "decoder.instance_embedding.*"),
    ("decoder.keypoints.*", "decoder.keypoint_embedding.*"),
    ("decoder.ranks.*", "decoder.tgt_embed.*"),
    ("decoder.enc_project.*", "decoder.enc_output.*"),
    ("decoder.enc_norm.*", "decoder.enc_output_norm.*"),
    ("decoder.enc_score.*", "decoder.enc_out_class_embed.*"),
    ("decoder.enc_pose.*", "decoder.enc_pose_embed.*"),
    ("decoder.first_pose.*", "decoder.pre_pose_embed.*"),
    ("decoder.position.*", "decoder.decoder.half_pose_ref_point_head.*"),
    ("decoder.scores.*", "decoder.class_embed.*"),
    ("decoder.poses.*", "decoder.pose_embed.*"),
    ("decoder.quality.#.mlp.*", "decoder.lqe_embed.#.reg_conf.*"),
    ("decoder.layers.#.within.*", "decoder.decoder.layers.#.within_attn.*"),
    ("decoder.layers.#.within_norm.*", "decoder.decoder.layers.#.within_norm.*"),
    ("decoder.layers.#.across.*", "decoder.decoder.layers.#.across_attn.*"),
    ("decoder.layers.#.across_norm.*", "decoder.decoder.layers.#.across_norm.*"),
    ("decoder.layers.#.ffn.*", "decoder.decoder.layers.#.*"),
)

RT = (
    ("backbone.vit.network.stages_#.*", "backbone.stages.#.*"),
    ("backbone.vit.network.*", "backbone.*"),
    ("backbone.pyramid.projections.*", "encoder.input_proj.*"),
    *(
        row
        for ours, theirs in (("top_down", "fpn_blocks"), ("bottom_up", "pan_blocks"))
        for stage, cv in (("stage1", "cv2"), ("stage2", "cv3"))
        for row in (
            (f"encoder.{ours}.#.{stage}.skip.*", f"encoder.{theirs}.#.{cv}.0.conv2.*"),
            (f"encoder.{ours}.#.{stage}.smooth.*", f"encoder.{theirs}.#.{cv}.1.*"),
        )
    ),
    ("decoder.enter.*", "decoder.input_proj.*"),
    ("decoder.enc_project.*", "decoder.enc_output.proj.*"),
    ("decoder.enc_norm.*", "decoder.enc_output.norm.*"),
    ("decoder.layers.#.ffn.norm.*", "decoder.decoder.layers.#.norm3.*"),
    *(row for row in BOXES if not row[0].startswith(("backbone.", "decoder.layers.#.ffn.norm."))),
)
"""RT-DETRv4: a convolutional backbone, and more in encoder and decoder"""

VIT = "backbone.vit."
OFFICIAL_VIT = "backbone.backbone."
TRAINING = "encoder.feature_projector."
"""the projector of RT-DETRv4's distillation, which the authors keep in the model and count with it"""
SIDE = 640
"""Released files hold anchors for this input size."""


def official_name(ours: str, kind: str = "boxes") -> str:
    """The released key of one of our entries, of a model of ``kind`` (boxes, poses, rt); ``KeyError`` without one."""
    return renamed(ours, _TO_OFFICIAL[kind])


def our_name(official: str, kind: str = "boxes") -> str:
    """Our key of a released entry; ``KeyError`` when there is none (constants have none)."""
    return renamed(official, _TO_OURS[kind])


def unwrap(file: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a released file: ``ema.module`` when present, else ``model``, else ``state_dict``
    (MMDetection), else the mapping itself."""
    ema = file.get("ema")
    if isinstance(ema, Mapping) and isinstance(ema.get("module"), Mapping):
        return dict(ema["module"])
    inside = (file[name] for name in ("model", "state_dict") if isinstance(file.get(name), Mapping))
    return dict(next(inside, file))


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names; constants that follow from the architecture are compared and left out,
    and so is what only the authors' training reads (``TRAINING``).

    Raises ``ValueError`` for keys that no row knows and for constants of another architecture.
    """
    fixed = constants(state)
    kind = next((kind for kind, sign in _SIGNS.items() if sign in state), "boxes")
    found, unknown = {}, []
    for name, value in state.items():
        if name in fixed:
            _compare(name, value, fixed[name])
            continue
        if name.startswith(TRAINING):
            continue
        try:
            found[our_name(name, kind)] = value
        except KeyError:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} unknown entries in the checkpoint, for example {', '.join(unknown[:5])}")
    return found


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the released names, with the constants that a released file holds besides."""
    kind = next((kind for kind, sign in _OUR_SIGNS.items() if sign in state), "boxes")
    theirs = {official_name(name, kind): value for name, value in state.items()}
    return {**theirs, **constants(theirs)}


def has_layout(state: Mapping[str, Tensor]) -> bool:
    """Whether every one of our entries has a released name: RT-DETRv2's are not known here."""
    try:
        to_official(state)
    except KeyError:
        return False
    return True


def constants(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a released file that our modules compute for themselves (``state`` has released names)."""
    shapes = [(SIDE // stride, SIDE // stride) for stride in (8, 16, 32)]
    ranks = state.get("decoder.tgt_embed.weight")
    if ranks is not None:
        anchor, valid = point_anchors(shapes, torch.device("cpu"))
        # the released pose model marks what is not valid
        masked = {"decoder.anchors": anchor[None], "decoder.valid_mask": ~valid[None, :, None]}
        return {**masked, "decoder.decoder.dim_t": sine_periods(ranks.shape[1], torch.device("cpu"))}
    anchor, valid = anchors(shapes, torch.device("cpu"))
    found = {"decoder.anchors": anchor[None], "decoder.valid_mask": valid[None, :, None]}
    for twin in ("up", "reg_scale"):  # the released file lists these tensors twice
        if f"decoder.{twin}" in state:
            found[f"decoder.decoder.{twin}"] = state[f"decoder.{twin}"]
    return found


def _compare(name: str, value: Tensor, wanted: Tensor) -> None:
    if value.shape != wanted.shape or not torch.allclose(value.float(), wanted.float(), rtol=1e-5, atol=1e-6):
        raise ValueError(f"{name} is not the constant of this architecture: the file belongs to another kind of model")


def compiled(rows: Sequence[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    """A table of (from, to) for ``renamed``."""
    found = []
    for source, target in rows:
        pattern = re.escape(source).replace(r"\#", "#").replace("#", r"(\d+)").replace(r"\*", "(.+)")
        parts = iter(range(1, 10))
        found.append((re.compile(pattern), re.sub(r"[#*]", lambda _, p=parts: f"\\{next(p)}", target)))  # type: ignore[misc]
    return found


def renamed(name: str, rows: list[tuple[re.Pattern[str], str]]) -> str:
    """A name by the first row that fits; ``KeyError`` without one."""
    for pattern, target in rows:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(target)
    raise KeyError(name)


_TABLES: dict[str, tuple[tuple[str, str], ...]] = {"boxes": BOXES, "poses": POSES, "rt": RT}
_SIGNS = {"poses": "decoder.tgt_embed.weight", "rt": "encoder.input_proj.0.conv.weight"}
"""an entry that only files of this kind have"""
_OUR_SIGNS = {"poses": "decoder.ranks.weight", "rt": "backbone.vit.network.stem.stem1.conv.weight"}
_TO_OFFICIAL = {kind: compiled(rows) for kind, rows in _TABLES.items()}
_TO_OURS = {kind: compiled([(b, a) for a, b in rows]) for kind, rows in _TABLES.items()}

CLASS_ROWS = (
    "decoder.enc_score.",
    "decoder.scores.",
    "decoder.score.",
    "decoder.groups.table.",
    "decoder.groups.labels.",
)


KEYPOINT_ROWS = ("decoder.keypoints.", "decoder.groups.keypoints.")
KEYPOINTS = re.compile(r"decoder\.(enc_pose\.layers\.3|quality\.\d+\.mlp\.layers\.0)\..*")
"""entries that hold all keypoints in one axis, several numbers each"""


def is_keypoint_row(name: str) -> bool:
    """Whether the first axis of an entry (our name) counts keypoints."""
    return name.startswith(KEYPOINT_ROWS)


def has_keypoints(name: str) -> bool:
    """Whether an entry (our name) mixes the keypoints in one axis: it means nothing for others."""
    return KEYPOINTS.fullmatch(name) is not None


def is_class_row(name: str) -> bool:
    """Whether the first axis of an entry (our name) counts classes."""
    return name.startswith(CLASS_ROWS)
