"""Recipes of training: TOML files in the folder `recipes`, read into a frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from cadyq.schemes.specs import parse_scheme, scheme_name
from cadyq.utils import toml
from cadyq.utils.errors import UserError
from cadyq.utils.options import parse_options
from cadyq.utils.registry import closest

FOLDER = Path(__file__).parent / "recipes"
POSITIVE = ("steps", "batch", "lr_patch", "validate_every", "epoch_steps", "hard_patch_candidates")
SHARES = ("halve_at", "average")  # below 1: an average of 1 never moves, and rates halved at 1 stay the same
CHOICES = {
    "schedule": ("cosine", "halve"),
    "teacher": ("fp32", "parent", "none"),
    "batch_norm": ("frozen", "trained"),
    "trained_layers": ("all", "quantized"),
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run except data and networks.

    Attributes:
        name: name of the file.
        scheme: as in a command; used without --scheme.
        steps: optimizer steps.
        batch: patches per step, over all processes.
        lr_patch: side of an LR patch in pixels.
        rate_weights, rate_selector: Adam learning rates.
        rate_range: learning rate of a clipping bound, see `range_rate_relative`.
        weight_teacher, weight_hr: factors of the L1 distance to the teacher's output and to HR.
        target_fab: image-wise FAB of the held-out photographs that the weight of the bit penalty is controlled to; 0
            for no control.
        steer: change of that weight for each step and bit of difference.
        validate_every: steps between validations on held-out photographs.
        scheme_options: options of `scheme`; ignored if --scheme names another scheme.
        range_rate_relative: whether `rate_range` is in units of each bound's value at the start.
        schedule: "cosine" to zero, or "halve" the rates once, after the share `halve_at` of the steps.
        warmup: steps over which the rates grow linearly to their values.
        bit_weight, bit_weight_growth: without a target FAB, the weight of the bit penalty, summed over selectors and
            patches, and its growth every `epoch_steps` steps (w_bit of the paper).
        weight_at_features, weight_at_branches: factors of attention transfer from the teacher, on the features before
            upsampling and on the blocks' branch outputs (summed).
        teacher: the teacher if --teacher names none: "fp32" (the trained FP32 network of that backbone and scale),
            "parent" (the network to start from) or "none" (without all terms of a teacher).
        average: decay of the exponential moving average of the weights, below 1. The average is validated and saved. 0
            for none.
        augment: whether patches are flipped and transposed at random.
        hard_patch_candidates: random patches to choose each patch from. The one with the largest image gradient is
            taken.
        batch_norm: "frozen" keeps the parent's running statistics, which the ranges were calibrated with; "trained"
            uses those of each batch.
        trained_layers: "quantized" keeps all other layers as in the parent. The drop against FP32 is then due to the
            quantized layers alone, and a file holds only these. "all" trains every layer.
    """

    name: str
    scheme: str
    steps: int
    batch: int
    lr_patch: int
    rate_weights: float
    rate_range: float
    rate_selector: float
    weight_teacher: float
    weight_hr: float
    target_fab: float
    steer: float
    validate_every: int
    scheme_options: dict[str, Any] = field(default_factory=dict)
    range_rate_relative: bool = True
    schedule: str = "cosine"
    halve_at: float = 0.5
    warmup: int = 20
    bit_weight: float = 0.0
    bit_weight_growth: float = 0.0
    epoch_steps: int = 1000
    weight_at_features: float = 0.0
    weight_at_branches: float = 0.0
    teacher: str = "fp32"
    average: float = 0.0
    augment: bool = True
    hard_patch_candidates: int = 1
    batch_norm: str = "frozen"
    trained_layers: str = "all"

    def with_changes(self, **changes: Any) -> Recipe:
        """A copy with options of the command line. None means that an option is not given."""
        given = {key: value for key, value in changes.items() if value is not None}
        if "scheme" in given:
            name, options, _ = parse_scheme(given["scheme"])
            kept = self.scheme_options if name == scheme_name(self.scheme) else {}
            given.setdefault("scheme_options", {key: value for key, value in kept.items() if key not in options})
        return replace(self, **given)

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """A copy with keys set as on a command line: each "key=value", with a value as in TOML.

        Raises:
            UserError: unknown key, or a value of the wrong type or out of range.
        """
        return self.with_changes(**_checked(parse_options(settings, "--set"), "--set", partial=True))

    @property
    def transfers_attention(self) -> bool:
        """Whether the loss has a term of attention transfer."""
        return bool(self.weight_at_features or self.weight_at_branches)

    def without_teacher(self) -> Recipe:
        """A copy without the terms that need a teacher."""
        return replace(self, weight_teacher=0.0, weight_at_features=0.0, weight_at_branches=0.0)


