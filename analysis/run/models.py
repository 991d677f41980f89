"""Networks of the user, `--model NAME_OR_PATH`, under every scheme of the plan.

Schemes that need only calibration are calibrated here. Trained and tuned schemes are read from a zoo.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from analysis.run.code import code_sha256, libraries_of
from analysis.run.source import PARENT, Source
from cadyq.checkpoints.folders import zoo_path
from cadyq.checkpoints.io import builds_on, load_model, resolve, zoo_name
from cadyq.checkpoints.tensors import network_sha256
from cadyq.checkpoints.zoo import ancestors
from cadyq.data import datasets
from cadyq.models.network import SRNetwork
from cadyq.quantization import calibration_patches
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.schemes.base import SCHEMES, Scheme
from cadyq.schemes.calibration import calibrated_on, with_outer_bits
from cadyq.schemes.specs import canonical, parse_scheme, scheme_name, scheme_of, with_outer_bits_of
from cadyq.utils.errors import UserError
from cadyq.utils.files import state_of

SCALES = range(2, 5)  # of --scale
log = logging.getLogger(__name__)


def label(model: str) -> str:
    """The name of a model in the column `backbone`: the stem of its file."""
    return resolve(model).stem


def opened(model: str) -> SRNetwork:
    """The network of a model, loaded once in a process and again if its file changes. Copy it before you change it."""
    return _opened(model, *state_of(resolve(model)))


@lru_cache(maxsize=4)
def _opened(model: str, mtime: int, size: int) -> SRNetwork:
    return load_model(model)


def sources(models: Sequence[str], schemes: Sequence[str], scale: int, calibration: Path | None) -> list[Source]:
    """The source of each model under each scheme.

    A quantized model is measured under its own scheme, an FP32 model under each of `schemes`. If a scheme has to be
    trained or tuned and no zoo holds its network, the source has a `reason`.

    Args:
        models: names or paths for `cadyq.load_model`.
        schemes: schemes as in a command.
        scale: upscaling factor of the run.
        calibration: folder of LR images; None for the photographs inside scikit-image.

    Raises:
        UserError: a model cannot be read, is of another scale, or has the label of another one.
    """
    labels = [label(model) for model in models]
    twice = next((name for name in labels if labels.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--model: two of them are called {twice!r}; rename one file")
    return [source for model in models for source in _of_model(model, schemes, scale, calibration)]


def _of_model(model: str, schemes: Sequence[str], scale: int, calibration: Path | None) -> list[Source]:
    network = opened(model)
    if network.scale != scale:
        known = network.scale in SCALES
        remedy = f"pass --scale {network.scale}" if known else "measure it in Python by cadyq.evaluate"
        raise UserError(f"--model {model}: is of scale {network.scale}; {remedy}")
    if isinstance(network.scheme, Scheme) and network.scheme.name != PARENT:
        own = network.scheme.label()
        log.warning("--model %s: is quantized by %s and measured as it is; --schemes is for FP32 networks", model, own)
        return [_of_quantized(model, network, spec, scale, calibration) for spec in outer_variants(own, schemes)]
    return [_under_scheme(model, network, canonical(spec), scale, calibration) for spec in schemes]


def outer_variants(own: str, schemes: Sequence[str]) -> list[str]:
    """The scheme `own` of a quantized network, and its variants with the `outer_bits` of `schemes`."""
    asked = {scheme_of(spec).outer_bits for spec in schemes} - {FULL_PRECISION}
    return list(dict.fromkeys([own, *(with_outer_bits_of(own, bits) for bits in sorted(asked))]))


def _of_quantized(model: str, network: SRNetwork, spec: str, scale: int, calibration: Path | None) -> Source:
    source = Source(label(model), spec, scale, (resolve(model),), code=code_of(network, spec), model=model)
    assert network.scheme is not None
    return source if spec == network.scheme.label() else calibrated_source(source, calibration)


def calibrated_source(source: Source, calibration: Path | None) -> Source:
    """The source with the folder and the hash of the LR images for its calibration."""
    sha256 = hash_of(patches_of(calibration, source.scale))
    return replace(source, calibration=str(calibration or ""), calibration_sha256=sha256)


def needs_file(spec: str) -> bool:
    """Whether calibration cannot make the network: its scheme is trained, or a tag names a variant that was trained."""
    return scheme_of(spec).trained or bool(parse_scheme(spec)[2])


def _under_scheme(model: str, network: SRNetwork, spec: str, scale: int, calibration: Path | None) -> Source:
    source = Source(label(model), spec, scale, (resolve(model),), code=code_of(network, spec), model=model)
    if spec == PARENT:
        return source
    # with outer_bits, FP32 needs no training either: its outer layers are calibrated
    plain = with_outer_bits_of(PARENT, scheme_of(spec).outer_bits)
    if needs_file(spec) and spec != plain:
        made = zoo_path(f"{zoo_name(network.name, scale, spec)}.safetensors")
        if made.exists() and (builds_on(made, model) or _made_from(made, model)):
            return Source(label(model), spec, scale, (made,), code=code_of(network, spec), model=str(made))
        if scheme_of(spec).tuned:
            command = f"python -m cadyq.calibrate --model {model} --scheme {spec} --zoo DIR"
            return replace(source, reason=f"{spec} has to be calibrated: {command}, then pass --zoo DIR")
        if scheme_of(spec).made_by() == "derive":
            command = f"python -m cadyq.derive {spec} --parent NETWORK --zoo DIR"
            parent = SCHEMES.get(scheme_name(spec)).parent
            return replace(source, reason=f"{spec} has to be derived from its {parent}: {command}, then pass --zoo DIR")
        command = f"python -m cadyq.train --model {model} --scheme {spec} --zoo DIR"
        reason = f"{spec} has to be trained: {command}, then pass --zoo DIR"
        return replace(source, reason=reason)
    return calibrated_source(source, calibration)


def _made_from(made: Path, model: str) -> bool:
    """Whether the manifest of a zoo says that a file was made from a network, perhaps in several steps."""
    sha256 = network_sha256(resolve(model))
    return any(ancestor.sha256 == sha256 for ancestor in ancestors(made))


def code_of(network: SRNetwork, spec: str) -> str:
    """SHA-256 of the code that makes the numbers of a network under a scheme, with the libraries that define it.

    Raises:
        UserError: one of the classes has no source file, or a file is not valid Python.
    """
    return code_sha256((type(network), SCHEMES.get(scheme_name(spec))), libraries=libraries_of(network))


def patches_of(folder: Path | None, scale: int) -> Tensor:
    """LR patches (N, 3, h, w) in 0..255 of a folder, or of the photographs inside scikit-image."""
    files = [] if folder is None else sorted(folder.iterdir()) if folder.is_dir() else [folder]
    return _patches_of(folder, scale, tuple((file.name, *state_of(file)) for file in files))


@lru_cache(maxsize=2)
def _patches_of(folder: Path | None, scale: int, files: tuple[tuple[str, int, int], ...]) -> Tensor:
    images = folder if folder is not None else [pair.lr for pair in datasets.photographs(scale)]
    return calibration_patches(images)


def hash_of(patches: Tensor) -> str:
    """SHA-256 of the values of patches, hexadecimal."""
    return hashlib.sha256(patches.numpy().tobytes()).hexdigest()


def load(source: Source) -> SRNetwork:
    """The network of a source with a `model`, in eval mode."""
    network = opened(source.model)
    if not source.calibration_sha256:
        return network
    patches = patches_of(Path(source.calibration) if source.calibration else None, source.scale)
    if network.scheme is not None and network.scheme.name == scheme_name(source.scheme) != PARENT:
        return with_outer_bits(network, patches, scheme_of(source.scheme).outer_bits)  # quantized already
    return calibrated_on(network, source.scheme, patches).eval()
