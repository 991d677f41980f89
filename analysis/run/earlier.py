"""Cells that earlier commands measured into the same folder. They stay in its tables, beside those of this command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from analysis.records import store as records
from analysis.run import models
from analysis.run.networks import code_of
from analysis.run.plan import Plan, parent_name
from analysis.run.source import Source
from cadyq.utils.errors import UserError
from cadyq.utils.wording import counted


def with_earlier(cells: list[dict[str, Any]], earlier: list[dict[str, Any]], preset: Plan) -> list[dict[str, Any]]:
    """The cells of this command and of earlier ones, in the order of the preset; as they are without earlier ones.

    Names that are not in the preset follow in order of appearance, so that the rows of a backbone stay together.
    """
    if not earlier:
        return cells
    every = earlier + cells
    names = {"dataset": preset.datasets, "backbone": preset.backbones, "scheme": preset.schemes, "mode": preset.modes}
    orders = {column: dict.fromkeys([*known, *(cell[column] for cell in every)]) for column, known in names.items()}
    ranks = {column: {name: rank for rank, name in enumerate(order)} for column, order in orders.items()}
    return sorted(every, key=lambda cell: [rank[cell[column]] for column, rank in ranks.items()])


def earlier_cells(out: Path, before: Mapping[str, Any], statuses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells of earlier commands on the same folder that have a record. They stay in its tables.

    An interrupted command lists cells that it did not reach; a record may have been deleted. Both are left out.

    Args:
        out: run folder.
        before: its manifest, which earlier commands wrote.
        statuses: entries of the cells of this command.
    """
    now = [tuple(cell[name] for name in records.CELL_COLUMNS) for cell in statuses]
    return [
        cell | {"status": "cached"}
        for cell in before.get("cells", [])
        if cell["status"] not in records.NOT_RUN
        and tuple(cell[name] for name in records.CELL_COLUMNS) not in now
        and records.record_path(out, records.cell_of(cell)).is_file()
    ]


def earlier_commands(before: Mapping[str, Any]) -> list[str]:
    """A line for each earlier command on the same folder that measured a cell, oldest first."""
    lines: list[str] = before.get("earlier_commands", [])
    if all(cell["status"] != "measured" for cell in before.get("cells", [])):
        return lines
    created, commit, command = (str(before.get(name, "unknown")) for name in ("created", "git_commit", "command"))
    changed = " with changes" if before.get("git_changes") else ""
    return [*lines, f"{created}, commit {commit[:12]}{changed}: {command}"]


def check_earlier(
    plan: Plan,
    sources: Sequence[Source],
    out: Path,
    before: Mapping[str, Any],
    statuses: list[dict[str, Any]],
    images: Mapping[str, Mapping[str, str]],
) -> None:
    """Refuse to put cells of this command beside earlier ones of different images, weights or calibration.

    A row of a table or a drop would mix different things. An earlier cell whose record was deleted is not compared.

    Args:
        plan: plan of this command.
        sources: its networks.
        out: run folder.
        before: its manifest, which earlier commands wrote.
        statuses: entries of the cells of this command.
        images: for each dataset, the hash of each image by its name.

    Raises:
        UserError: names an earlier record that does not fit, and the remedy.
    """
    known: Mapping[str, str] = before.get("parents_sha256", {})
    other = {name for name, sha256 in plan.parents_sha256().items() if known.get(name, sha256) != sha256}
    wrong: list[tuple[records.Cell, str]] = []
    for cell in map(records.cell_of, earlier_cells(out, before, statuses)):
        stored = records.read_key(out, cell) if cell.scale == plan.scale else None
        if stored is None:
            continue
        now = _source_now(plan, sources, cell)
        if parent_name(cell.backbone, cell.scale) in other:
            wrong.append((cell, f"on another network called {cell.backbone}"))
        elif now is not None and now.sha256() != stored.weights:
            wrong.append((cell, f"on {cell.backbone} with other weights or another calibration"))
        elif stored.images != images.get(cell.dataset, stored.images):
            wrong.append((cell, f"on different images of {cell.dataset}"))
    if wrong:
        cell, what = wrong[0]
        path = records.record_path(out, cell).relative_to(out)
        alike = f" and {counted(len(wrong) - 1, 'more record')}" if len(wrong) > 1 else ""
        raise UserError(f"{out}: an earlier command measured {cell.scheme} {what}; delete {path}{alike} like it, "
                        "or choose another --out")  # fmt: skip


def _source_now(plan: Plan, sources: Sequence[Source], cell: records.Cell) -> Source | None:
    """The network of an earlier cell as this command has it: its own, or a --model that it calibrates.

    None if this command has neither the network nor its calibration.
    """
    own = [source for source in sources if source.backbone == cell.backbone]
    model = next((source.model for source in own if source.model and source.calibration_sha256), None)
    if model is not None and cell.scheme not in [source.scheme for source in own]:
        with suppress(UserError):  # the plug-in of the scheme is not loaded
            own = models.sources([model], [cell.scheme], plan.scale, plan.calibration)
    return next((source for source in own if source.scheme == cell.scheme and not source.reason), None)


def older_code(out: Path, earlier: Sequence[Mapping[str, Any]], named: Sequence[str]) -> int:
    """The number of earlier cells that were measured with other code.

    Args:
        out: run folder.
        earlier: their entries.
        named: networks of --model.
    """
    older = 0
    for cell in map(records.cell_of, earlier):
        stored = records.read_key(out, cell)
        with suppress(UserError):  # its plug-in is not loaded, or its network is not named
            older += stored is not None and stored.code != code_of(cell.backbone, cell.scheme, named)
    return older


def kept_notes(out: Path, now: list[dict[str, Any]], named: Sequence[str]) -> list[str]:
    """Notes on cells that other code measured: a line for this command, and a line for earlier ones.

    This command has such cells with `--keep-measured` only. Otherwise it measures them again.

    Args:
        out: run folder.
        now: entries of this command.
        named: networks of --model.
    """
    kept = sum(cell["status"] == "kept" for cell in now)
    older = older_code(out, earlier_cells(out, records.read_manifest(out), now), named)
    notes = [f"other code measured {counted(kept, 'kept cell')}; leave out --keep-measured to measure again"]
    notes += [f"other code measured {counted(older, 'cell')} of earlier commands; run these commands again"]
    return [note for note, count in zip(notes, (kept, older), strict=True) if count]
