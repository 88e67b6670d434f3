"""Sums by GROUP BY in an engine give the model that batches of the same rows give."""

from __future__ import annotations

import decimal
import pickle
import re

import duckdb
import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd
import polars as pl
import pytest
from slow_cases import one_in
from test_beyond_memory import MODELS, assert_same_spec

import bayeslmm as blm
from bayeslmm.data.pushdown import Wanted, planned
from bayeslmm.exceptions import BayesLMMError, DataError, FormulaError
from bayeslmm.likelihood.factorise import factorise
from bayeslmm.likelihood.marginal import reml_criterion

SAME = 1e-10
"""Largest difference of REML criteria, relative: sums in another order differ by rounding."""

DRAWS = 1e-7
"""Of draws with one seed, relative: searches end within rounding of each other."""

BASIS = 1e-8
"""Of the basis, relative, which a column that is nearly lost spoils most."""

MEANS = 1e-10
"""Of moments, relative to the values of the columns."""


def of_duckdb(frame):
    return duckdb.connect().from_df(frame)


def of_polars(frame):
    return pl.from_pandas(frame).lazy()


ENGINES = {"DuckDB": of_duckdb, "Polars": of_polars}


@pytest.fixture
def engine(request):
    return ENGINES[request.param]


def engines_and(name, cases, nth=1):
    """Each case with each engine; of every `nth` case the default run takes one in turn."""
    orders = [[*ENGINES], [*reversed(ENGINES)]]
    pairs = [(own, case) for i, case in enumerate(cases) for own in orders[i % 2]]
    return pytest.mark.parametrize(("engine", name), one_in(2 * nth, pairs), indirect=["engine"])


each_engine = pytest.mark.parametrize("engine", ENGINES, indirect=True)


@pytest.fixture
def log(caplog):
    caplog.set_level("INFO", "bayeslmm")
    return caplog


def both(formula, data, **options):
    """The model of batches of a lazy frame and that of the frame itself."""
    return blm.LMM(formula, lambda: data, **options), blm.LMM(formula, data, **options)


def why(log):
    """Why rows were read in batches; None where the engine summed."""
    own = [r.getMessage() for r in log.records if r.name == "bayeslmm.likelihood.pushed"]
    lines = [text for text in own if "GROUP BY" in text or "in batches" in text]
    assert len(lines) == 1
    found = re.fullmatch(r"The .*: rows are read in batches, as (.*)\.", lines[0])
    assert found or re.fullmatch(
        r"The .*: sums of \d+ rows by GROUP BY in the engine, in \d+ queries\.", lines[0]
    )
    return found and found[1]


def assert_same_model(batches, pushed, tolerance=SAME):
    a, b = batches.design, pushed.design
    assert_same_spec(a, b)
    for f in a.spec.random:
        np.testing.assert_array_equal(a.summary.counts[f.key], b.summary.counts[f.key])
    assert_same_summary(a.summary, b.summary)
    fixed = a.products.basis.fixed
    room = BASIS * np.abs(fixed).max(initial=0.0)
    np.testing.assert_allclose(b.products.basis.fixed, fixed, rtol=BASIS, atol=room)
    expected = batches.model.reml_or_none()
    if expected is None:
        assert pushed.model.reml_or_none() is None
        return
    found = pushed.model.reml.criterion
    if not expected.optimum.converged:  # a saddle may hold one search and not the other
        found = reml_criterion(factorise(pushed.model.system, expected.factors))
    assert found == pytest.approx(expected.criterion, rel=tolerance, abs=tolerance)


