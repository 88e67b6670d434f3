"""What long computations show while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def stages(enabled: bool) -> Iterator[Callable[[str], None]]:
    """Show the stage that a computation has reached, on a terminal.

    Parameters
    ----------
    enabled : bool
        Whether to show anything.

    Yields
    ------
    callable
        Takes the name of the next stage.
    """
    if not enabled:
        yield lambda _: None
        return
    from rich.console import Console  # a dependency of PyMC

    # Without a terminal there is nothing to show; Jupyter's widgets are an extra dependency.
    with Console(stderr=True, force_jupyter=False).status("Preparing") as status:
        yield status.update


def tracked[T](
    items: Iterable[T], description: str, enabled: bool, total: int | None = None
) -> Iterable[T]:
    """Iterate over items, showing a progress bar where enabled and on a terminal.

    `total` is the number of items where they have no length.
    """
    if not enabled:
        return items
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True, force_jupyter=False)
    if not console.is_terminal:
        return items
    return track(items, description=description, total=total, console=console, transient=True)


class Amounts:
    """How many rows and bytes have been read, on a terminal.

    Attributes
    ----------
    shown : bool
        Whether anything is.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.shown = progress is not None
        self._progress = progress
        self._done = [0, 0]
        self._totals: tuple[int | None, int | None] = (None, None)

    def begin(self, title: str, rows: int | None, size: int | None) -> None:
        """Begin a reading of so many rows and bytes, where they are known."""
        if self._progress is None:
            return
        self._done, self._totals = [0, 0], (rows, size)
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        total = size if rows is None else rows
        self._progress.add_task(title, total=total, amount="")

    def add(self, rows: int, size: int | None = None) -> None:
        """Say what has been read since, the bytes where they are known of some rows."""
        if self._progress is None:
            return
        every, whole = self._totals
        self._done[0] += rows
        if size is not None:
            self._done[1] += size
        elif every and whole:
            self._done[1] = whole * self._done[0] // every
        done, read = self._done
        words = [_of(f"{done:,}", None if every is None else f"{every:,}", "rows")]
        if read or whole:
            words.append(_of(_megabytes(read), None if whole is None else _megabytes(whole), "MB"))
        completed = read if every is None else done
        (task,) = self._progress.task_ids
        self._progress.update(task, completed=completed, amount=", ".join(words))


def _of(done: str, total: str | None, unit: str) -> str:
    return f"{done} {unit}" if total is None else f"{done} of {total} {unit}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


@contextmanager
def amounts(enabled: bool) -> Iterator[Amounts]:
    """Show rows and bytes as they are read, where enabled and on a terminal.

    Yields
    ------
    Amounts
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, force_jupyter=False)
    if not enabled or not console.is_terminal:
        yield Amounts(None)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        yield Amounts(progress)
