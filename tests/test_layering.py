"""Who may import whom: the walk of every import in the packages (DESIGN: layering)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOUNDATION = {"types", "errors", "parts", "files", "counter", "progress"}
# each layer may import itself, the foundation, and what is listed
MAY_IMPORT = {
    "foundation": set(),
    "diffusion": set(),
    "nn": set(),
    "data": set(),
    "engine": set(),
    "metrics": set(),
    "tokenizers": {"diffusion", "nn"},
    "denoisers": {"diffusion", "nn"},
    "tasks": {"tokenizers", "denoisers", "diffusion", "nn"},
    "objectives": {"tasks", "tokenizers", "denoisers", "diffusion", "nn", "metrics"},
    "top": {"objectives", "tasks", "tokenizers", "denoisers", "diffusion", "nn", "data", "engine", "metrics"},
}
TOP = {"system", "export", "fold", "generate", "restore", "timm_encoder", "timm_weights", "timm_folder", "onnx_file"}
ONLY_IN_TOOLS = {"hydra", "omegaconf"}
FILES = sorted((ROOT / "ldae").rglob("*.py")) + sorted((ROOT / "linear_probe").rglob("*.py"))


def imports(path):
    """Dotted names of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def layer(dotted):
    """The layer of a module of ldae."""
    parts = dotted.removesuffix(".__init__").split(".")
    if len(parts) < 2:
        return "foundation"
    return "foundation" if parts[1] in FOUNDATION else "top" if parts[1] in TOP else parts[1]


def violations(path, source_layer, names):
    for name in names:
        first = name.split(".")[0]
        if first in ONLY_IN_TOOLS or (first == "linear_probe" and source_layer != "probe"):
            yield f"{path}: {name}"
        if first == "ldae":
            if source_layer == "probe":
                yield f"{path}: {name}"
                continue
            target = layer(name)
            if target not in {source_layer, "foundation"} | MAY_IMPORT[source_layer]:
                yield f"{path}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_keep_to_the_layers(path):
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    source_layer = "probe" if dotted.startswith("linear_probe") else layer(dotted)
    assert list(violations(path, source_layer, imports(path))) == []


def test_the_walk_sees_a_violation():
    names = ["hydra", "linear_probe.knn", "ldae.objectives.denoise", "ldae.types", "torch"]
    assert [v.split(": ")[1] for v in violations("x", "engine", names)] == names[:3]
    assert [v.split(": ")[1] for v in violations("x", "probe", ["ldae.types", "linear_probe.knn"])] == ["ldae.types"]


def test_diffusion_knows_torch_alone():
    allowed = {"torch", "math", "abc", "collections", "typing", "dataclasses", "itertools", "__future__", "ldae"}
    for path in (ROOT / "ldae" / "diffusion").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed


def test_every_module_is_in_a_layer():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != "linear_probe":
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert layer(dotted) in MAY_IMPORT
