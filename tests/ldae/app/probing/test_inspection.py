"""`ldae inspect` on a user's picture: figures and tables of runs, masked autoencoders and exports."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import SHORT, run
from PIL import Image

from ldae.app.cli import dispatch
from ldae.app.probing.token_reading import read_layers
from ldae.core.errors import ConfigError, DataError
from ldae.export.encoder import load_encoder
from ldae.export.timm_encoder import TimmEncoder
from ldae.nn.attention import attention_weights


def trained(folder, *argv):
    run("pretrain", f"out={folder}", *SHORT, "train.steps=4", "monitor.num_evals=0", *argv)
    return folder


@pytest.fixture(scope="module")
def ldae_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("inspect") / "ldae")


@pytest.fixture(scope="module")
def mae_run(tmp_path_factory):
    argv = ("experiment=mae/cifar10_cpu", "data=digits", "data.patch=4", "train.epochs=null", "train.compile=false")
    return trained(tmp_path_factory.mktemp("inspect") / "mae", *argv)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "my photo.png"
    numbers = np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    Image.fromarray(numbers).resize((830, 500), Image.Resampling.BICUBIC).save(path)
    return path


def inspected(out, picture, *argv):
    dispatch("inspect", [f"picture={picture}", f"out={out}", "precision=fp32", "runtime.threads=1", *argv])
    written = json.loads((out / "my photo.json").read_text())
    with Image.open(out / "my photo.png") as figure:
        assert min(figure.size) > 600
    assert (out / "my photo.pdf").read_bytes().startswith(b"%PDF")
    return written


def test_a_run_shows_tokens_attention_and_what_it_denoises(ldae_run, picture, tmp_path, capsys):
    written = inspected(tmp_path, picture, f"run={ldae_run}", "levels=[0.1,0.9]")
    layers, levels = written["tables"]
    assert [row[0] for row in layers[1:]] == [str(n) for n in load_encoder(ldae_run).network.layers]
    assert levels[0] == ["t", "gamma", "sigma", "PSNR noised, dB", "PSNR denoised, dB"]
    assert float(levels[1][3]) > float(levels[2][3])  # more noise, less PSNR
    assert written["left_out"] == []
    size = load_encoder(ldae_run).image_shape[1]
    assert f"830 x 500 pixels: centre square, resized to {size} x {size}" in capsys.readouterr().out


def test_a_masked_autoencoder_fills_its_mask(mae_run, picture, tmp_path):
    layers, masked = inspected(tmp_path, picture, f"run={mae_run}")["tables"]
    assert len(layers) > 2
    assert masked[1][0] == "75 %"
    assert float(masked[1][1]) > 3


def test_an_encoder_of_the_package_has_no_decoder_and_says_so(picture, tmp_path, capsys):
    written = inspected(tmp_path, picture, "timm=ldae-64x4-photos", "layers=[1,3]", "query=[0,1]")
    (layers,) = written["tables"]
    assert [row[0] for row in layers[1:]] == ["1", "3"]
    assert layers[2][3] == "1.00"  # CKA with itself
    assert "left out: denoised pictures; an encoder without its decoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "error", "sentence"),
    [
        (["run=RUN", "picture=/nowhere.png"], DataError, "picture=/nowhere.png does not exist"),
        (["run=RUN", "picture=/tmp"], DataError, "is a folder; give one picture"),
        (["run=RUN", f"picture={__file__}"], DataError, "cannot be read"),
        (["run=RUN"], ConfigError, "picture=null is not set"),
        (["picture=PICTURE"], ConfigError, "run=null is not set; give one of run=RUN"),
        (["picture=PICTURE", "run=RUN", "timm=vit"], ConfigError, "goes with timm="),
        (["picture=PICTURE", "run=RUN", "layers=[99]"], ConfigError, "layers=99 is not one of the network's layers"),
        (["picture=PICTURE", "run=RUN", "t=5000"], ConfigError, r"t=5000 must be in 0\.\.999"),
        (["picture=PICTURE", "run=RUN", "query=[0.5]"], ConfigError, "must be two fractions"),
        (["picture=PICTURE", "timm=ldae-64x4-photos", "t=3"], ConfigError, "t=3 is no setting of timm="),
        (["picture=PICTURE", "run=ldae-64x4-photos"], ConfigError, "give timm=ldae-64x4-photos"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(ldae_run, picture, tmp_path, argv, error, sentence):
    argv = [word.replace("PICTURE", str(picture)).replace("=RUN", f"={ldae_run}") for word in argv]
    with pytest.raises(error, match=sentence):
        dispatch("inspect", [*argv, f"out={tmp_path / 'out'}", "precision=fp32"])
    assert not (tmp_path / "out").exists()


def test_recorded_attention_is_what_the_layers_compute(ldae_run):
    """The recorded weights times the values, projected, are the output of the attention."""
    encoder = load_encoder(ldae_run)
    images = torch.rand(2, *encoder.image_shape, generator=torch.Generator().manual_seed(0))
    plain = encoder.tokens(images, [1, 2])
    read = read_layers(encoder, images, [1, 2])
    assert all(torch.equal(read[n].tokens, plain[n]) for n in (1, 2))  # the passes stay as they are
    attention = encoder.attention[1]
    x = torch.randn(2, 9, attention.qkv.in_features, generator=torch.Generator().manual_seed(1))
    weights = attention_weights(attention, x)
    assert torch.allclose(weights.sum(-1), torch.ones(2, attention.heads, 9), atol=1e-5)
    v = attention.qkv(x).chunk(3, -1)[2].reshape(2, 9, attention.heads, -1).transpose(1, 2)
    out = attention.proj((weights @ v).transpose(1, 2).reshape(2, 9, -1))
    assert torch.allclose(out, attention(x), atol=1e-5)


def test_attention_of_timm_is_read_with_its_own_names():
    encoder = TimmEncoder("ldae-64x4-photos")
    attention = encoder.attention[1]
    x = torch.randn(1, 7, encoder.width, generator=torch.Generator().manual_seed(1))
    v = attention.qkv(x).chunk(3, -1)[2].reshape(1, 7, attention.num_heads, -1).transpose(1, 2)
    out = attention.proj((attention_weights(attention, x) @ v).transpose(1, 2).reshape(1, 7, -1))
    assert torch.allclose(out, attention(x), atol=1e-4)
