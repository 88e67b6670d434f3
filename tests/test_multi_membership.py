"""Multi-membership terms, ``(x | mm(s1, s2))``, from the formula to posteriors."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import polars as pl
import pymc as pm
import pytest
from pytensor.compile.mode import Mode
from scipy.stats import multivariate_normal
from slow_cases import slow, whole
from test_loo import dense_scores, random_draws
from test_residual_likelihood import differences, relative

import bayeslmm as blm
from bayeslmm.checks.integrated import leave_out
from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.grammar import parse, parse_scale
from bayeslmm.formula.members import Members
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.likelihood.marginal import log_density_grad

M = "mm(s1, s2, weights=(w1, w2))"
FORMULA = f"y ~ x + (1 | {M}) + (1 | h)"

# Two orders of the same arithmetic on well-conditioned matrices.
VALUE = 1e-8


def pupils(n=120, schools=12, seed=7):
    """Pupils of two schools, some of one that stayed, crossed with towns."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, schools, (2, n))
    w1 = np.where(rng.random(n) < 0.3, 1.0, np.round(rng.uniform(0.2, 0.8, n), 2))
    x, h = rng.normal(2.0, 1.0, n), rng.integers(0, 5, n)
    u = rng.normal(size=(schools, 2)) @ [[1.5, 0.3], [0.0, 0.6]]
    effects = w1[:, None] * u[first] + (1.0 - w1)[:, None] * u[second]
    y = 1.0 + 0.5 * x + effects[:, 0] + effects[:, 1] * x + rng.normal(0.0, 0.8, 5)[h]
    names = np.array([f"s{j:02}" for j in range(schools)], dtype=object)
    return pd.DataFrame(
        {
            "y": y + rng.normal(0.0, 0.7, n),
            "x": x,
            "s1": names[first],
            "s2": np.where(w1 < 1.0, names[second], None),
            "w1": w1,
            "w2": np.round(1.0 - w1, 2),
            "h": [f"h{j}" for j in h],
        }
    )


def dense_z(frame, levels, members, weights, covariates):
    """Z (n, J k), level by level, from the definition: weights times covariates, summed."""
    z = np.zeros((len(frame), len(levels), covariates.shape[1]))
    for name, weight in zip(members, weights, strict=True):
        here = frame[name].to_numpy()[:, None] == np.asarray(levels)
        z += (here * np.asarray(weight)[:, None])[:, :, None] * covariates[:, None]
    return z.reshape(len(frame), -1)


def schools_z(frame, levels):
    ones = np.ones((len(frame), 1))
    return dense_z(frame, levels, ["s1", "s2"], [frame["w1"], frame["w2"]], ones)


@pytest.fixture(scope="module")
def data():
    return pupils()


@pytest.fixture(scope="module")
def model(data):
    return blm.LMM(FORMULA, data)


@pytest.fixture(scope="module")
def reml(model):
    return model.reml()


@pytest.fixture(scope="module")
def posterior(model):
    return model.fit(draws=200, random_seed=1, method="collapsed")


# --- formulas -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "group", "members", "structure"),
    [
        ("(1 | mm(a, b))", "mm(a, b)", Members(), "us"),
        ("(x || mm(`a b`,c , d))", "mm(a b, c, d)", Members(), "us"),
        ("(1 | mm(a, b, weights=(w, 0.5)))", "mm(a, b)", Members(("w", 0.5)), "us"),
        (
            "(1 | mm(a, b, scale=False, weights=(+1, -1)))",
            "mm(a, b)",
            Members((1.0, -1.0), False),
            "us",
        ),
        ("(1 | mm(a, b, weights=(`w 1`, w2)))", "mm(a, b)", Members(("w 1", "w2")), "us"),
        ("cs(0 + f | mm(a, b))", "mm(a, b)", Members(), "cs"),
        ("cs(0 + f | mm(a, b), hom=True)", "mm(a, b)", Members(), "homcs"),
    ],
)
def test_what_is_read(term, group, members, structure):
    formula = parse(f"y ~ x + {term}")
    (found,) = formula.random
    assert (found.group, found.members, found.structure) == (group, members, structure)
    assert found.correlated == ("||" not in term)
    assert set(found.factors) | members.columns <= formula.predictors()
    assert formula.members == set(found.factors)


