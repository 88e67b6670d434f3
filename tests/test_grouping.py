"""Levels of grouping factors, their labels, and levels of new data."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_data import load_reference_data

from bayeslmm.data.grouping import (
    column_levels,
    grouping_factor,
    is_continuous,
    lookup_levels,
    new_levels,
)
from bayeslmm.exceptions import DataError


def levels_of(values, **kwargs):
    return column_levels(pd.Series(values, **kwargs))[1].tolist()


def factor_of(columns):
    """The grouping factor of all columns."""
    frame = pd.DataFrame(columns)
    return grouping_factor(frame, list(frame.columns))[1]


def labels_of(values, **kwargs):
    return factor_of({"g": pd.Series(values, **kwargs)}).levels.tolist()


# --- one variable ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([10, 9, -1, 9], ["-1", "9", "10"]),
        ([10.0, 9.0, 2.0], ["2", "9", "10"]),
        (["10", "9", "a", "B"], ["10", "9", "B", "a"]),
        (
            ["7", "07", "007", "1e3", "1000", "-0", "0"],
            ["-0", "0", "007", "07", "1000", "1e3", "7"],
        ),
        (["é", "z", "a b", "a:b", "a|b", " a"], [" a", "a b", "a:b", "a|b", "z", "é"]),
        ([True, False, True], ["False", "True"]),
        ([3, "a", 1.5], ["1.5", "3", "a"]),
        ([1, "1", "b"], ["1", "'1'", "b"]),
        ([datetime.date(2020, 1, 2), datetime.date(2019, 5, 1)], ["2019-05-01", "2020-01-02"]),
        (pd.to_datetime(["2020-01-02", "2019-05-01"]), ["2019-05-01", "2020-01-02"]),
        ([2**70, 1], ["1", str(2**70)]),
        ([("a", 1), ("a", 0)], ["('a', 0)", "('a', 1)"]),
        (pd.cut([0.5, 1.5], [0, 1, 2]), ["(0, 1]", "(1, 2]"]),
        ([Decimal(2), Decimal(1)], ["1", "2"]),
    ],
    ids=repr,
)
def test_levels_are_sorted_and_labelled(values, labels):
    assert labels_of(values) == labels


@pytest.mark.parametrize("dtype", ["Int64", "int8", "uint16", "Float64", "int64[pyarrow]"])
def test_levels_do_not_depend_on_the_type_of_numbers(dtype):
    assert levels_of([3, 1, 2], dtype=dtype) == [1, 2, 3]
    assert labels_of([3, 1, 2], dtype=dtype) == ["1", "2", "3"]


@pytest.mark.parametrize("dtype", [object, "str", "string", "string[pyarrow]", "category"])
def test_levels_do_not_depend_on_the_type_of_text(dtype):
    assert levels_of(["b", "a", "b"], dtype=dtype) == ["a", "b"]


def test_categories_keep_their_order_and_unused_ones_are_dropped():
    column = pd.Series(pd.Categorical(["lo", "hi", "lo"], categories=["hi", "none", "mid", "lo"]))
    codes, levels = column_levels(column)
    assert levels.tolist() == ["hi", "lo"]
    assert codes.tolist() == [1, 0, 1]


def test_values_that_cannot_be_levels():
    with pytest.raises(DataError) as caught:
        column_levels(pd.Series([[1], [2]], name="g"))
    assert (
        str(caught.value)
        == "The values of `g` cannot be levels of a factor: unhashable type: 'list'."
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, np.nan], False),
        ([1.0, 2.5], True),
        ([1, 2], False),
        (["1.5"], False),
        ([True, False], False),
        (pd.Categorical([1.5, 2.5]), False),
        (pd.Series([1, 2.5], dtype="Float64"), True),
        (pd.Series([1, 2.5], dtype=object), True),
        (pd.Series([1, 2.0], dtype=object), False),
        (pd.Series([Decimal("1.5")], dtype=object), True),
    ],
)
def test_is_continuous(values, expected):
    assert is_continuous(pd.Series(values)) is expected


# --- interactions ----------------------------------------------------------------------


def test_cells_are_in_lexicographic_order_and_occur():
    frame = pd.DataFrame({"a": ["y", "x", "y", "y"], "b": [10, 9, 2, 10]})
    codes, factor = grouping_factor(frame, ["a", "b"])
    assert factor.name == "a:b"
    assert factor.levels.tolist() == ["x:9", "y:2", "y:10"]
    assert codes.tolist() == [2, 0, 1, 2]
    assert factor.keys == (("x", 9), ("y", 2), ("y", 10))


def test_cells_with_equal_labels_stay_apart():
    frame = pd.DataFrame({"f1": ["a:b", "a", "a", "a:b"], "f2": ["c", "b:c", "c", "c"]})
    codes, factor = grouping_factor(frame, ["f1", "f2"])
    assert factor.keys == (("a", "b:c"), ("a", "c"), ("a:b", "c"))
    assert factor.levels.tolist() == ["a:'b:c'", "a:c", "'a:b':c"]
    assert codes.tolist() == [2, 0, 1, 2]


def test_labels_are_unique_even_against_quoting():
    first = ["a:b", "a", "'a:b'", "a:'b"]
    second = ["c", "b:c", "c", "c"]
    factor = factor_of({"f": first, "g": second})
    assert len(set(factor.levels)) == len(factor.levels) == 4


def test_labels_are_unique_when_values_look_the_same():
    class Odd:
        def __repr__(self):
            return "odd"

    assert labels_of([Odd(), Odd(), Odd()]) == ["odd (2)", "odd (3)", "odd (4)"]


def test_many_variables_do_not_overflow():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.integers(0, 10**6, (500, 6)), columns=list("abcdef"))
    frame = pd.concat([frame, frame])
    codes, factor = grouping_factor(frame, list("abcdef"))
    assert len(factor.levels) == 500
    np.testing.assert_array_equal(codes[:500], codes[500:])
    np.testing.assert_array_equal(lookup_levels(factor, frame), codes)


@pytest.mark.reference
def test_labels_of_the_reference_sets():
    frame = load_reference_data("sim_labels")
    assert set(factor_of(frame[["site"]]).levels) == set(frame["site"].cat.categories)
    pad = factor_of(frame[["pad"]])
    assert pad.levels.tolist() == frame["pad"].cat.categories.tolist()
    assert {"7", "07", "007"} <= set(pad.levels)
    numbers, text = factor_of(frame[["id"]]), factor_of(frame[["id_str"]])
    assert set(numbers.levels) == set(text.levels)
    collide = load_reference_data("sim_labels_collide")
    codes, cells = grouping_factor(collide, ["f1", "f2"])
    others, true = grouping_factor(collide, ["cell"])
    assert len(cells.levels) == len(true.levels) == 12
    assert len(set(zip(codes, others, strict=True))) == 12


# --- new data --------------------------------------------------------------------------


def test_lookup():
    frame = pd.DataFrame({"a": ["y", "x", "y"], "b": [10, 9, 2]})
    factor = factor_of(frame)
    new = pd.DataFrame({"a": ["y", "y", "z", "x", "z", "y"], "b": [2, 9, 9, 9, 9, 9]})
    codes = lookup_levels(factor, new)
    assert codes.tolist() == [1, -1, -1, 0, -1, -1]
    extended, labels = new_levels(factor, new, codes)
    assert extended.tolist() == [1, 3, 4, 0, 4, 3]
    assert labels.tolist() == ["y:9", "z:9"]


def test_lookup_with_other_types_of_the_same_values():
    factor = factor_of({"g": [3.0, 1.0, 2.0]})
    for dtype in ("int64", "float64", "Int64", "category", object, "int64[pyarrow]", "uint8"):
        new = pd.DataFrame({"g": pd.Series([2, 4, 3], dtype=dtype)})
        assert lookup_levels(factor, new).tolist() == [1, -1, 2], dtype
    text = factor_of({"g": pd.Categorical(["b", "a"])})
    for dtype in (object, "str", "string[pyarrow]", "category"):
        new = pd.DataFrame({"g": pd.Series(["c", "a"], dtype=dtype)})
        assert lookup_levels(text, new).tolist() == [-1, 0], dtype
    flags = factor_of({"g": [True, False]})
    assert lookup_levels(flags, pd.DataFrame({"g": [False, True]})).tolist() == [0, 1]


def test_new_labels_differ_from_known_ones():
    factor = factor_of({"f": ["a", "a"], "g": ["b:c", "d"]})
    new = pd.DataFrame({"f": ["a:b", "a"], "g": ["c", "b:c"]})
    codes = lookup_levels(factor, new)
    assert codes.tolist() == [-1, 0]
    assert new_levels(factor, new, codes)[1].tolist() == ["'a:b':c"]


@pytest.mark.parametrize(
    ("known", "new", "kinds"),
    [([1, 2], ["1", "2"], ("numbers", "text")), (["1", "2"], [1.0, 2.0], ("text", "numbers"))],
)
def test_numbers_are_not_looked_up_among_text(known, new, kinds):
    factor = factor_of({"g": known})
    with pytest.raises(DataError) as caught:
        lookup_levels(factor, pd.DataFrame({"g": new}))
    assert str(caught.value) == (
        f"`g` held {kinds[0]} when the model was built and holds {kinds[1]} here, so that no level "
        "would be recognised; convert the column."
    )


values = st.one_of(
    st.text(alphabet="a:'|0 é", max_size=3), st.integers(-3, 3), st.sampled_from(["7", "07"])
)
rows = st.lists(st.tuples(values, values), min_size=1, max_size=25)


@settings(deadline=None)
@given(known=rows, new=rows)
def test_levels_are_the_distinct_tuples(known, new):
    frame = pd.DataFrame(known, columns=["a", "b"], dtype=object)
    codes, factor = grouping_factor(frame, ["a", "b"])
    assert len(set(factor.levels)) == len(factor.levels) == len(set(known))
    assert [factor.keys[code] for code in codes] == known
    assert all(isinstance(label, str) for label in factor.levels)

    frame = pd.DataFrame(new, columns=["a", "b"], dtype=object)
    try:
        codes = lookup_levels(factor, frame)
    except DataError:
        return
    where = {key: i for i, key in enumerate(factor.keys)}
    assert codes.tolist() == [where.get(key, -1) for key in new]
    extended, labels = new_levels(factor, frame, codes)
    unknown = [key for key in new if key not in where]
    assert len(labels) == len(set(unknown))
    assert set(labels).isdisjoint(factor.levels)
    assert len(set(zip(new, extended.tolist(), strict=True))) == len(set(new))


@settings(deadline=None)
@given(known=rows, seed=st.integers(0, 10))
def test_levels_do_not_depend_on_the_order_of_rows(known, seed):
    frame = pd.DataFrame(known, columns=["a", "b"], dtype=object)
    shuffled = frame.sample(frac=1, random_state=seed)
    codes, first = grouping_factor(frame, ["a", "b"])
    others, second = grouping_factor(shuffled, ["a", "b"])
    assert first.levels.tolist() == second.levels.tolist()
    np.testing.assert_array_equal(codes[shuffled.index], others)
