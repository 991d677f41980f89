"""`python -m cadyq.calibrate`, see `cadyq.commands.calibrate`."""

import sys

from cadyq.commands.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
