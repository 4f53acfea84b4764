"""Run `ldae runs`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("runs")
