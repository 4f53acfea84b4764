"""Run `ldae plan`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("plan")
