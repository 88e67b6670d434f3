"""NUTS: a short real run, the normalisation of what samplers return, exact draws of u and beta."""

import numpy as np
import pytensor
import pytest
import xarray as xr
from pytensor.compile.mode import Mode
from reference_data import load_fit, load_posterior, load_reference_data
from slow_cases import slow

from bayeslmm.data.building import build_design
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.defaults import HalfStudentT, default_priors, flat_priors, resolve_priors
from bayeslmm.sampling.diagnostics import check
from bayeslmm.sampling.nuts import complete_draws, require_complete, sample_nuts, statistics

PLAIN = Mode(linker="py", optimizer=None)  # nothing to compile
SCHEMA = {
    "lp",
    "step_size",
    "step_size_bar",
    "tree_depth",
    "reached_max_treedepth",
    "acceptance_rate",
    "n_steps",
    "diverging",
    "energy",
    "energy_error",
    "index_in_trajectory",
}


@pytest.fixture(scope="module")
def sleepstudy():
    return build_design("Reaction ~ Days + (Days | Subject)", load_reference_data("sleepstudy"))


@pytest.fixture(scope="module")
def real(sleepstudy):
    """A run with nutpie, of whose time nearly all is compilation."""
    return sample_nuts(
        sleepstudy,
        default_priors(sleepstudy),
        draws=400,
        tune=400,
        chains=2,
        random_seed=1,
        progressbar=False,
    )


@pytest.fixture(scope="module")
def few(sleepstudy):
    """A few draws by PyMC's own sampler."""
    return quick(sleepstudy, default_priors(sleepstudy))


MADE_BY = {"few": ("marginal", "pymc"), "real": ("noncentered", "nutpie")}
"""Form and sampler of each run."""


@pytest.fixture(params=["few", slow("real")])
def run(request):
    found = request.getfixturevalue(request.param)
    library = found["posterior"].attrs["inference_library"]
    assert (found.attrs["form"], library) == MADE_BY[request.param]
    return found


def quick(design, priors, form="marginal", **changes):
    """A few draws by PyMC's own sampler without compiling anything."""
    options = {"draws": 4, "tune": 4, "chains": 2, "cores": 1, "random_seed": 1} | changes
    with pytensor.config.change_flags(cxx=""):
        return sample_nuts(
            design,
            priors,
            form,
            progressbar=False,
            nuts_sampler="pymc",
            compile_kwargs={"mode": PLAIN},
            nuts={"max_treedepth": 2},
            quiet=True,
            **options,
        )


# --- runs ------------------------------------------------------------------------


@pytest.mark.slow
def test_run_agrees_with_stan(real):
    reference = load_posterior("sleepstudy__slope")["parameters"]
    posterior = real["posterior"].dataset
    means = posterior.mean(("chain", "draw"))
    found = {
        "beta[Intercept]": means["beta"][0],
        "beta[Days]": means["beta"][1],
        "sd[Subject,Intercept]": means["sd_Subject"][0],
        "sd[Subject,Days]": means["sd_Subject"][1],
        "cor[Subject,Intercept,Days]": means["corr_Subject"][0],
        "sigma": means["sigma"],
        "u[Subject,308,Days]": means["u_Subject"].sel(Subject="308", Subject_coef="Days"),
    }
    for name, mean in found.items():
        assert float(mean) == pytest.approx(
            reference[name]["mean"], abs=0.4 * reference[name]["sd"]
        )


@pytest.mark.slow
def test_run_has_no_divergences(real):
    found = check(real)
    assert found.divergences == 0
    assert found.max_rhat < 1.05
    assert np.isfinite(found.min_ebfmi)


def test_run_follows_the_schema(run):
    assert set(run.children) == {"posterior", "sample_stats", "observed_data", "constant_data"}
    names = {"beta", "sigma", "sd_Subject", "corr_Subject", "u_Subject"}
    assert set(run["posterior"].data_vars) == names
    statistics = run["sample_stats"].dataset
    assert set(statistics.data_vars) == SCHEMA
    assert all(values.dtype.kind in "fib" for values in statistics.data_vars.values())
    assert run.attrs["method"] == "nuts"
    assert run["posterior"].attrs["sampling_time"] > 0
    diagonal = np.diagonal(run["posterior"]["cor_Subject"].to_numpy(), axis1=2, axis2=3)
    assert np.all(diagonal == 1.0)
    assert np.all(np.isfinite(run["posterior"]["u_Subject"]))


def test_run_can_be_saved(run, tmp_path):
    run.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "run.nc", engine="h5netcdf") as back:
        xr.testing.assert_equal(back["posterior"].to_dataset(), run["posterior"].to_dataset())


def test_run_works_with_arviz(run):
    import arviz as az

    summary = az.summary(run, var_names=["beta", "sigma"])
    assert list(summary.index) == ["beta[Intercept]", "beta[Days]", "sigma"]


# --- other samplers and forms ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["marginal", "noncentered", "centered"])
def test_forms_give_the_same_variables(sleepstudy, real, form):
    dt = quick(sleepstudy, default_priors(sleepstudy), form)
    expected = real["posterior"].dataset.isel(chain=[0, 1], draw=slice(0, 4))
    posterior = dt["posterior"].dataset
    assert dict(posterior.sizes) == dict(expected.sizes)
    for name, values in expected.data_vars.items():
        assert posterior[name].dims == values.dims
    coords = [data.drop_vars("cor_Subject").coords.to_dataset() for data in (posterior, expected)]
    xr.testing.assert_equal(*coords)
    assert set(dt["sample_stats"].data_vars) == SCHEMA
    assert np.all(np.isfinite(posterior["u_Subject"]))


