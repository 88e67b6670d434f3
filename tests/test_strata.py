"""Covariance matrices by subpopulation, ``(x | g, by=f)``, from the formula to posteriors."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pymc as pm
import pytest
from slow_cases import slow, some, whole

import bayeslmm as blm
from bayeslmm.exceptions import DataError, FormulaError, PriorError
from bayeslmm.formula.grammar import parse
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.likelihood.marginal import log_density_grad

FORMULA = "y ~ x * arm + (x | g, by=arm) + (1 | h)"

# Two orders of the same arithmetic on well-conditioned matrices.
VALUE = 1e-8


def subpopulations(levels=36, rows=6, seed=11):
    """Rows of levels in three arms with covariance matrices of their own, crossed with batches."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(levels), rows)
    arm = np.array(["a", "b", "c"])[g % 3]
    x = rng.normal(4.0, 2.0, len(g))
    h = rng.integers(0, 5, len(g))
    roots = {
        "a": [[1.0, 0.0], [0.3, 0.4]],
        "b": [[2.0, 0.0], [-0.5, 0.3]],
        "c": [[0.5, 0.0], [0.1, 0.8]],
    }
    u = np.stack([np.array(roots["abc"[j % 3]]) @ rng.normal(size=2) for j in range(levels)])
    y = 2.0 + 0.5 * x + u[g, 0] + u[g, 1] * x + rng.normal(0, 0.7, 5)[h]
    y = y + rng.normal(size=len(g))
    return pd.DataFrame({"y": y, "x": x, "arm": arm, "g": [f"g{j:02}" for j in g], "h": h})


@pytest.fixture(scope="module")
def data():
    return subpopulations()


@pytest.fixture(scope="module")
def reml(data):
    return blm.LMM(FORMULA, data).reml()


@pytest.fixture(scope="module")
def slopes(data):
    """Estimates with slopes by stratum and nothing else."""
    return blm.LMM("y ~ x + (x | g, by=arm)", data).reml()


@pytest.fixture(scope="module")
def posterior(data):
    return blm.LMM(FORMULA, data).fit(draws=100, random_seed=1, method="collapsed")


# --- formulas and designs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "by", "structure"),
    [
        ("(x | g, by=f)", "f", "us"),
        ("(x || g,by = `a b`)", "a b", "us"),
        ("cs(0 + v | g, hom=True, by=f)", "f", "homcs"),
        ("ar1(0 + v | g, by=f, hom=False)", "f", "hetar1"),
    ],
)
def test_by_is_read(term, by, structure):
    found = parse(f"y ~ z + {term}")
    assert (found.random[0].by, found.random[0].structure) == (by, structure)
    assert found.random[0].group == "g"
    assert by in found.predictors()
    assert by not in found.predictors(effects=False)


@pytest.mark.parametrize(
    ("formula", "words", "marked"),
    [
        ("y ~ (x | g, by=f, by=h)", "written twice", "by=h"),
        ("y ~ (x | g, by=f + h)", "names one column", "by=f + h"),
        ("y ~ (x | g, by=)", "names one column", "by="),
        ("y ~ (x | g, hom=True)", "is no argument of a random-effects term", " hom=True"),
        ("y ~ (x | g, )", "nothing after this comma", ","),
        ("y ~ (x, y | g)", "`,` is not a formula operator", ","),
        ("y ~ (x | gr(g, by=f))", "is (x | g, by=f), and", "gr"),
        ("y ~ (1 | mm(a, b), by=f)", "by= does not go with mm()", "mm(a, b)"),
        ("y ~ (1 | g, by=f) + (x | g)", "The intercept is repeated", "(x | g)"),
    ],
)
def test_by_that_cannot_be_read(formula, words, marked):
    with pytest.raises(FormulaError, match=re.escape(words)) as error:
        parse(formula)
    assert formula[error.value.start : error.value.end] == marked


