"""`python -m analysis.backbones`, see `analysis.tables.backbones`."""

import sys

from analysis.tables.backbones import main

if __name__ == "__main__":
    sys.exit(main())
