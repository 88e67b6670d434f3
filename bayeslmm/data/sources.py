"""Data beyond memory: files, readers, queries and iterators as batches that can be read again."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd

from bayeslmm.data.frames import column_names
from bayeslmm.exceptions import BayesLMMError, DataError, listed

BATCH = 1 << 20
"""Rows that are asked for at once."""

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".arrow": "ipc",
    ".feather": "feather",
    ".ipc": "ipc",
}
"""Formats of files by their ending."""

TWICE = (
    "The data have to be read more than once, and {words} can be read only once. Give what can be "
    "read again: files, a pyarrow Dataset, a DuckDB relation, a Polars LazyFrame, a list of data "
    "frames or a function that returns a new iterator each time it is called."
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Source:
    """Rows that need not fit into memory.

    Attributes
    ----------
    words : str
        What it is, for messages.
    names : callable
        The columns, as text.
    read : callable
        From some of these columns to an iterator over data frames of any kind, which may have more
        columns. Each call reads everything again.
    origin : object or None
        What has parts that can be read apart: a dataset of files, a list of frames, a data frame of
        Dask.
    engine : object or None
        The lazy frame itself, where its library groups and sums by itself.
    """

    words: str
    names: Callable[[], list[str]]
    read: Callable[[Sequence[str]], Iterable[Any]]
    origin: Any = None
    engine: Any = None

    def columns(self) -> list[str]:
        """The columns, as text.

        Raises
        ------
        DataError
            If they cannot be read.
        """
        with _in_words(self.words):
            return self.names()

    def frames(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Data frames of columns, each with the number of the rows before it.

        Raises
        ------
        DataError
            If the source cannot be read to its end.
        """
        start = 0
        try:
            for frame in self.read(columns):
                size = row_count(frame)
                if size:
                    yield start, frame
                start += size
        except BayesLMMError:
            raise
        except reading_errors() as error:
            raise DataError(
                f"{self.words} cannot be read after row {start}: {cause(error)}"
            ) from error


@contextmanager
def _in_words(words: str) -> Iterator[None]:
    """Errors of readers as those of data."""
    try:
        yield
    except BayesLMMError:
        raise
    except reading_errors() as error:
        raise DataError(f"{words} cannot be read: {cause(error)}") from error


def open_source(data: Any) -> Source | None:
    """The batches of data beyond memory; None for a data frame in memory.

    Parameters
    ----------
    data : str, Path, list of them, pyarrow Dataset, DuckDB relation, LazyFrame, ...
        A path is a file, a folder, or a pattern such as ``"2024/*.parquet"``. Also a list of data
        frames, or a function that returns an iterator over them.

    Raises
    ------
    DataError
        If no file is there.
    """
    if isinstance(data, str | Path):
        return _files(str(data))
    if isinstance(data, pd.DataFrame | Mapping):
        return None
    module = type(data).__module__.partition(".")[0]
    kind = type(data).__name__
    if module in _OPENERS and (opened := _OPENERS[module](data, kind)) is not None:
        return opened
    if isinstance(data, list | tuple) and data and all(map(_is_frame, data)):
        return frames_source(f"The list of {len(data)} data frames", data)
    if isinstance(data, list | tuple) and data and all(isinstance(p, str | Path) for p in data):
        return _listed_files([str(path) for path in data])
    if _is_frame(data):
        return None
    if isinstance(data, Iterator):
        return _once(f"an iterator ({kind})", data)
    if callable(data):
        return _of_frames("The batches of the function", lambda: _called(data))
    return None


def _is_frame(data: Any) -> bool:
    return isinstance(data, Mapping) or hasattr(data, "columns") or hasattr(data, "column_names")


def _called(function: Callable[[], Any]) -> Iterable[Any]:
    """What a function returns: batches, a reader of them, or another source."""
    found = function()
    if type(found).__name__ == "RecordBatchReader" or isinstance(found, Iterator):
        return found
    source = open_source(found)
    if source is not None:
        return source.read(source.names())
    if _is_frame(found):
        return [found]
    if isinstance(found, Iterable):
        return found
    raise DataError(
        "The function that is given as data must return an iterator over data frames, got "
        f"{type(found).__name__}."
    )


def frames_source(words: str, frames: Sequence[Any]) -> Source:
    """Data frames as batches of a source."""
    return replace(_of_frames(words, lambda: frames), origin=frames)


