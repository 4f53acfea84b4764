"""Run the command line `ldae COMMAND KEY=VALUE ...`: dispatch, help, exit codes."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ldae.app import provenance
from ldae.app.help import command_help, usage_of
from ldae.core.errors import ConfigError, Fault, Interrupted, UsageError, did_you_mean


@dataclass(frozen=True)
class Command:
    """Command of the command line.

    Attributes:
        module: the module of its `main(argv)`; the module's docstring is its usage.
        summary: its purpose, for the help.
        config: name of its root config; None for a command without one.
        settings: `module:Dataclass` of each dataclass that declares keys at the root of the config, for the help.
        trains: whether the config has a group `train`.
        needs_arguments: whether it shows its usage, with exit code 2, where it is given none.
    """

    module: str
    summary: str
    config: str | None = None
    settings: Sequence[str] = ()
    trains: bool = False
    needs_arguments: bool = True

    def load(self) -> Any:
        """Import the command's module."""
        return importlib.import_module(self.module)


# thresholds of the cyclic garbage collector; with Python's, 700, 10 and 10, it looks through torch's objects many times
# while they are imported
COLLECTION = (50_000, 20, 100)

GENERATION = "ldae.app.sampling.generator:GenerationSettings"
# purpose -> {name: command}
GROUPS: Mapping[str, Mapping[str, Command]] = {
    "Start here": {
        "demo": Command(
            "ldae.app.demo.demo", "pretrain and probe on embedded photographs, in minutes", needs_arguments=False
        ),
        "list": Command(
            "ldae.app.listing", "list experiments, tokenizers and every other choice", needs_arguments=False
        ),
    },
    "Learn a representation": {
        "pretrain": Command(
            "ldae.app.training.pretrain",
            "pretrain an encoder: l-DAE, its rungs, its baselines",
            "pretrain",
            trains=True,
        ),
        "train-tokenizer": Command(
            "ldae.app.training.train_tokenizer", "fit or train a tokenizer on its own", "train_tokenizer", trains=True
        ),
        "finetune": Command(
            "ldae.app.training.finetune",
            "train a pretrained encoder end to end on labels",
            "finetune",
            ("ldae.app.training.finetune:FinetuneSettings",),
            trains=True,
        ),
        "plan": Command("ldae.app.training.plan", "estimate memory and time of a pretraining"),
    },
    "Measure it": {
        "probe": Command(
            "ldae.app.probing.probe",
            "score frozen features and baselines by linear probes and kNN",
            "probe",
            ("ldae.app.probing.settings:ProbeSettings",),
        ),
        "benchmark": Command(
            "ldae.app.probing.benchmark",
            "score encoders on many data sets and compare them",
            "benchmark",
            ("ldae.app.probing.suites:BenchmarkSettings",),
        ),
        "dense": Command(
            "ldae.app.probing.dense",
            "score patch tokens by segmentation",
            "dense",
            ("ldae.app.probing.dense:DenseSettings",),
        ),
        "inspect": Command(
            "ldae.app.probing.inspection",
            "draw attention, patch tokens and denoised versions of a picture",
            "inspect",
            ("ldae.app.probing.inspection:InspectSettings",),
        ),
        "ablate": Command(
            "ldae.app.ablation.ablate",
            "run a grid of pretrainings and probes, and report it",
            "ablate",
            ("ldae.app.ablation.ablate:AblateSettings",),
        ),
        "sweep": Command(
            "ldae.app.sweep.sweep",
            "search keys of pretraining for the best hold-out accuracy",
            "sweep",
            ("ldae.app.sweep.sweep:SweepSettings",),
        ),
        "report": Command("ldae.app.ablation.report", "write the tables and the page of an ablation again"),
        "runs": Command(
            "ldae.app.runs.runs",
            "list and compare the runs below a folder",
            "runs",
            ("ldae.app.runs.runs:RunsSettings",),
            needs_arguments=False,
        ),
    },
    "Make images": {
        "sample": Command(
            "ldae.app.sampling.sample",
            "draw images from a trained diffusion model",
            "sample",
            ("ldae.app.sampling.sample:SampleSettings", GENERATION),
        ),
        "restore": Command(
            "ldae.app.sampling.restore",
            "restore, enlarge, segment or edit pictures",
            "restore",
            ("ldae.app.sampling.restore:RestoreSettings", GENERATION),
        ),
        "morph": Command("ldae.app.sampling.morph", "turn the images of one folder into those of another"),
        "fool": Command(
            "ldae.app.sampling.fool",
            "write a page on which people choose between real and generated pictures, or read their answers",
            "fool",
            ("ldae.app.sampling.fool:FoolSettings",),
        ),
        "likelihood": Command(
            "ldae.app.sampling.likelihood",
            "bound the likelihood of images, in bits per dimension",
            "likelihood",
            ("ldae.app.sampling.likelihood:LikelihoodSettings", GENERATION),
        ),
        "ddim-table": Command(
            "ldae.app.sampling.ddim_table",
            "measure distance and time over steps and eta of DDIM",
            "ddim_table",
            ("ldae.app.sampling.ddim_table:DDIMTableSettings", GENERATION),
        ),
        "search-schedule": Command(
            "ldae.app.sampling.search_schedule",
            "search noise levels for few-step sampling",
            "search_schedule",
            ("ldae.app.sampling.search_schedule:SearchSettings", GENERATION),
        ),
    },
    "Use it elsewhere": {
        "embed": Command(
            "ldae.app.probing.embed",
            "write the features of a data set to a file",
            "embed",
            ("ldae.app.probing.embed:EmbedSettings",),
        ),
        "export": Command(
            "ldae.app.export", "write an encoder for timm or ONNX", "export", ("ldae.app.export:ExportSettings",)
        ),
        "checkpoint": Command("ldae.app.checkpoint", "list or verify the checkpoints of a run"),
    },
}
COMMANDS: Mapping[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}