def assert_same_summary(a, b):
    assert list(a.sides) == list(b.sides)
    for side in a.sides:
        for one, two in ((a.sides[side], b.sides[side]), (a.weighted[side], b.weighted[side])):
            size = one.largest
            np.testing.assert_allclose(two.low, one.low, rtol=1e-14)
            np.testing.assert_allclose(two.high, one.high, rtol=1e-14)
            np.testing.assert_array_equal(two.filled, one.filled)
            np.testing.assert_array_less(np.abs(two.means - one.means), MEANS * size + 1e-300)
            np.testing.assert_array_less(
                np.abs(two.variances - one.variances), MEANS * size**2 + 1e-300
            )
    assert a.ranges == b.ranges
    assert a.means.keys() == b.means.keys()
    for name, mean in a.means.items():
        assert b.means[name] == pytest.approx(mean, rel=1e-12, abs=1e-12)
    facts = [(s.log_weights, s.mean_inverse_weight, s.mean_offset) for s in (a, b)]
    assert facts[1] == pytest.approx(facts[0], rel=1e-11, abs=1e-11)
    assert a.sample.columns.tolist() == b.sample.columns.tolist()
    for name in a.sample:
        assert a.sample[name].dtype == b.sample[name].dtype


# --- the same model --------------------------------------------------------------------


def with_responses(frame):
    """Rows of levels with a complete row: engines know no others, pandas what is declared."""
    for name in frame.select_dtypes("category"):
        frame = frame[frame[name].isin(frame.dropna()[name])]
        frame = frame.assign(**{name: frame[name].cat.remove_unused_categories()})
    return frame


@engines_and("name", MODELS, nth=3)
def test_all_datasets(name, engine, log):
    batches, pushed = both(MODELS[name], engine(with_responses(blm.load_dataset(name))))
    assert why(log) is None
    assert_same_model(batches, pushed)


