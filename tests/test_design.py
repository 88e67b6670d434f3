"""Designs: against lme4's, their parts, their errors, and new data."""

import logging
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_data import list_fits, load_fit, load_reference_data
from reference_formulas import translated

from bayeslmm.comparison.names import from_r
from bayeslmm.data.building import build_design
from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.grammar import parse
from bayeslmm.formula.rank import independent_columns

X_RTOL = 1e-8  # the reference matrices are written with ten digits
X_ATOL = 1e-9


def make_frame(n=48):
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "x": rng.normal(size=n),
            "z": rng.normal(size=n),
            "f": np.resize(list("abc"), n),
            "h": pd.Categorical(np.resize(["lo", "hi", "mid"], n), ["lo", "mid", "hi", "none"]),
            "flag": np.resize([True, False, False, True], n),
            "g": np.repeat(np.arange(8), n // 8),
            "k": np.resize(np.repeat(list("uvw"), 2), n),
            "one": "u",
            "constant": 2.0,
            "w": rng.uniform(1, 2, n),
            "id": np.arange(n),
        },
        index=[f"row{i}" for i in range(n)],
    )


def error(kind, formula, data=None, **kwargs):
    with pytest.raises(kind) as caught:
        build_design(formula, make_frame() if data is None else data, **kwargs)
    return str(caught.value)


# --- against lme4 ----------------------------------------------------------------------


def same_groups(groups):
    """From the set of variables of a grouping factor, whatever their order."""
    return {frozenset(name.split(":")): value for name, value in groups.items()}


@pytest.mark.reference
@pytest.mark.parametrize("name", list_fits())
def test_design_is_that_of_lme4(name):
    fit = load_fit(name)
    frame = load_reference_data(fit["dataset"])
    design = build_design(translated(fit), frame, weights=fit["weights"])
    assert design.n == fit["n"]
    assert (design.dropped + 1).tolist() == fit["rows_dropped"]
    assert design.p == fit["p"]
    known = design.coefs_full
    assert [from_r(name, known) for name in fit["columns_dropped"]] == list(design.aliased)
    assert [from_r(name, known) for name in fit["X_head"]["names"]] == list(design.coefs)
    head = np.array(fit["X_head"]["values"], dtype=float)
    np.testing.assert_allclose(design.X[: len(head)], head, rtol=X_RTOL, atol=X_ATOL)
    assert (design.index[: len(head)] + 1).tolist() == fit["X_head"]["rows"]
    assert (design.weights is None) == (fit["weights"] is None)
    if name.startswith("sim_labels_collide__f1f2"):
        return  # lme4 merges two cells
    assert len(design.random) == len(fit["groups"])
    for factor in design.random:
        counts = np.bincount(factor.codes)
        size = same_groups(fit["group_sizes"])[frozenset(factor.factors)]
        assert factor.n_levels == same_groups(fit["groups"])[frozenset(factor.factors)]
        assert (counts.min(), np.median(counts), counts.max()) == tuple(size.values())


@pytest.mark.reference
def test_z_is_that_of_lme4():
    """The fitted values follow from Z, lme4's modes of the random effects and X."""
    for name in ("sleepstudy__slope_reml", "Machines__slopes_reml", "Pastes__nested_reml"):
        fit = load_fit(name)
        design = build_design(fit["formula"], load_reference_data(fit["dataset"]))
        modes = {
            (frozenset(label.split(":")), frozenset(term["grouping"].split(":"))): values
            for term in fit["ranef"]
            for label, values in zip(term["levels"], term["modes"], strict=True)
        }
        u = [
            value
            for factor in design.random
            for level in factor.levels
            for value in modes[frozenset(level.split(":")), frozenset(factor.factors)]
        ]
        beta = np.array(fit["fixed"]["estimate"])
        fitted = design.X @ beta + design.Z_matrix() @ np.array(u)
        np.testing.assert_allclose(fitted[:20], fit["fitted"]["values"], rtol=1e-6)


@pytest.mark.reference
def test_cells_that_lme4_merges_stay_apart():
    frame = load_reference_data("sim_labels_collide")
    cells = build_design("y ~ x + (1 | f1:f2)", frame).random[0]
    true = build_design("y ~ x + (1 | cell)", frame).random[0]
    assert cells.n_levels == true.n_levels == 12
    assert {"'a:b':c", "a:'b:c'"} <= set(cells.levels)


@pytest.mark.reference
def test_columns_kept_are_those_of_lme4():
    frame = load_reference_data("sim_rankdef")
    design = build_design("y ~ x3 + x2 + x1 + a * b + (1 | g)", frame)
    assert design.aliased == ("x1", "a[T.a3]:b[T.b2]")
    assert design.coefs_full == (*design.coefs[:3], "x1", *design.coefs[3:], "a[T.a3]:b[T.b2]")
    assert design.X_full.shape == (300, 9)
    reordered = build_design("y ~ x1 + x2 + x3 + (1 | g)", frame)
    assert reordered.aliased == ("x3",)