@pytest.mark.slow
def test_same_seed_same_draws(sleepstudy):
    priors = default_priors(sleepstudy)
    one, two, other = (quick(sleepstudy, priors, random_seed=seed) for seed in (1, 1, 2))
    xr.testing.assert_equal(one["posterior"].to_dataset(), two["posterior"].to_dataset())
    assert not one["posterior"]["beta"].equals(other["posterior"]["beta"])
    generator = quick(sleepstudy, priors, random_seed=np.random.default_rng(1))
    xr.testing.assert_equal(generator["posterior"]["beta"], one["posterior"]["beta"])


def test_beta_can_be_sampled_in_the_marginal_form(sleepstudy):
    priors = resolve_priors(sleepstudy, {"Days": HalfStudentT(3.0, 20.0)})
    posterior = quick(sleepstudy, priors, draws=2, tune=2, chains=1)["posterior"].dataset
    assert float(posterior["beta"].sel(coef="Days").min()) > 0


@pytest.mark.slow
def test_a_model_without_fixed_effects():
    design = build_design("Yield ~ 0 + (1 | Batch)", load_reference_data("Dyestuff"))
    for form in ("noncentered", "marginal"):
        run = quick(design, default_priors(design), form, draws=2, tune=2, chains=1)
        sizes = run["posterior"]["beta"].sizes
        assert sizes == {"chain": 1, "draw": 2, "coef": 0}


def test_arguments_that_are_set_here(sleepstudy):
    with pytest.raises(TypeError, match=r"arguments of pymc\.sample: var_names"):
        sample_nuts(sleepstudy, default_priors(sleepstudy), var_names=["beta"])


# --- incomplete runs -------------------------------------------------------------------


def delivered(chains: int, draws: int, finite: int | None = None) -> xr.Dataset:
    sigma = np.ones((chains, draws))
    if finite is not None:
        sigma[-1, finite:] = np.nan
    return xr.Dataset({"sigma": (("chain", "draw"), sigma)})


def test_complete_runs_pass():
    require_complete(delivered(2, 50), 2, 50)


@pytest.mark.parametrize(
    ("posterior", "text"),
    [
        (delivered(2, 50, 30), "chain 1 delivered 30 of 50 draws"),
        (delivered(2, 20), "chain 0 delivered 20 of 50 draws; chain 1 delivered 20 of 50 draws"),
        (delivered(1, 50), "1 of 2 chains were delivered"),
    ],
)
def test_incomplete_runs_are_refused(posterior, text):
    with pytest.raises(SamplingError, match=text):
        require_complete(posterior, 2, 50)


# --- normalisation ---------------------------------------------------------------------


def test_nutpie_statistics_get_their_names_of_the_schema():
    dims = ("chain", "draw")
    raw = xr.Dataset(
        {
            "depth": (dims, np.full((2, 3), 4, dtype=np.uint64)),
            "maxdepth_reached": (dims, np.zeros((2, 3), dtype=bool)),
            "mean_tree_accept": (dims, np.full((2, 3), 0.8)),
            "logp": (dims, np.zeros((2, 3))),
            "divergence_message": (dims, np.full((2, 3), None, dtype=object)),
            "transformation_index": (dims, np.zeros((2, 3))),
            "gradient": ((*dims, "unconstrained"), np.zeros((2, 3, 5))),
        }
    )
    found = statistics(raw)
    assert set(found) == {"tree_depth", "reached_max_treedepth", "acceptance_rate", "lp"}
    assert found["tree_depth"].dtype == np.int64


@pytest.mark.reference
def test_exact_draws_have_the_moments_of_reml(sleepstudy):
    """Under flat priors u given the covariance parameters has lme4's modes and errors."""
    fit = load_fit("sleepstudy__slope_reml")
    (term,), (modes,) = fit["random"], fit["ranef"]
    size = 4000
    chol = np.linalg.cholesky(np.array(term["corr"]))
    values = {
        "sigma": np.full((1, size), fit["sigma"]),
        "sd_Subject": np.tile(term["sd"], (1, size, 1)),
        "_chol_Subject__0": np.tile(chol, (1, size, 1, 1)),
    }
    found = complete_draws(
        sleepstudy,
        flat_priors(sleepstudy),
        marginal_system(sleepstudy),
        values,
        np.random.default_rng(1),
    )
    errors = np.array(fit["fixed"]["se"])
    estimate = np.array(fit["fixed"]["estimate"])
    np.testing.assert_allclose((found["beta"][0].mean(0) - estimate) / errors, 0.0, atol=0.08)
    np.testing.assert_allclose(found["beta"][0].std(0) / errors, 1.0, atol=0.05)
    expected, spread = np.array(modes["modes"]), np.array(modes["pred_se"])
    np.testing.assert_allclose((found["u_Subject"][0].mean(0) - expected) / spread, 0.0, atol=0.08)
    np.testing.assert_allclose(found["u_Subject"][0].std(0) / spread, 1.0, atol=0.06)
