"""The gallery shows every picture of the documentation, and names commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

from ldae.app.cli import COMMANDS
from ldae.config.choices import choices_of

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "gallery.md").read_text()


def test_every_picture_is_in_the_gallery_and_small():
    pictures = {path.name: path.stat().st_size for path in (DOCS / "pictures").iterdir()}
    assert set(re.findall(r"\(pictures/([^)]+)\)", PAGE)) == set(pictures)
    assert max(pictures.values()) < 300_000


def test_commands_and_experiments_of_the_gallery_exist():
    commands = re.findall(r"^ldae ([\w-]+)", PAGE, re.M)
    assert len(commands) > 10
    assert set(commands) <= set(COMMANDS)
    experiments = re.findall(r"experiment=([\w/]+)", PAGE)
    assert set(experiments) <= set(choices_of("experiment"))
