"""`python -m analysis.run_all`, see `analysis.run.command`."""

import sys

from analysis.cli import main_of

main = main_of("run")

if __name__ == "__main__":
    sys.exit(main())