@pytest.mark.parametrize(
    ("formula", "words", "marked"),
    [
        ("y ~ (1 | mm(a))", "needs two columns", "mm(a)"),
        ("y ~ (1 | mm(a, b, a))", "`a` occurs twice", "a"),
        ("y ~ (1 | mm(a, b, w=3))", "`w=3` is no argument of mm()", "w=3"),
        ("y ~ (1 | mm(a, b, scale=0))", "`scale=0` is no argument", "scale=0"),
        ("y ~ (1 | mm(a, b:c))", "`b:c` is no argument", "b:c"),
        ("y ~ (1 | mm(a, b, weights=w))", "`weights=w` is no argument", "weights=w"),
        (
            "y ~ (1 | mm(a, b, weights=(v, w, z)))",
            "has 3 entries for 2 columns",
            "mm(a, b, weights=(v, w, z))",
        ),
        ("y ~ (1 | mm(a, b, weights=(v + 1, w)))", "`v + 1` is no weight", "v + 1"),
        ("y ~ (1 | mm(a, b, weights=(-v, w)))", "`-v` is no weight", "-v"),
        ("y ~ (1 | mm(a, b, weights=('v', w)))", "is no weight", "'v'"),
        ("y ~ (1 | mm(a, b, scale=True, scale=True))", "is written twice", "scale=True"),
        ("y ~ (1 | mm(scale=True, a, b))", "come first in mm()", "a"),
        ("y ~ (1 | mm(a,, b))", "nothing before this comma", ","),
        ("y ~ (1 | mm(a, b,))", "nothing at the end", "mm(a, b,)"),
        ("y ~ (1 | mm(a, b) / c)", "mm() stands alone", "mm(a, b) / c"),
        ("y ~ (1 | mm(a, b):c)", "mm() stands alone", "mm(a, b):c"),
        ("y ~ (1 | c / mm(a, b))", "right behind a bar", "mm"),
        ("y ~ (1 | mm(a, b), by=f)", "by= does not go with mm()", "mm(a, b)"),
        ("y ~ x + mm(a, b)", "right behind a bar", "mm"),
        ("y ~ (1 | mmc(a, b))", "differ between the members", "mmc"),
        ("y ~ (1 | mm(a, b)) + (1 | mm(a, b))", "is written twice", "(1 | mm(a, b))"),
        ("y ~ (1 | mm(a, b)) + (0 + x | mm(b, a))", "same members", "(0 + x | mm(b, a))"),
        (
            "y ~ (1 | mm(a, b)) + (0 + x | mm(a, b, scale=False))",
            "same members",
            "(0 + x | mm(a, b, scale=False))",
        ),
    ],
)
def test_what_cannot_be_read(formula, words, marked):
    with pytest.raises(FormulaError, match=re.escape(words)) as error:
        parse(formula)
    assert formula[error.value.start : error.value.end] == marked


def test_the_scale_has_no_members():
    with pytest.raises(FormulaError, match="random effects of sigma= are"):
        parse_scale("~ (1 | mm(a, b))")


def test_terms_on_the_same_members_share_a_factor(data):
    (factor,) = blm.LMM(f"y ~ x + (1 | {M}) + (0 + x | {M})", data).design.random
    assert factor.blocks == ((0,), (1,))
    assert factor.name == "mm(s1, s2)"
    assert len(blm.LMM(f"y ~ x + (1 | s1) + (1 | {M})", data).design.random) == 2


def test_terms_are_taken_out_by_their_text(model):
    assert model.update(f". ~ . - (1 | {M})").formula == "y ~ x + (1 | h)"
    with pytest.raises(FormulaError, match="no random-effects term"):
        model.update(". ~ . - (1 | mm(s1, s2))")


# --- data ---------------------------------------------------------------------------------


def weights_of(frame, term=f"(1 | {M})"):
    """Weights (n, J) of the levels of each row, and the levels."""
    factor = blm.LMM(f"y ~ x + {term}", frame).design.random[0]
    z = np.zeros((len(frame), factor.n_levels))
    for member in factor.members:
        np.add.at(z, (np.arange(len(frame)), member.codes), member.weights)
    return z, list(factor.levels)


def test_z_is_that_of_the_definition(data):
    frame = data.assign(s3=np.roll(data["s1"], 1), s4=np.roll(data["s1"], 2), z=data["x"] > 2)
    rows = np.column_stack([np.ones(len(data)), data["x"]])
    third = np.full(len(data), 1.0 / 3.0)
    cases = [
        (f"(x | {M})", ["s1", "s2"], [data["w1"], data["w2"]]),
        ("(x | mm(s1, s3, s4))", ["s1", "s3", "s4"], [third, third, third]),
        ("(x | mm(s1, s3, weights=(3, w1)))", ["s1", "s3"], 1 / (3 + data["w1"])),
        ("(x | mm(s1, s3, weights=(1, -1), scale=False))", ["s1", "s3"], [3 * third, -3 * third]),
        ("(x | mm(s1, s3, scale=False))", ["s1", "s3"], [3 * third, 3 * third]),
    ]
    for term, members, weights in cases:
        if len(weights) != len(members):
            weights = [3 * weights, data["w1"] * weights]
        design = blm.LMM(f"y ~ x + {term}", frame).design
        levels = sorted({*data["s1"], *data["s2"].dropna()})
        assert list(design.random[0].levels) == levels
        expected = dense_z(frame, levels, members, weights, rows)
        assert design.Z_matrix().toarray() == pytest.approx(expected, abs=1e-14)


def test_levels_are_those_of_all_columns_together(data):
    whole_frame = data.assign(s2=data["s2"].fillna("s00"))
    only = whole_frame.assign(s2=whole_frame["s2"].replace("s03", "zz"))
    z, levels = weights_of(only)
    assert levels[-1] == "zz"
    assert z[:, -1] == pytest.approx(data["w2"] * (only["s2"] == "zz"))
    for first, second in (("s1", "s1"), ("s2", "s2")):  # a level that is both members
        z, _ = weights_of(whole_frame.assign(s1=whole_frame[first], s2=whole_frame[second]))
        assert np.sort(z, axis=1)[:, -1] == pytest.approx(np.ones(len(data)))


def test_columns_of_other_types(data):
    number = {name: int(name[1:]) for name in sorted(data["s1"].unique())}
    expected, _ = weights_of(data)
    order, more = sorted(number, reverse=True), [*sorted(number), "none"]
    frames = [
        data.assign(s1=data["s1"].map(number), s2=data["s2"].map(number)),  # int, float with NaN
        data.assign(s1=pd.Categorical(data["s1"], order), s2=pd.Categorical(data["s2"], more)),
        data.convert_dtypes(),
        pl.from_pandas(data),
    ]
    assert frames[0]["s2"].dtype.kind == "f"
    for frame in frames:
        assert weights_of(frame)[0] == pytest.approx(expected)
    same = data.assign(**{s: pd.Categorical(data[s], order) for s in ("s1", "s2")})
    assert weights_of(same)[1] == order


