"""What a run measures: the word "zoo", and what is missing where a scheme was asked for by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.run.command import main, not_measured
from analysis.run.plan import Plan, make_plan
from cadyq.utils.errors import UserError

TAGGED = "cadyq:fab5"  # in the zoo for CARN-M alone


def _reasons(plan: Plan) -> dict[tuple[str, str], str]:
    return {(source.backbone, source.scheme): source.reason for source in plan.sources()}


def test_the_zoo_is_every_network_that_it_holds_and_nothing_is_missing() -> None:
    plan = make_plan("paper", 4, backbones=["edsr", "carn_m"], schemes=["zoo"])
    reasons = _reasons(plan)
    assert ("carn_m", TAGGED) in reasons
    assert ("edsr", TAGGED) not in reasons
    assert not any(reasons.values())
    assert not any(scheme == "oracle" for _, scheme in reasons)


def test_what_is_asked_for_by_name_is_said_to_be_missing() -> None:
    plan = make_plan("paper", 4, backbones=["edsr", "carn_m"], schemes=[TAGGED, "zoo"])
    reasons = _reasons(plan)
    assert "edsr_x4_cadyq_fab5.safetensors is in no zoo" in reasons[("edsr", TAGGED)]
    assert not reasons[("carn_m", TAGGED)]
    assert plan.schemes.count(TAGGED) == 1 and TAGGED not in plan.of_the_zoo


def test_a_trained_variant_that_only_another_backbone_has_is_missing() -> None:
    """It is not replaced by the scheme without training: the number would stand under a wrong name."""
    plan = make_plan("paper", 4, backbones=["edsr", "carn_m"], schemes=["dynamic_range:w8a5:trained"])
    edsr, carn_m = plan.sources()
    assert not edsr.reason
    assert "carn_m_x4_dynamic_range_w8a5_trained.safetensors is in no zoo" in carn_m.reason


def test_the_zoo_holds_every_backbone_once() -> None:
    plan = make_plan("paper", 4, backbones=["zoo", "edsr"], schemes=["fp32"])
    assert sorted(plan.backbones) == ["carn", "carn_m", "edsr", "idn", "srresnet"]
    assert plan.of_the_zoo == ()


def test_what_is_named_twice_is_measured_once() -> None:
    made = make_plan("embedded", 4, ["idn", "idn"], ["fp32", "fp32"], ["Set5", "Set5"], ["image", "image"])
    assert (made.backbones, made.schemes, made.datasets, made.modes) == (("idn",), ("fp32",), ("Set5",), ("image",))


def test_interpolation_is_combined_with_fp32_alone() -> None:
    """A tag names trained weights, which interpolation has not."""
    made = make_plan("embedded", 4, backbones=["bicubic", "edsr"], schemes=["fp32", "fp32:longer", "pams:w8a8"])
    assert [source.scheme for source in made.sources() if source.backbone == "bicubic"] == ["fp32"]


def test_a_scheme_that_no_network_has_is_named() -> None:
    plan = make_plan("embedded", 4, backbones=["idn"], schemes=["fp32", "pams:w8a5", "pams:w8a6", "zoo"])
    cells = [("fp32", "measured", ""), ("pams:w8a5", "skipped", "no trained weights"), ("pams:w8a6", "cached", "")]
    cells += [("dorefa:w4a4", "skipped", "no trained weights")]  # of the zoo: no one asked for it
    statuses = [{"backbone": "idn", "scheme": s, "status": status, "reason": why} for s, status, why in cells]
    assert not_measured(plan, statuses) == ["--schemes pams:w8a5: was measured on no network: no trained weights"]


def test_calibration_images_without_a_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--calibration", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "calibrates --model only; name one, or leave the option out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("all images", "tables give the means over all datasets this name; rename the folder"),
        ("My photos (2024)", "may hold letters, digits, space, . _ - only; rename the folder"),
    ],
)
def test_names_of_datasets_that_cannot_be_used(name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"--datasets '{re.escape(name)}'.*{words}"):
        make_plan("paper", 4, datasets=[name])
