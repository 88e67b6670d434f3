"""Tables with a row per row of the data: in memory, or batch by batch into a Parquet file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import row_parts
from bayeslmm.data.sources import BATCH
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError, StorageError
from bayeslmm.writing import check_replaceable, replacing

ROW = ".row"
"""Column of a file with the place of a row in the source, from 0, or its label in a data frame."""

Out = str | PathLike[str]


def row_table(
    design: Design, columns: Callable[[Design], pd.DataFrame], out: Out | None
) -> pd.DataFrame | None:
    """Columns with a value per row of the data.

    Parameters
    ----------
    design : Design
        Of the model.
    columns : callable
        From some of the rows to their columns.
    out : path or None
        A Parquet file that does not exist, for these columns beside the number of the row and the
        variables of the formula.

    Returns
    -------
    pandas.DataFrame
        None where the columns went to a file.

    Raises
    ------
    DataError
        If the rows are too many for memory, or cannot be read again; nothing is written then.
    FileExistsError
        If there is such a file.
    ValueError
        If its name does not end in ``.parquet``.
    StorageError
        If the system refuses to write.
    """
    return table_of_parts(
        design, lambda: ((part, columns(part)) for part in row_parts(design)), out
    )


def table_of_parts(
    design: Design, parts: Callable[[], Iterable[tuple[Design, pd.DataFrame]]], out: Out | None
) -> pd.DataFrame | None:
    """The same of tables that are made in one reading of all rows."""
    if out is None:
        require_few(design)
        tables = [table for _, table in parts()]
        return tables[0] if len(tables) == 1 else pd.concat(tables)
    path = checked_path(out)
    write_tables(path, (_beside(part, table) for part, table in parts()))
    return None


def require_few(design: Design) -> None:
    """Refuse a result with a row per row where these are more than a batch."""
    if isinstance(design, SummarisedDesign) and design.n > BATCH:
        raise DataError(
            f"The result has a row for each of {design.n:,} rows, which go to a file: give "
            'out="rows.parquet". Up to about a million rows come back without.'
        )


def streams(design: Design) -> bool:
    """Whether rows are more than a batch and can be taken one by one.

    Where residuals have a structure they cannot, and up to a batch of rows is taken together.
    """
    return not rows_fit(design) and not design.spec.structured


def rows_fit(design: Design) -> bool:
    """Whether values of each row may be held."""
    return not isinstance(design, SummarisedDesign) or design.n <= BATCH


def _beside(part: Design, columns: pd.DataFrame) -> pd.DataFrame:
    """The number and the variables of rows, and further columns."""
    if clash := [name for name in columns if name in part.data]:
        raise DataError(f"The data already have columns {', '.join(clash)}: rename them.")
    numbers = pd.DataFrame({ROW: part.index}, index=part.index)
    parts = [numbers.drop(columns=[ROW] if ROW in part.data else []), part.data, columns]
    return pd.concat([frame.reset_index(drop=True) for frame in parts], axis=1)


def joined_table(
    parts: Generator[tuple[Design, pd.DataFrame]], *, keep: bool
) -> pd.DataFrame | None:
    """The tables below each other; None where they are computed, but not to be kept."""
    with closing(parts):
        kept = [table if keep else None for _, table in parts]
    return pd.concat(kept) if keep else None


def checked_path(out: Out) -> Path:
    """Path of a Parquet file to write; raises as :func:`row_table`."""
    path = Path(out)
    if path.suffix != ".parquet":
        raise ValueError(f"out={str(path)!r}: the name must end in .parquet.")
    check_replaceable(path, overwrite=False)
    return path


def write_tables(path: Path, tables: Generator[Any]) -> None:
    """Write tables of pandas or Arrow, with the columns of the first, below each other.

    What the tables are made from is closed at the end, also where that comes early.

    Raises
    ------
    DataError
        If there is none.
    StorageError
        If the system refuses to write. There is no file then.
    """
    import pyarrow as pa

    with (
        closing(tables),
        replacing(path, overwrite=False) as temporary,
        _parquet(temporary) as write,
    ):
        n = 0
        for table in tables:
            try:
                rows = table
                if not isinstance(table, pa.Table):
                    rows = pa.Table.from_pandas(table, preserve_index=False)
                write(rows)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{path}: the columns of rows from {n} on do not have the types of those "
                    f"before: {error}. Give all parts one type."
                ) from error
            n += len(table)
        if not n:
            raise DataError("The data have no rows.")


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Any], None]]:
    """Write tables with the types of the first; nothing stays open, also where it fails."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.OSFile(str(path), "wb") as file:
        writer: Any = None

        def write(table: Any) -> None:
            nonlocal writer
            table = table.replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(file, table.schema, write_page_checksum=True)
            writer.write_table(table.cast(writer.schema))

        try:
            yield write
            if writer is not None:
                writer.close()
        finally:
            if writer is not None:
                writer.is_open = False  # else it tries once more, when it is collected


def write_revised(
    path: Path,
    parts: Generator[tuple[Design, pd.DataFrame]],
    revise: Callable[[], Mapping[int, Mapping[str, float]]],
) -> None:
    """Write columns beside the variables of their rows, some of which change at the end.

    Parameters
    ----------
    path : Path
    parts : generator of (Design, DataFrame)
        Rows and their columns.
    revise : callable
        Called after the last of them; returns by the number of a row new values by column.
    """
    with closing(parts), _folder_beside(path) as folder:
        first = folder / "first.parquet"
        write_tables(first, (_beside(part, table) for part, table in parts))
        write_tables(path, _revised(first, revise()))


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder for as long as it is needed; StorageError where none can be made."""
    try:
        folder = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StorageError(f"{path} was not written: {error.strerror or error}.") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _revised(path: Path, changes: Mapping[int, Mapping[str, float]]) -> Generator[Any]:
    """The tables of a file with some values changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH):
            table = pa.Table.from_batches([batch])
            places = {row: row - start for row in changes if 0 <= row - start < len(table)}
            here = {place: changes[row] for row, place in places.items()}
            for name in {name for new in here.values() for name in new}:
                values = table[name].to_numpy().copy()
                for row, new in here.items():
                    values[row] = new[name]
                table = table.set_column(table.column_names.index(name), name, pa.array(values))
            start += len(table)
            yield table
