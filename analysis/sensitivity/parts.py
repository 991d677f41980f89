"""The parts of a sensitivity run: the inputs, tables and keys of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from analysis.run import models
from analysis.run.code import code_sha256, libraries_of
from analysis.run.networks import find, load
from analysis.run.source import PARENT, Source
from analysis.sensitivity import outer_layers, store
from analysis.sensitivity.additivity import measure_additivity
from analysis.sensitivity.capture import measure_capture
from analysis.sensitivity.patches import PatchSet, draw_patches, open_dataset
from analysis.sensitivity.points import PointQuantizers, chosen_points, expected_seconds, measure_points
from analysis.sensitivity.selector import count_selectors, measure_selector
from cadyq.checkpoints.folders import zoo_path
from cadyq.checkpoints.io import calibration_file, load_model, resolve, zoo_name
from cadyq.checkpoints.statistics import load_statistics
from cadyq.checkpoints.tensors import network_sha256
from cadyq.data.datasets import ImagePair
from cadyq.models.network import SRNetwork
from cadyq.schemes.base import SCHEMES
from cadyq.schemes.calibration import observe
from cadyq.utils.errors import UserError

Tables = dict[str, pd.DataFrame]


def source_of(model: str, scale: int, calibration: Path | None) -> Source:
    """The source of an FP32 network of --model.

    Args:
        model: name or path for `cadyq.load_model`.
        scale: upscaling factor of the run.
        calibration: folder of LR images; None for the photographs inside scikit-image.

    Raises:
        UserError: the model cannot be read, is of another scale, or is already quantized.
    """
    (source,) = models.sources([model], [PARENT], scale, calibration)
    if source.scheme != PARENT:
        raise UserError(f"--model {model}: is already quantized by {source.scheme}; give its FP32 network")
    return source


@dataclass(frozen=True)
class Options:
    """The options of a run for one network.

    Attributes:
        backbone: name of a backbone of this project; empty with `model`.
        model: name or path of another FP32 network for `cadyq.load_model`; empty with `backbone`.
        calibration: folder of LR images that calibrate `model`; None for the photographs inside scikit-image.
        scale: upscaling factor.
        data_root: folder that holds benchmark/ and the folders of photographs.
        dataset, train: names of the datasets of test and of training patches.
        bits: bit-widths to measure.
        points: "counted" for the points counted in FAB, or "all".
        patches, side: number and side (LR pixels) of test patches.
        second: number of patches to measure again with all other points at 8 bits.
        additivity_patches: number of patches for the additivity test.
        selector: name or path of the network with a bit selector; None for that of a zoo.
        controls: names of the control schemes to compare with.
        capture_patches, train_patches: number of test and of training patches for capture.
        capture_side: side of both in LR pixels.
        searched: number of training patches for the oracle.
        outer_images: number of whole images for outer layers.
        seed: seed of patches, subsets and shuffles.
    """

    backbone: str
    model: str
    calibration: Path | None
    scale: int
    data_root: Path | None
    dataset: str
    train: str
    bits: Sequence[int]
    points: str
    patches: int
    side: int
    second: int
    additivity_patches: int
    selector: str | None
    controls: Sequence[str]
    capture_patches: int
    train_patches: int
    capture_side: int
    searched: int
    outer_images: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """The inputs of all parts. Each is opened on its first use.

    Attributes:
        options: options of the run.
    """

    options: Options

    @cached_property
    def network(self) -> SRNetwork:
        """The FP32 parent."""
        return load(self._parent)

    @cached_property
    def _parent(self) -> Source:
        o = self.options
        if o.model:
            return source_of(o.model, o.scale, o.calibration)
        source = find(o.backbone, PARENT, o.scale)
        if source.reason or not source.files:
            raise UserError(f"--backbone {o.backbone}: {source.reason or 'has no weights to quantize'}")
        return source

    @cached_property
    def _calibration(self) -> Path:
        path = zoo_path(calibration_file(self.options.backbone, self.options.scale))
        if not path.exists():
            raise UserError(f"--backbone {self.options.backbone}: {path.name} is not in the zoo; make it with "
                            "python -m cadyq.zoo.ship calibration BACKBONE --data-root DIR")  # fmt: skip
        return path

    @cached_property
    def calibration_patches(self) -> Tensor:
        """LR patches (N, 3, h, w) of --calibration, or of the photographs inside scikit-image."""
        return models.patches_of(self.options.calibration, self.options.scale)

    @cached_property
    def quantizers(self) -> PointQuantizers:
        """The quantizers of the points of `network`."""
        if self.options.model:
            return PointQuantizers.calibrated(observe(self.network, self.calibration_patches))
        return PointQuantizers.calibrated(load_statistics(self._calibration))

    def identity(self) -> list[str]:
        """Hashes of the network and of the data that calibrate its quantizers."""
        files = [network_sha256(file) for file in self._parent.files]
        if self.options.model:
            return [*files, models.hash_of(self.calibration_patches)]
        return [*files, network_sha256(self._calibration)]

    @cached_property
    def patches(self) -> PatchSet:
        """Test patches for single points, additivity and selector."""
        o = self.options
        return draw_patches(open_dataset(o.dataset, o.scale, o.data_root), o.patches, o.side, o.seed)

    @cached_property
    def capture_patches(self) -> PatchSet:
        """Test patches for capture."""
        o = self.options
        dataset = open_dataset(o.dataset, o.scale, o.data_root)
        return draw_patches(dataset, o.capture_patches, o.capture_side, o.seed + 1)

    @cached_property
    def training_patches(self) -> PatchSet:
        """Training patches for capture."""
        o = self.options
        dataset = open_dataset(o.train, o.scale, o.data_root)
        return draw_patches(dataset, o.train_patches, o.capture_side, o.seed)

    @cached_property
    def selector_path(self) -> Path:
        """The file of the network with selectors, which controls are derived from.

        Raises:
            UserError: --model comes without --selector, or no zoo holds such a network of the backbone.
        """
        o = self.options
        if o.model and not o.selector:
            raise UserError(f"--model {o.model}: give the network with its bit selector as --selector")
        name = o.selector or f"zoo:{zoo_name(o.backbone, o.scale, SCHEMES.get(o.controls[0]).parent)}"
        return resolve(name)

    @cached_property
    def selector(self) -> SRNetwork:
        """The network with selectors, in eval mode.

        Raises:
            UserError: it is of another backbone or has no selector.
        """
        network = load_model(self.selector_path).eval()
        backbone = self.network.name if self.options.model else self.options.backbone
        if network.name != backbone:
            raise UserError(f"--selector {self.selector_path.name}: is a network of {network.name}, "
                            f"not of {backbone}; give a network of the same backbone")  # fmt: skip
        if not count_selectors(network):
            raise UserError(f"--selector {self.selector_path.name}: has no bit selector; give a network with one")
        return network

    def hashes(self) -> dict[str, str]:
        """Name -> SHA-256 of the tensors, for each file that was read."""
        opened = [self.__dict__[name] for name in ("_calibration", "selector_path") if name in self.__dict__]
        files = [*self._parent.files, *opened]
        return {file.name: network_sha256(file) for file in files}


def _points_key(i: Inputs) -> list[Any]:
    o = i.options
    return [i.identity(), i.patches.identity(), sorted(o.bits), o.points, o.second]


def _points(i: Inputs, run_dir: Path) -> Tables:
    names = chosen_points(i.network, i.options.points == "all")
    arguments = (i.network, i.quantizers, i.patches, names, sorted(i.options.bits), i.options.second)
    print(
        f"points: {len(names)}; about {expected_seconds(*arguments) / 60:.1f} minutes at the present speed", flush=True
    )
    return measure_points(*arguments)


def _additivity_key(i: Inputs) -> list[Any]:
    return [_points_key(i), i.options.additivity_patches, i.options.seed]


def _additivity(i: Inputs, run_dir: Path) -> Tables:
    cells, points = store.read(run_dir, "cells"), store.read(run_dir, "points")
    if cells is None or points is None or not is_stored("points", i, run_dir):
        raise UserError(f"{run_dir}: additivity needs the single points measured with the same options and code; "
                        "give --parts points additivity")  # fmt: skip
    few = i.patches.head(i.options.additivity_patches)
    counted = points.loc[points["counted"], "point"]
    single = cells[(cells["background_bits"] == 32) & cells["point"].isin(counted)]
    return measure_additivity(i.network, i.quantizers, few, single, sorted(i.options.bits), i.options.seed)


def _outer_images(i: Inputs) -> list[ImagePair]:
    o = i.options
    dataset = open_dataset(o.dataset, o.scale, o.data_root)
    return [dataset[index] for index in range(min(o.outer_images, len(dataset)))]


def _outer_key(i: Inputs) -> list[Any]:
    images = [pair.sha256 for pair in _outer_images(i)]
    return [i.identity(), images, models.hash_of(i.calibration_patches), outer_layers.BITS]


def _outer(i: Inputs, run_dir: Path) -> Tables:
    images = _outer_images(i)
    return {"outer_layers": outer_layers.measure_outer_layers(i.network, i.calibration_patches, images)}


def _selector_key(i: Inputs) -> list[Any]:
    return [network_sha256(i.selector_path), i.patches.identity(), i.options.seed]


def _selector(i: Inputs, run_dir: Path) -> Tables:
    return measure_selector(i.selector, i.patches, i.options.seed)


def _capture_key(i: Inputs) -> list[Any]:
    o = i.options
    sets = [i.capture_patches.identity(), i.training_patches.identity()]
    return [network_sha256(i.selector_path), sets, o.controls, o.searched]


def _capture(i: Inputs, run_dir: Path) -> Tables:
    o = i.options
    tables = measure_capture(i.selector, i.training_patches, o.searched, i.capture_patches, o.controls)
    return tables | {"capture_patches": i.capture_patches.table}


def _parent_classes(i: Inputs) -> list[type]:
    return [type(i.network), SCHEMES.get(PARENT)]


def _selector_classes(i: Inputs) -> list[type]:
    return [type(i.selector), type(i.selector.scheme)]


def _capture_classes(i: Inputs) -> list[type]:
    return [*_selector_classes(i), *map(SCHEMES.get, i.options.controls)]


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        module: module of this package that measures it.
        tables: names of its tables.
        key: inputs to the values that its numbers depend on, ready for JSON.
        classes: inputs to the classes of networks and schemes whose code makes its numbers.
        measure: inputs and run folder to its tables.
        optional: whether it is skipped, with the reason, if there is no network with selectors.
        shares_patches: whether it measures `Inputs.patches`, so that its tables are joined with those of other parts.
    """

    module: str
    tables: list[str]
    key: Callable[[Inputs], list[Any]]
    classes: Callable[[Inputs], list[type]]
    measure: Callable[[Inputs, Path], Tables]
    optional: bool = False
    shares_patches: bool = False