def load_recipe(name: str, backbone: str | None = None) -> Recipe:
    """The recipe of that name, or of the TOML file at that path.

    A file may take over the keys of another recipe (`base = "cadyq"`). Tables `[backbone.NAME]` hold other values for
    single backbones.

    Raises:
        UserError: unknown name, a file that cannot be read or builds on itself, missing or unknown key, a value of the
            wrong type or out of range.
    """
    path = _path(name)
    values = _read(path)
    overrides = values.pop("backbone", {}).get(backbone, {})
    options = values.get("scheme_options", {}) | overrides.get("scheme_options", {})
    values |= overrides
    if options:
        values["scheme_options"] = options
    return Recipe(name=path.stem, **_checked(values, str(path)))


def _path(name: str) -> Path:
    known = sorted(file.stem for file in FOLDER.glob("*.toml"))
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.exists():
        raise UserError(f"no recipe {name!r}{closest(name, known)}: known are {', '.join(known)}, or give a .toml file")
    return path


def _read(path: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a file over those of its bases. `readers` are the files that it is a base of."""
    values = _parsed(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base = {base!r} is no name; write a recipe or a .toml file in quotes")
    readers = (*readers, path.resolve())
    below = _path(base)
    if below.resolve() in readers:
        raise UserError(f"{path}: base = {base!r} leads back to this file; name another recipe")
    return _over(_read(below, readers), values)


def _parsed(path: Path) -> dict[str, Any]:
    """The keys of one file. Those that must be tables are."""
    try:
        values = toml.loads(path.read_text(encoding="utf-8"))
    except toml.TOMLDecodeError as error:
        raise UserError(f"{path}: invalid TOML ({error}); fix the syntax") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a .toml file") from error
    for key, table in _tables(values):
        if not isinstance(table, dict):
            raise UserError(f"{path}: {key} = {table!r} is no table; write [{key}]")
    return values


def _tables(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that must be tables, each before those inside it."""
    yield "scheme_options", values.get("scheme_options", {})
    yield "backbone", values.get("backbone", {})
    for name, table in values.get("backbone", {}).items():
        yield f"backbone.{name}", table
        yield f"backbone.{name}.scheme_options", table.get("scheme_options", {})


def _over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over those of `base`, table by table."""
    both = {
        key: _over(base[key], values[key])
        for key in base.keys() & values.keys()
        if isinstance(base[key], dict) and isinstance(values[key], dict)
    }
    return base | values | both


def _checked(values: Mapping[str, Any], source: str, partial: bool = False) -> dict[str, Any]:
    """The values, with whole numbers turned into floats if a float is expected."""
    expected = {entry.name for entry in fields(Recipe)} - {"name"}
    has_default = {e.name for e in fields(Recipe) if e.default is not MISSING or e.default_factory is not MISSING}
    unknown, missing = set(values) - expected, set() if partial else expected - has_default - set(values)
    if unknown:
        key, known = min(unknown), sorted(expected)
        raise UserError(f"{source}: key {key!r} is unknown{closest(key, known)}: a recipe has {', '.join(known)}")
    if missing:
        raise UserError(f'{source}: key {min(missing)!r} is missing; add it, or take it over by base = "cadyq"')
    return {key: _typed(key, value, source) for key, value in values.items()}


def _typed(key: str, value: Any, source: str) -> Any:
    hint = get_type_hints(Recipe)[key]
    kind = hint if hint in (str, int, float, bool) else dict
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{source}: {key} = {value!r} is not of type {kind.__name__}; correct the value")
    if key in CHOICES and value not in CHOICES[key]:
        raise UserError(f"{source}: {key} = {value!r} is unknown: choose one of {', '.join(CHOICES[key])}")
    if isinstance(value, (int, float)) and not _in_range(key, value):
        span = "a number from 0 to below 1" if key in SHARES else "a positive number"
        raise UserError(f"{source}: {key} = {value} is out of range: give {span}")
    return value


def _in_range(key: str, value: float) -> bool:
    if not math.isfinite(value) or value < 0:
        return False
    return value < 1 if key in SHARES else value > 0 or key not in POSITIVE