def _of_frames(words: str, again: Callable[[], Iterable[Any]]) -> Source:
    """Batches that come whole; those after the first must have its columns."""

    def names() -> list[str]:
        for frame in again():
            return _names(frame)
        raise DataError("The data have no rows.")

    def read(columns: Sequence[str]) -> Iterator[Any]:
        for number, frame in enumerate(again()):
            absent = sorted(set(columns) - set(_names(frame)))
            if absent:
                raise DataError(
                    f"{words}: batch {number + 1} has no column {listed(absent)}, which the first "
                    "one has."
                )
            yield _as_table(frame)

    return Source(words=words, names=names, read=read)


def _once(words: str, frames: Iterator[Any]) -> Source:
    """Batches that come once; the first one, which says what there is, is kept until then."""
    first: list[Any] = []
    begun = False

    def again() -> Iterator[Any]:
        nonlocal begun
        if begun:
            raise DataError(TWICE.format(words=words))
        begun = True
        return chain([first.pop()] if first else [], frames)

    def names() -> list[str]:
        if not first:
            first.extend(islice(frames, 1))
        if not first:
            raise DataError("The data have no rows.")
        return _names(first[0])

    batches = _of_frames(words[0].upper() + words[1:], again)
    return replace(batches, names=names)


def _names(frame: Any) -> list[str]:
    return column_names(_as_table(frame))


def _as_table(frame: Any) -> Any:
    """A batch of Arrow as a table, which narwhals reads."""
    if type(frame).__name__ == "RecordBatch":
        import pyarrow as pa

        return pa.Table.from_batches([frame])
    return frame


def row_count(frame: Any) -> int:
    """Number of rows of a data frame of any kind."""
    if isinstance(frame, Mapping):
        for name, column in frame.items():
            if not hasattr(column, "__len__"):
                raise DataError(
                    f"A mapping gives the values of a column, but `{name}` is {column!r}. Make a "
                    "data frame of records first, as pandas.DataFrame.from_records does."
                )
        return max((len(column) for column in frame.values()), default=0)
    return int(frame.shape[0]) if hasattr(frame, "shape") else len(frame)


def reading_errors() -> tuple[type[Exception], ...]:
    """What readers raise."""
    return (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, *_foreign())


FOREIGN = (
    ("pyarrow", "ArrowException"),
    ("duckdb", "Error"),
    ("polars.exceptions", "PolarsError"),
    ("zlib", "error"),
    ("lzma", "LZMAError"),
)
"""Errors of readers that have no base among those of Python, by their module."""


def _foreign() -> Iterator[type[Exception]]:
    for module, name in FOREIGN:
        if module in sys.modules:
            yield getattr(sys.modules[module], name)


