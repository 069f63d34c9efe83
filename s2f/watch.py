"""What a run has to keep an eye on: losses that are no numbers, items that cannot be read.

A look at losses waits for a GPU, so several steps are looked at together; and all processes look
together, so that they decide the same.
"""

import math
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from s2f.errors import DatasetError, S2FError, UsageError
from s2f.feed import Item, Key, load
from s2f.ranks import Ranks
from s2f.recipe import TrainConfig
from s2f.run import Run
from s2f.task import Data, Note


@dataclass(frozen=True)
class Done:
    """A step that nobody has looked at yet.

    Attributes:
        step: its number.
        keys: of the samples, those of this process.
        values: their losses [b].
        total: the weighted sums [b] of these.
        norm: of the gradient [].
    """

    step: int
    keys: list[Key]
    values: Mapping[str, Tensor]
    total: Tensor
    norm: Tensor


class Watch:
    """Batches on their way in, and the steps on their way out."""

    def __init__(self, data: Data, config: TrainConfig, state: Run, ranks: Ranks) -> None:
        """Watch the training of `data`; what is seen goes into `state`."""
        self.data, self.config, self.state, self.ranks = data, config, state, ranks
        self.unseen: list[Done] = []
        self.bad: dict[str, S2FError] = {}  # items that could not be read, since the last look

    def add(self, done: Done) -> None:
        """Take in a step."""
        self.unseen.append(done)

    def look(self, interrupted: bool, note: Note) -> bool:
        """Look at the losses of the last steps and at items that could not be read since.

        Returns:
            Whether the run shall stop.

        Raises:
            UsageError: if one is not finite.
            InputError: if more items cannot be read than may.
        """
        rows = [
            torch.stack([*(value.mean() for value in done.values.values()), done.norm])
            for done in self.unseen
        ]
        table = torch.stack(rows).cpu().double() if rows else torch.empty(0)
        told = self.ranks.gather((table, self.bad, interrupted))
        table = torch.stack([theirs for theirs, _, _ in told]).mean(0)
        for number, (done, row) in enumerate(zip(self.unseen, table.tolist(), strict=True)):
            if not all(map(math.isfinite, row)):
                self._diverged(done, table[number])
            self.state.note(dict(zip(done.values, row[:-1], strict=True)))
        self.unseen, self.bad = [], {}
        for _, bad, _ in told:
            for message, error in bad.items():
                if message not in self.state.bad:
                    self.state.bad.append(message)
                    if len(self.state.bad) > self.config.max_bad:
                        raise self._too_many(error)
                    note(f"left out: {message}")
        return any(flag for _, _, flag in told)

    def _diverged(self, done: Done, row: Tensor) -> None:
        """Raise for a step whose losses are not finite, with the names of its worst items."""
        total = done.total.tolist()
        broken = [k.item for k, v in zip(done.keys, total, strict=True) if not math.isfinite(v)]
        names = [self.data.name(item) for item in broken or [key.item for key in done.keys]]
        names = [name for theirs in self.ranks.gather(names) for name in theirs]
        *values, norm = row.tolist()
        found = [f"{name} {value:g}" for name, value in zip(done.values, values, strict=True)]
        raise UsageError(
            f"{self.state.folder}: the training diverged: at step {done.step} the loss is "
            f"{', '.join(found)}, the gradient {norm:g}, for {', '.join(names[:4])}"
            f"{' and others' if len(names) > 4 else ''}",
            hint=f"use a lower --lr than {self.config.lr:g} and another folder; what was saved "
            "before is kept",
        )

    def _too_many(self, error: S2FError) -> S2FError:
        if self.config.max_bad == 0:
            hint = f"{error.hint or 'make it again'}; or go on without it: --max-bad 1"
            return type(error)(error.message, hint=hint)
        return DatasetError(
            f"more than {self.config.max_bad} items cannot be read; the last: {error.message}",
            hint="mend them, or raise --max-bad",
        )

    def read(
        self, data: Data, keys: Iterable[list[Key]], device: torch.device
    ) -> Generator[tuple[list[Key], Item], None, None]:
        """Read batches, and remember what could not be read.

        Raises:
            InputError: if a batch cannot be made up.
        """
        for loaded in load(
            data, keys, device, workers=self.config.workers, max_bad=self.config.max_bad
        ):
            self.bad |= {error.message: error for error in loaded.bad}
            if loaded.items is None:
                raise self._too_many(loaded.bad[-1])
            yield loaded.keys, loaded.items
