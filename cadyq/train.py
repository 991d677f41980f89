"""`python -m cadyq.train`, see `cadyq.commands.train`."""

import sys

from cadyq.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
