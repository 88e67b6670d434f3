"""The PyMC model: log densities against SciPy, names and dimensions, modes against REML."""

import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.graph.replace import vectorize_graph
from reference_data import load_fit, load_reference_data
from scipy import stats
from slow_cases import one_in, slow

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.unstructured import Unstructured
from bayeslmm.data.building import build_design
from bayeslmm.likelihood.log_posterior import beta_prior, log_posterior_unconstrained
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.defaults import LKJ, Flat, HalfStudentT, Normal, default_priors, resolve_priors
from bayeslmm.priors.families import Exponential, Gamma
from bayeslmm.sampling.model import CorrelationTransform, MarginalOp, build_model, lkj_cholesky

PLAIN = Mode(linker="py", optimizer=None)  # nothing to compile

FORMULAS = {
    "slope": "y ~ x + (x | g)",
    "three": "y ~ x + z + (x + z | g)",
    "blocks": "y ~ x + (1 + z | g) + (0 + x | g)",
    "double bar": "y ~ x + (x || g)",
    "crossed": "y ~ x * z + (x | g) + (1 | h)",
    "cell means": "y ~ 0 + f + (1 | g)",
    "no fixed effects": "y ~ 0 + (1 | g)",
    "offset": "y ~ x + offset(z) + (1 | g)",
}
CASES = [(name, "default", None) for name in FORMULAS]
CASES += [
    (name, prior, weights)
    for name in ("blocks", "crossed", "cell means")
    for prior, weights in (("default", "w"), ("user", None), ("flat", None), ("flat", "w"))
]
USER = {"x": Normal(0.0, 1.0), "sd[g]": Gamma(2.0, 0.5), "cor": LKJ(4.0), "sigma": Exponential(0.3)}


def frame(n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "y": rng.normal(2.0, 3.0, n),
            "x": rng.normal(1.0, 2.0, n),
            "z": rng.normal(0.0, 1.0, n),
            "f": rng.choice(["a", "b", "c"], n),
            "g": rng.choice([f"g{i}" for i in range(6)], n),
            "h": rng.choice([f"h{i}" for i in range(4)], n),
            "w": rng.uniform(0.5, 2.0, n),
        }
    )


def make(name: str, prior: str, weights: str | None = None):
    """Design and priors of a case; users' priors where the formula has the parameters."""
    design = build_design(FORMULAS[name], frame(), weights=weights)
    if prior != "user":
        return design, resolve_priors(design, prior)
    keys = set(default_priors(design).records()) | {"sd[g]"}
    if any(len(b) > 1 for f in design.random for b in f.blocks):
        keys.add("cor")
    return design, resolve_priors(design, {k: v for k, v in USER.items() if k in keys})


def random_point(model: pm.Model, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: v + rng.normal(0.0, 0.4, np.shape(v)) for k, v in model.initial_point().items()}


def log_sd_name(priors, f: int, factor) -> str:
    plain = np.array_equal(priors.mixing[f], np.eye(factor.n_coefs))
    return f"sd_{factor.key}_log__" if plain else f"_sd_{factor.key}_working_log__"


def unpack(design, priors, point):
    """Parameters of the working columns from a model's value variables, and the log Jacobian."""
    sds, chols, jacobian = [], [], 0.0
    for f, factor in enumerate(design.random):
        logs = point[log_sd_name(priors, f, factor)]
        coordinates = [
            point[f"_chol_{factor.key}__{b}_correlation__"]
            for b, lkj in enumerate(priors.cor[f])
            if lkj is not None
        ]
        z = np.concatenate([*coordinates, np.zeros(0)])
        sds.append(np.exp(logs))
        chols.append(structure_of(factor).cholesky(z))
        jacobian += logs.sum() + structure_of(factor).log_jacobian(z)
    sigma = np.exp(point["sigma_log__"])
    return sds, chols, float(sigma), jacobian + float(point["sigma_log__"])


def log_prior(design, priors, sds, chols, sigma) -> float:
    total = float(priors.sigma.logpdf(sigma))
    for f, factor in enumerate(design.random):
        total += sum(float(p.logpdf(s)) for p, s in zip(priors.sd[f], sds[f], strict=True))
        omega = chols[f] @ chols[f].T
        for block, lkj in zip(factor.blocks, priors.cor[f], strict=True):
            if lkj is not None:
                total += float(lkj.logpdf_correlation(omega[np.ix_(block, block)]))
    return total


