"""What ArviZ says under every label is what the draws have there, wherever the draws come from."""

from __future__ import annotations

import itertools
import warnings

import arviz as az
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from arviz_base.labels import BaseLabeller
from arviz_base.sel_utils import xarray_sel_iter
from slow_cases import one_in, slow

import bayeslmm as blm
from bayeslmm.exceptions import PriorError, SamplingError
from bayeslmm.sampling.tree import arranged

EXACT = 1e-9
"""Relative size of the rounding errors of means of the same draws, summed in another order."""

MODELS = {
    "one intercept": "y ~ x + (1 | g)",
    "correlated": "y ~ x + (x | g)",
    "independent": "y ~ x + (x || g)",
    "blocks": "y ~ x + (x | g) + (0 + z | g)",
    "three": "y ~ x + (x + z | g)",
    "crossed": "y ~ x + (x | g) + (z | h:k) + (1 | k)",
    "odd names": "y ~ x + (`a, b` | `2nd [group]`)",
    "reserved name": "y ~ x + (x | sample)",
}
ENGINES = ("collapsed", "laplace")


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(1)
    n = 120
    data = pd.DataFrame({name: rng.standard_normal(n) for name in ("x", "z", "a, b")})
    data["g"] = np.arange(n) % 6
    data["h"] = rng.integers(3, size=n)
    data["k"] = rng.integers(2, size=n)
    data["2nd [group]"] = np.array(["a, b", "u_[c]", "ß", "308", "é"])[np.arange(n) % 5]
    data["sample"] = data["g"]
    slopes = rng.standard_normal((6, 2))
    data["y"] = slopes[data["g"], 0] + (1 + slopes[data["g"], 1]) * data["x"]
    data["y"] += 0.7 * rng.standard_normal(n)
    return data


class Posteriors(dict):
    """By model and engine, each made where it is first asked for."""

    def __init__(self, frame):
        super().__init__()
        self.frame = frame

    def __missing__(self, key):
        name, engine = key
        model = blm.LMM(MODELS[name], self.frame)
        self[key] = model.fit(method=engine, draws=50, random_seed=1)
        return self[key]


@pytest.fixture(scope="module")
def posteriors(frame):
    return Posteriors(frame)


