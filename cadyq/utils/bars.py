"""Progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cadyq.utils.extras import needs

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(*args: Any, **options: Any) -> tqdm[Any]:
    """`tqdm` with these arguments.

    Raises:
        UserError: tqdm is not installed.
    """
    with needs("train", "a progress bar"):
        from tqdm import tqdm
    return tqdm(*args, **options)
