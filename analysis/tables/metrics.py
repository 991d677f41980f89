"""How the metrics of records are shown: heading, format and direction, from the registry or from a run's manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cadyq.metrics.measure  # noqa: F401  (importing registers the metrics of this project)
from cadyq.metrics.registry import METRICS, all_metrics


@dataclass(frozen=True)
class Shown:
    """How one metric is shown; the attributes are those of `cadyq.metrics.registry.Metric`."""

    name: str
    heading: str
    unit: str = ""
    higher_is_better: bool = True
    format: str = ".4g"
    in_tables: bool = True

    @property
    def title(self) -> str:
        """Heading with unit."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    @property
    def digits(self) -> int:
        """After the point, for single images: at least three."""
        found = re.search(r"\.(\d+)", self.format)
        return max(3, int(found[1])) if found else 3


def shown(names: Iterable[str], manifest: Mapping[str, Any]) -> list[Shown]:
    """How these metrics are shown. Of one that is neither registered nor in the manifest only the name is known."""
    registered, kept = METRICS.names(), manifest.get("metrics", {})
    found = []
    for name in names:
        if name in registered:
            found.append(_of_registry(name))
        else:
            found.append(Shown(**kept[name]) if name in kept else Shown(name, name))
    return found


def to_manifest() -> dict[str, dict[str, Any]]:
    """All registered metrics as a manifest holds them, under "metrics"."""
    return {metric.name: asdict(_of_registry(metric.name)) for metric in all_metrics()}


def _of_registry(name: str) -> Shown:
    metric = METRICS.get(name)
    return Shown(metric.name, metric.heading, metric.unit, metric.higher_is_better, metric.format, metric.in_tables)
