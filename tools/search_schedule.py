"""Run `ldae search-schedule`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("search-schedule")
