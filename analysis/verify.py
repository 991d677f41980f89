"""`python -m analysis.verify`, see `analysis.run.verification`."""

import sys

from analysis.run.verification import main

if __name__ == "__main__":
    sys.exit(main())
