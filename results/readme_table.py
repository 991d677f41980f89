"""Put what results/paper holds on the README's first screen: python results/readme_table.py

It writes the table, the findings and the figure, and stops where records contradict a finding.
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
FINDINGS = re.compile(r"(?<=<!-- findings -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Finding:
    """A sentence about the lead of one scheme over fixed bits of equal BitOPs, and what records have to say for it.

    Attributes:
        sentence: before the figures.
        scheme: in question.
        verdicts: backbone -> the verdict that the sentence needs.
    """

    sentence: str
    scheme: str
    verdicts: dict[str, str]

    def text(self, compared: pd.DataFrame) -> str:
        """The sentence with its figures.

        Raises:
            SystemExit: records contradict it.
        """
        parts = []
        for backbone, verdict in self.verdicts.items():
            row = compared.loc[(backbone, self.scheme)]
            if row["verdict"] != verdict:
                raise SystemExit(f"{self.scheme} on {backbone} is {row['verdict']}, not {verdict}: {self.sentence!r}")
            parts.append(f"{Interval(row['mean'], row['low'], row['high']):+.3f} on {backbone}")
        return f"- {self.sentence}: {', '.join(parts)} (dB, 95 % interval)."


CLAIMS = [
    Finding(
        "CADyQ as published is not ahead of fixed bits (PAMS at equal BitOPs) once its selector is counted",
        "cadyq",
        {"edsr": "not clear", "carn": "behind", "srresnet": "behind", "idn": "not clear"},
    ),
    Finding(
        "With candidates 4, 5 and 6 and a selector that reads one pixel in 64, it is ahead on one of four backbones",
        "cadyq:b4-5-6_stride8",
        {"edsr": "ahead", "carn": "not clear", "srresnet": "behind", "idn": "not clear"},
    ),
    Finding(
        "CABM (CVPR 2023), which replaces the selector by a table, is ahead on two of four",
        "cabm",
        {"edsr": "ahead", "carn": "not clear", "srresnet": "behind", "idn": "ahead"},
    ),
    Finding(
        "Bits by layer from measured errors at a FAB of 5, with ranges that follow each patch, are ahead on all four",
        "profiles:layers_fab5",
        {"edsr": "ahead", "carn": "ahead", "srresnet": "ahead", "idn": "ahead"},
    ),
]


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


def eight_bits(everywhere: pd.DataFrame) -> str:
    """The finding on uniform 8 bits."""
    totals = everywhere.set_index(["backbone", "scheme"])
    parts = []
    for backbone in BACKBONES:
        eight, four = (totals.loc[(backbone, f"pams:{bits}")] for bits in ("w8a8", "w4a4"))
        loss = drop_text({"scheme": "pams:w8a8", **eight})
        saved = f"w8a8 saves {eight['saved_percent']:.1f} % at {loss} dB"
        parts.append(f"on {backbone} {saved}, w4a4 saves {four['saved_percent']:.1f} %")
    return f"- Uniform 8 bits already save nearly all BitOPs that can be saved in these layers: {'; '.join(parts)}."


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    df, roles = first_trainings(load(RUN)), from_manifest(read_manifest(RUN))
    one = over_all_images(df)
    everywhere, members = summary(one), families(df, roles)
    compared = pd.read_csv(RUN / "tables/comparisons.csv")
    compared = compared[(compared["kind"] == EQUAL_BITOPS) & (compared["dataset"] == OVERALL)]
    compared = compared.set_index(["backbone", "scheme"])
    findings = [*(claim.text(compared) for claim in CLAIMS), eight_bits(everywhere)]
    table = markdown_lines([HEAD, ["---", "---", *["---:"] * (len(HEAD) - 2)], *rows(summary(df), everywhere)])
    readme = ROOT / "README.md"
    text = TABLE.sub(lambda _: table, readme.read_text(encoding="utf-8"), count=1)
    readme.write_text(FINDINGS.sub(lambda _: "\n".join(findings) + "\n", text, count=1), encoding="utf-8")
    # results/paper shows controls too
    named = [name for name, member in members.items() if member.kind != CONTROL and name not in ABLATIONS]
    shown = everywhere[everywhere["backbone"].isin(SHOWN) & everywhere["scheme"].isin(named)]
    with style.context():
        style.save(quality_figure(shown, members), FIGURE)[1].unlink()  # the README shows the PNG


if __name__ == "__main__":
    main()