# --- rank ------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
U, V, ONE = RNG.normal(size=200), RNG.normal(size=200), np.ones(200)
CELLS = np.eye(3)[RNG.integers(0, 3, 200)]
YEAR = 2000 + 10 * RNG.uniform(-1, 1, 200)


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ([ONE, U, V, 2 * U - V], [1, 1, 1, 0]),
        ([U, 2 * U, V], [1, 0, 1]),
        ([ONE, 1e8 + U, V], [1, 1, 1]),
        ([ONE, 1e12 + U], [1, 1]),
        ([ONE, 1e-12 * U, 1e12 * V, U], [1, 1, 1, 0]),
        ([ONE, 1e8 + U, 2 * (1e8 + U) + 7, V], [1, 1, 0, 1]),
        ([ONE, 0 * U, U], [1, 0, 1]),
        ([5 * ONE, ONE], [1, 0]),
        ([CELLS, U, 1e8 + V, ONE], [1, 1, 1, 1, 1, 0]),
        ([1e8 + U, CELLS, ONE], [1, 1, 1, 1, 0]),
        ([U, 2 * U, CELLS], [1, 0, 1, 1, 1]),
        ([ONE, CELLS], [1, 1, 1, 0]),
        ([ONE, YEAR, YEAR**2, YEAR**3], [1, 1, 1, 1]),
        ([ONE, U + 1e-9 * V, U], [1, 1, 0]),
        ([ONE, U + 1e-5 * V, U], [1, 1, 1]),
        ([np.zeros((200, 0))], []),
    ],
)
def test_independent_columns(columns, kept):
    assert independent_columns(np.column_stack(columns)).tolist() == [bool(k) for k in kept]


def test_more_columns_than_rows():
    kept = independent_columns(np.random.default_rng(2).normal(size=(3, 5)))
    assert kept.tolist() == [True, True, True, False, False]


@settings(deadline=None)
@given(
    coefficients=st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), max_size=6),
    shifts=st.lists(st.sampled_from([0.0, 1e6, -3e3]), min_size=6, max_size=6),
    scales=st.lists(st.sampled_from([1.0, 1e-6, 1e6]), min_size=6, max_size=6),
)
def test_kept_columns_are_those_of_exact_arithmetic(coefficients, shifts, scales):
    base = np.column_stack([ONE, U, V, U * V])
    columns = np.array([[1, 0, 0, 0], *coefficients], dtype=float)
    exact = [
        np.linalg.matrix_rank(columns[: j + 1]) > np.linalg.matrix_rank(columns[:j])
        for j in range(len(columns))
    ]
    matrix = base @ columns.T
    for j in range(1, len(columns)):
        matrix[:, j] = (matrix[:, j] + shifts[j - 1]) * scales[j - 1]
    assert independent_columns(matrix).tolist() == exact


def test_aliased_columns_are_logged(caplog):
    data = make_frame().assign(x2=lambda d: 2 * d["x"])
    with caplog.at_level(logging.WARNING, logger="bayeslmm"):
        design = build_design("y ~ x + x2 + constant + (1 | g)", data)
    assert design.coefs == ("Intercept", "x")
    assert design.aliased == ("x2", "constant")
    assert caplog.messages == [
        "Fixed effects dropped as linear combinations of earlier ones: x2, constant."
    ]
    np.testing.assert_array_equal(design.X, design.X_full[:, :2])


def test_a_message_names_some_of_many_dropped_columns(caplog):
    data = {"y": np.random.default_rng(1).normal(size=60), "g": np.arange(60) % 6}
    cells = [f"c{i}" for i in range(12)]
    data |= {name: (np.arange(60) + i) % 5 for i, name in enumerate(cells)}
    formula = f"y ~ {' + '.join(f'C({name})' for name in cells)} + (1 | g)"
    design = build_design(formula, data)
    assert len(design.aliased) == 44
    assert "more)" not in caplog.text and all(name in caplog.text for name in design.aliased)
    caplog.clear()
    more = [f"d{i}" for i in range(12)]
    data |= {name: (np.arange(60) + i) % 5 for i, name in enumerate(more)}
    design = build_design(formula.replace("y ~", f"y ~ {' + '.join(more)} +"), data)
    assert f"... ({len(design.aliased) - 50} more)." in caplog.text


# --- parts -----------------------------------------------------------------------------


