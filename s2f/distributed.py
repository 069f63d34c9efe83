"""Several processes that train as one, each on a device of its own: torchrun's contract.

torchrun, also under SLURM on several nodes, starts the processes and tells each by the environment
(RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) which it is; `launch` does the same on
this machine alone. Each joins the others with `join_ranks` and finds itself as `Ranks`; what they
compute together is `gather_rows` and `synchronise_batch_norm`. All of them read the run directory,
so nodes have to share it. Knows nothing of what is trained.
"""

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from s2f import errors
from s2f.console import described
from s2f.device import choose_device
from s2f.errors import DeviceError, S2FError

LOST = 75  # exit code of a process that lost another and leaves it to `launch` to say so
LAUNCHED = "S2F_LAUNCHED"  # in the environment of processes that `launch` started
GONE = ("Connection closed", "Connection reset", "Broken pipe", "Connection refused", "NCCL")
WHY = "why"  # key of the error that ended a process, where the others find it


def launch(size: int, device: str, arguments: Sequence[str]) -> int:
    """Run `s2f` with some arguments in `size` processes of this machine, and return its exit code.

    That is the one of the process that failed first, 0 if none did, 130 if interrupted. What goes
    wrong the first process says. SIGTERM and Ctrl-C are passed on; the processes have 30 seconds
    to save. Raises a DeviceError if the devices are not there, or a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_devices(device, size)
    if not device.startswith("cuda"):  # which would take memory of it
        choose_device(device)
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we say it ourselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    os.environ[LAUNCHED] = str(os.getpid())
    config = LaunchConfig(1, 1, size, run_id=uuid.uuid4().hex, max_restarts=0)
    config.rdzv_backend, config.rdzv_endpoint = "c10d", "localhost:0"
    # They meet here: what this machine is called elsewhere torch would ask a name server.
    look_up = socket.getfqdn
    socket.getfqdn = lambda name="": "localhost"
    try:
        elastic_launch(config, sys.executable)("-m", "s2f", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        told = [code for code in codes.values() if code >= 0 and code != LOST]
        for rank, code in codes.items():
            if code < 0 and not (told and code == -signal.SIGTERM):
                message = f"process {rank} of {size} was killed by signal {-code}"
                hint = "if memory ran out, lower --batch-size; the same command goes on"
                raise DeviceError(message, hint=hint) from error
        if not told:
            raise _lost() from error
        return int(told[0])
    except SignalException:
        return 130
    finally:
        socket.getfqdn = look_up
    return 0


def check_devices(name: str, n: int) -> None:
    """Make sure that this machine has `n` devices of a name, as far as they can be counted."""
    if name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()):
        there, kind = torch.cuda.device_count(), "CUDA"
    elif name == "mps" or (name == "auto" and torch.backends.mps.is_available()):
        there, kind = 1, "MPS"
    else:
        return
    if there < n:
        message = f"{n} {kind} devices are wanted; this machine has {there}"
        raise DeviceError(message, hint="ask for fewer processes, or give --device cpu")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them. Alone, if nothing is said."""

    rank: int = 0  # number of this one
    size: int = 1  # how many there are
    launcher: int | None = None  # the process that started them

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether the launcher was killed, so that nobody is left to end the others."""
        return self.launcher is not None and os.getppid() != self.launcher

    def gather(self, value: Any) -> list[Any]:
        """Give every process what each has, in the order of the ranks. Waits for all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


ALONE = Ranks()


def world_size() -> int:
    """How many processes the environment says there are; 0 if it says nothing."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 0


@contextlib.contextmanager
def join_ranks(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the other processes, if there are any; of a device `cuda`, give this process's own.

    Raises a DeviceError if this process has no device of its own; and where another process has
    ended, the S2FError that it ended with, a KeyboardInterrupt if it was interrupted, or a
    DeviceError if it could not tell.
    """
    if world_size() < 2:
        yield ALONE, device
        return
    backend = "gloo"
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        check_devices("cuda", local + 1)
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    launcher = os.getppid()
    store, rank, size = next(rendezvous("env://"))
    own = distributed.PrefixStore("group", store)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=own, rank=rank, world_size=size)
    try:
        yield Ranks(rank, size, launcher), device
    except (S2FError, KeyboardInterrupt) as error:
        _see_to_the_end()
        with contextlib.suppress(RuntimeError):  # nobody is left to be told
            told = described(error) if isinstance(error, S2FError) else None
            store.set(WHY, json.dumps(told))
        raise
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or any(w in str(error) for w in GONE)):
            raise
        _see_to_the_end()
        with contextlib.suppress(RuntimeError):  # whoever kept it has ended too
            if store.check([WHY]):
                why = json.loads(store.get(WHY))
                if why is None:
                    raise KeyboardInterrupt from error
                kind = getattr(errors, why.pop("error"))
                raise kind(why.pop("message"), **why) from error
        if LAUNCHED in os.environ:
            raise SystemExit(LOST) from error
        raise _lost() from error
    finally:
        gc.collect()  # what averages gradients holds the group, in a circle, and must go first
        distributed.destroy_process_group()


def _see_to_the_end() -> None:
    """Ignore SIGTERM, which is what a launcher answers an error with, so as to say what it is."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _lost() -> DeviceError:
    hint = "see what it says; if nothing, memory may have run out: lower --batch-size; the same "
    hint += "command goes on from the last save"
    return DeviceError("another process of this run has ended", hint=hint)


class _Gather(torch.autograd.Function):
    """Rows of all, [b ...] to [n b ...], with the gradients of all; torch's like is deprecated."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyone = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyone, rows.contiguous())
        return torch.stack(everyone)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Join the rows [b ...] of all processes to [n b ...], with gradients.

    Without gradients, as in validation, everyone is by itself, as alone: n is 1.
    """
    if not distributed.is_initialized() or not torch.is_grad_enabled():
        return rows[None]
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _SyncedBatchNorm(_BatchNorm):
    """BatchNorm over the samples of all processes, as many each, on CPUs, where torch has none."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Take any shape [b c ...]."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean = gather_rows(x.mean(axes, keepdim=True)).mean(0)
        centred = x - mean
        var = gather_rows(centred.square().mean(axes, keepdim=True)).mean(0)
        n = distributed.get_world_size() * x.numel() // x.shape[1]
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(var.flatten() * n / (n - 1), self.momentum)
        scale = self.weight.view_as(mean) * (var + self.eps).rsqrt()
        return centred * scale + self.bias.view_as(mean)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Make BatchNorms count the samples of all processes, in place; the state dict is the same."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _SyncedBatchNorm  # which has the same parameters and buffers
