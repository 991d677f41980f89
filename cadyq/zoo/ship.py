"""`python -m cadyq.zoo.ship`, see `cadyq.checkpoints.zoo`."""

import sys

from cadyq.checkpoints.zoo import main

if __name__ == "__main__":
    sys.exit(main())
