"""Covariance patterns of random effects, from the formula to posteriors."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pymc as pm
import pytest
from dense import case_of
from pytensor.compile.mode import Mode
from reference_data import FOLDER, load_fit, load_reference_data
from scipy.stats import multivariate_normal
from slow_cases import slow, some, whole

import bayeslmm as blm
from bayeslmm.exceptions import DataError, FormulaError, PriorError
from bayeslmm.formula.grammar import parse
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.priors.families import LKJ, Uniform

PLAIN = Mode(linker="py", optimizer=None)  # nothing to compile
PATTERNS = ("homdiag", "cs", "homcs", "ar1", "hetar1", "toep", "homtoep")

# --- formulas -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "structure", "correlated"),
    [
        ("us(x | g)", "us", True),
        ("diag(x | g)", "us", False),
        ("diag(x | g, hom=True)", "homdiag", True),
        ("homdiag(x | g)", "homdiag", True),
        ("cs(0 + f | g)", "cs", True),
        ("cs(0 + f | g, hom=True)", "homcs", True),
        ("cs(0 + f | g, hom = False)", "cs", True),
        ("ar1(0 + f | g)", "ar1", True),
        ("ar1(0 + f | g, hom=False)", "hetar1", True),
        ("hetar1(0 + f | g)", "hetar1", True),
        ("toep(0+f|g)", "toep", True),
        ("toep(0 + `a|b, c` | g, hom=True)", "homtoep", True),
        ("homtoep(0 + Q('a | b') | g)", "homtoep", True),
    ],
)
def test_structures_are_read(term, structure, correlated):
    (found,) = parse(f"y ~ z + {term}").random
    assert (found.structure, found.correlated) == (structure, correlated)
    assert found.source == term
    assert parse(f"y ~ z + {term}").fixed == "1 + z"


def test_functions_of_the_same_name_stay_functions():
    found = parse("y ~ cs(x, df=4) + (1 | g)")
    assert found.fixed == "1 + cs(x, df=4)"
    assert [term.structure for term in parse("y ~ cs(0 + f | a/b)").random] == ["cs", "cs"]


@pytest.mark.parametrize(
    ("formula", "words", "marked"),
    [
        ("y ~ cs(0 + f | g, hmo=True)", "is no argument of cs()", "hmo=True"),
        ("y ~ cs(0 + f | g, hom=1)", "hom=True, for one variance", "hom=1"),
        ("y ~ cs(0 + f | g, hom=True, hom=True)", "is no argument", "hom=True"),
        ("y ~ us(x | g, hom=True)", "every coefficient has a variance", "hom=True"),
        ("y ~ homcs(0 + f | g, hom=True)", "its name says", "hom=True"),
        ("y ~ cs(0 + f | g,)", "nothing after this comma", ","),
        ("y ~ cs(0 + f || g)", "cs() has one bar", "||"),
        ("y ~ toepl(0 + f | g)", "homtoep, toep, us", "toepl"),
        ("y ~ cs(0 + foo(f) | g)", "Unknown function `foo`", "foo"),
        ("y ~ cs( | g)", "left of this bar is empty", "|"),
        ("y ~ x:cs(x | g)", "cannot be part of an interaction", "cs(x | g)"),
        ("y ~ cs(cs(x | g) | g)", "cannot be nested", "cs(x | g)"),
        ("y ~ cs(x | g) + (x | g)", "is repeated on grouping factor", "(x | g)"),
        ("y ~ ar1(0 + f | g", "never closed", "ar1(0 + f | g"),
    ],
)
def test_structures_that_cannot_be_read(formula, words, marked):
    with pytest.raises(FormulaError) as caught:
        parse(formula)
    error = caught.value
    assert words in error.message
    assert formula[error.start : error.end] == marked


# --- designs ------------------------------------------------------------------------------


def longitudinal(levels=15, occasions=4, repeats=2, seed=1, rho=0.7, sd=2.0):
    """Responses whose random effects by occasion follow an AR(1)."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(levels), occasions * repeats)
    t = np.tile(np.repeat(np.arange(occasions), repeats), levels)
    lag = np.abs(np.subtract.outer(np.arange(occasions), np.arange(occasions)))
    u = rng.multivariate_normal(np.zeros(occasions), sd**2 * rho**lag, levels)
    y = 1.0 + 0.5 * t + u[g, t] + rng.normal(size=len(g))
    f = np.array(["a", "b", "c", "d", "e", "f"])[t]
    return pd.DataFrame({"y": y, "g": g.astype(str), "t": t, "f": f, "x": rng.normal(size=len(y))})


