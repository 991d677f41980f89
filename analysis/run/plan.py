"""From the options of a command to the list of cells to measure."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.records.store import Cell
from analysis.run import models
from analysis.run.networks import checked, find, has_weights
from analysis.run.source import Source
from cadyq.checkpoints.zoo import zoo_rows
from cadyq.metrics.measure import MODES
from cadyq.models import spandrel
from cadyq.models.network import BACKBONES
from cadyq.plugins import Plugin
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.schemes.specs import scheme_of, with_outer_bits_of
from cadyq.utils import toml
from cadyq.utils.errors import UserError

log = logging.getLogger(__name__)
PRESETS = Path(__file__).parent / "presets.toml"
ALL_OF_THE_ZOO = "zoo"
NO_PLUGIN = Plugin((), ())


@dataclass(frozen=True)
class Plan:
    """What a run measures, names checked and in the order of the tables.

    Attributes:
        backbones, schemes, datasets, scale, modes: what the cells are made of.
        of_the_zoo: schemes that only the word "zoo" named, so that nothing is missing where a backbone has none.
        models: networks beside the backbones, as `cadyq.load_model` takes them.
        calibration: folder of LR images that models are calibrated on; None for those inside scikit-image.
    """

    backbones: tuple[str, ...]
    schemes: tuple[str, ...]
    datasets: tuple[str, ...]
    scale: int
    modes: tuple[str, ...]
    of_the_zoo: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    calibration: Path | None = None

    def sources(self) -> list[Source]:
        """Every (backbone, scheme) of the plan. Interpolation has nothing to quantize and runs unquantized only."""
        found = [
            find(backbone, scheme, self.scale)
            for backbone in self.backbones
            for scheme in self.schemes
            if _can_play(backbone, scheme)
        ]
        found = [source for source in found if not (source.reason and source.scheme in self.of_the_zoo)]
        return found + models.sources(self.models, self.schemes, self.scale, self.calibration)

    def cells(self, source: Source, dataset: str) -> list[Cell]:
        return [Cell(source.backbone, source.scheme, self.scale, dataset, mode) for mode in self.modes]


def _can_play(backbone: str, scheme: str) -> bool:
    """Whether there is something to quantize, or nothing that quantizes."""
    try:
        plain = scheme_of(scheme)
        nothing = plain.weight_quantizer() is None and plain.outer_bits == FULL_PRECISION
        return has_weights(backbone) or nothing
    except UserError:
        raise
    except Exception:  # of a plug-in: `find` says why
        return True


def presets() -> dict[str, dict[str, list[str]]]:
    return toml.loads(PRESETS.read_text())


def _zoo() -> tuple[list[str], list[str]]:
    """Backbones and schemes of the zoos, in the manifests' order.

    A scheme that searches over HR runs hundreds of forwards an image: it is measured where it is asked for by name. A
    network whose scheme or backbone is unknown is named and left out: that of a plug-in, or of somebody else's file.
    """
    backbones, schemes = [], []
    for row in zoo_rows():
        try:
            BACKBONES.get(row["backbone"])
            reads_hr = scheme_of(row["scheme"]).reads_hr
        except UserError as error:
            log.warning("%s of the zoo is skipped: %s", row["file"], _remedy(row, error))
            continue
        if not reads_hr:
            backbones.append(row["backbone"])
            schemes.append(row["scheme"])
    return backbones, schemes


def _remedy(row: Mapping[str, Any], error: UserError) -> str:
    """What to do about a network of the zoo whose scheme or backbone is unknown."""
    model = row.get("calibrated_from", "")
    if model.startswith(spandrel.PREFIX):
        return f"it is no backbone of this project; give it as --model {model}"
    return f"{error} (or give its --plugin)"


def _expand(names: Sequence[str], zoo: Sequence[str]) -> list[str]:
    """Replace "zoo" by the names of the zoo; drop repetitions."""
    wide = [name for entry in names for name in (zoo if entry == ALL_OF_THE_ZOO else [entry])]
    return list(dict.fromkeys(wide))


def both_ways(specs: Sequence[str], outer_bits: int) -> tuple[str, ...]:
    """Each scheme as it is, and beside it with its outer layers at these bits."""
    pairs = [(spec, with_outer_bits_of(spec, outer_bits)) for spec in specs]
    return tuple(dict.fromkeys(spec for pair in pairs for spec in pair))


def _canonical(spec: str) -> str:
    try:
        return checked(spec)
    except UserError:
        raise
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"scheme {spec!r}: its class raised {what}; fix it or leave it out") from error


def make_plan(
    preset: str,
    scale: int,
    backbones: Sequence[str] | None = None,
    schemes: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    plugins: Plugin = NO_PLUGIN,
    named: Sequence[str] = (),
    calibration: Path | None = None,
    outer_bits: int | None = None,
) -> Plan:
    """The plan of a preset, and of what plugins added, with the options that were given in place of its own.

    With `outer_bits` every scheme is measured as papers do and with its outer layers at these bits.

    Raises:
        UserError: unknown backbone, scheme or mode, with the nearest known name; scale out of range.
    """
    chosen = presets()[preset]
    zoo_backbones, zoo_schemes = _zoo()
    preset_backbones = [] if named else [*chosen["backbones"], *plugins.backbones]
    names = _expand(backbones or preset_backbones, zoo_backbones)
    for name in names:
        BACKBONES.get(name)
    asked = schemes or [*chosen["schemes"], *plugins.schemes]
    specs = tuple(dict.fromkeys(_canonical(spec) for spec in _expand(asked, zoo_schemes)))
    by_name = {_canonical(spec) for spec in asked if spec != ALL_OF_THE_ZOO}
    for mode in modes or ():
        if mode not in MODES:
            raise UserError(f"--modes {mode!r} is unknown: choose from {', '.join(MODES)}")
    if scale not in (2, 3, 4):
        raise UserError(f"--scale {scale} is out of range: choose 2, 3 or 4")
    sets = tuple(dict.fromkeys(datasets or chosen["datasets"]))
    wrong = next((name for name in sets if not re.fullmatch(r"[\w .-]+", name)), None)
    if wrong is not None:
        raise UserError(f"--datasets {wrong!r} is not a folder name; write it as in --data-root/benchmark")
    if outer_bits is not None:
        specs = both_ways(specs, outer_bits)
        by_name |= {with_outer_bits_of(spec, outer_bits) for spec in by_name}
    of_the_zoo = tuple(spec for spec in specs if spec not in by_name)
    kinds = tuple(modes or chosen.get("modes") or MODES)
    return Plan(tuple(names), specs, sets, scale, kinds, of_the_zoo, tuple(named), calibration)
