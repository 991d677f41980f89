"""Put what results/paper holds on the README's first screen: python results/readme_table.py

It writes the result, the tables and the figure, and stops where records contradict a finding.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.plots import style
from analysis.plots.quality import quality_figure
from analysis.records.store import load, read_manifest
from analysis.tables.comparisons import EQUAL_BITOPS
from analysis.tables.families import CONTROL, families
from analysis.tables.intervals import Interval
from analysis.tables.roles import from_manifest
from analysis.tables.seeds import first_trainings
from analysis.tables.summary import MISSING, OVERALL, REFERENCE, drop_text, markdown_lines, over_all_images, summary

ROOT = Path(__file__).parent.parent
RUN = ROOT / "results" / "paper"
FIGURE = ROOT / "docs" / "quality"
DATASETS = ["Set5", "Set14", "B100", "Urban100"]
BACKBONES = ["edsr", "carn", "srresnet", "idn"]
SHOWN = ["edsr", "idn"]  # in table and figure, which would be crowded with all four
ABLATIONS = ["profiles:layers_fitted", "profiles:tiles"]  # they crowd the figure
SCHEMES = [REFERENCE, "pams:w8a8", "pams:w8a5", "cadyq", "cadyq:b4-5-6_stride8"]
HEAD = ["Network", "Scheme", *(f"{name} dB" for name in DATASETS), "drop, dB", "FAB", "BitOPs at 720p, G"]
TABLE = re.compile(r"^\| Network \| Scheme \|.*?(?=\n\n)", re.MULTILINE | re.DOTALL)
RESULT = re.compile(r"(?<=<!-- result -->\n).*?(?=<!-- end -->)", re.DOTALL)
FINDINGS = re.compile(r"(?<=<!-- findings -->\n).*?(?=<!-- end -->)", re.DOTALL)


AHEAD = "ahead"
SAVED = "With head, upsampler and tail in FP32, uniform 8 bits already save nearly all BitOPs that can be saved:"


@dataclass(frozen=True)
class Lead:
    """A row of the table of leads over fixed bits of equal BitOPs, and what records have to say for its bold cells.

    Attributes:
        scheme: in question.
        meaning: of the scheme, in words.
        ahead: backbones on which its interval lies above zero.
    """

    scheme: str
    meaning: str
    ahead: tuple[str, ...]

    def cells(self, compared: pd.DataFrame) -> list[str]:
        """The cells of the row: the scheme, and its lead on each backbone, in bold where it is ahead.

        Raises:
            SystemExit: records contradict `ahead`.
        """
        cells = [f"`{self.scheme}`, {self.meaning}"]
        for backbone in BACKBONES:
            row = compared.loc[(backbone, self.scheme)]
            if (row["verdict"] == AHEAD) != (backbone in self.ahead):
                raise SystemExit(
                    f"{self.scheme} on {backbone} is {row['verdict']}; mend its Lead and the README's text"
                )
            lead = f"{Interval(row['mean'], row['low'], row['high']):+.3f}"
            cells.append(f"**{lead}**" if backbone in self.ahead else lead)
        return cells


LEADS = [
    Lead("cadyq", "as published", ()),
    Lead("cadyq:b4-5-6_stride8", "candidates 4, 5 and 6, selector on one pixel in 64", ("edsr",)),
    Lead("cabm", "a table in the place of the selector (CVPR 2023)", ("edsr", "idn")),
    Lead("profiles:layers_fab5", "this project: bits by layer, ranges by patch, FAB 5", tuple(BACKBONES)),
]


def result(everywhere: pd.DataFrame) -> str:
    """The sentence above the figure. That CADyQ is not ahead is checked by its `Lead`."""
    totals = everywhere.set_index(["backbone", "scheme"])
    loss = max(-totals.loc[(backbone, "pams:w8a8"), "delta_db"] for backbone in BACKBONES)
    saved = [
        [totals.loc[(backbone, f"pams:{bits}"), "saved_percent"] for bits in ("w8a8", "w4a4")] for backbone in BACKBONES
    ]
    share = min(eight / four for eight, four in saved)
    return (
        f"**Uniform 8 bits lose at most {loss:.3f} dB on four networks, and save at least {share:.0%} of the BitOPs "
        "that uniform 4 bits save. CADyQ as published is not ahead of fixed bits of equal cost.**"
    ).replace("%", " %")


def rows(table: pd.DataFrame, everywhere: pd.DataFrame) -> list[list[str]]:
    """One row of texts per network: PSNR by dataset, drop and costs over all images."""
    cells = table.set_index(["backbone", "scheme", "dataset"])
    totals = everywhere.set_index(["backbone", "scheme"])
    found = []
    for backbone in SHOWN:
        for scheme in SCHEMES:
            total = totals.loc[(backbone, scheme)]
            psnr = [f"{cells.loc[(backbone, scheme, name), 'psnr_db']:.2f}" for name in DATASETS]
            drop = MISSING if scheme == REFERENCE else drop_text({"scheme": scheme, **total})
            found.append([backbone, scheme, *psnr, drop, f"{total['fab']:.2f}", f"{total['bitops_720p_g']:,.0f}"])
    return found


def savings(everywhere: pd.DataFrame) -> list[list[str]]:
    """A row for uniform 8 bits and one for 4: BitOPs saved and drop on each backbone."""
    totals, found = everywhere.set_index(["backbone", "scheme"]), []
    for scheme in ("pams:w8a8", "pams:w4a4"):
        cells = [totals.loc[(backbone, scheme)] for backbone in BACKBONES]
        texts = [f"{total['saved_percent']:.1f} %, {drop_text({'scheme': scheme, **total})}" for total in cells]
        found.append([f"`{scheme}`", *texts])
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    df, roles = first_trainings(load(RUN)), from_manifest(read_manifest(RUN))
    one = over_all_images(df)
    everywhere, members = summary(one), families(df, roles)
    compared = pd.read_csv(RUN / "tables/comparisons.csv")
    compared = compared[(compared["kind"] == EQUAL_BITOPS) & (compared["dataset"] == OVERALL)]
    compared = compared.set_index(["backbone", "scheme"])
    rule = ["---", *["---:"] * len(BACKBONES)]
    leads = markdown_lines([["Lead over fixed bits, dB", *BACKBONES], rule, *(lead.cells(compared) for lead in LEADS)])
    saved = markdown_lines([["BitOPs saved, drop in dB", *BACKBONES], rule, *savings(everywhere)])
    table = markdown_lines([HEAD, ["---", "---", *["---:"] * (len(HEAD) - 2)], *rows(summary(df), everywhere)])
    readme = ROOT / "README.md"
    text = TABLE.sub(lambda _: table, readme.read_text(encoding="utf-8"), count=1)
    text = RESULT.sub(lambda _: f"\n{result(everywhere)}\n\n", text, count=1)
    text = FINDINGS.sub(lambda _: f"\n{leads}\n\n{SAVED}\n\n{saved}\n\n", text, count=1)
    readme.write_text(text, encoding="utf-8")
    # results/paper shows controls too
    named = [name for name, member in members.items() if member.kind != CONTROL and name not in ABLATIONS]
    shown = everywhere[everywhere["backbone"].isin(SHOWN) & everywhere["scheme"].isin(named)]
    with style.context():
        style.save(quality_figure(shown, members), FIGURE)[1].unlink()  # the README shows the PNG


if __name__ == "__main__":
    main()
