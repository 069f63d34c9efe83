"""What the tests of a cluster have it do: little to import for each process of Ray's."""

import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

from s2f.errors import InputError


def shout(log, source, part):
    """Write a text in upper case, or do what it says; the log tells what was made again."""
    text = source.read_text()
    with Path(log).open("a") as file:
        file.write(f"{source.name}\n")
    if text == "bad":
        raise InputError(f"{source}: is bad")
    if text == "bug":
        raise ZeroDivisionError(text)
    if text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "full":
        raise OSError(28, "No space left on device")
    time.sleep(0.05)
    part.write_text(text.upper())
    return {"length": len(text)}


def read(source, part):
    text = source.read_text()
    if text == "lost":  # takes the process of Ray's with it
        os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
        time.sleep(60)
    return text


class Count:
    """A network that gives each text how many it has seen before it; it may be killed, once."""

    def __init__(self, killed):
        self.killed = killed

    def __call__(self, texts):
        with contextlib.suppress(FileExistsError):
            self.killed.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        if "poison" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return [f"{len(text)}" if text else InputError("is empty") for text in texts]


def save(text, part):
    part.write_text(text)


def slowly(k, folder):
    time.sleep(0.5)
    (folder / f"{k}").touch()
