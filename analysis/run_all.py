"""`python -m analysis.run_all`, see `analysis.run.command`."""

import sys

from analysis.run.command import main

if __name__ == "__main__":
    sys.exit(main())