def test_strata_that_cannot_be(data):
    def refused(formula=FORMULA, frame=data, **more):
        with pytest.raises((DataError, FormulaError)) as error:
            blm.LMM(formula, frame, **more)
        return str(error.value)

    divided = data.assign(arm=np.where(data.index == 0, "b", data["arm"]))
    assert "there are several in `g00`" in refused(frame=divided)
    assert "has one level, 'a'" in refused("y ~ (1 | g, by=arm)", data[data["arm"] == "a"])
    kept = data[(data["arm"] != "a") | (data["g"] == "g00")]
    assert "there is one level of `g` in `arm[a]`" in refused(frame=kept)
    assert "numbers that are not whole" in refused("y ~ (1 | g, by=x)")
    assert "`nope` is not a column" in refused("y ~ (1 | g, by=nope)")
    few = data.groupby("g").head(2)
    assert "12 levels of `g` times 2 coefficients" in refused("y ~ (x | g, by=arm)", few)
    many = data.assign(arm=data["g"].str[1:].astype(int) // 2, v=data["h"])
    assert "at most 30 are supported" in refused("y ~ (0 + C(v) | g, by=arm)", many)
    known = pd.DataFrame(np.eye(36), index=data["g"].unique(), columns=data["g"].unique())
    assert "has by= and `g` has a relationship" in refused(relationships={"g": known})


def test_strata_that_are_missing_drop_rows(data):
    frame = data.assign(arm=data["arm"].where(data["g"] != "g03"))
    assert len(blm.LMM("y ~ x + (1 | g, by=arm)", frame).design.dropped) == 6


# --- densities ----------------------------------------------------------------------------


def dense_covariance(data, sigmas, batch, residual):
    """V with a covariance matrix (2, 2) for each arm, from its definition."""
    z = np.column_stack([np.ones(len(data)), data["x"]])
    own = np.stack([sigmas[arm] for arm in data["arm"]])
    same = np.equal.outer(data["g"].to_numpy(), data["g"].to_numpy())
    v = np.einsum("ia,iab,jb->ij", z, own, z) * same
    v += batch**2 * np.equal.outer(data["h"].to_numpy(), data["h"].to_numpy())
    return v + residual**2 * np.eye(len(data))


def restricted_log_density(y, X, v):
    """Log density of the data with beta integrated out under a flat prior."""
    _, log_det = np.linalg.slogdet(v)
    inner = X.T @ np.linalg.solve(v, X)
    beta = np.linalg.solve(inner, X.T @ np.linalg.solve(v, y))
    rest = y - X @ beta
    value = log_det + np.linalg.slogdet(inner)[1] + rest @ np.linalg.solve(v, rest)
    return -0.5 * (value + (len(y) - X.shape[1]) * np.log(2 * np.pi))


def test_the_density_is_that_of_dense_algebra_with_its_gradient(data):
    small = data[data["g"] < "g18"]
    model = blm.LMM(FORMULA, small)
    rng, sigma = np.random.default_rng(0), 1.3
    roots = {arm: np.tril(rng.normal(size=(2, 2))) for arm in "abc"}

    def expected(roots, batch):
        v = dense_covariance(
            small, {a: sigma**2 * r @ r.T for a, r in roots.items()}, sigma * batch, sigma
        )
        return restricted_log_density(model.design.y, model.design.X, v)

    joined = np.zeros((6, 6))
    for i, arm in enumerate("abc"):
        joined[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = roots[arm]
    found = log_density_grad(model.system, [joined, np.array([[0.4]])], sigma)
    assert found.value == pytest.approx(expected(roots, 0.4), abs=VALUE)
    h, weights = 1e-3, {1: 8.0, -1: -8.0, 2: -1.0, -2: 1.0}  # five-point differences
    for i, arm in enumerate("abc"):
        for row, col in ((0, 0), (1, 0), (1, 1)):
            step = np.zeros((2, 2))
            step[row, col] = h
            slope = sum(
                w * expected(roots | {arm: roots[arm] + m * step}, 0.4) for m, w in weights.items()
            )
            assert found.factors[0][2 * i + row, 2 * i + col] == pytest.approx(
                slope / (12 * h), abs=1e-7
            )


# lme4 2.0 on `subpopulations()`: lmer(y ~ x * arm + (0 + a1 + ax | g) + (0 + b1 + bx | g) +
# (0 + c1 + cx | g) + (1 | h)) with a1 the indicator of arm a, ax = a1 x and so on.
LME4 = {
    "reml": 766.788706792,
    "ml": 763.243434889,
    "sds": [0.7366772095, 0.5374214557, 1.5123672828, 0.2835570659, 1.2436751487, 1.2878422818],
    "cors": [-0.0170440487, -0.4020534824, -0.4021245214],
    "h": 0.6241074179,
    "sigma": 0.9611982142,
    "beta": [2.18352166, 0.73777159, 0.28534728, -1.23380364, -0.52048832, 0.07482784],
}


def test_estimates_are_those_of_lme4(data, reml):
    assert reml.criterion == pytest.approx(LME4["reml"], abs=1e-5)
    assert blm.LMM(FORMULA, data).ml().criterion == pytest.approx(LME4["ml"], abs=1e-5)
    # lme4's optimiser stops at parameters that are off by the root of its tolerance.
    assert reml.sds["g"].to_numpy() == pytest.approx(LME4["sds"], rel=1e-4)
    correlations = reml.corrs["g"].to_numpy()
    assert correlations[[1, 3, 5], [0, 2, 4]] == pytest.approx(LME4["cors"], abs=1e-4)
    assert np.all(correlations[2:, :2] == 0.0)
    assert reml.sds["h"].to_numpy() == pytest.approx([LME4["h"]], rel=1e-4)
    assert reml.sigma == pytest.approx(LME4["sigma"], rel=1e-4)
    assert reml.beta.to_numpy() == pytest.approx(LME4["beta"], abs=1e-4)


def test_equal_strata_are_one(data):
    """With equal matrices in all strata, the criterion is that of the term without by=."""
    plain, by = (blm.LMM(f"y ~ x + (x | g{more})", data) for more in ("", ", by=arm"))
    t = np.array([[0.9, 0.0], [0.2, 0.5]])
    one, other = (
        log_density_grad(model.system, [np.kron(np.eye(size), t)], 1.1).value
        for model, size in ((plain, 1), (by, 3))
    )
    assert one == pytest.approx(other, abs=VALUE)


@pytest.mark.parametrize(
    ("term", "residual"),
    [
        ("(1 | g, by=arm)", None),
        ("(x || g, by=arm)", None),
        slow("(1 | g, by=arm)", "ar1(t | g)"),
        ("(x || g, by=arm)", "ar1(t | g)"),
        ("(1 | g, by=arm)", "strata(arm)"),
        slow("(x || g, by=arm)", "strata(arm)"),
    ],
)
def test_marginal_covariances_are_consistent(data, term, residual):
    frame = data.assign(t=data.groupby("g").cumcount())[data["g"] < "g12"]
    fit = blm.LMM(f"y ~ x + {term} + (1 | h)", frame, residual=residual).reml()
    z, g = fit.design.Z_matrix().toarray(), fit.G().to_numpy()
    assert z.shape[1] == len(g) == 12 * (1 + ("x" in term)) + 5
    v = z @ g @ z.T + fit.R().to_numpy()
    assert fit.V().to_numpy() == pytest.approx(v, abs=1e-10)
    value = restricted_log_density(fit.design.y, fit.design.X, v)
    assert -2.0 * value == pytest.approx(fit.criterion, abs=1e-6)


# --- priors -------------------------------------------------------------------------------


def test_default_priors_do_not_mind_units_and_origins(data):
    """The same coordinates have the same density, whatever the scale and origin of x."""
    values = []
    for frame in (data, data.assign(x=1e3 * data["x"] - 7e4)):
        model = blm.LMM(FORMULA, frame)
        size = model.priors.coordinates.size
        x = np.random.default_rng(3).normal(0.0, 0.5, size)
        x[model.priors.coordinates.sds(0)][1::2] -= np.log(frame["x"].std() / data["x"].std())
        values.append(log_posterior_unconstrained(model.system, model.priors, x)[0])
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_default_priors_are_of_the_rows_of_a_stratum(data):
    shifted = data.assign(x=data["x"] + np.where(data["arm"] == "b", 50.0, 0.0))
    table = blm.LMM(FORMULA, shifted).priors.table().set_index("parameter")
    mean = shifted.loc[shifted["arm"] == "b", "x"].mean()
    assert table.loc["sd[g, Intercept:arm[b]]", "where"] == f"at x:arm[b] = {mean:.4g}"
    assert table.loc["sd[g, Intercept:arm[a]]", "where"].startswith("at x:arm[a] = 3.99")


def test_priors_of_the_user_by_stratum(data):
    given = {
        "sd[g, arm[a]]": pm.HalfNormal.dist(2),
        "sd[g, x:arm[b]]": pm.HalfNormal.dist(1),
        "cor[g, arm[c]]": pm.LKJCorr.dist(n=2, eta=3),
    }
    model = blm.LMM(FORMULA, data, priors=given)
    table = model.priors.table().set_index("parameter")
    assert table["source"].to_dict() == {
        name: "user" if name in USER_SET else "default" for name in table.index
    }
    with pytest.raises(PriorError, match=r"Did you mean 'sd\[g, arm\["):
        blm.LMM(FORMULA, data, priors={"sd[g, arm[z]]": pm.HalfNormal.dist(2)}).priors  # noqa: B018


USER_SET = {
    "sd[g, Intercept:arm[a]]",
    "sd[g, x:arm[a]]",
    "sd[g, x:arm[b]]",
    "cor[g, Intercept:arm[c], x:arm[c]]",
}

# --- after the fit ------------------------------------------------------------------------


def test_a_level_has_the_coefficients_of_its_stratum(posterior, reml):
    dataset = posterior.data["posterior"].dataset
    assert dataset["u_g"].dims == ("chain", "draw", "g_effect", "g")
    assert list(dataset["g_effect"].values) == ["Intercept", "x"]
    assert list(dataset["sd_g"]["g_coef"].values[:2]) == ["Intercept:arm[a]", "x:arm[a]"]
    for fit in (posterior, reml):
        assert fit.ranef()["g"].shape == fit.ranef_sd()["g"].shape == (36, 2)
        assert list(fit.coef()["g"].columns) == list(fit.design.coefs)
        assert len(fit.tidy("ran_vals")) == 36 * 2 + 5
        assert np.all(fit.ranef_sd()["g"] > 0)


def test_known_levels_keep_their_stratum_and_new_ones_need_one(posterior):
    new = pd.DataFrame({"x": 4.0, "arm": list("abb"), "g": ["g00", "g01", "new"], "h": 0})
    conditional = posterior.predict(new[:2], target="conditional")
    means = posterior.ranef()
    u = means["g"].loc[["g00", "g01"]].to_numpy() @ [1.0, 4.0] + means["h"].iloc[0, 0]
    average = posterior.predict(new[:2], target="average")
    assert conditional["mean"].to_numpy() == pytest.approx(average["mean"] + u, abs=1e-8)
    drawn = posterior.predict(new, target="new", random_seed=1)
    assert drawn["sd"].iloc[2] > 2 * drawn["sd"].iloc[1]
    for frame, words in (
        (new.assign(arm=list("bbb")), r"was in arm\[a\] .* and is in arm\[b\] here"),
        (new.assign(g="new"), "several in `new`"),
        (new.drop(columns="arm"), "arm"),
    ):
        with pytest.raises((DataError, FormulaError), match=words):
            posterior.predict(frame, target="new")


def test_observed_rows_of_a_new_level_tell_of_it(data):
    fit = blm.LMM("y ~ x + (1 | g, by=arm)", data).reml()
    new = pd.DataFrame({"x": [4.0], "arm": ["b"], "g": ["new"]})
    far = new.assign(y=fit.predict(new, target="average")["estimate"] + 10.0)
    found = fit.predict(new, target="new", observed=far)["estimate"].iloc[0]
    variance = fit.sds["g"].iloc[1] ** 2
    shrunk = 10.0 * variance / (variance + fit.sigma**2)
    assert found - far["y"].iloc[0] + 10.0 == pytest.approx(shrunk, rel=0.1)  # beta moves too
    with pytest.raises(DataError, match="several in `new`"):
        fit.predict(new, target="new", observed=far.assign(arm="a"))


def test_a_stratum_that_is_new_has_no_matrix(slopes):
    fit = slopes
    new = pd.DataFrame({"x": [4.0], "arm": ["z"], "g": ["new"]})
    with pytest.raises(DataError, match="none is known for arm = `z`"):
        fit.predict(new, target="new")
    assert np.isfinite(fit.predict(new[["x"]], target="average")["estimate"].iloc[0])


def test_new_levels_have_the_variance_of_their_stratum(slopes):
    fit = slopes
    new = pd.DataFrame({"x": 4.0, "arm": list("abc"), "g": list("pqr")})
    found = fit.predict(new, target="population", kind="linpred", uncertainty="plugin")
    sigma = fit.G(sparse=True).toarray()
    first = [list(fit.design.random[0].levels).index(name) for name in ("g00", "g01", "g02")]
    z = np.array([1.0, 4.0])
    blocks = [sigma[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in first]
    vcov = fit.vcov.to_numpy()
    expected = [np.sqrt(z @ (b + vcov) @ z) for b in blocks]
    assert found["std_error"].to_numpy() == pytest.approx(expected, rel=1e-8)


def test_icc_by_stratum(slopes):
    fit = slopes
    found = fit.icc(at={"arm": list("abc"), "x": [4.0] * 3})["estimate"].to_numpy()
    z = np.array([1.0, 4.0])
    sds, cors = fit.sds["g"].to_numpy(), fit.corrs["g"].to_numpy()
    matrix = sds[:, None] * cors * sds
    own = np.array([z @ matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] @ z for i in range(3)])
    assert found == pytest.approx(own / (own + fit.sigma**2), rel=1e-10)
    with pytest.raises(DataError, match="arm"):
        fit.icc(at={"x": [4.0]})


def test_a_file_keeps_strata(posterior, tmp_path):
    posterior.save(tmp_path / "fit.nc")
    loaded = blm.load(tmp_path / "fit.nc")
    assert loaded.ranef()["g"].equals(posterior.ranef()["g"])
    new = pd.DataFrame({"x": [4.0], "arm": ["c"], "g": ["new"], "h": [0]})
    one, two = (fit.predict(new, target="new", random_seed=2) for fit in (posterior, loaded))
    assert one.equals(two)
    assert loaded.priors.strata == posterior.priors.strata


def test_pictures_and_checks_by_stratum(posterior, reml):
    found = reml.check.singularity()
    groups = found.pca.index.get_level_values("group").unique()
    assert list(groups) == ["g, arm[a]", "g, arm[b]", "g, arm[c]", "h"]
    posterior.plot.shrinkage("g")
    posterior.plot.caterpillar("g", coefs="x")
    words = posterior.methods_paragraph()
    assert "coefficients of x by g (36 levels), correlated with each other, with a" in words
    assert "covariance matrix for each level of arm" in words


def test_leaving_out_rows_and_levels(data):
    posterior = blm.LMM("y ~ x + (1 | g, by=arm)", data).fit(draws=100, random_seed=1)
    assert np.isfinite(posterior.loo().elpd)
    assert np.isfinite(posterior.loo(by="g").elpd)


def test_models_with_and_without_strata_are_nested(data, slopes):
    table = blm.lrt(blm.LMM("y ~ x + (x | g)", data).reml(), slopes)
    assert table["df"].iloc[-1] == 6
    formulas = ["y ~ x + (0 + C(h) | g)", "y ~ x + homcs(0 + C(h) | g, by=arm)"]
    with pytest.raises(ValueError, match="random"):
        blm.lrt(*(blm.LMM(formula, data).reml() for formula in formulas))


def test_simulation_and_bootstrap(data):
    fit = blm.LMM("y ~ x + (1 | g, by=arm)", data).reml()
    drawn = np.asarray(fit.simulate(400, random_seed=1))
    between = pd.DataFrame(drawn).groupby(data["g"].to_numpy()).mean()
    arms = data.groupby("g")["arm"].first()
    spread = between.to_numpy()[arms == "b"].var(axis=0, ddof=1).mean()
    expected = fit.sds["g"].iloc[1] ** 2 + fit.sigma**2 / 6
    x = data.groupby("g")["x"].mean()[arms == "b"].var() * fit.beta["x"] ** 2
    assert spread == pytest.approx(expected + x, rel=0.1)
    assert fit.bootstrap(3, random_seed=1).shape[0] == 3


@whole
@pytest.mark.slow
@pytest.mark.parametrize("form", some(1, ["noncentered", "centered"]))
def test_nuts_agrees_with_the_collapsed_sampler(data, form):
    model = blm.LMM("y ~ x + (1 | g, by=arm)", data)
    one = model.fit(draws=1500, random_seed=1, method="collapsed")
    two = model.fit(method="nuts", form=form, draws=1000, random_seed=1, progressbar=False)
    first, second = one.summary(), two.summary()
    both = np.hypot(first["mcse_mean"], second["mcse_mean"])
    assert (np.abs(first["mean"] - second["mean"]) / both).max() < 4.5
    assert two.data["posterior"]["u_g"].dims == one.data["posterior"]["u_g"].dims
    gap = (one.ranef()["g"] - two.ranef()["g"]).abs() / one.ranef_sd()["g"]
    assert gap.max().max() < 0.2