@pytest.fixture(scope="module")
def data():
    return longitudinal()


@pytest.fixture(scope="module")
def machines():
    return load_reference_data("Machines")


def test_a_design_prints_its_structures(data):
    design = blm.LMM("y ~ t + (1 | g) + cs(0 + f | g, hom=True)", data).design
    assert "(Intercept) + homcs(f[a], f[b], f[c], f[d])" in repr(design)
    assert design.random[0].kinds == ("us", "homcs")


def test_whole_numbers_are_occasions_and_those_between_are_too(data):
    sparse = data[data["t"] != 2]
    random = blm.LMM("y ~ t + ar1(0 + t | g)", sparse).design.random[0]
    assert random.coefs == ("t[0]", "t[1]", "t[2]", "t[3]")
    assert not random.Z[:, 2].any()
    model = blm.LMM("y ~ t + ar1(0 + t | g)", sparse)
    corr = model.reml().corrs["g"].to_numpy()
    assert corr[3, 1] == pytest.approx(corr[1, 0] ** 2, abs=1e-12)
    between = model.reml().predict(sparse.head(4).assign(t=2), uncertainty="plugin")
    assert np.isfinite(between.iloc[:, 0].to_numpy(dtype=float)).all()
    with pytest.raises(DataError, match=r"levels that the model has not seen: `9\.0`"):
        model.reml().predict(sparse.head(2).assign(t=9))


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("y ~ t + ar1(f | g)", "needs a coefficient for each occasion"),
        ("y ~ t + toep(0 + f:log(w) | g)", "needs a coefficient for each occasion"),
        ("y ~ t + cs(1 | g)", "has one coefficient, Intercept"),
        ("y ~ t + homdiag(0 + x | g)", "has one coefficient, x"),
    ],
)
def test_structures_that_need_other_coefficients(data, formula, words):
    with pytest.raises(FormulaError, match=words) as caught:
        blm.LMM(formula, data.assign(w=np.exp(data["x"])))
    assert formula[caught.value.start : caught.value.end] == formula[8:]


def test_occasions_that_are_no_whole_numbers(data):
    with pytest.raises(DataError, match=r"such as 0\.49.*: the occasions of"):
        blm.LMM("y ~ 1 + ar1(x | g)", data)
    with pytest.raises(DataError, match=r"such as 0\.5: the occasions of"):
        blm.LMM("y ~ 1 + ar1(0 + t | g)", data.assign(t=data["t"] / 2))
    with pytest.raises(DataError, match="at most 200 are allowed"):
        blm.LMM("y ~ 1 + ar1(0 + t | g)", data.assign(t=data["t"] * 1000))
    with pytest.raises(FormulaError, match="needs a coefficient for each occasion"):
        blm.LMM("y ~ x + ar1(0 + x + f | g)", data.assign(x=1.0 * (data["f"] == "a")))


# --- the density against dense algebra -------------------------------------------------------


def dense_log_density(design, priors, x):
    """Log p(y | covariance parameters), beta integrated out under its normal prior."""
    point = priors.coordinates.points(x[None])
    case, sigma = case_of(design), float(point.sigma[0])
    covariance = sigma**2 * case.covariance([t[0] for t in point.factors])
    prior = np.linalg.inv(priors.beta_root.T @ priors.beta_root)
    covariance = covariance + case.X @ prior @ case.X.T
    return multivariate_normal(case.X @ priors.beta_mean, covariance).logpdf(case.y)


