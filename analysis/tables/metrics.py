"""Heading, format and direction of the metrics in records, from the registry or from the manifest of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cadyq.metrics.measure  # noqa: F401  (importing registers the metrics of this project)
from cadyq.metrics.registry import METRICS, all_metrics


@dataclass(frozen=True)
class Shown:
    """The presentation of a metric. The attributes are those of `cadyq.metrics.registry.Metric`."""

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
        """Digits after the point for single images, at least three."""
        found = re.search(r"\.(\d+)", self.format)
        return max(3, int(found[1])) if found else 3


def shown(names: Iterable[str], manifest: Mapping[str, Any]) -> list[Shown]:
    """The presentation of metrics. A metric that is neither registered nor in the manifest is shown by its name."""
    registered, kept = METRICS.names(), manifest.get("metrics", {})
    found = []
    for name in names:
        if name in registered:
            found.append(_of_registry(name))
        else:
            found.append(Shown(**kept[name]) if name in kept else Shown(name, name))
    return found


def to_manifest() -> dict[str, dict[str, Any]]:
    """All registered metrics, for the entry "metrics" of a manifest."""
    return {metric.name: asdict(_of_registry(metric.name)) for metric in all_metrics()}


def _of_registry(name: str) -> Shown:
    metric = METRICS.get(name)
    return Shown(metric.name, metric.heading, metric.unit, metric.higher_is_better, metric.format, metric.in_tables)
