"""Frames of any kind, complete rows."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import bayeslmm as blm
from bayeslmm.data.frames import (
    check_infinite,
    column_names,
    complete_cases,
    missing,
    plain_frame,
    to_frame,
)
from bayeslmm.exceptions import DataError


def make_frame():
    return pd.DataFrame(
        {
            "y": [1.5, 2.5, np.nan, 4.0],
            "n": [3, 1, 2, 2],
            "s": ["b", None, "a", "ä ö"],
            "f": pd.Categorical(["lo", "hi", "lo", None], categories=["lo", "mid", "hi"]),
        },
        index=[10, 30, 20, 20],
    )


def message(function, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# --- frames ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda frame: frame, id="pandas"),
        pytest.param(lambda frame: frame.convert_dtypes(), id="pandas nullable"),
        pytest.param(
            lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"), id="pandas arrow"
        ),
        pytest.param(pl.from_pandas, id="polars"),
        pytest.param(lambda f: pa.Table.from_pandas(f, preserve_index=False), id="pyarrow"),
        pytest.param(lambda frame: dict(frame.items()), id="dict of series"),
        pytest.param(lambda frame: frame.to_dict("list"), id="dict of lists"),
    ],
)
def test_to_frame_of_any_kind(convert):
    frame = to_frame(convert(make_frame()[["y", "n", "s"]]))
    assert list(frame.columns) == ["y", "n", "s"]
    assert missing(frame["y"]).tolist() == [False, False, True, False]
    assert missing(frame["s"]).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(frame["y"].to_numpy(float, na_value=np.nan), make_frame()["y"])
    assert frame["n"].tolist() == [3, 1, 2, 2]
    assert frame["s"].tolist()[2:] == ["a", "ä ö"]


def test_to_frame_keeps_a_pandas_index():
    assert to_frame(make_frame()).index.tolist() == [10, 30, 20, 20]
    assert to_frame(pl.from_pandas(make_frame())).index.tolist() == [0, 1, 2, 3]


def test_an_arrow_table_keeps_the_columns_of_a_former_index():
    table = pa.Table.from_pandas(make_frame().set_index("s"))
    assert to_frame(table, {"s", "n"})["s"].tolist()[2:] == ["a", "ä ö"]
    assert to_frame(table).index.tolist() == [0, 1, 2, 3]


def test_to_frame_is_a_copy():
    original = make_frame()
    frame = to_frame(original)
    frame.loc[:, "n"] = 0
    frame["new"] = 1
    pd.testing.assert_frame_equal(original, make_frame())
    values = np.arange(3.0)
    shared = pd.DataFrame({"v": values}, copy=False)
    frame = to_frame(shared)
    values[:] = -1
    assert frame["v"].tolist() == [0, 1, 2]


def test_to_frame_infers_no_types():
    columns = {"s": ["a", "b"], "t": [pd.Timestamp("2026-01-01")] * 2, "v": [1, 2]}
    frame = pd.DataFrame(columns, dtype=object)
    assert to_frame(frame).dtypes.tolist() == [object] * 3


def test_plain_frame_keeps_order_and_index():
    frame = pd.DataFrame({"a": ["x", "y"], "b": [1.5, 2.5], "c": [1, 2]}, index=[7, 7])
    frame = frame.astype({"a": object, "b": "float32", "c": "int8"})
    read = plain_frame(frame, ["c", "a", "b"])
    assert read.dtypes.to_dict() == {"c": np.int64, "a": object, "b": np.float64}
    assert read.index.tolist() == [7, 7] and read["b"].tolist() == [1.5, 2.5]
    assert frame.dtypes["b"] == np.float32


def test_to_frame_takes_only_the_columns_asked_for():
    assert list(to_frame(make_frame(), {"s", "n", "absent"}).columns) == ["n", "s"]
    assert list(to_frame(pl.from_pandas(make_frame()), {"s", "n"}).columns) == ["n", "s"]


def test_column_names_become_strings():
    frame = pd.DataFrame([[1, 2]], columns=[0, "a"])
    assert column_names(frame) == ["0", "a"] == list(to_frame(frame).columns)
    assert list(frame.columns) == [0, "a"]


def test_order_of_categories():
    assert to_frame(make_frame())["f"].cat.categories.tolist() == ["lo", "mid", "hi"]
    arrow = pa.Table.from_pandas(make_frame())
    assert to_frame(arrow)["f"].cat.categories.tolist() == ["lo", "mid", "hi"]
    enum = pl.DataFrame({"f": pl.Series(["hi", "lo"], dtype=pl.Enum(["lo", "hi"]))})
    assert to_frame(enum)["f"].cat.categories.tolist() == ["lo", "hi"]
    by_appearance = pl.DataFrame({"f": pl.Series(["b", "c", "a"], dtype=pl.Categorical)})
    assert to_frame(by_appearance)["f"].cat.categories.tolist() == ["a", "b", "c"]


READABLE = (
    "The data must be a data frame of pandas, polars, pyarrow or another library that narwhals "
    "reads, or a mapping of columns, got "
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, READABLE + "NoneType."),
        (np.eye(2), READABLE + "ndarray."),
        (pd.Series([1.0]), READABLE + "Series."),
        ([{"y": 1}], READABLE + "list."),
        (pl.LazyFrame({"y": [1]}), READABLE + "LazyFrame. Collect a lazy frame first."),
        (pd.DataFrame({"y": []}), "The data have no rows."),
        (pl.DataFrame({"y": []}), "The data have no rows."),
        (
            pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"]),
            "Column names must be unique, but `a` occurs more than once; rename or drop the extra "
            "columns.",
        ),
        (
            pd.DataFrame([[1, 2, 3, 4]], columns=[1, "1", "b", "b"]),
            "Column names must be unique, but `1`, `b` occur more than once; rename or drop the "
            "extra columns.",
        ),
        (
            pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
            "The columns have several levels of names; flatten them to one.",
        ),
        (
            {"a": [1, 2], "b": [1]},
            "These columns do not make a data frame: All arrays must be of the same length.",
        ),
        (
            {"a": pd.Series([1, 2]), "b": pd.Series([1, 2], index=[1, 0])},
            "The columns are pandas Series with different indexes, so it is not clear which values "
            "belong together; pass a data frame.",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_frame(data, expected):
    assert message(to_frame, data) == expected


def test_duplicate_columns_of_arrow():
    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert "unique" in message(to_frame, table)


# --- rows ------------------------------------------------------------------------------


def test_complete_cases():
    frame, dropped = complete_cases(to_frame(make_frame()), ["y", "n"])
    assert list(frame.columns) == ["y", "n"]
    assert frame.index.tolist() == [10, 30, 20]
    assert dropped.tolist() == [2]
    assert complete_cases(to_frame(make_frame()), ["y", "s", "f"])[1].tolist() == [1, 2, 3]
    unweighted = np.array([True, False, False, False])
    assert complete_cases(to_frame(make_frame()), ["y"], unweighted)[1].tolist() == [0, 2]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1.0, np.nan, 2]),
        pd.Series([1, None, 2], dtype="Int64"),
        pd.Series([True, pd.NA, False], dtype="boolean"),
        pd.Series(["a", None, "b"], dtype=object),
        pd.Series(["a", pd.NA, "b"], dtype="string"),
        pd.Series(pd.to_datetime(["2020-01-01", None, "2020-01-02"])),
        pd.Series(pd.Categorical(["a", None, "b"])),
        pd.Series(pd.arrays.FloatingArray(np.array([1, np.nan, 2]), np.zeros(3, bool))),
        pd.Series(pd.array(pa.array([1.0, float("nan"), 2.0]), dtype="double[pyarrow]")),
    ],
    ids=lambda column: str(column.dtype),
)
def test_everything_missing_is_found(column):
    assert missing(column).tolist() == [False, True, False]


def test_complete_cases_errors():
    frame = pd.DataFrame(
        {"a": [1.0, np.nan], "b": [np.nan, 1.0], "c": [np.nan] * 2, "d": [None] * 2}
    )
    assert message(complete_cases, frame, ["a", "d", "c"]) == (
        "All 2 values of `c`, `d` are missing; take the variable out of the formula or fill it in."
    )
    assert message(complete_cases, frame, ["a", "b"]) == (
        "No row is complete: each of the 2 rows lacks a value of some variable (missing values: "
        "`a` 1, `b` 1)."
    )
    unweighted = np.array([True, False])
    assert message(complete_cases, frame, ["a"], unweighted).endswith(
        "(missing values: `a` 1, `weights` 1)."
    )


def test_infinite_values_are_named():
    frame = pd.DataFrame(
        {"x": [1, np.inf, 3, -np.inf], "i": [1, 2, 3, 4], "z": [np.inf] * 4}, index=list("abcd")
    )
    expected = (
        "`x` is infinite in 2 of 4 rows, first at position 1 (index 'b'); mark these values as "
        "missing or take the rows out."
    )
    assert message(check_infinite, frame, ["x", "i"]) == expected
    arrow = frame.convert_dtypes(dtype_backend="pyarrow")
    assert message(check_infinite, arrow, ["x"]) == expected
    check_infinite(frame, ["i"])


def test_long_lists_of_columns_are_cut():
    frame = pd.DataFrame(np.zeros((1, 45)), columns=[f"v{i}" for i in range(45)]).assign(x=np.nan)
    doubled = pd.concat([frame, frame], axis=1)
    assert re.search(r"`v\d+` and 6 more occur", message(to_frame, doubled))


def test_single_values_are_no_columns():
    with pytest.raises(DataError, match="The columns are single values; give a list for each"):
        to_frame({"x": 1.0, "g": "a"})


def test_records_are_no_frames_of_columns():
    with pytest.raises(DataError, match=r"`x` is 1\.0\. Make a data frame of records first"):
        blm.LMM("x ~ 1 + (1 | g)", [{"x": 1.0, "g": "a"}, {"x": 2.0, "g": "b"}])