@pytest.mark.parametrize(
    "term",
    [*(f"{kind}(0 + f | g)" for kind in PATTERNS), "(1 | g) + cs(0 + f | g) + homdiag(0 + h | g)"],
)
def test_log_posterior_equals_dense_algebra(term):
    data = longitudinal(levels=6, occasions=3)
    data["h"] = np.where(data["x"] > 0, "p", "q")
    model = blm.LMM(f"y ~ t + {term}", data)
    plan, priors = model.model.system, model.priors
    coordinates = priors.coordinates
    x = np.random.default_rng(2).normal(0.0, 0.6, coordinates.size)
    value, gradient = log_posterior_unconstrained(plan, priors, x)
    points = coordinates.points(x[None])
    expected = dense_log_density(model.design, priors, x) + coordinates.log_jacobian(x[None])[0]
    expected += priors.sigma.logpdf(points.sigma)[0] + priors.log_cor(0, points.chols[0])[0]
    scales = np.exp(x[coordinates.sds(0)])
    expected += sum(p.logpdf(s) for p, s in zip(priors.sd[0], scales, strict=True))
    assert value == pytest.approx(expected, abs=1e-8)
    step = 1e-5 * np.eye(len(x))
    ahead, behind = (
        [log_posterior_unconstrained(plan, priors, x + sign * s)[0] for s in step]
        for sign in (1.0, -1.0)
    )
    difference = (np.array(ahead) - behind) / 2e-5
    assert gradient == pytest.approx(difference, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", PATTERNS)
def test_reml_is_the_maximum_of_the_dense_criterion(data, kind):
    model = blm.LMM(f"y ~ t + {kind}(0 + f | g)", data)
    fit = model.reml().fit
    case, theta = case_of(model.design), fit.plan.theta

    def criterion(x):
        factors = [
            a @ t for a, t in zip(fit.plan.products.basis.random, theta.factors(x), strict=True)
        ]
        inverse = np.linalg.inv(case.covariance(factors))
        information = case.X.T @ inverse @ case.X
        rest = case.y - case.X @ np.linalg.solve(information, case.X.T @ inverse @ case.y)
        n, p = case.X.shape
        rss = rest @ inverse @ rest
        logs = np.linalg.slogdet(information)[1] - np.linalg.slogdet(inverse)[1]
        return logs + (n - p) * (1.0 + np.log(2.0 * np.pi * rss / (n - p)))

    at = fit.optimum.x
    assert fit.optimum.converged
    assert fit.criterion == pytest.approx(criterion(at), abs=1e-8)
    steps = 1e-4 * np.eye(len(at))
    slope = [(criterion(at + s) - criterion(at - s)) / 2e-4 for s in steps]
    assert slope == pytest.approx(np.zeros(len(at)), abs=1e-5)


# --- against other software -------------------------------------------------------------------

R_FITS = json.loads((FOLDER / "patterns" / "patterns.json").read_text(encoding="utf-8"))["fits"]

# glmmTMB's optimiser stops at relative changes of about 1e-6 of its parameters.
CRITERION, ESTIMATE = 1e-7, 5e-6


@pytest.mark.parametrize("name", R_FITS)
def test_estimates_are_those_of_r(name):
    expected = R_FITS[name]
    source, formula = name.split(": ", 1)
    estimate = blm.LMM(formula, load_reference_data(source)).reml()
    (group,) = estimate.sds
    assert estimate.criterion == pytest.approx(expected["criterion"], abs=CRITERION)
    assert estimate.sigma == pytest.approx(expected["sigma"], rel=ESTIMATE)
    # nlme's occasions are the ages that occur, ours every year: each other one
    every = len(estimate.sds[group]) // len(expected["sds"]) + (source == "Orthodont")
    sds = estimate.sds[group].to_numpy()[::every]
    corr = estimate.corrs[group].to_numpy()[::every, ::every]
    assert sds == pytest.approx(expected["sds"], rel=ESTIMATE)
    assert corr == pytest.approx(np.array(expected["correlation"]), abs=ESTIMATE)


def test_one_variance_and_one_correlation_are_nested_intercepts(machines):
    nested = load_fit("Machines__nested_reml")
    estimate = blm.LMM("score ~ Machine + cs(0 + Machine | Worker, hom=True)", machines).reml()
    assert estimate.criterion == pytest.approx(nested["criterion"]["value"], abs=CRITERION)


def test_a_larger_pattern_fits_better(machines):
    def criterion(kind):
        return blm.LMM(f"score ~ Machine + {kind}(0 + Machine | Worker)", machines).reml().criterion

    found = {kind: criterion(kind) for kind in (*PATTERNS, "us", "diag")}
    smaller = {
        "homdiag": ("homcs", "ar1", "diag"),
        "homcs": ("cs", "homtoep"),
        "ar1": ("hetar1", "homtoep"),
        "homtoep": ("toep",),
        "diag": ("cs", "hetar1"),
        "cs": ("toep",),
        "hetar1": ("toep",),
        "toep": ("us",),
    }
    for small, larger in smaller.items():
        for large in larger:
            assert found[large] < found[small] + 1e-6, (small, large)


# --- singular data ------------------------------------------------------------------------------


def singular_data(root):
    rng = np.random.default_rng(3)
    frame = longitudinal(levels=20, repeats=3, rho=0.0)
    u = rng.normal(size=(20, len(root))) @ root.T
    levels = frame["g"].astype(int)
    return frame.assign(y=1.0 + u[levels, frame["t"]] + rng.normal(size=len(frame)))


@pytest.mark.parametrize("kind", ["cs", "homcs", "ar1", "hetar1", "toep", "homtoep"])
def test_a_correlation_of_one_is_an_ordinary_estimate(kind):
    data = singular_data(np.pad(np.full((4, 1), 2.0), ((0, 0), (0, 3))))
    data["y"] -= data.groupby(["g", "t"])["y"].transform("mean")
    data["y"] += 2.0 * data["g"].astype(int)  # no variation between the occasions of a level
    estimate = blm.LMM(f"y ~ t + {kind}(0 + f | g)", data).reml()
    assert estimate.converged and estimate.singular
    assert estimate.corrs["g"].to_numpy() == pytest.approx(1.0, abs=1e-9)
    assert "linearly dependent" in str(estimate)
    intercepts = blm.LMM("y ~ t + (1 | g)", data).reml()
    assert estimate.criterion <= intercepts.criterion + 1e-6
    checked = estimate.check.singularity().table
    assert checked["at_boundary"].filter(like="cor[").all()


def test_standard_deviations_of_zero():
    data = singular_data(np.zeros((4, 4)))
    data["y"] -= data.groupby(["g", "t"])["y"].transform("mean")
    estimate = blm.LMM("y ~ t + homcs(0 + f | g)", data).reml()
    assert estimate.singular and estimate.converged
    assert estimate.sds["g"].to_numpy() == pytest.approx(0.0, abs=1e-12)
    assert "sd[g] is estimated at zero." in str(estimate)
    assert estimate.summary()["estimate"].isna().sum() == 1  # the correlation


# --- priors ---------------------------------------------------------------------------------------


def test_default_priors_are_in_the_columns_of_the_user(machines):
    model = blm.LMM("score ~ Machine + homcs(0 + Machine | Worker)", machines)
    records = model.priors.records()
    s_y = float(machines["score"].std())
    assert list(records)[-3:] == ["sd[Worker]", "cor[Worker]", "sigma"]
    assert records["sd[Worker]"].sigma == pytest.approx(s_y)
    assert records["cor[Worker]"] == Uniform(-0.5, 1.0)
    assert np.array_equal(model.priors.mixing[0], np.eye(3))
    slopes = blm.LMM("y ~ t + cs(x | g)", longitudinal()).priors
    moved = blm.LMM("y ~ t + cs(x | g)", longitudinal().assign(x=lambda d: 100 * d["x"])).priors
    assert slopes.sd[0][1].sigma == pytest.approx(100 * moved.sd[0][1].sigma)


def test_priors_of_the_user(machines):
    formula = "score ~ Machine + (1 | Worker) + cs(0 + Machine | Worker)"
    given = {
        "cor[Worker]": pm.Uniform.dist(0, 1),
        "sd[Worker]": pm.HalfNormal.dist(5),
        "sd[Worker, Machine[A]]": pm.Gamma.dist(2, 1),
    }
    records = blm.LMM(formula, machines, priors=given).priors.records()
    assert str(records["cor[Worker]"]).startswith("Uniform(0, 1")
    assert str(records["sd[Worker, Intercept]"]) == "HalfNormal(5)"
    assert str(records["sd[Worker, Machine[A]]"]) == "Gamma(2, 1)"
    truncated = pm.TruncatedNormal.dist(0, 0.5, lower=-0.5, upper=1)
    model = blm.LMM(formula, machines, priors={"cor[Worker]": truncated})
    draws = model.priors.sample(np.random.default_rng(1), 200)
    cor = draws.chols[0] @ draws.chols[0].swapaxes(1, 2)
    assert np.all((cor[:, 2, 1] > -0.5) & (cor[:, 2, 1] < 1.0))
    assert cor[:, 2, 1] == pytest.approx(cor[:, 3, 1], abs=1e-12)
    posterior = model.fit(draws=200, chains=2, random_seed=1)
    assert posterior.data.attrs["method"] == "collapsed"
    flat = blm.LMM(formula, machines, priors="flat").priors.records()
    assert flat["cor[Worker]"] == Uniform(-0.5, 1.0)


@pytest.mark.parametrize(
    ("kind", "key", "prior", "words"),
    [
        ("cs", "cor[Worker]", LKJ(2.0), r"cs\(\) has 1 parameter: give the correlation"),
        ("toep", "cor[Worker]", LKJ(2.0), "give each partial autocorrelation a distribution"),
        ("ar1", "cor[Worker]", pm.Normal.dist(0, 1), r"outside of \(-1, 1\)"),
        ("cs", "cor[Worker]", pm.Uniform.dist(-1, 1), r"lower=-0.5, upper=1"),
        ("homcs", "sd[Worker, Machine[A]]", pm.HalfNormal.dist(1), r"'sd\[Worker\]'"),
        ("homdiag", "cor[Worker]", Uniform(0, 1), "There is no parameter"),
    ],
)
def test_priors_that_do_not_fit(machines, kind, key, prior, words):
    with pytest.raises(PriorError, match=words):
        blm.LMM(f"score ~ Machine + {kind}(0 + Machine | Worker)", machines, priors={key: prior})


def test_the_mode_under_flat_priors_is_reml(machines):
    model = blm.LMM("score ~ Machine + toep(0 + Machine | Worker)", machines, priors="flat")
    assert model.map().sigma == model.reml().sigma
    proper = blm.LMM("score ~ Machine + toep(0 + Machine | Worker)", machines)
    mode = proper.map()
    assert mode.converged
    fit = mode.fit
    x = proper.priors.coordinates.vector(proper.priors.coordinates.to_working(blm_points(fit)))[0]
    plan = proper.model.system
    slope = log_posterior_unconstrained(plan, proper.priors, x, jacobian=False)[1]
    assert slope == pytest.approx(np.zeros(len(x)), abs=1e-4)


def blm_points(fit):
    from bayeslmm.sampling.joint_draws import points_of_fits

    return points_of_fits([fit])


# --- the model in PyMC, posteriors ---------------------------------------------------------------


@pytest.mark.parametrize(
    "term", ["cs(0 + Machine | Worker)", slow("homtoep(0 + Machine | Worker)")]
)
def test_the_density_in_pymc_is_ours(machines, term):
    """Differences of log densities between points, in PyMC's coordinates and in ours."""
    model = blm.LMM(f"score ~ Machine + {term}", machines)
    marginal = model.pymc("marginal")
    logp = marginal.compile_logp(jacobian=False, mode=PLAIN)
    priors, plan = model.priors, model.model.system
    structure = priors.coordinates.structures[0]
    found, expected = [], []
    for seed in range(3):
        x = np.random.default_rng(seed).normal(1.0, 0.4, priors.coordinates.size)
        points = priors.coordinates.points(x[None])
        parameters = structure.parameters(points.chols[0])[0]
        values = {"sigma": points.sigma[0], "_chol_Worker__0": None}
        values |= {f"_chol_Worker__0_{i}": value for i, value in enumerate(parameters)}
        values |= {"sd_Worker": points.sds[0][0], "_sd_Worker_0": points.sds[0][0, 0]}
        start = marginal.initial_point()
        natural = {rv.name: values[rv.name] for rv in marginal.free_RVs}
        for rv in marginal.free_RVs:
            value = marginal.rvs_to_values[rv]
            transform = marginal.rvs_to_transforms[rv]
            start[value.name] = transform.forward(
                np.asarray(natural[rv.name]), *rv.owner.inputs
            ).eval(mode=PLAIN)
        found.append(float(logp(start)))
        expected.append(log_posterior_unconstrained(plan, priors, x, jacobian=False)[0])
    assert np.diff(found) == pytest.approx(np.diff(expected), abs=1e-7)


STAN = json.loads((FOLDER / "patterns" / "Machines__cs.json").read_text(encoding="utf-8"))


def compare_with_stan(posterior, reference):
    """Largest difference of means and sds in combined Monte Carlo standard errors."""
    import arviz as az

    draws = posterior.data["posterior"].dataset
    found = {"rho[Worker]": draws["cor_Worker"][..., 1, 0], "sigma": draws["sigma"]}
    for i, name in enumerate("ABC"):
        found[f"sd[Worker,Machine{name}]"] = draws["sd_Worker"][..., i]
        for level in draws["Worker"].values:
            own = draws["u_Worker"].sel(Worker=level)[..., i]
            found[f"u[Worker,{level},Machine{name}]"] = own
    for i, column in enumerate(reference["X_columns"]):
        found[f"beta[{column}]"] = draws["beta"][..., i]
    worst = 0.0
    for name, values in reference["parameters"].items():
        ours = found[name].to_numpy()
        for statistic, value in (("mean", ours.mean()), ("sd", ours.std(ddof=1))):
            error = np.hypot(az.mcse(ours, method=statistic), values[f"mcse_{statistic}"])
            worst = max(worst, abs(value - values[statistic]) / error)
    return worst


MAX_Z = 4.0  # combined Monte Carlo standard errors; the largest of 52 values counts


@pytest.mark.reference
def test_the_posterior_is_that_of_stan(machines):
    posterior = blm.LMM(STAN["formula"], machines).fit(draws=2000, random_seed=1)
    assert posterior.data.attrs["method"] == "collapsed"
    assert compare_with_stan(posterior, STAN) < MAX_Z
    exact = STAN["crosscheck"]
    both = np.hypot(posterior.log_evidence.error, exact["log_marginal_likelihood_se"])
    gap = float(posterior.log_evidence) - exact["log_marginal_likelihood"]
    assert abs(gap) < MAX_Z * both


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("form", some(0, ["marginal", "noncentered", "centered"]))
def test_nuts_agrees_with_stan(machines, form):
    posterior = blm.LMM(STAN["formula"], machines).fit(
        method="nuts", form=form, draws=1500, random_seed=2, progressbar=False, target_accept=0.98
    )
    assert compare_with_stan(posterior, STAN) < MAX_Z + 1.0


@whole
@pytest.mark.slow
@pytest.mark.parametrize("kind", some(1, ["ar1", "toep", "homdiag"]))
def test_nuts_agrees_with_the_collapsed_sampler(kind):
    data = longitudinal(levels=25)
    model = blm.LMM(
        f"y ~ t + (1 | g) + {kind}(0 + f | g)"
        if kind == "homdiag"
        else f"y ~ t + {kind}(0 + f | g)",
        data,
    )
    one = model.fit(draws=2000, random_seed=1)
    two = model.fit(method="nuts", form="marginal", draws=1500, random_seed=1, progressbar=False)
    assert one.data.attrs["method"] == "collapsed"
    first, second = one.summary(), two.summary()
    both = np.hypot(first["mcse_mean"], second["mcse_mean"])
    assert (np.abs(first["mean"] - second["mean"]) / both).max() < MAX_Z


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(0, ["cs", "ar1"]))
def test_ranks_of_true_parameters_are_uniform(kind):
    """Simulation-based calibration: data from draws of the prior, ranks in their posteriors."""
    data = longitudinal(levels=12, occasions=3)
    proper = {"sd": pm.HalfNormal.dist(1), "sigma": pm.HalfNormal.dist(1), "beta": pm.Normal.dist()}
    proper["Intercept"] = pm.Normal.dist(0, 1)
    model = blm.LMM(f"y ~ t + {kind}(0 + f | g)", data, priors=proper)
    design, rng = model.design, np.random.default_rng(11)
    truth = model.priors.sample(rng, 100)
    roots, ranks = truth.roots[0], []
    for i in range(100):
        u = rng.normal(size=(12, 3)) @ roots[i].T
        random = np.sum(design.random[0].Z * u[design.random[0].codes], axis=1)
        y = design.X @ truth.beta[i] + random + truth.sigma[i] * rng.normal(size=design.n)
        posterior = blm.LMM(f"y ~ t + {kind}(0 + f | g)", data.assign(y=y), priors=proper).fit(
            draws=100, chains=1, random_seed=i
        )
        draws = posterior.data["posterior"].dataset
        omega = truth.chols[0][i] @ truth.chols[0][i].T
        pairs = [
            (draws["cor_g"][0, :, 1, 0], omega[1, 0]),
            (draws["sd_g"][0, :, 0], truth.sds[0][i, 0]),
            (draws["sigma"][0], truth.sigma[i]),
        ]
        ranks.append([float(np.mean(d.to_numpy() < value)) for d, value in pairs])
    for column in np.array(ranks).T:
        counts = np.histogram(column, np.linspace(0.0, 1.0, 6))[0]
        assert np.sum((counts - 20) ** 2 / 20.0) < 18.5  # chi-squared, 4 df, 0.1 %