def log_density(model: pm.Model, point, *, jacobian: bool) -> float:
    return float(model.compile_logp(jacobian=jacobian, mode=PLAIN)(point))


def random_part(factor, u: np.ndarray) -> np.ndarray:
    return np.sum(factor.Z * u[factor.codes], axis=1)


# --- log densities ---------------------------------------------------------------------


FORMS = ("noncentered", "centered")


def cases_and_forms():
    """Each case in both forms; of every third case the default run takes one form, in turn."""
    for i, case in enumerate(CASES):
        for j, form in enumerate(FORMS):
            yield (*case, form) if i % 6 == 3 * j else slow(*case, form)


@pytest.mark.parametrize(("name", "prior", "weights", "form"), list(cases_and_forms()))
def test_conditional_density(name, prior, weights, form):
    design, priors = make(name, prior, weights)
    model = build_model(design, priors, form)
    point = random_point(model)
    sds, chols, sigma, jacobian = unpack(design, priors, point)
    expected = log_prior(design, priors, sds, chols, sigma)
    mean = design.offset.copy()
    for factor, w, sd, chol in zip(design.random, priors.mixing, sds, chols, strict=True):
        root = sd[:, None] * chol
        if form == "noncentered":
            z = point[f"_z_{factor.key}"].T
            expected += stats.norm.logpdf(z).sum()
            u = z @ root.T
        else:
            name = f"u_{factor.key}"
            u = point[name].T if name in point else point[f"_{name}"]
            cov = root @ root.T
            expected += stats.multivariate_normal(np.zeros(len(sd)), cov).logpdf(u).sum()
        mean = mean + random_part(factor, u @ w.T)
    if design.p:
        gamma = point.get("_beta_gamma", point.get("beta"))
        expected += sum(float(p.logpdf(v)) for p, v in zip(priors.beta, gamma, strict=True))
        mean = mean + design.X @ np.linalg.solve(priors.fixed_map, gamma)
    scale = sigma / np.sqrt(np.ones(design.n) if design.weights is None else design.weights)
    expected += stats.norm(mean, scale).logpdf(design.y).sum()
    assert log_density(model, point, jacobian=False) == pytest.approx(expected, rel=1e-8)
    assert log_density(model, point, jacobian=True) == pytest.approx(expected + jacobian, rel=1e-8)


def dense_covariance(design, priors, sds, chols, sigma) -> np.ndarray:
    weights = np.ones(design.n) if design.weights is None else design.weights
    cov = np.diag(sigma**2 / weights)
    for factor, w, sd, chol in zip(design.random, priors.mixing, sds, chols, strict=True):
        root = w @ (sd[:, None] * chol)
        same = factor.codes[:, None] == factor.codes[None, :]
        cov = cov + same * (factor.Z @ root @ root.T @ factor.Z.T)
    return cov


def reml_log_density(design, cov) -> float:
    """Log density of the data with a flat beta integrated out."""
    y = design.y - design.offset
    inverse = np.linalg.inv(cov)
    info = design.X.T @ inverse @ design.X
    beta = np.linalg.solve(info, design.X.T @ inverse @ y) if design.p else np.zeros(0)
    gap = y - design.X @ beta
    log_dets = np.linalg.slogdet(cov)[1] + (np.linalg.slogdet(info)[1] if design.p else 0.0)
    constants = (design.n - design.p) * np.log(2 * np.pi)
    return float(-0.5 * (constants + log_dets + gap @ inverse @ gap))


@pytest.mark.parametrize(("name", "prior", "weights"), one_in(8, CASES))
def test_marginal_density(name, prior, weights):
    design, priors = make(name, prior, weights)
    model = build_model(design, priors, "marginal")
    point = random_point(model)
    sds, chols, sigma, jacobian = unpack(design, priors, point)
    cov = dense_covariance(design, priors, sds, chols, sigma)
    expected = log_prior(design, priors, sds, chols, sigma)
    if priors.beta_precision is None:
        expected += reml_log_density(design, cov)
    else:
        total = cov + design.X @ np.linalg.solve(priors.beta_precision, design.X.T)
        mean = design.offset + design.X @ priors.beta_mean
        expected += stats.multivariate_normal(mean, total).logpdf(design.y)
    assert log_density(model, point, jacobian=False) == pytest.approx(expected, rel=1e-8)
    assert log_density(model, point, jacobian=True) == pytest.approx(expected + jacobian, rel=1e-8)


