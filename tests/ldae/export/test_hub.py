"""Encoders of the hub: uploaded to and downloaded from a server or a folder, with and without a connection."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from hub_server import TOKEN, hub

from ldae.app.api import load_encoder, push_to_hub
from ldae.core.errors import CheckpointError, ConfigError
from ldae.export.hub import SHARED, check_remote
from ldae.export.zoo import zoo_folder

ENCODER = "ldae-64x4-photos"
ROUND_TRIP = """
import sys, torch, ldae
source, remote, out = sys.argv[1:]
address = ldae.push_to_hub(source, remote) if source else remote
encoder = ldae.load_encoder(address)
images = torch.rand(3, *encoder.image_shape, generator=torch.Generator().manual_seed(0))
torch.save(encoder(images), out)
print(address)
"""


def expected():
    encoder = load_encoder(ENCODER)
    return encoder(torch.rand(3, *encoder.image_shape, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def exported(tmp_path):
    """An export with a file beside it that may run code."""
    folder = tmp_path / "exported"
    shutil.copytree(zoo_folder(ENCODER), folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


def python(code, *argv, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env = {**kept, "OMP_NUM_THREADS": "1", **environment}
    argv = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300, check=False)


def test_an_encoder_goes_to_the_hub_and_comes_back_also_offline(exported, tmp_path):
    out, home = tmp_path / "features.pt", {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    with hub() as server:
        done = python(ROUND_TRIP, exported, "user/photos", out, HF_ENDPOINT=server.address, **home)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["hf://user/photos"]
        uploaded = server.repositories["user/photos"]
        assert sorted(uploaded["files"]) == sorted(name for name in SHARED if (exported / name).exists())
        assert uploaded["files"]["model.safetensors"] == (exported / "model.safetensors").read_bytes()
        assert torch.equal(torch.load(out), expected())
        again = python(ROUND_TRIP, "", f"hf://user/photos@{uploaded['sha']}", out, HF_ENDPOINT=server.address, **home)
        assert again.returncode == 0, again.stderr
        for address, message in (
            ("hf://user/none", "hf://user/none does not exist on the hub, or is private"),
            ("hf://user/photos@v9", "hf://user/photos@v9 has no revision v9"),
        ):
            failed = python(ROUND_TRIP, "", address, out, HF_ENDPOINT=server.address, **home)
            assert f"CheckpointError: {message}" in failed.stderr, failed.stderr
        refused = python(ROUND_TRIP, exported, "user/b", out, HF_ENDPOINT=server.address, **{**home, "HF_TOKEN": "x"})
        assert "StorageError: push=user/b failed (" in refused.stderr
    out.unlink()
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": server.address}):  # the server is closed
        cached = python(ROUND_TRIP, "", "hf://user/photos", out, **home, **offline)
        assert cached.returncode == 0, cached.stderr
        assert torch.equal(torch.load(out), expected())
        absent = python(ROUND_TRIP, "", "hf://user/other", out, **home, **offline)
        assert "cannot be reached, and the cache has no copy of it" in absent.stderr, absent.stderr


def test_an_encoder_goes_to_a_folder_and_comes_back(exported, tmp_path):
    remote = f"file://{tmp_path / 'remote'}"
    assert push_to_hub(exported, remote) == remote
    assert {path.name for path in (tmp_path / "remote").iterdir()} <= set(SHARED)
    encoder = load_encoder(remote)
    assert torch.equal(
        encoder(torch.rand(3, *encoder.image_shape, generator=torch.Generator().manual_seed(0))), expected()
    )
    assert push_to_hub(exported, remote) == remote  # replaces it
    (tmp_path / "remote" / "other").touch()
    with pytest.raises(ConfigError, match="holds other files than an encoder"):
        push_to_hub(exported, remote)


def test_mistakes_are_named(tmp_path, monkeypatch, exported):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for remote, message in (
        ("name", "must be USER/NAME"),
        ("a/b/c", "must be USER/NAME"),
        ("file://relative", "must name an absolute folder"),
        ("user/name", "needs a token"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_remote("push", remote)
    with pytest.raises(ConfigError, match="layer=3 is of the export of a run"):
        push_to_hub(exported, f"file://{tmp_path / 'remote'}", layer=3)
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors; give a folder that ldae export wrote"):
        load_encoder(f"file://{tmp_path}")
    with pytest.raises(CheckpointError, match="is no address of an encoder; give hf://USER/NAME"):
        load_encoder("hf://name")
