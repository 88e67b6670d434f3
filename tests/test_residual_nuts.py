"""PyMC models and NUTS where residuals have a structure: dense algebra, collapsed draws."""

import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytest
import xarray as xr
from pytensor.compile.mode import Mode
from scipy import stats
from slow_cases import one_in, slow, some, whole
from test_nuts import quick
from test_residual_likelihood import differences, relative

import bayeslmm as blm
from bayeslmm.covariance.distance import OverDistance
from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.families import LKJ
from bayeslmm.sampling import engine, nuts
from bayeslmm.sampling.model import build_model

PLAIN = Mode(linker="py", optimizer=None)  # nothing to compile
# Two orders of the same arithmetic; matrices of condition up to 1e4.
EXACT = 1e-8
# Five-point differences of the density itself, which is about 100.
SLOPE = 1e-6


def frame(seed=4, groups=10, occasions=4):
    """Groups in two arms that miss occasions, in shuffled order."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(groups * occasions)[: groups * occasions - 5]
    group, t = np.divmod(cells, occasions)
    n = len(cells)
    return pd.DataFrame(
        {
            "y": rng.normal(2.0, 2.0, n),
            "x": rng.normal(size=n),
            "id": [f"p{i}" for i in group],
            "t": t,
            "time": t * 1.5 + rng.integers(0, 3, n) * 0.25,
            "a": rng.normal(size=n),
            "b": rng.normal(size=n),
            "arm": np.where(group % 2, "new", "old"),
            "f": np.where(rng.random(n) < 0.5, "one", "two"),
            "h": [f"h{i}" for i in rng.integers(0, 5, n)],
            "v": rng.uniform(0.5, 2.0, n),
            "w": rng.uniform(0.5, 2.0, n),
        }
    )


CASES = [
    ("y ~ x", "us(t | arm / id)", None),
    ("y ~ x", "exp(a + b | id) * strata(f) * exp(v)", "w"),
    ("y ~ x + (1 | h)", "us(t | id)", "w"),
    ("y ~ x + (1 | id)", "power(v)", "w"),
    ("y ~ x + (1 | id)", "ar1(t | id) * strata(f)", "w"),
    ("y ~ x + (1 | id)", "strata(f)", None),
    ("y ~ x", "cs(t | id)", "w"),
    ("y ~ x + (1 | h)", "toeph(t | id)", "w"),
    ("y ~ x + (1 | h)", "car1(time | id) * power(v)", "w"),
    ("y ~ x", "adh(t | arm / id)", None),
    ("y ~ 0 + x + (1 | h)", "gau(a + b | id)", None),
    ("y ~ 0", "ar1h(t | arm / id)", None),
]


def model_of(formula, residual, weights):
    return blm.LMM(formula, frame(), residual=residual, weights=weights)


def random_point(model, seed=1):
    rng = np.random.default_rng(seed)
    return {k: v + rng.normal(0.0, 0.4, np.shape(v)) for k, v in model.initial_point().items()}


def correlation_coordinates(law, prior, arm, point):
    """Coordinates of the correlations of one arm, and the log prior."""
    name = f"_cor_residual_{arm}"
    if isinstance(prior, LKJ):
        z = point[f"{name}_correlation__"]
        return z, float(prior.logpdf(law.structure.cholesky(z)))
    values = [point[f"{name}_{i}_interval__"] for i in range(law.n_cors // law.n_arms)]
    parameters = prior.lower + (prior.upper - prior.lower) / (1.0 + np.exp(-np.array(values)))
    log_prior = -len(values) * np.log(prior.upper - prior.lower)
    if isinstance(law, OverDistance):
        signed = law.decay == "ar1"
        own = np.arctanh(parameters) if signed else np.log(parameters / (1.0 - parameters))
        return own, log_prior
    return law.from_parameters(parameters), log_prior


def residual_part(priors, point):
    """Scale, shape, and log prior of the parameters of the residuals."""
    own, structure = priors.residuals, priors.residual
    sds = np.atleast_1d(np.exp(point["sigma_log__"]))
    powers = np.atleast_1d(point.get("power_residual", np.zeros(0)))
    value = sum(float(p.logpdf(sd)) for p, sd in zip(own.sd, sds, strict=True))
    value += sum(float(p.logpdf(x)) for p, x in zip(own.power, powers, strict=True))
    pieces = [np.log(sds[1:] / sds[0]), powers]
    for arm, prior in enumerate(own.cor):
        z, log_prior = correlation_coordinates(structure.correlation, prior, arm, point)
        pieces.append(np.atleast_1d(z))
        value += log_prior
    return sds[0], np.concatenate(pieces), value


def dense(model, form, point):
    """Log density of parameters and data, without Jacobian, and the residuals' parameters."""
    design, priors = model.design, model.priors
    sigma, shape, value = residual_part(priors, point)
    v = sigma**2 * relative(priors.residual, design.residual_rows, design.weights, shape)
    mean = design.offset + design.X @ priors.beta_mean
    if form == "marginal":
        v = v + design.X @ np.linalg.solve(priors.beta_precision, design.X.T)
    elif design.p:
        gamma = point.get("_beta_gamma", point.get("beta"))
        value += sum(float(p.logpdf(g)) for p, g in zip(priors.beta, gamma, strict=True))
        mean = design.offset + design.X @ np.linalg.solve(priors.fixed_map, gamma)
    for f, factor in enumerate(design.random):
        sd = np.exp(point[f"sd_{factor.key}_log__"][0])
        value += float(priors.sd[f][0].logpdf(sd))
        if form == "marginal":
            v = v + sd**2 * (factor.codes[:, None] == factor.codes)
        elif form == "noncentered":
            z = point[f"_z_{factor.key}"][0]
            value += stats.norm.logpdf(z).sum()
            mean = mean + sd * z[factor.codes]
        else:
            u = point[f"u_{factor.key}"][0]
            value += stats.norm(0.0, sd).logpdf(u).sum()
            mean = mean + u[factor.codes]
    return value + stats.multivariate_normal(mean, v).logpdf(design.y), sigma, shape


