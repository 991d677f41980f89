"""`python -m cadyq.download`, see `cadyq.commands.download`."""

import sys

from cadyq.commands.download import main

if __name__ == "__main__":
    sys.exit(main())
