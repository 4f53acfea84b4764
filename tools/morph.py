"""Run `ldae morph`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("morph")
