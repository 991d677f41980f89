"""`python -m cadyq.derive`, see `cadyq.commands.derive`."""

import sys

from cadyq.commands.derive import main

if __name__ == "__main__":
    sys.exit(main())
