"""What long computations show while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


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