# --- what fits are asked afterwards ---------------------------------------------------------------


@pytest.fixture(scope="module")
def posterior(machines):
    formula = "score ~ Machine + cs(0 + Machine | Worker)"
    return blm.LMM(formula, machines).fit(draws=200, chains=2, random_seed=1)


def test_tables_have_a_row_for_each_distinct_parameter(machines, posterior):
    labels = list(posterior.summary().index)
    assert labels[3:] == [*(f"sd[Worker, Machine[{m}]]" for m in "ABC"), "cor[Worker]", "sigma"]
    one = blm.LMM("score ~ Machine + homtoep(0 + Machine | Worker)", machines).reml()
    assert list(one.summary().index[3:]) == [
        "sd[Worker]",
        "cor[Worker, Machine[A], Machine[B]]",
        "cor[Worker, Machine[A], Machine[C]]",
        "sigma",
    ]
    two = blm.LMM("score ~ Machine + (1 | Worker) + homdiag(0 + Machine | Worker)", machines)
    assert list(two.reml().summary().index[3:]) == [
        "sd[Worker, Intercept]",
        "sd[Worker, Machine[A], Machine[B], Machine[C]]",
        "sigma",
    ]
    same = blm.LMM("score ~ Machine + cs(0 + Machine | Worker)", machines).reml()
    compared = blm.compare_reml(posterior, same)
    assert "cor[Worker]" in compared.index


