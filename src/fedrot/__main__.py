"""`python -m fedrot` is the `fedrot` command."""

from fedrot.cli import main

main()
