"""Every file of the collection of broken inputs, with the message it must give or what must come out of it.

``ERROR`` rows: a pattern of the message. ``READ`` rows: objects that are left and a pattern of a note (empty: no note).
The rules for the same faults are also tested with files made on the spot, in test_formats.py and test_images.py.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecrafter.data import check, formats, images
from edgecrafter.data.annotations import Annotations, to_coco

IMAGE_ERRORS = {
    "truncated.jpg": "image file is truncated",
    "header_only.jpg": "cannot be read as a picture: Truncated File Read",
    "zero_byte.jpg": "the file is empty",
    "text.jpg": "not a picture in a known format",
    "dir_named.jpg": "Is a directory",
    "huge_header.png": r"too large to decode safely: Image size \(3600000000 pixels\)",
    "bomb_1bit.png": r"too large to decode safely: Image size \(400000000 pixels\)",
}

IMAGE_SIZES = {  # height, width
    "ok_0.jpg": (240, 320),
    "ok_1.jpg": (240, 320),
    "png_named.jpg": (240, 320),
    "alpha.png": (240, 320),
    "palette.png": (240, 320),
    "gray.jpg": (240, 320),
    "gray16.png": (240, 320),
    "rgb16.png": (240, 320),
    "cmyk.jpg": (240, 320),
    "exif6.jpg": (240, 320),
    "animated.gif": (120, 160),
    "one_pixel.png": (1, 1),
    "extreme_aspect.jpg": (4, 3000),
    "name with spaces é中.JPG": (240, 320),
}

COCO_ERRORS = {
    "missing_images": "the key 'images' is missing",
    "missing_annotations": "the key 'annotations' is missing",
    "missing_categories": "the key 'categories' is missing",
    "missing_bbox": "annotation id 1: 'bbox' is missing",
    "missing_image_id": "annotation id 1: 'image_id' is missing",
    "missing_file_name": "image id 1: 'file_name' is missing",
    "list_not_object": "the top level is a list",
    "empty_file": "not JSON: the file is empty at line 1, column 1",
    "truncated": r"not JSON: .* at line 620, column 4",
    "not_utf8": r"not UTF-8 \(byte 0xe9 at position \d+\); it looks like Latin-1",
    "box_null": "annotation id 1: 'bbox' is null",
    "box_three_numbers": r"annotation id 1: 'bbox' is \[10, 20, 30\] \(list\); expected four numbers",
    "box_strings": r"annotation id 1: 'bbox' is \[\"10\", .*expected four numbers",
    "category_unknown": "annotation id 1: category_id 99 is not listed in 'categories'",
    "category_duplicate_id": r"category id 3 is used by two classes \(3: RBC, 3: Platelets\)",
    "category_string_id": r"annotation id 1: 'category_id' is \"3\" \(text\); expected a whole number",
    "image_duplicate_id": "image id 1 occurs more than once",
    "annotation_unknown_image": "annotation id 1: image_id 555 is not listed in 'images'",
    "image_file_missing": r"1 of 3 listed pictures are missing: .*does_not_exist\.jpg",
    "image_size_wrong": r"ok_0\.jpg: the annotations say 640 x 480 pixels, the file has 320 x 240",
    "images_empty": "'images' is empty",
    "keypoints_wrong_length": r"annotation id 1: 'keypoints' .*expected 9 numbers",
    "keypoints_not_multiple_of_3": r"annotation id 1: 'keypoints' .*expected 9 numbers",
    "keypoints_bad_visibility": r"annotation id 1: 'keypoints' .*expected a visibility of 0, 1 or 2",
}

COCO_READ = {
    "ok": (36, ""),
    "keypoints_ok": (36, ""),
    "missing_size": (36, ""),
    "missing_area_iscrowd": (36, ""),
    "utf8_bom": (36, ""),
    "box_zero": (35, "width or height is not above 0, skipped: 1 .*annotation id 1"),
    "box_negative": (35, "width or height is not above 0, skipped: 1 .*annotation id 1"),
    "box_nan": (35, "not finite, skipped: 1 .*annotation id 1"),
    "box_inf": (35, "not finite, skipped: 1 .*annotation id 1"),
    "box_outside": (35, "outside of their picture, skipped: 1 .*annotation id 1"),
    "box_partly_outside": (36, "clipped: 1 .*annotation id 1"),
    "box_xyxy": (36, "69% of the boxes leave their picture: is the box convention right"),
    "annotation_duplicate_id": (36, "occur more than once: 1 .*numbered anew"),
    "image_unreadable": (36, r"pictures that cannot be read, skipped: 1 .*truncated\.jpg"),
    "exif_rotated": (20, ""),
    "annotations_empty": (0, ""),
    "polygon_two_points": (36, "polygons of fewer than three points .*annotation id 1"),
    "polygon_odd_length": (36, "odd count of numbers .*annotation id 1"),
    "polygon_empty": (36, ""),
    "polygon_outside": (36, ""),
    "keypoints_count_mismatch": (36, "num_keypoints is not the count .*annotation id 1"),
    "keypoints_outside": (36, "keypoint outside of their picture, taken as not labelled: 1 .*annotation id 1"),
}

COCO_MASKS = {  # objects that are left where masks are wanted
    "ok": (36, ""),
    "missing_area_iscrowd": (36, ""),
    "annotations_empty": (0, ""),
    "polygon_two_points": (35, "no polygon that can be drawn, skipped: 1 .*annotation id 1"),
    "polygon_odd_length": (35, "no polygon that can be drawn, skipped: 1 .*annotation id 1"),
    "polygon_empty": (35, "objects without a mask, skipped: 1 .*annotation id 1"),
    "polygon_outside": (36, "polygons that leave their picture, clipped: 1 .*annotation id 1"),
}

COCO_KEYPOINTS = {  # labelled keypoints that are left where keypoints are wanted
    "keypoints_ok": (2, ""),
    "keypoints_count_mismatch": (2, "num_keypoints is not the count .*annotation id 1"),
    "keypoints_outside": (1, "keypoint outside of their picture, taken as not labelled: 1 .*annotation id 1"),
}

YOLO_ERRORS = {
    "class_out_of_range": r"class_out_of_range\.txt:1: class 9 is not one of the 2 classes",
    "coords_over_one": r"coords_over_one\.txt:1: 160 is above 1",
    "five_columns_missing": r"five_columns_missing\.txt:1: expected 5 numbers .*got 4",
    "not_a_number": r"not_a_number\.txt:1: a number is not finite",
}

YOLO_READ = {
    "ok": (2, ""),
    "negative_size": (2, r"not above 0, skipped: 1 \(first: .*negative_size\.txt:1"),
    "duplicate_rows": (3, r"rows that occur twice in their file, taken once: 1 \(first: .*duplicate_rows\.txt:2"),
    "no_label_file": (2, "without a label file, taken as background: 1"),
    "label_without_image": (2, r"label files without a picture: 1 .*label_without_image\.txt"),
}

YOLO_YAML = {
    "data_nc_mismatch.yaml": "nc says 5 classes but 'names' has 2",
    "data_missing_dir.yaml": "'train: images_not_here' is not there",
}

VOC_ERRORS = {
    "missing_bndbox": r"missing_bndbox\.xml: object 1 has no <bndbox>",
    "unknown_class": r"unknown_class\.xml: object 1: class '.*' is not among those of .*labels\.txt",
    "truncated": r"truncated\.xml: not a whole XML file",
    "listed_but_absent": r"1 of 1 listed pictures are missing: .*listed_but_absent\.jpg",
}

VOC_READ = {
    "ok": (1, ""),
    "float_coords": (1, ""),
    "no_size": (1, ""),
    "swapped_corners": (0, r"not above 0, skipped: 1 \(first: swapped_corners\.xml, object 1"),
    "zero_box": (0, r"not above 0, skipped: 1 \(first: zero_box\.xml, object 1"),
}


@pytest.fixture(scope="session")
def bad(shared_data: Path) -> Path:
    return shared_data / "bad"


def outcome(path: Path) -> Annotations:
    """What training does before it starts."""
    return check.usable(formats.load(path, "train"))


def yolo_case(bad: Path, case: str, folder: Path) -> Path:
    """A data set of the valid pair and one broken one."""
    for name in ("ok", case):
        for kind, ending in (("images", "jpg"), ("labels", "txt")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            source = bad / "yolo" / kind / f"{name}.{ending}"
            if source.is_file():
                shutil.copy(source, folder / kind)
    shutil.copy(bad / "yolo" / "data.yaml", folder)
    return folder


def voc_case(bad: Path, case: str, folder: Path) -> Path:
    """The VOC data with one picture in its list."""
    shutil.copytree(bad / "voc", folder, dirs_exist_ok=True, copy_function=shutil.copy)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (folder / "ImageSets" / "Main" / "train.txt").write_text(f"{case}\n")
    return folder


def expect(data: Annotations, objects: int, note: str) -> None:
    assert len(data.ids) == objects
    told = [text for text in data.notes if "as it is" not in text]
    assert any(re.search(note, text) for text in told) if note else not told


def test_the_tables_name_every_file(bad: Path) -> None:
    assert {path.name for path in (bad / "images").iterdir()} == IMAGE_ERRORS.keys() | IMAGE_SIZES.keys()
    assert {path.stem for path in (bad / "coco").iterdir()} == COCO_ERRORS.keys() | COCO_READ.keys()
    named = YOLO_ERRORS.keys() | YOLO_READ.keys()
    assert {path.stem for kind in ("images", "labels") for path in (bad / "yolo" / kind).iterdir()} == named
    listed = (bad / "voc" / "ImageSets" / "Main" / "train.txt").read_text().split()
    assert set(listed) == VOC_ERRORS.keys() | VOC_READ.keys()


@pytest.mark.parametrize("name", IMAGE_ERRORS)
def test_refused_images(bad: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){re.escape(name)}.*{IMAGE_ERRORS[name]}"):
        images.read(bad / "images" / name)


@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_read_images(bad: Path, name: str) -> None:
    picture = images.read(bad / "images" / name)
    assert picture.mode == "RGB"
    assert picture.size[::-1] == images.size(bad / "images" / name) == IMAGE_SIZES[name]


@pytest.mark.parametrize(
    "name, other, limit", [("cmyk.jpg", "ok_0.jpg", 6), ("exif6.jpg", "ok_0.jpg", 3), ("gray16.png", "gray.jpg", 3)]
)
def test_colours_survive(bad: Path, name: str, other: str, limit: float) -> None:
    pixels = [np.asarray(images.read(bad / "images" / file), dtype=float) for file in (name, other)]
    assert np.abs(pixels[0] - pixels[1]).mean() < limit


@pytest.mark.parametrize("name", ["huge_header.png", "bomb_1bit.png"])
def test_bombs_take_no_memory(bad: Path, name: str) -> None:
    resource = pytest.importorskip("resource", reason="the system does not count memory")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="too large"):
        images.read(bad / "images" / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_a_folder_is_no_picture(bad: Path) -> None:
    assert "dir_named.jpg" not in {path.name for path in images.listing(bad / "images")}


@pytest.mark.parametrize("name", COCO_ERRORS)
def test_refused_coco(bad: Path, name: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=COCO_ERRORS[name]) as error:
        outcome(bad / "coco" / f"{name}.json")
    assert name in ("image_file_missing", "image_size_wrong") or f"{name}.json" in str(error.value)


@pytest.mark.parametrize("name", COCO_READ)
def test_read_coco(bad: Path, name: str) -> None:
    data = outcome(bad / "coco" / f"{name}.json")
    expect(data, *COCO_READ[name])
    assert np.isfinite(data.boxes).all() and (data.boxes[:, 2:] > data.boxes[:, :2]).all()
    assert len({row["id"] for row in to_coco(data)["annotations"]}) == COCO_READ[name][0]


@pytest.mark.parametrize("name", COCO_MASKS)
def test_masks_of_coco(bad: Path, name: str) -> None:
    data = formats.load(bad / "coco" / f"{name}.json", truth="masks")
    expect(data, *COCO_MASKS[name])
    assert data.masks is not None and len(data.masks) == len(data.ids)


@pytest.mark.parametrize("name", COCO_KEYPOINTS)
def test_keypoints_of_coco(bad: Path, name: str) -> None:
    labelled, note = COCO_KEYPOINTS[name]
    data = formats.load(bad / "coco" / f"{name}.json", truth="keypoints")
    expect(data, 36, note)
    assert data.keypoints is not None and (data.keypoints[data.ids == 1, :, 2] > 0).sum() == labelled


@pytest.mark.parametrize("name", [name for name in COCO_ERRORS if name.startswith("keypoints")])
def test_refused_keypoints(bad: Path, name: str) -> None:
    with pytest.raises(ValueError, match=COCO_ERRORS[name]):
        formats.load(bad / "coco" / f"{name}.json", truth="keypoints")


def test_rotated_picture_keeps_its_boxes(bad: Path) -> None:
    """The boxes of the upright view are those of ok_0.jpg, and so is the picture."""
    rotated, plain = (outcome(bad / "coco" / f"{name}.json") for name in ("exif_rotated", "ok"))
    assert tuple(rotated.sizes[0]) == (240, 320)
    np.testing.assert_array_equal(rotated.boxes, plain.boxes[plain.objects(0)])


@pytest.mark.parametrize("case", YOLO_ERRORS)
def test_refused_yolo(bad: Path, case: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=YOLO_ERRORS[case]):
        outcome(yolo_case(bad, case, tmp_path))


@pytest.mark.parametrize("case", YOLO_READ)
def test_read_yolo(bad: Path, case: str, tmp_path: Path) -> None:
    expect(outcome(yolo_case(bad, case, tmp_path)), *YOLO_READ[case])


@pytest.mark.parametrize("name", YOLO_YAML)
def test_refused_yaml(bad: Path, name: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=YOLO_YAML[name]):
        outcome(bad / "yolo" / name)


@pytest.mark.parametrize("case", VOC_ERRORS)
def test_refused_voc(bad: Path, case: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=VOC_ERRORS[case]):
        outcome(voc_case(bad, case, tmp_path))


@pytest.mark.parametrize("case", VOC_READ)
def test_read_voc(bad: Path, case: str, tmp_path: Path) -> None:
    expect(outcome(voc_case(bad, case, tmp_path)), *VOC_READ[case])


@pytest.mark.parametrize("layout, message", [("yolo", r"coords_over_one\.txt:1"), ("voc", "1 of 9 .* missing")])
def test_whole_folders_are_refused(bad: Path, layout: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        outcome(bad / layout)
