"""Run `ldae fool`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("fool")
