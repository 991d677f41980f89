"""`python -m analysis.make_report`, see `analysis.commands.report`."""

import sys

from analysis.cli import main_of

main = main_of("report")

if __name__ == "__main__":
    sys.exit(main())
