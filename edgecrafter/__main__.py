"""``python -m edgecrafter`` is the same as ``edgecrafter``."""

import sys

from edgecrafter.cli import main

if __name__ == "__main__":
    sys.exit(main())
