"""Draw `parents.csv`, PSNR of the FP32 parents on held-out photographs, for the page on training.

Run it as `python results/training/plot.py`.
"""

from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from analysis.plots.style import COLUMN_IN, figure, picture

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"


def curves(rows: pd.DataFrame) -> Figure:
    """PSNR against steps, a line for each backbone."""
    made = figure(COLUMN_IN, 2.4)
    axes = made.subplots()
    thousands = rows.assign(step=rows["step"] / 1000)
    sns.lineplot(thousands, x="step", y="held_out_psnr_db", hue="backbone", style="backbone", markers=True, ax=axes)
    axes.set(xlabel="optimizer steps (thousands)", ylabel="PSNR on RGB (dB)")
    axes.legend(title=None)
    return made


if __name__ == "__main__":
    (DOCS / "parents.png").write_bytes(picture(curves, pd.read_csv(HERE / "parents.csv"), dpi=200).png)
