"""Vision transformers of timm as encoders, with weights in the layouts that public code writes."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.files import sha256
from ldae.export.timm_encoder import TimmEncoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
DINOV2 = {**SIZES, "init_values": 1.0}
REGISTERS = {**DINOV2, "reg_tokens": 2, "no_embed_class": True}


def network(architecture="vit_base_patch16_224", **arguments):
    """A small ViT of timm's; no parameter is at its start."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **arguments).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def described(folder, arguments, architecture="vit_base_patch16_224"):
    """Write a folder that describes such a network and return its name."""
    known = {"input_size": [3, 32, 32], "fixed_input_size": True, "mean": MEAN, "std": STD, "num_classes": 0}
    config = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": known}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def images(count=3, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def normalised(x):
    return (x - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def noise(tensors):
    """Tensors of the same names and shapes, which must not be the ones that are loaded."""
    return {name: torch.randn(value.shape) for name, value in tensors.items()}


def mae_pretraining(tensors):
    """Return the checkpoint that util/misc.py of facebookresearch/mae saves of a network of models_mae.py."""
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "decoder_embed.weight": torch.zeros(8, 16),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
        "decoder_norm.bias": torch.zeros(8),
        "decoder_pred.bias": torch.zeros(192),
    }
    args = argparse.Namespace(lr=1e-3, model="mae_vit_base_patch16")
    return {"model": {**tensors, **decoder}, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": args}


def dino_pretraining(tensors, prefix="backbone."):
    """Return the checkpoint of main_dino.py of facebookresearch/dino: student, teacher, heads next to backbones."""
    head = {"head.mlp.0.weight": torch.zeros(4, 16), "head.last_layer.weight_g": torch.zeros(4, 1)}
    student = prefixed("module.backbone.", noise(tensors)) | prefixed("module.", head)
    teacher = prefixed(prefix, tensors) | prefixed(prefix.removesuffix("backbone."), head)
    return {"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(arch="vit_small")}


def dinov2_pretraining(tensors):
    """Return a teacher_checkpoint.pth of facebookresearch/dinov2, blocks in chunks."""
    chunks = {name.replace("blocks.", "blocks.0.", 1): value for name, value in tensors.items()}
    return {"teacher": prefixed("backbone.", chunks) | {"dino_head.mlp.0.weight": torch.zeros(4, 16)}}


LAYOUTS = {
    "mae": (SIZES, lambda t: {"model": t}),
    "mae pretraining": (SIZES, mae_pretraining),
    "dino": (SIZES, lambda t: t),
    "dino pretraining": (SIZES, dino_pretraining),
    "dino in processes": (SIZES, lambda t: dino_pretraining(t, "module.backbone.")),
    "dinov2": (DINOV2, lambda t: {**t, "mask_token": torch.zeros(1, 16)}),
    "dinov2 pretraining": (DINOV2, lambda t: dinov2_pretraining({**t, "mask_token": torch.zeros(1, 16)})),
    "timm": (SIZES, lambda t: {**t, "head.weight": torch.zeros(10, 16), "head.bias": torch.zeros(10)}),
    "timm training": (SIZES, lambda t: {"state_dict": noise(t), "state_dict_ema": t, "epoch": 3}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_the_network_that_it_was_saved_from(tmp_path, name):
    arguments, layout = LAYOUTS[name]
    model, file = network(**arguments), tmp_path / "weights.pth"
    torch.save(layout(model.state_dict()), file)
    encoder = TimmEncoder(described(tmp_path, arguments), file)
    x = images()
    assert torch.equal(encoder.tokens(x, [3])[3], model.forward_features(normalised(x)))
    assert (encoder.hash, encoder.prefix, encoder.width) == (sha256(file), 1, 16)
    assert list(encoder.layers) == [1, 2, 3]


def test_registers_stand_behind_the_class_token_and_have_no_position(tmp_path):
    """DINOv2's: positions are of the class token and the patches; registers come in after they were added."""
    file, timms = tmp_path / "weights.pth", network(**REGISTERS)
    theirs = timms.state_dict()
    registers, positions = theirs.pop("reg_token"), torch.randn(1, 17, 16)
    theirs |= {"register_tokens": registers, "pos_embed": positions, "mask_token": torch.zeros(1, 16)}
    torch.save(theirs, file)
    encoder, x = TimmEncoder(described(tmp_path, REGISTERS), file), images()
    z = torch.cat([theirs["cls_token"].expand(3, -1, -1), timms.patch_embed(normalised(x))], dim=1) + positions
    z = timms.norm(timms.blocks(torch.cat([z[:, :1], registers.expand(3, -1, -1), z[:, 1:]], dim=1)))
    assert encoder.prefix == 3
    assert torch.allclose(encoder.tokens(x, [3])[3], z, atol=1e-5)


def test_safetensors_and_a_folder_of_timms_are_read(tmp_path):
    model = network(**SIZES)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    name = described(tmp_path, SIZES)
    x = images()
    expected = model.forward_features(normalised(x))
    for encoder in (TimmEncoder(name), TimmEncoder(name, tmp_path / "model.safetensors")):
        assert torch.equal(encoder.tokens(x, [3])[3], expected)
        assert encoder.hash == sha256(tmp_path / "model.safetensors")


def test_layers_are_read_in_one_pass_behind_the_final_norm_or_without_it(tmp_path):
    model, name = network(**SIZES), described(tmp_path, SIZES)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    x, raw = images(), []
    z = model.norm_pre(model._pos_embed(model.patch_embed(normalised(x))))
    for block in model.blocks:
        z = block(z)
        raw.append(z)
    everywhere, last = (TimmEncoder(name, norm=norm).tokens(x, [1, 3]) for norm in ("all", "last"))
    assert torch.equal(everywhere[1], model.norm(raw[0]))
    assert torch.equal(last[1], raw[0])
    assert torch.equal(everywhere[3], model.norm(raw[2]))
    assert torch.equal(last[3], everywhere[3])
    assert torch.equal(TimmEncoder(name)(x), everywhere[3][:, 1:].mean(1))


def test_positions_are_resampled_to_another_grid_and_images_to_another_size(tmp_path):
    model, name = network(**SIZES), described(tmp_path, SIZES)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    x = images(side=64)
    encoder = TimmEncoder(name, size=16)
    grid = model.pos_embed[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    small = F.interpolate(grid, (2, 2), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 4, 16)
    expected = torch.cat([model.pos_embed[:, :1], small], dim=1)
    assert torch.allclose(encoder.model.pos_embed, expected, atol=1e-6)
    resized = F.interpolate(x, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    tokens = encoder.tokens(x, [3])[3]
    assert tokens.shape == (3, 1 + 4, 16)
    assert torch.equal(tokens, encoder.tokens(resized, [3])[3])


def test_bfloat16_is_near(tmp_path):
    name = described(tmp_path, SIZES)
    save_file(network(**SIZES).state_dict(), tmp_path / "model.safetensors")
    full, half = (TimmEncoder(name, precision=p).tokens(images(), [3])[3] for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.2


def test_a_random_network_is_drawn_from_its_seed_and_disturbs_no_other(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (TimmEncoder("test_vit", size=32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    x = images()
    assert torch.equal(one(x), again(x))
    assert not torch.allclose(one(x), other(x))
    assert one.hash == "none"
    assert not any(p.requires_grad for p in one.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("test_vitt", {}, "timm='test_vitt' is no model of timm, .*; did you mean 'test_vit'"),
        ("hf-hub:timm/test_vit", {}, "is no model of timm"),
        ("local-dir:nowhere", {}, "cannot be made with size=None"),
        ("test_resnet", {}, "test_resnet' .*"),
        ("test_vit", {"size": 40}, "size=40 is not a multiple of the patch of test_vit, 16 pixels"),
    ],
)
def test_names_and_sizes_that_cannot_be(name, settings, sentence):
    if name.startswith("local-dir:"):
        with pytest.raises(CheckpointError, match="nowhere"):
            TimmEncoder(name, **settings)
        return
    with pytest.raises(ConfigError, match=sentence) as error:
        TimmEncoder(name, **settings)
    assert len(str(error.value).splitlines()) == 1


def test_a_layer_that_is_not_there():
    with pytest.raises(ConfigError, match=r"layer=7 is not one of the network's layers 1\.\.6"):
        TimmEncoder("test_vit", size=32).tokens(images(), [7])


def test_a_name_whose_trainings_were_normalised_differently_needs_a_tag(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(network(**SIZES).state_dict(), file)
    with pytest.raises(ConfigError, match=r"vit_small_patch16_224' leaves open .*\.augreg.*mean 0.485: \.dino"):
        TimmEncoder("vit_small_patch16_224", file)
    with pytest.raises(ConfigError, match="is of another network"):
        TimmEncoder("vit_small_patch16_224.dino", file)


def truncated(file):
    torch.save(network(**SIZES).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-1000])


def not_finite(file):
    tensors = network(**SIZES).state_dict()
    tensors["norm.weight"][3] = float("nan")
    torch.save(tensors, file)


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


DAMAGES = {
    "missing": (lambda file: None, "cannot be read as weights"),
    "truncated": (truncated, "cannot be read as weights"),
    "text": (lambda file: file.write_text("<html>"), "cannot be read as weights"),
    "a pickle that runs code": (lambda file: torch.save(Canary(file.parent / "canary"), file), "cannot be read"),
    "no tensors": (lambda file: torch.save({"model": {"epoch": 3}}, file), "holds no named tensors"),
    "not finite": (not_finite, "is damaged: norm.weight"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, name):
    damage, sentence = DAMAGES[name]
    damage(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=rf"weights\.pth .*{sentence}|weights\.pth {sentence}") as error:
        TimmEncoder(described(tmp_path, SIZES), tmp_path / "weights.pth")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


def test_truncated_safetensors_are_refused(tmp_path):
    save_file(network(**SIZES).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        TimmEncoder(described(tmp_path, SIZES))


OTHERS = {
    "deeper": ({"depth": 4}, r"blocks\.3\.norm1\.weight is not expected; .* and 9 more"),
    "shallower": ({"depth": 2}, r"blocks\.2\.norm1\.weight is missing"),
    "wider": ({"embed_dim": 32}, r"cls_token is \(1, 1, 32\), not \(1, 1, 16\)"),
    "of other patches": ({"patch_size": 4}, r"proj\.weight is \(16, 3, 4, 4\), not \(16, 3, 8, 8\)"),
    "without a class token": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "weights='"),
    "with layer scale": ({"init_values": 1.0}, r"ls1\.gamma is not expected"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_another_network_are_refused_by_the_keys_that_differ(tmp_path, name):
    difference, sentence = OTHERS[name]
    file = tmp_path / "weights.pth"
    torch.save(network(**{**SIZES, **difference}).state_dict(), file)
    with pytest.raises(ConfigError, match=sentence) as error:
        TimmEncoder(described(tmp_path, SIZES), file)
    assert str(error.value).startswith(f"weights='{file}' is of another network: ")
    assert len(str(error.value).splitlines()) == 1
