"""Loads a complete state dict into a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cadyq.checkpoints.tensors import check_finite
from cadyq.models.network import SRNetwork
from cadyq.utils.errors import UserError


def load_state(network: SRNetwork, state: Mapping[str, Tensor], source: str) -> None:
    """Load a complete state into `network`.

    Raises:
        UserError: keys or shapes do not fit, or a parameter or a tensor of a quantizer is not finite. The message names
            the source and the first key. A network's own buffers may hold infinity, as the masks of attention do.
    """
    own = network.state_dict()
    for kind, keys in (("lacks", own.keys() - state.keys()), ("has the unknown", state.keys() - own.keys())):
        if keys:
            raise UserError(
                f"{source}: not weights of {network.name} (scale {network.scale}): it {kind} tensor {min(keys)!r} "
                f"and {len(keys) - 1} more; name the backbone, scheme and sizes it was made with"
            )
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise UserError(
                f"{source}: tensor {key!r} is {tuple(value.shape)}, {network.name} needs {tuple(own[key].shape)}; "
                "name the sizes it was made with"
            )
    learned = dict(network.named_parameters(remove_duplicate=False)).keys() | network.quantizer_tensors()
    check_finite({key: value for key, value in state.items() if key in learned}, source)
    network.load_state_dict(dict(state))
