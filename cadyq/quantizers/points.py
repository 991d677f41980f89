"""Quantization points: the places where a scheme quantizes feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cadyq.quantizers.base import FULL_PRECISION, ActivationQuantizer, QuantizerOutput, constant_bits
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.quantizers.running import Forward, running
from cadyq.utils.errors import UserError


class QuantizationPoint(nn.Module):
    """A place where a feature map enters a layer (or a shortcut) that a scheme may quantize.

    Without a quantizer it is the identity.

    Args:
        channels: C of the feature map.
        feeds: the layers that read this point.
        counts_for_fab: whether a scheme may choose the bits here by content, unless the point is excluded. FAB is the
            mean over these points.
        bypassed_by: layers that read the unquantized feature map, but have quantized weights.
        channel_dim: dimension of the channels: 1 as in (B, C, H, W), or -1 as in (B, ..., C), the input of a linear
            layer.
        outer: whether papers leave the layer after it in FP32, see `Scheme.outer_bits`.

    Attributes:
        name: dotted name in its network.
        excluded: whether the point stays in FP32 under every scheme, see `SRNetwork.exclude`.
        quantizer: the scheme's quantizer, or None.
    """

    def __init__(
        self,
        channels: int,
        feeds: Sequence[QuantizedLayer] = (),
        counts_for_fab: bool = True,
        bypassed_by: Sequence[QuantizedLayer] = (),
        channel_dim: int = 1,
        outer: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.excluded = False
        self._counts_for_fab = counts_for_fab
        self.channel_dim = channel_dim
        self.outer = outer
        # tuples, so that the layers are not registered a second time as submodules
        self.feeds = tuple(feeds)
        self.bypassed_by = tuple(bypassed_by)
        self.name = ""
        self.quantizer: ActivationQuantizer | None = None

    @property
    def counts_for_fab(self) -> bool:
        """Whether its bits are part of FAB."""
        return self._counts_for_fab and not self.excluded

    @property
    def layers(self) -> tuple[QuantizedLayer, ...]:
        """The layers whose weights a scheme quantizes here."""
        return self.feeds + self.bypassed_by

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a feature map, in the same shape.

        Raises:
            UserError: the range was never calibrated, or the point runs outside its network.
        """
        forward = running()
        if self.quantizer is None:
            if forward is not None and forward.listener is not None:
                maps = self._as_maps(x, forward)
                forward.listener(self, maps, QuantizerOutput(maps, constant_bits(maps, FULL_PRECISION)))
            return x
        if forward is None:
            raise UserError(
                f"point {self.name!r} runs outside its network: call the network, not one of its blocks, and "
                "train without gradient checkpointing"
            )
        if not self.quantizer.calibrated:
            raise UserError(
                f"point {self.name!r} has no range yet: pass calibration images to cadyq.quantize, or load trained "
                "weights with cadyq.load_model"
            )
        maps = self._as_maps(x, forward)
        output = self.quantizer(maps, forward.context)
        if forward.listener is not None:
            forward.listener(self, maps, output)
        return output.value if maps is x else self._restored(output.value, x)

    def _as_maps(self, x: Tensor, forward: Forward) -> Tensor:
        """`x` in the shape for quantizers: (B, C, H, W), with B the number of LR patches of the forward.

        Networks with windows fold the windows of a patch into the batch, one after another. Linear layers have channels
        last. In both cases the values of a sample become one map (B, C, values, 1).
        """
        samples = len(forward.context.lr)
        if x.dim() == 4 and self.channel_dim == 1 and len(x) == samples:
            return x
        if len(x) % samples:
            raise UserError(
                f"point {self.name!r}: its feature map {tuple(x.shape)} does not begin with the {samples} samples of "
                "the batch, so its bits belong to none of them; leave this layer out: exclude=[...]"
            )
        channels_last = x.movedim(self.channel_dim, -1)
        return channels_last.reshape(samples, -1, self.channels).transpose(1, 2).unsqueeze(-1)

    def _restored(self, maps: Tensor, x: Tensor) -> Tensor:
        """The inverse of `_as_maps`, in the shape of `x`."""
        channels_last = x.movedim(self.channel_dim, -1).shape
        return maps.squeeze(-1).transpose(1, 2).reshape(channels_last).movedim(-1, self.channel_dim)
