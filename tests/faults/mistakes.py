"""Mistakes in configs, made from the configs themselves: every key misspelt, of a wrong type, out of range."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldae.app.compose import compose

EXPERIMENTS = (
    "ldae/cifar10_cpu",
    "deconstruct/00_dit",
    "mae/cifar10_cpu",
    "ddpm/cifar10_cpu",
    "iddpm/cifar10_cpu",
    "cold_blur/cifar10_cpu",
    "cold_snow/cifar10_cpu",
    "sr3/cifar10_cpu",
    "segdiff/horses_cpu",
)
NOWHERE = "data.root=/nonexistent"  # a command that reads the data first ends with code 65
# what a text may be is up to the file parts or to the user
FREE_TEXT = {"out", "root", "cache", "weights", "experiment", "name", "only"}
REFERRED = {"data.d", "data.patch"}  # others refer to them, and the answer names those that do
FRACTIONS = {"train.epochs"}  # written as whole numbers, and need not be
UNUSED = {("mae/cifar10_cpu", "timesteps")}  # a part that the experiment has and does not use


@dataclass(frozen=True)
class Mistake:
    """One wrong argument.

    Attributes:
        experiment: whose config it is in.
        word: KEY=VALUE.
        kind: what is wrong with it.
        key: the key that the answer has to name.
    """

    experiment: str
    word: str
    kind: str
    key: str

    @property
    def argv(self) -> list[str]:
        """Return the arguments of `ldae pretrain`."""
        return [f"experiment={self.experiment}", NOWHERE, self.word]


@functools.cache
def mistakes(seed: int = 0) -> tuple[Mistake, ...]:
    """Return all mistakes, in an order that the seed determines."""
    arguments = [m for name in EXPERIMENTS for m in _of(name)]
    random.Random(seed).shuffle(arguments)
    return tuple(arguments)


def _of(experiment: str) -> Iterator[Mistake]:
    config = compose("pretrain", [f"experiment={experiment}", NOWHERE])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for path, value in _leaves(plain):
        key = ".".join(path)
        yield Mistake(experiment, f"{misspelt(key)}=1", "misspelt", misspelt(key))
        node: Any = config
        for part in path[:-1]:
            node = node._get_node(part)
        if isinstance(node, DictConfig) and node._get_node(path[-1])._is_interpolation():
            continue  # follows another key, which is tried
        unused = path[:2] == ("tokenizer", "fit") and len(path) > 3 and not plain["tokenizer"]["fit"]["steps"]
        unused = unused or (experiment, path[0]) in UNUSED
        if path[-1] not in FREE_TEXT and key not in REFERRED and not unused:
            for kind, wrong in _wrong(float(value) if key in FRACTIONS and value else value):
                yield Mistake(experiment, f"{key}={wrong}", kind, path[-1])


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _wrong(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, bool):
        yield "type", "maybe"
        yield "type", "7"
    elif isinstance(value, int):
        yield "type", "abc"
        yield "type", "2.5"
        yield "range", "-3"
        yield "type", "[1]"
    elif isinstance(value, float):
        yield "type", "abc"
        yield "range", "nan"
        yield "range", "inf"
        yield "type", "[1]"
    elif isinstance(value, str):
        yield "choice", "zzz"
        yield "type", "17"
    elif isinstance(value, list):
        yield "type", "abc"
        yield "type", "{a: 1}"


def misspelt(key: str) -> str:
    """The last part of a key with two letters exchanged, or one doubled where that changes nothing."""
    front, dot, last = key.rpartition(".")
    swapped = last[:-2] + last[-1] + last[-2] if len(last) > 2 else last
    return front + dot + (swapped if swapped != last else last + last[-1])
