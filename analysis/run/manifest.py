"""The manifest of a run: all that is needed to repeat it, with the cells of earlier commands on its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from analysis.records import store as records
from analysis.run.earlier import earlier_cells, earlier_commands, with_earlier
from analysis.run.plan import Plan
from analysis.run.provenance import provenance
from analysis.run.source import Source
from analysis.tables import metrics
from analysis.tables.roles import to_manifest
from cadyq.metrics.measure import MEASUREMENT_VERSION


def manifest(
    plan: Plan,
    preset: Plan,
    sources: Sequence[Source],
    statuses: list[dict[str, Any]],
    out: Path,
    device: torch.device,
    argv: Sequence[str],
) -> dict[str, Any]:
    """The manifest of a run: all that is needed to repeat it. Only the last part of each path is kept.

    Args:
        plan: plan of the run.
        preset: plan of the preset without options, for the order of cells.
        sources: networks of the plan.
        statuses: entries of the cells.
        out: run folder, which may hold the manifest of an earlier command.
        device: device of the run.
        argv: arguments of the command.
    """
    before = records.read_manifest(out)
    shown = [Path(word).name if "/" in word else word for word in argv]
    kept = {name: before[name] for name in ("latency_sha256",) if name in before}
    return (
        provenance("analysis.run_all", shown, device, ["fvcore"])
        | kept
        | {
            "measurement_version": MEASUREMENT_VERSION,
            "plan": written(plan),
            "metrics": before.get("metrics", {}) | metrics.to_manifest(),
            "schemes": before.get("schemes", {}) | to_manifest(plan.schemes),
            "code_sha256": {f"{s.backbone} {s.scheme}": s.code for s in sources if not s.reason},
            "seed": "none: nothing is drawn at random; bootstrap intervals state their own",
            "weights_sha256": {f"{s.backbone} {s.scheme}": s.sha256() for s in sources if not s.reason},
            "parents_sha256": before.get("parents_sha256", {}) | plan.parents_sha256(),
            "cells": with_earlier(statuses, earlier_cells(out, before, statuses), preset),
            "earlier_commands": earlier_commands(before),
        }
    )


def written(plan: Plan) -> dict[str, Any]:
    """The plan in the manifest, with only the last part of each path."""
    models = [Path(model).name if "/" in model else model for model in plan.models]
    folder = plan.calibration.name if plan.calibration else ""
    return asdict(plan) | {"models": models, "calibration": folder}