def test_rows_without_members(data):
    """Partially nested trials: rows of the control arm belong to no group."""
    nobody = data["h"] == "h0"
    alone = data.assign(
        s1=data["s1"].mask(nobody), s2=data["s2"].mask(nobody), w1=data["w1"].mask(nobody, 0.0)
    ).assign(w2=data["w2"].mask(nobody, 0.0))
    with pytest.raises(DataError, match=r"the weights of row \d+ sum to 0"):
        blm.LMM(f"y ~ x + (1 | {M})", alone)
    term = f"(1 | {M[:-1]}, scale=False))"
    z, levels = weights_of(alone, term)
    assert not z[nobody].any()
    fit = blm.LMM(f"y ~ x + {term}", alone).reml()
    v = fit.sds["mm(s1, s2)"].iloc[0] ** 2 * (own := schools_z(alone, levels)) @ own.T
    assert fit.V().to_numpy() == pytest.approx(v + fit.sigma**2 * np.eye(len(data)), abs=1e-10)
    assert fit.check.residuals().residuals.notna().all().all()


def test_missing_values(data):
    kept = data.assign(w1=data["w1"].mask(data.index < 4))
    assert blm.LMM(FORMULA, kept).design.n == len(data) - 4  # a missing weight drops the row
    kept = data.assign(s2=data["s2"].mask(data.index < 40))
    lost = int(((data["w2"] > 0) & (data.index < 40)).sum())
    with pytest.raises(DataError, match=f"`s2` is missing in {lost} rows, .* its weight is not 0"):
        blm.LMM(FORMULA, kept)
    with pytest.raises(DataError, match="`s2` is missing"):
        blm.LMM("y ~ x + (1 | mm(s1, s2))", data)
    other = blm.LMM(f"y ~ x + (1 | s2) + (1 | {M})", data)  # needed by another term
    assert other.design.n == data["s2"].notna().sum()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"w1": -1.0}, "may not be negative; scale=False"),
        ({"w1": np.inf}, "`w1` is infinite"),
        ({"w1": "much"}, "The weights `w1` of members must be numbers"),
        ({"w1": 0.0, "w2": 0.0}, "the weights of row 0 sum to 0"),
        ({"s1": 1}, "`s1` holds numbers and `s2` holds text"),
        ({"s1": 1.5}, "holds numbers that are not whole"),
        ({"s1": "s00", "s2": "s00"}, "has one level, 's00'"),
    ],
)
def test_data_that_are_refused(data, changed, words):
    with pytest.raises((DataError, FormulaError), match=re.escape(words)):
        blm.LMM(FORMULA, data.assign(**changed))


def test_columns_that_are_not_there(data):
    with pytest.raises(FormulaError, match="The weight `w1` is not a column"):
        blm.LMM(FORMULA, data.drop(columns="w1"))
    with pytest.raises(FormulaError, match="The grouping factor `s2` is not a column"):
        blm.LMM(FORMULA, data.drop(columns="s2"))


def test_levels_of_one_row_each_are_refused(data):
    each = [f"p{i}" for i in range(len(data))]
    frame = data.assign(s1=each, s2=[f"q{name}" for name in each])
    with pytest.raises(DataError, match=r"Every level of .* is a member of one row"):
        blm.LMM("y ~ x + (1 | mm(s1, s2))", frame)
    blm.LMM("y ~ x + (1 | mm(s1, s2))", frame.assign(s2=np.roll(each, 1)))  # as many as rows


# --- densities ----------------------------------------------------------------------------


def longitudinal(seed=3):
    """Repeated measurements of persons with two members each, and weights."""
    rng = np.random.default_rng(seed)
    persons, times = 15, 4
    person, t = np.divmod(rng.permutation(persons * times)[:50], times)
    group = np.array([f"s{j}" for j in range(6)])
    n = len(t)
    return pd.DataFrame(
        {
            "y": rng.normal(2.0, 2.0, n),
            "x": rng.normal(size=n),
            "s1": group[rng.integers(0, 6, n)],
            "s2": group[rng.integers(0, 6, n)],
            "w1": rng.uniform(0.1, 1.0, n),
            "w2": rng.uniform(0.1, 1.0, n),
            "h": rng.integers(0, 4, n),
            "f": np.where(rng.random(n) < 0.5, "one", "two"),
            "v": rng.uniform(0.5, 2.0, n),
            "id": person,
            "t": t,
        }
    )


def kinship(levels, seed=1):
    """A covariance matrix of levels, and of two that have no rows."""
    names = [*levels, "more", "most"]
    root = np.eye(len(names)) + np.random.default_rng(seed).normal(size=(len(names),) * 2) / 3.0
    return pd.DataFrame(root @ root.T, index=names, columns=names)


