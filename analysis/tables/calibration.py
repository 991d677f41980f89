"""The loss of calibrated networks, beside the effort of their calibration.

Quality comes from the records of the run, seconds and numbers of images from the manifest of the zoo. The module writes
`tables/calibration.csv` and `tables/calibration.md`, the same losses by bit-width in `tables/calibration_drops.md`, and
the values of papers in `tables/calibration_published.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.records import store
from analysis.tables.intervals import Interval
from analysis.tables.summary import MISSING, REFERENCE, markdown_table, summary
from cadyq.checkpoints.zoo import read_manifest
from cadyq.schemes.specs import SPEC
from cadyq.utils.errors import UserError
from cadyq.utils.files import write_text

MODE = "image"
PUBLISHED = Path(__file__).parent / "published" / "calibration.csv"
PUBLISHED_NOTE = (
    "As printed; not measured here. Other full-precision networks and other layers in FP32: only a drop can be "
    "compared, and it is given where the paper's own full-precision value was read."
)
NETWORK = ["scale", "backbone", "scheme"]
_SAME = 1e-6  # bits between FABs that are equal but for rounding


def efforts(folder: Path) -> pd.DataFrame:
    """The effort of calibration by scale, network and scheme: images, patches, seconds, and kilobytes of the file.

    A network has a row for each name that it has in records.
    """
    rows = [
        {
            "scale": row["scale"],
            "backbone": name,
            "scheme": row["scheme"],
            "images": row["images"],
            "data": row["data"],
            "seconds": row["seconds"],
            "steps": sum(stage["steps"] for stage in row["stages"]),
            "kilobytes": row["bytes"] / 1000,
        }
        for row in read_manifest(folder)["networks"]
        if "stages" in row
        for name in _names_in_records(row)
    ]
    return pd.DataFrame(rows, columns=[*NETWORK, "images", "data", "seconds", "steps", "kilobytes"])


def _names_in_records(row: dict[str, Any]) -> set[str]:
    """The backbone of a network of a zoo, and the name of its parent, which `run_all --model PARENT` gives it."""
    parent = row["parent"]["name"].rpartition(":")[2]
    return {row["backbone"], Path(parent).stem}


def measured(df: pd.DataFrame) -> pd.DataFrame:
    """A row for each (scale, backbone, scheme, dataset) of the image-wise records: PSNR, drop, FAB, BitOPs.

    The column `count` is the number of images that they are means of, `varies` whether the FAB of the network differs
    between images. FAB and BitOPs are NaN without a network.
    """
    rows = df[df["mode"] == MODE]
    part = summary(rows).rename(columns={"images": "count"})
    spread = rows.groupby(NETWORK)["fab"].agg(np.ptp)
    part["varies"] = spread.reindex(pd.MultiIndex.from_frame(part[NETWORK])).to_numpy() > _SAME
    part.loc[part["macs_g"] == 0, ["fab", "bitops_720p_g"]] = np.nan  # interpolation has no bits to count
    columns = ["psnr_db", "delta_db", "delta_low_db", "delta_high_db", "fab", "bitops_720p_g", "count", "varies"]
    return part[[*NETWORK, "dataset", *columns]]


def joined(df: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """`measured` with the effort of calibration; NaN if the zoo has no such network."""
    found = measured(df).merge(efforts(folder), "left", on=NETWORK)
    order = {backbone: place for place, backbone in enumerate(found["backbone"].unique())}
    return found.sort_values("backbone", key=lambda names: names.map(order), kind="stable")


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """The printed table: a row for each network and scheme, a column for each dataset.

    Costs are over all images. They are a dash for a network whose bits differ between images and that was not measured
    on every dataset of its scale.
    """
    rows: list[dict[str, str]] = []
    datasets = table.groupby("scale")["dataset"].nunique().to_dict()
    for (scale, _, scheme), part in _labelled(table).groupby(NETWORK, sort=False):
        row = {"Network": str(part["Network"].iloc[0]), "Scheme": str(scheme)}
        row |= {f"{one['dataset']} dB": f"{one['psnr_db']:.2f}" for one in part.to_dict("records")}
        row |= {f"drop on {one['dataset']}": _drop(one, scheme) for one in part.to_dict("records")}
        first = part.iloc[0]
        known = pd.notna(first["seconds"])
        fab, bitops = np.average(part[["fab", "bitops_720p_g"]], axis=0, weights=part["count"])
        comparable = pd.notna(fab) and (len(part) == datasets[scale] or not part["varies"].any())
        row["FAB"] = f"{fab:.2f}" if comparable else MISSING
        row["BitOPs at 720p, G"] = f"{bitops:,.0f}" if comparable else MISSING
        row["Images"] = f"{first['images']:.0f}" if known else MISSING
        row["Steps"] = f"{first['steps']:.0f}" if known else MISSING
        row["Seconds"] = f"{first['seconds']:.0f}" if known else MISSING
        row["KB"] = f"{first['kilobytes']:.0f}" if known else MISSING
        rows.append(row)
    return pd.DataFrame(rows).fillna(MISSING).set_index(["Network", "Scheme"])


def drops(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The drop of PSNR on a dataset in dB: a row for each scheme, more bits first, and a column for each network."""
    rows = _labelled(table)
    part = rows[(rows["dataset"] == dataset) & (rows["scheme"] != REFERENCE)].rename(columns={"scheme": "Scheme"})
    wide = part.pivot_table("delta_db", ["Bits", "Scheme"], "Network", sort=False)
    return _more_bits_first(wide.map(lambda drop: MISSING if pd.isna(drop) else f"{drop:+.3f}"))


