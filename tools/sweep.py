"""Run `ldae sweep`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("sweep")
