"""Columns of Arrow and polars as columns of pandas, without loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bayeslmm.exceptions import DataError

_KNOWN_EXTENSIONS = ("pandas.interval", "pandas.period", "arrow.uuid")


def from_arrow(values: pa.Array | pa.ChunkedArray, name: str) -> pd.Series:
    """Turn an Arrow column into a pandas column.

    Parameters
    ----------
    values : pyarrow.Array or pyarrow.ChunkedArray
        Of any type.
    name : str
        For messages.

    Returns
    -------
    pandas.Series
        Whole numbers and truth values have pandas' nullable types, dictionaries are categorical.

    Raises
    ------
    DataError
        If pandas cannot hold the values.
    """
    if isinstance(values, pa.Array):
        values = pa.chunked_array([values])
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name not in _KNOWN_EXTENSIONS:
        chunks = [chunk.storage for chunk in values.chunks]
        return from_arrow(pa.chunked_array(chunks, kind.storage_type), name)
    if pa.types.is_run_end_encoded(kind):
        chunks = [pc.run_end_decode(chunk) for chunk in values.chunks]
        return from_arrow(pa.chunked_array(chunks, kind.value_type), name)
    if pa.types.is_dictionary(kind):
        return _from_dictionary(values, name)
    if pa.types.is_integer(kind):
        unsigned = pa.types.is_unsigned_integer(kind)
        wide = pd.UInt64Dtype() if unsigned else pd.Int64Dtype()
        return pd.Series(wide.__from_arrow__(values.cast(pa.uint64() if unsigned else pa.int64())))
    if pa.types.is_boolean(kind):
        return pd.Series(pd.BooleanDtype().__from_arrow__(values))
    try:
        return values.to_pandas()
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"`{name}` of the Arrow type {kind} cannot be read: {error}.") from error


def _from_dictionary(values: pa.ChunkedArray, name: str) -> pd.Series:
    """A categorical column; values that a dictionary holds twice are one category."""
    whole = values.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # of no chunk
        whole = whole.type.wrap_array(pa.array([]))
    codes = whole.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    known = from_arrow(whole.dictionary, name)
    try:
        places, categories = pd.factorize(known)
    except TypeError:  # values without a hash, such as lists
        return from_arrow(whole.dictionary.take(whole.indices), name)
    places = np.append(places, -1)  # for the code of what is missing
    index = pd.Index(categories)
    return pd.Series(pd.Categorical.from_codes(places[codes], index, values.type.ordered))


def from_polars(values: Any, name: str) -> pd.Series:
    """Turn a polars column into a pandas column, as `from_arrow`.

    The categories of a ``Categorical``, whose order is that of first appearance, are sorted.
    """
    kind = str(values.dtype)
    if kind.startswith("Object") or kind in ("Int128", "UInt128"):  # not known to Arrow
        return pd.Series(values.to_list(), dtype=object)
    column = from_arrow(values.to_arrow(), name)
    if kind.startswith("Categorical"):
        return column.cat.set_categories(sorted(column.cat.categories))
    return column
