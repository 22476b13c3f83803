"""Several processes that train one detector together, started by torchrun. Told in the appendix on speed.

Each takes its share of every batch through the network. The embeddings are gathered before the losses, because the
contrastive loss compares every clip of the batch with every other: N processes with B / N clips each then have the
loss and the gradient of one process with B clips.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from osscl_lite.errors import BadInput


@dataclass(frozen=True)
class Team:
    """The processes of one training: how many, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's clips of a batch of ``count``, which the number of processes divides."""
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def gather(self, z: Tensor) -> Tensor:
        """The embeddings of the whole batch, in its order, with gradient: (B / N, E) -> (B, E)."""
        return z if self.size == 1 else torch.cat(all_gather(z))

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """A module whose gradients are averaged over the processes in ``backward``."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)

    def synchronised(self, model: nn.Module, device: torch.device) -> nn.Module:
        """BatchNorm over the whole batch on GPUs; on CPUs, where torch has none, over each process's share."""
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if self.size > 1 and device.type == "cuda" else model

    def agree(self, tensors: list[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does it, then the others: what it cached they find."""
        if self.size > 1 and not self.first:
            dist.barrier()
        yield
        if self.size > 1 and self.first:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """This process's place: among those that torchrun started, or alone.

    Raises:
        BadInput: inside, when another process of the team is gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    team = Team(dist.get_rank(), dist.get_world_size())
    try:
        yield team
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not lost(error):
            raise
        raise BadInput(
            f"process {team.rank} of {team.size}: another process of this training is gone "
            f"({str(error).splitlines()[0][:120]}); the last whole epoch is in the checkpoint, "
            "start the same command again to go on"
        ) from None
    finally:
        dist.destroy_process_group()


def lost(error: RuntimeError) -> bool:
    """Whether an error is that of a connection to another process."""
    words = ("connection", "peer", "gloo", "nccl", "timed out", "timeout", "socket")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
