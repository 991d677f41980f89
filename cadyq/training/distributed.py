"""Training in several processes started by torchrun. One process runs the same code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError
from cadyq.utils.locks import alone_in
from cadyq.utils.wording import counted

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """The processes of one training. Each holds the same network and takes its share of each batch.

    Attributes:
        rank: number of this process; process 0 writes the files.
        count: number of processes.
        device: device of this process.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """The part of a batch of `size` patches that this process takes.

        Raises:
            UserError: the batch cannot be divided equally.
        """
        if size % self.count:
            raise UserError(
                f"batch={size} cannot be divided among {self.count} processes; give a multiple of {self.count}"
            )
        part = size // self.count
        return slice(self.rank * part, (self.rank + 1) * part)

    def mean(self, values: Iterable[float]) -> list[float]:
        """The mean of each value over the processes."""
        own = list(values)
        if self.count == 1:
            return own
        shared = torch.tensor(own, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return [float(value) for value in shared / self.count]

    def average_gradients(self, network: nn.Module) -> None:
        """Average all gradients over the processes: the gradient of the mean loss over the whole batch."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def average_statistics(self, network: nn.Module) -> None:
        """Average the running statistics of batch normalization over the processes."""
        if self.count == 1:
            return
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for statistic in (module.running_mean, module.running_var):
                    if isinstance(statistic, Tensor):
                        distributed.all_reduce(statistic)
                        statistic /= self.count

    def same_start(self, network: nn.Module) -> None:
        """Copy the first process's parameters and buffers to all others."""
        if self.count > 1:
            for tensor in (*network.parameters(), *network.buffers()):
                shared = tensor.detach().to(self.device)  # nccl cannot send what lies on the CPU, such as flags
                distributed.broadcast(shared, src=0)
                tensor.detach().copy_(shared)

    def in_turn(self, action: Callable[[], T]) -> T:
        """Run `action` in the first process, then in the others, which find the first one's files."""
        if not self.first:
            self.wait()
        result = action()
        if self.first:
            self.wait()
        return result

    @contextmanager
    def alone_in(self, folder: Path) -> Iterator[None]:
        """Lock `folder` for this training: the first process takes the lock, and the others wait for it."""
        with alone_in(folder) if self.first else nullcontext():
            self.wait()
            yield

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            distributed.barrier()


def choose_device(name: str) -> torch.device:
    """As `pick_device`, but only devices that can train. Each of several processes takes the GPU of its local rank.

    Raises:
        UserError: there is no such device, or it cannot train.
    """
    device = pick_device(name)
    if device.type == "cuda":
        device = device if device.index is not None else _gpu_of_this_process()
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"--device {name}: not supported for training; use auto, cpu or cuda")
    return device


def _gpu_of_this_process() -> torch.device:
    """The GPU of the local rank that torchrun gave this process.

    Raises:
        UserError: there are fewer GPUs than processes on this machine.
    """
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise UserError(
            f"LOCAL_RANK={rank}: {counted(count, 'GPU')} found; start torchrun with --nproc-per-node {count}"
        )
    return torch.device("cuda", rank)


def join(device: torch.device) -> Processes:
    """Connect to the other processes if torchrun started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(distributed.get_rank(), distributed.get_world_size(), device)


def leave(processes: Processes) -> None:
    """Disconnect from the other processes."""
    if processes.count > 1:
        distributed.destroy_process_group()