def best(table: pd.DataFrame) -> pd.DataFrame:
    """The scheme with the smallest drop for each bit-width, network and dataset, with the seconds of its calibration.

    Only schemes that name their bits, such as `mse:w4a4`, are compared.
    """
    rows = _labelled(table)
    rows = rows[rows["Bits"].ne(MISSING) & rows["delta_db"].notna()].reset_index(drop=True)
    first = rows.loc[rows.groupby(["Bits", "Network", "dataset"], sort=False)["delta_db"].idxmax()]
    cells = [
        f"{row['scheme'].replace(':' + row['Bits'], '', 1)} {row['delta_db']:+.3f}"
        + (f" ({row['seconds']:.0f} s)" if pd.notna(row["seconds"]) else "")
        for row in first.to_dict("records")
    ]
    wide = first.assign(cell=cells).pivot_table("cell", ["Bits", "Network"], "dataset", aggfunc="first", sort=False)
    return _more_bits_first(wide[[name for name in table["dataset"].unique() if name in wide]].fillna(MISSING))


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the names of networks, which have their scale if there are several, and the bits of schemes."""
    several = table["scale"].nunique() > 1
    names = table["backbone"] + (" x" + table["scale"].astype(str) if several else "")
    return table.assign(Network=names, Bits=table["scheme"].map(_bits))


def _bits(scheme: str) -> str:
    """The bit-width that a scheme names, such as w4a4; a dash if it names none."""
    found = SPEC.fullmatch(scheme)
    return f"w{found['weight']}a{found['act']}" if found and found["weight"] else MISSING


def _more_bits_first(wide: pd.DataFrame) -> pd.DataFrame:
    """A table with the index level Bits in falling order; rows of the same bits keep theirs."""
    ordered = wide.sort_index(level="Bits", ascending=False, kind="stable", sort_remaining=False)
    return ordered.rename_axis(columns=None)


def _drop(row: dict[Any, Any], scheme: Any) -> str:
    return MISSING if scheme == REFERENCE else f"{Interval.of(row, 'delta', '_db'):+.3f}"


def published_texts() -> pd.DataFrame:
    """The values of papers, a row for each network of a text."""
    rows = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)
    bits = "w" + rows["weight_bits"] + "a" + rows["act_bits"]
    drop = [
        f"{float(psnr) - float(fp32):+.2f}" if fp32 else MISSING
        for psnr, fp32 in zip(rows["psnr_db"], rows["fp32_db"], strict=True)
    ]
    shown = {
        "Method": rows["method"],
        "Paper": rows["paper"],
        "Network": rows["network"],
        "Bits": bits,
        "Dataset": rows["dataset"],
        "dB": rows["psnr_db"],
        "FP32 dB": rows["fp32_db"].replace("", MISSING),
        "drop": drop,
        "Source": rows["source"],
        "Read in": rows["read"],
    }
    return pd.DataFrame(shown).set_index(["Method", "Paper", "Network", "Bits"])


def write(run: Path, folder: Path) -> list[Path]:
    """Write the tables of a run whose networks are in the zoo `folder`.

    Raises:
        UserError: the run has no image-wise record.
    """
    df = store.load(run)
    if df.empty or MODE not in set(df["mode"]):
        raise UserError(f"{run}: holds no image-wise records; measure with --modes {MODE}")
    table = joined(df, folder)
    out = run / "tables"
    parts = {"Best": best(table)} | {name: drops(table, name) for name in table["dataset"].unique()}
    by_bits = "\n\n".join(f"## {name}\n\n{markdown_table(part)}" for name, part in parts.items())
    published = f"{markdown_table(published_texts())}\n\n{PUBLISHED_NOTE}\n"
    return [
        write_text(out / "calibration.csv", table.drop(columns="varies").to_csv(index=False, lineterminator="\n")),
        write_text(out / "calibration.md", f"{markdown_table(texts(table))}\n"),
        write_text(out / "calibration_drops.md", f"{by_bits}\n"),
        write_text(out / "calibration_published.md", published),
    ]