DENSITIES = [
    case
    if (i % 4 == 0 and case[0] == "marginal") or case == ("noncentered", *CASES[4])
    else slow(*case)
    for form in ("noncentered", "marginal", "centered")
    for i, case in enumerate((form, *model) for model in CASES)
]
"""Laws of all kinds in the marginal form, one of them given the random effects, in each run."""


@pytest.mark.parametrize(("form", "formula", "residual", "weights"), DENSITIES)
def test_density_and_gradient_are_those_of_dense_algebra(formula, residual, weights, form):
    model = model_of(formula, residual, weights)
    built = build_model(model.design, model.priors, form)
    density = built.compile_logp(jacobian=False, mode=PLAIN)
    point = random_point(built)
    expected, sigma, shape = dense(model, form, point)
    assert float(density(point)) == pytest.approx(expected, rel=EXACT)
    found = built.compile_dlogp(jacobian=False, mode=PLAIN)(point)
    names = [variable.name for variable in built.value_vars]
    sizes = np.cumsum([np.size(point[name]) for name in names])[:-1]

    def moved(x):
        parts = zip(names, np.split(x, sizes), strict=True)
        return float(density({k: own.reshape(np.shape(point[k])) for k, own in parts}))

    flat = np.concatenate([np.ravel(point[name]) for name in names])
    assert found == pytest.approx(differences(moved, flat), abs=SLOPE)
    assert_public_correlations(model, built, point, sigma, shape)


def assert_public_correlations(model, built, point, sigma, shape):
    """The recorded correlations are those of the matrix that the density has."""
    structure = model.priors.residual
    if structure.correlation is None:
        return
    (recorded,) = built.replace_rvs_by_values([built["cor_residual"]])
    evaluate = built.compile_fn(
        recorded, inputs=built.value_vars, on_unused_input="ignore", mode=PLAIN
    )
    known = structure.natural(np.array([sigma]), shape[None])[2][0]
    assert np.ravel(evaluate(point)) == pytest.approx(known, abs=1e-10)
    law = structure.correlation
    if isinstance(law, OverOccasions):
        lower = law.structure.cholesky(shape[len(shape) - law.n_cors :].reshape(law.n_arms, -1))
        omega = lower @ lower.swapaxes(1, 2)
        pairs = [omega[:, i, j] for i, j in law.structure.pairs]
        assert known == pytest.approx(np.array(pairs).T.ravel(), abs=1e-10)


