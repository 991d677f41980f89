"""Schemes as written in a command: what is written is read back, and what is wrong is said in one line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cadyq
from cadyq.quantizers.base import ActivationQuantizer, WeightQuantizer
from cadyq.schemes.base import SCHEMES, FixedBitScheme, Scheme
from cadyq.schemes.specs import canonical, option_kinds, parse_scheme, read_options, scheme_name, scheme_of
from cadyq.utils.errors import UserError


@dataclass(frozen=True)
class Everything(FixedBitScheme):
    """Options of every kind that can be written."""

    threshold: float = 0.5
    levels: tuple[int, ...] = (4, 6)
    edges: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    text: str = "one"
    flag: bool = False
    most: int | None = None
    start: tuple[int, int] = (0, 0)
    held: object = None

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer | None:
        return None


@pytest.fixture(autouse=True)
def everything(registries: None) -> None:
    SCHEMES.register("everything")(Everything)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KINDS: dict[Any, st.SearchStrategy[Any]] = {
    float: NUMBERS,
    int: st.integers(-(10**6), 10**6),
    bool: st.booleans(),
    str: WORDS,
    int | None: st.none() | st.integers(-9, 9),
}
BITS = st.integers(2, 8)
SPACE = st.sets(BITS, min_size=2).map(lambda bits: tuple(sorted(bits)))
# options that a scheme refuses most values of
OWN: dict[str, st.SearchStrategy[Any]] = {
    "weight_bits": BITS,
    "act_bits": BITS,
    "search_space": SPACE,
    "range_start": st.sampled_from(["share", "parent"]),
    "selector_inputs": st.sampled_from(["normalized", "paper"]),
    "objective": st.sampled_from(["mse", "db"]),
    "stats_stride": st.integers(1, 64),
}


def values(name: str, kind: Any) -> st.SearchStrategy[Any]:
    if name in OWN:
        return OWN[name]
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        entries = KINDS[first].filter(lambda value: value != "")
        return st.tuples(entries, entries) if rest == [first] else st.lists(entries, max_size=5).map(tuple)
    return KINDS[kind]


@st.composite
def schemes(draw: st.DrawFn, name: str) -> Scheme:
    """A scheme with some options at other values, as far as it takes them."""
    kinds = {option: kind for option, kind in option_kinds(SCHEMES.get(name)).items() if kind is not object}
    options = {option: draw(values(option, kind)) for option, kind in kinds.items() if draw(st.booleans())}
    made: Scheme | None = None
    while made is None:
        try:
            made = SCHEMES.get(name)(**options)
        except UserError:
            options.popitem()
    return made


@pytest.mark.parametrize("name", [*cadyq.list_schemes(), "everything"])
def test_a_label_reads_back_to_the_same_scheme(name: str) -> None:
    SCHEMES.get(name)

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(schemes(name), st.from_regex(r"[\w.-]{0,8}", fullmatch=True))
    def check(scheme: Scheme, tag: str) -> None:
        label = scheme.label()
        assert scheme_name(label) == name and scheme_of(label) == scheme
        assert not set(label.partition(",")[2]) & set(" :/\n")
        assert canonical(label) == label
        if not tag or parse_scheme(f"{label}:{tag}")[2] == tag:  # a tag such as w8a8 is read as bits
            assert canonical(f"{label}:{tag}") == (f"{label}:{tag}" if tag else label)

    check()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("pams", "pams:w8a8"),
        ("cadyq", "cadyq"),
        ("fp32", "fp32"),
        ("static", "static"),
        ("everything", "everything:w8a8"),
    ],
)
def test_a_plain_scheme_keeps_its_label(name: str, label: str) -> None:
    assert scheme_of(name).label() == canonical(name) == label


@pytest.mark.parametrize(
    ("spec", "options", "tag", "label"),
    [
        ("everything:w4a4,threshold=0.05", {"weight_bits": 4, "act_bits": 4, "threshold": 0.05}, "", None),
        ("everything,act_bits=4", {"act_bits": 4}, "", "everything:w8a4"),
        (
            "everything,threshold=1e-5,most=none",
            {"threshold": 1e-5, "most": None},
            "",
            "everything:w8a8,threshold=0.00001",
        ),
        ("everything,levels=-1--2-3:seed1", {"levels": (-1, -2, 3)}, "seed1", "everything:w8a8,levels=-1--2-3:seed1"),
        ("everything,levels=,flag=true", {"levels": (), "flag": True}, "", "everything:w8a8,levels=,flag=true"),
        ("everything,words=a%2Db-c", {"words": ("a-b", "c")}, "", "everything:w8a8,words=a%2Db-c"),
        ("everything,start=3-4", {"start": (3, 4)}, "", "everything:w8a8,start=3-4"),
        ("cadyq,search_space=4-5-6,stats_stride=8", {"search_space": (4, 5, 6), "stats_stride": 8}, "", None),
        ("cadyq,search_space=4-6-8", {"search_space": (4, 6, 8)}, "", "cadyq"),
        ("oracle,price=0.5:mine", {"price": 0.5}, "mine", None),
    ],
)
def test_options_are_read(spec: str, options: dict[str, Any], tag: str, label: str | None) -> None:
    name = scheme_name(spec)
    assert parse_scheme(spec) == (name, options, tag)
    assert canonical(spec) == (label or spec)
    assert scheme_of(spec) == SCHEMES.get(name)(**options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "everything,treshold=1",
            "everything has no option 'treshold' (did you mean 'threshold'?): known are outer_bits, weight_bits",
        ),
        ("fp32,threshold=1", "fp32 has no option 'threshold': known are outer_bits"),
        ("everything,threshold", "'threshold' is no option; write OPTION=VALUE"),
        ("everything,", "'' is no option; write OPTION=VALUE"),
        ("everything,threshold=x", "threshold='x' is out of range: give a number, such as 0.5"),
        ("everything,threshold=nan", "threshold='nan' is out of range: give a number"),
        ("everything,levels=4-x", "levels='4-x' is out of range: give a whole number, such as 4-6"),
        ("everything,levels=4.5", "give a whole number"),
        ("everything,start=3", "start='3' is out of range: give 2 values"),
        ("everything,flag=1", "flag='1' is out of range: give true or false, such as false"),
        ("everything,most=x", "most='x' is out of range: give a whole number or none"),
        ("everything,held=1", "held cannot be given here"),
        ("everything:w4a4,act_bits=4", "act_bits is given twice; write it once"),
        ("everything,flag=true,flag=true", "flag is given twice"),
        ("everything,act_bits=9", "act_bits=9 is out of range: give a whole number from 2 to 8"),
        ("cadyq,search_space=8-4", "search_space=(8, 4) must hold two or more bit-widths in ascending order"),
        ("cadyq:w4a4", "cadyq has no option act_bits; write 'cadyq' alone, or cadyq:TAG"),
        ("everything:tag,flag=true", "the tag 'tag,flag=true' is out of range; write NAME"),
        ("everythin,flag=true", "unknown scheme 'everythin' (did you mean 'everything'?)"),
        ("", "unknown scheme ''"),
    ],
)
def test_what_is_wrong_is_said(spec: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_scheme(spec)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_scheme_that_raises_another_error_is_named(registries: None) -> None:
    @dataclass(frozen=True)
    class Picky(Scheme):
        share: float = 0.5

        def __post_init__(self) -> None:
            if self.share > 1:
                raise ValueError("a share above 1")

        def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer | None:
            return None

        def weight_quantizer(self) -> WeightQuantizer | None:
            return None

    SCHEMES.register("picky")(Picky)
    with pytest.raises(UserError, match=r"scheme 'picky,share=2': a share above 1"):
        parse_scheme("picky,share=2")


def test_options_reach_the_network() -> None:
    network = cadyq.create_model("edsr", "cadyq,search_space=4-5-6", n_feats=8, n_resblocks=1)
    assert network.scheme is not None and network.scheme.options()["search_space"] == [4, 5, 6]
    assert {field.name for field in fields(network.scheme)} >= {"search_space"}


def test_bits_in_the_other_order_are_no_tag() -> None:
    with pytest.raises(UserError, match="weights come first; write pams:w8a5"):
        parse_scheme("pams:a5w8")


def test_options_given_one_by_one_have_the_form_of_a_spec_or_of_toml() -> None:
    for text in ("4-5-6", "[4, 5, 6]"):
        assert tuple(read_options("static", [f"search_space={text}"])["search_space"]) == (4, 5, 6)
    assert read_options("oracle", ["objective=db", "sweeps=1", "price=0.5"]) == {
        "objective": "db",
        "sweeps": 1,
        "price": 0.5,
    }
    with pytest.raises(UserError, match=r"scheme 'static': search_space='4-x' is out of range: give a whole number"):
        read_options("static", ["search_space=4-x"])
    with pytest.raises(UserError, match="static has no option 'spaces'"):
        read_options("static", ["spaces=4-6"])