def overview() -> str:
    """Return the help of `ldae`: every command, grouped by purpose."""
    width = max(map(len, COMMANDS))
    lines = ["usage: ldae COMMAND KEY=VALUE ...", ""]
    for purpose, commands in GROUPS.items():
        lines += [f"{purpose}:", *(f"  {name:<{width}}  {c.summary}" for name, c in commands.items()), ""]
    lines += ["ldae COMMAND --help shows a command's usage, examples and keys.", "ldae --version shows the version."]
    return "\n".join(lines)


def find(name: str) -> Command:
    """Return the command of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in COMMANDS:
        raise UsageError(f"{name!r} is not a command; there are: {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}")
    return COMMANDS[name]


def run(name: str | None = None, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code.

    Args:
        name: the command; the first word of the command line if None.
        argv: its arguments; those of this process if None.
    """
    gc.set_threshold(*COLLECTION)
    if getattr(atexit, "_ncallbacks", lambda: 1)() == 0:  # the first that is registered is the last to run
        atexit.register(_skip_teardown)
    argv = list(sys.argv[1:] if argv is None else argv)
    sys.stdout, sys.stderr = BrokenPipeSafeStream(sys.stdout), BrokenPipeSafeStream(sys.stderr)
    if name is None:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(overview(), file=sys.stdout if argv else sys.stderr)
            sys.exit(0 if argv else UsageError.code)
        if argv[0] == "--version":
            print(provenance.version())
            sys.exit(0)
        name, *argv = argv
    _exit(guarded(lambda: dispatch(name, argv)))


def dispatch(name: str, argv: Sequence[str]) -> None:
    """Call a command's `main`, or show its help.

    Raises:
        UsageError: there is no such command, or it needs arguments.
        Fault: the command failed.
    """
    command = find(name)
    if {"-h", "--help"} & set(argv):
        c = command
        print(command_help(name, c.module, c.config, c.settings, c.trains))
        return
    if command.needs_arguments and not argv:
        print(usage_of(command.module), file=sys.stderr)
        raise UsageError(f"no arguments; the lines above are the usage (ldae {name} --help shows the keys)")
    if "--cfg" in argv and command.config is not None:
        print(composed(command.config, [word for word in argv if word != "--cfg"]))
        return
    provenance.set_command(name, argv)
    command.load().main(argv)


def composed(config: str, argv: Sequence[str]) -> str:
    """Return the config that a root config and the arguments compose, as YAML."""
    from omegaconf import OmegaConf

    from ldae.app.compose import compose, resolved

    return OmegaConf.to_yaml(OmegaConf.create(resolved(compose(config, argv))))


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}\n"


def guarded(call: Callable[[], None]) -> int:
    """Call a function, print one sentence for a failure, and return the exit code."""
    warnings.formatwarning = _format_warning
    try:
        call()
    except Fault as fault:
        print(f"error: {as_typed(fault)}", file=sys.stderr)
        return fault.code
    except OSError as error:
        from ldae.core.files import wrap_os_error

        wrapped = wrap_os_error(error)
        print(f"error: {wrapped}", file=sys.stderr)
        return wrapped.code
    except KeyboardInterrupt:  # before a run has state to save
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        from ldae.core.files import is_out_of_memory, wrap_error

        if is_out_of_memory(error):
            memory = wrap_error(error)
            print(f"error: {memory}", file=sys.stderr)
            return memory.code
        traceback.print_exc()
        print("error: internal; this is a bug worth reporting with the lines above", file=sys.stderr)
        return Fault.code
    return 0


def as_typed(fault: Fault) -> Fault:
    """Return a fault that names a part by the choice of its group, as it was typed, and not by its class."""
    if not isinstance(fault, ConfigError) or not isinstance(fault.value, str):
        return fault
    from ldae.config.choices import CLASSES

    group = fault.key.removesuffix(".part")
    for choice, path in CLASSES.get(group, {}).items():
        if path.rpartition(".")[2] == fault.value:
            return ConfigError(group, choice, fault.expectation)
    return fault


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if code == Interrupted.code or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # an interrupted command is to end at once, and the end of an interpreter with torch takes seconds;
        # gloo's threads free the last barrier's tensors at an arbitrary time and abort if the interpreter is ending by
        # then; torchrun would report a finished run as failed
        atexit._run_exitfuncs()
        os._exit(code)
    _codes.append(code)
    sys.exit(code)


_codes: list[int] = []  # the exit code of this process, once its command has ended


def _skip_teardown() -> None:
    """End the process, as the last of its exit handlers: to take apart an interpreter with torch takes long."""
    if _codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_codes[0])


class BrokenPipeSafeStream:
    """Text stream that discards text once its reader is closed, so that the run continues.

    The reader is closed when the other end of a pipe exits (`| head`) or a terminal is closed.

    Args:
        stream: stream to write to, with a file descriptor.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, or discard it where the reader is closed; return its length."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream; do nothing where the reader is closed."""
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self.stream.fileno())  # buffered text needs a descriptor that accepts it
            os.close(devnull)


def main() -> NoReturn:
    """Run the command line: the entry point of `ldae`."""
    if "_ARGCOMPLETE" in os.environ:
        from ldae.app.completion import complete

        complete(COMMANDS)
    run()
