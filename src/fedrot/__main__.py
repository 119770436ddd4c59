"""`python -m fedrot` is the `fedrot` command."""

from fedrot.cli import main

if __name__ == "__main__":
    main()