def cause(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


# --- files and Arrow ---------------------------------------------------------------------


def _files(text: str) -> Source:
    import pyarrow.dataset as ds

    if "://" in text:
        with _in_words(f"`{text}`"):
            return _dataset(ds.dataset(text, format=_format(text)), f"`{text}`")
    found = _found(text)
    return _of_files(found, f"{len(found)} files at `{text}`" if len(found) > 1 else f"`{text}`")


def _listed_files(texts: Sequence[str]) -> Source:
    """Files, folders and patterns one after another."""
    if far := [text for text in texts if "://" in text]:
        raise DataError(
            f"A list of paths is of files on this machine, not {listed(far)}: give a dataset of "
            "pyarrow, whose files may be elsewhere."
        )
    found = [file for text in texts for file in _found(text)]
    if again := [file for file, count in Counter(found).items() if count > 1]:
        raise DataError(f"The list of paths has {listed(again)} more than once.")
    return _of_files(
        found, f"The list of {len(found)} files" if len(found) > 1 else f"`{found[0]}`"
    )


def _found(text: str) -> list[str]:
    """Files at a path on this machine, in order."""
    path = Path(text).expanduser()
    if path.is_dir():
        within = (file for file in path.rglob("*") if file.suffix in FORMATS)
        found = sorted(str(file) for file in within if not file.is_dir())
    elif path.exists():
        found = [str(path)]
    else:
        found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise DataError(
            f"No file is found at `{text}`. Data are a data frame, or the path of a file, a folder "
            f"or a pattern of files that end in {', '.join(FORMATS)}."
        )
    return found


def _of_files(found: list[str], words: str) -> Source:
    import pyarrow.dataset as ds

    formats = {_format(file) for file in found}
    if len(formats) > 1:
        raise DataError(f"{words}: they are of several formats, {listed(sorted(formats))}.")
    with _in_words(words):
        return _dataset(ds.dataset(found, format=formats.pop()), words)


def _format(text: str) -> str:
    suffixes = [suffix for suffix in Path(text).suffixes if suffix not in (".gz", ".bz2", ".zst")]
    found = FORMATS.get(suffixes[-1]) if suffixes else None
    if found is None:
        raise DataError(
            f"The format of `{text}` is not known: names of files end in {', '.join(FORMATS)}."
        )
    return found


def _dataset(dataset: Any, words: str) -> Source:
    """A dataset of pyarrow, whose files must have the columns in types that go together."""
    state = _file_states(dataset)

    def read(columns: Sequence[str]) -> Iterator[Any]:
        _check_unchanged(dataset, state, words)
        try:
            files, common = typed_files(dataset, columns, words)
            if files:
                yield from tables(file_batches(files, common, columns))
            else:
                batches = dataset.to_batches(columns=list(columns), batch_size=BATCH)
                yield from tables(batch for batch in batches)
        except reading_errors():
            _check_unchanged(dataset, state, words)
            raise
        _check_unchanged(dataset, state, words)

    names = list(dataset.schema.names)
    return Source(words=words, names=lambda: names, read=read, origin=dataset)


def tables(batches: Generator[Any]) -> Iterator[Any]:
    """Record batches in tables of at least half the rows that are asked for; closes them."""
    import pyarrow as pa

    held, rows = [], 0
    for batch in _one_ahead(batches):
        held.append(batch)
        rows += batch.num_rows
        if rows >= BATCH // 2:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _file_states(dataset: Any) -> dict[str, tuple[Any, Any]]:
    """Size and time of change of each file on this machine; stores elsewhere are not asked."""
    from pyarrow.fs import LocalFileSystem

    if not isinstance(getattr(dataset, "filesystem", None), LocalFileSystem):
        return {}
    found = dataset.filesystem.get_file_info(dataset.files)
    return {file.path: (file.size, file.mtime_ns) for file in found}


def _check_unchanged(dataset: Any, files: Mapping[str, tuple[Any, Any]], words: str) -> None:
    """Raise DataError where files are not those that the dataset was opened with."""
    if not files:
        return
    now = _file_states(dataset)
    changed = [path for path, state in files.items() if now[path] != state]
    if changed:
        raise DataError(
            f"{words}: {listed(changed)} changed or vanished since the data were opened. Give data "
            "that stay as they are."
        )


def typed_files(
    dataset: Any, columns: Sequence[str], words: str
) -> tuple[list[tuple[Any, Any]], Any]:
    """Files of a dataset, each with the types of its columns, and the types that go for all.

    Raises
    ------
    DataError
        If a file lacks a column, or has one of a type that goes with no type of other files.
    """
    import pyarrow as pa

    files = list(dataset.get_fragments()) if hasattr(dataset, "get_fragments") else []
    schemas = []
    for file in files:
        with _named(file):
            schemas.append(_schema(file, dataset, columns, words))
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive") if files else None
    except pa.ArrowException as error:
        raise DataError(
            f"{words}: a column has types in different files that do not go together: "
            f"{_one_line(error)}"
        ) from error
    return list(zip(files, schemas, strict=True)), common


def file_batches(
    files: Iterable[tuple[Any, Any]], common: Any, columns: Sequence[str]
) -> Generator[Any]:
    """Record batches of columns of files, of the same types in all."""
    import pyarrow as pa

    for file, schema in files:
        for batch in _file_batches(file, schema, list(columns)):
            if schema.equals(common):
                yield batch
            else:
                yield from pa.Table.from_batches([batch]).cast(common).to_batches()


def _file_batches(file: Any, schema: Any, columns: list[str]) -> Iterator[Any]:
    """Sound batches of a file; nothing is read far ahead, and what has been read is not held."""
    import pyarrow.dataset as ds

    how: dict[str, Any] = {"columns": columns, "batch_size": BATCH, "schema": schema}
    how |= {"batch_readahead": 1, "use_threads": False}
    if isinstance(file, ds.ParquetFileFragment):
        how["fragment_scan_options"] = ds.ParquetFragmentScanOptions(
            pre_buffer=False, page_checksum_verification=True
        )
    with _named(file):
        pieces = file.split_by_row_group() if "fragment_scan_options" in how else [file]
        for piece in pieces:
            for batch in piece.to_batches(**how):
                batch.validate(full=True)  # text of a damaged file need not be text
                yield batch


@contextmanager
def _named(file: Any) -> Iterator[None]:
    """Errors of reading a file say which one it is."""
    try:
        yield
    except BayesLMMError:
        raise
    except reading_errors() as error:
        path = getattr(file, "path", "a part")
        raise OSError(f"`{path}`: {_one_line(error)}") from error


def _one_ahead(batches: Generator[Any]) -> Iterator[Any]:
    """The same, the next one being read while one is worked on; closed at the end."""
    with closing(batches), ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def _schema(file: Any, dataset: Any, columns: Sequence[str], words: str) -> Any:
    """Types of columns in a file; DataError if it has not all of them."""
    import pyarrow as pa

    own, shared = file.physical_schema, _partitions(dataset)
    absent = sorted(set(columns) - set(own.names) - shared)
    if absent:
        raise DataError(
            f"{words}: `{getattr(file, 'path', 'a part')}` has no column {listed(absent)}, which "
            "the first file has."
        )
    types = {name: dataset.schema.field(name) for name in shared}
    types |= {name: own.field(name) for name in own.names}
    return pa.schema([pa.field(name, types[name].type) for name in columns])


def _partitions(dataset: Any) -> set[str]:
    partitioning = getattr(dataset, "partitioning", None)
    return set() if partitioning is None else set(partitioning.schema.names)


def _of_arrow(data: Any, kind: str) -> Source | None:
    if kind == "RecordBatchReader":
        return _once("a RecordBatchReader", iter(data))
    if kind.endswith("Dataset"):
        return _dataset(data, f"The {kind} of pyarrow")
    return None


# --- engines -------------------------------------------------------------------------------


def quoted(name: str) -> str:
    """The name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _of_duckdb(data: Any, kind: str) -> Source | None:
    if kind != "DuckDBPyRelation":
        return None

    def read(columns: Sequence[str]) -> Any:
        chosen = data.project(", ".join(map(quoted, columns)))
        for method in ("to_arrow_reader", "fetch_arrow_reader", "fetch_record_batch"):
            if hasattr(chosen, method):
                return map(_as_table, getattr(chosen, method)(BATCH))
        raise DataError("This version of DuckDB gives no batches of Arrow; a newer one is needed.")

    return Source(
        words="The DuckDB relation", names=lambda: list(data.columns), read=read, engine=data
    )


def _of_polars(data: Any, kind: str) -> Source | None:
    if kind != "LazyFrame":
        return None

    def read(columns: Sequence[str]) -> Any:
        chosen = data.select(list(columns))
        if not hasattr(chosen, "collect_batches"):
            raise DataError("Batches of a LazyFrame need a newer version of Polars.")
        return chosen.collect_batches(chunk_size=BATCH)

    return Source(
        words="The Polars LazyFrame",
        names=lambda: data.collect_schema().names(),
        read=read,
        engine=data,
    )


def _of_ibis(data: Any, kind: str) -> Source | None:
    if not hasattr(data, "to_pyarrow_batches"):
        return None

    def read(columns: Sequence[str]) -> Any:
        return map(_as_table, data.select(*columns).to_pyarrow_batches(chunk_size=BATCH))

    return Source(words="The Ibis table", names=lambda: list(data.columns), read=read, engine=data)


def _of_dask(data: Any, kind: str) -> Source | None:
    if not hasattr(data, "partitions"):
        return None

    def read(columns: Sequence[str]) -> Iterator[Any]:
        chosen = data[list(columns)]
        for number in range(data.npartitions):
            yield chosen.partitions[number].compute()

    def names() -> list[str]:
        return list(map(str, data.columns))

    return Source(words="The Dask data frame", names=names, read=read, origin=data)


def _of_narwhals(data: Any, kind: str) -> Source | None:
    return open_source(data.to_native()) if kind == "LazyFrame" else None


_OPENERS: Mapping[str, Callable[[Any, str], Source | None]] = {
    "pyarrow": _of_arrow,
    "duckdb": _of_duckdb,
    "_duckdb": _of_duckdb,
    "polars": _of_polars,
    "ibis": _of_ibis,
    "narwhals": _of_narwhals,
    "dask": _of_dask,
}
"""By the library of the data."""
