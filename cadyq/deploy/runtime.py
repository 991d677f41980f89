"""Runs an exported network and compares it with its simulation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs


@dataclass(frozen=True)
class Agreement:
    """Differences between the exported and the simulated network on one image.

    Attributes:
        within_one: share of values that are at most one 8-bit grey level apart.
        psnr_db: PSNR of the exported minus that of the simulated one against HR, over RGB.
    """

    within_one: float
    psnr_db: float


def open_session(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        path: of the .onnx file.
        threads: CPU threads, 0 for the runtime's choice.

    Raises:
        UserError: onnxruntime is not installed, or cannot read the file.
    """
    with needs("deploy", "running an exported network"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not has_vnni():
        # sums of two int8 products may overflow 16 bits; this takes the exact kernels, which are slower
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no base class
        raise UserError(f"{path}: onnxruntime cannot read it ({error}); export it again") from error


class OpenVINOSession:
    """An exported network that OpenVINO runs on the CPU, in single precision where it is not quantized.

    It is compiled for each shape of LR anew, and the last one is kept. It has onnxruntime's `run`, so that `run` and
    `agreement` take either. On a CPU without VNNI its INT8 kernels are not exact: a warning says so.

    Args:
        path: of the .onnx file.
        threads: CPU threads, 0 for the runtime's choice.

    Raises:
        UserError: OpenVINO is not installed, or cannot read the file.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        with needs("openvino", "running a network by OpenVINO"):
            import openvino
        if not has_vnni():
            warnings.warn(
                "OpenVINO's INT8 kernels are not exact on this CPU, which has no VNNI: SR may be wrong by several grey "
                "levels; use onnxruntime",
                stacklevel=2,
            )
        self.settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            self.settings["INFERENCE_NUM_THREADS"] = threads
        self.core = openvino.Core()
        try:
            self.model = self.core.read_model(str(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-160:]
            raise UserError(f"{path}: OpenVINO cannot read it ({reason}); export it again") from error
        self.shape: tuple[int, ...] = ()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The named outputs of the one input."""
        ((name, values),) = inputs.items()
        if self.shape != values.shape:
            self.model.reshape({name: list(values.shape)})
            self.compiled = self.core.compile_model(self.model, "CPU", self.settings)
            self.shape = values.shape
        found = self.compiled({name: values})
        return [found[output] for output in outputs]


# name of a runtime -> what opens a file by it, from the file's path and a number of threads
RUNTIMES: dict[str, Callable[[Path, int], Any]] = {"onnxruntime": open_session, "openvino": OpenVINOSession}


def has_vnni() -> bool:
    """Whether the CPU adds int8 products in 32 bits, so that its fast INT8 kernels are exact. False where unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def run(session: Any, lr: Tensor) -> Tensor:
    """SR (B, 3, H scale, W scale) of LR (B, 3, H, W), float32 RGB in 0..255."""
    return torch.from_numpy(session.run(["sr"], {"lr": lr.float().numpy()})[0])


@torch.no_grad()
def agreement(session: Any, network: SRNetwork, lr: Tensor, hr: Tensor) -> Agreement:
    """Compare on an image, both in 8-bit grey levels.

    Args:
        session: of the exported network.
        network: that it was made of, in eval mode.
        lr: uint8 (3, h, w).
        hr: uint8 (3, h scale, w scale).
    """
    batch = lr[None].float()
    exported, simulated = (sr.clamp(0, 255).round() for sr in (run(session, batch), network(batch)))
    within_one = float(((exported - simulated).abs() <= 1).double().mean())
    errors = [(sr - hr).double().square().mean() for sr in (exported, simulated)]
    return Agreement(within_one, float(10 * torch.log10(errors[1] / errors[0])))