SETTINGS = {
    "one": ("(1 | {M})", None, None, False),
    "slopes, weighted": ("(x | {M})", None, "v", False),
    "crossed": ("(x || {M}) + (1 | h)", None, "v", False),
    "two of them": ("(1 | {M}) + (1 | h) + (1 | mm(s2, h2))", None, None, False),
    "related": ("(1 | {M})", None, None, True),
    "related slopes, crossed": ("(x | {M}) + (1 | h)", None, "v", True),
    "strata": ("(x | {M})", "strata(f)", None, False),
    "ar1": ("(1 | {M}) + (1 | h)", "ar1(t | id)", "v", False),
    "us": ("(1 | {M})", "us(t | id)", None, False),
    "ar1, related": ("(x | {M})", "ar1(t | id)", None, True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_density_and_gradient_are_those_of_dense_algebra(name):
    terms, residual, weights, related = SETTINGS[name]
    frame = longitudinal().assign(h2=lambda d: np.roll(d["s1"], 3))
    known = {"mm(s1, s2)": kinship([f"s{j}" for j in range(6)])} if related else None
    formula = f"y ~ x + {terms.format(M=M)}"
    built = blm.LMM(formula, frame, residual=residual, weights=weights, relationships=known)
    design, rng = built.design, np.random.default_rng(5)
    X, y, n = design.X, design.y, design.n
    total = frame["w1"] + frame["w2"]
    members = {
        "mm(s1, s2)": (["s1", "s2"], [frame["w1"] / total, frame["w2"] / total]),
        "h": (["h"], [np.ones(n)]),
        "mm(s2, h2)": (["s2", "h2"], [np.full(n, 0.5)] * 2),
    }
    z, between, factors = [], [], []
    for factor in design.random:
        names = [int(level) if factor.name == "h" else level for level in factor.levels]
        rows = np.column_stack([np.ones(n), frame["x"]])[:, : factor.n_coefs]
        z.append(dense_z(frame, names, *members[factor.name], rows))
        same = np.eye(len(names)) if factor.relationship is None else None
        between.append(known["mm(s1, s2)"].loc[names, names] if same is None else same)
        t = np.tril(rng.normal(size=(factor.n_coefs,) * 2))
        factors.append(np.diag(np.diag(t)) if "||" in terms and len(t) > 1 else t)
    structure, rows = design.spec.residual_structure, design.residual_rows
    shape = np.zeros(0) if residual is None else rng.normal(0.0, 0.4, structure.n_shape)

    def dense(factors, sigma, shape):
        noise = np.eye(n) if design.weights is None else np.diag(1.0 / design.weights)
        noise = noise if residual is None else relative(structure, rows, design.weights, shape)
        v = noise.copy()
        for one, same, t in zip(z, between, factors, strict=True):
            v += one @ np.kron(same, t @ t.T) @ one.T
        v *= sigma**2
        inner = X.T @ np.linalg.solve(v, X)
        gap = y - X @ np.linalg.solve(inner, X.T @ np.linalg.solve(v, y))
        value = np.linalg.slogdet(v)[1] + np.linalg.slogdet(inner)[1]
        value += gap @ np.linalg.solve(v, gap) + (n - X.shape[1]) * np.log(2 * np.pi)
        return -0.5 * value

    found = log_density_grad(built.system.at(shape), factors, 1.3)
    assert found.value == pytest.approx(dense(factors, 1.3, shape), abs=VALUE)
    # Five-point differences: truncation h^4 and rounding eps / h, both below 1e-9 at h = 1e-3.
    slope = differences(lambda s: dense(factors, s[0], shape), np.array([1.3]))
    assert found.sigma == pytest.approx(slope[0], abs=1e-6)
    if residual is not None:
        slope = differences(lambda s: dense(factors, 1.3, s), shape)
        assert found.shape == pytest.approx(slope, abs=1e-6)
    for f, t in enumerate(factors):

        def moved(entries, f=f, t=t):
            return dense([*factors[:f], entries.reshape(t.shape), *factors[f + 1 :]], 1.3, shape)

        index = built.system.products.structures[f].theta_index
        slope = differences(moved, t.ravel()).reshape(t.shape)
        assert found.factors[f][index] == pytest.approx(slope[index], abs=1e-6)


# lme4 1.1-31 on `pupils()`: lFormula with a factor g of the 12 schools, the rows of g in reTrms$Zt
# replaced by the weights (times x for slopes), then mkLmerDevfun and nlminb with rel.tol 1e-14.
LME4 = {
    ("(1 | {M})", "REML"): (393.083828941, [1.144484114], 1.118092591, [0.45610421, 0.05659197]),
    ("(1 | {M})", "ML"): (390.257644095, [1.083570913], 1.113392885, [0.45981298, 0.05501470]),
    ("(x | {M}) + (1 | h)", "REML"): (
        295.776226309,
        [0.4374392127, np.hypot(0.2518922345, 0.3810558045), 0.8212900026],
        0.6584892962,
        [0.4397746058, 0.1833379498],
    ),
    ("(x | {M}) + (1 | h)", "ML"): (
        293.765531605,
        [0.4332301284, np.hypot(0.2697734386, 0.3230895416), 0.7511640030],
        0.658725963,
        [0.4392126210, 0.1834723134],
    ),
}


@pytest.mark.parametrize(("terms", "method"), LME4)
def test_estimates_are_those_of_lme4(data, terms, method):
    built = blm.LMM(f"y ~ x + {terms.format(M=M)}", data)
    fit = built.reml() if method == "REML" else built.ml()
    criterion, sds, sigma, beta = LME4[terms, method]
    assert fit.criterion == pytest.approx(criterion, abs=1e-5)
    # an optimiser's parameters are off by the root of its tolerance
    assert np.concatenate([*fit.sds.values()]) == pytest.approx(sds, rel=1e-4)
    assert fit.sigma == pytest.approx(sigma, rel=1e-5)
    assert fit.beta.to_numpy() == pytest.approx(beta, rel=1e-4)


def test_sparse_and_dense_meetings_are_one_model():
    """Differences of members, 5 columns of members: V by its definition."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 30, (150, 5)), columns=list("abcde"))
    frame["y"] = rng.normal(size=30)[frame[list("abcde")]].sum(axis=1) + rng.normal(size=150)
    fit = blm.LMM("y ~ 1 + (1 | mm(a, b, c, d, e, scale=False))", frame).reml()
    z = sum(np.eye(30)[frame[name]] for name in "abcde")
    v = fit.sds["mm(a, b, c, d, e)"].iloc[0] ** 2 * z @ z.T + fit.sigma**2 * np.eye(150)
    assert fit.V().to_numpy() == pytest.approx(v, abs=1e-10)


# --- a model in which both members are the same --------------------------------------------


def copied(n=96, levels=12, seed=2):
    rng = np.random.default_rng(seed)
    a, x = np.repeat(np.arange(levels), n // levels), rng.normal(size=n)
    u = rng.normal(size=(levels, 2)) * [1.5, 0.7]
    y = 1.0 + 0.5 * x + u[a, 0] + x * u[a, 1] + rng.normal(size=n)
    c = rng.integers(0, 8, n)
    return pd.DataFrame({"y": y, "x": x, "a": a, "b": a, "w1": 0.3, "w2": 0.7, "c": c})


def twins(effects):
    frame = copied()
    groups = ("a", "mm(a, b, weights=(w1, w2))")
    return [blm.LMM(f"y ~ x + ({effects} | {group})", frame) for group in groups]


def assert_same(one, two, **tolerance):
    """Numbers of two results are the same, whatever the names of grouping factors."""
    assert type(one) is type(two)
    for first, second in zip(_numbers(one), _numbers(two), strict=True):
        assert first == pytest.approx(second, nan_ok=True, **tolerance)


def _numbers(value):
    if isinstance(value, dict):
        return [part for key in value for part in _numbers(value[key])]
    if isinstance(value, pd.DataFrame):
        return [value.select_dtypes("number").to_numpy(float)]
    return [np.asarray(value, dtype=float)]


NEW = pd.DataFrame({"x": [0.5, 1.0, -1.0], "a": [50, 51, 50], "b": [50, 51, 50], "w1": 0.3})


def test_an_estimate_with_equal_members_is_that_of_one_level():
    one, two = (built.reml() for built in twins("x"))
    new = NEW.assign(w2=0.7)
    verbs = {
        "criterion": lambda e: e.criterion,
        "covariances": lambda e: [e.sigma, *_numbers(e.sds), *_numbers(e.corrs)],
        "effects": lambda e: {**e.ranef(), **{"sd": e.ranef_sd()}, **{"coef": e.coef()}},
        "tables": lambda e: {"fixef": e.fixef(), "varcorr": e.varcorr(), "confint": e.confint()},
        "vcov": lambda e: {"vcov": e.vcov, "V": e.V(), "G": e.G(), "R": e.R()},
        "rows": lambda e: {"fitted": e.fitted(), "residuals": e.residuals()},
        "shares": lambda e: {"icc": e.icc(), "r2": e.r2(), "parts": e.variance_partition()},
        "profile": lambda e: e.confint(method="profile", kinds=["sd", "sigma"]),
        "simulated": lambda e: e.simulate(2, random_seed=1),
        "bootstrap": lambda e: e.bootstrap(2, random_seed=1, progressbar=False),
        "influence": lambda e: e.check.influence().table,
        "of levels": lambda e: e.check.influence("a", progressbar=False).table,
        "new": lambda e: e.predict(new, target="new", uncertainty="plugin"),
        "population": lambda e: e.predict(new, target="population", uncertainty="plugin"),
        "observed": lambda e: e.predict(
            new, target="new", observed=new.assign(y=4.0), random_seed=1
        )["estimate"],
    }
    for name, verb in verbs.items():
        first, second = verb(one), verb(two)
        if isinstance(first, list):
            first, second = (
                np.concatenate([np.ravel(v) for v in first]),
                np.concatenate([np.ravel(v) for v in second]),
            )
        # degrees of freedom are quotients of second differences
        assert_same(first, second, rel=1e-5, abs=1e-7), name
    residuals = [e.check.residuals(random_seed=1) for e in (one, two)]
    assert_same(*(r.residuals for r in residuals), rel=1e-7, abs=1e-9)


@pytest.mark.slow
def test_a_posterior_with_equal_members_is_that_of_one_level():
    one, two = (built.fit(draws=60, chains=2, random_seed=1) for built in twins("1"))
    assert one.method == two.method == "collapsed"
    draws = [{n: p.data.posterior[n].to_numpy() for n in ("sigma", "beta")} for p in (one, two)]
    assert_same(*draws, rel=1e-6, abs=1e-7)  # of coefficients of about one, some draws near zero
    verbs = {
        "tables": lambda p: {"a": p.icc(), "b": p.r2(), "c": p.variance_partition()},
        "loo": lambda p: [p.loo().elpd, p.loo(by="a").elpd],
        "pit": lambda p: p.check.loo_pit(),
        "evidence": lambda p: [float(p.log_evidence)],
        "rows": lambda p: p.check.influence("a", progressbar=False).table["kl"],
    }
    for verb in verbs.values():
        assert_same(verb(one), verb(two), rel=1e-5, abs=1e-6)


# --- after the fit ------------------------------------------------------------------------


def test_names_are_keys(data, posterior):
    priors = {
        "sd[mm(s1, s2)]": pm.HalfNormal.dist(2),
        "sd[mm(s1, s2), x]": pm.HalfNormal.dist(1),
        "cor[mm(s1, s2)]": pm.LKJCorr.dist(n=2, eta=2),
    }
    table = blm.LMM(f"y ~ x + (x | {M})", data, priors=priors).priors.table()
    found = table.set_index("parameter")["prior"].to_dict()
    assert found["sd[mm(s1, s2), Intercept]"] == "HalfNormal(2)"
    assert found["sd[mm(s1, s2), x]"] == "HalfNormal(1)"
    assert found["cor[mm(s1, s2)]"] == "LKJ(2)"
    held = blm.LMM(FORMULA, data, fixed={"sd[mm(s1, s2)]": 1.5}).reml()
    assert held.sds["mm(s1, s2)"].iloc[0] == pytest.approx(1.5, rel=1e-12)
    label = "sd[mm(s1, s2), Intercept]"
    assert label in posterior.summary().index
    assert posterior.hypothesis("sd[mm(s1, s2)] > 0.01").table()["probability"].iloc[0] == 1.0
    assert list(posterior.ranef()) == ["mm(s1, s2)", "h"]
    draws = posterior.data.posterior
    assert draws["u_mm_s1_s2"].sizes["mm_s1_s2"] == 12
    assert {"mm_s1_s2_1_idx", "mm_s1_s2_2_weight"} <= set(posterior.data.constant_data.data_vars)


def test_shares_of_variance_count_the_weights(data, reml):
    sd, h = (reml.sds[name].iloc[0] for name in ("mm(s1, s2)", "h"))
    z = schools_z(data, reml.design.random[0].levels)
    own = sd**2 * np.mean(np.sum(z**2, axis=1))
    icc = reml.icc()["estimate"]
    assert icc["mm(s1, s2)"] == pytest.approx(own / (own + h**2 + reml.sigma**2), rel=1e-10)
    fixed = np.var(reml.design.X @ reml.beta.to_numpy(), ddof=1)
    total = fixed + own + h**2 + reml.sigma**2
    assert reml.r2()["estimate"]["conditional"] == pytest.approx(1 - reml.sigma**2 / total)


def drawn_at(tree):
    """Draws (chain, draw, n) of a prediction."""
    return tree.predictions["mu"].to_numpy()


def test_known_levels_are_predicted_with_their_weights(data, posterior):
    new = pd.DataFrame(
        {"x": [1.0, 2.0], "s1": ["s01", "s03"], "s2": ["s02", None], "h": "h1"}
    ).assign(w1=[0.25, 2.0], w2=[0.75, 0.0])
    draws = posterior.data.posterior
    values = drawn_at(posterior.predict(new, summary=False))
    beta = draws["beta"].transpose("coef", ...).to_numpy()
    u, h = (
        draws["u_mm_s1_s2"].sel(mm_s1_s2_coef="Intercept"),
        draws["u_h"].sel(h="h1", h_coef="Intercept"),
    )
    parts = [0.25 * u.sel(mm_s1_s2="s01") + 0.75 * u.sel(mm_s1_s2="s02"), u.sel(mm_s1_s2="s03")]
    for i, part in enumerate(parts):
        expected = beta[0] + beta[1] * new["x"][i] + part.to_numpy() + h.to_numpy()
        assert values[..., i] == pytest.approx(expected, abs=1e-8)


def test_new_levels_have_variances_by_weights(reml):
    new = pd.DataFrame({"x": 1.0, "s1": ["n1", "n1"], "s2": ["n2", "n1"], "h": "new"})
    new = new.assign(w1=0.3, w2=0.7)
    sd, h = (reml.sds[name].iloc[0] for name in ("mm(s1, s2)", "h"))
    fixed = np.array([1.0, 1.0]) @ reml.vcov.to_numpy() @ [1.0, 1.0]
    expected = np.sqrt(fixed + h**2 + sd**2 * np.array([0.3**2 + 0.7**2, 1.0]))
    for target in ("new", "population"):
        found = reml.predict(new, target=target, uncertainty="plugin")
        assert found["std_error"].to_numpy() == pytest.approx(expected, rel=1e-9)
    mean = reml.beta.to_numpy().sum()
    assert found["estimate"].to_numpy() == pytest.approx([mean, mean], rel=1e-9)
    known = reml.predict(new.assign(s1="s01", s2="s01", h="h1"), target="population")
    assert known["std_error"].iloc[0] > np.sqrt(h**2 + sd**2)  # one new level in place of s01
    average = reml.predict(new[["x"]], target="average", uncertainty="plugin")
    assert average["std_error"].to_numpy() == pytest.approx(np.sqrt(fixed), rel=1e-9)


def test_one_member_known_and_one_new(posterior):
    new = pd.DataFrame({"x": 0.0, "s1": ["s01"], "s2": ["n1"], "h": "h1", "w1": 0.3, "w2": 0.7})
    tree = posterior.predict(new, target="new", summary=False, random_seed=1)
    draws = posterior.data.posterior
    u, h = draws["u_mm_s1_s2"].sel(mm_s1_s2="s01"), draws["u_h"].sel(h="h1")
    known = draws["beta"].sel(coef="Intercept") + h[..., 0] + 0.3 * u[..., 0]
    rest = drawn_at(tree)[..., 0] - known.to_numpy()
    scaled = rest / (0.7 * draws["sd_mm_s1_s2"].to_numpy()[..., 0])
    # standard normal: five standard errors of mean and variance
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert abs(scaled.var() - 1.0) < 5 * np.sqrt(2 / scaled.size)


def test_observed_rows_tell_of_new_members(data, reml):
    """The modes given old and observed rows, from the equations of Henderson."""
    seen = pd.DataFrame({"x": [0.0, 1.0, 2.0], "s1": ["n1", "s03", "n2"], "s2": ["n2", "n1", "n2"]})
    seen = seen.assign(w1=[0.5, 0.3, 0.4], w2=[0.5, 0.7, 0.6], h="h1", y=[4.0, 5.0, 3.0])
    new = seen.assign(s2="n1", s1=["n1", "s01", "n2"])
    found = reml.predict(new, target="new", observed=seen, random_seed=1)["estimate"]
    levels, towns = [*reml.design.random[0].levels, "n1", "n2"], list(reml.design.random[1].levels)

    def columns(frame):
        z = schools_z(frame, levels)
        return np.column_stack(
            [np.ones(len(frame)), frame["x"], z, frame["h"].to_numpy()[:, None] == towns]
        ).astype(float)

    rows = pd.concat([data, seen])
    W, sd, h = columns(rows), reml.sds["mm(s1, s2)"].iloc[0], reml.sds["h"].iloc[0]
    precision = np.r_[0.0, 0.0, np.full(14, sd**-2.0), np.full(5, h**-2.0)] * reml.sigma**2
    solution = np.linalg.solve(W.T @ W + np.diag(precision), W.T @ rows["y"])
    assert found.to_numpy() == pytest.approx(columns(new) @ solution, rel=1e-8)


def test_new_rows_name_their_members(reml, posterior):
    new = pd.DataFrame({"x": [1.0], "s1": "s01", "s2": "s02", "w1": 0.5, "w2": 0.5, "h": "h1"})
    for fit in (reml, posterior):
        for column in ("s2", "w2"):
            with pytest.raises(DataError, match=f"have no column `{column}`"):
                fit.predict(new.drop(columns=column))
            with pytest.raises(DataError, match=f"The new rows lack `{column}`"):
                fit.predict(new.drop(columns=column), target="population")
        with pytest.raises(DataError, match="levels that the model has not seen: 'n1'"):
            fit.predict(new.assign(s2="n1"))
        with pytest.raises(DataError, match="`s2` is missing in 1 rows"):
            fit.predict(new.assign(s2=None))
        alone = fit.predict(new[["x", "h"]], terms="h")  # the members do not count
        assert np.isfinite(alone.to_numpy()).all()


# --- PyMC ---------------------------------------------------------------------------------

PLAIN = Mode(linker="py", optimizer=None)  # nothing to compile


@pytest.mark.parametrize("form", [slow("noncentered"), "centered", "marginal"])
def test_pymc_models_have_the_density_of_the_definition(form):
    frame = longitudinal()
    built = blm.LMM(f"y ~ x + (1 | {M})", frame)
    found, rng = built.pymc(form), np.random.default_rng(2)
    point = {name: rng.normal(size=np.shape(v)) for name, v in found.initial_point().items()}
    density = float(found.compile_logp(mode=PLAIN)(point))
    log_sd, log_sigma = point["sd_mm_s1_s2_log__"], point["sigma_log__"]
    if form == "marginal":
        x = np.r_[log_sd, log_sigma]
        expected = log_posterior_unconstrained(built.system, built.priors, x)[0]
        assert density == pytest.approx(expected, rel=VALUE)
        return
    sd, sigma = np.exp(log_sd[0]), np.exp(log_sigma)
    ours = built.priors
    gamma = point.get("_beta_gamma", point.get("beta"))
    beta = np.linalg.solve(ours.fixed_map, gamma)
    name = next(n for n in point if n.startswith(("_z_mm", "_u_mm", "u_mm")))
    values = np.ravel(point[name])
    u = sd * values if form == "noncentered" else values
    total = (frame["w1"] + frame["w2"]).to_numpy()
    shares = frame.assign(w1=frame["w1"] / total, w2=frame["w2"] / total)
    mean = built.design.X @ beta + schools_z(shares, built.design.random[0].levels) @ u
    scale = np.full(len(u), 1.0 if form == "noncentered" else sd)
    expected = multivariate_normal(np.zeros(len(u)), np.diag(scale**2)).logpdf(values)
    expected += multivariate_normal(mean, sigma**2 * np.eye(len(mean))).logpdf(built.design.y)
    expected += sum(float(p.logpdf(g)) for p, g in zip(ours.beta, gamma, strict=True))
    expected += float(ours.sd[0][0].logpdf(sd) + ours.sigma.logpdf(sigma)) + log_sd[0] + log_sigma
    assert density == pytest.approx(expected, rel=VALUE)


@whole
@pytest.mark.slow
@pytest.mark.parametrize("form", ["noncentered", "centered", "marginal"])
def test_collapsed_draws_equal_those_of_nuts(model, form):
    exact = model.fit(draws=2000, random_seed=1)
    nuts = model.fit(method="nuts", form=form, draws=1000, random_seed=2, progressbar=False)
    for name in ("beta", "sd_mm_s1_s2", "sigma", "u_mm_s1_s2"):
        a, b = (post.data.posterior[name] for post in (exact, nuts))
        sd = a.std(("chain", "draw"))
        gap = np.abs(a.mean(("chain", "draw")) - b.mean(("chain", "draw"))) / sd
        assert float(gap.max()) < 0.15, name
        assert float(np.abs(np.log(b.std(("chain", "draw")) / sd)).max()) < 0.15, name


@whole
@pytest.mark.slow
def test_ranks_of_parameters_are_uniform():
    built = blm.LMM(f"y ~ x + (1 | {M})", longitudinal())
    check = built.check_calibration(60, method="collapsed", random_seed=1, progressbar=False)
    assert (check.table()["verdict"] == "ok").all(), repr(check)
    assert not len(check.failures)


# --- checks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "related"),
    [("(1 | {M})", False), ("(x | {M}) + (1 | h)", False), ("(1 | {M})", True)],
)
def test_left_out_rows_and_groups_equal_dense_algebra(terms, related):
    frame = longitudinal()
    known = {"mm(s1, s2)": kinship([f"s{j}" for j in range(6)])} if related else None
    formula = f"y ~ x + {terms.format(M=M)}"
    built = blm.LMM(formula, frame, weights="v", relationships=known)
    design = built.design
    joint = random_draws(design)
    for by in (None, "s1", "id"):
        codes = None if by is None else pd.factorize(frame[by])[0]
        own = np.arange(design.n) if codes is None else codes
        groups = [np.flatnonzero(own == g) for g in range(own.max() + 1)]
        found = leave_out(built.model, joint, codes, moments=True)
        wanted = dense_scores(design, built.priors, joint, groups)
        assert found.log_density == pytest.approx(wanted[0], rel=VALUE, abs=VALUE)
        assert found.in_sample == pytest.approx(wanted[1], rel=VALUE, abs=VALUE)


def test_groups_that_can_be_left_out(posterior, reml):
    assert posterior.loo(by="s1").n_data_points == 12
    for refused in (
        lambda: posterior.loo(by="mm(s1, s2)"),
        lambda: posterior.check.influence("mm(s1, s2)", progressbar=False),
        lambda: reml.check.influence("mm(s1, s2)", progressbar=False),
        lambda: posterior.check.predictive("mean", by="mm(s1, s2)", random_seed=1),
        lambda: posterior.plot.shrinkage(group="mm(s1, s2)"),
    ):
        with pytest.raises(DataError, match=r"Rows belong to several levels of `mm\(s1, s2\)`"):
            refused()
    with pytest.raises(DataError, match="by='s2': `s2` is missing in some rows"):
        posterior.loo(by="s2")


def test_residuals_and_leverages_equal_dense_algebra(data, reml):
    V, X, y = reml.V().to_numpy(), reml.design.X, reml.design.y
    inverse = np.linalg.inv(V)
    left = inverse @ X
    P = inverse - left @ np.linalg.solve(X.T @ left, left.T)
    table = reml.check.residuals().residuals
    residual = reml.sigma**2 * P @ y
    assert table["response"].to_numpy() == pytest.approx(residual, abs=VALUE)
    hat = 1.0 - reml.sigma**2 * np.diag(P)
    standard = residual / reml.sigma / np.sqrt(1.0 - hat)
    assert table["standardised"].to_numpy() == pytest.approx(standard, abs=VALUE)
    white = np.linalg.solve(np.linalg.cholesky(V), y - X @ reml.beta.to_numpy())
    assert table["marginal"].to_numpy() == pytest.approx(white, abs=VALUE)


def test_refits_without_groups_are_those_to_the_other_rows(data):
    """Among these rows a school may be left that is the second member alone, or none."""
    found = blm.LMM(FORMULA, data).reml().check.influence("h", progressbar=False)
    for town in ("h0", "h3"):
        alone = blm.LMM(FORMULA, data[data["h"] != town]).reml()
        row = found.estimates.loc[town]
        assert row["sigma"] == pytest.approx(alone.sigma, rel=1e-5)
        assert row["beta[x]"] == pytest.approx(alone.beta["x"], rel=1e-5)
        sd = alone.sds["mm(s1, s2)"].iloc[0]
        assert row["sd[mm(s1, s2), Intercept]"] == pytest.approx(sd, rel=1e-4)


def test_comparisons_with_other_models(data):
    mine, slopes = (blm.LMM(f"y ~ x + ({e} | {M})", data).ml() for e in ("1", "x"))
    other = blm.LMM("y ~ x + (1 | s1)", data).ml()
    assert blm.lrt(mine, slopes)["p_value"].iloc[1] < 0.05
    with pytest.raises(ValueError, match="same number of parameters"):
        blm.lrt(other, mine)
    with pytest.raises(ValueError, match="not nested"):
        blm.lrt(other, slopes)
    both = blm.LMM(f"y ~ x + (1 | s1) + (1 | {M})", data).ml()
    assert blm.lrt(other, both)["p_value"].iloc[1] < 1e-4


# --- files, reports, pictures -------------------------------------------------------------


def test_saved_posteriors_are_the_same(posterior, data, tmp_path):
    posterior.save(tmp_path / "fit.nc")
    back = blm.load(tmp_path / "fit.nc")
    assert back.data.posterior.identical(posterior.data.posterior)
    factor, same = back.design.random[0], posterior.design.random[0]
    assert factor.spec.members == same.spec.members
    for one, two in zip(factor.members, same.members, strict=True):
        assert np.array_equal(one.codes, two.codes)
        assert np.array_equal(one.weights, two.weights)
    new = data.iloc[:5].assign(s1="new")
    options = {"target": "new", "random_seed": 3}
    assert back.predict(new, **options).equals(posterior.predict(new, **options))
    assert back.loo().elpd == posterior.loo().elpd


def test_rows_without_a_response_are_predicted(data):
    gone = data.index < 3
    frame = data.assign(y=data["y"].mask(gone))
    kept = blm.LMM(FORMULA, frame, missing="keep").reml()
    without = blm.LMM(FORMULA, data[~gone]).reml().predict(data[gone], target="new")
    assert kept.predict_missing()["estimate"].to_numpy() == pytest.approx(without["estimate"])


@pytest.mark.slow
def test_a_report_has_its_terms(model, posterior, reml, tmp_path):
    posterior.report(tmp_path / "report.html")
    assert "mm(s1, s2)" in (tmp_path / "report.html").read_text()
    posterior.check.sensitivity()
    model.implied_priors(200, random_seed=1)
    blm.compare_reml(posterior, reml)
    blm.compare({"a": posterior, "b": posterior})


def test_pictures_and_tables_run(posterior, reml):
    posterior.plot.caterpillar("mm(s1, s2)")
    posterior.plot.residuals(group="mm(s1, s2)")
    reml.plot.covariance("V", rows=range(6))
    for fit in (posterior, reml):
        assert fit.augment().shape[0] == 120
        assert "mm(s1, s2)" in fit.methods_paragraph()
