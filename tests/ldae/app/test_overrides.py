"""KEY=VALUE on the command line: what is read, and that printed commands read back."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ldae.app.overrides import argument, command, parse_override

NASTY = [
    "R/a=b %40 @x",
    "D/a,b[1]",
    "a,b",
    "[x]",
    "{a: 1}",
    'it\'s "x"',
    "'q'",
    "ends\\",
    "\\'\\\\'",
    "123",
    "true",
    "null",
    "1e5",
    " a ",
    "ü#;&|<>!()*?$HOME",
    "two\nlines",
    "~/x",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_printed_command_reads_back(text):
    argv = shlex.split(command("probe", run=text))
    assert argv[:2] == ["ldae", "probe"]
    assert parse_override(argv[2]).value() == text
    assert parse_override(argument("out", text)).value() == text


@pytest.mark.parametrize("text", [text for text in NASTY if text[0] not in "[{'~" and text not in ("null", " a ")])
def test_a_path_is_taken_as_it_is_typed(text):
    assert parse_override(f"data.root={text}").value() == text


def test_a_path_may_begin_at_home():
    assert parse_override("out=~/x").value() == str(Path.home() / "x")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.steps=5", 5),
        ("optim.blr=1e-3", 1e-3),
        ("runtime.progress=true", True),
        ("out=null", None),
        ("layers=[2,4]", [2, 4]),
        ("out='a, b'", "a, b"),
        ("tokenizer.fit.perceptual={factor: 0}", {"factor": 0}),
        ("images=1000", 1000),
    ],
)
def test_other_values_are_of_the_type_they_are_written_as(word, value):
    assert parse_override(word).value() == value
