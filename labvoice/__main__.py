"""`python -m labvoice` is the command line."""

from labvoice.cli import main

main()
