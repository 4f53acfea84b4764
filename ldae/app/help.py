"""Write the help of a command: its usage, and its keys with type, default and meaning.

The help reads configs and source without importing them, so that `--help` is fast.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ldae.config.choices import CONFIGS

LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?: (?P<value>[^#]*?))?(?:\s+# (?P<meaning>.*))?\s*$")
WIDTH = 118
TRAIN = "ldae.engine.settings:TrainSettings"
NESTED = {"runtime": "ldae.app.session:Runtime", "monitor": "ldae.app.training.monitors:MonitorSettings"}
SHARED = {  # {key: type} of keys that are read before a dataclass is filled
    "run": "text, or null",
    "out": "text, or null",
    "seed": "whole number >= 0",
    "allow": "list of text",
    "device": "text",
    "precision": "auto, fp32 or bf16",
    "data.root": "text, or null",
    "data.cache": "text, or null",
    "data.workers": "whole number >= 0, or null",
}
TYPES = {"Count": "whole number >= 1", "Natural": "whole number >= 0", "Positive": "number > 0", "str": "text",
         "NonNegative": "number >= 0", "Fraction": "number in [0, 1]", "int": "whole number", "float": "number",
         "bool": "true or false", "Workers": "whole number >= 0", "PrecisionSetting": "auto, fp32 or bf16"}  # fmt: skip


def usage_of(module: str) -> str:
    """Return the docstring of a module, without importing it."""
    return ast.get_docstring(ast.parse(_source(module))) or ""


def command_help(name: str, module: str, config: str | None, settings: Sequence[str], trains: bool) -> str:
    """Return the help of a command.

    Args:
        name: the command.
        module: the module of its `main`.
        config: name of its root config, or None if it composes none.
        settings: `module:Dataclass` of each dataclass that declares keys at the root.
        trains: whether the config has a group `train`.
    """
    parts = [usage_of(module)]
    if config is not None:
        declared: dict[str, tuple[str, str]] = {}
        for group, dataclass in {**NESTED, **({"train": TRAIN} if trains else {})}.items():
            declared |= {f"{group}.{key}": value for key, value in fields_of(dataclass).items()}
        for dataclass in settings:
            declared |= fields_of(dataclass)
        declared |= {key: (type_, "") for key, type_ in SHARED.items()}
        parts.append("Main keys, each with type, default and meaning:\n\n" + "\n".join(_keys(config, declared)))
        parts.append(
            f"ldae {name} ... --cfg prints every key as it is composed, and runs nothing.\n"
            "ldae list shows the choices of every group: experiments, tokenizers, schedules, ..."
        )
    return "\n\n".join(parts)


def _keys(config: str, declared: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield a line or more for each key of a root config, then for the keys of `train`."""
    shown = set()
    for key, default, meaning in entries((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8")):
        type_, attribute = declared.get(key, (_type_of(default), ""))
        shown.add(key)
        yield _line(f"{key}={default}", type_, meaning or attribute)
    for key in declared:
        if key not in shown and key.startswith("train."):
            type_, attribute = declared[key]
            yield _line(f"{key}=", type_, attribute)


def _line(assignment: str, type_: str, meaning: str) -> str:
    text = f"{'  ' + assignment:<28}  {type_}" + (f"; {meaning}" if meaning else "")
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * 30)


def entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, meaning) of every value in a root config; its groups are left to `ldae list`."""
    parents: list[str] = []
    for line in text.splitlines():
        entry = LINE.match(line)
        if entry is None or entry["key"] == "defaults":
            continue
        depth = len(entry["indent"]) // 2
        parents = [*parents[:depth], entry["key"]]
        if entry["value"]:
            yield ".".join(parents), entry["value"].strip(), entry["meaning"] or ""


def _type_of(default: str) -> str:
    """Return the name of the type of a YAML value."""
    if default in ("true", "false"):
        return "true or false"
    if re.fullmatch(r"-?\d+", default):
        return "whole number"
    if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", default):
        return "number"
    return "list" if default.startswith("[") else "text"


def fields_of(name: str) -> dict[str, tuple[str, str]]:
    """Return {field: (type, meaning)} of a dataclass `module:Name`, from its annotations and its docstring."""
    module, _, class_name = name.partition(":")
    tree = ast.parse(_source(module))
    (node,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    meanings = _attributes(ast.get_docstring(node) or "")
    fields = {}
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            fields[entry.target.id] = (_readable(ast.unparse(entry.annotation)), meanings.get(entry.target.id, ""))
    return fields


def _attributes(docstring: str) -> dict[str, str]:
    """Return {name: meaning} of the section Attributes of a docstring."""
    _, _, section = docstring.partition("Attributes:\n")
    meanings: dict[str, str] = {}
    for entry in re.finditer(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", section, flags=re.M):
        for name in entry[1].split(", "):
            meanings[name] = re.sub(r"\s+", " ", entry[2]).rstrip(".")
    return meanings


def _readable(annotation: str) -> str:
    """Return the description of an annotation: `Count | None` is `whole number >= 1, or null`."""
    parts = [part.strip() for part in annotation.split(" | ")]
    types = [_one(part) for part in parts if part != "None"]
    return " or ".join(types) + (", or null" if "None" in parts else "")


def _one(annotation: str) -> str:
    if listed := re.fullmatch(r"(?:list|PossiblyEmpty)\[(.*)\]", annotation):
        return f"list of {_one(listed[1])}"
    if ranged := re.fullmatch(r"Annotated\[(\w+), Range\((.*), (.*)\)\]", annotation):
        return f"{TYPES[ranged[1]]} in [{ranged[2]}, {ranged[3]}]"
    if choices := re.fullmatch(r"Literal\[(.*)\]", annotation):
        return choices[1].replace("'", "").replace('"', "").replace("True", "true").replace("False", "false")
    return TYPES.get(annotation, annotation)


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    return Path(str(spec.origin)).read_text(encoding="utf-8")
