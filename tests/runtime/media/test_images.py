import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from films import film, opened, pictures
from PIL import Image
from reflectrt.runtime.errors import LimitError, MediaError
from reflectrt.runtime.media import MediaLimits

RED, GREEN, BLUE, WHITE = (200, 30, 30), (30, 200, 30), (30, 30, 200), (255, 255, 255)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def seen(path: Path) -> np.ndarray:
    """The picture uint8 [H, W, 3] that the encoder sees."""
    medium = opened(path)
    first, second = pictures(medium)
    np.testing.assert_array_equal(first, second)
    return first


def scene() -> Image.Image:
    """56 x 84: a red and a green half over a blue foot."""
    picture = Image.new("RGB", (56, 84), BLUE)
    picture.paste(RED, (0, 0, 28, 42))
    picture.paste(GREEN, (28, 0, 56, 42))
    return picture


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_seen_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene().transpose(TURNS[orientation]) if orientation in TURNS else scene()
    exact = {"lossless": True} if ending == "webp" else {"quality": 100} if ending in ("jpg", "avif") else {}
    stored.save(tmp_path / f"turned.{ending}", exif=exif, **exact)
    picture = seen(tmp_path / f"turned.{ending}")
    assert picture.shape == (84, 56, 3)
    blocks = np.abs(picture.astype(int) - np.asarray(scene()))
    assert blocks.mean() < 4  # chroma of JPEG at edges


def test_a_broken_exif_block_does_not_matter(tmp_path: Path) -> None:
    scene().save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x77" * 30, quality=100)
    assert seen(tmp_path / "odd.jpg").shape == (84, 56, 3)


def test_alpha_lies_over_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (56, 56), (*RED, 255))
    picture.paste((*RED, 0), (0, 0, 28, 56))
    picture.paste((0, 0, 0, 128), (28, 28, 56, 56))
    picture.save(tmp_path / "alpha.png")
    found = seen(tmp_path / "alpha.png")
    assert found[10, 10].tolist() == list(WHITE)
    assert found[10, 40].tolist() == list(RED)
    assert found[40, 40].tolist() == [127] * 3


@pytest.mark.parametrize("mode", ["LA", "P", "PA"])
def test_transparency_of_grey_and_palettes_is_white(tmp_path: Path, mode: str) -> None:
    layered = Image.new("LA", (56, 56), (90, 255))
    layered.paste((90, 0), (0, 0, 28, 56))
    if mode == "LA":
        layered.save(tmp_path / "see.png")
    else:
        palette = Image.new("P", (56, 56), 1)
        palette.putpalette([*BLUE, 90, 90, 90])
        palette.paste(0, (0, 0, 28, 56))
        palette.save(tmp_path / "see.png", transparency=0 if mode == "P" else b"\0\xff")
    found = seen(tmp_path / "see.png")
    assert found[10, 10].tolist() == list(WHITE)
    assert found[10, 40].tolist() == [90] * 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "I;16", "RGB"])
def test_colour_modes_come_out_as_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (56, 56), 255)
    stored = Image.fromarray(np.full((56, 56), 65_535, np.uint16)) if mode == "I;16" else grey.convert("RGB")
    if mode == "LAB":
        stored = Image.new("LAB", (56, 56), (255, 128, 128))
    elif mode != "I;16":
        stored = stored.convert(mode)
    stored.save(tmp_path / "picture.tif")
    assert np.abs(seen(tmp_path / "picture.tif").astype(int) - 255).max() <= 2


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    scene().convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    found = seen(tmp_path / "print.jpg")
    assert np.abs(found[10, 10].astype(int) - RED).max() < 6
    assert np.abs(found[60, 30].astype(int) - BLUE).max() < 6


def test_16_bits_are_cut_to_8(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65_535, 56 * 56).astype(np.uint16).reshape(56, 56)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(seen(tmp_path / "deep.png")[:, :, 0], ramp >> 8)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_several_pictures_the_first_is_read_with_a_warning(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (56, 56), colour) for colour in (RED, GREEN, BLUE)]
    how = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"many.{ending}", save_all=True, append_images=frames[1:], **how)
    medium = opened(tmp_path / f"many.{ending}")
    assert medium.warnings == ("only the first of 3 pictures is read",)
    assert np.abs(pictures(medium)[0, 20, 20].astype(int) - RED).max() <= 2


def test_a_phone_s_photo_with_a_preview_has_no_warning(tmp_path: Path) -> None:
    scene().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[scene()])
    assert opened(tmp_path / "phone.jpg").warnings == ()


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif", "bmp"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_cut_picture_is_an_error_on_one_line(tmp_path: Path, ending: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format={"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()))
    path = tmp_path / f"cut.{ending}"
    path.write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * part)])
    with pytest.raises(MediaError, match=rf"cut\.{ending}.*; ") as caught:
        seen(path)
    assert "\n" not in str(caught.value)


def png_header(width: int, height: int) -> bytes:
    """A greyscale PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_001, 20_000, 2_000_000])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(LimitError, match=r"bomb\.png.*; scale it down"):
        opened(tmp_path / "bomb.png")


def test_the_limit_of_an_image_can_be_set(tmp_path: Path) -> None:
    Image.new("L", (1000, 1000)).save(tmp_path / "large.png")
    with pytest.raises(LimitError, match=r"has 1 megapixels, the limit is 0"):
        opened(tmp_path / "large.png", limits=MediaLimits(image_pixels=400_000))


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    scene().save(tmp_path / "image.png")
    film(tmp_path / "film.mp4", 4)
    image = opened((tmp_path / "image.png").rename(tmp_path / "image.mp4"))
    video = opened((tmp_path / "film.mp4").rename(tmp_path / "film.jpg"))
    assert (image.kind, image.warnings) == ("image", ("the file is an image, whatever its name ends in (.mp4)",))
    assert (video.kind, video.warnings) == ("video", ("the file is a video, whatever its name ends in (.jpg)",))


def test_a_heif_photo_is_refused_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    with pytest.raises(MediaError, match=r"HEIF photo.*convert it to JPEG"):
        opened(tmp_path / "photo.heic")


def test_postscript_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(MediaError, match="neither a video nor an image"):
        opened(tmp_path / "page.png")
