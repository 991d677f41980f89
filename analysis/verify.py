"""`python -m analysis.verify`, see `analysis.run.verification`."""

import sys

from analysis.cli import main_of

main = main_of("verify")

if __name__ == "__main__":
    sys.exit(main())
