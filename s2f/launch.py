"""Starting the processes of a run on this machine, as torchrun does."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from s2f.errors import DeviceError
from s2f.ranks import LAUNCHED, LOST, check_devices, lost
from s2f.runtime import choose_device


def launch(size: int, device: str, arguments: Sequence[str]) -> int:
    """Run `s2f` with some arguments in several processes of this machine.

    What goes wrong the first of them says, but for a process that was killed. SIGTERM and Ctrl-C
    are passed on; the processes have 30 seconds to save.

    Returns:
        The exit code: of the process that failed first, 0 if none did, 130 if interrupted.

    Raises:
        DeviceError: if the devices that the name stands for are not there, or a process was
            killed.
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
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "s2f", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        told = [code for code in codes.values() if code >= 0 and code != LOST]
        for rank, code in codes.items():
            if code < 0 and not (told and code == -signal.SIGTERM):
                raise DeviceError(
                    f"process {rank} of {size} was killed by signal {-code}",
                    hint="if memory ran out, lower --batch-size; the same command goes on",
                ) from error
        if not told:
            raise lost() from error
        return int(told[0])
    except SignalException:
        return 130
    return 0
