"""Released weights that users may download themselves: addresses, licences and published accuracy. Data only.

Addresses were read from the authors' public pages; nothing was downloaded or hashed by us, so ``sha256`` is empty until
somebody does (``edgecrafter models`` prints it). We host no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

RELEASE = "https://github.com/capsule2077/edgecrafter/releases/download/edgecrafterv1/"

EDGECRAFTER_LICENCE = (
    "EdgeCrafter weights: published under Apache-2.0 from March 2026; the repository was put under a custom "
    "non-commercial licence on 24 August 2026; check which terms apply to your copy before commercial use"
)

RTDETRV4_LICENCE = "RT-DETRv4 weights: Apache-2.0, by their authors"
CLASSIC_LICENCE = (
    "weights of others: those of MMDetection, of the authors' repositories and their copies on Hugging Face are "
    "published under Apache-2.0 as far as we know; check what holds for your copy"
)
DRIVE = "https://drive.google.com/file/d/"


@dataclass(frozen=True)
class Weight:
    """One downloadable file."""

    name: str
    task: str
    file: str
    url: str
    licence: str
    commercial_use: str
    """yes, no or check"""
    sha256: str = ""
    """empty: not known yet"""
    ap: float | None = None
    """AP on COCO val2017 as published, of boxes, masks or keypoints by the task (the paper's number, not ours)"""
    direct: bool = True
    """whether ``url`` is the file itself; if not, it is a page from which somebody has to fetch it by hand"""


def _released(name: str, task: str, file: str, ap: float | None = None) -> Weight:
    return Weight(name, task, file, RELEASE + file, EDGECRAFTER_LICENCE, "check", ap=ap)


def _rtdetrv4(size: str, place: str, ap: float) -> Weight:
    file, url = f"rtdetrv4_{size}.pth", f"{DRIVE}{place}/view"
    return Weight(f"rtdetrv4-{size}", "detect", file, url, RTDETRV4_LICENCE, "yes", ap=ap, direct=False)


REGISTRY = (
    _released("ecdet-s", "detect", "ecdet_s.pth", 51.7),
    _released("ecdet-m", "detect", "ecdet_m.pth", 54.3),
    _released("ecdet-l", "detect", "ecdet_l.pth", 57.0),
    _released("ecdet-x", "detect", "ecdet_x.pth", 57.9),
    _released("ecinsseg-s", "segment", "ecseg_s.pth", 43.0),
    _released("ecinsseg-m", "segment", "ecseg_m.pth", 45.2),
    _released("ecinsseg-l", "segment", "ecseg_l.pth", 47.1),
    _released("ecinsseg-x", "segment", "ecseg_x.pth", 48.4),
    _released("ecpose-s", "pose", "ecpose_s.pth", 68.9),
    _released("ecpose-m", "pose", "ecpose_m.pth", 72.4),
    _released("ecpose-l", "pose", "ecpose_l.pth", 73.5),
    _released("ecpose-x", "pose", "ecpose_x.pth", 74.8),
    _rtdetrv4("s", "1jDAVxblqRPEWed7Hxm6GwcEl7zn72U6z", 49.7),
    _rtdetrv4("m", "1O-YpP4X-quuOXbi96y2TKkztbjroP5mX", 53.5),
    _rtdetrv4("l", "1shO9EzZvXZyKedE2urLsN4dwEv8Jqa_8", 55.4),
    _rtdetrv4("x", "19gnkMTgFveJsrOvSmEPQXCTG6v9oQHN3", 57.0),
    _released("ecvit-t", "backbone", "ecvitt.pth"),
    _released("ecvit-t+", "backbone", "ecvittplus.pth"),
    _released("ecvit-s", "backbone", "ecvits.pth"),
    _released("ecvit-s+", "backbone", "ecvitsplus.pth"),
)


@dataclass(frozen=True)
class Source:
    """An image backbone of another library, under a short name."""

    spec: str
    """as ``models.libraries`` takes it"""
    licence: str
    commercial_use: str


_DINOV3 = ("DINOv3 License (Meta): commercial use under conditions; gated, accept it on the Hugging Face Hub", "check")
_FREE = ("Apache-2.0", "yes")

BACKBONES = {
    "dinov3-s": Source("timm:vit_small_patch16_dinov3.lvd1689m", *_DINOV3),
    "dinov3-b": Source("timm:vit_base_patch16_dinov3.lvd1689m", *_DINOV3),
    "dinov3-l": Source("timm:vit_large_patch16_dinov3.lvd1689m", *_DINOV3),
    "dinov2-s": Source("timm:vit_small_patch14_dinov2.lvd142m", *_FREE),
    "dinov2-b": Source("timm:vit_base_patch14_dinov2.lvd142m", *_FREE),
    "dinov2-l": Source("timm:vit_large_patch14_dinov2.lvd142m", *_FREE),
}
"""Backbones that teachers are made of. Any other is named timm:NAME or hf:OWNER/NAME."""

TEACHERS = {"ecteacher-s": ("ecdet-l", "dinov3-s"), "ecteacher-b": ("ecdet-x", "dinov3-b")}
"""The teachers of the paper (section A.1): the detector that a backbone is adapted in, and the backbone."""

PAIRS = {"t": "ecteacher-s", "t+": "ecteacher-b", "s": "ecteacher-b", "s+": "ecteacher-b"}
"""Which teacher a ViT is distilled from (Table 1)."""


def licence_of(teacher: str) -> str:
    """What holds for a teacher of the paper, which everybody makes alone."""
    source = TEACHERS[teacher][1]
    return f"to be made by you, from {source}: {BACKBONES[source].licence}"


def backbone(name: str) -> str | None:
    """What ``models.libraries`` calls a backbone of another library; None for other names and for files."""
    known = BACKBONES.get(name.lower())
    if known is not None:
        return known.spec
    return name if name.startswith(("timm:", "hf:")) else None


def find(name: str) -> Weight | None:
    """The row of a name, or None."""
    return next((row for row in REGISTRY if row.name == name), None)


# fmt: off
COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
# fmt: on
COCO_IDS = tuple(i for i in range(1, 91) if i not in _UNUSED_IDS)
