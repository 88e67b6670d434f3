"""A spec is all that a model knows without rows: other rows need no row of its data."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest

from bayeslmm.data.building import build_design
from bayeslmm.exceptions import DataError

N = 144
FORMULAS = [
    "y ~ x + (x | g)",
    "y ~ 1 + (1 | g)",
    "y ~ 0 + f + (0 + f | g)",
    "log(y) ~ x * f + I(x ** 2) + offset(w) + (f || g)",
    "scale(y) ~ center(x) + f + (1 | g/k)",
    "y ~ poly(x, 2) + bs(w, df=5) + (scale(x) | g)",
    "y ~ ns(x, 3) + cr(w, df=4) + cc(x, df=4) + standardize(w) + (poly(x, 2) | g) + (1 | k)",
    "y ~ C(f, contr.sum) * x + offset(scale(w)) + offset(2 * x) + (1 | g:k)",
    "y ~ C(h, contr.helmert) + (C(h, contr.sum) | g)",
    "y ~ C(h, contr.poly) + f:h + (1 | g) + (0 + x || g)",
    "y ~ C(f, contr.diff) + C(n) + (1 | g)",
    "y ~ C(f, contr.treatment('b')) + flag + (flag | k)",
    "y ~ x + twice + f * h + (1 + twice | g)",
    "y ~ of_mean(x) + x + offset(code(h)) + (of_mean(w) | g)",
]


def of_mean(x):
    return x > 0.5


def code(levels):
    return levels.cat.codes.to_numpy().astype(float)


FUNCTIONS = {"of_mean": of_mean, "code": code}


def make_frame(times=1):
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "x": rng.uniform(0.0, 3.0, N),
            "w": rng.normal(10.0, 2.0, N),
            "f": np.resize(["a", "b", "c"], N),
            "h": pd.Categorical(
                np.resize(["low", "mid", "mid", "high"], N), ["low", "mid", "high"]
            ),
            "n": np.resize([1, 2, 5], N),
            "flag": np.resize([True, False, False, True, False], N),
            "g": np.repeat([f"g{i}" for i in range(8)], N // 8),
            "k": np.resize(np.arange(4), N),
            "y": rng.normal(20.0, 1.0, N),
        }
    )
    frame["twice"] = 2.0 * frame["x"]
    return pd.concat([frame] * times, ignore_index=True)


def build(formula, frame=None, **kwargs):
    return build_design(
        formula, make_frame() if frame is None else frame, functions=FUNCTIONS, **kwargs
    )


def assert_same_rows(one, two):
    for name in ("y", "offset", "X", "X_full"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert np.array_equal(one.weights, two.weights) or one.weights is two.weights is None
    assert (one.coefs, one.coefs_full, one.aliased) == (two.coefs, two.coefs_full, two.aliased)
    for a, b in zip(one.random, two.random, strict=True):
        assert (a.name, a.key, a.coefs, a.blocks) == (b.name, b.key, b.coefs, b.blocks)
        for name in ("levels", "codes", "Z", "extended_codes", "new_levels"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def arrays_in(value, seen=None):
    """Every array and frame that a value holds, however deep."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | bytes | int | float | type):
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray | pd.Index | pd.Series | pd.DataFrame):
        yield value
    elif isinstance(value, dict):
        for item in [*value.keys(), *value.values()]:
            yield from arrays_in(item, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from arrays_in(item, seen)
    elif type(value).__module__.startswith(("bayeslmm", "formulaic")):
        names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        names += getattr(value, "__dict__", {})
        for name in names:
            yield from arrays_in(getattr(value, name, None), seen)


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_row_is_in_a_spec(formula):
    few, many = (build(formula, make_frame(times)).spec for times in (1, 50))
    assert abs(len(pickle.dumps(many)) - len(pickle.dumps(few))) < 100
    for spec in (few, many):
        assert not any(
            isinstance(found, pd.DataFrame) or max(np.shape(found), default=0) >= N
            for found in arrays_in(spec)
        )


@pytest.mark.parametrize("formula", FORMULAS)
def test_rows_under_a_pickled_spec(formula):
    spec = build(formula).spec
    rows = make_frame().iloc[[3, 140, 77, 5, 60]].drop(columns="y" if "scale(y)" in formula else [])
    rows["g"] = ["g3", "new", "g5", "other", "new"]
    for random in ("levels", "covariates", "none"):
        again = pickle.loads(pickle.dumps(spec)).rows(rows, random=random)
        assert_same_rows(spec.rows(rows, random=random), again)
        assert len(again.random) == (0 if random == "none" else len(spec.random))


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_data_of_a_model_are_rows_like_any_other(formula):
    design = build(formula, weights="w")
    again = pickle.loads(pickle.dumps(design.spec)).rows(make_frame())
    assert_same_rows(design, again)


@pytest.mark.parametrize("formula", FORMULAS)
def test_batches_make_the_rows_of_the_whole(formula):
    frame = make_frame()
    spec = build(formula, weights="w").spec
    whole = spec.rows(frame)
    batches = [spec.rows(frame.iloc[start : start + 37]) for start in range(0, N, 37)]
    assert len(batches) == 4
    for name in ("y", "offset", "weights", "X", "X_full"):
        stacked = np.concatenate([getattr(batch, name) for batch in batches])
        np.testing.assert_array_equal(stacked, getattr(whole, name))
    for f, factor in enumerate(whole.random):
        for name in ("codes", "Z"):
            stacked = np.concatenate([getattr(batch.random[f], name) for batch in batches])
            np.testing.assert_array_equal(stacked, getattr(factor, name))


@pytest.mark.parametrize(
    ("formula", "change", "message"),
    [
        ("y ~ f * x + (1 | g)", {"f": "q"}, "`f` has levels that the model has not seen: `q`"),
        ("y ~ x + (f | g)", {"f": "q"}, "The known ones are `a`, `b`, `c`. A coefficient of a new"),
        ("y ~ poly(x, 2) + h + (1 | g)", {"h": "top"}, "The known ones are `low`, `mid`, `high`."),
        ("y ~ C(n) + (1 | g)", {"n": 4.5}, "The known ones are `1`, `2`, `5`. A coefficient"),
        ("y ~ C(h, contr.sum) + (1 | g)", {"h": "top"}, "The factor `h` has levels that the model"),
        ("y ~ of_mean(x) + (1 | g)", {"x": "text"}, "cannot be evaluated on these data"),
        ("y ~ x + offset(code(h)) + (1 | g)", {"h": "top"}, "`h` has levels that the model has"),
        (
            "y ~ x + (1 | k)",
            {"k": ["p", "q", "r"]},
            "`k` held numbers when the model was built and holds",
        ),
        ("y ~ x + (1 | g)", {"x": np.nan}, "missing values in variables that are needed: `x` 1"),
        ("y ~ x + (w | g)", {"w": np.inf}, "`w` is infinite in 1 of 3 rows, first at position 1"),
    ],
)
def test_errors_need_no_rows(formula, change, message):
    spec = build(formula).spec
    rows = make_frame().head(3)
    for name, value in change.items():
        one = [value if i == 1 else old for i, old in enumerate(rows[name])]
        rows[name] = value if isinstance(value, list) else one
    for known in (spec, pickle.loads(pickle.dumps(spec))):
        with pytest.raises(DataError, match=re.escape(message)):
            known.rows(rows)


def test_absent_columns_need_no_rows():
    spec = build("y ~ x + f + (w | g:k)").spec
    rows = make_frame().head(3).drop(columns=["f", "k"]).rename(columns={"x": "X"})
    message = (
        "The new data have no column `f`, `k`, `x`. Needed are `f`, `g`, `k`, `w`, `x`; the columns"
        " are `X`, `flag`, `g`, `h`, `n`, `twice`, `w`, `y`."
    )
    for known in (spec, pickle.loads(pickle.dumps(spec))):
        with pytest.raises(DataError, match=re.escape(message)):
            known.rows(rows)


def test_columns_are_evaluated_once():
    calls = []

    def counted(x):
        calls.append(len(x))
        return x**2

    design = build_design(
        "counted(y) ~ counted(x) + offset(counted(w)) + (counted(x) | g)",
        make_frame(),
        functions={"counted": counted},
    )
    assert calls == [N] * 3  # the response, the offset, and x once for both of its sides
    assert design.X_full is design.X
    assert design.random[0].Z is design.X


def test_an_offset_is_one_column():
    data = {"y": [1.0, 2.0, 4.0, 3.0], "x": [0.0, 1.0, 2.0, 4.0], "g": ["a", "a", "b", "b"]}
    with pytest.raises(
        DataError, match=r"`poly\(x, 2\)` must be one numeric column, got 2 columns"
    ):
        build_design("y ~ 1 + offset(poly(x, 2)) + (1 | g)", data)