@pytest.mark.parametrize(("formula", "residual", "weights"), one_in(8, CASES))
def test_marginal_form_is_our_log_posterior_up_to_a_constant(formula, residual, weights):
    model = model_of(formula, residual, weights)
    built = build_model(model.design, model.priors, "marginal")
    density, system = built.compile_logp(mode=PLAIN), marginal_system(model.design)
    gaps = []
    for seed in (1, 2, 3):
        point = random_point(built, seed)
        sigma, shape, _ = residual_part(model.priors, point)
        own = model.priors.residual.coordinates(np.array([sigma]), shape[None])[0]
        sds = [point[f"sd_{factor.key}_log__"] for factor in model.design.random]
        x = np.concatenate([*sds, own])
        ours, _ = log_posterior_unconstrained(system, model.priors, x)
        gaps.append(float(density(point)) - ours)
    assert gaps == pytest.approx([gaps[0]] * 3, abs=1e-7)


def test_any_prior_on_the_parameters_of_the_residuals():
    priors = {
        "sigma[one]": pm.HalfNormal.dist(1.5),
        "power_residual[v]": pm.Laplace.dist(0.0, 0.7),
        "cor_residual": pm.TruncatedNormal.dist(0.2, 0.5, lower=-0.9, upper=0.8),
    }
    model = blm.LMM("y ~ x", frame(), residual="ar1(t | id) * strata(f) * power(v)", priors=priors)
    built = build_model(model.design, model.priors, "marginal")
    point = random_point(built)
    parameters = built.replace_rvs_by_values([built["sigma"], built["_residual_shape"]])
    sds, shape = built.compile_fn(parameters, inputs=built.value_vars, mode=PLAIN)(point)
    x = model.priors.residual.coordinates(sds[:1], shape[None])[0]
    system = marginal_system(model.design)
    ours, _ = log_posterior_unconstrained(system, model.priors, x, jacobian=False)
    density = built.compile_logp(jacobian=False, mode=PLAIN)(point)
    assert float(density) == pytest.approx(ours, rel=EXACT)


def test_a_singular_correlation_matrix_has_no_density():
    model = model_of("y ~ x", "ar1(t | id)", None)
    for form in ("noncentered", "marginal"):
        built = build_model(model.design, model.priors, form)
        point = {**built.initial_point(), "_cor_residual_0_0_interval__": np.array(60.0)}
        assert float(built.compile_logp(mode=PLAIN)(point)) == -np.inf


# --- draws of the response ---------------------------------------------------------------------


def test_responses_are_drawn_with_the_covariance_of_the_model():
    """As ``pm.sample_posterior_predictive`` draws them, at parameters that are the same in all."""
    model = blm.LMM("y ~ x + (1 | h)", frame(), residual="ar1(t | id) * strata(f)", weights="w")
    size, design = 500, model.design
    values = {
        "_beta_gamma": [1.0, -0.5],
        "sd_h": [0.7],
        "_z_h": [np.linspace(-1.0, 1.0, 5)],
        "sigma": [0.8, 1.5],
        "_cor_residual_0_0": 0.6,
    }
    trace = {k: np.tile(v, (1, size, *[1] * np.ndim(v))) for k, v in values.items()}
    with model.pymc("noncentered") as built:
        drawn = pm.sample_posterior_predictive(
            tree_of(trace, built), random_seed=1, progressbar=False, compile_kwargs={"mode": PLAIN}
        )
    y = drawn["posterior_predictive"]["y"].to_numpy()[0]
    shape = np.array([np.log(1.5 / 0.8), np.arctanh(0.6)])
    cov = 0.64 * relative(model.priors.residual, design.residual_rows, design.weights, shape)
    beta = np.linalg.solve(model.priors.fixed_map, [1.0, -0.5])
    mean = design.X @ beta + 0.7 * np.linspace(-1.0, 1.0, 5)[design.random[0].codes]
    white = np.linalg.solve(np.linalg.cholesky(cov), (y - mean).T)
    assert np.abs(white.mean(axis=1)).max() < 4.5 / np.sqrt(size)
    second = white @ white.T / size - np.eye(design.n)  # standard errors 1 / root or root(2 / size)
    assert np.abs(second).max() < 4.5 * np.sqrt(2.0 / size)


def tree_of(values, built):
    """Draws (chain, draw, ...) of variables of a PyMC model."""
    dims = {name: built.named_vars_to_dims.get(name, ()) for name in values}
    coords = {dim: list(built.coords[dim]) for own in dims.values() for dim in own}
    variables = {k: (("chain", "draw", *dims[k]), array) for k, array in values.items()}
    return xr.DataTree.from_dict({"posterior": xr.Dataset(variables, coords)})


