"""Run `ldae train-tokenizer`."""

from ldae.app.cli import run

if __name__ == "__main__":
    run("train-tokenizer")
