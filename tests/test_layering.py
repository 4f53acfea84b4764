"""The layers: checks of every import in the packages, and of the pages that files name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# a layer imports itself, core, and what is listed
MAY_IMPORT = {
    "core": set(),
    "diffusion": set(),
    "nn": set(),
    "data": set(),
    "engine": set(),
    "metrics": set(),
    "tokenizers": {"diffusion", "nn"},
    "denoisers": {"diffusion", "nn"},
    "tasks": {"tokenizers", "denoisers", "diffusion", "nn"},
    "objectives": {"tasks", "tokenizers", "denoisers", "diffusion", "nn", "metrics"},
}
LIBRARY = {"tokenizers", "denoisers", "tasks", "objectives", "diffusion", "nn", "data", "engine", "metrics"}
MAY_IMPORT["config"] = LIBRARY
MAY_IMPORT["sampling"] = LIBRARY
MAY_IMPORT["export"] = LIBRARY | {"config"}
MAY_IMPORT["app"] = LIBRARY | {"config", "sampling", "export"}
ONLY_IN_APP = {"hydra", "omegaconf"}
LAZY = {"ldae", "ldae.__main__"}  # the public API: imports from any layer when a name is accessed
FILES = sorted((ROOT / "ldae").rglob("*.py")) + sorted((ROOT / "linear_probe").rglob("*.py"))


def module_of(path):
    """The dotted name of a file's module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Dotted names of every import in a file, those inside functions and for types alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(dotted):
    """The layer of a module of ldae."""
    return dotted.split(".")[1] if "." in dotted else "public"


def violations(source, names):
    own = "probe" if source.startswith("linear_probe") else layer(source)
    for name in names:
        first = name.split(".")[0]
        if own == "app" or source in LAZY:
            continue
        if first in ONLY_IN_APP or (first == "linear_probe" and own != "probe"):
            yield name
        if (
            first == "ldae"
            and name != "ldae"
            and (own == "probe" or layer(name) not in {own, "core"} | MAY_IMPORT[own])
        ):
            yield name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_keep_to_the_layers(path):
    assert not list(violations(module_of(path), imports(path)))


def test_a_violation_is_detected():
    names = ["hydra", "linear_probe.knn", "ldae.objectives.denoise", "ldae.core.types", "torch"]
    assert list(violations("ldae.engine.trainer", names)) == names[:3]
    assert list(violations("linear_probe.knn", ["ldae.core.types", "linear_probe.knn"])) == ["ldae.core.types"]
    assert list(violations("ldae.config.build", ["ldae.export.encoder"])) == ["ldae.export.encoder"]


def test_diffusion_imports_torch_and_matplotlib_alone():
    standard = {"math", "abc", "collections", "typing", "dataclasses", "itertools", "pathlib", "__future__"}
    allowed = {*standard, "torch", "matplotlib", "ldae"}  # matplotlib inside `plot`
    for path in (ROOT / "ldae" / "diffusion").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed


def test_commands_start_without_what_takes_seconds_and_few_need():
    modules = [
        "ldae.app.training.pretrain",
        "ldae.app.probing.probe",
        "ldae.app.ablation.report",
        "ldae.app.sampling.sample",
    ]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"scipy.stats", "scipy.optimize", "sklearn", "torchvision", "timm", "matplotlib.pyplot"} & set(loaded)


def test_every_module_is_in_a_layer_and_none_is_private():
    for path in FILES:
        assert path.name.startswith("__") or not path.name.startswith("_")
        if path.relative_to(ROOT).parts[0] != "linear_probe" and module_of(path) not in LAZY:
            assert layer(module_of(path)) in MAY_IMPORT


def graph():
    """{module: modules of ours that it imports}, imports for types alone included."""
    known = {module_of(path): path for path in FILES}
    return {name: {target for target in imports(path) if target in known} - {name} for name, path in known.items()}


def circles(edges):
    """Modules that reach themselves."""
    reach = {name: set(targets) for name, targets in edges.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            more = set().union(*(reach[t] for t in targets), set()) - targets
            targets |= more
            changed |= bool(more)
    return sorted(name for name, targets in reach.items() if name in targets)


def test_there_is_no_import_circle():
    assert not circles(graph())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_pages_that_the_code_names_exist():
    """A page lies in the repository, or a tool writes it."""
    written = {"table.md", "trials.md", "benchmark.md", "ddim.md", "reports.md", "README.md"}
    pages = {
        path.relative_to(ROOT).as_posix() for folder in ("docs", "results") for path in (ROOT / folder).rglob("*.md")
    }
    pages |= {path.name for path in ROOT.glob("*.md")} | {page.removeprefix("docs/") for page in pages}
    sources = [path for folder in ("ldae", "linear_probe", "tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    sources += (ROOT / "configs").rglob("*.yaml")
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources
        for name in re.findall(r"[\w/-]+\.md\b", path.read_text())
        if name not in pages and name.rpartition("/")[2] not in written
    }
    assert not missing
