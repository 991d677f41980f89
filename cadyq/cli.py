"""What all command-line programs share."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cadyq.errors import UserError


def exit_status(action: Callable[[], object]) -> int:
    """Run `action`; 0 when it returns, 2 with one line on stderr for a UserError, 130 when interrupted."""
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished work is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0
