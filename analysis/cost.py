"""`python -m analysis.cost`, see `analysis.commands.cost`."""

import sys

from analysis.cli import main_of

main = main_of("cost")

if __name__ == "__main__":
    sys.exit(main())
