"""What the README tells a reader to type works, and what it links to is there."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from helpers import ROOT, run

TEXT = (ROOT / "README.md").read_text()
HEADERS = "\n".join(p.read_text() for p in sorted((ROOT / "configs" / "experiment").rglob("*.yaml")))
SCALING = (ROOT / "docs" / "scaling.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT + SCALING, flags=re.S)
LINES = [line.split("#")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
TOLD = re.findall(r"^# Command: .*?((?:python|torchrun) .*)$", HEADERS, flags=re.M)
BARE = {"ablate": {"report"}, "bench": {"plan", "all", "features"}}  # words without =
TOOLS = sorted({line for line in (*LINES, *TOLD) if "tools/" in line})


def test_there_is_something_to_test():
    assert len(TOOLS) > 20
    assert {"make demo", "make test"} <= set(LINES)


@pytest.mark.parametrize("line", TOOLS)
def test_each_command_of_a_tool_composes(config, line):
    argv = shlex.split(line)
    (at,) = (i for i, word in enumerate(argv) if word.startswith("tools/"))
    assert (ROOT / argv[at]).exists()
    name = argv[at].removeprefix("tools/").removesuffix(".py")
    if name == "checkpoint":
        assert argv[at + 1] in ("list", "verify")
        return
    given, bare = ([w for w in argv[at + 1 :] if ("=" in w) is assigned] for assigned in (True, False))
    config("pretrain" if bare == ["plan"] else name, *given)
    assert set(bare) <= BARE.get(name, set())


def test_make_has_the_targets():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {line.split()[1] for line in LINES if line.startswith("make ")} <= targets


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_keys_of_the_table_are_keys(config):
    known = config("pretrain", "data=cifar10")
    rows = re.findall(r"^\| ((?:`[\w.]+=`(?:, | or )?)+) \|", TEXT, flags=re.M)
    keys = re.findall(r"`([\w.]+)=`", " ".join(rows))
    assert len(keys) > 15
    for key in keys:
        node = known
        for part in {"precision": "train.precision"}.get(key, key).split("."):  # one name in all tools
            assert part in node, key
            node = node[part]


def test_the_python_snippet_runs(tmp_path, monkeypatch):
    argv = ("experiment=demo/ldae_eps", "train.steps=2", "data.crops=120", "monitor.num_evals=0", "runtime.threads=1")
    run("pretrain", f"out={tmp_path / 'runs/demo/ldae_eps/seed0'}", *argv)
    (snippet,) = (block for kind, block in BLOCKS if kind == "python")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(snippet, found)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(found["vit"](images * 2 - 1), found["encoder"](images), atol=1e-4, rtol=1e-4)


def test_the_readme_names_every_tool():
    tools = {p.name for p in (ROOT / "tools").glob("[!_]*.py")} - {"demo.py"}  # demo.py is `make demo`
    assert not [name for name in tools if f"tools/{name}" not in TEXT]
