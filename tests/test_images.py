"""Every kind of picture comes out as upright 8-bit RGB, or is refused with a message that names the file."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from edgecrafter.data import images

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def picture() -> Image.Image:
    """A smooth picture without symmetry: red grows to the right, green downwards, blue in a corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    blue = np.where((x < 20) & (y < 12), 220, 30)
    return Image.fromarray(np.stack([x * 4, y * 5, blue], axis=-1).astype(np.uint8))


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference in gray levels."""
    assert first.size == second.size and first.mode == second.mode == "RGB"
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_formats_read_by_content(tmp_path: Path, picture: Image.Image, ending: str) -> None:
    named = tmp_path / f"p{ending}"
    picture.save(named, **({"quality": 95} if ending in (".jpg", ".webp") else {}))
    disguised = named.rename(tmp_path / "disguised é中.JPG")
    assert difference(images.read(disguised), picture) < 3
    assert images.size(disguised) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_modes_become_rgb(tmp_path: Path, picture: Image.Image, mode: str) -> None:
    path = tmp_path / ("p.jpg" if mode in ("CMYK", "YCbCr") else "p.png")
    converted = picture.convert(mode)
    converted.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    expected = converted.convert("RGB")
    assert difference(images.read(path), expected) < 3


def test_alpha_is_dropped(tmp_path: Path, picture: Image.Image) -> None:
    clear = picture.copy()
    clear.putalpha(Image.new("L", picture.size, 7))
    clear.save(tmp_path / "p.png")
    assert difference(images.read(tmp_path / "p.png"), picture) == 0


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bit_gray_is_scaled(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 257, 25700], [65535, 32896, 128]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"p{ending}")
    pixels = np.asarray(images.read(tmp_path / f"p{ending}"))
    assert pixels[..., 0].tolist() == [[0, 1, 100], [255, 128, 0]]
    assert (pixels == pixels[..., :1]).all()


def test_float_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "p.tif")
    with pytest.raises(ValueError, match=r"p\.tif.*32 bits"):
        images.read(tmp_path / "p.tif")


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
def test_orientation_is_applied(tmp_path: Path, picture: Image.Image, turn: int, ending: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture.transpose(undo[turn]) if turn in undo else picture
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"p{ending}"
    stored.save(path, exif=exif, **({"quality": 95} if ending in (".jpg", ".webp") else {}))
    assert images.size(path) == (HEIGHT, WIDTH)
    assert difference(images.read(path), picture) < 3


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG")
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    chunk = struct.pack(">I4s", len(exif), b"eXIf") + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    data = buffer.getvalue()
    (tmp_path / "p.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert images.size(tmp_path / "p.png") == (HEIGHT, WIDTH)
    assert difference(images.read(tmp_path / "p.png"), picture) == 0


def test_broken_exif_counts_as_upright(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "p.jpg", exif=b"Exif\0\0nonsense")
    assert images.size(tmp_path / "p.jpg") == (HEIGHT, WIDTH)
    assert images.read(tmp_path / "p.jpg").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "wanted, got",
    [((48, 64), (48, 64)), ((49, 64), (96, 128)), ((96, 1), (96, 128)), ((193, 1), (384, 512)), ((999, 9), (384, 512))],
)
@pytest.mark.parametrize("turn", [1, 6])
def test_jpeg_at_reduced_size(
    tmp_path: Path, picture: Image.Image, wanted: tuple[int, int], got: tuple[int, int], turn: int
) -> None:
    """Never below the wanted size, in the upright frame, and the same picture."""
    large = picture.resize((WIDTH * 8, HEIGHT * 8))
    stored = large.transpose(Image.Transpose.ROTATE_90) if turn == 6 else large
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / "p.jpg", exif=exif, quality=95)
    small = images.read(tmp_path / "p.jpg", min_size=wanted)
    assert small.size[::-1] == got
    assert difference(small.resize(picture.size), picture) < 6


def test_first_frame_of_an_animation(tmp_path: Path, picture: Image.Image) -> None:
    dark = Image.new("RGB", picture.size)
    picture.save(tmp_path / "p.png", save_all=True, append_images=[dark])
    assert images.header(tmp_path / "p.png").animated
    assert difference(images.read(tmp_path / "p.png"), picture) < 3


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
def test_files_cut_short_are_refused(tmp_path: Path, picture: Image.Image, ending: str, share: float) -> None:
    path = tmp_path / f"p{ending}"
    picture.resize((640, 480)).save(path)
    assert images.whole(path)
    cut(path, share)
    assert not images.whole(path)
    with pytest.raises(ValueError, match=f"p{ending}"):
        images.read(path)
    with pytest.raises(ValueError, match=f"p{ending}"):
        images.read(path, min_size=(1, 1))


def test_a_cut_file_is_refused_when_another_library_allows_it(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture.resize((640, 480)).save(tmp_path / "p.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    images.read(tmp_path / "p.jpg")
    with pytest.raises(ValueError, match="cut short"):
        images.read(cut(tmp_path / "p.jpg", 0.6))


def test_pixel_limit_is_known_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (16_000, 16_000)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the picture was decoded"))
    for limit in (Image.MAX_IMAGE_PIXELS, None):  # ours holds where Pillow's was taken away
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for ask in (images.read, images.size):
            with pytest.raises(ValueError, match=r"large\.png.*limit of 178956970"):
                ask(tmp_path / "large.png")


@pytest.mark.parametrize(
    "content, text", [(b"", "empty"), (b"hello, not a picture", "not a picture in a known format")]
)
def test_strangers(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "p.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"p\.jpg.*{text}"):
        images.read(tmp_path / "p.jpg")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        images.size(tmp_path / "gone.jpg")


def test_listing(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "dir.jpg").mkdir()
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.jpeg", "._a.png", "notes.txt"):
        picture.save(tmp_path / name, "PNG")
    assert [path.name for path in images.listing(tmp_path)] == ["a.png", "b.JPG"]
    assert [path.name for path in images.listing(tmp_path, deep=True)] == ["a.png", "b.JPG", "c.jpeg"]
