"""Several processes that train as one, each on a device of its own: torchrun's contract.

torchrun, also under SLURM on several nodes, starts the processes and tells each by the environment
(RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) which it is; `launch` does the same on
this machine alone. Each joins the others with `join_ranks` and finds itself as `Ranks`; what they
compute together is `gather_rows` and `synchronise_batch_norm`. All of them read the run directory,
so nodes have to share it. Where one is lost all end, and whoever started them starts them again.
Knows nothing of what is trained.
"""

import contextlib
import gc
import json
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

import s2f
from s2f import errors
from s2f.console import described
from s2f.device import choose_device
from s2f.errors import DeviceError, S2FError, UsageError, WorkerError

LOST = 75  # exit code of a process that lost another and leaves it to `launch` to say so
LAUNCHED = "S2F_LAUNCHED"  # in the environment of processes of `launch`: how often before
RESTARTS = 3  # times that `launch` starts all again where one was killed
GONE = (  # in an error of a process that others have left; the last where a node has no power
    "Connection closed", "Connection reset", "Broken pipe", "Connection refused", "NCCL",
    "Timed out",
)  # fmt: skip
WHY = "why"  # key of the error that ended a process, where the others find it
MEETING = 600.0  # seconds that processes wait for each other at the start, as torchrun does
TORCHRUN = "pt_elastic"  # as torchrun calls its process, where the system tells


def launch(
    size: int,
    device: str,
    arguments: Sequence[str],
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """Run `s2f` with some arguments in `size` processes of this machine, and return its exit code.

    That is the one of the process that failed first, 0 if none did, 130 if interrupted. What goes
    wrong the first process says. SIGTERM and Ctrl-C are passed on; the processes have 30 seconds
    to save. Where one is killed all are started again, three times at most. Raises a DeviceError if
    the devices are not there, or a process was killed once more.
    """
    check_devices(device, size)
    if not device.startswith("cuda"):  # which would take memory of it
        choose_device(device)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    for attempt in range(RESTARTS + 1):
        os.environ[LAUNCHED] = str(attempt)
        codes = _launch_once(size, arguments)
        told = [code for code in codes.values() if code >= 0 and code != LOST]
        for rank, code in codes.items():
            if code < 0 and not (told and code == -signal.SIGTERM):
                message = f"process {rank} of {size} was killed by signal {-code}"
                if told or attempt == RESTARTS:
                    hint = "if memory ran out, lower --batch-size; the same command goes on"
                    raise DeviceError(message, hint=hint)
                note(f"{message}; all are started again, and go on from the last save")
                break
        else:
            if codes and not told:
                raise _lost()
            return int(told[0]) if told else 0
    raise AssertionError  # the last attempt has returned or raised


def _launch_once(size: int, arguments: Sequence[str]) -> dict[int, int]:
    """Run `s2f` in processes, and give the exit codes of those that failed, the first one first."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we say it ourselves
    config = LaunchConfig(1, 1, size, run_id=uuid.uuid4().hex, max_restarts=0)
    config.rdzv_backend, config.rdzv_endpoint = "c10d", "localhost:0"
    # They meet here: what this machine is called elsewhere torch would ask a name server.
    look_up = socket.getfqdn
    socket.getfqdn = lambda name="": "localhost"
    try:
        elastic_launch(config, sys.executable)("-m", "s2f", *arguments)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException:
        return {0: 130}
    finally:
        socket.getfqdn = look_up
    return {}


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
    restarted: bool = False  # whether others were started before them, and did not end well

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

    def agree(self, told: Mapping[str, object]) -> None:
        """Raise a UsageError, in all of them, where one is told something else than the first."""
        (_, first), *others = self.gather((platform.node(), dict(told)))
        for rank, (node, theirs) in enumerate(others, 1):
            for key in first | theirs:
                if first.get(key) != theirs.get(key):
                    message = f"process {rank} on {node} has {key} {theirs.get(key)}; the first "
                    hint = "give all nodes the same command, data and networks"
                    raise UsageError(f"{message}has {key} {first.get(key)}", hint=hint)


ALONE = Ranks()


def world_size() -> int:
    """How many processes the environment says there are; 0 if it says nothing."""
    return int(os.environ.get("WORLD_SIZE", 0)) if "RANK" in os.environ else 0


@contextlib.contextmanager
def join_ranks(name: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the other processes, if there are any; of a device `cuda`, give this process's own.

    Raises a DeviceError if this process or another has no such device of its own, or they do not
    find each other; a UsageError if they have unlike devices or versions of s2f; and where another
    process has ended, the S2FError that it ended with, a KeyboardInterrupt if it was interrupted,
    or a DeviceError if it could not tell.
    """
    if world_size() < 2:
        yield ALONE, choose_device(name)
        return
    launcher, node = os.getppid(), platform.node()
    restarts = os.environ.get(LAUNCHED) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    told: dict[str, Any] = {"node": node, "s2f": s2f.__version__, "restarts": restarts}
    try:
        device = _own_device(name)
        told["device"] = device.type
    except DeviceError as error:
        told["error"] = described(error)  # the first says it
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=MEETING)))
        room, everyone = _meet(store, rank, size, told)
        _refuse_unlike(everyone)
    except distributed.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        message = f"the processes do not find each other at {where}: {_first_line(error)}"
        raise DeviceError(message, hint="see what the node of that address says") from error
    except S2FError as error:
        _end_restarts(error, launcher)
        raise
    restarted = any(one["restarts"] != "0" for one in everyone)  # torchrun counts by node
    try:
        _connect(device, room, rank, size)
        yield Ranks(rank, size, launcher, restarted), device
    except (S2FError, KeyboardInterrupt) as error:
        _see_to_the_end()
        with contextlib.suppress(RuntimeError):  # nobody is left to be told
            why = (
                _located(described(error), node, everyone) if isinstance(error, S2FError) else None
            )
            room.set(WHY, json.dumps(why))
        _end_restarts(error, launcher)
        raise
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or any(w in str(error) for w in GONE)):
            raise
        _see_to_the_end()
        with contextlib.suppress(RuntimeError):  # whoever kept it has ended too
            if room.check([WHY]):
                why = json.loads(room.get(WHY))
                if why is None:
                    raise KeyboardInterrupt from error
                failure = _as_error(why)
                _end_restarts(failure, launcher)
                raise failure from error
        if LAUNCHED in os.environ:
            raise SystemExit(LOST) from error
        raise _lost() from error
    finally:
        gc.collect()  # what averages gradients holds the group, in a circle, and must go first
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _own_device(name: str) -> torch.device:
    """Choose the device of this process, which of several GPUs is the one of its number."""
    device = choose_device(name)
    if device.type != "cuda":
        return device
    local = int(os.environ["LOCAL_RANK"])
    check_devices("cuda", local + 1)
    return torch.device("cuda", local)


