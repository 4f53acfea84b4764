"""Image files of every kind become the right RGB pixels, or a reason."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ldae.data.decode import BadImage, centre_square, cut_and_resized, read_rgb

LIMIT = 10**8
RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def pixels(path):
    return np.asarray(read_rgb(path, LIMIT))


@pytest.mark.case("19", "CMYK, palettes, LA, 1-bit, GIF, WebP: their pixels")
def test_grey_kinds_become_three_equal_channels(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "l.png")
    Image.fromarray(np.stack([RAMP, 255 - RAMP], -1), "LA").save(tmp_path / "la.png")
    Image.fromarray(RAMP > 127).save(tmp_path / "one.png")
    for name in ("l.png", "la.png"):
        assert np.array_equal(pixels(tmp_path / name), np.repeat(RAMP[..., None], 3, -1))
    assert set(np.unique(pixels(tmp_path / "one.png"))) == {0, 255}


@pytest.mark.parametrize("bits", ["uint16", "int32", "float"])
def test_deep_grey_is_scaled_by_its_range_not_cut(tmp_path, bits):
    path = tmp_path / ("x.tiff" if bits != "uint16" else "x.png")
    values = RAMP.astype(np.float64) / 255
    deep = {"uint16": (values * 65535).astype(np.uint16), "int32": (values * 65535).astype(np.int32)}
    Image.fromarray(deep.get(bits, values.astype(np.float32))).save(path)
    assert np.abs(pixels(path)[..., 0].astype(int) - RAMP).max() <= 1


@pytest.mark.case("19", "CMYK, palettes, LA, 1-bit, GIF, WebP: their pixels")
def test_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.fromarray((RAMP // 64).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "p.png", transparency=1)
    assert pixels(tmp_path / "p.png")[0, 0].tolist() == [255, 0, 0]
    assert pixels(tmp_path / "p.png")[7, 7].tolist() == [9, 9, 9]


@pytest.mark.case("19", "CMYK, palettes, LA, 1-bit, GIF, WebP: their pixels")
def test_cmyk_gif_and_webp_are_read(tmp_path):
    solid = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    solid.save(tmp_path / "c.jpg", quality=100)
    red = pixels(tmp_path / "c.jpg").mean((0, 1))
    assert red[0] > 200
    assert red[1:].max() < 60
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]  # the first frame
    frames[1].save(tmp_path / "b.webp", lossless=True)
    assert pixels(tmp_path / "b.webp")[0, 0].tolist() == [0, 0, 255]


def test_a_photograph_on_its_side_is_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :8] = 255
    Image.fromarray(wide).save(tmp_path / "e.png", exif=exif)
    upright = pixels(tmp_path / "e.png")
    assert upright.shape == (16, 8, 3)
    assert upright[:8].min() == 255


def test_a_whole_picture_with_a_damaged_orientation_is_read_as_it_lies(tmp_path):
    wide = np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "e.webp", exif=b"MM *\0\0\0\x08\0\x01\x01\x12", lossless=True)
    assert np.array_equal(pixels(tmp_path / "e.webp"), wide)


def test_what_is_no_image_says_why(tmp_path):
    good = tmp_path / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(good)
    cases = {"empty.jpg": b"", "text.jpg": b"hello", "html.jpg": b"<html></html>", "cut.jpg": good.read_bytes()[:900]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage):
            read_rgb(tmp_path / name, LIMIT)
    with pytest.raises(BadImage, match=r"64 x 64 exceeds data\.max_pixels=4095"):
        read_rgb(good, 4095)
    with pytest.raises(BadImage, match="FileNotFound"):
        read_rgb(tmp_path / "none.png", LIMIT)


def test_centre_square_takes_the_middle():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    cut = np.asarray(centre_square(Image.fromarray(wide), 5))
    assert cut.shape == (5, 5, 3)
    assert (cut == 200).all()


@pytest.mark.parametrize("box", [(0, 0, 80, 120), (11, 7, 61, 90), (30, 50, 20, 17)])
def test_the_quick_resize_is_pillows_to_a_grey_level(box):
    waves = np.sin(np.linspace(0, 9, 80))[:, None, None] * np.cos(np.linspace(0, 7, 120))[:, None] * np.ones(3)
    noise = np.random.default_rng(0).normal(0, 12, (80, 120, 3))
    image = Image.fromarray(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8))
    exact, quick = (cut_and_resized(image, box, 32, kind).int() for kind in (True, False))
    top, left, height, width = box
    pillow = image.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(exact.movedim(0, -1), np.asarray(pillow))
    apart = (exact - quick).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.05
