"""One style for every figure: colour-blind-safe, legible in a column of 3.3 in, the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cadyq.utils.errors import UserError
from cadyq.utils.files import write_atomic

COLUMN_IN = 3.3  # width of one column of a two-column paper
PAGE_IN = 7.0
PNG_DPI = 200
SCREEN_DPI = 110

# Okabe and Ito's colours without yellow (too pale on white) and with brown, and markers told apart in black and
# white. The lists have coprime lengths, so 72 schemes get different pairs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")

_OVERRIDES: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.4",
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text
    "text.parse_math": False,  # names of files may hold a dollar sign
}


@contextmanager
def context() -> Iterator[None]:
    """Apply the style to figures made inside the block. Global settings, as of a notebook, are kept."""
    theme = {**sns.plotting_context("paper"), **sns.axes_style("whitegrid"), **_OVERRIDES}
    with mpl.rc_context(theme):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure (inches) on the Agg canvas, outside pyplot: no display and nothing left open."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def look(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each name, by its position."""
    return {n: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, n in enumerate(names)}


def save(made: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` (200 dpi) and ``stem.pdf``, without time stamps or program names; returns paths."""
    nothing = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    paths = []
    for kind, metadata in nothing.items():
        buffer = io.BytesIO()
        made.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata)
        # the second file reuses this layout, since finding it is slow; "none" would draw once more to find it
        made.set_layout_engine(None)
        paths.append(write_atomic(stem.with_name(f"{stem.name}.{kind}"), buffer.getvalue()))
    return paths


class Picture:
    """A drawn figure. A notebook shows it as the value of a cell."""

    def __init__(self, png: bytes) -> None:
        self.png = png

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:  # without an address, since notebooks store it and are compared
        return "Picture"


def picture(
    draw: Callable[..., Figure | None], *args: Any, dpi: int = SCREEN_DPI, colours: int | None = 256, **kwargs: Any
) -> Picture:
    """The figure of a plot function of `analysis`, in this style.

    Args:
        draw: function that returns a figure, or None without data.
        *args: its arguments.
        dpi: pixels per inch.
        colours: largest number of colours; 256 halve the size of a chart. None keeps all, for photographs.
        **kwargs: its keyword arguments.

    Raises:
        UserError: it draws nothing.
    """
    with context():
        made = draw(*args, **kwargs)
        if made is None:
            raise UserError(f"{draw.__name__} has nothing to plot; the records lack its columns")
        buffer = io.BytesIO()
        made.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB")
    buffer = io.BytesIO()
    (image.quantize(colours, dither=Image.Dither.NONE) if colours else image).save(buffer, "PNG", optimize=True)
    return Picture(buffer.getvalue())


def short(text: str, limit: int = 22) -> str:
    """One line of at most ``limit`` characters, cut in its middle: names often differ at the end."""
    text = " ".join(str(text).split())
    kept = limit - 1
    return text if len(text) <= limit else f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


def short_names(names: Iterable[str], limit: int = 22) -> dict[str, str]:
    """A label for each name: `short`, with more characters where two names need them to differ."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(map(str, names)):
        alike.setdefault(short(name, limit), []).append(name)
    found: dict[str, str] = {}
    for label, same in alike.items():
        complete = limit >= max(map(len, same))
        found |= dict.fromkeys(same, label) if len(same) == 1 or complete else short_names(same, limit + 4)
    return found


def short_number(value: float) -> str:
    """128, 4.1k, 131k, 2.1M: at most four characters."""
    for power, unit in ((1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.1f}{unit}" if value < 10 * power else f"{value / power:.0f}{unit}"
    return f"{value:.3g}"
