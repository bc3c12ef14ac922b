"""What the commands take that have no options elsewhere; the text below each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ValOptions:
    """Score a model on a data set: COCO's average precision of boxes, masks or keypoints, whichever the model finds, a
    table per class, and files to keep."""

    model: str
    """name, weight file or folder of a training run"""
    data: str
    """data set: a folder, a data.yaml or a COCO json; the format is recognised by looking at it"""
    split: str = "val"
    """train, val or test"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; models that keep the ratio of pictures take
    limits, one number for the short side or short,long; none: the model's own"""
    batch: int = 8
    """pictures per forward pass"""
    workers: int = 2
    """processes that read pictures; 0 reads in the main process"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""
    precision: str = "fp32"
    """fp32, bf16 or fp16"""
    max_det: int | None = None
    """also score with this many detections per picture, for crowded scenes; none: 300 are kept, COCO looks at 100
    (20 for keypoints)"""
    mask_blocks: int | None = None
    """segmentation: how many blocks of the mask head are applied, 0 for all; none: as the model says, which is all,
    but 1 of 4 for released weights, as their authors do"""
    fuse: bool = False
    """score the deploy form: the same answers, faster"""
    project: str = ""
    """folder in which results are stored; empty: runs/detect, runs/segment or runs/pose"""
    name: str = "val"
    """name of this result's folder; a number is appended when it exists"""


@dataclass
class PredictOptions:
    """Find objects in pictures, and save the pictures with boxes, masks or skeletons drawn on them."""

    model: str
    """name, weight file or folder of a training run"""
    source: list[str] = field(default_factory=list)
    """pictures, folders or quoted patterns such as 'photos/*.jpg'; names with commas go without --source"""
    conf: float = 0.4
    """least score of what is shown, 0 to 1"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; models that keep the ratio of pictures take
    limits, one number for the short side or short,long; none: the model's own"""
    batch: int = 1
    """pictures per forward pass"""
    max_det: int = 300
    """most detections per picture"""
    classes: list[str] = field(default_factory=list)
    """names or 0-based labels of the classes to keep, such as ball,crate; none: all"""
    mask_blocks: int | None = None
    """segmentation: how many blocks of the mask head are applied, 0 for all; none: as the model says, which is all,
    but 1 of 4 for released weights, as their authors do"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""
    save: bool = True
    """write the drawn pictures"""
    json: bool = False
    """print one JSON object per picture instead of words: boxes, masks as COCO's run lengths, keypoints by name"""
    project: str = ""
    """folder in which results are stored; empty: runs/detect, runs/segment or runs/pose"""
    name: str = "predict"
    """name of this result's folder; a number is appended when it exists"""


@dataclass
class FeaturesOptions:
    """Draw what networks make of a picture: their feature maps as colours, one row per network (RT-DETRv4, Figure 4).
    Of detectors F5, P3, P4 and P5, of teachers the last block."""

    source: list[str] = field(default_factory=list)
    """pictures, folders or quoted patterns such as 'photos/*.jpg'"""
    model: list[str] = field(default_factory=list)
    """name, weight file or folder of a run, of a detector of any task or of a teacher; several times to compare"""
    imgsz: int | list[int] | None = None
    """input size in pixels of all networks, one number or height,width; none: each detector's own, which teachers get
    too"""
    weights: str = "auto"
    """auto: those of the name or file; none: random weights for names, to see what an untrained network shows"""
    basis: str = "joint"
    """joint: one basis per column where the numbers of channels agree; own: one for each map"""
    seed: int = 0
    """of random weights"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""
    project: str = ""
    """folder in which results are stored; empty: runs/features"""
    name: str = "features"
    """name of this result's folder; a number is appended when it exists"""


@dataclass
class AttentionOptions:
    """Draw where decoders look for what they find: a heat map over the picture, one column per network (CLoCKDistill,
    Figure 3)."""

    source: list[str] = field(default_factory=list)
    """pictures, folders or quoted patterns such as 'photos/*.jpg'"""
    model: list[str] = field(default_factory=list)
    """name, weight file or folder of a run, of a detector of any task; several times to compare"""
    conf: float = 0.4
    """least score of the answers whose attention is drawn, 0 to 1"""
    max_det: int = 100
    """most answers per picture, best first; with conf=0 the same number of every network"""
    layer: list[int] = field(default_factory=list)
    """of the decoder, from 1, or several such as 1,2,3, each in a row of its own; none: the last one"""
    imgsz: int | list[int] | None = None
    """input size in pixels of all networks, one number or height,width; none: each one's own"""
    weights: str = "auto"
    """auto: those of the name or file; none: random weights for names, to see what an untrained network shows"""
    seed: int = 0
    """of random weights"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""
    project: str = ""
    """folder in which results are stored; empty: runs/attention"""
    name: str = "attention"
    """name of this result's folder; a number is appended when it exists"""


@dataclass
class ModelsOptions:
    """List the models that can be named, where their weights come from and what their licence says."""

    json: bool = False
    """print JSON instead of a table"""


@dataclass
class InfoOptions:
    """Show what a model is made of: its parts, parameters and FLOPs, counted in both usual ways."""

    model: str = ""
    """name, weight file or folder of a training run; a name needs no download"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or height,width, multiples of 32; models that keep the ratio of pictures take
    limits, one number for the short side or short,long; none: the model's own"""
    all: bool = False
    """compare every model that is in a paper's tables with them instead: all tasks, RT-DETRv4 and the detectors that it
    is compared with"""
    json: bool = False
    """print JSON instead of text"""


@dataclass
class ConvertOptions:
    """Rewrite a weight file: released checkpoints to ours and back, bit for bit. What only the authors' training reads
    is left out: files of RT-DETRv4 come back without the projector of its distillation (encoder.feature_projector)."""

    source: str
    """file to read: a released .pth or .safetensors, or one of ours"""
    target: str
    """file to write: .safetensors gives our form, .pth the released one"""


@dataclass
class KittiOptions:
    """Write the labels of the KITTI object data as COCO files, with which any tool for COCO can train or check a score.
    Regions to ignore become crowd regions of every class."""

    source: str
    """folder with training/image_2 and training/label_2, or kitti:WORDS:FOLDER with any of seven|three|eight,
    crowd|drop, random|drive, such as kitti:three,drop:FOLDER"""
    target: str
    """folder to write annotations/instances_train.json, instances_val.json and ImageSets/*.txt into; its images is a
    link to the pictures"""


@dataclass
class QuickstartOptions:
    """Make a small data set, train a small model on it, score it and draw what it finds: minutes on two CPU cores."""

    task: str = "detect"
    """detect (boxes), segment (masks) or pose (keypoints)"""
    data: str = ""
    """your own data set instead of the generated scenes"""
    folder: str = "quickstart"
    """where everything is written"""
    epochs: int | None = None
    """passes over the training pictures; none: chosen for a few minutes on two cores"""
    imgsz: int | None = None
    """input size in pixels, a multiple of 32; none: small for the scenes, 256 for your own data"""
    seed: int = 0
    """of the scenes and of the training"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one"""