@pytest.mark.parametrize("prior", [{"x": HalfStudentT(3.0, 2.0)}, {"x": Flat()}])
def test_marginal_density_with_beta_sampled(prior):
    design = build_design(FORMULAS["crossed"], frame())
    priors = resolve_priors(design, prior)
    model = build_model(design, priors, "marginal")
    point = random_point(model)
    names = [name for name in point if name.startswith("__beta_gamma")]
    assert len(names) == design.p
    gamma = np.array([np.exp(point[n]) if n.endswith("log__") else point[n] for n in names])
    sds, chols, sigma, _ = unpack(design, priors, point)
    beta = np.linalg.solve(priors.fixed_map, gamma)
    cov = dense_covariance(design, priors, sds, chols, sigma)
    expected = log_prior(design, priors, sds, chols, sigma)
    expected += sum(float(p.logpdf(v)) for p, v in zip(priors.beta, gamma, strict=True))
    expected += stats.multivariate_normal(design.X @ beta + design.offset, cov).logpdf(design.y)
    assert log_density(model, point, jacobian=False) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("name", [slow("slope"), slow("three"), "blocks", "crossed"])
def test_marginal_form_is_the_log_posterior_of_the_estimates(name):
    design, priors = make(name, "default")
    model = build_model(design, priors, "marginal")
    point = random_point(model)
    pieces = []
    for f, factor in enumerate(design.random):
        pieces.append(point[log_sd_name(priors, f, factor)])
        pieces += [
            point[f"_chol_{factor.key}__{b}_correlation__"]
            for b, lkj in enumerate(priors.cor[f])
            if lkj is not None
        ]
    x = np.concatenate([*pieces, [float(point["sigma_log__"])]])
    system = marginal_system(design)
    value, gradient = log_posterior_unconstrained(system, priors, x)
    assert log_density(model, point, jacobian=True) == pytest.approx(value, rel=1e-9)
    slopes = model.compile_dlogp(mode=PLAIN)(point)
    by_name = dict(
        zip([v.name for v in model.value_vars], _split(model, slopes, point), strict=True)
    )
    ordered = np.concatenate([np.ravel(by_name[name]) for name in _names(design, priors)])
    np.testing.assert_allclose(ordered, gradient, rtol=1e-6, atol=1e-8)


def _names(design, priors) -> list[str]:
    names = []
    for f, factor in enumerate(design.random):
        names.append(log_sd_name(priors, f, factor))
        names += [
            f"_chol_{factor.key}__{b}_correlation__"
            for b, lkj in enumerate(priors.cor[f])
            if lkj is not None
        ]
    return [*names, "sigma_log__"]


def _split(model, flat, point):
    sizes = [np.size(point[v.name]) for v in model.value_vars]
    return np.split(flat, np.cumsum(sizes)[:-1])


# --- correlations ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
def test_correlation_transform(size):
    transform = CorrelationTransform(size)
    n_pairs = size * (size - 1) // 2
    x = np.random.default_rng(3).normal(0.0, 0.7, n_pairs)
    structure = Unstructured(size, (tuple(range(size)),))
    chol = transform.backward(pt.constant(x)).eval(mode=PLAIN)
    np.testing.assert_allclose(chol, structure.cholesky(x), atol=1e-14)
    np.testing.assert_allclose(transform.forward(pt.constant(chol)).eval(mode=PLAIN), x)
    log_jacobian = transform.log_jac_det(pt.constant(x)).eval(mode=PLAIN)
    assert log_jacobian == pytest.approx(numeric_log_jacobian(structure, x), rel=1e-6)


def numeric_log_jacobian(structure: Unstructured, x: np.ndarray) -> float:
    """Log Jacobian of the entries of the correlation matrix, by differences."""
    cells = np.tril_indices(structure.n_coefs, -1)

    def entries(point):
        chol = structure.cholesky(point)
        return (chol @ chol.T)[cells]

    steps = 1e-6 * np.eye(len(x))
    columns = [(entries(x + step) - entries(x - step)) / 2e-6 for step in steps]
    return float(np.linalg.slogdet(np.column_stack(columns))[1])


