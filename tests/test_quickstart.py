"""The commands of docs/quickstart.md run, one after the other, on a small folder of pictures."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from sklearn.datasets import load_digits

from ldae.app.cli import find
from ldae.export.encoder import Encoder, load_run

TEXT = (ROOT / "docs" / "quickstart.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.S)
COMMANDS = [line.split("#")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
ARGVS = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("ldae ")]
WORKERS = "data.workers=0"
SMALL = ("denoiser.width=32", "denoiser.heads=2", "train.steps=4", "monitor.num_evals=1")
MORE = {"pretrain": (*SMALL, WORKERS), "probe": (WORKERS,), "export": ()}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Run all commands; return their folder and what they printed."""
    home = tmp_path_factory.mktemp("quickstart")
    for i, (pixels, label) in enumerate(zip(*load_digits(n_class=3, return_X_y=True), strict=True)):
        folder = home / "IMAGES" / f"digit{label}"
        folder.mkdir(parents=True, exist_ok=True)
        if i < 150:
            grey = Image.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8))
            grey.resize((60 + i % 9, 70)).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    places = {name: str(home / name) for name in ("IMAGES", "RUN", "OUT")}
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, *argv in ARGVS:
            here = [re.sub(r"\b(IMAGES|RUN|OUT)\b", lambda m: places[m[1]], word) for word in argv]
            printed.append(output_of(name, [*here, "runtime.threads=1", *MORE[name]]))
    return home, printed


def output_of(name, argv):
    """Return what a command prints; it runs in this process, which has imported torch already."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        find(name).load().main(argv)
    return out.getvalue()


def test_the_page_goes_the_whole_way():
    assert [argv[0] for argv in ARGVS] == ["pretrain", "probe", "probe", "probe", "export", "probe"]


def test_every_command_runs(done):
    home, printed = done
    assert (home / "RUN" / "data.json").exists()
    table = printed[1]
    assert [name for name in ("l-DAE", "untrained", "raw pixels", "whole-image PCA") if name not in table] == []
    assert "5 per class" in printed[3]
    assert re.search(r"differ\w* .*e-\d\d", printed[4]), printed[4]
    assert "local-dir" in printed[5]


def test_timm_alone_gives_the_same_features(done, monkeypatch):
    home, _ = done
    (snippet,) = (block for kind, block in BLOCKS if kind == "python")
    picture = Image.open(next((home / "IMAGES").rglob("*.jpg"))).convert("RGB")
    monkeypatch.chdir(home)
    namespace = {"picture": picture}
    exec(snippet, namespace)
    known = json.loads((home / "OUT" / "export.json").read_text())
    encoder = Encoder(load_run(home / "RUN", None, "ema", "cpu").objective, known["layer"], known["t"])
    shown = (namespace["transform"](picture)[None] + 1) / 2
    torch.testing.assert_close(namespace["features"], encoder(shown), atol=1e-4, rtol=1e-4)
