"""The plan of a run: from the options of the command to the cells to measure."""

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
from analysis.run.source import PARENT, Source
from analysis.tables.summary import OVERALL
from cadyq.checkpoints import published
from cadyq.checkpoints.io import resolve
from cadyq.checkpoints.tensors import network_sha256
from cadyq.checkpoints.zoo import zoo_rows
from cadyq.metrics.measure import MODES
from cadyq.models import spandrel
from cadyq.models.network import BACKBONES
from cadyq.plugins import Plugin
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.schemes.specs import parse_scheme, scheme_of, with_outer_bits_of
from cadyq.utils import toml
from cadyq.utils.errors import UserError, one_line

log = logging.getLogger(__name__)
PRESETS = Path(__file__).parent / "presets.toml"
ALL_OF_THE_ZOO = "zoo"
NO_PLUGIN = Plugin((), ())


@dataclass(frozen=True)
class Plan:
    """The cells of a run. Names are checked and in the order of the tables.

    Attributes:
        backbones, schemes, datasets, scale, modes: names and scale of the cells.
        of_the_zoo: schemes that were not named, but come from the word "zoo". A backbone without one skips it silently.
        models: further networks, as names or paths for `cadyq.load_model`.
        calibration: folder of LR images that calibrate models; None for the photographs inside scikit-image.
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
        """The source of every (backbone, scheme) of the plan. Interpolation is combined with FP32 alone.

        Raises:
            UserError: a network of --model cannot be read, or has the name of another one or of a backbone.
        """
        taken = next((model for model in self.models if models.label(model) in self.backbones), None)
        if taken is not None:
            raise UserError(f"--model {taken}: its name is that of --backbones {models.label(taken)}; rename the file")
        found = [
            find(backbone, scheme, self.scale)
            for backbone in self.backbones
            for scheme in self.schemes
            if _applies(scheme, backbone)
        ]
        found = [source for source in found if not (source.reason and source.scheme in self.of_the_zoo)]
        return found + models.sources(self.models, self.schemes, self.scale, self.calibration)

    def parents_sha256(self) -> dict[str, str]:
        """The hash of the FP32 network of each backbone and of each FP32 network of --model, by `parent_name`."""
        parents = [find(name, PARENT, self.scale) for name in self.backbones]
        of_backbones = {parent_name(one.backbone, self.scale): one.sha256() for one in parents if not one.reason}
        full = [name for name in self.models if parse_scheme(models.opened(name).scheme_label)[0] == PARENT]
        of_models = {parent_name(models.label(name), self.scale): network_sha256(resolve(name)) for name in full}
        return of_backbones | of_models

    def cells(self, source: Source, dataset: str) -> list[Cell]:
        """The cells of a source on a dataset, one for each mode."""
        return [Cell(source.backbone, source.scheme, self.scale, dataset, mode) for mode in self.modes]


def parent_name(backbone: str, scale: int) -> str:
    """The name of an FP32 network in `Plan.parents_sha256`: one run folder may hold several scales."""
    return f"{backbone} x{scale}"


def _applies(scheme: str, backbone: str) -> bool:
    """Whether the backbone has weights to quantize, or the scheme quantizes nothing and needs no trained weights."""
    try:
        plain = scheme_of(scheme)
        nothing = plain.weight_quantizer() is None and plain.outer_bits == FULL_PRECISION
        return has_weights(backbone) or (nothing and not parse_scheme(scheme)[2])
    except UserError:
        raise
    except Exception:  # an error of a plug-in, which `find` reports
        return True


def presets() -> dict[str, dict[str, list[str]]]:
    """Name of each preset -> its backbones, schemes, datasets and, in some, modes."""
    return toml.loads(PRESETS.read_text())


def _zoo(named: Sequence[str]) -> tuple[list[str], list[str]]:
    """Backbones and schemes of the zoos, in the order of their manifests.

    Schemes that read HR are left out: their search runs hundreds of forwards for each image, so they must be named.
    Networks with an unknown scheme or backbone are left out with a warning. They need a plug-in or --model. Those made
    from a network in `named`, the networks of --model, are read under its name and not warned of.
    """
    backbones, schemes = [], []
    for row in zoo_rows():
        try:
            BACKBONES.get(row["backbone"])
            reads_hr = scheme_of(row["scheme"]).reads_hr
        except UserError as error:
            if _parent_of(row) not in named:
                log.warning("%s of the zoo is skipped: %s", row["file"], _remedy(row, error))
            continue
        if not reads_hr:
            backbones.append(row["backbone"])
            schemes.append(row["scheme"])
    return backbones, schemes


def _remedy(row: Mapping[str, Any], error: UserError) -> str:
    """The remedy for a network of the zoo with an unknown scheme or backbone."""
    model = _parent_of(row)
    if model.startswith((spandrel.PREFIX, published.PREFIX)) and row["backbone"] not in BACKBONES.names():
        return f"it is no backbone of this project; give its network as --model {model}"
    return f"{error} (or give its --plugin)"


def _parent_of(row: Mapping[str, Any]) -> str:
    """The network that a network of the zoo was calibrated from or builds on, as `--model` takes it; "" if unknown."""
    return str(row.get("calibrated_from", "") or row.get("builds_on", ""))


def _expand(names: Sequence[str], zoo: Sequence[str]) -> list[str]:
    """Names with "zoo" replaced by the names of the zoo, without repetitions."""
    wide = [name for entry in names for name in (zoo if entry == ALL_OF_THE_ZOO else [entry])]
    return list(dict.fromkeys(wide))


def both_ways(specs: Sequence[str], outer_bits: int) -> tuple[str, ...]:
    """Each scheme as it is, followed by its variant with outer layers at `outer_bits`."""
    pairs = [(spec, with_outer_bits_of(spec, outer_bits)) for spec in specs]
    return tuple(dict.fromkeys(spec for pair in pairs for spec in pair))


def _canonical(spec: str) -> str:
    """`checked`, with an error of a plug-in as a UserError."""
    try:
        return checked(spec)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"scheme {spec!r}: its class raised {one_line(error)}; fix it or leave it out") from error


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
    """The plan of a preset. Each option that is given replaces that of the preset.

    Args:
        preset: key of `presets`.
        scale: upscaling factor, 2 to 4.
        backbones: registered names, or "zoo"; by default those of the preset and of plug-ins, none with `named`.
        schemes: schemes as in a command, or "zoo"; by default those of the preset and of plug-ins.
        datasets: names of datasets.
        modes: "image", "patch" or both.
        plugins: backbones and schemes that plug-ins registered.
        named: networks of --model.
        calibration: folder of LR images that calibrate them.
        outer_bits: measure every scheme also with its outer layers at these bits, 2 to 8; None for papers' FP32 layers.

    Raises:
        UserError: a backbone, scheme or mode is unknown (with the nearest known name), the scale is out of range, or
            the name of a dataset cannot be used.
    """
    chosen = presets()[preset]
    zoo_backbones, zoo_schemes = _zoo(named)
    preset_backbones = [] if named else [*chosen["backbones"], *plugins.backbones]
    names = _expand(backbones or preset_backbones, zoo_backbones)
    for name in names:
        BACKBONES.get(name)
    asked = schemes or [*chosen["schemes"], *plugins.schemes]
    specs = tuple(dict.fromkeys(_canonical(spec) for spec in _expand(asked, zoo_schemes)))
    by_name = {_canonical(spec) for spec in asked if spec != ALL_OF_THE_ZOO}
    sets = tuple(dict.fromkeys(datasets or chosen["datasets"]))
    _check(modes or (), scale, sets)
    if outer_bits is not None:
        specs = both_ways(specs, outer_bits)
        by_name |= {with_outer_bits_of(spec, outer_bits) for spec in by_name}
    of_the_zoo = tuple(spec for spec in specs if spec not in by_name)
    kinds = tuple(dict.fromkeys(modes or chosen.get("modes") or MODES))
    return Plan(tuple(names), specs, sets, scale, kinds, of_the_zoo, tuple(named), calibration)


def _check(modes: Sequence[str], scale: int, sets: Sequence[str]) -> None:
    """Raises UserError for an unknown mode, a scale out of range, or a name of a dataset that tables cannot hold."""
    unknown = next((mode for mode in modes if mode not in MODES), None)
    if unknown is not None:
        raise UserError(f"--modes {unknown!r} is unknown: choose from {', '.join(MODES)}")
    if scale not in (2, 3, 4):
        raise UserError(f"--scale {scale} is out of range: choose 2, 3 or 4")
    if OVERALL in sets:
        raise UserError(f"--datasets {OVERALL!r}: tables give the means over all datasets this name; rename the folder")
    wrong = next((name for name in sets if not re.fullmatch(r"[\w .-]+", name)), None)
    if wrong is not None:
        raise UserError(f"--datasets {wrong!r}: may hold letters, digits, space, . _ - only; rename the folder")
