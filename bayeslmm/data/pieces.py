"""Data beyond memory in pieces that can be read apart: files and parts of them, frames, partitions.

A piece is a source of its own that can be sent to another process: it has paths, not open files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bayeslmm.data.frames import plain_frame
from bayeslmm.data.sources import (
    Source,
    cause,
    file_batches,
    frames_source,
    reading_errors,
    row_count,
    tables,
    typed_files,
)
from bayeslmm.exceptions import BayesLMMError, DataError

MOST_PIECES = 64
"""About how many pieces there are of large data: sums over each are added up where they come in."""

FEWEST_ROWS = 1 << 21
"""Rows of a piece, in data that have so many: with 100,000 levels, to finish and add up the sums of
a piece takes as long as to read a million rows."""

FEWEST_BYTES = 1 << 26
"""The same of files that do not say how many rows they have."""

WHOLE = (
    "{words} cannot be read in pieces, as executor= and checkpoint= have it. Give files, a pyarrow "
    "Dataset, a list of data frames or a data frame of Dask; or leave them out."
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Piece:
    """Some rows of a source.

    Attributes
    ----------
    source : Source
        They alone; it can be pickled.
    key : callable
        Returns what it is, as text: other rows have another key.
    rows, size : int or None
        Number of rows and of bytes, where they are known.
    """

    source: Source
    key: Callable[[], str]
    rows: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pieces:
    """All rows of a source.

    Attributes
    ----------
    every : tuple of Piece
        In the order of the rows.
    share : float
        Rows of a piece at least, except the last one; bytes or parts where rows are not known.
    """

    every: tuple[Piece, ...]
    share: float

    @property
    def rows(self) -> int | None:
        """Number of rows, where it is known."""
        return _total([piece.rows for piece in self.every])

    @property
    def size(self) -> int | None:
        """Number of bytes, where it is known."""
        return _total([piece.size for piece in self.every])


def pieces_of(source: Source, columns: Sequence[str], share: float | None = None) -> Pieces:
    """Cut a source into pieces.

    Parameters
    ----------
    source : Source
    columns : sequence of str
        What is read of it.
    share : float, optional
        That of earlier pieces, so that the same rows are in the same pieces though others are added
        after them.

    Raises
    ------
    DataError
        If it has none, or its files do not go together or cannot be read.
    """
    grains, join = _grains(source, list(columns))
    weights, fewest = _weights(grains)
    if share is None:
        share = max(float(fewest), sum(weights) / MOST_PIECES)
    every = tuple(
        Piece(
            source=Source(
                words=_span([grain.words for grain in own]),
                names=partial(list, columns),
                read=join(own),
            ),
            key=partial(_joined_keys, [grain.key for grain in own]),
            rows=_total([grain.rows for grain in own]),
            size=_total([grain.size for grain in own]),
        )
        for own in _grouped(grains, weights, share)
    )
    return Pieces(every=every, share=share)


def is_dask(source: Source) -> bool:
    """Whether it is a data frame of Dask, which has a scheduler of its own."""
    return hasattr(source.origin, "to_delayed")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Grain:
    """The least that is read apart."""

    words: str
    content: Any
    key: Callable[[], str]
    rows: int | None = None
    size: int | None = None


type _Read = Callable[[Sequence[str]], Iterator[Any]]

type _Join = Callable[[list[_Grain]], _Read]
"""From grains to what reads columns of them, which can be pickled."""


def _grains(source: Source, columns: list[str]) -> tuple[list[_Grain], _Join]:
    origin = source.origin
    if isinstance(origin, list | tuple):
        return _of_frames(origin, columns)
    if is_dask(source):
        return _of_dask(origin, columns)
    if hasattr(origin, "get_fragments"):
        try:
            found = _of_files(origin, columns, source.words)
        except BayesLMMError:
            raise
        except reading_errors() as error:
            raise DataError(f"{source.words} cannot be read: {cause(error)}") from error
        if found is not None:
            return found
    raise DataError(WHOLE.format(words=source.words))


def _weights(grains: Sequence[_Grain]) -> tuple[list[int], int]:
    """Size of each grain, by rows where they are known of all, and that of a piece at least."""
    rows = [grain.rows for grain in grains if grain.rows is not None]
    if len(rows) == len(grains):
        return rows, FEWEST_ROWS
    sizes = [grain.size for grain in grains if grain.size is not None]
    if len(sizes) == len(grains):
        return sizes, FEWEST_BYTES
    return [1] * len(grains), 1


def _grouped(
    grains: Sequence[_Grain], weights: Sequence[int], share: float
) -> Iterator[list[_Grain]]:
    own: list[_Grain] = []
    weight = 0
    for grain, more in zip(grains, weights, strict=True):
        own.append(grain)
        weight += more
        if weight >= share:
            yield own
            own, weight = [], 0
    if own:
        yield own


def _total(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _span(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"


def _joined_keys(keys: Sequence[Callable[[], str]]) -> str:
    return "\n".join(key() for key in keys)


# --- files -----------------------------------------------------------------------------


def _of_files(dataset: Any, columns: list[str], words: str) -> tuple[list[_Grain], _Join] | None:
    """Row groups of Parquet files, other files whole; None where parts are no files."""
    files, common = typed_files(dataset, columns, words)
    if not files or any(not Path(getattr(file, "path", "")).name for file, _ in files):
        return None
    return [grain for file in files for grain in _of_file(*file, columns)], partial(_files, common)


def _of_file(file: Any, schema: Any, columns: list[str]) -> list[_Grain]:
    import pyarrow.dataset as ds

    info = file.filesystem.get_file_info(file.path)
    key = f"{file.path} of {info.size} bytes at {info.mtime_ns}"
    name = f"`{file.path}`"
    if not isinstance(file, ds.ParquetFileFragment):
        return [_Grain(words=name, content=(file, schema), key=partial(str, key), size=info.size)]
    groups = file.row_groups
    return [
        _Grain(
            words=name if len(groups) == 1 else f"{name}, row group {group.id + 1}",
            content=(file.subset(row_group_ids=[group.id]), schema),
            key=partial(str, f"{key}, row group {group.id + 1}"),
            rows=group.num_rows,
            size=_bytes(file.metadata.row_group(group.id), set(columns)),
        )
        for group in groups
    ]


def _bytes(group: Any, columns: set[str]) -> int:
    """Bytes of some columns of a row group."""
    every = [group.column(place) for place in range(group.num_columns)]
    return sum(c.total_compressed_size for c in every if c.path_in_schema in columns)


def _files(common: Any, grains: list[_Grain]) -> _Read:
    return partial(_read_files, [grain.content for grain in grains], common)


def _read_files(files: list[tuple[Any, Any]], common: Any, columns: Sequence[str]) -> Iterator[Any]:
    return tables(_named_batches(files, common, columns))


def _named_batches(
    files: list[tuple[Any, Any]], common: Any, columns: Sequence[str]
) -> Generator[Any]:
    """Record batches; errors name the file."""
    for file in files:
        try:
            yield from file_batches([file], common, columns)
        except BayesLMMError:
            raise
        except reading_errors() as error:
            raise DataError(f"`{file[0].path}` cannot be read: {cause(error)}") from error


# --- frames ----------------------------------------------------------------------------


def _of_frames(frames: Sequence[Any], columns: list[str]) -> tuple[list[_Grain], _Join]:
    grains = [
        _Grain(
            words=f"frame {number + 1}",
            content=frame,
            key=partial(_content_key, number, frame, columns),
            rows=row_count(frame),
        )
        for number, frame in enumerate(frames)
    ]
    return grains, _frames


def _frames(grains: list[_Grain]) -> _Read:
    return partial(_read_frames, [grain.content for grain in grains])


def _read_frames(frames: list[Any], columns: Sequence[str]) -> Iterator[Any]:
    return iter(frames_source("The frames", frames).read(columns))


def _content_key(number: int, frame: Any, columns: list[str]) -> str:
    """Number and content of a frame in memory."""
    values = pd.util.hash_pandas_object(plain_frame(frame, columns), index=False)
    return f"frame {number + 1}: {hashlib.sha256(values.to_numpy().tobytes()).hexdigest()}"


# --- Dask ------------------------------------------------------------------------------


def _of_dask(data: Any, columns: list[str]) -> tuple[list[_Grain], _Join]:
    chosen = data[columns]
    name = f"{data._name} of {data.npartitions}"
    grains = [
        _Grain(
            words=f"partition {number + 1}",
            content=chosen.partitions[number],
            key=partial(str, f"{name}: partition {number + 1}"),
        )
        for number in range(data.npartitions)
    ]
    return grains, _partitions


def _partitions(grains: list[_Grain]) -> _Read:
    return partial(_read_partitions, [grain.content for grain in grains])


def _read_partitions(partitions: list[Any], columns: Sequence[str]) -> Iterator[Any]:
    for partition in partitions:
        yield partition.compute(scheduler="synchronous")
