"""Bundled data sets with their factors, sources and, where simulated, true parameter values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd

from bayeslmm.exceptions import DataError

_FOLDER = resources.files("bayeslmm") / "_datasets"
_DTYPES = {"factor": str, "integer": "int64", "numeric": "float64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a data set.

    Attributes
    ----------
    name : str
        Name in the data frame.
    type : {"factor", "integer", "numeric"}
        Factors are loaded as ``pandas.Categorical``.
    description : str
        What was measured, with its unit where there is one.
    levels : tuple of str
        Levels of a factor in order, the reference level first; empty for numbers.
    ordered : bool
        Whether the factor is ordered.
    """

    name: str
    type: Literal["factor", "integer", "numeric"]
    description: str
    levels: tuple[str, ...] = ()
    ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set besides its values.

    Attributes
    ----------
    name, title, description : str
        Name to load it by, a title and a paragraph on the design.
    n_rows : int
        Number of rows.
    columns : tuple of Column
        One entry per column, in order.
    source : str
        Where the values come from, in a few words.
    provenance : str
        Where the values come from and under which licence they are distributed.
    citations : tuple of str
        Literature, with DOIs where there are any.
    true_values : mapping of str to float
        Parameters behind simulated data, keyed like priors: a coefficient by its label, then
        ``"sd[pot]"``, ``"sigma"`` and ``"u[pot, A]"``; empty for measured data.
    """

    name: str
    title: str
    description: str
    n_rows: int
    columns: tuple[Column, ...]
    source: str
    provenance: str
    citations: tuple[str, ...]
    true_values: Mapping[str, float]

    def __str__(self) -> str:
        columns = [f"  {c.name}: {c.description} ({_type_words(c)})" for c in self.columns]
        heading = f"{self.name}: {self.title} ({self.n_rows} rows)"
        return "\n".join(
            [heading, self.description, *columns, self.provenance, *self.citations],
        )


def load_dataset(name: str) -> pd.DataFrame:
    """Load a bundled data set.

    Parameters
    ----------
    name : str
        A name listed by `list_datasets`.

    Returns
    -------
    pandas.DataFrame
        A new frame. Factors are categorical with string labels and keep the order of the levels:
        the first level is the reference level of treatment contrasts.

    Raises
    ------
    DataError
        If there is no such data set.

    See Also
    --------
    describe_dataset : columns, source and true values of a data set.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> sleep = blm.load_dataset("sleepstudy")
    >>> sleep.shape
    (180, 3)
    >>> sleep["Subject"].cat.categories[0]
    '308'
    """
    info = describe_dataset(name)
    with (_FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(
            file,
            dtype={column.name: _DTYPES[column.type] for column in info.columns},
            keep_default_na=False,
            na_values=[""],
        )
    for column in info.columns:
        if column.type == "factor":
            frame[column.name] = pd.Categorical(
                frame[column.name], categories=list(column.levels), ordered=column.ordered
            )
    return frame


def list_datasets() -> pd.DataFrame:
    """List the bundled data sets.

    Returns
    -------
    pandas.DataFrame
        One row per data set: ``name``, ``rows``, ``columns`` (their names), ``description`` and
        ``source``.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> table = blm.list_datasets()
    >>> "sleepstudy" in set(table["name"])
    True
    """
    infos = [describe_dataset(name) for name in _names()]
    return pd.DataFrame(
        {
            "name": [info.name for info in infos],
            "rows": [info.n_rows for info in infos],
            "columns": [", ".join(column.name for column in info.columns) for info in infos],
            "description": [info.title for info in infos],
            "source": [info.source for info in infos],
        }
    )


def describe_dataset(name: str) -> DatasetInfo:
    """Describe a bundled data set: design, columns, sources and true values.

    Parameters
    ----------
    name : str
        A name listed by `list_datasets`.

    Returns
    -------
    DatasetInfo
        Printing it gives a readable account.

    Raises
    ------
    DataError
        If there is no such data set.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> plants = blm.describe_dataset("lecture_plants")
    >>> plants.true_values["sd[pot]"]
    2.0
    >>> plants.columns[1].levels
    ('1', '2')
    """
    _check_name(name)
    record = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return DatasetInfo(
        name=record["name"],
        title=record["title"],
        description=record["description"],
        n_rows=record["rows"],
        columns=tuple(_column(column) for column in record["columns"]),
        source=_source_words(record["source"]),
        provenance=record["provenance"],
        citations=tuple(_citation_words(citation) for citation in record["citations"]),
        true_values=MappingProxyType(record["true_values"] or {}),
    )


def _names() -> list[str]:
    """Names of the data sets in alphabetical order, capitals and small letters alike."""
    files = (entry.name for entry in _FOLDER.iterdir())
    names = (file.removesuffix(".json") for file in files if file.endswith(".json"))
    return sorted(names, key=str.casefold)


def _check_name(name: str) -> None:
    names = _names()
    if name in names:
        return
    by_key = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(str(name).casefold(), by_key, n=1)
    hint = f" Did you mean {by_key[close[0]]!r}?" if close else ""
    raise DataError(
        f"There is no bundled data set {name!r}.{hint} Available: {', '.join(names)}. "
        "Data of your own need no loading: pass the data frame to the model."
    )


def _column(record: Mapping[str, Any]) -> Column:
    return Column(**{**record, "levels": tuple(record.get("levels", ()))})


def _type_words(column: Column) -> str:
    if column.type != "factor":
        return column.type
    ordered = "ordered " if column.ordered else ""
    return f"{ordered}factor, {len(column.levels)} levels"


def _source_words(source: Mapping[str, Any]) -> str:
    if source["kind"] == "simulated":
        return f"simulated, seed {source['seed']}"
    return f"R package {source['package']} {source['version']}"


def _citation_words(citation: Mapping[str, Any]) -> str:
    doi = citation["doi"]
    return f"{citation['text']} doi:{doi}" if doi else citation["text"]
