"""`python -m oodbench` is the command `oodbench`."""

from oodbench.cli import main

if __name__ == "__main__":
    main(prog_name="python -m oodbench")