@pytest.mark.parametrize("size", [slow(2), 3])
def test_correlations_drawn_from_the_model_have_beta_marginals(size):
    with pm.Model() as model:
        lkj_cholesky("chol", LKJ(2.0), size)
    with pytensor.config.change_flags(cxx=""):
        chol = pm.draw(model["chol"], draws=1000, random_seed=1, mode=PLAIN)
    omega = chol @ chol.transpose(0, 2, 1)
    shape = 2.0 - 1 + size / 2
    for i, j in zip(*np.tril_indices(size, -1), strict=True):
        test = stats.kstest((omega[:, i, j] + 1) / 2, stats.beta(shape, shape).cdf)
        assert test.pvalue > 1e-4


def test_correlations_sampled_from_their_density_have_beta_marginals():
    """Importance sampling on the unconstrained scale: density and Jacobian belong together."""
    with pm.Model() as model:
        lkj_cholesky("chol", LKJ(2.0), 3)
    rng = np.random.default_rng(0)
    x = rng.normal(0.0, 0.8, (4000, 3))
    (value,), rows = model.value_vars, pt.dmatrix("rows")
    density = vectorize_graph(model.logp(), {value: rows})
    target = pytensor.function([rows], density, mode=PLAIN)(x)
    weights = np.exp(target - stats.norm(0.0, 0.8).logpdf(x).sum(axis=1))
    assert weights.mean() == pytest.approx(1.0, abs=0.05)
    structure = Unstructured(3, ((0, 1, 2),))
    chol = np.array([structure.cholesky(row) for row in x])
    omega = chol @ chol.transpose(0, 2, 1)
    variance = 1.0 / (2 * 2.5 + 1)  # of a beta(2.5, 2.5) on (-1, 1)
    for i, j in ((1, 0), (2, 0), (2, 1)):
        second = np.average(omega[:, i, j] ** 2, weights=weights)
        assert second == pytest.approx(variance, rel=0.1)


# --- the operation ---------------------------------------------------------------------


def symbolic(design, priors):
    """The marginal density and its inputs as PyTensor variables, with a point."""
    rng = np.random.default_rng(2)
    system = marginal_system(design)
    factors = [pt.dmatrix(f"T{f}") for f in range(len(design.random))]
    values = [np.tril(rng.normal(size=(f.n_coefs,) * 2)) + np.eye(f.n_coefs) for f in design.random]
    sigma = pt.dscalar("sigma")
    inputs, point = [*factors, sigma], [*values, 2.0]
    if priors.beta_sampled:
        inputs.append(pt.dvector("beta"))
        point.append(rng.normal(size=design.p))
    op = MarginalOp(system, beta_prior(priors), given_beta=priors.beta_sampled)
    return op, inputs, point


SAMPLED = {"x": HalfStudentT(3.0, 1.0)}


@pytest.mark.parametrize(
    ("mode", "prior"),
    [
        *((PLAIN, prior) for prior in (None, "flat", SAMPLED)),
        *(("NUMBA", None), slow("NUMBA", "flat"), ("NUMBA", SAMPLED)),
    ],
)
def test_operation_gradient(mode, prior):
    design = build_design(FORMULAS["crossed"], frame())
    op, inputs, point = symbolic(design, resolve_priors(design, prior))
    value = op(*inputs)[0]
    gradient = pytensor.grad(value, inputs)
    evaluate = pytensor.function(inputs, [value, *gradient], mode=mode)
    found = evaluate(*point)
    for position, slope in enumerate(found[1:]):
        start = np.asarray(point[position], dtype=float)
        free = np.tril(np.ones(start.shape)) if start.ndim == 2 else np.ones(start.shape)
        for cell in zip(*np.nonzero(np.atleast_1d(free)), strict=True):
            index = cell if start.ndim else ()
            up, down = start.copy(), start.copy()
            up[index] += 1e-5
            down[index] -= 1e-5
            moved = [
                evaluate(*point[:position], side, *point[position + 1 :])[0] for side in (up, down)
            ]
            numeric = (moved[0] - moved[1]) / 2e-5
            assert np.asarray(slope)[index] == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_operation_outside_the_parameter_space():
    design = build_design(FORMULAS["slope"], frame())
    op, inputs, point = symbolic(design, default_priors(design))
    evaluate = pytensor.function(inputs, op(*inputs), mode=PLAIN)
    for bad in (0.0, -1.0, np.nan, np.inf):
        outputs = evaluate(point[0], bad)
        assert outputs[0] == -np.inf
        assert all(np.all(slope == 0.0) for slope in outputs[1:])
    assert evaluate(np.full((2, 2), np.nan), 1.0)[0] == -np.inf


