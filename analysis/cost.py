"""`python -m analysis.cost`, see `analysis.tables.layer_costs`."""

import sys

from analysis.tables.layer_costs import main

if __name__ == "__main__":
    sys.exit(main())