PARTS: dict[str, Part] = {
    "points": Part(
        "points", ["cells", "layers", "patches", "points"], _points_key, _parent_classes, _points, shares_patches=True
    ),
    "additivity": Part(
        "additivity", ["additivity"], _additivity_key, _parent_classes, _additivity, shares_patches=True
    ),
    "outer": Part("outer_layers", ["outer_layers"], _outer_key, _parent_classes, _outer),
    "selector": Part(
        "selector", ["chosen", "shuffled", "degraded"], _selector_key, _selector_classes, _selector,
        optional=True, shares_patches=True,
    ),
    "capture": Part(
        "capture", ["capture", "capture_patches"], _capture_key, _capture_classes, _capture, optional=True
    ),
}  # fmt: skip


def code_of(name: str, inputs: Inputs) -> str:
    """SHA-256 of the code that makes the numbers of a part: its module, its networks and its schemes.

    Raises:
        UserError: one of the classes has no source file, or a file is not valid Python.
    """
    part = PARTS[name]
    modules = (f"analysis.sensitivity.{part.module}", "analysis.sensitivity.patches")
    return code_sha256(part.classes(inputs), modules, libraries_of(inputs.network))


def is_stored(name: str, inputs: Inputs, run_dir: Path) -> bool:
    """Whether a part is stored with these inputs and the present code."""
    part = PARTS[name]
    key = store.key(name, *part.key(inputs))
    return store.is_current(run_dir, part.tables, key, code_of(name, inputs))