def test_operation_has_no_second_derivatives():
    design = build_design(FORMULAS["slope"], frame())
    op, inputs, _ = symbolic(design, default_priors(design))
    slope = pytensor.grad(op(*inputs)[0], inputs[-1])
    with pytest.raises(NotImplementedError, match="second derivatives"):
        pytensor.grad(slope, inputs[-1])


# --- names -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["noncentered", "centered"])
def test_names_dims_and_coords(form):
    design, priors = make("crossed", "default")
    model = build_model(design, priors, form)
    dims = model.named_vars_to_dims
    assert dims["beta"] == ("coef",)
    assert dims["sd_g"] == ("g_coef",)
    assert dims["cor_g"] == ("g_coef", "g_coef_bis")
    assert dims["u_g"] == ("g_coef", "g")
    assert dims["u_h"] == ("h_coef", "h")
    assert dims["y"] == ("obs_id",)
    assert "cor_h" not in model.named_vars
    assert list(model.coords["coef"]) == ["Intercept", "x", "z", "x:z"]
    assert list(model.coords["g"]) == list(design.random[0].levels)
    assert list(model.coords["obs_id"]) == list(design.index)
    assert [rv.name for rv in model.observed_RVs] == ["y"]


def test_marginal_form_has_neither_u_nor_beta():
    design, priors = make("crossed", "default")
    model = build_model(design, priors, "marginal")
    assert {rv.name for rv in model.free_RVs} == {
        "_sd_g_working",
        "_chol_g__0",
        "sd_h",
        "sigma",
    }
    assert [potential.name for potential in model.potentials] == ["_log_marginal"]
    assert "beta" not in model.named_vars


def test_data_can_be_changed_without_rebuilding():
    design, priors = make("slope", "default")
    model = build_model(design, priors)
    point = random_point(model)
    density = model.compile_logp(mode=PLAIN)
    before = float(density(point))
    with model:
        pm.set_data({"_y": design.y + 1.0})
    assert float(density(point)) != before


def test_unknown_form():
    design, priors = make("slope", "default")
    with pytest.raises(ValueError, match=r"choose from \['centered', 'marginal', 'noncentered'\]"):
        build_model(design, priors, "Centered")


def test_priors_of_different_families_share_a_variable():
    design = build_design(FORMULAS["slope"], frame())
    wrapped = pm.Truncated.dist(pm.Normal.dist(0, 1), lower=0)
    priors = resolve_priors(design, {"sd[g, x]": wrapped, "sigma": wrapped})
    model = build_model(design, priors)
    assert model.named_vars_to_dims["sd_g"] == ("g_coef",)
    assert np.isfinite(log_density(model, model.initial_point(), jacobian=True))
    assert float(pm.draw(model["sigma"], random_seed=1, mode=PLAIN)) > 0


# --- modes -----------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(
    "fit", [slow("sleepstudy__slope_reml"), "Machines__cells_reml", "Penicillin__crossed_reml"]
)
def test_the_mode_under_flat_priors_is_reml(fit):
    reference = load_fit(fit)
    design = build_design(reference["formula"], load_reference_data(fit.partition("__")[0]))
    model = build_model(design, resolve_priors(design, "flat"), "marginal")
    mode = pm.find_MAP(
        model=model,
        progressbar=False,
        jitter=False,
        return_inferencedata=True,
        compile_kwargs={"mode": PLAIN},
        options={"ftol": 1e-14, "gtol": 1e-9},
    )
    mode = mode["posterior"].dataset.squeeze()
    assert float(mode["sigma"]) == pytest.approx(reference["sigma"], rel=1e-4)
    keys = {factor.name: factor.key for factor in design.random}
    for term in reference["random"]:
        key = keys[term["grouping"]]
        sds = mode[f"sd_{key}"].to_numpy()
        np.testing.assert_allclose(sds, term["sd"], rtol=1e-3)
        if len(term["sd"]) > 1:
            cor = mode[f"cor_{key}"].to_numpy()
            np.testing.assert_allclose(cor, term["corr"], atol=1e-3)
