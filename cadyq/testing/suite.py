"""The list of checks, run over backbones and bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cadyq.models.network import BACKBONES
from cadyq.testing import behaviour, values
from cadyq.testing.fault import Fault, raised
from cadyq.testing.subject import BITS_TO_TRY, Case, Subject, backbones_to_check, cases
from cadyq.utils.errors import UserError
from cadyq.utils.seeds import repeatable


class Check(NamedTuple):
    """A property in plain words, and the function that yields what violates it."""

    name: str
    find: Callable[[Subject], Iterator[Fault]]


BUILDS = "is built and calibrated"
RUNS = Check("runs, with a value and bits for each sample", values.runs)
CHECKS = (
    Check("takes at most 2^bits levels", values.level_counts),
    Check("uses the bits that it reports", values.reported_bits),
    Check("treats a sample alone as in a batch", values.batches),
    Check("gives the same twice", behaviour.determinism),
    Check("gives the same with gradients as without", values.gradient_path),
    Check("leaves its input alone", values.input_untouched),
    Check("quantizes what is quantized to itself", values.idempotence),
    Check("comes back as it was saved", behaviour.saving),
    Check("takes images of any size", behaviour.odd_sizes),
    Check("stays finite on black and saturated images", behaviour.extreme_images),
    Check("stays finite on unusual feature maps", behaviour.extreme_features),
    Check("stays finite with weights of zero", behaviour.dead_layers),
    Check("gives a gradient to all that is trained", behaviour.gradients),
    Check("is written and read back the same", behaviour.label),
)


class SchemeCheckError(AssertionError):
    """A scheme fails checks; the message lists each."""


class CheckResult(NamedTuple):
    """One check on one backbone: for each case, its faults."""

    check: str
    backbone: str
    faults: dict[str, list[Fault]]

    @property
    def passed(self) -> bool:
        """Whether no case has a fault."""
        return not any(self.faults.values())

    def lines(self) -> list[str]:
        """A line for each case that failed: its first fault, and how many more there are."""
        written = []
        for case, faults in self.faults.items():
            if faults:
                more = f" (and {len(faults) - 1} more like it)" if len(faults) > 1 else ""
                written.append(f"{case} on {self.backbone}: {faults[0]}{more}")
        return written


def _find(check: Check, subject: Subject) -> list[Fault]:
    try:
        return list(check.find(subject))
    except Exception as error:
        return [raised(error)]


def _check_case(case: Case, backbone: str) -> dict[str, list[Fault]]:
    """Check name -> faults. Where it cannot even run, the other checks would only say so again."""
    try:
        subject = Subject(case, backbone)
    except Exception as error:
        return {BUILDS: [raised(error)]}
    first = _find(RUNS, subject)
    if first:
        return {BUILDS: [], RUNS.name: first}
    return {BUILDS: [], RUNS.name: []} | {check.name: _find(check, subject) for check in CHECKS}


def outcomes(
    spec: str, backbones: Sequence[str] | None = None, bits: Sequence[int] = BITS_TO_TRY
) -> Iterator[CheckResult]:
    """Every check of a scheme, one backbone after the other; the arguments are those of `check_scheme`.

    Raises:
        UserError: unknown scheme or backbone; a backbone without points.
    """
    tried = cases(spec, bits)
    known = backbones_to_check()
    for backbone in backbones or ():
        BACKBONES.get(backbone)
        if backbone not in known:
            raise UserError(f"{backbone} has no quantization points to check; choose from {', '.join(known)}")
    for backbone in backbones or known:
        with repeatable():
            found = {str(case): _check_case(case, backbone) for case in tried}
        for name in (BUILDS, RUNS.name, *(check.name for check in CHECKS)):
            faults = {case: results[name] for case, results in found.items() if name in results}
            if faults:
                yield CheckResult(name, backbone, faults)


def check_scheme(spec: str, backbones: Sequence[str] | None = None, bits: Sequence[int] = BITS_TO_TRY) -> None:
    """Check that a registered scheme keeps the rules of the harness, on every backbone that can be quantized.

    Args:
        spec: its name; with "name:wXaY" it is checked at these bits only.
        backbones: some backbones instead of all that have quantization points.
        bits: tried for its options weight_bits and act_bits; fewer for a scheme whose forward is a long search.

    Raises:
        SchemeCheckError: lists every failed check with backbone, point, sample, bits and a hint.
        UserError: unknown scheme or backbone.
    """
    failed = [outcome for outcome in outcomes(spec, backbones, bits) if not outcome.passed]
    if failed:
        lines = [f"- {outcome.check}: {line}" for outcome in failed for line in outcome.lines()]
        raise SchemeCheckError("\n".join([f"scheme {spec!r} fails {len(failed)} checks", *lines]))
