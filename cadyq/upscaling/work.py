"""Upscales photographs. Small ones run together in batches; large ones are written to files, so they can be resumed."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import cadyq
from cadyq.data.images import sha256_file, stored_size
from cadyq.data.png import write_png_strips
from cadyq.inference.tiled import BATCH_PIXELS, forward_batches, reference_bitops, run_tiles
from cadyq.inference.tiles import Tile, split, tile_grid, whole_image
from cadyq.models.network import SRNetwork
from cadyq.plugins import loaded_files
from cadyq.quantizers.layers import frozen_weights
from cadyq.quantizers.ranges import CandidateActivation, with_constant_candidate
from cadyq.upscaling.canvas import Canvas, FileCanvas, MemoryCanvas, finished_tiles
from cadyq.upscaling.files import UpscaleJob
from cadyq.upscaling.photograph import Photograph, read_photograph
from cadyq.utils.errors import UNWRITABLE, UserError, reason_of
from cadyq.utils.extras import needs
from cadyq.utils.files import is_installed, write_text
from cadyq.utils.locks import alone_with
from cadyq.utils.signals import stopped

MOST_AVOIDED = 1_000_000  # LR pixels, for which two more runs beside the bits are affordable


@dataclass(frozen=True)
class Tiling:
    """The tiling of photographs: tiles of `patch` every `step` LR pixels, or the whole image."""

    patch: int
    step: int
    whole: bool

    def grid(self, height: int, width: int) -> list[Tile]:
        """The tiles of an LR image of that size."""
        return whole_image(height, width) if self.whole else tile_grid(height, width, self.patch, self.step)


@dataclass(frozen=True)
class Result:
    """The outcome for one photograph: its facts or its error, and notes for the user."""

    job: UpscaleJob
    facts: dict[str, Any] | None = None
    error: UserError | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _InProgress:
    """A photograph in progress."""

    job: UpscaleJob
    photograph: Photograph
    canvas: Canvas
    key: str
    notes: tuple[str, ...] = ()


def network_key(network: SRNetwork) -> str:
    """SHA-256 of everything that determines the output: weights, options, code of modules and scheme, versions."""
    parts = [cadyq.__version__, torch.__version__, network.name, network.scale, network.options, network.excluded]
    parts += [network.scheme.label(), network.scheme.options()] if network.scheme else []
    digest = hashlib.sha256(json.dumps(parts, default=str).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    classes = {cls for part in (*network.modules(), network.scheme) for cls in type(part).__mro__}
    sources = {*filter(None, map(_source_of, classes)), *loaded_files()}
    files = {file for source in sources for file in (source.rglob("*.py") if source.is_dir() else [source])}
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _source_of(cls: type) -> Path | None:
    """The folder of the package of a class, since its code may use any file there; None for a built-in class.

    Of a class that is installed or lies in no package it is the file.
    """
    try:
        file = Path(inspect.getsourcefile(cls) or "")
    except TypeError:
        return None
    if not file.is_file():
        return None
    names = cls.__module__.split(".")
    package = file.parents[len(names) - 2 + (file.name == "__init__.py")]
    return file if is_installed(file) or len(names) == 1 or package.name != names[0] else package


class Upscaler:
    """Upscales photographs with one network.

    Args:
        network: in eval mode, on `device`.
        tiling: the tiling of photographs.
        device: to run on.
        resume: continue photographs that an interrupted command left unfinished.
        on_tiles: called with the number of tiles that finished since the last call.
    """

    def __init__(
        self,
        network: SRNetwork,
        tiling: Tiling,
        device: torch.device,
        resume: bool = False,
        on_tiles: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.network, self.tiling, self.device, self.resume, self.on_tiles = network, tiling, device, resume, on_tiles
        self._network_key = network_key(network)

    def key(self, job: UpscaleJob) -> str:
        """SHA-256 of everything that determines a result: network, photograph, tiling, kind of device.

        Raises:
            UserError: the photograph cannot be read.
        """
        parts = [self._network_key, sha256_file(job.source), asdict(self.tiling), self.device.type]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def is_stale(self, job: UpscaleJob) -> bool:
        """Whether finished results were made by another network, photograph or option."""
        try:
            made_from = json.loads(job.facts.read_text(encoding="utf-8"))["made_from"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(made_from != self.key(job))

    def missing(self, job: UpscaleJob, height: int, width: int) -> list[Tile]:
        """The tiles of a photograph of that size that no earlier command has finished."""
        tiles = self.tiling.grid(height, width)
        done = finished_tiles(job.sr, self.key(job)) if self.resume else set()
        return [tile for index, tile in enumerate(tiles) if index not in done]

    def run(self, jobs: Sequence[UpscaleJob]) -> Generator[Result, None, None]:
        """Upscale photographs. Each result is yielded once its files are written."""
        for group in _groups(jobs):
            if self._in_file(group):
                with alone_with(group[0].sr):
                    if not (self.resume and group[0].finished and not self.is_stale(group[0])):
                        yield from self._upscale_group(group)
            else:
                yield from self._upscale_group(group)

    @staticmethod
    def _in_file(group: Sequence[UpscaleJob]) -> bool:
        return len(group) == 1 and _pixels(group[0]) > BATCH_PIXELS

    def _upscale_group(self, group: Sequence[UpscaleJob]) -> Iterator[Result]:
        """The results of photographs whose tiles run together. If that fails, each runs alone: only one is lost."""
        opened, unreadable = self._open_all(group)
        yield from unreadable
        try:
            self._forward(opened)
        except BaseException as error:
            if stopped() or not isinstance(error, Exception):  # an interrupt, or the error that a library made of it
                _keep_tiles(opened)
                raise
            if _is_shortage(error):  # a later command may have more room, and the finished tiles are sound
                with suppress(OSError):
                    _keep_tiles(opened)
            else:
                _discard_tiles(opened)  # as after an error of a plug-in
            if len(opened) == 1:
                yield Result(opened[0].job, error=_as_user_error(opened[0].job, error, self.tiling))
                return
            for each in opened:
                yield from self._upscale_group([each.job])
            return
        for number, each in enumerate(opened):
            try:
                yield self._finish(each)
            except BaseException:
                _keep_tiles(opened[number:])
                raise

    def _open_all(self, group: Sequence[UpscaleJob]) -> tuple[list[_InProgress], list[Result]]:
        """The photographs of a group that can be read, and the results of the others."""
        opened, unreadable = [], []
        for job in group:
            try:
                opened.append(self._open(job, self._in_file(group)))
            except (UserError, OSError) as error:
                unreadable.append(Result(job, error=_as_user_error(job, error, self.tiling)))
        return opened, unreadable

    def _open(self, job: UpscaleJob, in_file: bool) -> _InProgress:
        photograph, key = read_photograph(job.source), self.key(job)
        tiles, scale = self.tiling.grid(*photograph.lr.shape[-2:]), self.network.scale
        if not in_file:
            return _InProgress(job, photograph, MemoryCanvas(tiles, scale), key, photograph.notes)
        canvas = FileCanvas(tiles, scale, job.sr, key, self.resume)
        stale = "what an earlier command left of it has another model, photograph or option; it starts anew"
        return _InProgress(job, photograph, canvas, key, (*photograph.notes, *([stale] if canvas.stale else [])))

    def _forward(self, opened: Sequence[_InProgress]) -> None:
        """Run all missing tiles of photographs; those of one size run together."""
        todo = [(each, index) for each in opened for index in each.canvas.missing]
        cut = {each.job: split(each.photograph.lr, each.canvas.tiles) for each in opened}
        parts = [cut[each.job][index] for each, index in todo]
        tiles = [each.canvas.tiles[index] for each, index in todo]
        self.on_tiles(sum(len(each.canvas.tiles) for each in opened) - len(todo))
        started = time.perf_counter()
        with frozen_weights(self.network):
            for batch in forward_batches(self.network, parts, tiles, self.device):
                now = time.perf_counter()
                seconds, started = (now - started) / len(batch.indices), now
                for place, sr, fab, costs in zip(batch.indices, batch.sr, batch.fab, batch.costs, strict=True):
                    each, index = todo[place]
                    each.canvas.put(index, sr, float(fab), costs, seconds)
                self.on_tiles(len(batch.indices))

    def _finish(self, each: _InProgress) -> Result:
        """Write the files of a photograph with all tiles finished. If the disk is full, its tiles are kept."""
        job = each.job
        facts = self._facts(each)
        written: list[Path] = []
        try:
            for path, write in self._writers(each, facts):
                write()
                written.append(path)
        except (OSError, UserError) as error:
            for path in written:  # all files of a photograph, or none
                path.unlink(missing_ok=True)
            with suppress(OSError):
                each.canvas.keep()
            return Result(job, error=_as_user_error(job, error, self.tiling))
        each.canvas.discard()
        return Result(job, facts, notes=each.notes)

    def _writers(self, each: _InProgress, facts: dict[str, Any]) -> list[tuple[Path, Callable[[], object]]]:
        """The function that writes each file. The facts come last: they mark the others as complete."""
        job, photograph, scale = each.job, each.photograph, self.network.scale
        channels = 3 if photograph.alpha is None else 4
        strips = _with_alpha(each.canvas.strips(), photograph, scale)

        def bit_map() -> None:
            assert job.bit_map is not None
            fab = torch.from_numpy(each.canvas.fab).float()
            title = f"{job.name}: {facts['fab']:.2f} bits on average"
            avoided = _avoided(self.network, photograph.lr, each.canvas.tiles)
            bit_map_writer()(job.bit_map, photograph.lr, each.canvas.tiles, fab, title, avoided)

        writers: list[tuple[Path, Callable[[], object]]] = [
            (job.sr, lambda: write_png_strips(job.sr, each.canvas.size, channels, strips, photograph.icc))
        ]
        writers += [(job.bit_map, bit_map)] if job.bit_map is not None else []
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        return [*writers, (job.facts, lambda: write_text(job.facts, text))]

    def _facts(self, each: _InProgress) -> dict[str, Any]:
        network, canvas, tiling = self.network, each.canvas, self.tiling
        quantized, fp32, selector, _ = canvas.costs.sum(0).tolist()
        bitops, eight_bit = quantized + fp32 + selector, reference_bitops(network, canvas.tiles)
        height, width = each.photograph.lr.shape[-2:]
        return {
            "image": each.job.name,
            "result": each.job.sr.name,
            "backbone": network.name,
            "scheme": network.scheme.label() if network.scheme else None,
            "scale": network.scale,
            "lr_width": width,
            "lr_height": height,
            "tiles": len(canvas.tiles),
            "patch": None if tiling.whole else tiling.patch,
            "step": None if tiling.whole else tiling.step,
            "fab": float(canvas.fab.mean()),
            "bitops_g": bitops / 1e9,
            "bitops_fp32_g": fp32 / 1e9,
            "bitops_8_bit_g": eight_bit / 1e9,
            "saved_percent": 100 * (1 - bitops / eight_bit) if eight_bit else None,
            "seconds": canvas.seconds,
            "notes": list(each.photograph.notes),
            "made_from": each.key,
            "tile_fab": [round(bits, 4) for bits in canvas.fab.tolist()],
        }


def _groups(jobs: Sequence[UpscaleJob]) -> Iterator[list[UpscaleJob]]:
    """Photographs that run together: large ones alone, small ones until their pixels fill a batch."""
    group: list[UpscaleJob] = []
    pixels = 0
    for job in jobs:
        if _pixels(job) > BATCH_PIXELS:
            yield [job]
            continue
        group.append(job)
        pixels += _pixels(job)
        if pixels >= BATCH_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def _pixels(job: UpscaleJob) -> int:
    height, width = stored_size(job.source)
    return height * width


def _with_alpha(strips: Iterator[NDArray[np.uint8]], photograph: Photograph, scale: int) -> Iterator[NDArray[np.uint8]]:
    """The rows of a result, with those of the enlarged alpha channel where the photograph has one."""
    top = 0
    for strip in strips:
        bottom = top + len(strip)
        yield (
            strip
            if photograph.alpha is None
            else np.concatenate([strip, photograph.alpha_rows(scale, top, bottom)[..., None]], axis=-1)
        )
        top = bottom


def _keep_tiles(opened: Sequence[_InProgress]) -> None:
    """Keep the finished tiles of photographs for `--resume`."""
    for each in opened:
        each.canvas.keep()


def _discard_tiles(opened: Sequence[_InProgress]) -> None:
    for each in opened:
        each.canvas.discard()


def _as_user_error(job: UpscaleJob, error: Exception, tiling: Tiling) -> UserError:
    """A UserError for one photograph, caused by `error`."""
    user_error = UserError(_words(job, error, tiling))
    user_error.__cause__ = error
    return user_error


def _is_shortage(error: Exception) -> bool:
    """Whether the disk or the memory was too small for more tiles."""
    return _is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in UNWRITABLE)


def _is_out_of_memory(error: Exception) -> bool:
    words = ("out of memory", "not enough memory", "can't allocate memory")  # of torch, on a GPU and on a CPU
    spoken = isinstance(error, RuntimeError) and any(one in str(error).lower() for one in words)
    return isinstance(error, MemoryError) or spoken


def _words(job: UpscaleJob, error: Exception, tiling: Tiling) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or job.sr}: cannot be written ({error.strerror or error}); choose another output"
    if _is_out_of_memory(error):
        height, width = stored_size(job.source)
        remedy = "leave --whole out" if tiling.whole else f"use a --patch below {tiling.patch}"
        return f"{job.source}: {width}x{height} pixels need too much memory; {remedy}"
    text = reason_of(error)
    return text if isinstance(error, UserError) and str(job.source) in text else f"{job.source}: {text}"


def bit_map_writer() -> Callable[..., None]:
    """`write_bit_map`; raises UserError where matplotlib is not installed."""
    with needs("analysis", "--bit-map"):
        from cadyq.inference.bit_map import write_bit_map
    return write_bit_map


def _avoided(network: SRNetwork, lr: Tensor, tiles: Sequence[Tile]) -> Any:
    """The error that the choice of bits avoids (h, w); None without candidate bits, or for a large photograph."""
    from cadyq.inference.bit_map import avoided_error

    chooses = any(isinstance(point.quantizer, CandidateActivation) for point in network.points.values())
    if not chooses or lr.shape[-2] * lr.shape[-1] > MOST_AVOIDED:
        return None
    device = next(network.parameters()).device
    sr, lowest = (run_tiles(net, lr, tiles, device).sr for net in (network, with_constant_candidate(network, 0)))
    return avoided_error(sr, lowest, network.scale)