def test_matrices_and_names_of_the_posterior(posterior):
    draws = posterior.data["posterior"].dataset
    assert draws["sd_Worker"].dims[2:] == ("Worker_coef",)
    omega = draws["cor_Worker"].to_numpy()
    for i, j in combinations(range(3), 2):
        assert omega[..., i, j] == pytest.approx(omega[..., 1, 0], abs=1e-12)
    (G,) = posterior.G().values() if isinstance(posterior.G(), dict) else (posterior.G(),)
    assert np.linalg.eigvalsh(np.asarray(G))[0] > 0


def test_a_posterior_is_saved_and_loaded(posterior, tmp_path):
    posterior.save(tmp_path / "cs.nc")
    loaded = blm.load(tmp_path / "cs.nc")
    assert loaded.model.design.random[0].kinds == ("cs",)
    assert loaded.model.priors.records() == posterior.model.priors.records()
    pd.testing.assert_frame_equal(loaded.summary(), posterior.summary())
    assert loaded.check.singularity().table["support"].notna().all()


def test_the_methods_paragraph_says_the_structure(machines, posterior):
    assert "compound symmetric with a variance for each" in posterior.methods_paragraph()
    formula = "score ~ Machine + (1 | Worker) + ar1(0 + Machine | Worker)"
    text = blm.LMM(formula, machines).reml().methods_paragraph()
    assert "{Machine[A], Machine[B], Machine[C]} first-order autoregressive with one" in text
    assert "{Intercept} with a variance of its own" in text


