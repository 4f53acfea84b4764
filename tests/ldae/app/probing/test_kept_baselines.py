"""Baselines: measured once, kept for the probes that follow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import SHORT, run

import ldae.app.probing.kept_baselines
from ldae.app.probing.probe import ProbeRunner
from linear_probe.results import read_results

PIXELS = ("data=digits", "baseline=pixels", "protocols=[lbfgs,knn]")


@pytest.fixture
def probe(tmp_path, monkeypatch, in_process):
    """A probe with a cache of its own: (arguments) -> (its results, the measurements that it made)."""
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ldae.app.probing.kept_baselines, "commit", lambda: "0123456789ab")
    measured, measure = [], ProbeRunner._measure

    def counted(self, encoder, protocol, seed):
        measured.append((encoder.name, protocol.name, seed))
        return measure(self, encoder, protocol, seed)

    monkeypatch.setattr(ProbeRunner, "_measure", counted)

    def call(*argv, of=PIXELS):
        measured.clear()
        assert in_process("probe", *of, f"out={tmp_path / 'out'}", *argv) == (0, "")
        (path,) = (tmp_path / "out").glob("results*.jsonl")
        results = read_results(path)
        path.unlink()
        return results, list(measured)

    return call


def test_a_second_probe_of_the_data_has_the_same_lines_without_measuring(probe):
    first, measured = probe()
    assert measured == [("raw pixels", "lbfgs", 0), ("raw pixels", "knn", 0)]
    second, measured = probe()
    assert not measured
    assert list(map(asdict, second)) == list(map(asdict, first))


@pytest.mark.parametrize("change", ["labels=5", "seeds=[0,1]", "split=holdout", "corruptions=[noise]", "seed=1"])
def test_another_measure_is_measured(probe, change):
    first, _ = probe()
    second, measured = probe(change)
    assert measured
    assert second[0].accuracy != first[0].accuracy or change in ("seeds=[0,1]", "seed=1")
    assert probe() == (first, [])


def test_a_damaged_file_is_measured_again(probe, tmp_path):
    first, _ = probe()
    for path in Path(tmp_path / "cache" / "baselines").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 1'))
    second, measured = probe()
    assert len(measured) == 2
    assert [r.accuracy for r in second] == [r.accuracy for r in first]


def test_a_checkout_with_changes_keeps_nothing(probe, monkeypatch):
    monkeypatch.setattr(ldae.app.probing.kept_baselines, "commit", lambda: "0123456789ab+")
    probe()
    assert len(probe()[1]) == 2


def test_an_untrained_network_is_measured_once_for_its_weights(probe, tmp_path):
    untrained = "the same network, untrained"
    for name, argv in (("a", ["train.steps=2"]), ("b", ["train.steps=3"]), ("c", ["train.steps=2", "seed=1"])):
        run("pretrain", f"out={tmp_path / name}", *SHORT, "monitor.num_evals=0", *argv)
    first, measured = probe(of=(f"run={tmp_path / 'a'}", "protocols=[knn]"))
    assert (untrained, "knn", 0) in measured
    trained_longer, measured = probe(of=(f"run={tmp_path / 'b'}", "protocols=[knn]"))
    assert [name for name, *_ in measured] == [trained_longer[0].encoder]  # the pixels and their PCA are kept too
    assert [r.accuracy for r in trained_longer[1:]] == [r.accuracy for r in first[1:]]
    assert [r.seed for r in trained_longer] == [0] * len(trained_longer)
    _, measured = probe("layers=[1]", of=(f"run={tmp_path / 'b'}", "protocols=[knn]"))
    assert (untrained, "knn", 0) in measured
    _, measured = probe(of=(f"run={tmp_path / 'c'}", "protocols=[knn]"))
    assert (untrained, "knn", 0) in measured  # other initial weights