def test_parts_of_a_design():
    frame = make_frame()
    design = build_design("log(y + 9) ~ x + f + offset(2 * z) + offset(w) + (x | g)", frame)
    assert design.response == "log(y + 9)"
    np.testing.assert_allclose(design.y, np.log(frame["y"] + 9))
    np.testing.assert_allclose(design.offset, 2 * frame["z"] + frame["w"])
    assert design.weights is None
    assert (design.n, design.p) == (48, 4)
    assert design.coefs == ("Intercept", "x", "f[T.b]", "f[T.c]")
    assert design.X_full is design.X
    factor = design.random[0]
    assert (factor.name, factor.key, factor.factors) == ("g", "g", ("g",))
    assert factor.levels.tolist() == [str(i) for i in range(8)]
    np.testing.assert_array_equal(factor.codes, frame["g"])
    np.testing.assert_array_equal(factor.Z, np.column_stack([np.ones(48), frame["x"]]))
    assert (factor.coefs, factor.blocks) == (("Intercept", "x"), ((0, 1),))
    assert (factor.n_levels, factor.n_coefs) == (8, 2)


def test_a_formula_may_be_parsed_already():
    formula = parse("y ~ x + (1 | g)")
    assert build_design(formula, make_frame()).formula is formula


@pytest.mark.parametrize(
    ("formula", "coefs", "blocks"),
    [
        ("y ~ (x || g)", ("Intercept", "x"), ((0,), (1,))),
        ("y ~ (0 + x | g)", ("x",), ((0,),)),
        ("y ~ (f || g)", ("Intercept", "f[T.b]", "f[T.c]"), ((0,), (1,), (2,))),
        ("y ~ (0 + f | g)", ("f[a]", "f[b]", "f[c]"), ((0, 1, 2),)),
        ("y ~ (1 | g) + (0 + x + z | g)", ("Intercept", "x", "z"), ((0,), (1, 2))),
        ("y ~ (1 + x | g) + (0 + z || g)", ("Intercept", "x", "z"), ((0, 1), (2,))),
        ("y ~ (x | g:k) + (0 + z | k:g)", ("Intercept", "x", "z"), ((0, 1), (2,))),
    ],
)
def test_terms_on_one_grouping_factor_are_amalgamated(formula, coefs, blocks):
    data = pd.concat([make_frame()] * 3)
    (factor,) = build_design(formula, data).random
    assert (factor.coefs, factor.blocks) == (coefs, blocks)
    assert factor.Z.shape == (len(data), len(coefs))


def test_grouping_factors_in_the_order_of_the_formula():
    data = pd.concat([make_frame()] * 3).assign(**{"sigma": lambda d: d["k"]})
    design = build_design("y ~ (1 | k:g) + (1 | sigma) + (x | g) + (0 + z | g:k)", data)
    assert [factor.name for factor in design.random] == ["k:g", "sigma", "g"]
    assert [factor.key for factor in design.random] == ["k_g", "sigma", "g"]


def test_incomplete_rows_are_dropped(caplog):
    data = make_frame().astype({"g": object, "f": object})
    data.loc["row3", "y"] = np.nan
    data.loc["row5", "g"] = None
    data.loc["row8", "f"] = pd.NA
    data.loc["row9", "one"] = None
    data.loc["row40":, "x"] = np.nan
    with caplog.at_level(logging.INFO, logger="bayeslmm"):
        design = build_design("y ~ center(x) + f + (1 | g)", data)
    assert caplog.messages == ["11 of 48 rows are incomplete and dropped."]
    assert design.dropped.tolist() == [3, 5, 8, *range(40, 48)]
    assert design.index.tolist() == [f"row{i}" for i in range(40) if i not in (3, 5, 8)]
    assert design.random[0].levels.tolist() == [str(i) for i in range(7)]
    np.testing.assert_allclose(design.X[:, design.coefs.index("center(x)")].mean(), 0, atol=1e-12)


@pytest.mark.parametrize("as_column", [True, False])
def test_weights(as_column):
    data = make_frame()
    data.loc["row7", "w"] = np.nan
    weights = "w" if as_column else data["w"].to_numpy()
    design = build_design("y ~ x + (1 | g)", data, weights=weights)
    np.testing.assert_array_equal(design.weights, data["w"].drop("row7"))
    assert design.dropped.tolist() == [7]


def test_tables():
    design = build_design("y ~ x + (x | g) + (1 | k)", make_frame())
    table = design.X_frame()
    assert table.columns.tolist() == ["Intercept", "x"]
    np.testing.assert_array_equal(table["x"], make_frame()["x"])
    assert table.index.tolist() == design.y_series().index.tolist() == make_frame().index.tolist()
    assert design.y_series().name == "y"
    labels, z = design.Z_labels(), design.Z_matrix()
    assert labels.names == ["group", "level", "term"]
    assert z.shape == (48, 19) == (48, len(labels))
    dense = pd.DataFrame(z.toarray(), index=design.index, columns=labels)
    data = make_frame()
    for group, level, term in labels:
        inside = data[group].astype(str) == level
        expected = np.where(inside, data["x"] if term == "x" else 1.0, 0.0)
        np.testing.assert_array_equal(dense[group, level, term], expected)
    table.loc[:, "x"] = 0.0  # a copy
    np.testing.assert_array_equal(design.X[:, 1], data["x"])


