"""From a backbone and a scheme of a command to a network, or to the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import cadyq
from analysis.run import models
from analysis.run.code import code_sha256
from analysis.run.source import PARENT, Source
from cadyq.checkpoints import published
from cadyq.checkpoints.folders import zoo_names, zoo_path
from cadyq.checkpoints.io import calibration_file, load_model, zoo_name
from cadyq.checkpoints.published import Published
from cadyq.checkpoints.statistics import load_statistics
from cadyq.checkpoints.zoo import other_parent
from cadyq.models.network import BACKBONES, SRNetwork
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.schemes.base import SCHEMES
from cadyq.schemes.calibration import calibrated, with_outer_bits
from cadyq.schemes.specs import canonical, parse_scheme, scheme_name, scheme_of, with_outer_bits_of
from cadyq.schemes.tuning import TUNED
from cadyq.utils.errors import UserError, one_line


def checked(spec: str) -> str:
    """The name of a scheme in records: "pams" -> "pams:w8a8".

    Raises:
        UserError: the scheme is unknown, an option is out of range, or a scheme without training has a tag that the zoo
            does not hold.
    """
    tag, scheme = parse_scheme(spec)[2], scheme_of(spec)
    label = replace(scheme, outer_bits=FULL_PRECISION).label()
    if tag and not scheme.trained and tag not in known_tags(label):
        there = ", ".join(known_tags(label))
        remedy = f"; its tags are {there}" if there else f"; write {label!r}, or name the zoo of the variant as --zoo"
        raise UserError(
            f"scheme {spec!r}: {scheme.name} needs no training, and no zoo here has a variant {tag!r}{remedy}; "
            f"an option is written after a comma, as in {label},NAME=VALUE"
        )
    return canonical(spec)


def known_tags(label: str) -> list[str]:
    """Tags of trained variants of a scheme in the zoo, of any backbone, sorted."""
    pattern = re.compile(rf".+_x\d_{re.escape(label.replace(':', '_'))}_(.+)")
    return sorted({found[1] for name in zoo_names() if (found := pattern.fullmatch(name))})


@lru_cache  # called for every scheme, and each call builds the network
def has_weights(backbone: str) -> bool:
    """Whether a backbone has parameters; False for interpolation."""
    return bool(list(BACKBONES.get(backbone)(scale=4).parameters()))


def code_of(backbone: str, scheme: str, named: Sequence[str] = ()) -> str:
    """SHA-256 of the code that makes the numbers of a backbone under a scheme, hexadecimal.

    Args:
        backbone: registered name, or label of one of `named`.
        scheme: scheme as in a command.
        named: networks of --model.

    Raises:
        UserError: a name is unknown, one of the classes has no source file, or a file is not valid Python.
    """
    model = next((model for model in named if models.label(model) == backbone), None)
    try:
        if model is not None:
            return models.code_of(models.opened(model), scheme)
        return code_sha256((BACKBONES.get(backbone), SCHEMES.get(scheme_name(scheme))))
    except UserError as error:
        raise UserError(f"{backbone} {scheme}: {error}") from error


def find(backbone: str, scheme: str, scale: int) -> Source:
    """The source of a network: trained weights of the zoo, published ones, or FP32 weights and calibration statistics.

    If the code of a plug-in raises, the source is `broken` and its `reason` is the error.

    Raises:
        UserError: a name is unknown, or a scheme or backbone has no source file.
    """
    code = code_of(backbone, scheme)
    try:
        return replace(locate(backbone, scheme, scale), code=code)
    except UserError:
        raise
    except Exception as error:  # an error of a plug-in ends its own cells only
        return Source(backbone, scheme, scale, reason=one_line(error), code=code, broken=True)


def locate(backbone: str, scheme: str, scale: int) -> Source:
    """`find` without `code`. This is enough to load the network, but not to compare it with a stored cell."""
    source = partial(Source, backbone, scheme, scale)
    if not has_weights(backbone):
        return source()
    trained = zoo_path(f"{zoo_name(backbone, scale, scheme)}.safetensors")
    parent = zoo_path(f"{zoo_name(backbone, scale, PARENT)}.safetensors")
    if trained.exists():
        return source(files=(trained,), reason=_other_parent(trained, parent))
    authors = None if parent.exists() else published.of_backbone(backbone, scale)
    if scheme == PARENT and authors is not None:
        return _published(source, authors)
    if scheme_of(scheme).outer_bits != FULL_PRECISION:
        inner = locate(backbone, with_outer_bits_of(scheme, FULL_PRECISION), scale)
        return replace(inner if inner.reason else models.calibrated_source(inner, None), scheme=scheme)
    if models.needs_file(scheme):
        made = f"python -m cadyq.{_command(scheme)}"
        return source(reason=f"no trained weights: {trained.name} is in no zoo; make it with {made}, or name its --zoo")
    statistics = zoo_path(calibration_file(backbone, scale))
    files = (parent, statistics) if authors is None else (statistics,)
    missing = [file.name for file in files if not file.exists()]
    if missing:
        reason = f"calibration needs {missing[0]}, which is in no zoo"
        made = f"; make it with python -m cadyq.zoo.ship calibration {backbone} --data-root PHOTOGRAPHS --zoo DIR"
        return source(reason=reason + made * (missing[0] == statistics.name))
    return source(files=files) if authors is None else _published(source, authors, statistics)


def _other_parent(trained: Path, parent: Path) -> str:
    """Why a network cannot stand beside the FP32 network of its backbone: it comes from another. Empty if it can."""
    other = other_parent(trained, parent) if parent.exists() and trained != parent else ""
    if not other:
        return ""
    what = f"{trained.name} was made from another FP32 network ({other}) than {parent.name}"
    return f"{what}, so no drop can be given; give the file of its own FP32 network as --model instead"


def _command(spec: str) -> str:
    """The command of `cadyq` that makes a network of a scheme as written in a command."""
    return "calibrate" if parse_scheme(spec)[2] == TUNED else scheme_of(spec).made_by()


def _published(source: partial[Source], row: Published, *others: Path) -> Source:
    """The source with FP32 weights of other authors and `others`, the files that belong to them."""
    try:
        return source(files=(published.locate(row.name), *others), parent=f"{published.PREFIX}{row.name}")
    except UserError as error:
        return source(reason=str(error))


def load(source: Source) -> SRNetwork:
    """The network of a source without a `reason`, in eval mode.

    If its outer layers were not quantized in training, they are calibrated on the photographs inside scikit-image.
    """
    if source.model:
        return models.load(source)
    if source.calibration_sha256:
        inner = replace(
            source, scheme=with_outer_bits_of(source.scheme, FULL_PRECISION), calibration="", calibration_sha256=""
        )
        patches, bits = models.patches_of(None, source.scale), scheme_of(source.scheme).outer_bits
        return with_outer_bits(load(inner), patches, bits)
    if not source.files:
        return cadyq.create_model(source.backbone, source.scheme, source.scale).eval()
    parent = load_model(source.parent or source.files[0])
    if len(source.files) == 1:
        return parent
    return calibrated(parent, source.scheme, load_statistics(source.files[1])).eval()
