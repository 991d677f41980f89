"""`python -m cadyq.zoo.ship`, see `cadyq.commands.zoo`."""

import sys

from cadyq.commands.zoo import main

if __name__ == "__main__":
    sys.exit(main())
