"""Independent tasks, one after the other or on an executor of the caller's.

An executor is anything with the interface of :class:`concurrent.futures.Executor`: threads,
processes, loky's of joblib, ``client.get_executor()`` of Dask, ``MPIPoolExecutor`` of mpi4py. What
comes out does not depend on it: a task has its own random stream or none, results keep the order of
the items, and BLAS uses one thread in every task.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import batched
from threading import Lock
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from bayeslmm.data.seeds import seeded
from bayeslmm.estimation.progress import tracked
from bayeslmm.exceptions import BayesLMMError, SamplingError
from bayeslmm.likelihood.factorise import single_threaded

PARCELS = 256
"""Most calls of ``submit`` that the items are shared out to."""

FEWEST_PARCELS = 32
"""The same where the model is so large that sending it is what counts."""

LARGEST_SENT = 1 << 31
"""Bytes that all parcels may take together before their number is cut."""

KILLED = frozenset({"KilledWorker"})
"""Names of exceptions of executors, beside ``BrokenExecutor``, for workers that died."""


class Future(Protocol):
    """What ``submit`` returns."""

    def result(self) -> Any:
        """The result, once it is there; raises what the call raised."""

    def cancel(self) -> Any:
        """Do not begin, if it has not begun."""


class Executor(Protocol):
    """The part of the interface of ``concurrent.futures`` that is used."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future:
        """Call a function elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks[I, R]:
    """The same work for many items.

    Attributes
    ----------
    make : callable
        A function of a module; takes `parts`, returns the work: a callable from item to result. It
        is called once in every process.
    parts : tuple
        What all tasks share. It is sent with every parcel of items, so it should be small.
    items : iterable
        What a task has of its own, small too; taken one at a time.
    size : int
        Number of items.
    title : str
        Of the progress bar.
    label : callable
        Takes the number of a task, returns what messages call it.
    fault : type
        Of errors where an executor does not do its part.
    kept : str
        What such errors say of what has been done before.
    """

    make: Callable[..., Callable[[I], R]]
    parts: tuple[Any, ...]
    items: Iterable[I]
    size: int
    title: str
    label: Callable[[int], str]
    fault: type[BayesLMMError] = SamplingError
    kept: str = (
        "Nothing of this run is kept; the same seed with a new executor gives what it would have "
        "given."
    )


@contextmanager
def results[I, R](
    tasks: Tasks[I, R], executor: Executor | None, progressbar: bool
) -> Iterator[Iterable[R]]:
    """Results of tasks, in the order of their items; what has not begun at the end is cancelled.

    Parameters
    ----------
    tasks : Tasks
        What to do.
    executor : Executor or None
        Where to do it; here, one after the other, by default.
    progressbar : bool
        Whether to show one.

    Yields
    ------
    iterable
        The results as they come. The first task, by number, that raises ends it.

    Raises
    ------
    TypeError
        If the executor is none.
    SamplingError
        If the tasks cannot be pickled, the executor takes none or loses some, or a task raises
        something else than an error of this package, which keeps its class.
    """
    require_executor(executor)
    if executor is None:
        yield tracked(_here(tasks), tasks.title, progressbar, tasks.size)
        return
    in_memory = shares_memory(executor)
    run, parcels = _runner(tasks) if in_memory else _sender(tasks)
    waiting: deque[tuple[range, Future]] = deque()
    # The limit on threads of BLAS is that of the process, so here it spans all tasks.
    with single_threaded() if in_memory else nullcontext():
        try:
            found = _collected(tasks, waiting, partial(executor.submit, run), parcels)
            yield tracked(found, tasks.title, progressbar, tasks.size)
        finally:
            for _, future in waiting:
                future.cancel()


def streams(
    random_seed: int | np.random.Generator | None, n: int
) -> Sequence[np.random.SeedSequence]:
    """Seeds of n independent streams, the first of which do not depend on n."""
    if isinstance(random_seed, np.random.Generator):
        entropy = [int(word) for word in random_seed.integers(2**32, size=4)]
        return np.random.SeedSequence(entropy).spawn(n)
    seeded(random_seed)  # which says what a seed may be
    return np.random.SeedSequence(random_seed).spawn(n)


def require_executor(executor: Any) -> None:
    """Raise TypeError unless an executor is None or has ``submit``."""
    if executor is None:
        return
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor={executor!r}: an object with the interface of concurrent.futures is "
            "expected, such as ProcessPoolExecutor(), joblib's loky get_reusable_executor() or "
            "client.get_executor() of Dask."
        )


def shares_memory(executor: Executor) -> bool:
    """Whether the tasks of an executor run in this interpreter, so that nothing is pickled."""
    separate = getattr(futures, "InterpreterPoolExecutor", ())  # from Python 3.14 on
    return isinstance(executor, futures.ThreadPoolExecutor) and not isinstance(executor, separate)


def _here[I, R](tasks: Tasks[I, R]) -> Iterator[R]:
    work = tasks.make(*tasks.parts)
    for item in tasks.items:
        with single_threaded():
            result = work(item)
        yield result


# --- on an executor --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Done:
    """Results of the first tasks of a parcel, of all of them unless one raised an error."""

    values: list[Any]
    error: BayesLMMError | None


def _runner(tasks: Tasks[Any, Any]) -> tuple[Callable[[Any], _Done], int]:
    """Function that runs a parcel in this process, and the number of parcels."""
    return partial(_run, tasks.make(*tasks.parts)), PARCELS


def _sender(tasks: Tasks[Any, Any]) -> tuple[Callable[[Any], _Done], int]:
    """The same for workers that are sent everything."""
    import cloudpickle  # a dependency of PyMC

    try:
        sent = cloudpickle.dumps((tasks.make, tasks.parts))
    except Exception as error:
        raise tasks.fault(
            f"The model cannot be sent to the workers of the executor: {error}. A prior or a "
            "function of your own holds something that exists in this process alone, such as an "
            "open file, a lock or a connection. Have the function make it when it is called, or "
            "use threads: executor=ThreadPoolExecutor()."
        ) from error
    affordable = LARGEST_SENT // len(sent)
    return partial(_run_sent, uuid4().hex, sent), min(PARCELS, max(FEWEST_PARCELS, affordable))


def _collected[R](
    tasks: Tasks[Any, R],
    waiting: deque[tuple[range, Future]],
    submit: Callable[[Any], Future],
    parcels: int,
) -> Iterator[R]:
    """Submit all parcels, then yield what comes back; `waiting` has what has not."""
    start = 0
    for parcel in batched(tasks.items, max(1, -(-tasks.size // parcels))):
        numbers = range(start, start + len(parcel))
        try:
            waiting.append((numbers, submit(parcel)))
        except Exception as error:
            raise _lost(tasks, numbers, error) from error
        start = numbers.stop
    while waiting:
        numbers, future = waiting[0]
        try:
            done = future.result()
        except Exception as error:
            raise _lost(tasks, numbers, error) from error
        waiting.popleft()
        yield from done.values
        if done.error is not None:
            what = tasks.label(numbers[len(done.values)])
            raise type(done.error)(f"{what}: {done.error}") from done.error


def _lost(tasks: Tasks[Any, Any], numbers: range, error: Exception) -> BayesLMMError:
    """What to say where an executor does not do its part."""
    first, last = tasks.label(numbers[0]), tasks.label(numbers[-1])
    what = first if first == last else f"{first} to {last}"
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, futures.BrokenExecutor) or type(error).__name__ in KILLED:
        return tasks.fault(
            f"A worker of the executor died before it was done with {what} ({said}). Most often "
            "it ran out of memory: use fewer workers. In a script, processes have to be started "
            f'below `if __name__ == "__main__":`. {tasks.kept}'
        )
    return tasks.fault(
        f"The executor did not do {what}: {said}. {tasks.kept} The executor must not be shut down "
        "or cancelled before the end, and its workers need this version of bayeslmm and what "
        "priors and functions of your own import."
    )


# --- in a worker -----------------------------------------------------------------------


_lock = Lock()
_latest: dict[str, Callable[[Any], Any]] = {}
"""The work of the latest call by its key, so that parcels of one call make it once."""


def _run_sent(key: str, sent: bytes, parcel: tuple[Any, ...]) -> _Done:
    import pickle

    with _lock:
        if key not in _latest:
            _latest.clear()
            make, parts = pickle.loads(sent)
            try:
                _latest[key] = make(*parts)
            except Exception as error:
                return _Done([], _ours(error))
        work = _latest[key]
    return _run(work, parcel)


def _run(work: Callable[[Any], Any], parcel: tuple[Any, ...]) -> _Done:
    values: list[Any] = []
    for item in parcel:
        try:
            with single_threaded():
                values.append(work(item))
        except Exception as error:
            return _Done(values, _ours(error))
    return _Done(values, None)


def _ours(error: Exception) -> BayesLMMError:
    """An error of this package, which pickles, in place of any other one."""
    if isinstance(error, BayesLMMError):
        return error
    ours = SamplingError(f"{type(error).__name__}: {error}")
    ours.add_note("".join(traceback.format_exception(error)))
    return ours
