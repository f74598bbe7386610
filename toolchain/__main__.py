"""`python -m toolchain`: the command line, also where another program called `tc` comes first on PATH."""

import sys

from toolchain.cli import main

if __name__ == "__main__":
    sys.exit(main())
