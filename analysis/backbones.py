"""`python -m analysis.backbones`, see `analysis.commands.backbones`."""

import sys

from analysis.commands.backbones import main

if __name__ == "__main__":
    sys.exit(main())
