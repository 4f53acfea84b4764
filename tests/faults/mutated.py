"""Damaged picture files, and those that each loader leaves out: python mutated.py FOLDER COUNT prints them as JSON."""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

KINDS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}
MAX_PIXELS = 1_000_000


def good(kind, chance):
    """A small picture as a file of a kind, upright or with a word on its orientation."""
    pixels = np.random.default_rng(chance.randrange(1 << 30)).integers(0, 255, (24, 31, 3), np.uint8)
    image, data = Image.fromarray(pixels).resize((40, 33)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = chance.randrange(1, 9)
    image.save(data, KINDS[kind], **({"exif": exif.tobytes()} if kind in ("jpg", "png", "webp") else {}))
    return data.getvalue()


def damaged(raw, other, chance):
    """A file with one to four things done to it."""
    for _ in range(chance.randrange(1, 5)):
        place, length = chance.randrange(len(raw) + 1), chance.choice([1, 2, 4, 16, 200])
        part = bytes(chance.choice([0, 0, 255, chance.randrange(256)]) for _ in range(length))
        if (what := chance.randrange(7)) == 0:
            raw = raw[:place]
        elif what == 1:
            raw = raw[:place] + raw[place + length :]
        elif what == 2:
            raw = raw[:place] + part + raw[place:]
        elif what == 3:
            raw = raw[:place] + part + raw[place + length :]
        elif what == 4:  # in the header, where sizes and offsets are
            place = chance.randrange(min(64, len(raw) + 1))
            raw = raw[:place] + part[:4] + raw[place + 4 :]
        elif what == 5:
            raw = other[: chance.randrange(1, 64)] + raw[place:]
        elif raw:
            place = chance.randrange(len(raw))
            raw = raw[:place] + bytes([raw[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :]
    return raw


def write(root, count, seed=0):
    """`count` damaged files in two classes below root/train, one in eight left whole; their names and bytes."""
    chance, files = random.Random(seed), {}
    for i in range(count):
        kind = chance.choice(list(KINDS))
        raw = good(kind, chance)
        if i % 8:
            raw = damaged(raw, good(chance.choice(list(KINDS)), chance), chance)
        name = f"{'ab'[i % 2]}/{i:05d}.{kind}"
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        files[name] = raw
    return files


def readable(raw):
    """Return whether Pillow reads all pixels of a file; not if a TIFF lacks rows, which Pillow fills with black."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            if image.width * image.height > MAX_PIXELS:
                return False
            tags = getattr(image, "tag_v2", {})
            if tags and len(tags.get(273, ())) * tags.get(278, image.height) < image.height:
                return False
            image.load()
            image.convert("RGBA" if image.mode in ("P", "PA") else "RGB")
            return True
    except Exception:
        return False


def read(root, files):
    """Return loader -> the names that it left out; "pillow" -> those that it should leave out."""
    from ldae.data.cache import Context
    from ldae.data.datasets import Division, ImageFolder
    from ldae.data.loader import in_order
    from ldae.data.tar_shards import TarShards

    def taken(dataset, cache):
        splits = dataset.open(Context(root / cache, 0, 1.0, MAX_PIXELS))
        parts = [splits.train, splits.holdout, splits.test]
        seen = sum(len(batch) for part in parts if len(part) for batch in in_order(part, 64, torch.device("cpu")))
        assert seen + len(splits.bad) == len(files), "an image is neither read nor left out"
        return [name for name, _ in splits.bad]

    folder, division = str(root), Division(holdout=0.1, test=0.1)
    result = {"pillow": [name for name, raw in files.items() if not readable(raw)]}
    for store in ("memory", "stream"):
        result[f"folder, {store}"] = taken(ImageFolder(16, division, folder, store), store)
    (root / "tar").mkdir()
    with tarfile.open(root / "tar" / "train.tar", "w") as tar:
        for name, raw in files.items():
            for own, content in ((name, raw), (name.rpartition(".")[0] + ".cls", str("ab".index(name[0])).encode())):
                info = tarfile.TarInfo(own)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    left = taken(TarShards(16, division, str(root / "tar"), "stream"), "tars")
    result["tar files"] = [name.rpartition("@")[0].removeprefix("train.tar/") for name in left]
    result["huggingface"] = [list(files)[int(name.split("/")[1])] for name in hub(root, files, division, taken)]
    return result


def hub(root, files, division, taken):
    """Return the names that a stream of a Hugging Face data set leaves out."""
    import datasets

    from ldae.data.hub import HubImages

    (root / "hub").mkdir()
    rows = {
        "image": [{"bytes": raw, "path": None} for raw in files.values()],
        "label": ["ab".index(n[0]) for n in files],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "hub" / "train.parquet"))
    return taken(HubImages(16, division, str(root / "hub"), store="stream"), "hubs")


if __name__ == "__main__":
    from ldae.engine.runtime import peak_gib

    warnings.simplefilter("ignore")
    place = Path(sys.argv[1])
    print(json.dumps({**read(place, write(place, int(sys.argv[2]))), "peak": peak_gib()}))
