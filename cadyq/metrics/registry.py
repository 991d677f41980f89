"""Metrics as records: a function of SR and HR, and how its number is shown. A new metric is one file.

```python
def mean_absolute_error(sr, hr, scale):
    return (sr.double() - hr.double()).abs().flatten(1).mean(1)

cadyq.register_metric(cadyq.Metric("mae", "MAE", "", False, mean_absolute_error, ".3f"))
```
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cadyq.utils.errors import UserError
from cadyq.utils.registry import Entries

Function = Callable[[Tensor, Tensor, int], Any]
TITLES_OF_COSTS = ("FAB", "BitOPs (G, 720p)", "Storage (MB)")  # of the other columns of a table


@dataclass(frozen=True)
class Metric:
    """A quality metric of an SR image.

    Attributes:
        name: name of its column in records. If it has a unit, the name ends with it: "psnr_db".
        heading: heading in tables and report.
        unit: such as "dB"; empty for none.
        higher_is_better: False for distances such as LPIPS.
        function: SR and HR, uint8 (B, 3, H, W) RGB, and the scale, to one number per image (B,).
        format: format of a number in tables, such as ".2f".
        in_tables: False if only records, `summary.csv` and the report hold it.
    """

    name: str
    heading: str
    unit: str
    higher_is_better: bool
    function: Function
    format: str
    in_tables: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"metric {self.name!r}: write its name with small letters, digits and underscores")
        try:
            format(0.5, self.format)
        except ValueError as error:
            raise UserError(f"metric {self.name!r}: {self.format!r} formats no number; write it as in '.2f'") from error

    @property
    def title(self) -> str:
        """Heading with unit, which names its column in tables."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    def __call__(self, sr: Tensor, hr: Tensor, scale: int) -> float:
        """The value for one image, (1, 3, H, W)."""
        return float(self.function(sr, hr, scale))


METRICS: Entries[Metric] = Entries("metric", "cadyq.metrics")


def register_metric(metric: Metric) -> Metric:
    """Register a metric. From then on it is measured and shown like PSNR.

    Raises:
        UserError: the name or the title is taken.
    """
    _check_title(metric, [METRICS.get(name) for name in METRICS.added()])
    METRICS.add(metric.name, metric)
    return metric


def all_metrics() -> list[Metric]:
    """Every registered metric: those of this project first, then those of packages and plug-ins by name.

    Raises:
        UserError: two of them have the same title.
    """
    own = [name for name in METRICS.added() if name in METRICS.names()]
    metrics = [METRICS.get(name) for name in dict.fromkeys([*own, *METRICS.names()])]
    for place, metric in enumerate(metrics):
        _check_title(metric, metrics[:place])
    return metrics


def _check_title(metric: Metric, others: Sequence[Metric]) -> None:
    """Raises UserError if a table would have two columns of one title."""
    taken = {*TITLES_OF_COSTS, *(other.title for other in others if other.name != metric.name)}
    if metric.title in taken:
        raise UserError(
            f"metric {metric.name!r}: another column of the tables is called {metric.title!r}; "
            "change its heading or unit"
        )
