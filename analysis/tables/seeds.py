"""The spread between trainings of one recipe with other seeds.

If a difference between two schemes is not larger than this spread, one training of each does not show which is better,
for any interval over images.

A network whose tag is or ends in ``seed1``, ``seed2``, ... is a further training of the network without that ending:
``cadyq:seed1`` of ``cadyq``, ``cadyq:fast_seed1`` of ``cadyq:fast``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis.tables.comparisons import EQUAL_BITOPS_PAPER
from analysis.tables.summary import REFERENCE, by_dataset, markdown_table, without_lone_scale
from cadyq.utils.files import write_text

DROP, FAB, LEAD = "PSNR drop against fp32, dB", "FAB, bits", f"PSNR {EQUAL_BITOPS_PAPER}, dB"
KEYS = ["quantity", "scale", "mode", "backbone", "scheme", "dataset"]
STATISTICS = ["seeds", "mean", "std", "low", "high"]
_FORMS = {DROP: "+.3f", FAB: ".2f", LEAD: "+.3f"}
_TAG = re.compile(r"[:_]seed(\d+)$")


def first_trainings(df: pd.DataFrame) -> pd.DataFrame:
    """The records without further trainings of a network, for each scale and mode.

    Of trainings that differ only in the seed, the one without a seed in its tag stays or, if there is none, that of the
    lowest seed.
    """
    base = df["scheme"].str.replace(_TAG, "", regex=True)
    seed = df["scheme"].str.extract(_TAG)[0].astype(float).fillna(-1)
    return df[seed == seed.groupby([df["scale"], df["mode"], df["backbone"], base]).transform("min")]


def spread(df: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (of a sample) and range over the seeds of each network with several trainings.

    Args:
        df: records, as from `analysis.records.load`.
        compared: their comparisons, as from `analysis.tables.comparisons.comparisons`.

    Returns:
        A row for each quantity (`DROP` and `LEAD` in dB, `FAB` in bits), network and dataset: ``KEYS``, then
        ``STATISTICS``. ``seeds`` is the number of trainings.
    """
    values = pd.concat([*_of_records(df), _of_comparisons(compared)], ignore_index=True)
    values["training"] = values["scheme"]
    values["scheme"] = values["scheme"].str.replace(_TAG, "", regex=True)
    again = values.loc[values["training"] != values["scheme"], ["backbone", "scheme"]].drop_duplicates()
    groups = values.merge(again).groupby(KEYS, sort=False)["value"]
    table = groups.agg(seeds="count", mean="mean", std="std", low="min", high="max").reset_index()
    return table[table["seeds"] > 1].reset_index(drop=True)


def _of_records(df: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Means over the images of a dataset."""
    keys = [name for name in KEYS if name != "quantity"]
    means = df[df["macs_g"] > 0].groupby(keys, sort=False)[["psnr_db", "fab"]].mean().reset_index()
    full = means[means["scheme"] == REFERENCE].drop(columns=["scheme", "fab"])
    beside = means.merge(full, on=[name for name in keys if name != "scheme"], suffixes=("", "_full"))
    for quantity, frame, value in (
        (DROP, beside, beside["psnr_db"] - beside["psnr_db_full"]),
        (FAB, means, means["fab"]),
    ):
        yield frame[keys].assign(quantity=quantity, value=value)


def _of_comparisons(compared: pd.DataFrame) -> pd.DataFrame:
    leads = compared[compared["kind"] == EQUAL_BITOPS_PAPER]
    return leads[["scale", "mode", "backbone", "scheme", "dataset"]].assign(quantity=LEAD, value=leads["mean"])


def write_seeds(table: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Write ``tables/seeds.csv`` (long form) and ``tables/seeds.md``. Without several trainings nothing is written."""
    if table.empty:
        return []
    folder = Path(out_dir) / "tables"
    text = "\n\n".join(
        [SEEDS_NOTE, *(f"{heading}\n\n{markdown_table(shown)}" for heading, shown in by_quantity(table))]
    )
    return [
        write_text(folder / "seeds.csv", table.to_csv(index=False, lineterminator="\n")),
        write_text(folder / "seeds.md", f"{text}\n"),
    ]


def by_quantity(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A heading and a table of texts for each quantity, with a row for each network and a column for each dataset."""
    found = []
    for (mode, quantity), rows in table.groupby(["mode", "quantity"], sort=False):
        rows = rows.assign(text=[_text(*row) for row in rows[["quantity", *STATISTICS]].to_numpy()])
        shown = by_dataset(rows, ["scale", "backbone", "scheme"])
        found.append((f"Mode {mode}: {quantity}", without_lone_scale(shown)))
    return found


def _text(quantity: str, seeds: int, mean: float, std: float, low: float, high: float) -> str:
    form = _FORMS[quantity]
    return f"{mean:{form}} ± {std:{form.lstrip('+')}} ({low:{form}} to {high:{form}}; {seeds} seeds)"


SEEDS_NOTE = (
    "The same recipe trained again with other seeds (tags seed1, seed2, ...), each from a parent that was trained with "
    "that seed too: mean ± standard deviation (lowest to highest) over trainings. Fixed bits, "
    "where they are compared with, are those of the first training."
)