def test_overparameterised():
    frame = pd.DataFrame({"y": [1.0, 2, 4, 3, 5], "a": list("12121"), "g": list("uuvvv")})
    design = build_design("y ~ a + (1 | g)", frame)
    table = design.overparameterised()
    assert table.columns.tolist() == ["Intercept", "a[1]", "a[2]"]
    assert table.to_numpy().tolist() == [[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 1], [1, 1, 0]]
    assert np.linalg.matrix_rank(table) == design.p == 2


@pytest.mark.parametrize(
    ("fixed", "columns"),
    [
        ("1", ["Intercept"]),
        ("0", []),
        ("0 + f", ["f[a]", "f[b]", "f[c]"]),
        (
            "x * flag",
            ["Intercept", "x", "flag[False]", "flag[True]", "x:flag[False]", "x:flag[True]"],
        ),
        ("flag:x + I(x**2)", ["Intercept", "I(x ** 2)", "flag[False]:x", "flag[True]:x"]),
        ("C(flag, contr.sum)", ["Intercept", *(f"C(flag, contr.sum)[{v}]" for v in (False, True))]),
        ("`the x`:flag", ["Intercept", "the x:flag[False]", "the x:flag[True]"]),
    ],
)
def test_overparameterised_columns(fixed, columns):
    data = make_frame().assign(**{"the x": 3.0})
    design = build_design(f"y ~ {fixed} + (1 | g)", data)
    table = design.overparameterised()
    assert table.columns.tolist() == columns
    both = np.column_stack([table.to_numpy(), design.X])
    assert np.linalg.matrix_rank(both) == design.p


def test_repr():
    data = make_frame().assign(x2=lambda d: d["x"])
    data.loc["row1", "y"] = np.nan
    design = build_design("y ~ x + x2 + (1 | g) + (0 + x || g) + (1 | k)", data)
    assert repr(design) == "\n".join(
        [
            "Design of y ~ x + x2 + (1 | g) + (0 + x || g) + (1 | k)",
            "  response y: 47 rows (1 incomplete rows dropped)",
            "  fixed effects: Intercept, x (aliased: x2)",
            "  g: 8 levels x (Intercept) + (x)",
            "  k: 3 levels x (Intercept)",
        ]
    )
    assert repr(design.random[0]) == "RandomFactor(g: 8 levels x Intercept, x)"


def test_arrays_cannot_be_written_to():
    data = make_frame()
    data.loc["row1", "x"] = np.nan
    design = build_design("y ~ x + (x | g) + (1 | g:k)", data, weights="w")
    arrays = [design.y, design.offset, design.weights, design.X, design.X_full, design.dropped]
    for factor in design.random:
        arrays += [factor.Z, factor.codes, factor.levels, factor.extended_codes, factor.new_levels]
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_user_data_are_neither_changed_nor_shared():
    data = make_frame()
    weights = data["w"].to_numpy().copy()
    design = build_design("y ~ x + (x | g)", data, weights=weights)
    pd.testing.assert_frame_equal(data, make_frame())
    weights[:] = -1
    data.loc[:, "x"] = 0
    np.testing.assert_array_equal(design.weights, make_frame()["w"])
    np.testing.assert_array_equal(design.data["x"], make_frame()["x"])


def test_designs_can_be_pickled():
    design = build_design("y ~ poly(x, 2) + h + (x | g)", make_frame())
    again = pickle.loads(pickle.dumps(design))
    np.testing.assert_array_equal(again.spec.rows(make_frame()).X, design.X)


