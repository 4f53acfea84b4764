"""Run the command `ldae`."""

from ldae.app.cli import main

main()
