"""The same as the command `ldae`."""

from ldae.app.cli import main

main()