@pytest.mark.parametrize(
    "convert", [pl.from_pandas, pa.Table.from_pandas, dict], ids=["polars", "arrow", "dict"]
)
def test_other_frames_give_the_same_design(convert):
    data = make_frame().drop(columns="h")
    data.loc["row4", "x"] = np.nan
    data.loc["row6", "k"] = None
    data["g"] = data["g"].astype(float)
    data.loc["row9", "g"] = np.nan
    formula = "y ~ x * f + flag + (x | g) + (1 | g:k)"
    first, second = (build_design(formula, d, weights="w") for d in (data, convert(data)))
    assert first.coefs == second.coefs
    np.testing.assert_array_equal(first.dropped, second.dropped)
    for name in ("X", "y", "weights"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for one, two in zip(first.random, second.random, strict=True):
        np.testing.assert_array_equal(one.codes, two.codes)
        np.testing.assert_array_equal(one.levels, two.levels)
        np.testing.assert_array_equal(one.Z, two.Z)


# --- errors ----------------------------------------------------------------------------

COLUMNS = "The columns are " + ", ".join(f"`{name}`" for name in sorted(make_frame().columns)) + "."


def test_unknown_variables():
    assert error(FormulaError, "y ~ xx + (1 | g)") == (
        f"`xx` is not a column of the data. Did you mean `x`? {COLUMNS}\n"
        "  y ~ xx + (1 | g)\n"
        "      ^^"
    )
    assert error(FormulaError, "y ~ x + (1 | subj) + log(qq) + pp") == (
        "The grouping factor `subj` is not a column of the data. Neither are `qq`, `pp`. "
        f"{COLUMNS}\n"
        "  y ~ x + (1 | subj) + log(qq) + pp\n"
        "               ^^^^"
    )
    assert error(FormulaError, "Y ~ offset(o) + (1 | g)").startswith(
        f"`Y` is not a column of the data. Did you mean `y`? Neither is `o`. {COLUMNS}"
    )


def test_continuous_grouping_factor():
    assert error(FormulaError, "y ~ x + (1 | g:x)") == (
        "The grouping factor `x` holds numbers that are not whole, so it cannot name groups. A "
        "covariate goes on the left of the bar; to group by `x` all the same, make it categorical "
        "or text.\n"
        "  y ~ x + (1 | g:x)\n"
        "                 ^"
    )
    build_design("y ~ x + (1 | g)", make_frame().astype({"g": float}))
    build_design("y ~ x + (1 | flag)", make_frame())


def test_coefficient_given_twice():
    data = make_frame().assign(**{"f[b]": 1.5})
    assert error(FormulaError, "y ~ (0 + f | k) + (0 + `f[b]` | k)", data) == (
        "An earlier term on the grouping factor `k` already has `f[b]`; write the terms so that "
        "each coefficient occurs once.\n"
        "  y ~ (0 + f | k) + (0 + `f[b]` | k)\n"
        "                    ^^^^^^^^^^^^^^^^"
    )


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (
            "constant ~ x + (1 | g)",
            "The response `constant` has the same value, 2, in all 48 complete rows.",
        ),
        ("y ~ offset(y) + (1 | g)", "The response `y` minus the offset has one value in all rows."),
        (
            "flag ~ x + (1 | g)",
            "`flag` must be one numeric column, but it is categorical or boolean; convert it to "
            "numbers first.",
        ),
        (
            "f ~ x + (1 | g)",
            "`f` must be one numeric column, but it is categorical or boolean; convert it to "
            "numbers first.",
        ),
        (
            "y ~ one + (1 | g)",
            "The factor `one` has one level, 'u', in the 48 complete rows, so that it has no "
            "effect; take it out of the fixed effects.",
        ),
        (
            "y ~ x + (1 | one)",
            "The grouping factor `one` has one level, 'u', in the 48 complete rows; a variance "
            "between levels needs at least two. Take (1 | one) out of the formula.",
        ),
        (
            "y ~ x + (1 | id)",
            "The grouping factor `id` has as many levels as there are complete rows (48), so the "
            "effects of (1 | id) cannot be told from the residuals. Group by a variable with fewer "
            "levels, or say what is known of the residuals: "
            'residual="se(column)" takes known standard errors.',
        ),
        (
            "y ~ x + (f * x | g)",
            "(f * x | g) has 8 levels of `g` times 6 coefficients, so 48 random effects, but there "
            "are only 48 complete rows: they cannot be told from the residuals. Take coefficients "
            "out of the term.",
        ),
    ],
)
def test_data_that_cannot_be_used(formula, expected):
    assert error(DataError, formula) == expected


def test_independent_coefficients_are_counted_apart():
    assert build_design("y ~ x + (f * x || g)", make_frame()).random[0].n_coefs == 6


def test_missing_and_infinite_values():
    data = make_frame()
    data["x"] = np.nan
    assert error(DataError, "y ~ x + (1 | g)", data) == (
        "All 48 values of `x` are missing; take the variable out of the formula or fill it in."
    )
    data = make_frame()
    data.loc[["row2", "row4"], "x"] = -np.inf
    assert error(DataError, "y ~ x + (1 | g)", data) == (
        "`x` is infinite in 2 of 48 rows, first at position 2 (index 'row2'); mark these values as "
        "missing or take the rows out."
    )
    assert build_design("y ~ z + (1 | g)", data).n == 48


def test_as_many_fixed_effects_as_rows():
    data = make_frame().iloc[[0, 1, 6, 7]]
    assert error(DataError, "y ~ x + z + w + (1 | g)", data) == (
        "There are 4 fixed effects but only 4 complete rows; at least 5 rows are needed."
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("ww", f"The weights `ww` are not a column of the data. Did you mean `w`? {COLUMNS}"),
        ("f", "The weights `f` must be numbers, got str values."),
        ("flag", "The weights `flag` must be numbers, got bool values."),
        (
            "g",
            "The weights `g` must be positive and finite, but 6 of 48 are not (first 0 at position "
            "0). A row that should not count must be taken out of the data.",
        ),
        (
            [1.0] * 47 + [np.inf],
            "The weights must be positive and finite, but 1 of 48 are not (first inf at position "
            "47). A row that should not count must be taken out of the data.",
        ),
        ([1, 2], "The weights must be one value per row of the data, 48 values, got shape (2,)."),
        (2.0, "The weights must be one value per row of the data, 48 values, got shape ()."),
        ([np.nan] * 48, "The weights are all missing."),
        (
            make_frame()["w"][::-1],
            "The weights are a pandas Series whose index differs from that of the data; add them "
            "to the data and give the name of the column.",
        ),
    ],
    ids=str,
)
def test_weights_that_cannot_be_used(weights, expected):
    assert error(DataError, "y ~ z + (1 | g)", weights=weights) == expected