@pytest.mark.parametrize("kind", [slow("cs"), slow("homcs"), "hetar1", "homtoep"])
def test_profiles_hold_the_parameter_at_its_limit(data, kind):
    """The deviance with a parameter fixed at a limit, minimised anew, has risen by 3.84."""
    from scipy.optimize import minimize

    from bayeslmm.likelihood.factorise import factorise_working
    from bayeslmm.likelihood.marginal import reml_criterion

    estimate = blm.LMM(f"y ~ t + {kind}(0 + f | g)", data).reml()
    limits = estimate.confint(method="profile", kinds=("cor",))
    fit, theta = estimate.fit, estimate.fit.plan.theta
    structure = theta.structures[0]
    label = limits.index[-1]
    row, col = structure.pairs[-1]
    for limit in limits.loc[label, ["conf_low", "conf_high"]]:

        def criterion(x):
            return reml_criterion(factorise_working(fit.plan, theta.factors(x)))

        def gap(x, limit=limit):
            t = theta.factors(x)[0]
            t = t / np.linalg.norm(t, axis=1)[:, None]
            return 10.0 * (t[row] @ t[col] - limit)

        found = minimize(
            criterion,
            fit.optimum.x,
            method="SLSQP",
            constraints={"type": "eq", "fun": gap},
            options={"maxiter": 500, "ftol": 1e-9},
        )
        assert found.success and abs(gap(found.x)) < 1e-6
        assert found.fun - fit.criterion == pytest.approx(3.8415, abs=0.02)


def test_likelihood_ratio_tests_know_what_is_nested(machines):
    def fit(term):
        return blm.LMM(f"score ~ Machine + {term}", machines).ml()

    table = blm.lrt(fit("homcs(0 + Machine | Worker)"), fit("cs(0 + Machine | Worker)"))
    assert len(table) == 2
    blm.lrt(fit("homdiag(0 + Machine | Worker)"), fit("diag(0 + Machine | Worker)"))
    blm.lrt(fit("diag(0 + Machine | Worker)"), fit("hetar1(0 + Machine | Worker)"))
    with pytest.raises(ValueError, match="nested"):
        blm.lrt(fit("homcs(0 + Machine | Worker)"), fit("hetar1(0 + Machine | Worker)"))


def test_a_term_is_replaced_by_one_with_a_structure(machines):
    model = blm.LMM("score ~ Machine + cs(0 + Machine | Worker)", machines)
    changed = model.update("~ . - cs(0 + Machine | Worker) + ar1(0 + Machine | Worker)")
    assert changed.design.random[0].kinds == ("ar1",)
    with pytest.raises(FormulaError, match="There is no random-effects term"):
        model.update("~ . - homcs(0 + Machine | Worker) + (1 | Worker)")
