"""`python -m babelscope`: the same as the command `babelscope`."""

import sys

from babelscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
