"""Reading data beyond memory: on workers, with progress, and from where it was interrupted.

Pieces are read wherever it is and added up in a tree of one shape, so that the sums, to the bit, do
not depend on the executor, nor on an interruption. The state of a reading is a value: the pieces
that are done, the first ones, and what they have.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

from bayeslmm.data.batches import Reader
from bayeslmm.data.pieces import Piece, Pieces, is_dask, pieces_of
from bayeslmm.data.random_terms import keeps_totals
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.sources import Source, cause, frames_source, row_count
from bayeslmm.estimation.executor import (
    KILLED,
    Executor,
    Tasks,
    require_executor,
    results,
    shares_memory,
)
from bayeslmm.estimation.progress import Amounts, amounts
from bayeslmm.exceptions import BayesLMMError, DataError, StorageError, listed
from bayeslmm.formula.evaluation import UserFunctions
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.residual import ResidualFormula
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.parts import Part, log_reading, read_part
from bayeslmm.likelihood.piecewise import (
    Findings,
    Request,
    first_request,
    next_request,
    read_piece,
)

_log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two times that a reading is saved, ..."""

SLOWEST = 20.0
"""... or so many times those that saving took, if that is more."""

NOT_KEPT = "Nothing of this reading is kept: checkpoint= keeps what has been read."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reading:
    """How far a reading is.

    Attributes
    ----------
    request : Request
        What is read of each piece.
    share : float
        Size of the pieces.
    keys : tuple of str
        Of the pieces that are done, the first ones; empty texts where they are not kept.
    sums : tuple of (int, Findings)
        What they have: number of pieces, each larger than the next, and what is in them.
    """

    request: Request
    share: float
    keys: tuple[str, ...] = ()
    sums: tuple[tuple[int, Findings], ...] = ()

    def after(self, key: str, found: Findings) -> Reading:
        """With the next piece: two sums of as many pieces become one."""
        sums, size = list(self.sums), 1
        while sums and sums[-1][0] == size:
            found = sums.pop()[1] + found
            size *= 2
        return replace(self, keys=(*self.keys, key), sums=(*sums, (size, found)))

    def total(self) -> Findings:
        """What all pieces have that are done."""
        *sums, (_, found) = self.sums
        for _, earlier in reversed(sums):
            found = earlier + found
        return found

    @property
    def lasts(self) -> bool:
        """Whether it has sums that will be used."""
        every = [found for _, found in self.sums]
        some = any(own.part is not None for own in every)
        return some and not any(own.samples or own.found for own in every)


class Checkpoint(Protocol):
    """Where a reading is saved."""

    words: str
    """What it is, for messages."""

    def load(
        self, formula: Formula, weights: str | None, functions: UserFunctions
    ) -> Reading | None:
        """What was saved of a reading of this model; None if nothing was."""

    def save(self, reading: Reading) -> None:
        """Save a reading in place of what was saved before."""

    def remove(self) -> None:
        """Remove what was saved."""


