"""`python -m analysis.calibration`, see `analysis.commands.calibration`."""

import sys

from analysis.cli import main_of

main = main_of("calibration")

if __name__ == "__main__":
    sys.exit(main())
