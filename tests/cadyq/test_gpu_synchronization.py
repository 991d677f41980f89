"""A forward never waits for a GPU to tell it a value.

Tensors of the device "meta" have shapes and no values. What reads a value waits on a GPU and raises there: `item`,
`bool`, `tolist`, `nonzero`, an index that is a tensor of one element.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import cadyq
from cadyq.schemes.base import SCHEMES

SMALL = {"n_feats": 8, "n_resblocks": 1}
NEED_HR = {"oracle"}
# Options as `fit` gives them, for the two points of this network that count. Without them the same bits are everywhere.
FITTED: dict[str, dict[str, Any]] = {
    "cabm": {"edges": (5.0,), "table": ("00", "22")},
    "gradient": {"thresholds": (0.02, 0.05)},
    "profiles": {"score": (1.0, 1.0, 1.0), "edges": (5.0,), "table": ("00", "22")},
    "static": {"by_point": "02"},
}


@pytest.fixture(scope="module", autouse=True)
def shape_of_fake_quantization() -> Iterator[None]:
    """PyTorch does not say which shapes this function gives, which is all that it needs on the device "meta"."""

    def shapes(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    with torch.library._scoped_library("aten", "IMPL", "Meta") as library:
        library.impl("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", shapes)
        yield


def test_a_value_cannot_be_read() -> None:
    one = torch.ones(1, device="meta")
    for read in (bool, float, Tensor.tolist, Tensor.nonzero, lambda x: torch.ones(3)[x.long()[0]]):
        with pytest.raises(RuntimeError):
            read(one)  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.*only its ranges")
@pytest.mark.parametrize(
    ("scheme", "options"), [*((scheme, {}) for scheme in sorted(set(SCHEMES.names()) - NEED_HR)), *FITTED.items()]
)
def test_no_forward_reads_a_value(scheme: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lr = 255 * torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    plain = cadyq.create_model("edsr", **SMALL)
    network = cadyq.quantize(plain, scheme, lr, patches=2, **options).eval().to("meta")
    monkeypatch.setattr(Tensor, "new_tensor", not_in_a_forward)
    with torch.inference_mode():
        assert network(lr.to("meta")).shape == (2, 3, 48, 48)


def not_in_a_forward(*_: object) -> None:
    raise AssertionError("new_tensor waits for a GPU; use cadyq.quantizers.context.constants")


def test_flags_are_stored_and_restored() -> None:
    lr = torch.rand(2, 3, 12, 12) * 255
    network = cadyq.quantize(cadyq.create_model("edsr", **SMALL), "lsq", lr, patches=2)
    network = network.to("meta").to_empty(device="cpu")
    flags = {key: value for key, value in network.state_dict().items() if key.endswith(".signed")}
    assert {bool(value) for value in flags.values()} == {True, False}
    assert {value.device.type for value in network.to("meta").state_dict().values()} == {"cpu", "meta"}
    opposite = {key: ~value for key, value in flags.items()}
    network.load_state_dict({**network.state_dict(), **opposite}, assign=False)
    assert {key: value for key, value in network.state_dict().items() if key in flags} == opposite
