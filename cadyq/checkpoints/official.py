"""Imports published weights: those of the backbones' authors and of the CADyQ and PAMS code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadyq.checkpoints.state import load_state
from cadyq.checkpoints.tensors import check_finite, read_state
from cadyq.models.network import SRNetwork
from cadyq.schemes.factory import create_model
from cadyq.utils.errors import UserError

# How the published quantized networks differ from ours, besides the selector's inputs: (backbone, scheme) -> options.
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("carn", "pams"): {"n_feats": 64},
    ("carn", "cadyq"): {"gradient_scale": 1.0},
    ("srresnet", "pams"): {"quantized_input": False},
    ("srresnet", "cadyq"): {"quantized_input": False},
    ("idn", "pams"): {"quantized_features": True},
    ("idn", "cadyq"): {"quantized_features": True},
}
# Sizes that the published command line has for every backbone, but that this backbone does not use.
UNUSED_SIZES = {"carn": {"n_resblocks"}}


def load_official(
    source: str | Path | Mapping[str, Tensor],
    backbone: str,
    scheme: str = "fp32",
    scale: int = 4,
    weight_bits: int = 8,
    search_space: Sequence[int] = (4, 6, 8),
    **sizes: Any,
) -> SRNetwork:
    """A network with published weights, in eval mode. Pickles are read by torch's weights-only reader.

    Quantized networks compute what the published code computes, even where the paper or `create_model` differs; see
    `PUBLISHED` and the docstrings of the backbones. FP32 networks do not differ. A checkpoint does not hold its bits,
    nor IDN's scale, so wrong ones are not noticed.

    Args:
        source: a .safetensors, .pt or .pth file, or its state dict.
        backbone: name of the backbone.
        scheme: "fp32", "pams" or "cadyq". An imported CADyQ uses the paper's selector inputs.
        scale: upscaling factor.
        weight_bits: bits of the weights; for PAMS of the activations too, as in the published code.
        search_space: candidate activation bits of CADyQ.
        **sizes: n_feats, n_resblocks, ... with the paper's values as defaults. CARN ignores n_resblocks. Under PAMS it
            always has 64 features.

    Raises:
        UserError: unreadable file, a pickle that carries code, keys that do not fit.
    """
    state, origin = (source, "state dict") if isinstance(source, Mapping) else (read_state(Path(source)), str(source))
    state = {key.removeprefix("module."): value for key, value in state.items()}
    check_finite(state, origin)
    options: dict[str, Any] = {}
    if scheme == "cadyq":
        options = {"weight_bits": weight_bits, "search_space": tuple(search_space), "selector_inputs": "paper"}
    elif scheme != "fp32":
        options = {"weight_bits": weight_bits, "act_bits": weight_bits}
    sizes = {key: value for key, value in sizes.items() if key not in UNUSED_SIZES.get(backbone, ())}
    network = create_model(backbone, scheme, scale, **(options | sizes | PUBLISHED.get((backbone, scheme), {})))
    try:
        translated = _translate_quantizers(network.translate(state))
    except ValueError as error:
        raise UserError(f"{origin}: not weights of {backbone} ({error}); name the backbone it was made with") from error
    _complete_buffers(network, translated)
    load_state(network, translated, origin)
    return network.eval()


def _translate_quantizers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names of quantizers to ours: alpha, quant_bitK.alpha, net_small. Running maxima are dropped."""
    renamed: dict[str, Tensor] = {}
    bounds: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if key.endswith("max_val"):
            continue
        candidate = re.fullmatch(r"(.+\.quantizer)\.quant_bit(\d+)\.alpha", key)
        if candidate:
            bounds.setdefault(candidate[1], {})[int(candidate[2])] = value
        elif key.endswith(".quantizer.alpha"):
            renamed[key.replace(".alpha", ".bound")] = value
        else:
            renamed[key.replace(".quantizer.net_small.0.", ".quantizer.selector.linear.")] = value
    for prefix, alphas in bounds.items():
        renamed[f"{prefix}.bounds"] = torch.cat([alphas[k] for k in sorted(alphas)])
    return renamed


def _complete_buffers(network: SRNetwork, state: dict[str, Tensor]) -> None:
    """Add what the published format does not store: zeros for absent biases of convolutions, unused selector
    statistics.

    The batch counter of batch normalization exists only in newer versions of PyTorch.
    """
    for key, own in network.state_dict().items():
        if (
            key not in state
            and re.search(r"\.(center|spread|bias|num_batches_tracked)$", key)
            and not key.startswith("tail.")
        ):
            weight = state.get(key.removesuffix("bias") + "weight")
            if key.endswith(".bias") and weight is None:
                continue
            state[key] = torch.zeros_like(own) if key.endswith(".bias") else own
