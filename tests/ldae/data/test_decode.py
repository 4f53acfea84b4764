"""Image files of every kind become the right RGB pixels, or a reason."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from ldae.core.errors import ConfigError, StorageError
from ldae.data.decode import BadImage, Bands, centre_crop, crop_and_resize, read_rgb

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


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.pgm"])
@pytest.mark.parametrize("top", [255, 256, 65535])
def test_16_bits_are_scaled_by_their_depth_whatever_their_maximum(tmp_path, name, top):
    values = np.round(RAMP / 255.0 * top).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(pixels(tmp_path / name)[..., 0], np.round(values / 257).astype(np.uint8))


def test_floats_are_scaled_from_0_to_1_and_12_bits_by_theirs(tmp_path):
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "f.tiff")
    assert np.array_equal(pixels(tmp_path / "f.tiff")[..., 0], RAMP)
    (tmp_path / "p.pgm").write_bytes(b"P5 2 1 1023\n" + bytes([3, 255, 0, 255]))
    assert pixels(tmp_path / "p.pgm")[0, :, 0].tolist() == [255, 64]
    assert Bands().to_uint8(np.array([4095, 2048, 255], np.uint16), 12).tolist() == [255, 128, 16]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 8), 1.01, np.float32), r"float32 pixels reach 1\.01, .* data\.range=\[LOW,HIGH\]"),
        (np.full((8, 8), -0.5, np.float32), r"reach -0\.5"),
        (np.array([[0.5, np.inf]], np.float32), "holds inf"),
        (np.array([[0.5, np.nan]], np.float32), "holds nan"),
        (np.array([[5, 70000]], np.int32), r"int32 pixels \(5 to 70000\) have no usual scale"),
    ],
)
def test_numbers_without_a_known_scale_are_refused_by_value(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(BadImage, match=message):
        pixels(tmp_path / "x.tiff")


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_one_range_for_a_data_set_scales_and_clips(tmp_path, kind):
    tifffile.imwrite(tmp_path / "x.tiff", np.array([[100, 1100, 2100, 3000, 0]], kind))
    scaled = np.asarray(read_rgb(tmp_path / "x.tiff", LIMIT, Bands(range=(100, 2100))))
    assert scaled[0, :, 0].tolist() == [0, 128, 255, 255, 0]


def test_pixels_without_data_are_refused(tmp_path):
    values = RAMP.astype(np.uint16) + 1
    for name, first in (("bad", 9999), ("good", 7)):
        values[0, 0] = first
        tifffile.imwrite(tmp_path / f"{name}.tiff", values, extratags=[(42113, "s", 0, "9999", True)])
    with pytest.raises(BadImage, match=r"without data .* 9999"):
        pixels(tmp_path / "bad.tiff")
    assert pixels(tmp_path / "good.tiff").shape == (8, 8, 3)


@pytest.fixture
def bands(tmp_path):
    """Writes a TIFF of so many bands of a type; band k is 16 k to 16 k + 15 of 8 bits, its path."""

    def write(count, kind=np.uint8, **more):
        values = np.arange(16).reshape(4, 4, 1) + 16 * np.arange(count)
        values = values.astype(kind) * (257 if kind == np.uint16 else 1)
        plain = {"photometric": "rgb" if count > 2 else "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(tmp_path / "x.tiff", values, **{**plain, **more})
        return tmp_path / "x.tiff"

    return write


UNKNOWN = {2: [0], 4: [0], 5: [0, 0]}  # extra samples that are not transparency


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [2, 4, 5])
def test_bands_beyond_colour_are_refused_or_chosen(bands, count, kind):
    path = bands(count, kind, extrasamples=UNKNOWN[count])
    channels = r"\[BAND\]" if count == 2 else r"\[RED,GREEN,BLUE\] or \[BAND\]"
    with pytest.raises(BadImage, match=rf"has {count} bands .* data\.channels={channels}"):
        pixels(path)
    image = np.asarray(read_rgb(path, LIMIT, Bands((count - 1, 0, 1))))
    assert image[0, 0].tolist() == [16 * (count - 1), 0, 16]
    grey = np.asarray(read_rgb(path, LIMIT, Bands((1,))))
    assert grey[3, 3].tolist() == [31] * 3
    with pytest.raises(BadImage, match=rf"has {count} bands, fewer than data\.channels=\[0, 1, 9\]"):
        read_rgb(path, LIMIT, Bands((0, 1, 9)))
    with pytest.raises(BadImage, match=r"4 x 4 exceeds data\.max_pixels=15"):
        read_rgb(path, 15, Bands((0, 1, 2)))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bands_in_planes_and_by_gdals_tags_are_the_same(bands, tmp_path, kind):
    values = (np.arange(16).reshape(1, 4, 4) + 16 * np.arange(5)[:, None, None]).astype(kind)
    values *= 257 if kind == np.uint16 else 1
    tifffile.imwrite(
        tmp_path / "p.tiff", values, photometric="minisblack", planarconfig="separate", extrasamples=[0] * 4
    )
    with pytest.raises(BadImage, match="has 5 bands"):
        pixels(tmp_path / "p.tiff")
    assert np.asarray(read_rgb(tmp_path / "p.tiff", LIMIT, Bands((4, 0, 1))))[0, 0].tolist() == [64, 0, 16]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_transparency_of_a_tiff_is_dropped_as_that_of_a_png(bands, tmp_path, kind):
    assert pixels(bands(4, kind, extrasamples=["unassalpha"]))[0, 0].tolist() == [0, 16, 32]
    Image.fromarray(np.dstack([RAMP] * 3 + [RAMP // 2]), "RGBA").save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.dstack([RAMP] * 3))
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png", LIMIT, Bands((3,))))[..., 0], RAMP // 2)


def test_channels_and_range_that_cannot_be_are_refused():
    for wrong in ({"channels": (0, 1)}, {"channels": (0, 1, -1)}, {"range": (1.0, 1.0)}, {"range": (1.0, 2.0, 3.0)}):
        with pytest.raises(ConfigError, match=r"channels=|range="):
            Bands(**wrong)


def png(rows, interlaced=False, size=32):
    """A PNG whose file is whole and whose stream of pixels ends after some rows."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, interlaced)
    stream = zlib.compress(b"".join(b"\0" + bytes([1 if interlaced else 200]) * size for _ in range(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def test_a_png_that_ends_early_is_refused_and_a_black_one_is_not(tmp_path):
    (tmp_path / "short.png").write_bytes(png(10))
    with pytest.raises(BadImage, match="ends early: 330 of its 1056 bytes"):
        pixels(tmp_path / "short.png")
    (tmp_path / "short.png").write_bytes(png(10, interlaced=True))
    with pytest.raises(BadImage):
        pixels(tmp_path / "short.png")
    (tmp_path / "whole.png").write_bytes(png(32))
    assert (pixels(tmp_path / "whole.png") == 200).all()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        Image.new(mode, (33, 17)).save(tmp_path / "black.png")
        assert not pixels(tmp_path / "black.png").any()


def test_a_tiff_without_some_of_its_strips_is_refused(tmp_path):
    path = tmp_path / "x.tiff"
    tifffile.imwrite(path, np.full((32, 32), 9, np.uint8), rowsperstrip=8)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[279].overwrite([256, 256, 0, 0])
    with pytest.raises(BadImage, match="ends early: 2 of its 4 strips are there"):
        pixels(path)


@pytest.mark.parametrize("kind", [np.uint8, np.float64])  # Pillow cannot read the second
def test_a_damaged_tiff_is_not_made_up(tmp_path, kind):
    tifffile.imwrite(tmp_path / "x.tiff", np.full((32, 32), 0.5, kind), extrasamples=[])
    whole = (tmp_path / "x.tiff").read_bytes()
    assert np.asarray(read_rgb(whole, LIMIT)).shape == (32, 32, 3)
    for share in np.linspace(0.05, 0.98, 12):
        with pytest.raises(BadImage):
            read_rgb(whole[: int(share * len(whole))], LIMIT)
    for tag in (256, 257):  # no columns, no rows
        with tifffile.TiffFile(tmp_path / "x.tiff", mode="r+b") as file:
            file.pages[0].tags[tag].overwrite(0)
        with pytest.raises(BadImage):
            pixels(tmp_path / "x.tiff")


@pytest.mark.parametrize("name", ["x.bmp", "x.gif", "x.webp", "x.tiff", "x.png", "x.jpg", "x.pgm", "x.ppm"])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(1, 255, (32, 32, 3), np.uint8)
    Image.fromarray(noise if name != "x.pgm" else noise[..., 0]).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in np.linspace(0.05, 0.98, 12):
        with pytest.raises(BadImage):
            read_rgb(whole[: int(share * len(whole))], LIMIT)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_of_the_disk_is_not_one_of_the_picture(tmp_path, number, monkeypatch):
    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    Image.fromarray(RAMP).save(tmp_path / "x.png")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StorageError, match=r"reading .*x\.png failed \(.*\); check its disk") as caught:
        pixels(tmp_path / "x.png")
    assert caught.value.code == 74


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
    cut = np.asarray(centre_crop(Image.fromarray(wide), 5))
    assert cut.shape == (5, 5, 3)
    assert (cut == 200).all()


@pytest.mark.parametrize("box", [(0, 0, 80, 120), (11, 7, 61, 90), (30, 50, 20, 17)])
def test_the_quick_resize_is_pillows_to_a_grey_level(box):
    waves = np.sin(np.linspace(0, 9, 80))[:, None, None] * np.cos(np.linspace(0, 7, 120))[:, None] * np.ones(3)
    noise = np.random.default_rng(0).normal(0, 12, (80, 120, 3))
    image = Image.fromarray(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8))
    exact, quick = (crop_and_resize(np.array(image), box, 32, kind).int() for kind in (True, False))
    top, left, height, width = box
    pillow = image.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(exact.movedim(0, -1), np.asarray(pillow))
    apart = (exact - quick).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.05