# --- runs of NUTS ------------------------------------------------------------------------------

SCHEMAS = [
    ("y ~ x + (1 | h)", "ar1h(t | id) * power(v)"),
    ("y ~ x + (x | h)", "ar1(t | id) * strata(f)"),
    ("y ~ x", "us(t | id)"),
    ("y ~ x + (1 | id)", "exp(v)"),
    ("y ~ 0", "car1(time | id)"),
]


@pytest.fixture(scope="module")
def structured():
    return model_of("y ~ x + (1 | id)", "ar1(t | id) * strata(f)", "w")


@pytest.fixture(scope="module")
def fitted(structured):
    """A few draws of the marginal form by PyMC's own sampler, without compiling anything."""
    with pytensor.config.change_flags(cxx=""):
        return structured.fit(
            method="nuts",
            form="marginal",
            draws=10,
            tune=6,
            chains=2,
            cores=1,
            random_seed=1,
            progressbar=False,
            nuts_sampler="pymc",
            compile_kwargs={"mode": PLAIN},
            nuts={"max_treedepth": 2},
            quiet=True,
        )


@whole
@pytest.mark.slow
@pytest.mark.parametrize(("formula", "residual"), SCHEMAS)
@pytest.mark.parametrize("form", some(1, ["noncentered", "marginal", "centered"]))
def test_draws_have_the_variables_of_collapsed_draws(formula, residual, form):
    model = model_of(formula, residual, None)
    assert_same_variables(quick(model.design, model.priors, form), model, draws=4)


def test_marginal_draws_have_the_variables_of_collapsed_draws(structured, fitted):
    assert_same_variables(fitted.data, structured, draws=10)


def assert_same_variables(tree, model, draws):
    collapsed = model.fit(method="collapsed", draws=draws, chains=2, random_seed=1)
    collapsed, nuts = (one["posterior"].to_dataset() for one in (collapsed.data, tree))
    assert list(nuts.data_vars) == list(collapsed.data_vars)
    assert {k: v.dims for k, v in nuts.variables.items()} == {
        k: v.dims for k, v in collapsed.variables.items()
    }
    matrices = [name for name in collapsed.coords if collapsed[name].ndim > 1]
    labels = [one.drop_vars(matrices).coords.to_dataset() for one in (nuts, collapsed)]
    xr.testing.assert_equal(*labels)
    assert all(np.isfinite(values).all() for values in nuts.data_vars.values())


def test_what_is_asked_of_a_posterior_is_answered(fitted, tmp_path):
    design = fitted.model.design
    rows = ["beta[Intercept]", "beta[x]", "sd[id, Intercept]", "sigma[one]", "sigma[two]"]
    assert list(fitted.summary().index) == [*rows, "cor_residual"]
    assert fitted.R().shape == (design.n, design.n)
    assert np.isfinite(fitted.loo().elpd)
    assert np.isfinite(fitted.loo(by="id").elpd)
    for target in ("conditional", "new", "population", "average"):
        assert np.isfinite(fitted.predict(frame(), target=target)["mean"]).all()
    assert np.isfinite(fitted.residuals("normalised")).all()
    assert fitted.hypothesis("sigma[two] > sigma[one]").table().notna().all(axis=None)
    fitted.save(tmp_path / "nuts.nc")
    back = blm.load(tmp_path / "nuts.nc")
    assert back.summary()["mean"].to_numpy() == pytest.approx(fitted.summary()["mean"].to_numpy())
    assert back.data.attrs["method"] == "nuts"


@pytest.mark.parametrize("form", ["noncentered", "marginal"])
def test_samplers_in_jax_are_refused(structured, form):
    with pytest.raises(ValueError, match=r"use 'nutpie' or 'pymc'"):
        structured.fit(method="nuts", form=form, nuts_sampler="numpyro")


# --- agreement with collapsed draws, and calibration -------------------------------------------

MAX_Z = 4.5  # combined Monte Carlo standard errors; the largest of at most ten values counts


