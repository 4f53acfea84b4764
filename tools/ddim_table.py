"""Run `ldae ddim-table`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("ddim-table")
