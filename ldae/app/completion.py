"""Complete commands, keys and choices in a shell, by argcomplete.

For bash and zsh: eval "$(register-python-argcomplete ldae)"
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ldae.app.help import entries
from ldae.config.choices import CONFIGS, choices_of, groups_of


def completions(config: str | None, prefix: str) -> list[str]:
    """Return the completions of a KEY=VALUE argument.

    Args:
        config: root config of the command, or None.
        prefix: the part of the argument before the cursor.
    """
    key, assigned, _ = prefix.partition("=")
    if assigned:
        return [f"{key}={choice}" for choice in choices_of(key)] if key in groups_of() else []
    text = "" if config is None else (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8")
    keys = [key for key, _, _ in entries(text)]
    return [f"{word}=" for word in dict.fromkeys([*keys, *groups_of()]) if word.startswith(prefix)]


def complete(commands: Mapping[str, Any]) -> None:
    """Answer a shell's request for completions, and end the process; return at once where there is none.

    Args:
        commands: {name: command with its `config`}.
    """
    import argcomplete

    parser = argparse.ArgumentParser("ldae")
    choices = parser.add_subparsers()
    for name, command in commands.items():
        overrides = choices.add_parser(name).add_argument("overrides", nargs="*")
        config = command.config
        overrides.completer = lambda prefix, config=config, **_: completions(config, prefix)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)