def read_source(
    formula: Formula,
    source: Source,
    weights: str | None,
    functions: UserFunctions,
    *,
    residual: ResidualFormula | None = None,
    relationships: Mapping[str, Relationship] | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Part:
    """Read all rows of a source: here, on an executor, or where a data frame of Dask is.

    Parameters
    ----------
    formula : Formula
    source : Source
    weights : str or None
        Column of the precision weights.
    functions : mapping of str to callable
        The user's.
    residual : ResidualFormula, optional
        Structure of the residuals, whose groups may lie in several pieces: they are read in order.
    relationships : mapping of str to Relationship, optional
        Known covariances of levels by grouping factor. With them, ``by=`` or ``mm()`` rows are read
        here too.
    executor : Executor, optional
        Where pieces are read.
    progressbar : bool
        Whether to show one.
    checkpoint : Checkpoint, optional
        Where the reading is saved every so often and when it is interrupted, and from where it goes
        on.

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read, or not in pieces.
    StorageError
        If the checkpoint is that of another reading or cannot be written.
    TypeError
        If the executor is none.
    """
    require_executor(executor)
    given = {"executor=": executor, "checkpoint=": checkpoint}
    names = [name for name, value in given.items() if value is not None]
    if residual is not None and names:
        raise DataError(
            f"{listed(names)}: pieces of the data may cut a group of correlated residuals in two, "
            "so that with residual= the rows are read in order. Leave it out."
        )
    totals = keeps_totals(formula, relationships)
    if totals and names:
        raise DataError(
            f"{listed(names)}: more is kept of rows than pieces of the data have, with "
            "relationships=, by= or mm(). Leave it out, so that the rows are read here."
        )
    with amounts(progressbar) as bar:
        in_order = residual is not None or totals
        if names:
            found = _in_pieces(formula, source, weights, functions, executor, checkpoint, bar)
        elif is_dask(source) and not in_order:
            found = _on_dask(formula, source, weights, functions)
        else:
            return read_part(
                formula,
                _watched(source, bar),
                weights,
                functions,
                residual=residual,
                relationships=relationships,
            )
    return _whole(found, source)


def refuse_reading(executor: Any, checkpoint: Any) -> None:
    """Raise DataError for arguments that say how to read data that are in memory."""
    given = {"executor=": executor, "checkpoint=": checkpoint}
    if names := [name for name, value in given.items() if value is not None]:
        raise DataError(
            f"{listed(names)}: for data that are read in pieces, and these are in memory. Leave it "
            "out, or give a list of data frames or the path of files."
        )


def _whole(found: Findings, source: Source) -> Part:
    """The sums of all rows, as of one reading."""
    assert found.part is not None
    log_reading(source, found.n, found.n_dropped)
    summary = replace(found.part.summary, words=source.words, n_dropped=found.n_dropped)
    return replace(found.part, summary=summary)


# --- here ------------------------------------------------------------------------------


def _watched(source: Source, bar: Amounts) -> Source:
    """A source whose readings are shown."""
    if not bar.shown:
        return source

    def read(columns: Sequence[str]) -> Iterator[Any]:
        bar.begin("Reading", *_extent(source, columns))
        for frame in source.read(columns):
            yield frame
            bar.add(row_count(frame))

    return replace(source, read=read)


def _extent(source: Source, columns: Sequence[str]) -> tuple[int | None, int | None]:
    """Rows and bytes, where they are known."""
    try:
        pieces = pieces_of(source, columns)
    except DataError:  # it has none, or reading will say what is wrong
        return None, None
    return pieces.rows, pieces.size


# --- in pieces -------------------------------------------------------------------------


def _in_pieces(
    formula: Formula,
    source: Source,
    weights: str | None,
    functions: UserFunctions,
    executor: Executor | None,
    checkpoint: Checkpoint | None,
    bar: Amounts,
) -> Findings:
    """Read all pieces, here or on an executor, as often as it takes."""
    wanted = Reader(source=source, formula=formula, weights=weights).wanted
    state = None if checkpoint is None else checkpoint.load(formula, weights, functions)
    pieces = pieces_of(source, wanted, None if state is None else state.share)
    batch = None
    if state is not None and checkpoint is not None:
        _check_same(state.keys, pieces.every, checkpoint.words)
        done, count = len(state.keys), len(pieces.every)
        _log.info("%s: %d of %d pieces have been read.", checkpoint.words, done, count)
    else:
        request, batch = first_request(formula, _one_by_one(source, pieces), weights, functions)
        state = Reading(request=request, share=pieces.share)
    while True:
        found = _one_reading(state, pieces, executor, _Keeper(checkpoint), bar).total()
        following = next_request(state.request, found, batch, source.words)
        if following is None:
            break
        state = Reading(request=following, share=pieces.share)
    if checkpoint is not None:
        checkpoint.remove()
    return found


def _one_by_one(source: Source, pieces: Pieces) -> Source:
    """A source whose first batch has rows of the first piece alone."""

    def read(columns: Sequence[str]) -> Iterator[Any]:
        for piece in pieces.every:
            yield from piece.source.read(columns)

    return source if is_dask(source) else replace(source, read=read)


def _one_reading(
    state: Reading, pieces: Pieces, executor: Executor | None, keeper: _Keeper, bar: Amounts
) -> Reading:
    """Read the pieces that are not done; whatever ends it early, what is done is saved."""
    done, count = len(state.keys), len(pieces.every)
    todo = pieces.every[done:]
    bar.begin("Reading", pieces.rows, pieces.size)
    for piece in pieces.every[:done]:
        bar.add(piece.rows or 0, piece.size)
    sent = executor is not None and not shares_memory(executor)
    tasks = Tasks(
        make=_sent_work if sent else _work,
        parts=(state.request,),
        items=[piece.source for piece in todo],
        size=len(todo),
        title="Reading",
        label=lambda i: f"Piece {done + i + 1} of {count} ({todo[i].source.words})",
        fault=DataError,
        kept=keeper.words,
    )
    try:
        with results(tasks, executor, False) as answers:
            for piece, answer in zip(todo, answers, strict=True):
                found = pickle.loads(answer) if sent else answer
                state = state.after(keeper.key(piece), found)
                bar.add(found.n + found.n_dropped, piece.size)
                keeper.offer(state)
    except BaseException:
        keeper.save(state)
        raise
    return state


def _work(request: Request) -> Callable[[Source], Any]:
    return partial(read_piece, request)


def _sent_work(request: Request) -> Callable[[Source], Any]:
    """The same where findings are sent back, with functions of the user."""
    import cloudpickle  # a dependency of PyMC

    return lambda source: cloudpickle.dumps(read_piece(request, source))


class _Keeper:
    """Saves the state of a reading, if it is to be saved, every so often."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self._saved: Reading | None = None
        self._due = time.monotonic() + EVERY

    @property
    def words(self) -> str:
        """What is kept, for messages."""
        if self.checkpoint is None:
            return NOT_KEPT
        return (
            f"What was read before it is in {self.checkpoint.words}: the same call goes on there."
        )

    def key(self, piece: Piece) -> str:
        """What a piece is, where that is to be saved."""
        return "" if self.checkpoint is None else piece.key()

    def offer(self, state: Reading) -> None:
        """Save it if that is due."""
        if time.monotonic() >= self._due:
            self.save(state)

    def save(self, state: Reading) -> None:
        """Save it, if that is new and worth it."""
        if self.checkpoint is None or state is self._saved or not state.lasts:
            return
        start = time.monotonic()
        self.checkpoint.save(state)
        _log.info("%s: saved what %d pieces have.", self.checkpoint.words, len(state.keys))
        end = time.monotonic()
        self._saved, self._due = state, end + max(EVERY, SLOWEST * (end - start))


def _check_same(keys: Sequence[str], pieces: Sequence[Piece], words: str) -> None:
    """Raise StorageError unless the pieces that are done are the first ones still."""
    for number, key in enumerate(keys):
        now = pieces[number].key() if number < len(pieces) else ""
        if now == key:
            continue
        changed = [
            pair for pair in zip_longest(key.split("\n"), now.split("\n")) if len({*pair}) > 1
        ]
        was, there = changed[0]
        raise StorageError(
            f"{words} has sums of {was or 'less'}, where now there is {there or 'nothing'}. What "
            "has been read must stay as it is and come first, or it would be counted twice or not "
            f"at all. Put it back, or remove {words} to read everything again."
        )


# --- on Dask ---------------------------------------------------------------------------


def _on_dask(
    formula: Formula, source: Source, weights: str | None, functions: UserFunctions
) -> Findings:
    """Read a data frame of Dask on its scheduler, as often as it takes."""
    wanted = Reader(source=source, formula=formula, weights=weights).wanted
    request, batch = first_request(formula, source, weights, functions)
    while True:
        found = _one_dask_reading(request, source, wanted)
        following = next_request(request, found, batch, source.words)
        if following is None:
            return found
        request = following


def _one_dask_reading(request: Request, source: Source, columns: list[str]) -> Findings:
    """Read all partitions, and add them up where they are."""
    import cloudpickle
    from dask import delayed

    sent = cloudpickle.dumps(request)
    read, add = delayed(_read_partition, pure=False), delayed(_added, pure=False)
    parts = source.origin[columns].to_delayed()
    nodes = [read(sent, number, part) for number, part in enumerate(parts)]
    while len(nodes) > 1:
        pairs = [nodes[i : i + 2] for i in range(0, len(nodes), 2)]
        nodes = [add(*pair) if len(pair) > 1 else pair[0] for pair in pairs]
    try:
        found: Findings = nodes[0].compute()
    except BayesLMMError:
        raise
    except Exception as error:
        raise _lost(source, error) from error
    return found


def _read_partition(sent: bytes, number: int, frame: Any) -> Findings:
    try:
        with single_threaded():
            return read_piece(pickle.loads(sent), frames_source("The rows", [frame]))
    except BayesLMMError as error:
        raise type(error)(f"Partition {number + 1}: {error}") from error


def _added(one: Findings, two: Findings) -> Findings:
    with single_threaded():
        return one + two


def _lost(source: Source, error: Exception) -> DataError:
    if type(error).__name__ in KILLED:
        return DataError(
            f"A worker of Dask died again and again while it read {source.words} "
            f"({cause(error)}). Most often it ran out of memory: use fewer workers, or smaller "
            "partitions. Nothing of this reading is kept."
        )
    return DataError(
        f"Dask did not read {source.words}: {cause(error)}. Nothing of this reading is kept. Its "
        "workers need this version of bayeslmm and what functions of your own import."
    )
