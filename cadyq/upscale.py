"""`python -m cadyq.upscale`, see `cadyq.commands.upscale`."""

import sys

from cadyq.commands.upscale import main

if __name__ == "__main__":
    sys.exit(main())
