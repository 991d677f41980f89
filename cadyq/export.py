"""`python -m cadyq.export`, see `cadyq.commands.export`."""

import sys

from cadyq.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
