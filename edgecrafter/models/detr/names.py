"""Names of public checkpoints of the classic detectors and ours, as data (``convert`` reads them).

Tables list (theirs, ours) with ``#`` for a number and ``*`` for the rest of a name; the first row that fits wins. An
ending ``/0``, ``/1``, ``/2`` of ours is a third of a packed projection (query, key, value). Names: specification of
CLoCKDistill, section 4.4; no public file was at hand, only the state dicts that transformers makes.
"""

from __future__ import annotations

from collections.abc import Mapping

Rows = tuple[tuple[str, str], ...]

DAB, DEFORMABLE, DINO = "dab", "deformable", "dino"
MM, AUTHORS, HF = "MMDetection 3", "the authors", "Hugging Face"

SIGNS = {
    "bbox_head.fc_cls.weight": (MM, DAB),
    "reference_points_fc.weight": (MM, DEFORMABLE),
    "dn_query_generator.label_embedding.weight": (MM, DINO),
    "refpoint_embed.weight": (AUTHORS, DAB),
    "transformer.reference_points.weight": (AUTHORS, DEFORMABLE),
    "transformer.tgt_embed.weight": (AUTHORS, DINO),
    "model.query_refpoint_embeddings.weight": (HF, DAB),
    "model.reference_points.weight": (HF, DEFORMABLE),
}
"""an entry that only files of this origin and detector have"""

NET, NECK = "backbone.vit.network", "backbone.pyramid"
LAYERS = range(6)
"""of a decoder whose head is listed once per layer"""


def _deformable(theirs: str, ours: str) -> Rows:
    return (
        (f"{theirs}.sampling_offsets.*", f"{ours}.points.offsets.*"),
        (f"{theirs}.attention_weights.*", f"{ours}.points.weights.*"),
        (f"{theirs}.value_proj.*", f"{ours}.value.*"),
        (f"{theirs}.output_proj.*", f"{ours}.output.*"),
    )


def _packed(theirs: str, ours: str) -> Rows:
    """transformers' attention, whose query, key and value have a projection each."""
    thirds = ((f"{theirs}.{letter}_proj.*", f"{ours}.in_proj_*/{i}") for i, letter in enumerate("qkv"))
    return (*thirds, (f"{theirs}.out_proj.*", f"{ours}.out_proj.*"), (f"{theirs}.o_proj.*", f"{ours}.out_proj.*"))


def _same(pairs: Mapping[str, str]) -> Rows:
    """The rest of a name stays."""
    return tuple((f"{theirs}.*", f"{ours}.*") for theirs, ours in pairs.items())


