"""`python -m analysis.compare`, see `analysis.tables.run_differences`."""

import sys

from analysis.tables.run_differences import main

if __name__ == "__main__":
    sys.exit(main())
