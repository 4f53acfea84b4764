"""export.py as a user runs it, and what is left behind read by others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ldae
from ldae.app.training import pretrain as pretrain
from ldae.config.build import Parts
from ldae.data.cache import Context
from ldae.export.encoder import load_encoder
from ldae.export.timm_encoder import TimmEncoder
from linear_probe.results import read_results

SHORT = ("train.steps=8", "train.batch=32", "monitor.num_evals=0", "runtime.threads=1")
UNET = ("experiment=ddpm/cifar10_cpu", "denoiser.channels=8", "denoiser.multipliers=[1,2]", "denoiser.attention=[4]")
ALONE = """
import sys
import numpy, timm, torch
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
mean, std = (torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
with torch.no_grad():
    numpy.save(sys.argv[3], model((torch.from_numpy(numpy.load(sys.argv[2])) - mean) / std).numpy())
assert not {"ldae", "linear_probe", "hydra"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a short run, by name."""
    root, known = tmp_path_factory.mktemp("runs"), {}
    experiments = {
        "ldae": ("experiment=ldae/digits",),
        "mae": ("experiment=mae/cifar10_cpu", "data=digits", "train.compile=false"),
        "unet": (*UNET, "data=digits"),
    }

    def made(name):
        if name not in known:
            pretrain.main([f"out={root / name}", *experiments[name], *SHORT])
            known[name] = root / name
        return known[name]

    return made


def digits(folder, count=40):
    """Test images of the run's data, (N, 3, 8, 8) in [0, 1]."""
    config = json.loads((folder / "config.json").read_text())
    splits = Parts(config).data.open(Context(folder / "cache", workers=0))
    return splits.test.pixels[splits.test.ids[:count]].float() / 255


def read_alone(out, images, folder):
    """Features by timm, in a process that cannot import the suite."""
    np.save(folder / "images.npy", images.numpy())
    argv = [sys.executable, "-I", "-c", ALONE, out, folder / "images.npy", folder / "features.npy"]
    done = subprocess.run([str(w) for w in argv], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(folder / "features.npy"))


def test_timm_alone_gives_the_features_of_load_encoder(trained, tmp_path, in_process, capsys):
    out, argv = tmp_path / "out", ("layer=1", "t=40", "format=[timm,onnx]")
    assert in_process("export", f"run={trained('ldae')}", f"out={out}", *argv) == (0, "")
    assert capsys.readouterr().out.count("largest difference") == 2
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "model.onnx",
        "export.json",
        "README.md",
    }
    images, encoder = digits(trained("ldae")), load_encoder(trained("ldae"), layer=1, t=40)
    expected = encoder(images)
    assert expected.std(0).mean() > 0.01
    assert (read_alone(out, images, tmp_path) - expected).abs().max() < 1e-4
    assert (onnx_features(out, images) - expected).abs().max() < 1e-4
    assert (TimmEncoder(f"local-dir:{out}")(images) - expected).abs().max() < 1e-4
    about = json.loads((out / "export.json").read_text())
    assert (about["layer"], about["t"], about["step"], about["split"], about["images"]) == (1, 40, 8, "holdout", 64)
    assert all(figure["difference"] < 1e-4 for figure in about["differences"].values())


def onnx_features(out, images):
    """In batches of one, of seven, and of the rest."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    batches = images.tensor_split([1, 8])
    return torch.cat([torch.from_numpy(session.run(None, {"images": b.numpy()})[0]) for b in batches])


def test_a_graph_of_a_unet_gives_the_features_of_load_encoder(trained, tmp_path, in_process):
    out, folder = tmp_path / "out", trained("unet")
    assert in_process("export", f"run={folder}", f"out={out}", "format=[onnx]") == (0, "")
    images = digits(folder)
    expected = load_encoder(folder)(images)
    assert expected.std(0).mean() > 0.01
    assert (onnx_features(out, images) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["ldae", "unet"])
def test_a_program_gives_the_features_of_load_encoder(trained, tmp_path, in_process, name):
    out, folder = tmp_path / "out", trained(name)
    assert in_process("export", f"run={folder}", f"out={out}", "format=[pt2]") == (0, "")
    images = digits(folder)
    expected = load_encoder(folder)(images)
    assert expected.std(0).mean() > 0.01
    program = torch.export.load(out / "model.pt2").module()
    restored = torch.cat([program(batch) for batch in images.tensor_split([1, 8])])
    assert (restored - expected).abs().max() < 1e-4
    assert "torch.export.load" in (out / "README.md").read_text()


def test_an_export_is_uploaded_and_loaded_from_there(trained, tmp_path, in_process, capsys):
    out, folder, remote = tmp_path / "out", trained("ldae"), f"file://{tmp_path / 'remote'}"
    assert in_process("export", f"run={folder}", f"out={out}", f"push={remote}", "layer=1", "t=40") == (0, "")
    assert f"uploaded: {remote}" in capsys.readouterr().out
    images, expected = digits(folder), load_encoder(folder, layer=1, t=40)
    assert (ldae.load_encoder(remote)(images) - expected(images)).abs().max() < 1e-4
    assert (ldae.load_encoder(out)(images) - expected(images)).abs().max() < 1e-4
    other = f"file://{tmp_path / 'other'}"
    assert ldae.Run(folder).push_to_hub(other, layer=1, t=40) == other
    assert (ldae.load_encoder(other)(images) - expected(images)).abs().max() < 1e-4
    refused = in_process("export", f"run={folder}", f"out={tmp_path / 'o'}", "format=[pt2]", f"push={remote}")
    assert (refused[0], "needs format=[timm]" in refused[1]) == (2, True)
    assert not (tmp_path / "o").exists()


def test_mae_is_a_plain_vit_with_a_class_token(trained, tmp_path, in_process):
    out, folder = tmp_path / "out", trained("mae")
    assert in_process("export", f"run={folder}", f"out={out}") == (0, "")
    images, encoder = digits(folder), TimmEncoder(f"local-dir:{out}")
    expected = load_encoder(folder)
    assert encoder.prefix == 1
    assert (encoder(images) - expected(images)).abs().max() < 1e-4
    tokens, whole = encoder.tokens(images, [4])[4][:, 1:], expected.tokens(images, [4])[4]
    assert (tokens - whole).abs().max() < 1e-4


def test_a_difference_above_the_limit_leaves_nothing_behind(trained, tmp_path, in_process, monkeypatch):
    from ldae.app import export as export

    out = tmp_path / "deep" / "out"
    argv = ("export", f"run={trained('ldae')}", f"out={out}")
    monkeypatch.setattr(export, "LIMIT", 1e-12)
    code, message = in_process(*argv)
    assert code == 70
    assert "e-12; nothing was written" in message
    assert list(out.parent.iterdir()) == []
    monkeypatch.undo()
    assert in_process(*argv) == (0, "")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    monkeypatch.setattr(export, "LIMIT", 1e-12)
    assert in_process(*argv)[0] == 70
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_an_export_replaces_an_export_and_nothing_else(trained, tmp_path, in_process):
    out = tmp_path / "out"
    argv = ("export", f"run={trained('ldae')}", f"out={out}")
    assert in_process(*argv, "layer=1") == (0, "")
    assert in_process(*argv, "layer=2") == (0, "")
    assert json.loads((out / "config.json").read_text())["model_args"]["depth"] == 2
    (out / "thesis.tex").write_text("years of work")
    code, message = in_process(*argv)
    assert code == 73
    assert "holds thesis.tex, which is not of an export; give another folder" in message
    assert (out / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    assert in_process("export", argv[1], f"out={tmp_path / 'file'}")[0] == 73
    assert in_process("export", argv[1], f"out={tmp_path / 'file' / 'out'}")[0] == 73


@pytest.mark.parametrize(
    ("name", "argv", "code", "sentence"),
    [
        ("ldae", ("format=[tf]",), 2, "format"),
        ("ldae", ("format=[]",), 2, "must have at least one entry"),
        ("ldae", ("layer=99",), 2, "layer=99 is not one of the network's layers 1..4"),
        ("ldae", ("t=5000",), 2, "t=5000 must be in 0.."),
        ("ldae", ("step=7",), 65, "has no checkpoint of step=7; it has: 8"),
        ("unet", (), 2, "denoiser='UNet' cannot be folded: it must be a ViT on clean input; use format=[onnx]"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(trained, tmp_path, in_process, name, argv, code, sentence):
    exit_code, message = in_process("export", f"run={trained(name)}", f"out={tmp_path / 'out'}", *argv)
    assert (exit_code, len(message.splitlines())) == (code, 1)
    assert sentence in message
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_needed(in_process):
    assert in_process("export") == (2, "run=null is not set; give run=RUN, the folder that pretraining wrote (out=)")


def test_layer_and_t_are_those_that_the_probe_chose(trained, tmp_path, in_process, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained("ldae"), run)
    chosen = ("layers=[1]", "t=[40]", "baselines=false", "protocols=[knn]", "precision=fp32")
    noised = ("layers=[2]", "t=[5]", "inputs=[noised]", "split=holdout", "baselines=false", "protocols=[knn]")
    assert in_process("probe", f"run={run}", *noised) == (0, "")
    assert in_process("export", f"run={run}", f"out={tmp_path / 'usual'}") == (0, "")
    assert "no probe of this checkpoint" in capsys.readouterr().out
    assert in_process("probe", f"run={run}", *chosen) == (0, "")
    for name, argv, expected in (("a", (), (1, 40)), ("b", ("layer=2",), (2, 10)), ("c", ("t=40",), (1, 40))):
        assert in_process("export", f"run={run}", f"out={tmp_path / name}", *argv) == (0, "")
        about = json.loads((tmp_path / name / "export.json").read_text())
        assert (about["layer"], about["t"]) == expected
        assert ("layer=1 t=40, as the run's probe selected them (kNN, " in capsys.readouterr().out) is (name != "b")


def test_half_precision_rounds_the_weights_alone(trained, tmp_path, in_process, capsys):
    """The features of float16 weights lie within their rounding error, 2^-11 of each weight, of the original's."""
    run, whole, half = trained("ldae"), tmp_path / "whole", tmp_path / "half"
    for out, argv in ((whole, ()), (half, ("half=true",))):
        code, message = in_process("export", f"run={run}", f"out={out}", *argv)
        assert code == 0, message
    wide, narrow = (load_file(out / "model.safetensors") for out in (whole, half))
    assert {t.dtype for t in narrow.values()} == {torch.float16}
    assert all(torch.equal(narrow[name], wide[name].half()) for name in wide)
    images = digits(run)
    expected = load_encoder(run)(images)
    error = (TimmEncoder(f"local-dir:{half}")(images) - expected).abs().max()
    assert 0 < error < 2e-3 * max(1.0, expected.abs().max())
    code, message = in_process("export", f"run={run}", f"out={half}", "half=true", "format=[timm,onnx]")
    assert code == 2
    assert "half=true is for format=[timm]" in message


def test_the_card_has_what_the_probe_found(trained, tmp_path, in_process):
    run, out = trained("ldae"), tmp_path / "out"
    assert in_process("probe", f"run={run}", "protocols=[knn]", "baselines=false", "runtime.threads=1")[0] == 0
    assert in_process("export", f"run={run}", f"out={out}")[0] == 0
    (result,) = read_results(run / "probe" / "results.jsonl")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\| kNN +\| +{result.accuracy:.2f} \| +{result.data}", card), card
