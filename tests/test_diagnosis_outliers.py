"""Outliers: standard units against dense algebra, named rows and levels, hostile designs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bayeslmm as blm
from bayeslmm.checks.residuals import standard_units
from bayeslmm.sampling.joint_draws import point_draws

FOLDER = Path(__file__).parent / "reference" / "influence"
ROUNDING = 1e-8
OPTIMUM = 1e-5
"""Accuracy of nlme's estimates, in a t statistic."""


def simulated(rng, n_levels=30, per_level=10):
    group = np.repeat(np.arange(n_levels), per_level)
    x = rng.normal(size=len(group))
    y = 1.0 + x + rng.normal(size=n_levels)[group] + rng.normal(size=len(group))
    return pd.DataFrame({"y": y, "x": x, "g": group.astype(str)})


def model_of(data, **options):
    return blm.LMM("y ~ x + (1 | g)", data, **options)


# --- standard units --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "weights"),
    [
        ("y ~ x + (x | g)", None),
        ("y ~ x + (x | g) + (1 | h)", "w"),
        ("y ~ x + (1 | g) + (1 | gh)", None),
        ("y ~ x + (1 | g) + (1 | h) + (1 | gh)", "w"),
    ],
)
def test_standard_units_are_those_of_dense_algebra(formula, weights):
    """Py over the root of the diagonal of P, and the same along each random effect."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, [8, 5], (60, 2))
    data = pd.DataFrame(codes.astype(str), columns=["g", "h"])
    data = data.assign(gh=data["g"] + data["h"], x=rng.normal(size=60), w=rng.uniform(0.5, 2.0, 60))
    data["y"] = rng.normal(size=60) + rng.normal(size=8)[codes[:, 0]] * (1.0 + data["x"])
    reml = blm.LMM(formula, data, weights=weights).reml()
    design, inverse = reml.design, np.linalg.inv(reml.V().to_numpy())
    X = design.X
    P = inverse - inverse @ X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse)
    ((_, units),) = standard_units(design, reml.fit.plan, None, point_draws(reml.fit, ()))
    other = rng.normal(size=(3, 60))
    for responses, found in ((design.y[None], units.observed()), (other, units.replicated(other))):
        score = responses @ P
        expected = score / np.sqrt(np.diag(P))
        np.testing.assert_allclose(found.residuals, expected, atol=ROUNDING)
        for factor, effects in zip(design.random, found.effects, strict=True):
            for c in range(factor.n_coefs):
                A = np.eye(factor.n_levels)[factor.codes] * factor.Z[:, [c]]
                expected = score @ A / np.sqrt(np.diag(A.T @ P @ A))
                np.testing.assert_allclose(effects[:, :, c], expected, atol=ROUNDING)


# --- rows ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reml", "posterior"])
def test_an_outlier_of_eight_sigma_in_300_rows_is_named(kind):
    data = simulated(np.random.default_rng(3))
    data.loc[17, "y"] += 8.0
    data.index = [f"case {i}" for i in range(300)]
    model = model_of(data)
    fit = model.reml() if kind == "reml" else model.fit(draws=250, random_seed=1)
    found = fit.check.residuals(random_seed=1)
    assert found.table.loc["largest residual", "p_value"] < 1e-6
    assert found.largest.loc["largest residual", "case"] == "row case 17 (g 1)"
    text = " ".join(found.messages)
    assert "largest residual (p = " in text
    assert "row case 17 (g 1) is " in text
    assert "standard deviations from what the other rows say of it" in text
    # the same data without it raise no alarm
    model = model_of(data.drop(index="case 17"))
    fit = model.reml() if kind == "reml" else model.fit(draws=250, random_seed=1)
    assert fit.check.residuals(random_seed=1).table.loc["largest residual", "p_value"] > 0.05


@pytest.mark.parametrize("kind", ["reml", "posterior"])
def test_the_outlying_rat_pup_is_named(kind):
    data = pd.read_csv(FOLDER / "RatPupWeight.csv", dtype={"Litter": str})
    reference = pd.read_csv(FOLDER / "outlier.csv").iloc[0]
    data.index = np.arange(1, len(data) + 1)
    model = blm.LMM("weight ~ Treatment * sex + Lsize + (1 | Litter)", data)
    fit = model.reml() if kind == "reml" else model.fit(draws=250, random_seed=1)
    found = fit.check.residuals(random_seed=1)
    assert found.largest.loc["largest residual", "case"] == "row 66 (Litter 6)"
    assert found.table.loc["largest residual", "p_value"] < 1e-12
    if kind == "reml":
        deviation = found.largest.loc["largest residual", "deviation"]
        assert deviation == pytest.approx(reference["t"], rel=OPTIMUM)
        assert found.residuals.loc[66, "pearson"] == pytest.approx(reference["scaled"], rel=1e-4)


def test_the_row_test_is_exact_where_nothing_else_is_estimated():
    """Without spread between levels: the externally studentised residual of a linear model."""
    rng = np.random.default_rng(8)
    x = np.tile(np.arange(5.0), 12)
    data = pd.DataFrame({"x": x, "y": x + rng.normal(size=60), "g": np.repeat(np.arange(12), 5)})
    data["y"] -= data.groupby("g")["y"].transform("mean")
    reml = model_of(data.astype({"g": str})).reml()
    assert reml.singular
    found = reml.check.residuals(20, random_seed=1)
    X = np.column_stack([np.ones(60), x])
    hat = X @ np.linalg.pinv(X)
    residual = data["y"].to_numpy() - hat @ data["y"]
    internal = residual**2 / (1.0 - np.diag(hat)) / (residual @ residual / 58)
    external = np.sqrt(internal * 57 / (58 - internal)).max()
    assert abs(found.largest["deviation"].iloc[0]) == pytest.approx(external, rel=1e-6)
    p_value = min(1.0, 60 * 2 * stats.t.sf(external, 57))
    assert found.table.loc["largest residual", "p_value"] == pytest.approx(p_value, rel=1e-4)


def test_several_outliers_are_named():
    data = simulated(np.random.default_rng(3))
    data.loc[[17, 100, 250], "y"] += [10.0, -9.0, 9.0]
    text = " ".join(model_of(data).reml().check.residuals(random_seed=1).messages)
    assert "row 17 (g 1) is" in text
    assert "Far out are also row 100 (g 10) and row 250 (g 25)" in text.replace(
        "row 250 (g 25) and row 100 (g 10)", "row 100 (g 10) and row 250 (g 25)"
    )


@pytest.mark.slow
def test_ten_rows_and_thirty_thousand():
    rng = np.random.default_rng(1)
    for n_levels, per_level in ((5, 2), (3000, 10)):
        data = simulated(rng, n_levels, per_level)
        for size, low, high in ((0.0, 0.01, 1.0), (30.0, 0.0, 0.05)):
            changed = data.assign(y=data["y"] + size * (np.arange(len(data)) == 4))
            found = model_of(changed).reml().check.residuals(20, random_seed=1)
            assert low <= found.table.loc["largest residual", "p_value"] <= high
            assert np.isfinite(found.table.to_numpy()).all()


def test_a_posterior_of_ten_rows_is_not_masked():
    """One row of ten moves sigma too much for importance weights: sampled without it."""
    data = simulated(np.random.default_rng(1), 5, 2)
    data.loc[4, "y"] += 30.0
    post = model_of(data).fit(draws=250, random_seed=1)
    assert post.check.residuals(random_seed=1).table.loc["largest residual", "p_value"] < 0.05


# --- levels ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reml", "posterior"])
def test_an_outlying_level_is_named(kind):
    data = simulated(np.random.default_rng(5), 20, 6)
    data["y"] += 10.0 * (data["g"] == "7")
    model = model_of(data)
    fit = model.reml() if kind == "reml" else model.fit(draws=250, random_seed=1)
    found = fit.check.residuals(random_seed=1)
    assert found.table.loc["largest random effect[g, Intercept]", "p_value"] < 0.01
    assert found.largest.loc["largest random effect[g, Intercept]", "case"] == "g 7"
    assert "g 7 is " in " ".join(found.messages)
    assert found.table.loc["largest residual", "p_value"] > 0.05


def test_an_outlying_slope_is_told_from_an_intercept():
    rng = np.random.default_rng(5)
    group, x = np.repeat(np.arange(20), 8), np.tile(np.arange(8.0) - 3.5, 20)
    slopes = 0.3 * rng.normal(size=20)
    slopes[4] = -4.0
    y = rng.normal(size=20)[group] + slopes[group] * x + rng.normal(size=160)
    data = pd.DataFrame({"y": y, "x": x, "g": group.astype(str)})
    table = blm.LMM("y ~ x + (x || g)", data).reml().check.residuals(random_seed=1)
    assert table.largest.loc["largest random effect[g, x]", "case"] == "g 4"
    assert table.table.loc["largest random effect[g, x]", "p_value"] < 0.01
    assert table.table.loc["largest random effect[g, Intercept]", "p_value"] > 0.05


# --- hostile designs -------------------------------------------------------------------


def test_a_row_that_is_fitted_exactly_is_left_out():
    data = simulated(np.random.default_rng(5), 10, 6)
    data["own"] = (np.arange(60) == 11).astype(float)
    data.loc[11, "y"] += 50.0
    found = blm.LMM("y ~ x + own + (1 | g)", data).reml().check.residuals(random_seed=1)
    assert np.isnan(found.residuals["standardised"].iloc[11])
    assert np.isfinite(found.table.to_numpy()).all()
    assert found.table.loc["largest residual", "p_value"] > 0.05


def test_two_levels_and_single_rows():
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"x": rng.normal(size=40), "y": rng.normal(size=40)})
    data["g"], data["h"] = np.repeat(["a", "b"], 20), np.r_[np.arange(37), 0, 1, 2].astype(str)
    found = blm.LMM("y ~ x + (1 | g) + (1 | h)", data).reml().check.residuals(random_seed=1)
    assert "largest random effect[g, Intercept]" not in found.table.index
    assert "largest random effect[h, Intercept]" in found.table.index
    assert np.isfinite(found.table.to_numpy()).all()


def test_what_cannot_be_tested_is_said(monkeypatch):
    def refuse(*_):
        raise blm.exceptions.DataError("no maximum")

    monkeypatch.setattr("bayeslmm.checks.residual_checks.fit_likelihood", refuse)
    found = model_of(simulated(np.random.default_rng(5), 10, 6)).reml().check.residuals(40)
    assert "The largest residual was not tested: no maximum" in found.messages
    assert "largest residual" not in found.table.index


def test_a_whitening_of_one_draw_has_many_replicates(monkeypatch):
    """Where whitening is dear there is one draw, but its p-value is not one of two numbers."""
    model = model_of(simulated(np.random.default_rng(5), 10, 6))
    post = model.fit(draws=250, random_seed=1)
    monkeypatch.setattr("bayeslmm.checks.residuals.CUBES", 1.0)
    p_value = post.check.residuals(100, random_seed=1).table.loc[
        "normality of whitened y - X beta", "p_value"
    ]
    assert 0.02 < p_value < 1.0


def test_units_do_not_matter():
    data = simulated(np.random.default_rng(5), 10, 6)
    table = model_of(data).reml().check.residuals(40, random_seed=1).table
    for factor in (1e-6, 1e6):
        scaled = model_of(data.assign(y=factor * data["y"], x=data["x"] / factor))
        other = scaled.reml().check.residuals(40, random_seed=1).table
        np.testing.assert_allclose(other["p_value"], table["p_value"], atol=1e-3)


def test_other_estimates_of_the_model_are_checked():
    model = model_of(simulated(np.random.default_rng(5), 10, 6))
    reml, ml, mode = (
        fit.check.residuals(40, random_seed=1) for fit in (model.reml(), model.ml(), model.map())
    )
    for other in (ml, mode):
        assert list(other.table.index) == list(reml.table.index)
        found, expected = (c.table.loc["largest residual"] for c in (other, reml))
        pd.testing.assert_series_equal(found, expected)
