"""Graphs of encoders: tokenizer, noise level and network in one file, for a batch of any size."""

from __future__ import annotations

import sys

import pytest
import torch
from unets import randomised

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.export.encoder import Encoder
from ldae.export.onnx import OnnxFeatures, check_onnx, write_onnx

SIZES = ("denoiser.width=64", "denoiser.heads=2", "denoiser.encoder_depth=1", "denoiser.decoder_depth=1")
SYSTEMS = {
    "convolutional tokenizer, class": ("experiment=deconstruct/04_linear_gamma2", *SIZES),
    "mae": ("experiment=mae/cifar10_cpu", *SIZES),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_graph_gives_the_features_of_the_encoder(config, tmp_path, name):
    torch.manual_seed(0)
    parts, images = Parts(config("pretrain", *SYSTEMS[name])), torch.rand(6, 3, 32, 32)
    if parts.objective.tokenizer is not None:
        parts.tokenizer.calibrate([2 * images - 1])
    randomised(parts.denoiser, by=0.1)
    encoder = Encoder(parts.objective.eval())
    write_onnx(tmp_path / "model.onnx", encoder, (3, 32, 32))
    exported, expected = OnnxFeatures(tmp_path / "model.onnx"), encoder(images)
    assert expected.std(0).mean() > 0.01
    for batch in (images[:1], images[1:]):
        assert (exported(batch) - encoder(batch)).abs().max() < 1e-4


def test_noise_is_not_exported(config, tmp_path):
    encoder = Encoder(Parts(config("pretrain")).objective, noised=True)
    with pytest.raises(ConfigError, match="noised=true cannot be exported"):
        write_onnx(tmp_path / "model.onnx", encoder, (3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as where it is absent
    sentence = "format='onnx' needs onnxscript: pip install onnx onnxscript onnxruntime"
    with pytest.raises(ConfigError, match=sentence):
        check_onnx()
