"""The wheel holds everything that the command needs, and runs from an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

import ldae

SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "ldae", "linear_probe", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built in a copy of it."""
    copy, dist = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    argv = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(dist)]
    done = subprocess.run(argv, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run `python -m ldae` of the unpacked wheel in an empty folder."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def run(*argv):
        env = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run([sys.executable, *argv], cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run("-c", "import ldae, linear_probe; print(ldae.__file__, linear_probe.__file__)")
    return run


def test_wheel_holds_every_module_config_and_asset(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"ldae/py.typed", "linear_probe/py.typed"}
    for package in ("ldae", "linear_probe"):
        files = (p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        expected |= {p.relative_to(ROOT).as_posix() for p in files}
    expected |= {f"linear_probe/report/templates/page.{suffix}" for suffix in ("html", "css", "js")}
    expected |= {f"ldae/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert expected - names == set()


def test_wheel_holds_nothing_else(wheel):
    roots = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert roots == {"ldae", "linear_probe", f"ldae-{ldae.__version__}.dist-info"}


def test_wheel_installs_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "ldae = ldae.app.cli:main" in archive.read(entry).decode()


def test_version_is_one(installed):
    assert installed("-m", "ldae", "--version").strip() == ldae.__version__
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    assert cited == ldae.__version__


def test_configs_are_installed_with_the_package(installed):
    assert "experiment=ldae/cifar10_cpu" in installed("-m", "ldae", "list", "experiment")
    composed = installed("-m", "ldae", "pretrain", "experiment=ldae/digits", "--cfg")
    assert "experiment: ldae/digits" in composed


def test_a_report_is_written_without_a_checkout(installed, tmp_path):
    shutil.copytree(ROOT / "results" / "cifar10" / "deconstruct", tmp_path / "out")
    (tmp_path / "out" / "rows.jsonl").write_text((tmp_path / "out" / "rows.jsonl").read_text().splitlines()[0] + "\n")
    assert "index.html" in installed("-m", "ldae", "report", f"out={tmp_path / 'out'}")
    assert "</html>" in (tmp_path / "out" / "index.html").read_text()


def test_help_needs_no_checkout(installed):
    assert "experiment=" in installed("-m", "ldae", "pretrain", "--help")


def test_constraints_pin_every_package_of_the_development_environment():
    required = set(re.findall(r'"([\w-]+)(?:\[\w+\])?>=[\d.]+"', (ROOT / "setup.py").read_text()))
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "matplotlib", "mkdocstrings", "submitit"} <= required
    assert required - pinned == {"torch-fidelity", "imagecodecs", "trackio"}  # of extras outside `dev`
