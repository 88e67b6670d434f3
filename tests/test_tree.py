"""Draws in the ArviZ schema, prior predictive draws and pointwise densities, without sampling."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from reference_data import load_reference_data
from scipy import stats

import bayeslmm as blm
from bayeslmm.data.building import build_design
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.exceptions import PriorError, SamplingError
from bayeslmm.priors.defaults import default_priors, flat_priors
from bayeslmm.sampling.groups import log_likelihood, log_prior, prior_predictive
from bayeslmm.sampling.tree import effect_arrays, obs_coord, posterior_tree

CHAINS, DRAWS = 2, 5
ATTRS = {"method": "made up", "inference_library": "numpy", "tuning_steps": 3, "reason": None}


@pytest.fixture(scope="module")
def design():
    frame = load_reference_data("sleepstudy").assign(
        half=lambda d: np.arange(len(d)) % 7, w=lambda d: 1.0 + np.arange(len(d)) % 3
    )
    formula = "Reaction ~ Days + offset(half) + (Days | Subject) + (1 | half:Days)"
    return build_design(formula, frame, weights="w")


@pytest.fixture(scope="module")
def priors(design):
    return default_priors(design)


@pytest.fixture(scope="module")
def draws(design, priors):
    """Prior draws as if they were posterior draws."""
    prior = prior_predictive(design, priors, CHAINS * DRAWS, random_seed=1)["prior"].dataset
    names = [name for name, values in prior.variables.items() if values.ndim > 1]
    arrays = {str(name): prior[name].to_numpy() for name in names}
    arrays |= dict(zip(("u_Subject", "u_half_Days"), effect_arrays(design, prior), strict=True))
    arrays |= {"sigma": prior["sigma"].to_numpy()}
    return {k: v.reshape(CHAINS, DRAWS, *v.shape[2:]) for k, v in arrays.items()}


@pytest.fixture(scope="module")
def tree(design, priors, draws):
    return posterior_tree(design, priors, draws, {"lp": np.zeros((CHAINS, DRAWS))}, ATTRS)


def test_groups_variables_dims_and_coords(tree, design):
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data"}
    posterior = tree["posterior"].dataset
    assert [(str(name), values.dims[2:]) for name, values in posterior.data_vars.items()] == [
        ("beta", ("coef",)),
        ("u_Subject", ("Subject_coef", "Subject")),
        ("u_half_Days", ("half_Days_coef", "half_Days")),
        ("sd_Subject", ("Subject_coef",)),
        ("sd_half_Days", ("half_Days_coef",)),
        ("corr_Subject", ("Subject_pair",)),
        ("sigma", ()),
    ]
    assert posterior["cor_Subject"].dims[2:] == ("Subject_coef", "Subject_coef_bis")
    assert "cor_Subject" in posterior.coords
    for dim in ("coef", "Subject", "Subject_coef", "Subject_coef_bis", "half_Days"):
        assert posterior[dim].dtype.kind == "U"
    assert posterior["Subject"].to_numpy().tolist() == list(design.random[0].levels)
    assert posterior["u_half_Days"].attrs["grouping_factor"] == "half:Days"


def test_data_groups(tree, design):
    assert tree["observed_data"]["y"].attrs["label"] == "Reaction"
    constant = tree["constant_data"].dataset
    assert set(constant.data_vars) == {"X", "Subject_idx", "half_Days_idx", "offset", "weights"}
    np.testing.assert_array_equal(constant["Subject_idx"], design.random[0].codes)
    np.testing.assert_array_equal(constant["X"], design.X)


def test_attributes(tree, priors):
    assert tree.attrs["modeling_interface"] == "bayeslmm"
    assert tree.attrs["formula"].startswith("Reaction ~ Days")
    assert tree.attrs["method"] == "made up"
    assert "reason" not in tree.attrs
    assert pd.DataFrame(json.loads(tree.attrs["priors"])).equals(priors.table())
    for group in ("posterior", "sample_stats"):
        attrs = tree[group].attrs
        assert attrs["inference_library"] == "numpy" and attrs["tuning_steps"] == 3
        assert attrs["sample_dims"] == ["chain", "draw"] and "created_at" in attrs


def test_netcdf_round_trip(tree, tmp_path):
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "draws.nc", engine="h5netcdf") as back:
        assert back.attrs["priors"] == tree.attrs["priors"]
        for group in tree.children:
            xr.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())
        assert back["posterior"]["Subject"].dtype.kind in "UO"


def test_missing_or_misshaped_draws(design, priors, draws):
    with pytest.raises(SamplingError, match="lack the variables u_Subject"):
        few = {name: value for name, value in draws.items() if name != "u_Subject"}
        posterior_tree(design, priors, few, {}, ATTRS)
    with pytest.raises(SamplingError, match=r"beta has shape \(2, 5, 1\); expected \(2, 5, 2\)"):
        posterior_tree(design, priors, {**draws, "beta": draws["beta"][..., :1]}, {}, ATTRS)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (pd.Index([10, 3, 7]), [10, 3, 7]),
        (pd.Index(["a", "b", "c"]), ["a", "b", "c"]),
        (pd.Index([1, 1, 2]), [0, 1, 2]),
        (pd.Index([0.5, 1.5, 2.5]), [0, 1, 2]),
        (pd.MultiIndex.from_tuples([(1, 2), (1, 3), (2, 2)]), [0, 1, 2]),
    ],
)
def test_row_labels(index, expected):
    class Rows:
        n = 3

    rows = Rows()
    rows.index = index
    assert obs_coord(rows).tolist() == expected


def test_prior_predictive(design, priors):
    dt = prior_predictive(design, priors, 400, random_seed=2)
    assert set(dt.children) == {"prior", "prior_predictive", "observed_data", "constant_data"}
    response = dt["prior_predictive"]["y"]
    assert response.sizes == {"chain": 1, "draw": 400, "obs_id": design.n}
    centre = response.median("draw").mean()
    assert float(centre) == pytest.approx(design.y.mean(), abs=design.y.std())
    again = prior_predictive(design, priors, 400, random_seed=2)
    xr.testing.assert_identical(again["prior_predictive"]["y"], response)
    prior = dt["prior"].dataset
    ratio = (prior["u_Subject"] / prior["sd_Subject"]).std()
    assert float(ratio) == pytest.approx(1.0, abs=0.05)


def test_prior_predictive_residuals_follow_the_weights(design, priors):
    dt = prior_predictive(design, priors, 3000, random_seed=3)
    prior = dt["prior"].dataset.isel(chain=0)
    random = [prior[f"u_{factor.key}"].to_numpy().swapaxes(-2, -1) for factor in design.random]
    mean = linear_predictor(design, prior["beta"].to_numpy(), random)
    residuals = dt["prior_predictive"]["y"].to_numpy()[0] - mean
    spherical = residuals / prior["sigma"].to_numpy()[:, None]
    np.testing.assert_allclose(spherical.std(0) * np.sqrt(design.weights), 1.0, atol=0.07)


def test_flat_priors_have_no_prior_predictive(design):
    with pytest.raises(PriorError, match="proper priors"):
        prior_predictive(design, flat_priors(design))


def loaded_by_prior_predictive():
    m = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    m.prior_predictive(5, random_seed=1)
    return {"pymc", "arviz"} & set(sys.modules)


def test_no_pymc_needed(pool):
    """In a process that has done nothing else."""
    assert not pool.submit(loaded_by_prior_predictive).result()


def test_log_likelihood(tree, design):
    found = log_likelihood(tree, design)["y"]
    assert found.dims == ("chain", "draw", "obs_id")
    posterior = tree["posterior"].dataset.isel(chain=1, draw=3)
    mean = design.X @ posterior["beta"].to_numpy() + design.offset
    for factor in design.random:
        u = posterior[f"u_{factor.key}"].to_numpy().T
        mean = mean + np.sum(factor.Z * u[factor.codes], axis=1)
    scale = float(posterior["sigma"]) / np.sqrt(design.weights)
    expected = stats.norm(mean, scale).logpdf(design.y)
    np.testing.assert_allclose(found.isel(chain=1, draw=3), expected, rtol=1e-10)


def test_log_prior(tree, priors, design):
    mean_days = design.X[:, 1].mean()
    found = log_prior(tree, priors).isel(chain=0, draw=2)
    assert set(found.data_vars) == {"beta", "sd_Subject", "sd_half_Days", "cor_Subject", "sigma"}
    posterior = tree["posterior"].dataset.isel(chain=0, draw=2)
    gap = posterior["beta"].to_numpy() - priors.beta_mean
    beta = stats.multivariate_normal(cov=np.linalg.inv(priors.beta_precision)).logpdf(gap)
    # the prior is a product in coordinates gamma = C beta, and so is its density there
    beta -= np.linalg.slogdet(priors.fixed_map)[1]
    assert float(found["beta"].sum()) == pytest.approx(beta)
    # of the intercepts the prior is about those at the mean of Days
    scale = np.diag(posterior["sd_Subject"].to_numpy())
    user = scale @ posterior["cor_Subject"].to_numpy() @ scale
    at_mean = np.array([[1.0, mean_days], [0.0, 1.0]])
    sds = np.sqrt(np.diag(at_mean @ user @ at_mean.T))
    scales = [record.sigma for record in priors.sd[0]]
    expected = np.log(2) + stats.t(3, scale=scales).logpdf(sds)
    np.testing.assert_allclose(found["sd_Subject"], expected)
    assert float(found["cor_Subject"]) == pytest.approx(np.log(0.5))
    sigma = np.log(2) + stats.t(3, scale=priors.sigma.sigma).logpdf(float(posterior["sigma"]))
    assert float(found["sigma"]) == pytest.approx(sigma)


def test_flat_priors_count_zero(tree, design):
    found = log_prior(tree, flat_priors(design))
    assert float(np.abs(found["beta"]).sum()) == 0.0
    assert float(np.abs(found["sd_Subject"]).sum()) == 0.0
    np.testing.assert_allclose(found["cor_Subject"], -np.log(2))
