"""Pretrained encoders in the package."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from safetensors.torch import load_file

import ldae
from ldae.app import listing
from ldae.app.compose import compose, resolved
from ldae.core.errors import CheckpointError, ConfigError
from ldae.export.timm_encoder import TimmEncoder
from ldae.export.zoo import FOLDER, zoo_folder, zoo_names
from linear_probe.results import read_results

NAMES = zoo_names()
LIMIT = 5_000_000  # bytes of all encoders together


def test_some_encoders_ship_and_are_small():
    assert NAMES
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_is_loaded_by_its_name_and_gives_the_features_of_timm(name):
    encoder = ldae.load_encoder(name)
    images = torch.rand(5, *encoder.image_shape, generator=torch.Generator().manual_seed(0))
    plain = timm.create_model(f"local-dir:{zoo_folder(name)}", pretrained=True).eval()
    with torch.no_grad():
        expected = plain((images - 0.5) / 0.5)
    features = encoder(images)
    assert not encoder.training
    assert features.shape == (5, encoder.width)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert features.std(0).mean() > 0.01  # images differ


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_float16_and_the_card_is_complete(name):
    weights = load_file(zoo_folder(name) / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    card = (zoo_folder(name) / "README.md").read_text(encoding="utf-8")
    for heading in ("Data", "Recipe", "Cost", "Figures", "Licence", "Reproduce"):
        assert f"## {heading}" in card, heading
    assert "ldae pretrain experiment=" in card


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_a_card_trains_the_network_of_the_card(name):
    card = (zoo_folder(name) / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^ldae pretrain (.+?) out=RUN$", card.replace("\\\n", " "), flags=re.M)
    width, blocks = re.search(r"^# .*ViT (\d+) x \d+ of (\d+) blocks", card, flags=re.M).groups()
    composed = resolved(compose("pretrain", command[1].split()))
    network = composed["denoiser"]
    assert (network["width"], network["encoder_depth"] + network["decoder_depth"]) == (int(width), int(blocks))
    assert ("half of the tokens" in card, "pixels beside" in card) == (
        network["keep"] == 0.5,
        composed["objective"]["part"].endswith("DenoiseWithPixels"),
    )
    assert ("gamma^2 linear" in card) == composed["schedule"]["part"].endswith("LinearGamma2")


def test_other_names_and_settings_are_refused():
    with pytest.raises(CheckpointError, match=re.escape(NAMES[0])):
        ldae.load_encoder("ldae-128x8-cifar11")
    with pytest.raises(ConfigError, match=rf"layer=2 is fixed in {NAMES[0]}"):
        ldae.load_encoder(NAMES[0], layer=2)
    with pytest.raises(ConfigError, match=f"did you mean '{NAMES[0]}'"):
        TimmEncoder(NAMES[0] + "x")


def test_the_list_has_every_encoder(capsys):
    listing.main(["encoders"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


def test_a_probe_takes_the_name(tmp_path, in_process):
    argv = (f"timm={NAMES[0]}", "data=digits", "protocols=[knn]", "runtime.threads=1", f"out={tmp_path}")
    code, message = in_process("probe", *argv)
    assert code == 0, message
    assert {r.encoder for r in read_results(tmp_path / "results.jsonl")} >= {NAMES[0]}
