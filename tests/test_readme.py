"""The commands, links and keys of the README and of the pages in docs/ are right."""

from __future__ import annotations

import posixpath
import re
import shlex

import pytest
import torch
from helpers import ROOT

from ldae.app import listing
from ldae.app.cli import COMMANDS
from ldae.app.runs.runs import with_folders
from ldae.app.sweep.sweep import parse_arguments

README = (ROOT / "README.md").read_text()
PAGES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted((ROOT / "docs").glob("*.md"))}
PAGES |= {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
HEADERS = "\n".join(p.read_text() for p in sorted((ROOT / "configs" / "experiment").rglob("*.yaml")))
BLOCKS = {name: re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M) for name, text in PAGES.items()}


def commands():
    """Return the command lines `ldae COMMAND ...` of all pages and of the headers of the experiments."""
    lines = re.findall(r"^# Command: .*?((?:ldae|torchrun) .*)$", HEADERS, flags=re.M)
    for kind, block in (block for blocks in BLOCKS.values() for block in blocks):
        if kind in ("", "bash"):
            lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"^\|.*\| `(ldae [^`]+)` \|", PAGES["docs/systems.md"], flags=re.M)
    stripped = {re.split(r"\s+# |\s+#$", line)[0].strip() for line in lines}
    return sorted(
        line for line in stripped if re.match(r"ldae \w|(srun )?torchrun .*-m ldae ", line) and "--help" not in line
    )


def lines_without_comments(text):
    return [line.split("#")[0].strip() for line in text.splitlines()]


def test_there_is_something_to_test():
    assert len(commands()) > 60
    assert {"make demo", "make test"} <= set(lines_without_comments(README))


@pytest.mark.parametrize("line", commands())
def test_command_composes(config, line):
    line = line.replace("-m ldae ", "\0", 1).split("\0")[-1].removeprefix("ldae ")
    name, *argv = shlex.split(line)
    command = COMMANDS[name]
    if name == "checkpoint":
        assert argv[0] in ("list", "verify")
    elif name == "list":
        listing.main([word for word in argv if word != "GROUP"])
    elif name == "runs":
        config("runs", *with_folders(argv))
    elif name == "plan":
        config("pretrain", *argv)
    elif name == "sweep":
        _, space, fixed = parse_arguments(argv)
        config("pretrain", *fixed, *(dimension.word(dimension.extremes[0]) for dimension in space))
    elif command.config is not None and "--config-dir" not in argv:
        config(command.config, *argv)


def test_every_command_is_documented():
    documented = {shlex.split(line.replace("-m ldae ", "ldae "))[1] for line in commands() if line.startswith("ldae ")}
    assert set(COMMANDS) - documented - {"demo", "list"} == set()


def test_make_has_the_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {word for text in PAGES.values() for word in re.findall(r"^make ([\w-]+)", text, flags=re.M)}
    named |= {word for text in PAGES.values() for word in re.findall(r"`make ([\w-]+)`", text)}
    assert named <= targets


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name):
    for target in re.findall(r"\]\((?!\w+:)([^)#]+)", PAGES[name]):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        assert (ROOT / path).exists(), target


def test_every_system_has_its_command_picture_and_figure():
    """All pictures are linked but that of the speed, which is no system's, and nothing has an empty figure."""
    lines = [line for line in PAGES["docs/systems.md"].splitlines() if line.startswith("| ") and "`" in line]
    assert len(lines) > 60
    for line in lines:
        _, source, command, picture, figure = (cell.strip() for cell in line.strip("|").split("|"))
        assert source, line
        assert re.fullmatch(r"`ldae [^`]+`", command), line
        assert re.fullmatch(r"(\[(\w+\.png)\]\(pictures/\2\))?", picture), line
        assert figure, line
    shown = set(re.findall(r"\(pictures/([^)]+)\)", PAGES["docs/systems.md"]))
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} == shown | {"growth.png"}


def test_every_experiment_is_a_system_or_lies_beside_one():
    """The commands of docs/systems.md have experiments of every folder of configs/experiment but demo."""
    folders = {p.name for p in (ROOT / "configs" / "experiment").iterdir() if p.is_dir()} - {"demo"}
    assert folders == set(re.findall(r"experiment=(\w+)/", PAGES["docs/systems.md"]))


@pytest.mark.parametrize("name", PAGES)
def test_anchors_lead_to_headings(name):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)#([^)]+)\)", PAGES[name]):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) if target else name
        if path.endswith(".md"):
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), flags=re.M)
            slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h.lower()).strip()) for h in headings}
            assert anchor in slugs, f"{target}#{anchor}"


def test_the_keys_of_the_table_are_keys(config):
    known = config("pretrain", "data=cifar10")
    rows = re.findall(r"^\| ((?:`[\w.]+=`(?:, | or )?)+) \|", PAGES["docs/pretraining.md"], flags=re.M)
    keys = re.findall(r"`([\w.]+)=`", " ".join(rows))
    assert len(keys) > 15
    for key in keys:
        node = known
        for part in {"precision": "train.precision"}.get(key, key).split("."):  # one name in all commands
            assert part in node, key
            node = node[part]


def test_the_python_of_the_readme_and_of_the_export_page_runs(tmp_path, monkeypatch):
    (readme,) = (block for kind, block in BLOCKS["README.md"] if kind == "python")
    hub, export = (block for kind, block in BLOCKS["docs/export.md"] if kind == "python")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(readme.replace('"steps": 200', '"steps": 4'), namespace)
    images = torch.rand(3, *namespace["encoder"].image_shape)
    features = namespace["encoder"](images)
    assert namespace["pretrained"](images).shape == (3, 128)
    folder = f"file://{tmp_path / 'ldae-digits'}"  # in place of the hub
    exec(hub.replace("hf://USER/ldae-digits", folder).replace("USER/ldae-digits", folder), namespace)
    torch.testing.assert_close(namespace["encoder"](images), features, atol=1e-4, rtol=1e-4)
    exec(export, namespace)
    torch.testing.assert_close(namespace["encoder"](images), features)
    torch.testing.assert_close(namespace["vit"](images * 2 - 1), features, atol=1e-4, rtol=1e-4)


def test_names_of_version_0_1_are_gone():
    renamed = r"python tools/\w+\.py|\bfloors?=|\bbeside=|\blooks=|\bbegin=|search_levels|\bpartner=|\blevels\.T\b"
    matches = {name: re.findall(renamed, text) for name, text in PAGES.items()}
    assert {name: hits for name, hits in matches.items() if hits} == {}
