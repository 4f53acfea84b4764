"""Diagnostics during a pretraining: their values, and losses that are the same with and without them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import SHORT, run
from PIL import Image

from ldae.app.session import Session
from ldae.app.training.layer_monitors import FeatureGeometry, LayerMaps, LayerSimilarity
from ldae.app.training.monitors import OnlineFeatures, OnlineProbe, predict_linear, preview, some
from ldae.core.rng import seed_of
from ldae.core.types import BatchGenerator
from ldae.export.encoder import Encoder, load_run
from ldae.objectives.panels import LossByLevel
from linear_probe.geometry import lidar, linear_cka, rank_me

ALL = ("monitor.linear=true", "monitor.geometry_images=40", "monitor.levels=true", "monitor.cka=true")
ALL = (*ALL, "monitor.maps=true", "monitor.knn_images=200", "monitor.panel_images=16")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    run("pretrain", f"out={folder}", *SHORT, "monitor.num_evals=0")
    return folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "watched"
    run("pretrain", f"out={folder}", *SHORT, *ALL)
    return folder


@pytest.fixture(scope="module")
def opened(watched):
    session = Session(json.loads((watched / "config.json").read_text()))
    return session, load_run(watched).objective, session.splits()


def test_the_training_does_not_notice_its_diagnostics(plain, watched):
    losses = [[row["loss_hex"] for row in rows_of(folder) if "loss_hex" in row] for folder in (plain, watched)]
    assert len(losses[0]) == 12
    assert losses[0] == losses[1]


def test_every_diagnostic_has_rows_and_pictures(watched):
    rows = [row for row in rows_of(watched) if "monitor" in row]
    assert {row["monitor"] for row in rows} == {"panel", "knn", "linear", "geometry", "levels", "cka"}
    assert all(np.isfinite([v for v in row.values() if isinstance(v, float)]).all() for row in rows)
    pictures = {path.stem for path in (watched / "pictures").iterdir()}
    assert {"attention", "patch_components", "cka_layers", "clean_noised_denoised"} <= pictures
    last = [row for row in rows if row["monitor"] == "linear"][-1]
    assert set(last) == {"step", "monitor", *(f"linear_holdout/{n}" for n in ("model", "untrained", "chance"))}
    assert last["linear_holdout/untrained"] > last["linear_holdout/chance"]


def test_the_online_linear_probe_is_ridge_regression_on_the_holdout(opened):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    session, objective, splits = opened
    features = OnlineFeatures(session, objective, splits, 300, None)
    bank, queries = features.at(0)
    assert len(bank) == 300
    assert not set(features.bank.ids) & set(features.queries.ids)
    assert set(features.queries.ids) <= set(splits.holdout.ids)
    figure = OnlineProbe("linear", "linear", features, predict_linear, 1)(0)[0]["linear_holdout/model"]
    scaler = StandardScaler().fit(bank.x)
    x = scaler.transform(bank.x)
    of_each = [
        100 * RidgeClassifier(300 * ridge).fit(x, bank.y).score(scaler.transform(queries.x), queries.y)
        for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    ]
    assert min(abs(figure - one) for one in of_each) < 1e-6
    assert figure > max(of_each) - 10


def test_features_of_a_step_are_read_once(opened):
    session, objective, splits = opened
    features = OnlineFeatures(session, objective, splits, 50, None)
    assert features.at(3)[0] is features.at(3)[0]
    assert features.at(3)[0] is not features.at(4)[0]


def test_geometry_is_that_of_the_encoders_features(opened):
    session, objective, splits = opened
    encoder, images = Encoder(objective), some(splits.train, 30)
    scalars, _ = FeatureGeometry(session, encoder, images, 1)(0)
    batch = preview(session, images, 30)
    assert scalars["geometry/rankme"] == pytest.approx(rank_me(encoder(batch.images)), rel=1e-5)
    assert scalars == FeatureGeometry(session, encoder, images, 1)(5)[0]  # the same views in every evaluation
    assert 1 <= scalars["geometry/lidar"] <= 29
    constant = torch.zeros(30, 10, 4) + torch.arange(30)[:, None, None]
    assert lidar(constant) == pytest.approx(1, abs=1e-4)  # one direction between images


def test_layers_are_compared_by_all_their_patches(opened):
    session, objective, splits = opened
    encoder, batch = Encoder(objective), preview(session, splits.holdout, 8)
    scalars, pictures = LayerSimilarity(encoder, batch, 1)(0)
    tokens = encoder.tokens(batch.images, encoder.network.layers)
    for layer, x in tokens.items():
        expected = linear_cka(x.flatten(0, 1), tokens[encoder.layer].flatten(0, 1))
        assert scalars[f"cka/layer_{layer}"] == pytest.approx(expected, abs=1e-6)
    assert scalars[f"cka/layer_{encoder.layer}"] == 1
    assert pictures["cka_layers"].shape[-1] == 26 * len(tokens) - 2


def test_maps_have_a_column_for_each_layer_and_leave_no_hook(opened):
    session, objective, splits = opened
    encoder, batch = Encoder(objective), preview(session, splits.holdout, 4)
    _, pictures = LayerMaps(encoder, batch, 1)(0)
    layers, side = len(encoder.network.layers), batch.images.shape[-1]
    side *= max(1, 64 // side)
    for picture in pictures.values():
        assert picture.shape[0] == 3
        assert picture.shape[2] == (1 + layers) * (side + 2) - 2
        assert 0 <= picture.min() <= picture.max() <= 1
    assert set(pictures) == {"attention", "patch_components"}
    assert not any(module._forward_pre_hooks for module in objective.modules())


def test_the_loss_of_the_holdout_is_that_of_each_eighth_of_the_levels(opened):
    session, objective, splits = opened
    batch = preview(session, splits.holdout, 8)
    scalars, _ = LossByLevel(objective, batch, 1)(0)
    t = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]) * objective.T // 64 + objective.T // 128 + 3 * objective.T // 8
    rng = BatchGenerator([seed_of(3)])
    with torch.no_grad():
        losses, _ = objective.losses_at(batch, objective.schedule.at(t), rng)
    assert scalars["loss_level_holdout/3"] == pytest.approx(losses.mean().item(), rel=0.05)
    assert len(scalars) == 8


def test_heads_of_the_panel_say_sigma_and_psnr(watched):
    picture = np.asarray(Image.open(watched / "pictures" / "clean_noised_denoised.png").convert("L"))
    heads = picture[:30]
    columns = [heads[:, i * 66 : i * 66 + 64] for i in range(9)]
    assert all(column.min() < 100 for column in columns)  # black letters
    assert len({column.tobytes() for column in columns}) == 9


@pytest.mark.parametrize("logger", ["wandb", "comet"])
def test_a_logger_that_is_not_there_is_refused_before_anything_is_written(tmp_path, logger, monkeypatch):
    argv = (f"out={tmp_path / 'r'}", *SHORT, f"loggers=[tensorboard,{logger}]")
    (tmp_path / "hidden").mkdir()
    hide = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'wandb' else f(n, *a)"
    (tmp_path / "hidden" / "sitecustomize.py").write_text(hide)
    _, err = run("pretrain", *argv, code=2, PYTHONPATH=str(tmp_path / "hidden"))
    assert ("pip install 'ldae[wandb]'" in err) if logger == "wandb" else ("comet" in err)
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()
