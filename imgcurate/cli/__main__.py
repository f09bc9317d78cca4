"""``python -m imgcurate.cli``: the command line."""

import sys

from imgcurate.cli import main

if __name__ == "__main__":
    sys.exit(main())