def test_redundant_columns_of_z_are_kept_and_logged(caplog):
    data = make_frame().assign(zero=0.0)
    with caplog.at_level(logging.WARNING, logger="bayeslmm"):
        design = build_design("y ~ x + (constant | g) + (0 + zero | k)", data)
    assert design.random[0].coefs == ("Intercept", "constant")
    assert [message.split(" are ")[0] for message in caplog.messages] == [
        "Grouping factor g: the columns of constant",
        "Grouping factor k: the columns of zero",
    ]


# --- new data --------------------------------------------------------------------------


def test_encode_gives_the_same_design_for_the_same_data():
    data = make_frame()
    formula = "scale(y) ~ poly(x, 2) * f + bs(z, df=4) + h + offset(center(w)) + (scale(x) | g/k)"
    design = build_design(formula, pd.concat([data] * 4), weights="w")
    new = design.spec.rows(data.iloc[5:9])
    np.testing.assert_allclose(new.X, design.X[5:9], rtol=1e-10)
    np.testing.assert_allclose(new.y, design.y[5:9], rtol=1e-10)
    np.testing.assert_allclose(new.offset, design.offset[5:9], rtol=1e-10)
    np.testing.assert_array_equal(new.weights, design.weights[5:9])
    assert new.coefs == design.coefs
    assert new.index.tolist() == ["row5", "row6", "row7", "row8"]
    assert len(new.dropped) == 0
    for old, factor in zip(design.random, new.random, strict=True):
        np.testing.assert_array_equal(factor.codes, old.codes[5:9])
        np.testing.assert_array_equal(factor.extended_codes, old.codes[5:9])
        np.testing.assert_allclose(factor.Z, old.Z[5:9], rtol=1e-10)
        assert factor.levels is old.levels
        assert len(factor.new_levels) == 0


def test_new_levels():
    design = build_design("y ~ x + (x | g) + (1 | g:k)", make_frame())
    new = make_frame()[["x", "g", "k"]].iloc[[0, 8, 20, 30]].assign(g=[0, 99, 7, 99])
    encoded = design.spec.rows(new)
    first, second = encoded.random
    assert first.codes.tolist() == [0, -1, 7, -1]
    assert first.extended_codes.tolist() == [0, 8, 7, 8]
    assert first.new_levels.tolist() == ["99"]
    known = dict(zip(second.levels, range(second.n_levels), strict=True))
    labels = [f"{g}:{k}" for g, k in zip(new["g"], new["k"], strict=True)]
    assert second.codes.tolist() == [known.get(label, -1) for label in labels]
    shared = pd.Series(labels).map(lambda label: label not in known)
    assert set(second.new_levels) == {x for x, s in zip(labels, shared, strict=True) if s}
    z = encoded.Z_matrix().toarray()
    assert z.shape == (4, design.Z_matrix().shape[1])
    assert not z[[1, 3]].any()
    assert " g: 8 levels and 1 new x (Intercept, x)" in repr(encoded)


def test_what_new_data_need():
    design = build_design("y ~ x + (z | g)", make_frame(), weights="w")
    new = make_frame()[["x", "z"]]
    covariates = design.spec.rows(new, random="covariates")
    assert np.isnan(covariates.y).all()
    assert covariates.weights is None
    assert set(covariates.random[0].codes) == {-1}
    assert set(covariates.random[0].extended_codes) == {8}
    np.testing.assert_array_equal(covariates.random[0].Z[:, 1], new["z"])
    fixed = design.spec.rows(new[["x"]], random="none", weights=np.full(48, 3.0))
    assert fixed.random == ()
    assert fixed.weights.tolist() == [3.0] * 48
    assert fixed.Z_matrix().shape == (48, 0)
    with pytest.raises(ValueError, match="random must be one of"):
        design.spec.rows(new, random="some")


def test_response_of_new_data_may_be_incomplete():
    data = make_frame()
    design = build_design("exp(y) ~ x + (1 | g)", data)
    data.loc["row1", "y"] = np.nan
    y = design.spec.rows(data).y
    assert np.flatnonzero(np.isnan(y)).tolist() == [1]
    np.testing.assert_array_equal(np.delete(y, 1), np.delete(design.y, 1))
    assert np.isnan(design.spec.rows(data.assign(y=None)).y).all()


