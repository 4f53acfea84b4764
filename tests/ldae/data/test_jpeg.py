"""JPEG files decoded without Pillow: its pixels to the bit, its verdict on every damaged file."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from ldae.data.decode import BadImage, Bands, read_pixels, read_rgb
from ldae.data.jpeg import decode_jpeg

LIMIT = 10**6


def jpeg(mode="RGB", size=(61, 43), **settings):
    """Waves and noise as a JPEG file."""
    width, height = size
    waves = np.sin(np.linspace(0, 9, height))[:, None, None] * np.cos(np.linspace(0, 7, width))[:, None] * np.ones(3)
    noise = np.random.default_rng(0).normal(0, 20, (height, width, 3))
    file = io.BytesIO()
    image = Image.fromarray(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8))
    image.convert(mode).save(file, "JPEG", **settings)
    return file.getvalue()


PLAIN = [
    jpeg(),
    jpeg("L"),
    jpeg(progressive=True),
    jpeg(size=(1, 1)),
    jpeg(size=(17, 200), quality=5),
    *(jpeg(subsampling=kind, quality=95) for kind in range(3)),
    jpeg(restart_marker_rows=1),
]


@pytest.mark.parametrize("content", PLAIN)
def test_a_plain_file_has_pillows_pixels(content):
    expected = np.asarray(read_rgb(content, LIMIT))
    pixels = decode_jpeg(content, LIMIT)
    assert pixels is not None
    assert np.array_equal(pixels, expected)
    assert np.array_equal(read_pixels(content, LIMIT), expected)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


def png():
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (9, 8, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("content", [turned(), jpeg("CMYK"), png()], ids=["turned", "cmyk", "png"])
def test_another_file_is_left_to_pillow(content):
    assert decode_jpeg(content, LIMIT) is None
    assert np.array_equal(read_pixels(content, LIMIT), np.asarray(read_rgb(content, LIMIT)))


def test_the_limit_of_pixels_and_selected_bands_hold():
    with pytest.raises(BadImage, match=r"61 x 43 exceeds data\.max_pixels=2000"):
        read_pixels(jpeg(), 2000)
    reversed_bands = read_pixels(jpeg(), LIMIT, Bands(channels=(2, 1, 0)))
    assert np.array_equal(reversed_bands, read_pixels(jpeg(), LIMIT)[..., ::-1])


def outcome(read, content):
    """The pixels, or the reason why there are none."""
    try:
        return np.asarray(read(content, LIMIT))
    except BadImage as error:
        return str(error)


def damaged(content, rng):
    """Cut a file, change some of its bytes, or take a range out of it."""
    changed = bytearray(content)
    kind = rng.random()
    if kind < 0.2:
        return content[: rng.randrange(len(content))]
    if kind < 0.8:
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(min(len(changed), 700 if kind < 0.5 else len(changed)))] = rng.randrange(256)
    else:
        first = rng.randrange(len(changed))
        del changed[first : first + rng.randint(1, 60)]
    return bytes(changed)


def test_a_damaged_file_has_pillows_verdict():
    rng = random.Random(0)
    accepted = refused = 0
    for _ in range(1500):
        content = damaged(rng.choice(PLAIN), rng)
        ours, pillows = outcome(read_pixels, content), outcome(read_rgb, content)
        assert np.array_equal(ours, pillows), content
        accepted, refused = accepted + (not isinstance(ours, str)), refused + isinstance(ours, str)
    assert min(accepted, refused) > 100