ENC, DEC = "encoder.layers.#", "decoder.layers.#"
_MM_LAYERS = _same(
    {
        "backbone": NET,
        f"{DEC}.self_attn.attn": f"{DEC}.self_attn",
        f"{ENC}.norms.0": f"{ENC}.norm",
        f"{ENC}.norms.1": f"{ENC}.ffn.norm",
        f"{DEC}.norms.0": f"{DEC}.norm1",
        f"{DEC}.norms.1": f"{DEC}.norm2",
        f"{DEC}.norms.2": f"{DEC}.ffn.norm",
        **{f"{layer}.ffn.layers.0.0": f"{layer}.ffn.linear1" for layer in (ENC, DEC)},
        **{f"{layer}.ffn.layers.0.1": f"{layer}.ffn.activation" for layer in (ENC, DEC)},
        **{f"{layer}.ffn.layers.1": f"{layer}.ffn.linear2" for layer in (ENC, DEC)},
    }
)
_MM_MULTI = (
    *_same({"neck.convs.#.conv": f"{NECK}.projections.#.0", "neck.convs.#.gn": f"{NECK}.projections.#.1"}),
    *_same({"neck.extra_convs.#.conv": f"{NECK}.further.#.0", "neck.extra_convs.#.gn": f"{NECK}.further.#.1"}),
    ("level_embed", "encoder.level"),
    *_deformable(f"{ENC}.self_attn", f"{ENC}.attention"),
    *_deformable(f"{DEC}.cross_attn", f"{DEC}.cross_attn"),
    *_MM_LAYERS,
)
_CONDITIONAL = {
    "qcontent_proj": "q_content", "qpos_proj": "q_position", "qpos_sine_proj": "q_sine",
    "kcontent_proj": "k_content", "kpos_proj": "k_position", "v_proj": "value",
}  # fmt: skip
_MM_DAB = _same(
    {
        "neck.convs.0.conv": f"{NECK}.projection",
        f"{ENC}.self_attn.attn": f"{ENC}.attention",
        "encoder.query_scale": "encoder.scale",
        "query_embedding": "decoder.queries",
        "decoder.query_scale": "decoder.scale",
        "decoder.ref_point_head": "decoder.position",
        "decoder.ref_anchor_head": "decoder.extent",
        "decoder.post_norm": "decoder.norm",
        **{
            f"{DEC}.{part}.{theirs}": f"{DEC}.{part}.{ours}"
            for part in ("self_attn", "cross_attn")
            for theirs, ours in {**_CONDITIONAL, "out_proj": "output"}.items()
        },
        "bbox_head.fc_cls": "decoder.score",
        "bbox_head.fc_reg": "decoder.box",
    }
)
_REG = {"0": "0", "2": "1", "4": "2"}
_MM_DEFORMABLE = _same(
    {
        "query_embedding": "decoder.queries",
        "reference_points_fc": "decoder.point",
        **{f"bbox_head.cls_branches.{i}": "decoder.score" for i in LAYERS},  # one head, listed for every layer
        **{
            f"bbox_head.reg_branches.{i}.{theirs}": f"decoder.box.layers.{ours}"
            for i in LAYERS
            for theirs, ours in _REG.items()
        },
    }
)
_MM_DINO = _same(
    {
        "query_embedding": "decoder.queries",
        "dn_query_generator.label_embedding": "decoder.groups.table",
        "memory_trans_fc": "decoder.enc_project",
        "memory_trans_norm": "decoder.enc_norm",
        "decoder.ref_point_head": "decoder.position",
        "decoder.norm": "decoder.norm",
        "bbox_head.cls_branches.6": "decoder.enc_score",  # behind those of the six layers
        **{f"bbox_head.reg_branches.6.{theirs}": f"decoder.enc_box.layers.{ours}" for theirs, ours in _REG.items()},
        "bbox_head.cls_branches.#": "decoder.scores.#",
        **{f"bbox_head.reg_branches.#.{theirs}": f"decoder.boxes.#.layers.{ours}" for theirs, ours in _REG.items()},
    }
)
T_ENC, T_DEC = f"transformer.{ENC}", f"transformer.{DEC}"
_AUTHORS_LAYERS = _same(
    {
        "backbone.0.body": NET,
        f"{T_ENC}.norm1": f"{ENC}.norm",
        f"{T_ENC}.norm2": f"{ENC}.ffn.norm",
        f"{T_DEC}.norm3": f"{DEC}.ffn.norm",
        **{
            f"transformer.{layer}.{part}": f"{layer}.ffn.{part}"
            for layer in (ENC, DEC)
            for part in ("linear1", "linear2", "activation")
        },
    }
)
_AUTHORS_MULTI = (
    *_same({"input_proj.3": f"{NECK}.further.0", "input_proj.#": f"{NECK}.projections.#"}),
    ("transformer.level_embed", "encoder.level"),
    *_deformable(f"{T_ENC}.self_attn", f"{ENC}.attention"),
    *_deformable(f"{T_DEC}.cross_attn", f"{DEC}.cross_attn"),
    # the cross-attention's norm has the first number, though it comes second
    *_same({f"{T_DEC}.self_attn": f"{DEC}.self_attn", f"{T_DEC}.norm1": f"{DEC}.norm2"}),
    *_same({f"{T_DEC}.norm2": f"{DEC}.norm1"}),
    *_AUTHORS_LAYERS,
)
_AUTHORS_DAB = _same(
    {
        "input_proj": f"{NECK}.projection",
        f"{T_ENC}.self_attn": f"{ENC}.attention",
        "transformer.encoder.query_scale": "encoder.scale",
        "refpoint_embed": "decoder.queries",
        "transformer.decoder.query_scale": "decoder.scale",
        "transformer.decoder.ref_point_head": "decoder.position",
        "transformer.decoder.ref_anchor_head": "decoder.extent",
        "transformer.decoder.norm": "decoder.norm",
        **{
            f"{T_DEC}.{short}_{theirs}": f"{DEC}.{part}.{ours}"
            for short, part in (("sa", "self_attn"), ("ca", "cross_attn"))
            for theirs, ours in _CONDITIONAL.items()
        },
        **{f"{T_DEC}.{part}.out_proj": f"{DEC}.{part}.output" for part in ("self_attn", "cross_attn")},
        f"{T_DEC}.norm1": f"{DEC}.norm1",
        f"{T_DEC}.norm2": f"{DEC}.norm2",
        "class_embed": "decoder.score",
        "bbox_embed": "decoder.box",
        "transformer.decoder.bbox_embed": "decoder.box",  # listed twice
    }
)
_AUTHORS_DEFORMABLE = _same(
    {
        "query_embed": "decoder.queries",
        "transformer.reference_points": "decoder.point",
        **{f"class_embed.{i}": "decoder.score" for i in LAYERS},
        **{f"bbox_embed.{i}": "decoder.box" for i in LAYERS},
    }
)
_AUTHORS_DINO = _same(
    {
        "label_enc": "decoder.groups.table",
        "transformer.tgt_embed": "decoder.queries",
        "transformer.enc_output": "decoder.enc_project",
        "transformer.enc_output_norm": "decoder.enc_norm",
        "transformer.enc_out_class_embed": "decoder.enc_score",
        "transformer.enc_out_bbox_embed": "decoder.enc_box",
        "transformer.decoder.ref_point_head": "decoder.position",
        "transformer.decoder.norm": "decoder.norm",
        **{f"{twice}class_embed": "decoder.scores" for twice in ("", "transformer.decoder.")},
        **{f"{twice}bbox_embed": "decoder.boxes" for twice in ("", "transformer.decoder.")},
    }
)
H_ENC, H_DEC = f"model.{ENC}", f"model.{DEC}"
_HF_LAYERS = _same(
    {
        "model.backbone.conv_encoder.model._backbone": NET,
        "model.backbone.conv_encoder.model": NET,
        "model.backbone.model": NET,
        **{  # newer versions have the perceptron apart
            f"model.{layer}.{apart}{theirs}": f"{layer}.ffn.{ours}"
            for layer in (ENC, DEC)
            for apart in ("", "mlp.")
            for theirs, ours in {"fc1": "linear1", "fc2": "linear2", "activation_fn": "activation"}.items()
        },
        f"{H_ENC}.self_attn_layer_norm": f"{ENC}.norm",
        f"{H_ENC}.final_layer_norm": f"{ENC}.ffn.norm",
        f"{H_DEC}.self_attn_layer_norm": f"{DEC}.norm1",
        f"{H_DEC}.encoder_attn_layer_norm": f"{DEC}.norm2",
        f"{H_DEC}.final_layer_norm": f"{DEC}.ffn.norm",
        f"{H_DEC}.mlp.final_layer_norm": f"{DEC}.ffn.norm",
    }
)
_HF_CONDITIONAL = {
    "query_content_proj": "q_content", "query_pos_proj": "q_position", "query_pos_sine_proj": "q_sine",
    "key_content_proj": "k_content", "key_pos_proj": "k_position", "value_proj": "value", "layer_norm": "",
}  # fmt: skip
_NORMS = {"self_attn": "norm1", "cross_attn": "norm2"}
_HF_DAB = (
    *_packed(f"{H_ENC}.self_attn", f"{ENC}.attention"),
    *_same(
        {
            "model.input_projection": f"{NECK}.projection",
            "model.encoder.query_scale": "encoder.scale",
            "model.query_refpoint_embeddings": "decoder.queries",
            "model.decoder.query_scale": "decoder.scale",
            "model.decoder.ref_point_head": "decoder.position",
            "model.decoder.ref_anchor_head": "decoder.extent",
            "model.decoder.layernorm": "decoder.norm",
            **{
                f"{H_DEC}.{part}.{part}_{theirs}": f"{DEC}.{part}.{ours}" if ours else f"{DEC}.{norm}"
                for part, norm in _NORMS.items()
                for theirs, ours in _HF_CONDITIONAL.items()
            },
            **{f"{H_DEC}.{part}.{part}.output_proj": f"{DEC}.{part}.output" for part in _NORMS},
            "class_embed": "decoder.score",
            "bbox_predictor": "decoder.box",
            "model.decoder.bbox_embed": "decoder.box",  # listed twice
        }
    ),
    *_HF_LAYERS,
)
_HF_DEFORMABLE = (
    ("model.level_embed", "encoder.level"),
    *_deformable(f"{H_ENC}.self_attn", f"{ENC}.attention"),
    *_deformable(f"{H_DEC}.encoder_attn", f"{DEC}.cross_attn"),
    *_packed(f"{H_DEC}.self_attn", f"{DEC}.self_attn"),
    *_same(
        {
            "model.input_proj.3": f"{NECK}.further.0",
            "model.input_proj.#": f"{NECK}.projections.#",
            "model.query_position_embeddings": "decoder.queries",
            "model.reference_points": "decoder.point",
            **{f"class_embed.{i}": "decoder.score" for i in LAYERS},
            **{f"bbox_embed.{i}": "decoder.box" for i in LAYERS},
        }
    ),
    *_HF_LAYERS,
)

TABLES: dict[tuple[str, str], Rows] = {
    (MM, DAB): (*_MM_DAB, *_MM_LAYERS),
    (MM, DEFORMABLE): (*_MM_DEFORMABLE, *_MM_MULTI),
    (MM, DINO): (*_MM_DINO, *_MM_MULTI),
    (AUTHORS, DAB): (*_AUTHORS_DAB, *_AUTHORS_LAYERS),
    (AUTHORS, DEFORMABLE): (*_AUTHORS_DEFORMABLE, *_AUTHORS_MULTI),
    (AUTHORS, DINO): (*_AUTHORS_DINO, *_AUTHORS_MULTI),
    (HF, DAB): _HF_DAB,
    (HF, DEFORMABLE): _HF_DEFORMABLE,
}