def longitudinal(seed=2, groups=40, occasions=3):
    """Correlated residuals, larger where f is "two"; groups that are not alike."""
    rng = np.random.default_rng(seed)
    group, t = np.divmod(np.arange(groups * occasions), occasions)
    f = np.where(rng.random(len(t)) < 0.5, "one", "two")
    root = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(np.arange(occasions), range(3))))
    noise = (rng.normal(size=(groups, occasions)) @ root.T).ravel() * np.where(f == "two", 1.6, 0.8)
    x, effects = rng.normal(size=len(t)), rng.normal(0.0, 1.2, groups)
    y = 1.0 + 0.5 * x + effects[group] + noise
    frame = {"y": y, "x": x, "t": t, "f": f, "v": rng.uniform(0.5, 2.0, len(t))}
    return pd.DataFrame({**frame, "id": [f"p{i:02d}" for i in group]})


def relationships(data):
    """Siblings in pairs."""
    levels = sorted(data["id"].unique())
    pairs = np.kron(np.eye(len(levels) // 2), np.full((2, 2), 0.5))
    return {"id": pd.DataFrame(pairs + 0.5 * np.eye(len(levels)), index=levels, columns=levels)}


AGREEMENT = {
    "ar1": ("y ~ x", "ar1(t | id)", False),
    "strata": ("y ~ x + (1 | id)", "strata(f)", False),
    "us": ("y ~ x", "us(t | id)", False),
    "cs": ("y ~ x", "cs(t | id) * strata(f)", False),
    "A": ("y ~ x + (1 | id)", "strata(f)", True),
}


@whole
@pytest.mark.slow
@pytest.mark.parametrize("name", some(1, AGREEMENT))
@pytest.mark.parametrize("form", some(1, ["noncentered", "marginal"]))
def test_nuts_agrees_with_the_collapsed_sampler(name, form):
    formula, residual, related = AGREEMENT[name]
    data = longitudinal()
    known = {"relationships": relationships(data)} if related else {}
    model = blm.LMM(formula, data, residual=residual, **known)
    one = model.fit(method="collapsed", draws=2000, random_seed=1)
    two = model.fit(
        method="nuts", form=form, draws=600, tune=400, chains=2, random_seed=3, progressbar=False
    )
    first, second = one.summary(), two.summary()
    both = np.hypot(first["mcse_mean"], second["mcse_mean"])
    assert (np.abs(first["mean"] - second["mean"]) / both).max() < MAX_Z
    assert second["sd"].to_numpy() == pytest.approx(first["sd"].to_numpy(), rel=0.15)


FAMILIES = {
    "ar1": ("y ~ x", "ar1(t | id)"),
    "strata": ("y ~ x + (1 | id)", "strata(f)"),
    "cs": ("y ~ x", "cs(t | id)"),
    "us": ("y ~ x", "us(t | id)"),
    "power": ("y ~ x + (1 | id)", "power(v)"),
}


@whole
@pytest.mark.slow
@pytest.mark.parametrize("name", some(1, FAMILIES))
def test_collapsed_draws_are_calibrated(name):
    formula, residual = FAMILIES[name]
    model = blm.LMM(formula, longitudinal(groups=15), residual=residual)
    check = model.check_calibration(60, method="collapsed", random_seed=1, progressbar=False)
    assert (check.table()["verdict"] == "ok").all(), repr(check)
    assert len(check.failures) <= 3, repr(check)


@whole
@pytest.mark.slow
@pytest.mark.parametrize("name", some(1, FAMILIES))
def test_nuts_draws_are_calibrated(name):
    """The model is compiled once for all responses."""
    formula, residual = FAMILIES[name]
    model = blm.LMM(formula, longitudinal(groups=15), residual=residual)
    check = model.check_calibration(
        15, method="nuts", draws=100, tune=200, chains=2, random_seed=1, progressbar=False
    )
    assert (check.table()["verdict"] == "ok").all(), repr(check)


def test_the_fallback_samples_the_model_with_its_structure(structured, fitted, monkeypatch):
    asked = []

    def refuses(*_, **__):
        raise SamplingError("The importance density does not fit. Use method='nuts'.")

    def records(design, priors, form, system=None, **options):
        asked.append((form, system))
        return fitted.data.copy()

    monkeypatch.setattr(engine, "fit_collapsed", refuses)
    monkeypatch.setattr(nuts, "sample_nuts", records)
    post = structured.fit(draws=10, chains=2, random_seed=1)
    assert asked[0][0] == "marginal"
    assert asked[0][1].stack is not None
    assert post.data.attrs["fallback"] == "The importance density does not fit."
