"""The command `ldae`: commands, help, completion, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import ENVIRONMENT, ROOT

import ldae
from ldae.app import provenance
from ldae.app.cli import COMMANDS, dispatch, find, guarded, overview
from ldae.app.completion import completions
from ldae.app.help import command_help, usage_of
from ldae.app.listing import summary
from ldae.config.choices import CONFIGS, choices_of
from ldae.core.errors import UsageError

MINE = """# @package _global_
# Seven steps on digits.
defaults:
  - /experiment/ldae/digits
  - _self_
train:
  steps: 7
"""


def help_of(name):
    command = COMMANDS[name]
    return command_help(name, command.module, command.config, command.settings, command.trains)


def test_every_command_has_a_module_with_main_and_a_usage():
    for name, command in COMMANDS.items():
        assert callable(command.load().main)
        assert f"ldae {name}" in usage_of(command.module)
        assert f"  {name} " in overview()
        assert command.config is None or (CONFIGS / f"{command.config}.yaml").is_file()


def test_a_script_in_tools_is_the_command():
    scripts = {path.stem: path.read_text() for path in (ROOT / "tools").glob("*.py")}
    # list needs none, and an inspect.py would hide Python's own module from every script beside it
    assert set(scripts) == {name.replace("-", "_") for name in COMMANDS if name not in ("list", "inspect")}
    for stem, text in scripts.items():
        assert f'run("{stem.replace("_", "-")}")' in text
        assert len(text.splitlines()) <= 10


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.config])
def test_help_shows_the_keys_of_a_command(name):
    text = help_of(name)
    assert "Main keys, each with type, default and meaning:" in text
    assert f"ldae {name} ... --cfg" in text
    assert ("\n  train.batch=" in text) is COMMANDS[name].trains


def test_a_key_has_type_default_and_meaning():
    line = next(line for line in help_of("probe").splitlines() if line.startswith("  step=null"))
    assert line.split(maxsplit=1)[1].startswith("whole number >= 0, or null; ")


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(UsageError, match=r"'pretain' is not a command.*did you mean 'pretrain'\?"):
        find("pretain")


def test_a_command_without_arguments_shows_its_usage_and_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert guarded(lambda: dispatch("pretrain", [])) == 2
    assert "ldae pretrain experiment=" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_composed_config_is_printed_and_nothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dispatch("pretrain", ["experiment=ldae/digits", "train.steps=3", "--cfg"])
    assert "  steps: 3" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_configs_of_a_folder_of_ones_own_join_those_of_the_package(tmp_path, config):
    (tmp_path / "experiment" / "mine").mkdir(parents=True)
    (tmp_path / "experiment" / "mine" / "short.yaml").write_text(MINE)
    composed = config("pretrain", f"--config-dir={tmp_path}", "experiment=mine/short", "seed=3")
    assert (composed["train"]["steps"], composed["seed"], composed["experiment"]) == (7, 3, "mine/short")
    assert composed["denoiser"] == config("pretrain", "experiment=ldae/digits")["denoiser"]
    with pytest.raises(UsageError, match="give one --config-dir=FOLDER"):
        config("pretrain", "--config-dir=nowhere", "experiment=mine/short")


def test_choices_are_listed_with_a_line_each(capsys):
    dispatch("list", ["tokenizers"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(choices_of("tokenizer")) > 8
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert all(summary(path) for group in ("experiment", "data", "schedule") for path in choices_of(group).values())
    with pytest.raises(UsageError, match=r"'tokenisers' is not a group.*tokenizer"):
        dispatch("list", ["tokenisers"])


def test_keys_and_choices_are_completed():
    assert completions("pretrain", "tokenizer=") == [f"tokenizer={name}" for name in choices_of("tokenizer")]
    assert "runtime.threads=" in completions("pretrain", "runtime.")
    assert completions("probe", "proto") == ["protocols="]
    assert completions(None, "nothing=") == []


def test_a_shell_gets_completions(tmp_path):
    line = "ldae pretrain experiment=ldae/di"
    environment = {**os.environ, **ENVIRONMENT, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_COMP_WORDBREAKS": " =", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer")}
    subprocess.run([sys.executable, "-m", "ldae"], env=environment, check=True)
    assert (tmp_path / "answer").read_text().strip() == "ldae/digits"


def test_version_and_command_are_those_of_the_package():
    done = subprocess.run([sys.executable, "-m", "ldae", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ldae.__version__ == provenance.version()
    provenance.set_command("probe", ["run=my runs/a"])
    assert provenance.command() == "ldae probe 'run=my runs/a'"


BESIDE = """
import atexit, sys
{before}
from ldae.app import cli
class AtTeardown:
    def __del__(self):
        print("teardown", file=sys.__stdout__, flush=True)
sys.modules["beside"] = AtTeardown()
dispatch = cli.dispatch
def with_handler(name, argv):
    atexit.register(print, "handler")
    dispatch(name, argv)
cli.dispatch = with_handler
cli.run(*{arguments})
"""


@pytest.mark.parametrize(("arguments", "code"), [(["list", ["schedule"]], 0), (["list", ["nothing"]], 2)])
@pytest.mark.parametrize(("before", "teardown"), [("", False), ("atexit.register(print, 'earlier')", True)])
def test_the_end_of_a_command_runs_exit_handlers_and_then_ends_the_process(before, teardown, arguments, code):
    text = BESIDE.format(before=before, arguments=arguments)
    result = subprocess.run([sys.executable, "-c", text], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == code
    assert ("error: " in result.stderr) is (code != 0)
    assert ("cosine" in result.stdout) is (code == 0)
    assert "handler" in result.stdout
    assert ("earlier" in result.stdout) is bool(before)  # none is lost: the process ends as others do then
    assert ("teardown" in result.stdout) is teardown