def labelled(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """Draws by ArviZ's label, each selected by its coordinates."""
    label = BaseLabeller().make_label_flat
    return {
        label(name, sel, isel): dataset[name].sel(sel).to_numpy()
        for name, sel, isel in xarray_sel_iter(dataset, skip_dims={"chain", "draw"})
    }


def assert_summary_is_right(data, **options):
    """No warning, nothing missing, and under every label the mean and sd of what it names."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = az.summary(data, round_to="none", **options)
    dataset = data if isinstance(data, xr.Dataset) else data[options.get("group", "posterior")]
    dataset = dataset if isinstance(dataset, xr.Dataset) else dataset.to_dataset()
    expected = labelled(dataset[options.get("var_names") or list(dataset.data_vars)])
    assert list(table.index) == list(expected)
    assert np.all(np.isfinite(table.to_numpy(dtype=float)))
    means = [values.mean() for values in expected.values()]
    assert table["mean"].to_numpy() == pytest.approx(means, rel=EXACT, abs=EXACT)
    sds = [values.std(ddof=1) for values in expected.values()]
    assert table["sd"].to_numpy() == pytest.approx(sds, rel=EXACT)


# --- labels ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "engine"), one_in(3, itertools.product(MODELS, ENGINES)))
def test_summary(posteriors, name, engine):
    assert_summary_is_right(posteriors[name, engine].data)


@pytest.mark.slow
def test_summary_of_variables_in_any_order(posteriors):
    data = posteriors["crossed", "collapsed"].data
    names = ("corr_g", "sd_g", "u_g", "u_h_k")
    for chosen in itertools.islice(itertools.permutations(names, 3), 0, None, 3):
        assert_summary_is_right(data, var_names=list(chosen), kind="stats")


@pytest.mark.parametrize(("name", "engine"), one_in(3, itertools.product(MODELS, ENGINES)))
def test_numbers_are_those_of_the_tables(posteriors, name, engine):
    """By another way than coordinates: `ranef` reads arrays by place."""
    post = posteriors[name, engine]
    draws = post.data["posterior"]
    for factor, table in zip(post.design.random, post.ranef().values(), strict=True):
        u = draws[f"u_{factor.key}"].mean(("chain", "draw"))
        level, coef = u.dims[::-1]
        for i, j in np.ndindex(table.shape):
            at = {level: factor.levels[i], coef: factor.coefs[j]}
            found = float(u.sel(at))
            assert found == pytest.approx(table.iloc[i, j], rel=EXACT, abs=EXACT), at


@pytest.mark.parametrize("name", ["post.nc", slow("post.zarr")])
def test_loaded_extended_and_updated(posteriors, frame, tmp_path, name):
    post = posteriors["correlated", "collapsed"].with_prior(60, random_seed=1)
    post.save(tmp_path / name)
    loaded = blm.load(tmp_path / name)
    before, after = (p.data["posterior"].to_dataset() for p in (post, loaded))
    assert list(after.data_vars) == list(before.data_vars)
    assert set(after.coords) == set(before.coords)
    xr.testing.assert_identical(after, before)
    assert_summary_is_right(loaded.data, kind="stats")
    assert_summary_is_right(loaded.data, group="prior", kind="stats")
    extended = loaded.extend(30, random_seed=2)
    assert extended.data["posterior"]["cor_g"].sizes["draw"] == 80
    assert "cor_g" in extended.data["posterior"].coords
    assert_summary_is_right(extended.data)
    model = blm.LMM(MODELS["correlated"], frame).update("y ~ . + z", data=frame)
    assert_summary_is_right(model.fit(draws=50, random_seed=1).data, kind="stats")


@pytest.mark.slow
def test_files_that_arviz_reads_itself(posteriors, tmp_path):
    """Zarr lists variables by the alphabet, netCDF as they were: the labels hold for both."""
    post = posteriors["correlated", "collapsed"]
    post.save(tmp_path / "post.nc")
    assert_summary_is_right(az.from_netcdf(tmp_path / "post.nc"), kind="stats")
    post.save(tmp_path / "post.zarr")
    for consolidated in (True, False):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
            tree = xr.open_datatree(
                tmp_path / "post.zarr", engine="zarr", chunks=None, consolidated=consolidated
            ).load()
        assert_summary_is_right(tree, kind="stats")
        assert "cor_g" in tree["posterior"].coords


def test_foreign_order_is_put_right(posteriors):
    """As other programs, and earlier versions of this one, would write it."""
    post = posteriors["three", "collapsed"]
    right = post.data["posterior"].to_dataset()
    wrong = right.reset_coords("cor_g").drop_vars(["corr_g", "g_pair"])
    wrong["u_g"] = right["u_g"].transpose("chain", "draw", "g", "g_coef")
    wrong["mine"] = 2.0 * right["sigma"]
    wrong = wrong[sorted(wrong.data_vars)]
    found = arranged(post.design, wrong)
    assert list(found.data_vars) == [*right.data_vars, "mine"]
    xr.testing.assert_identical(found.drop_vars("mine"), right)
    xr.testing.assert_identical(arranged(post.design, right), right)


def test_arviz_still_mislabels_a_dimension_that_comes_early(posteriors):
    """Fails when ArviZ mends `summary`: then ``u_g`` need not have its coefficients first."""
    draws = posteriors["correlated", "collapsed"].data["posterior"].to_dataset()
    draws["u_g"] = draws["u_g"].transpose("chain", "draw", "g", "g_coef")
    found = az.summary(draws[["sd_g", "u_g"]], kind="stats", round_to="none")["mean"]
    expected = {label: values.mean() for label, values in labelled(draws[["sd_g", "u_g"]]).items()}
    wrong = [label for label, mean in expected.items() if abs(found[label] - mean) > EXACT]
    assert len(wrong) == 10 and all(label.startswith("u_g") for label in wrong)


def test_extract(posteriors):
    for name in ("blocks", "crossed"):
        data = posteriors[name, "collapsed"].data
        before = labelled(data["posterior"].to_dataset())
        stacked = az.extract(data)
        for variable, sel, isel in xarray_sel_iter(stacked, skip_dims={"sample"}):
            values = before[BaseLabeller().make_label_flat(variable, sel, isel)]
            np.testing.assert_array_equal(stacked[variable].sel(sel), values.ravel())
        assert stacked["cor_g"].dims == ("g_coef", "g_coef_bis", "sample")
        np.testing.assert_array_equal(
            az.extract(data, var_names=["sd_g"]).transpose(..., "g_coef").to_numpy(),
            data["posterior"]["sd_g"].to_numpy().reshape(200, -1),
        )


@pytest.mark.parametrize("names", [slow(None), ["sd_g", "corr_g", "u_g"]], ids=["all", "some"])
def test_forest(posteriors, names):
    data = posteriors["three", "collapsed"].data
    pc = az.plot_forest(data, var_names=names, backend="none", combined=True)
    points = pc.viz["point_estimate"].dataset
    drawn = data["posterior"].to_dataset()
    assert set(points.data_vars) == set(names or drawn.data_vars)
    for variable, sel, _ in xarray_sel_iter(points, skip_dims=set()):
        element = points[variable].sel(sel).item()
        shown = drawn[variable].sel(sel).mean().item()
        assert float(np.ravel(element["x"])[0]) == pytest.approx(shown, rel=EXACT, abs=EXACT)


# --- constants -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_correlation_matrices_are_exact(posteriors, engine):
    post = posteriors["blocks", engine].with_prior(40, random_seed=1)
    for group in ("posterior", "prior"):
        matrix = post.data[group]["cor_g"].to_numpy()
        assert np.all(np.diagonal(matrix, axis1=-2, axis2=-1) == 1.0)
        np.testing.assert_array_equal(matrix, matrix.swapaxes(-2, -1))
        assert np.abs(matrix).max() == 1.0
        assert np.all(matrix[..., 2, :2] == 0.0)
        pairs = post.data[group]["corr_g"]
        assert list(pairs["g_pair"].to_numpy()) == ["Intercept, x"]
        np.testing.assert_array_equal(pairs[..., 0], matrix[..., 0, 1])


def test_correlations_that_the_formula_sets_to_zero_are_no_variables(posteriors):
    draws = posteriors["independent", "collapsed"].data["posterior"].to_dataset()
    assert not [name for name in draws.data_vars if str(name).startswith("cor")]
    np.testing.assert_array_equal(draws["cor_g"].isel(chain=0, draw=0), np.eye(2))


# --- all groups ------------------------------------------------------------------------


def test_all_groups_in_one_call(posteriors, caplog):
    post = posteriors["correlated", "collapsed"]
    tree = post.to_arviz("all", random_seed=1)
    added = {"log_likelihood", "log_prior", "posterior_predictive", "prior", "prior_predictive"}
    assert set(tree.children) == set(post.data.children) | added
    assert not added & set(post.data.children) and not caplog.records
    again = post.to_arviz(random_seed=1)
    for name in added:
        xr.testing.assert_equal(tree[name].to_dataset(), again[name].to_dataset())
    few = post.to_arviz(["prior", "log_prior"])
    assert set(few.children) == set(post.data.children) | {"prior", "log_prior"}
    population = post.with_posterior_predictive(target="population", random_seed=3)
    kept = population.to_arviz("posterior_predictive", random_seed=1)["posterior_predictive"]
    xr.testing.assert_identical(kept.dataset, population.data["posterior_predictive"].dataset)


def test_functions_find_their_groups(posteriors):
    tree = posteriors["correlated", "collapsed"].to_arviz("all", random_seed=1)
    chosen = ["sd_g", "corr_g", "sigma"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto distribution")
        az.loo(tree)
        sensitivity = az.psense_summary(tree, var_names=[*chosen, "u_g"])
        az.plot_prior_posterior(tree, var_names=chosen, backend="none")
        az.plot_ppc_dist(tree, num_samples=5, backend="none")
    assert list(sensitivity.index) == list(
        labelled(tree["posterior"].to_dataset()[[*chosen, "u_g"]])
    )


def test_groups_that_do_not_exist(frame, posteriors, caplog):
    flat = blm.LMM(MODELS["correlated"], frame, priors="flat")
    post = flat.fit(draws=50, random_seed=1, store_u=False)
    caplog.clear()
    tree = post.to_arviz("all", random_seed=1)
    assert {"log_prior", "posterior_predictive"} <= set(tree.children)
    assert not {"prior", "prior_predictive", "log_likelihood"} & set(tree.children)
    assert [record.message.split(" is left out")[0] for record in caplog.records] == [
        "The group log_likelihood",
        "The group prior",
        "The group prior_predictive",
    ]
    with pytest.raises(PriorError, match="Flat priors cannot be drawn from"):
        post.to_arviz("prior")
    with pytest.raises(SamplingError, match="are not stored"):
        post.to_arviz(["log_likelihood"])
    with pytest.raises(ValueError, match=r"groups=\['posterior'\]: 'all' or any of"):
        post.to_arviz(["posterior"])


def test_one_level_and_one_coefficient_have_no_constants(frame):
    """Effects that the data do not inform still vary from draw to draw."""
    post = blm.LMM("y ~ 1 + (1 | g)", frame.assign(y=frame["z"])).fit(draws=50, random_seed=1)
    assert_summary_is_right(post.data)


@pytest.mark.slow
def test_summary_of_nuts(frame):
    """The centred form, whose effects have levels first in PyMC; the effects are near the exact."""
    model = blm.LMM(MODELS["three"], frame)
    options = {"tune": 300, "cores": 1, "chains": 2, "progressbar": False, "random_seed": 1}
    post = model.fit(method="nuts", form="centered", draws=200, **options)
    exact = model.fit(random_seed=1)
    assert_summary_is_right(post.data)
    gap = (post.ranef()["g"] - exact.ranef()["g"]) / exact.ranef_sd()["g"]
    assert np.abs(gap.to_numpy()).max() < 0.5