def test_aliased_columns_stay_dropped_in_new_data():
    data = make_frame().assign(x2=lambda d: 2 * d["x"])
    design = build_design("y ~ x + x2 + z + (1 | g)", data)
    new = design.spec.rows(data.assign(x2=5.0))
    assert new.coefs == ("Intercept", "x", "z")
    np.testing.assert_array_equal(new.X, design.X)
    assert new.X_full[0, 2] == 5.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda d: d.drop(columns=["x", "g"]).rename(columns={"f": "F"}),
            "The new data have no column `f`, `g`, `x`. Their column `F` is similar: rename it. "
            "Needed are `f`, `g`, "
            "`h`, `x`; the columns are `F`, `flag`, `h`.",
        ),
        (
            lambda d: d.assign(x=[np.nan, 1.0] + [np.nan] * 2, g=[1, None, 2, 3]),
            "The new data have missing values in variables that are needed: `g` 1 (first at "
            "position 1), `x` 3 (first at position 0). Fill them in or drop the rows.",
        ),
        (
            lambda d: d.assign(x=np.inf),
            "`x` is infinite in 4 of 4 rows, first at position 0 (index 'row0'); mark these values "
            "as missing or take the rows out.",
        ),
        (
            lambda d: d.assign(f=["a", "q", "r", "q"]),
            "The factor `f` has levels that the model has not seen: `q`, `r`. The known ones are "
            "`a`, `b`, `c`. A coefficient of a new level cannot be known; a grouping factor of a "
            "random-effects term can have new levels.",
        ),
        (
            lambda d: d.assign(h="none"),
            "The factor `h` has levels that the model has not seen: `none`. The known ones are "
            "`lo`, `mid`, `hi`. A coefficient of a new level cannot be known; a grouping factor of "
            "a random-effects term can have new levels.",
        ),
        (
            lambda d: d.assign(g="1"),
            "`g` held numbers when the model was built and holds text here, so that no level would "
            "be recognised; convert the column.",
        ),
        (
            lambda d: d.assign(x="1"),
            "`x` was numerical when the model was built and is categorical here.",
        ),
        (lambda d: d.iloc[:0], "The data have no rows."),
    ],
)
def test_new_data_that_cannot_be_used(change, expected):
    design = build_design("y ~ x * f + (h | g)", pd.concat([make_frame()] * 2))
    new = change(make_frame()[["x", "f", "g", "h", "flag"]].iloc[:4])
    with pytest.raises(DataError) as caught:
        design.spec.rows(new)
    assert str(caught.value) == expected


# --- any design ------------------------------------------------------------------------

labels = st.text(alphabet="ab:'| é07", max_size=2)
frames = st.integers(8, 30).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            "a": st.lists(labels, min_size=n, max_size=n),
            "b": st.lists(st.integers(0, 3), min_size=n, max_size=n),
            "f": st.lists(st.sampled_from("pqr"), min_size=n, max_size=n),
            "x": st.lists(st.floats(-1e3, 1e3), min_size=n, max_size=n),
            "y": st.lists(st.floats(-10, 10), min_size=n, max_size=n),
            "gaps": st.lists(st.booleans(), min_size=n, max_size=n),
        }
    )
)
formulas = st.sampled_from(
    [
        "y ~ x + (1 | b)",
        "y ~ x * f + (1 | a) + (1 | a:b)",
        "y ~ 0 + f + x + (x || b)",
        "y ~ f + (0 + x | b) + (1 | b)",
        "y ~ 1 + (f | b)",
    ]
)


@settings(max_examples=20, deadline=None)
@given(columns=frames, formula=formulas)
def test_invariants(columns, formula):
    assert_invariants(columns, formula)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(columns=frames, formula=formulas)
def test_invariants_of_more_frames(columns, formula):
    assert_invariants(columns, formula)


def assert_invariants(columns, formula):
    frame = pd.DataFrame(columns)
    frame.loc[frame.pop("gaps").to_numpy() & (frame.index > 3), "x"] = np.nan
    try:
        design = build_design(formula, frame)
    except DataError:
        return
    used = frame.drop(frame.index[design.dropped])
    assert design.n == len(used) == len(design.X)
    assert np.linalg.matrix_rank(design.X / np.linalg.norm(design.X, axis=0)) == design.p
    assert len(design.coefs) + len(design.aliased) == len(design.coefs_full)
    for factor in design.random:
        assert sorted(i for block in factor.blocks for i in block) == list(range(factor.n_coefs))
        assert set(factor.codes) == set(range(factor.n_levels))
        raw = list(used[list(factor.factors)].itertuples(index=False, name=None))
        assert len(set(zip(raw, factor.codes.tolist(), strict=True))) == len(set(raw))
        assert len(set(raw)) == factor.n_levels
    again = design.spec.rows(used)
    np.testing.assert_array_equal(again.X, design.X)
    np.testing.assert_array_equal(again.y, design.y)
    assert (again.Z_matrix() != design.Z_matrix()).nnz == 0
    assert design.Z_matrix().shape[1] == len(design.Z_labels().unique())


