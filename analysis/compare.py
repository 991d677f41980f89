"""`python -m analysis.compare`, see `analysis.commands.compare`."""

import sys

from analysis.cli import main_of

main = main_of("compare")

if __name__ == "__main__":
    sys.exit(main())