def random_frame(rng):
    n = int(rng.choice([40, 120, 400]))
    x = rng.normal(rng.choice([0.0, 5.0, 100.0]), rng.choice([1.0, 3.0]), n)
    g = rng.integers(0, max(4, n // 15), n)
    f = rng.choice(["a", "b'b", 'c"c', "d"], n, p=[0.5, 0.3, 0.15, 0.05])
    y = 0.5 * x + rng.normal(size=n)[g] + 2.0 * (f == "a") + rng.normal(size=n)
    frame = pd.DataFrame({"x": x, "z": rng.integers(0, 9, n), "f": f, "g": 7 * g - 3, "y": y})
    frame["h"] = rng.random(n) > 0.4
    frame["e"] = pd.Categorical(rng.choice(["lo", "mid", "hi"], n), ["lo", "mid", "hi"])
    frame["k"] = rng.choice([f"k{i}" for i in range(9)], n)
    frame["w"], frame["o"] = rng.uniform(0.5, 3.0, n), rng.normal(size=n)
    return with_gaps(frame, rng)


def with_gaps(frame, rng):
    """Some values are missing, as NaN or null, and some columns have odd types."""
    for name in ("x", "z", "g", "w", "o", "y", "k"):
        if rng.random() < 0.4:
            rows = rng.choice(frame.index, 3, replace=False)
            if name in ("z", "g"):
                frame[name] = frame[name].astype(rng.choice(["float64", "Int64"]))
            frame.loc[rows, name] = None if name == "k" else np.nan
    if not frame["z"].isna().any():
        frame["z"] = frame["z"].astype(rng.choice(["int8", "uint16", "float32"]))
    return frame


NUMBERS = ["x", "z", "I(x**2)", "x:z", "sqrt(z)", "exp(x/100)", "I(x - z*2)", "log(z+1)"]
LEFT = ["1", "x", "0 + f", "1 + h", "0 + x", "1 + x + z", "x:h"]
MORE = ["(1 | k)", "(1 | g:k)", "(x || k)", "(1 | e/k)", "(1 | h)", "cs(0 + e | k)"]


def random_formula(rng):
    terms = [*rng.choice(NUMBERS, rng.integers(0, 3), replace=False)]
    terms += [*rng.choice(["f", "h", "e"], rng.integers(0, 3), replace=False)]
    chosen = rng.random(5)
    terms += [f"{rng.choice(['x', 'z'])}:{rng.choice(['f', 'h', 'e'])}"] if chosen[0] < 0.4 else []
    terms += ["f*h"] if chosen[1] < 0.2 else []
    terms = ["0", *terms] if chosen[2] < 0.15 else terms
    terms += ["offset(o)"] if chosen[3] < 0.3 else []
    random = [f"({rng.choice(LEFT)} | g)", *([rng.choice(MORE)] if chosen[4] < 0.5 else [])]
    response = rng.choice(["y", "y", "I(y*2)", "I(y - x)"])
    return f"{response} ~ {' + '.join([*terms, *random])}"


@pytest.mark.parametrize("seed", one_in(60, range(240)))
def test_random_models(seed, log):
    rng = np.random.default_rng(seed)
    frame, formula = random_frame(rng), random_formula(rng)
    weights = "w" if rng.random() < 0.35 else None
    lazy = (of_duckdb, of_polars)[seed // 60 % 2 if seed % 60 == 0 else seed % 2](frame)
    batches, pushed = both(formula, lazy, weights=weights)
    assert why(log) in (None, DEPENDENT)
    assert_same_model(batches, pushed)


DEPENDENT = "columns nearly depend on each other, so that sums lack digits"
LITTLE = "the fixed effects leave little of the response, so that sums lack digits"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Orthodont", "Penicillin"])
@each_engine
def test_draws_with_one_seed_are_the_same(name, engine):
    models = both(MODELS[name], engine(blm.load_dataset(name)))
    first, second = (model.fit(draws=100, chains=2, random_seed=3) for model in models)
    for variable, values in first.data["posterior"].items():
        np.testing.assert_allclose(
            second.data["posterior"][variable].values, values.values, rtol=DRAWS, atol=DRAWS
        )


@pytest.mark.parametrize("engine", one_in(2, ENGINES), indirect=True)
def test_summaries_and_the_rows_are_there(engine, tmp_path):
    batches, pushed = both(MODELS["Orthodont"], engine(blm.load_dataset("Orthodont")))
    for answer in (
        lambda model: model.reml().means("Sex", at={"age": 9}).table(),
        lambda model: model.reml().ranef()["Subject"],
        lambda model: model.reml().r2(),
        lambda model: model.reml().augment().reset_index(drop=True),
    ):
        pd.testing.assert_frame_equal(answer(pushed), answer(batches), rtol=1e-6, atol=1e-8)
    assert pickle.loads(pickle.dumps(pushed.design)).n == 108
    post = pushed.fit(draws=20, chains=1, random_seed=1)
    post.save(tmp_path / "post.nc")
    assert repr(blm.load(tmp_path / "post.nc")) == repr(post)


def test_sums_of_engines_and_of_batches_add_up():
    frame = blm.load_dataset("Orthodont").astype({"Sex": str, "Subject": str})
    parts = [frame[frame.index % 2 == rest] for rest in range(2)]
    first = blm.CrossProducts.of(MODELS["Orthodont"], of_duckdb(parts[0]), name="first")
    second = blm.CrossProducts.of(MODELS["Orthodont"], [parts[1]], name="second")
    both_parts = blm.LMM.from_products(blm.CrossProducts.total([first, second]))
    expected = blm.LMM(MODELS["Orthodont"], frame).reml().criterion
    assert both_parts.reml().criterion == pytest.approx(expected, rel=SAME)
    again = blm.CrossProducts.of(MODELS["Orthodont"], [parts[0]], name="again")
    with pytest.raises(DataError, match="count twice"):
        blm.CrossProducts.total([first, again])


def test_a_lazy_frame_of_narwhals_and_a_query(log):
    frame = blm.load_dataset("sleepstudy")
    duck = duckdb.connect()
    duck.register("rows", frame)
    query = duck.sql("SELECT * FROM rows WHERE Days > 1")
    memory = blm.LMM(MODELS["sleepstudy"], frame[frame["Days"] > 1]).reml().criterion
    for data in (query, nw.from_native(query), nw.from_native(of_polars(frame[frame.Days > 1]))):
        log.clear()
        model = blm.LMM(MODELS["sleepstudy"], data)
        assert why(log) is None
        assert model.reml().criterion == pytest.approx(memory, rel=SAME)


class TableOfIbis:
    """What is asked of a table of Ibis, which these tests do not need to be installed."""

    __module__ = "ibis.expr.types.relations"

    def __init__(self, relation, con, backend):
        self.relation, self.con, self.name = relation, con, backend
        self.columns = tuple(relation.columns)

    def get_backend(self):
        return self

    def compile(self):
        return self.relation.sql_query()

    def select(self, *names):
        return TableOfIbis(self.relation.select(*names), self.con, self.name)

    def to_pyarrow_batches(self, chunk_size):
        return iter(self.relation.to_arrow_table().to_batches(chunk_size))


@pytest.mark.parametrize(
    ("backend", "words"),
    [("duckdb", None), ("mysql", "GROUP BY of mysql may take different texts for equal")],
)
def test_tables_of_ibis(backend, words, log):
    frame = blm.load_dataset("Orthodont").astype({"Sex": str, "Subject": str})
    duck = duckdb.connect()
    duck.register("rows", frame)
    table = TableOfIbis(duck.sql("SELECT * FROM rows"), duck, backend)
    model = blm.LMM(MODELS["Orthodont"], table)
    assert why(log) == words
    expected = blm.LMM(MODELS["Orthodont"], frame).reml().criterion
    assert model.reml().criterion == pytest.approx(expected, rel=SAME)


# --- hostile data ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "g": np.repeat(np.arange(6), 10)})
    frame["f"] = np.tile(["a", "b"], 30)
    return frame.assign(y=frame["x"] + rng.normal(size=6)[frame["g"]] + rng.normal(size=60))


FORMULA = "y ~ x + f + (1 | g)"
NASTY = {"x": 'a "b" c', "f": "select", "g": "order'by", "y": "table;--"}

PUSHED = {
    "names": (
        lambda d: d.rename(columns=NASTY),
        '`table;--` ~ `a "b" c` * `select` + (`a "b" c` | `order\'by`)',
    ),
    "names like those of queries": (
        lambda d: d.rename(columns={"x": "c0", "f": "complete", "g": "v1", "y": "k0"}),
        "k0 ~ c0 + complete + (c0 | v1)",
    ),
    "Q()": (lambda d: d.rename(columns={"x": "a b"}), 'y ~ I(Q("a b") * 2) + (1 | g)'),
    "levels": (
        lambda d: d.assign(
            f=np.tile(["it's", 'say "x"', "a;b", "-- c", "%_"], 12),
            g=np.repeat(["a:b", "c\n", "", " ", "é", "\\"], 10),
        ),
        FORMULA,
    ),
    "levels that differ by case and spaces": (
        lambda d: d.assign(g=np.repeat(["a", "A", "a ", "b", "B", "ä"], 10)),
        FORMULA,
    ),
    "numbers as text": (lambda d: d.assign(g=d["g"].astype(str)), FORMULA),
    "NaN in a grouping column": (lambda d: d.assign(g=d["g"].where(d.index != 7)), FORMULA),
    "negative zero": (
        lambda d: d.assign(g=np.where(d["g"] == 0, -0.0, d["g"].astype(float))),
        FORMULA,
    ),
    "large levels": (lambda d: d.assign(g=2**60 + d["g"]), FORMULA),
    "truth values": (lambda d: d.assign(f=d["x"] > 0), FORMULA),
    "unused categories": (
        lambda d: d.assign(f=pd.Categorical(d["f"], ["z", "b", "a"])),
        "y ~ x * f + (1 | f:g)",
    ),
    "products beyond 64 bits": (
        lambda d: d.assign(x=(d["x"] * 1e12).astype("int64")),
        "y ~ x + I(x**2) + x:f + (1 | g)",
    ),
    "products beyond 32 bits": (
        lambda d: d.assign(x=(d["x"] * 1e4).astype("int32")),
        "y ~ x + I(x**4) + (1 | g)",
    ),
    "less than nothing without a sign": (
        lambda d: d.assign(x=(d["x"] * 9 + 99).astype("uint8")),
        "y ~ I(x - 120) + f + (1 | g)",
    ),
    "whole division": (lambda d: d, "y ~ I(x / 3) + I(1 / (g + 1)) + f + (1 | g)"),
    "a covariate that groups": (lambda d: d, "y ~ g + (x | g) + (1 | f:g)"),
    "a constant": (lambda d: d.assign(x=0.1), FORMULA),
    "two factors that are one": (
        lambda d: d.assign(h=np.where(d["f"] == "a", "p", "q")),
        "y ~ x + f * h + (1 | g)",
    ),
    "empty cells": (
        lambda d: d.assign(h=np.where(d["f"] == "a", "p", np.tile(["q", "p", "r"], 20))),
        "y ~ x * f * h + (1 | g)",
    ),
    "no grouping factor": (lambda d: d, "y ~ x * f"),
    "no fixed effect": (lambda d: d, "y ~ 0 + (1 | g)"),
    "weights that are whole": (lambda d: d.assign(w=1 + d["g"] % 3), FORMULA),
    "a weight that is missing": (lambda d: d.assign(w=1.5 + 0 * d["x"].where(d.g > 0)), FORMULA),
}


@engines_and("case", PUSHED)
def test_odd_data_in_the_engine(case, rows, engine, log):
    change, formula = PUSHED[case]
    frame = change(rows.copy())
    batches, pushed = both(formula, engine(frame), weights="w" if "w" in frame else None)
    assert why(log) is None
    assert_same_model(batches, pushed)


NOT_PUSHED = {
    "transforms": (lambda d: d, "y ~ scale(x) + (1 | g)", "transforms of whole columns"),
    "memberships": (
        lambda d: d.assign(h=d["g"].to_numpy()[::-1]),
        "y ~ x + (1 | mm(g, h))",
        r"a model with relationships=, by= or mm\(\) needs rows",
    ),
    "codings": (lambda d: d, "y ~ C(g) + x + (1 | f)", "transforms of whole columns"),
    "comparisons": (lambda d: d, "y ~ I(x > 0) + (1 | g)", r"`I\(x > 0\)` has x > 0"),
    "functions": (lambda d: d, "y ~ tanh(x) + (1 | g)", "calls tanh"),
    "powers": (lambda d: d.assign(x=d["x"] + 9), "y ~ I(x**0.5) + (1 | g)", "has the power 0.5"),
    "truth values in arithmetic": (
        lambda d: d.assign(b=d["x"] > 0),
        "y ~ I(b * x) + (1 | g)",
        "`b` does not hold numbers",
    ),
    "unsigned": (
        lambda d: d.assign(x=(9 + d["g"]).astype("uint64")),
        "y ~ x + f + (1 | g)",
        "`x` has the type UInt64",
    ),
    "decimals": (
        lambda d: d.assign(x=[decimal.Decimal(f"{v:.3f}") for v in d["x"]]),
        FORMULA,
        "`x` has the type Decimal",
    ),
    "dates": (
        lambda d: d.assign(g=pd.Timestamp("2020-01-01") + pd.to_timedelta(d["g"], unit="D")),
        FORMULA,
        "`g` has the type Date",
    ),
    "nearly dependent": (
        lambda d: d.assign(z=d["x"] + 1e-4 * np.sin(1e4 * d["x"])),
        "y ~ x + z + f + (1 | g)",
        DEPENDENT,
    ),
    "dependent": (lambda d: d.assign(z=2 * d["x"] - 1), "y ~ x + z + f + (1 | g)", DEPENDENT),
    "nearly all explained": (
        lambda d: d.assign(y=3 * d["x"] + 1e-3 * d["y"]),
        FORMULA,
        LITTLE,
    ),
}


@engines_and("case", NOT_PUSHED)
def test_what_is_read_in_batches_says_why(case, rows, engine, log):
    change, formula, words = NOT_PUSHED[case]
    batches, pushed = both(formula, engine(change(rows.copy())))
    assert re.search(words, why(log))
    assert_same_model(batches, pushed)


@each_engine
def test_functions_of_the_user_and_residuals_are_for_batches(rows, engine, log):
    data = engine(rows)
    blm.LMM("twice(y) ~ x + (1 | g)", data, functions={"twice": lambda v: 2 * v})
    assert why(log) == "`twice(y)` calls a function of the user's"
    log.clear()
    blm.LMM("y ~ x + (1 | g)", data, residual="strata(f)")
    assert why(log) == "strata(f) needs rows"


@engines_and("means", [(1e9, 0.0), (0.0, 1e9), (1e6, 1e6)])
def test_huge_means_cost_no_digits(means, rows, engine, log):
    """The values as they are stored, less the means, are the truth."""
    x, y = means
    moved = rows.assign(x=rows["x"] + x, y=rows["y"] + y)
    exact = blm.LMM(FORMULA, moved.assign(x=moved["x"] - x, y=moved["y"] - y)).reml().criterion
    model = blm.LMM(FORMULA, engine(moved))
    assert why(log) is None
    assert model.reml().criterion == pytest.approx(exact, rel=1e-9)


ERRORS = {
    "no rows": (lambda d: d.iloc[:0], DataError, "no rows"),
    "nothing but gaps": (lambda d: d.assign(x=np.nan), DataError, "All 60 values of `x`"),
    "no complete row": (
        lambda d: d.assign(x=d["x"].where(d.index % 2 > 0), y=d["y"].where(d.index % 2 == 0)),
        DataError,
        "No row is complete",
    ),
    "infinite": (lambda d: d.assign(x=d["x"].where(d.index != 3, np.inf)), DataError, "infinite"),
    "infinite and dropped": (
        lambda d: d.assign(x=d["x"].where(d.index != 3, -np.inf), y=d["y"].where(d.index != 3)),
        DataError,
        "infinite",
    ),
    "constant response": (lambda d: d.assign(y=1.0), DataError, "same value, 1, in all 60"),
    "true response": (lambda d: d.assign(y=d["y"] > 0), DataError, "categorical or boolean"),
    "text response": (lambda d: d.assign(y=d["y"].astype(str)), DataError, "categorical"),
    "one level": (lambda d: d.assign(f="a"), DataError, "one level, 'a', in the 60"),
    "one group": (lambda d: d.assign(g=1), DataError, "one level, '1', in the 60"),
    "as many groups as rows": (lambda d: d.assign(g=range(60)), DataError, "as many levels as"),
    "continuous groups": (lambda d: d.assign(g=d["g"] + 0.5), FormulaError, "not whole"),
    "whole numbers that floats cannot tell apart": (
        lambda d: d.assign(x=2**53 + np.arange(60)),
        DataError,
        "beyond 2^53",
    ),
    "numbers as text": (
        lambda d: d.assign(f=[str(i % 12) for i in range(60)]),
        DataError,
        "look like numbers",
    ),
    "tiny": (lambda d: d.assign(x=d["x"] * 1e-60), DataError, "too small for double"),
    "nearly constant": (lambda d: d.assign(x=1 + 1e-12 * d["x"]), DataError, "varies by"),
    "no weight": (lambda d: d.assign(w=0.0), DataError, "positive and finite"),
    "negative weight of an incomplete row": (
        lambda d: d.assign(w=np.where(d.index == 3, -1.0, 1.0), y=d["y"].where(d.index != 3)),
        DataError,
        "positive and finite",
    ),
    "infinite weight": (
        lambda d: d.assign(w=np.where(d.index == 3, np.inf, 1.0)),
        DataError,
        "positive and finite",
    ),
    "weights too different": (
        lambda d: d.assign(w=np.where(d.index == 3, 1e-17, 1.0)),
        DataError,
        "go from 1e-17",
    ),
    "text weight": (lambda d: d.assign(w="a"), DataError, "must be numbers"),
}


@engines_and("case", ERRORS)
def test_errors_are_those_of_batches(case, rows, engine):
    change, error, words = ERRORS[case]
    frame = change(rows.copy())
    weights = "w" if "w" in frame else None
    lazy, said = engine(frame), []
    for data in (lambda: lazy, lazy):
        with pytest.raises(error, match=re.escape(words)) as caught:
            blm.LMM(FORMULA, data, weights=weights)
        said.append(str(caught.value))
    assert said[0] == said[1]


@engines_and(
    "formula_and_words",
    [
        ("y ~ log(x) + (1 | g)", "undefined"),
        ("y ~ sqrt(x) + (1 | g)", "undefined"),
        ("y ~ log(g) + (1 | f:g)", "infinite"),
        ("y ~ I(x / g) + (1 | g)", "infinite"),
        ("y ~ exp(I(999 * g)) + (1 | f:g)", "infinite"),
        ("log(y) ~ x + (1 | g)", "infinite"),
        ("y ~ y + (1 | g)", "own predictors"),
        ("y ~ nowhere + (1 | g)", "not a column"),
        ("y ~ x + (1 | mm(f, g))", "mm(f, g)"),
    ],
)
def test_undefined_values_and_formulas_are_refused_in_the_same_words(
    formula_and_words, rows, engine
):
    formula, words = formula_and_words
    lazy, said = engine(rows), []
    for data in (lambda: lazy, lazy):
        with pytest.raises(BayesLMMError, match=re.escape(words)) as caught:
            blm.LMM(formula, data)
        said.append(str(caught.value))
    assert said[0] == said[1]


@each_engine
def test_dropped_rows_are_counted_once(rows, engine, log):
    frame = rows.assign(x=rows["x"].where(rows.index > 2), f=rows["f"].where(rows.index != 9))
    model = blm.LMM(FORMULA, engine(frame))
    assert (model.design.n, model.design.n_dropped) == (56, 4)
    assert log.messages.count("4 of 60 rows are incomplete and dropped.") == 1


def test_categories_keep_their_order(rows, log):
    order = ["b", "unused", "a"]
    frames = {
        "enum of DuckDB": of_duckdb(rows.assign(f=pd.Categorical(rows["f"], order))),
        "enum of Polars": of_polars(rows).with_columns(pl.col("f").cast(pl.Enum(order))),
    }
    for data in frames.values():
        log.clear()
        batches, pushed = both(FORMULA, data)
        assert why(log) is None
        assert "f[T.a]" in pushed.design.coefs
        assert_same_model(batches, pushed)
    sorted_ones = of_polars(rows).with_columns(pl.col("f").cast(pl.Categorical))
    assert "f[T.b]" in blm.LMM(FORMULA, sorted_ones).design.coefs


def test_collations_do_not_make_levels_equal(rows, log):
    duck = duckdb.connect()
    duck.register("rows", rows.assign(g=np.repeat(["a", "A", "ä", "b", "B", "c"], 10)))
    duck.execute("SET default_collation = 'NOCASE.NOACCENT'")
    duck.execute("CREATE TABLE copy (x DOUBLE, y DOUBLE, f TEXT, g TEXT COLLATE NOCASE)")
    duck.execute("INSERT INTO copy SELECT x, y, f, g FROM rows")
    batches, pushed = both(FORMULA, duck.table("copy"))
    assert why(log) is None
    assert pushed.design.random[0].n_levels == 6
    assert_same_model(batches, pushed)


def test_an_engine_that_fails_leaves_the_error_to_batches(log):
    broken = duckdb.connect().sql(
        "SELECT x, y, CAST(t AS INT) AS g FROM (VALUES (1, 2, 'no')) AS r(x, y, t)"
    )
    with pytest.raises(DataError, match="cannot be read"):
        blm.LMM("y ~ x + (1 | g)", broken)
    assert "the engine fails" in why(log)


def test_frames_that_are_no_engines_say_nothing(rows, log):
    blm.LMM(FORMULA, [rows])
    assert not [r for r in log.records if r.name == "bayeslmm.likelihood.pushed"]


# --- queries ---------------------------------------------------------------------------


def wanted(keys, *pairs):
    return Wanted(frozenset(keys), frozenset(pairs))


def test_a_query_takes_in_what_costs_it_little():
    fixed = wanted("", (0, 0, False), (0, 1, False), (1, 1, False))
    levels = wanted("g", (0, 0, False), (0, 1, False))
    cells = wanted("gh", (0, 0, False))
    assert planned([fixed, levels]) == [wanted("g", *fixed.pairs)]
    assert planned([fixed, levels, cells]) == [wanted("gh", *fixed.pairs)]
    many = wanted("", *((i, j, False) for i in range(9) for j in range(i, 9)))
    assert planned([many, levels]) == [levels, many]
    queries = planned([fixed, levels, cells, many])
    assert all(any(query.covers(one) for query in queries) for one in (fixed, levels, cells, many))