def test_numbers_as_text_are_no_factor():
    data = make_frame()
    data["number"] = [str(0.5 * i) for i in range(len(data))]
    with pytest.raises(DataError) as caught:
        build_design("y ~ number + (1 | g)", data)
    assert str(caught.value) == (
        f"`number` is text, and its {len(data)} distinct values all look like numbers. "
        "Convert it with pandas.to_numeric, or make it categorical if it is a factor."
    )
    codes = data.assign(number=[str(i % 3) for i in range(len(data))])
    assert build_design("y ~ number + (1 | g)", codes).p == 3


def test_one_row_is_not_enough():
    with pytest.raises(DataError, match="There is only 1 complete row"):
        build_design("y ~ x + (1 | g)", make_frame().head(1))


# --- types of columns ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "uint64", "UInt8", "int8[pyarrow]"])
def test_whole_numbers_do_not_wrap_around(dtype):
    data = make_frame()
    data["n"] = pd.Series(np.arange(48) % 12, index=data.index).astype(dtype)
    x = np.arange(48.0) % 12
    for term, values in {"I(n - 5)": x - 5, "I(n**20)": x**20}.items():
        design = build_design(f"y ~ {term} + (1 | g)", data)
        np.testing.assert_array_equal(design.X[:, 1], values)


def test_levels_that_are_whole_numbers_have_no_decimals():
    data = make_frame()
    for dtype in ("float16", "float64", "int8", "Int64"):
        data["n"] = pd.Series(np.arange(48) % 3, index=data.index).astype(dtype)
        assert build_design("y ~ C(n) + (1 | g)", data).coefs[1:] == ("C(n)[T.1]", "C(n)[T.2]")


@pytest.mark.parametrize("convert", [pl.DataFrame, pa.table, dict], ids=["polars", "arrow", "dict"])
def test_large_integers_with_gaps_keep_their_levels(convert):
    ids = [2**53 + i % 4 for i in range(24)]
    ids[7] = None
    data = convert({"y": [float(i % 7) for i in range(24)], "g": ids})
    design = build_design("y ~ 1 + (1 | g)", data)
    assert design.random[0].levels.tolist() == [str(2**53 + i) for i in range(4)]
    assert design.dropped.tolist() == [7]


REFUSED = ", which a model cannot use. A column may hold numbers, truth values, text, categories, "


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1], [2]], "`q` holds values of type list" + REFUSED),
        ([{}, {}], "`q` holds values of type dict" + REFUSED),
        ([1j, 2.0], "`q` holds complex numbers (complex128)" + REFUSED),
        ([1, True, "a"], "`q` holds both truth values and numbers, which count as equal"),
        (["\ud800", "b"], "`q` holds text that is not valid Unicode (surrogates not allowed)"),
        ([2**53, 2**53 + 1], "`q` holds whole numbers beyond 2^53, some of which are one and the"),
        ([2**70, 2**70 + 1], "`q` holds whole numbers beyond 2^53, some of which are one and the"),
        (pd.interval_range(0, 2), "`q` must be converted from intervals to numbers. To make it a"),
        (pd.date_range("2020", periods=2), "`q` must be converted from dates or times to numbers."),
        ([10**400, 1.5], "`q` is infinite in 24 of 48 rows"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else type(value).__name__,
)
def test_columns_that_no_model_can_use(values, message):
    objects = np.fromiter([values[i % len(values)] for i in range(48)], dtype=object, count=48)
    column = pd.Series(objects, dtype=object, index=make_frame().index)
    column = column.infer_objects() if not isinstance(values[0], str) else column
    assert error(DataError, "y ~ q + (1 | g)", make_frame().assign(q=column)).startswith(message)


def test_dates_are_no_weights():
    data = make_frame().assign(w=pd.date_range("2020", periods=48))
    assert "The weights `w` must be numbers, got datetime64" in error(
        DataError, "y ~ x + (1 | g)", data, weights="w"
    )


def test_columns_that_a_formula_would_misread():
    data = make_frame().rename(columns={"x": "1", "z": "True"})
    assert error(FormulaError, "y ~ `1` + (1 | g)", data).startswith(
        "`1` cannot be told from the intercept; rename the column, or write I(`1`)."
    )
    assert build_design("y ~ I(`1`) + (1 | g)", data).X[:, 1].tolist() == data["1"].tolist()
    doubled = build_design("y ~ I(`True` * 2) + (1 | g)", data).X[:, 1]
    assert doubled.tolist() == (2 * data["True"]).tolist()


def test_levels_of_mixed_kinds_have_one_order():
    values = [(1, "a"), (2,), (1, 2)]
    cells = np.fromiter([values[i % 3] for i in range(48)], dtype=object, count=48)
    data = make_frame().assign(t=pd.Series(cells, index=make_frame().index))
    design = build_design("y ~ t + (1 | g)", data)
    assert design.coefs[1:] == ("t[T.(1, 2)]", "t[T.(2,)]")
    np.testing.assert_array_equal(design.spec.rows(data).X, design.X)