def _meet(
    store: Any, rank: int, size: int, told: Mapping[str, Any]
) -> tuple[Any, list[dict[str, Any]]]:
    """Wait for the other processes; give a store that these alone share, and what each has told.

    A store outlives processes that are started again, not all at a time, and numbers of attempts
    differ where a node has come anew. So the first process names a meeting; the others come to the
    last that was named, and again where a new one is; and it is held once the first has seen all.
    Raises a DeviceError if somebody does not come.
    """
    mine, named, room = {**told, "id": uuid.uuid4().hex}, None, store
    deadline, others = time.monotonic() + MEETING, [str(k) for k in range(1, size)]
    if rank == 0:
        named = uuid.uuid4().hex
        room = distributed.PrefixStore(named, store)  # type: ignore[attr-defined]
        store.set("meeting", named)
    while True:
        if rank == 0:
            missing = [k for k in others if not room.check([k])]
            if not missing:
                everyone = [mine, *(json.loads(room.get(k)) for k in others)]
                room.set("held", json.dumps(everyone))
                return room, everyone
        else:
            missing = ["0"]
            if store.check(["meeting"]):
                if (last := store.get("meeting").decode()) != named:
                    named, room = last, distributed.PrefixStore(last, store)  # type: ignore[attr-defined]
                    room.set(str(rank), json.dumps(mine))
                if room.check(["held"]):
                    everyone = json.loads(room.get("held"))
                    if any(one["id"] == mine["id"] for one in everyone):
                        return room, everyone
        if time.monotonic() > deadline:
            message = f"process {missing[0]} of {size} has not come in {MEETING:g} s"
            hint = "see what its node says, and give the same command on all nodes"
            raise DeviceError(message, hint=hint)
        time.sleep(0.05)


def _refuse_unlike(everyone: Sequence[Mapping[str, Any]]) -> None:
    """Raise the first error that one of all processes has told, or a UsageError if two differ."""
    for one in everyone:
        if "error" in one:
            raise _as_error(_located(one["error"], one["node"], everyone))
    for rank, one in enumerate(everyone):
        for key, hint in (
            ("s2f", "install one version of s2f on all nodes"),
            ("device", "give --device cpu, or cuda where all nodes have GPUs"),
        ):
            if one[key] != everyone[0][key]:
                message = f"process {rank} on {one['node']} has {key} {one[key]}; the first has "
                raise UsageError(f"{message}{everyone[0][key]}", hint=hint)


def _located(
    why: dict[str, Any], node: str, everyone: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Add to an error of another node than that of the first process, which says it, where."""
    away = node != everyone[0]["node"]
    return why | {"message": f"on {node}: {why['message']}"} if away else why


def _as_error(why: Mapping[str, Any]) -> S2FError:
    """Make the error that `described` has told."""
    kind: type[S2FError] = getattr(errors, why["error"])
    return kind(why["message"], hint=why["hint"], details=why.get("details", ()))


def _connect(device: torch.device, store: Any, rank: int, size: int) -> None:
    """Make the group of processes that have met, or raise a DeviceError."""
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        message = f"the processes cannot reach each other: {_first_line(error)}"
        hint = "name the network that joins the nodes: GLOO_SOCKET_IFNAME=eth0, and for GPUs "
        hint += "NCCL_SOCKET_IFNAME=eth0"
        raise DeviceError(message, hint=hint) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _restarts_left() -> int:
    """How often torchrun would start this process again."""
    told = (os.environ.get(f"TORCHELASTIC_{k}", "0") for k in ("MAX_RESTARTS", "RESTART_COUNT"))
    most, done = map(int, told)
    return most - done


def _end_restarts(error: BaseException, launcher: int) -> None:
    """End torchrun, which would do again what a user has to mend; elsewhere it does."""
    lost = not isinstance(error, S2FError) or isinstance(error, DeviceError | WorkerError)
    if lost or os.environ.get("LOCAL_RANK") != "0" or _restarts_left() < 1:
        return
    _see_to_the_end()  # it passes the signal on
    with contextlib.suppress(OSError):
        if (
            os.getppid() == launcher
            and Path(f"/proc/{launcher}/comm").read_text() == f"{TORCHRUN}\n"
        ):
            os.kill(launcher, signal.SIGTERM)


def _see_to_the_end() -> None:
    """Ignore SIGTERM, which is what a launcher answers an error with, so as to say what it is."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _lost() -> DeviceError:
    hint = "see what it says; if nothing, memory may have run out: lower --batch-size; the same "
    hint += "command goes on from the last save"
    if _restarts_left() > 0:
        hint = "none is needed: torchrun starts all again, and they go on from the last save"
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
