"""Several processes that train one detector together, started by torchrun. Explained in the appendix on speed.

Each takes its share of every batch through the network. The embeddings are gathered before the losses, because the
contrastive loss compares every clip of the batch with every other: N processes with B / N clips each then have the
loss and the gradient of one process with B clips.
"""

import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from hashlib import blake2b
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from osscl_lite.errors import BadInput

AGAIN = "the same command again goes on from the last whole epoch"
GRACE = 2.0  # seconds that the main thread has to end by itself after a signal
teams = count()  # of this process, so that each has names of its own in the store that torchrun keeps


def team_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Whether this process speaks for all while all is well; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Team:
    """The processes of one training: how many, which of them this is, and a store of names that they share.
    Explained in the appendix on speed.
    """

    rank: int = 0
    size: int = 1
    store: Any = None

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
        return z if self.size == 1 else Gathered.apply(z, self)

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """A module whose gradients are averaged over the processes in ``backward``."""
        if self.size == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        with warnings.catch_warnings():  # the option's new name is not known to older versions of torch
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)  # ``agree``: once an epoch

    def synchronised(self, model: nn.Module, device: torch.device) -> nn.Module:
        """BatchNorm over the whole batch on GPUs; on CPUs, where torch has none, over each process's share."""
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if self.size > 1 and device.type == "cuda" else model

    @torch.no_grad()
    def agree(self, tensors: list[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.size > 1:
            together = torch.cat([tensor.flatten() for tensor in tensors])
            dist.broadcast(together, 0)
            for tensor, values in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def all_say(self, text: str, device: torch.device) -> bool:
        """Whether all processes come with the same text."""
        if self.size == 1:
            return True
        mine = torch.frombuffer(bytearray(blake2b(text.encode()).digest()), dtype=torch.uint8).to(device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine)
        return all(torch.equal(mine, other) for other in every)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does it, however long it takes, then the others: what it cached they find."""
        if self.size > 1 and not self.first:
            while not self.store.check(["done"]):
                time.sleep(0.05)
        yield
        if self.size > 1 and self.first:
            self.store.set("done", "")


class Gathered(torch.autograd.Function):
    """The rows of all processes, of which this one's take their gradient back.

    Every process computes the same loss from all rows, so nothing has to travel on the way back. The gradient of a row
    comes times N, because DistributedDataParallel divides the sum over the processes by N.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, team: Team) -> Tensor:
        ctx.team, z = team, z.contiguous()
        parts = [torch.empty_like(z) for _ in range(team.size)]
        dist.all_gather(parts, z)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.team.share(len(grad))] * ctx.team.size, None


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """This process's place: among those that torchrun started, or alone.

    Raises:
        BadInput: if the others are not found; from within, when another process of the team is gone.
    """
    if team_size() == 1:
        yield Team()
        return
    team = _meet(device)
    with last_words(team):
        try:
            yield team
        except BaseException as error:
            gone = isinstance(error, RuntimeError) and lost(error)
            if not gone:
                first_to_speak()  # asked before the others notice: the line about this error is the one to read
            # Destroying the group would wait on GPUs for work that the others no longer do.
            (dist.group.WORLD.abort if device.type == "cuda" else dist.destroy_process_group)()
            if gone:
                raise BadInput(
                    f"process {team.rank} of {team.size}: another process of this training is gone ({short(error)}); "
                    f"{AGAIN}"
                ) from None
            raise
        dist.destroy_process_group()


def _meet(device: torch.device) -> Team:
    """Find the other processes and join them."""
    if not dist.is_available():
        raise BadInput(f"WORLD_SIZE={team_size()}: this build of torch knows one process; start it without torchrun")
    cuda = device.type == "cuda"
    try:
        if cuda:
            torch.cuda.set_device(device)
        store, rank, size = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(f"osscl_lite/{next(teams)}", store)
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, device_id=device if cuda else None
        )
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"WORLD_SIZE={team_size()}: the processes do not find each other ({short(error)}); start them with "
            "torchrun, no more on a machine than it has GPUs where there are some"
        ) from None
    return Team(rank, size, store)


def lost(error: RuntimeError) -> bool:
    """Whether an error is that of a connection to another process; gloo's have no class of their own."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def short(error: Exception) -> str:
    """The first sentence of an error of torch's, without the line of its source."""
    return re.sub(r"^\[[^]]*\] *", "", str(error).partition("\n")[0]).split(". ")[0][:160]


@contextmanager
def last_words(team: Team) -> Iterator[None]:
    """torchrun ends the others with SIGTERM when one is gone: say so before going.

    A thread does, because the main one may be waiting for the process that is gone. After an error it stays: what
    torchrun sends then must not cut off the line about that error.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set a handler
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    number = writing.detach()  # not closed with this frame, which an error ends
    handler, wakeup = signal.signal(signal.SIGTERM, lambda *_: None), signal.set_wakeup_fd(number)

    def listen() -> None:
        while came := reading.recv(1):
            if came[0] in (signal.SIGTERM, signal.SIGINT):
                time.sleep(GRACE)
                if first_to_speak():
                    print(
                        f"\nprocess {team.rank} of {team.size}: told to stop, as torchrun does when another process is"
                        f" gone; {AGAIN}", file=sys.stderr, flush=True,
                    )  # fmt: skip
                os._exit(2)

    threading.Thread(target=listen, daemon=True).start()
    yield
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGTERM, handler)
    socket.close(number)


@cache
def first_to_speak() -> bool:
    """Whether this process tells why all end: the first that asks, so that there is one line, not N."""
    if team_size() == 1 or not dist.is_available():
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, wait_for_workers=False, timeout=timedelta(seconds=5))
        return store.add(f"osscl_lite/spoken/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the store went with the process that kept it
        return True
