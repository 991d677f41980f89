"""Progress of a run: a bar or plain lines, history.csv, and TensorBoard if it is installed."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from pathlib import Path
from typing import Any

from cadyq.utils.bars import bar
from cadyq.utils.files import write_text

Row = dict[str, float]
log = logging.getLogger(__name__)


class History:
    """history.csv: one row per measurement on held-out photographs.

    Attributes:
        rows: all measurements so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._written = 0

    def restore(self, rows: list[Row]) -> None:
        """Continue from the rows of a checkpoint. Rows written after it are measured again."""
        self.rows, self._written = rows, len(rows)
        if rows:
            write_text(self.path, _csv(rows, header=True))
        else:
            self.path.unlink(missing_ok=True)

    def write(self) -> None:
        """Append the rows that the file does not hold yet."""
        new = self.rows[self._written :]
        if new:
            with self.path.open("a", newline="") as file:
                file.write(_csv(new, header=self._written == 0))
        self._written = len(self.rows)


def _csv(rows: list[Row], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class TrainingProgress:
    """A bar on a terminal, otherwise a line for each measurement, with loss, FAB, images per second and time left.

    Args:
        name: name of the run.
        step: first step.
        steps: last step.
        batch: images per step.
        shown: False in all processes but the first.
    """

    def __init__(self, name: str, step: int, steps: int, batch: int, shown: bool) -> None:
        self._bar = bar(total=steps, initial=step, disable=None if shown else True, desc=name)
        self._lines = shown and not sys.stderr.isatty()
        self._first, self._steps, self._batch = step, steps, batch
        self._started = time.monotonic()
        self._measured = ""

    def seconds(self) -> float:
        """Seconds since this process started its part of the run."""
        return time.monotonic() - self._started

    def images_per_second(self, step: int) -> float:
        """Mean throughput of this process's part of the run, up to `step`."""
        return (step - self._first) * self._batch / max(self.seconds(), 1e-9)

    def advance(self, step: int, row: Row) -> None:
        """Show that `step` steps are done."""
        speed = self.images_per_second(step)
        now = f"loss {row['loss']:.4g}, FAB {row['fab']:.2f}"
        self._bar.set_postfix_str(f"{now}{self._measured}, {speed:.1f} images/s", refresh=False)
        self._bar.update()

    def measured(self, step: int, row: Row) -> None:
        """Show a measurement on held-out photographs."""
        self._measured = f", held out {row['held_out_psnr_db']:.2f} dB at FAB {row['held_out_fab']:.2f}"
        if self._lines:
            speed = self.images_per_second(step)
            left = (self._steps - step) * self._batch / speed if speed else 0.0
            values = " ".join(f"{key}={value:.5g}" for key, value in row.items())
            print(f"{values} images_per_s={speed:.3g} left_s={left:.0f}", flush=True)

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()


class TensorBoard:
    """Scalars for TensorBoard in `folder`; does nothing if the package is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info("TensorBoard logs are off: install them with pip install 'cadyq[train]'")
            return
        self._writer = SummaryWriter(str(folder), purge_step=step)

    def add(self, row: Row) -> None:
        """Write all values of a row at its step."""
        if self._writer is not None:
            for key, value in row.items():
                if key != "step":
                    self._writer.add_scalar(key, value, int(row["step"]))

    def close(self) -> None:
        """Write what is buffered and close the file."""
        if self._writer is not None:
            self._writer.close()
