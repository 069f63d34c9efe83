"""One tree of errors: what failed, on which file, what was seen and wanted, and the cure.

Library code raises these and nothing else for what a user can cause; the command line turns
each into one line, or one for each of its details too, and an exit code, and knows nothing more
about them.
"""

from collections.abc import Sequence


class S2FError(Exception):
    """The root of everything that a user, a file or a machine can cause.

    `message` is one sentence: what failed, which file, the value seen and the value wanted; `hint`,
    the cure, is the next thing to do or type, if there is one. An error of many files has a
    sentence for each of them in `details`.
    """

    exit_code = 1  # of the command

    def __init__(
        self, message: str, *, hint: str | None = None, details: Sequence[str] = ()
    ) -> None:
        super().__init__("\n".join([message, *details]))
        self.message, self.hint, self.details = message, hint, tuple(details)


class UsageError(S2FError):
    """A request that cannot be right: options that contradict, an output that would be lost."""

    exit_code = 2


class InputError(S2FError):
    """An input file or folder that is missing, broken or not what the command needs."""

    exit_code = 3


class AudioError(InputError):
    """A recording that cannot be read, or that holds no usable speech."""


class ImageError(InputError):
    """A picture that cannot be read."""


class DatasetError(InputError):
    """A data tree that lacks what training or preparation needs."""


class CheckpointError(S2FError):
    """A checkpoint that is not ours, is damaged, or does not fit the others."""

    exit_code = 4


class OutputError(S2FError):
    """A result that cannot be written where it was asked for."""

    exit_code = 2


class DependencyError(S2FError):
    """An optional package that the request needs and that is not installed."""

    exit_code = 5


class DeviceError(S2FError):
    """A device that was asked for and is not there."""

    exit_code = 5


class WorkerError(S2FError):
    """An item of a batch whose process died, hung, or met a bug of ours."""


def together(where: str, errors: Sequence[S2FError]) -> S2FError:
    """Make one error of several of a kind, which names each; of one, it is this one itself."""
    if len(errors) == 1:
        return errors[0]
    details = [error.message for error in errors]
    cures = "; ".join(dict.fromkeys(error.hint for error in errors if error.hint))
    message = f"{where} {len(errors)} cannot be used"
    return type(errors[0])(message, hint=cures or None, details=details)
