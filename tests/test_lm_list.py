"""A regression in each level of a grouping factor, beside nlme and least squares level by level."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from reference_data import load_reference_data

import bayeslmm as blm
from bayeslmm.estimation.level_fits import fit_levels

FIGURES = json.loads(
    (Path(__file__).parent / "reference" / "selection" / "selection.json").read_text("utf-8")
)["lists"]

CASES = {
    "sleepstudy": ("Reaction ~ Days | Subject", "sleepstudy"),
    "orthodont": ("distance ~ age | Subject", "Orthodont"),
}


@pytest.mark.parametrize("name", CASES)
def test_as_nlme(name):
    formula, data = CASES[name]
    fits, expected = blm.lm_list(formula, load_reference_data(data)), FIGURES[name]
    assert fits.sigma == pytest.approx(expected["sigma"])
    assert fits.df == expected["df"]
    levels = expected["levels"]
    coef = pd.DataFrame(expected["coef"]).set_index("level").iloc[:, :2]
    assert_allclose(fits.coef.loc[coef.index], coef, rtol=1e-9)
    table = fits.intervals()
    for column, figures in (("conf_low", "low"), ("conf_high", "high")):
        assert_allclose(table[column].unstack()[list(fits.coefs)].loc[levels], expected[figures])
    errors = np.column_stack(list(expected["se"].values()))
    assert_allclose(fits.std_errors().loc[levels], errors)
    assert "degrees of freedom" in repr(fits)
    assert fits.notes == ()


def test_each_level_is_least_squares():
    rng = np.random.default_rng(1)
    codes = rng.permutation(np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 7, 8, 9]))
    X = np.column_stack([np.ones(45), rng.standard_normal(45) + 1e5, rng.integers(0, 2, 45)])
    X[codes == 8, 2] = 1.0  # as the constant, in one level
    y = rng.standard_normal(45) + X[:, 1]
    found = fit_levels(y, X, codes, 9)
    for level in range(9):
        own, rank = X[codes == level], []
        for j in range(3):
            if np.linalg.matrix_rank(own[:, [*rank, j]], tol=1e-6) == len(rank) + 1:
                rank.append(j)
        triangle = np.linalg.qr(own[:, rank])[1]
        coef, *_ = np.linalg.lstsq(own[:, rank], y[codes == level])
        rss = np.sum((y[codes == level] - own[:, rank] @ coef) ** 2)
        assert_allclose(found.coef[level, rank], coef, rtol=1e-6)
        inverse = np.linalg.inv(triangle)
        assert_allclose(found.unscaled[level, rank], (inverse**2).sum(axis=1), rtol=1e-6)
        assert np.isnan(np.delete(found.coef[level], rank)).all()
        assert found.rss[level] == pytest.approx(rss, abs=1e-8)
        assert found.df[level] == (codes == level).sum() - len(rank)


def test_levels_that_cannot_tell(sleepstudy):
    frame = sleepstudy[~((sleepstudy["Subject"].astype(str) == "308") & (sleepstudy["Days"] > 0))]
    fits = blm.lm_list("Reaction ~ Days | Subject", frame)
    assert fits.coef.loc["308"].isna().tolist() == [False, True]
    assert fits.notes == ("Days cannot be told in 1 level: 308.",)
    assert "Days cannot be told" in repr(fits)
    assert fits.nobs["308"] == 1 and np.isnan(fits.sigmas["308"])
    own = fits.intervals(pool=False)
    assert np.isnan(own.loc[("308", "Intercept"), "conf_low"])
    line = np.polyfit(np.arange(10), frame.loc[frame["Subject"] == "309", "Reaction"], 1)
    assert own.loc[("309", "Days"), "estimate"] == pytest.approx(line[0])
    assert own.loc[("309", "Days"), "df"] == 8


def test_weights_offsets_and_functions(sleepstudy):
    frame = sleepstudy.assign(w=np.linspace(0.5, 2.0, 180))
    fits = blm.lm_list(
        "Reaction ~ twice(Days) + offset(Days) | Subject",
        frame,
        weights="w",
        functions={"twice": lambda x: 2 * x},
    )
    rows = frame["Subject"].astype(str) == "308"
    slope, _ = np.polyfit(
        frame["Days"][rows], frame["Reaction"][rows], 1, w=np.sqrt(frame["w"][rows])
    )
    assert fits.coef.loc["308", "twice(Days)"] == pytest.approx((slope - 1.0) / 2.0)


def test_many_levels():
    rng = np.random.default_rng(3)
    codes, x = np.repeat(np.arange(20_000), 5), rng.standard_normal(100_000)
    found = fit_levels(2.0 * x, np.column_stack([np.ones(100_000), x]), codes, 20_000)
    assert_allclose(found.coef[:, 1], 2.0)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("Reaction ~ Days", "one bar"),
        ("Reaction ~ Days || Subject", "one bar"),
        ("Reaction ~ Days + (Days | Subject)", "one bar"),
        ("Reaction ~ Days | Subject / Days", "one grouping factor"),
        ("Reaction ~ Days |", "one grouping factor"),
        ("Reaction ~ Days + (1 | half) | Subject", r"no random effects: take \(1 \| half\) out"),
        ("Reaction ~ Days | mm(Subject, half)", "one grouping factor"),
        ("Reaction ~ Days | Subject, by=half", "one grouping factor"),
        ("Reaction ~ Days | Subjct", "Did you mean `Subject`"),
    ],
)
def test_formulas_that_make_no_sense(sleepstudy, formula, message):
    with pytest.raises(blm.FormulaError, match=message):
        blm.lm_list(formula, sleepstudy.assign(half=["a", "b"] * 90))


def test_the_place_of_random_effects_is_shown(sleepstudy):
    with pytest.raises(blm.FormulaError) as caught:
        blm.lm_list("Reaction ~ Days + (1 | Days) | Subject", sleepstudy)
    line, carets = str(caught.value).splitlines()[-2:]
    start = carets.index("^")
    assert line[start : start + carets.count("^")] == "(1 | Days)"


def test_data_that_tell_nothing(sleepstudy):
    with pytest.raises(blm.DataError, match="in memory"):
        blm.lm_list("Reaction ~ Days | Subject", [sleepstudy])
    two = sleepstudy[sleepstudy["Days"] < 2]
    with pytest.raises(blm.DataError, match="No level of Subject has more rows than coefficients"):
        blm.lm_list("Reaction ~ Days | Subject", two)
    for level in (95, "a"):
        with pytest.raises(ValueError, match=f"level={level!r}"):
            blm.lm_list("Reaction ~ Days | Subject", sleepstudy).intervals(level)


def test_the_picture(sleepstudy):
    fits = blm.lm_list("Reaction ~ Days | Subject", sleepstudy)
    assert fits.plot(backend="none") is not None
    with pytest.raises(ValueError, match="coefs names"):
        fits.plot("q", backend="none")