def check_patches(names: Sequence[str], inputs: Inputs, run_dir: Path) -> None:
    """Refuse to measure parts beside stored ones of different patches: tables join them by the number of a patch.

    Tables of earlier versions do not say their patches and are accepted.

    Args:
        names: parts to measure.
        inputs: their inputs.
        run_dir: run folder.

    Raises:
        UserError: the folder holds another part, of different patches.
    """
    if not any(PARTS[name].shares_patches for name in names):
        return
    same = {"", store.key(inputs.patches.identity())}
    for name, part in PARTS.items():
        if part.shares_patches and name not in names and {store.patches_hash(run_dir, t) for t in part.tables} - same:
            raise UserError(f"{run_dir}: holds the part {name} of different patches; measure it with these options too "
                            f"(--parts {' '.join([*names, name])}), or choose another --out")  # fmt: skip


def run_part(name: str, inputs: Inputs, run_dir: Path) -> dict[str, Any]:
    """Measure a part, unless it is stored.

    Returns:
        "status" ("measured", "cached" or "skipped"), "reason" of a skipped part, and "seconds" of measuring.
    """
    part = PARTS[name]
    if part.optional and not inputs.options.selector:
        try:
            _ = inputs.selector_path
        except UserError as error:
            return {"status": "skipped", "reason": str(error), "seconds": 0.0}
    if is_stored(name, inputs, run_dir):
        return {"status": "cached", "reason": "", "seconds": 0.0}
    key = store.key(name, *part.key(inputs))
    patches = store.key(inputs.patches.identity()) if part.shares_patches else ""
    started = time.perf_counter()
    store.write(run_dir, part.measure(inputs, run_dir), key, code_of(name, inputs), patches)
    return {"status": "measured", "reason": "", "seconds": round(time.perf_counter() - started, 1)}
