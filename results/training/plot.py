"""Draw `parents.csv`, PSNR of the FP32 parents on held-out photographs: `python results/training/plot.py`."""

from pathlib import Path

import pandas as pd
import seaborn as sns

from analysis.plots.style import COLUMN_IN, context, figure, save

HERE = Path(__file__).parent


def main() -> None:
    rows = pd.read_csv(HERE / "parents.csv")
    with context():
        made = figure(COLUMN_IN, 2.4)
        axes = made.subplots()
        sns.lineplot(rows, x="step", y="held_out_psnr_db", hue="backbone", style="backbone", markers=True, ax=axes)
        axes.set(xlabel="optimizer steps", ylabel="PSNR, RGB (dB)")
        save(made, HERE / "parents")


if __name__ == "__main__":
    main()
