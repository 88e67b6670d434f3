"""Terms taken out one at a time beside lmerTest, and the exact test of a variance."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from reference_data import load_reference_data
from scipy import stats
from scipy.optimize import minimize_scalar
from slow_cases import one_in, slow

import bayeslmm as blm
from bayeslmm.comparison.boundary import mixture_p_value
from bayeslmm.comparison.exact_lrt import _maxima
from bayeslmm.formula.deletions import random_deletions
from bayeslmm.formula.grammar import parse

FIGURES = json.loads(
    (Path(__file__).parent / "reference" / "selection" / "selection.json").read_text("utf-8")
)

MODELS = {
    "sleepstudy": "Reaction ~ Days + (Days | Subject)",
    "sleepstudy_ml": "Reaction ~ Days + (Days | Subject)",
    "sleepstudy_uncorrelated": "Reaction ~ Days + (Days || Subject)",
    "machines": "score ~ Machine + (0 + Machine | Worker)",
    "machines_nested": "score ~ Machine + (1 | Worker/Machine)",
    "oats": "Q('yield') ~ nitro * Variety + (1 | Block/Variety)",
    "cake": "angle ~ recipe * temperature + (1 | recipe:replicate)",
    "orthodont": "distance ~ age * Sex + (age | Subject)",
    "design": "y ~ x * f1 + f2 + (x | g)",
    "pastes": "strength ~ 1 + (1 | batch/cask)",
    "penicillin": "diameter ~ 1 + (1 | plate) + (1 | sample)",
    "dyestuff2": "Yield ~ x + z + (1 | Batch)",
}
DATA = {
    "machines": "Machines",
    "oats": "Oats",
    "orthodont": "Orthodont",
    "design": "sim_design",
    "pastes": "Pastes",
    "penicillin": "Penicillin",
    "dyestuff2": "Dyestuff2",
}

CRITERION = 2e-5
"""Absolute difference of a criterion, which lme4's optimiser finds to about 1e-6."""

RELATIVE = 2e-3
"""lmerTest differentiates numerically, and its Satterthwaite df are good to this."""


@cache
def estimate(name):
    frame = load_reference_data(
        DATA.get(name.split("_")[0], "sleepstudy" if "sleep" in name else name)
    )
    if name == "oats":
        frame = frame.iloc[20:]
    if name == "dyestuff2":
        rows = np.arange(1, 31)
        frame = frame.assign(x=rows * 7.0 % 11, z=rows * 5.0 % 13)
    model = blm.LMM(MODELS[name], frame)
    return model.ml() if name.endswith("_ml") else model.reml()


def plain(label):
    """A row's name without lme4's order of the variables of a grouping factor."""
    groups = re.sub(r"(\w+):(\w+)\)", lambda m: ":".join(sorted(m.groups())) + ")", label)
    return ":".join(sorted(groups.split(":"))) if "|" not in groups else groups


def figures(rows, columns):
    frame = pd.DataFrame(rows)
    frame.index = [
        re.sub(r"\d+$", "", plain(term)) if term[0] == "<" else plain(term)
        for term in frame["term"]
    ]
    return frame.reindex(columns=columns).astype(float)


def assert_random(found, rows):
    expected = figures(rows, ["npar", "logLik", "AIC", "LRT", "Df", "p_value"])
    found = found.set_axis([plain(label) for label in found.index])
    found = found.loc[expected.index, ["n_parameters", "loglik", "aic", "chisq", "df", "p_value"]]
    assert_allclose(found.astype(float).iloc[:, [0, 4]], expected.iloc[:, [0, 4]])
    assert_allclose(found.iloc[:, 1:4], expected.iloc[:, 1:4], atol=CRITERION)
    assert_allclose(found["p_value"], expected["p_value"], rtol=RELATIVE, atol=1e-5)


def assert_fixed(found, rows):
    columns = ["Sum Sq", "Mean Sq", "NumDF", "DenDF", "statistic", "p_value"]
    if not rows:
        assert len(found) == 0
        return
    expected = figures(rows, columns)
    found = found.set_axis([plain(label) for label in found.index])
    assert list(found.index) == list(expected.index)
    if expected["DenDF"].isna().all():  # R's table of a plain regression
        expected = figures(rows, ["Sum of Sq", "p_value"])
        assert_allclose(found[["sum_sq", "p_value"]], expected, rtol=1e-6)
        return
    names = ["sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value"]
    assert_allclose(found[names].astype(float), expected, rtol=RELATIVE, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_deletions_as_lmertest(name):
    fit, expected = estimate(name), FIGURES["selection"][name]
    assert_random(fit.ranova(), expected["ranova"])
    assert_random(fit.ranova(reduce_terms=False), expected["whole"])
    assert_fixed(fit.drop1(), expected["drop1"])


@pytest.mark.parametrize("name", one_in(3, MODELS))
def test_steps_as_lmertest(name):
    step, expected = estimate(name).step(), FIGURES["selection"][name]
    assert_random(step.random.drop(columns="eliminated"), expected["random"])
    assert_fixed(step.fixed, expected["fixed"])
    for table, rows in ((step.random, expected["random"]), (step.fixed, expected["fixed"])):
        wanted = figures(rows, ["Eliminated"])["Eliminated"] if rows else pd.Series(dtype=float)
        own = table["eliminated"].astype(float).set_axis([plain(x) for x in table.index])
        assert_allclose(own.loc[wanted.index], wanted)
    keys = parse(expected["found"].replace("((", "(").replace("))", ")")).right.keys
    found = parse(step.formula)
    assert found.right.keys == keys
    assert bool(found.random) == ("|" in expected["found"])
    assert step.fit.method == estimate(name).method
    assert step.fit.loglik == pytest.approx(
        getattr(blm.LMM.from_fit(step.fit), step.fit.method.lower())().loglik
    )
    for part in ("Backward reduced random part", "Backward reduced fixed part", "Model found"):
        assert part in repr(step)


def test_step_keeps_what_it_is_told_to():
    fit = estimate("cake")
    assert "recipe" in fit.step(keep=["recipe"]).formula
    whole = fit.step(reduce_fixed=False)
    assert whole.fit is not fit and whole.formula == fit.design.formula.source
    assert list(whole.fixed["eliminated"]) == [0]
    none = estimate("pastes").step(alpha_random=0.0001)
    assert none.formula == "strength ~ 1 + (1 | batch:cask)"
    assert list(estimate("pastes").step(reduce_random=False).random["eliminated"].dropna()) == [
        0,
        0,
    ]
    with pytest.raises(ValueError, match=r"keep= names `q`; the terms .* `recipe`"):
        fit.step(keep="q")
    for alpha in (2, "a", True):
        with pytest.raises(ValueError, match=f"alpha_fixed={alpha!r}"):
            fit.step(alpha_fixed=alpha)


def test_df_reach_the_steps():
    fit = estimate("machines")
    assert fit.drop1(df="residual")["den_df"].tolist() == [51.0]
    assert fit.step(df="residual").fixed["den_df"].tolist() == [51.0]
    assert fit.step(df="residual").fit.fixef()["df"].tolist() != [51.0] * 3
    assert fit.with_df("residual").step().fit.fixef()["df"].tolist() == [51.0] * 3


def test_what_is_left_has_the_users_priors(sleepstudy):
    pm = pytest.importorskip("pymc")
    model = blm.LMM(
        "Reaction ~ Days + (Days | Subject)", sleepstudy, priors={"Days": pm.Normal.dist(10, 5)}
    )
    assert "user" in model.reml().step().model.priors.sources.values()


def test_deletions_of_what_has_none(sleepstudy):
    model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleepstudy)
    with pytest.raises(ValueError, match=r"take model.reml\(\)"):
        model.map().ranova()
    with pytest.raises(blm.DataError, match="no random effects"):
        blm.LMM("Reaction ~ Days", sleepstudy).reml().ranova()
    with pytest.raises(ValueError, match="scope= names q,"):
        model.reml().drop1(scope=["q"])
    assert blm.LMM("Reaction ~ Days", sleepstudy).reml().step().formula == "Reaction ~ Days"
    assert len(estimate("orthodont").drop1()) == 1  # age and Sex are in age:Sex
    assert list(estimate("design").drop1(["f2"]).index) == ["f2"]


def test_a_term_that_others_span_cannot_be_dropped(sleepstudy):
    frame = sleepstudy.assign(twice=2 * sleepstudy["Days"], x=np.arange(180) % 7)
    fit = blm.LMM("Reaction ~ Days + twice + x + (1 | Subject)", frame).reml()
    table = fit.drop1()
    assert table["num_df"].tolist() == [0, 0, 1] and table["p_value"].isna().tolist() == [1, 1, 0]
    plain_fit = blm.LMM("Reaction ~ Days + x + (1 | Subject)", frame).reml()
    assert table.loc["x", "statistic"] == pytest.approx(plain_fit.drop1().loc["x", "statistic"])
    assert "Days + twice" in fit.step().formula


def test_known_parameters(sleepstudy):
    formula = "Reaction ~ Days + (Days | Subject)"
    known = blm.LMM(formula, sleepstudy, fixed={"sigma": 25.0}).reml()
    smaller = blm.LMM("Reaction ~ Days + (1 | Subject)", sleepstudy, fixed={"sigma": 25.0}).reml()
    assert known.ranova()["loglik"].iloc[1] == pytest.approx(smaller.loglik)
    with pytest.raises(blm.DataError, match=r"sd\[Subject, Days\].* are known"):
        blm.LMM(formula, sleepstudy, fixed={"sd[Subject, Days]": 5.0}).reml().ranova()


def test_weights_and_structures_stay(sleepstudy):
    frame = sleepstudy.assign(w=np.linspace(0.5, 2.0, 180))
    fit = blm.LMM("Reaction ~ Days + (Days | Subject)", frame, weights="w").reml()
    smaller = blm.LMM("Reaction ~ Days + (1 | Subject)", frame, weights="w").reml()
    assert fit.ranova()["loglik"].iloc[1] == pytest.approx(smaller.loglik)
    residual = "ar1(Days | Subject)"
    fit = blm.LMM("Reaction ~ Days + (1 | Subject)", frame, residual=residual).reml()
    smaller = blm.LMM("Reaction ~ Days", frame, residual=residual).reml()
    table = fit.ranova()
    assert table["loglik"].iloc[1] == pytest.approx(smaller.loglik)
    assert table.attrs["formulas"]["(1 | Subject)"] == "Reaction ~ Days"
    assert table["p_boundary"].iloc[1] == pytest.approx(table["p_value"].iloc[1] / 2)


DELETIONS = {
    "y ~ x + (x + z | g) + (1 | h)": ["x in (x + z | g)", "z in (x + z | g)", "(1 | h)"],
    "y ~ x + (a*b | g)": ["a:b in (a + b + a:b | g)"],
    "y ~ x + (f || g)": ["f in (0 + f | g)"],
    "y ~ x + (x || g/h)": [
        *("(1 | g)", "x in (0 + x | g)", "(1 | g:h)", "x in (0 + x | g:h)"),
    ],
    "y ~ x + ar1(0 + t | g) + (1 | mm(h, k))": ["ar1(0 + t | g)", "(1 | mm(h, k))"],
    "y ~ x + (x | g, by=f)": ["(x | g, by=f)"],
    "y ~ x + (0 + x + z | `g h`)": ["x in (0 + x + z | `g h`)", "z in (0 + x + z | `g h`)"],
}


@pytest.mark.parametrize("formula", DELETIONS)
def test_what_is_taken_out(formula):
    found = random_deletions(parse(formula), factors={"f"})
    assert list(found) == DELETIONS[formula]
    for smaller in found.values():
        assert parse(smaller).right.keys == parse(formula).right.keys


# --- at the boundary ----------------------------------------------------------------------


def test_mixtures():
    assert mixture_p_value(2.7055434, 1) == pytest.approx(0.05, abs=1e-7)
    expected = 0.5 * stats.chi2.sf(5.138, 1) + 0.5 * stats.chi2.sf(5.138, 2)
    assert mixture_p_value(5.138, 2) == pytest.approx(expected)
    assert expected == pytest.approx(0.05, abs=1e-4)  # Stram and Lee's critical value
    assert mixture_p_value(0.0, 1) == pytest.approx(1.0)


def test_where_the_mixture_is_known(sleepstudy):
    def last(small, large, method="reml"):
        fits = [
            getattr(blm.LMM(f"Reaction ~ {part}", sleepstudy), method)() for part in (small, large)
        ]
        return blm.lrt(*fits).astype(float).iloc[-1]

    row = last("Days + (1 | Subject)", "Days + (Days | Subject)")
    assert row["p_boundary"] == pytest.approx(mixture_p_value(row["chisq"], 2))
    row = last("1 + (1 | Subject)", "Days + (Days || Subject)", "ml")
    assert row["p_boundary"] == pytest.approx(mixture_p_value(row["chisq"], 2))
    row = last("Days", "Days + (1 | Subject)")
    assert row["p_boundary"] == pytest.approx(row["p_value"] / 2)
    for pair in [
        ("Days", "Days + (Days | Subject)"),
        ("Days + (Days || Subject)", "Days + (Days | Subject)"),
        ("1 + (Days | Subject)", "Days + (Days | Subject)"),
    ]:
        assert np.isnan(last(*pair, "ml")["p_boundary"])


def test_refits_as_anova_in_r(sleepstudy):
    parts = ["1 + (1 | Subject)", "Days + (1 | Subject)", "Days + (Days | Subject)"]
    models = [blm.LMM(f"Reaction ~ {part}", sleepstudy) for part in parts]
    table = blm.lrt(*(model.reml() for model in models), refit=True)
    expected = pd.DataFrame(FIGURES["anova"])[
        ["npar", "AIC", "BIC", "logLik", "deviance", "Chisq", "Df", "Pr(>Chisq)"]
    ]
    names = ["n_parameters", "aic", "bic", "loglik", "deviance", "chisq", "df", "p_value"]
    assert_allclose(table[names].astype(float), expected.astype(float), rtol=1e-6, atol=CRITERION)
    assert table.attrs["method"] == "ML"
    assert "Refitted by ML in place of REML: Reaction ~ 1 + (1 | Subject)," in table.attrs["note"]
    with pytest.raises(ValueError, match="Posterior modes"):
        blm.lrt(models[0].map(), models[1].map(), refit=True)


# --- the exact test -----------------------------------------------------------------------

DRAWS = 20_000


def one_way(effect, rng, rows=(4,) * 6):
    group = np.repeat(np.arange(len(rows)), rows)
    y = effect * rng.standard_normal(len(rows))[group] + rng.standard_normal(len(group))
    return pd.DataFrame(
        {"y": y, "g": [f"g{i}" for i in group], "x": rng.standard_normal(len(group))}
    )


@pytest.mark.parametrize("effect", [0.3, 0.6])
def test_the_exact_test_of_a_balanced_layout_is_the_f_test(effect):
    frame = one_way(effect, np.random.default_rng(5))
    fits = [blm.LMM(formula, frame).reml() for formula in ("y ~ 1", "y ~ 1 + (1 | g)")]
    row = blm.exact_lrt(*fits, draws=DRAWS, random_seed=1).iloc[0]
    groups = [part["y"] for _, part in frame.groupby("g")]
    exact = stats.f_oneway(*groups).pvalue  # RLRT is an increasing function of F above 1
    error = np.sqrt(exact * (1 - exact) / DRAWS)
    assert row["chisq"] > 0
    assert row["p_value"] == pytest.approx(exact, abs=4 * error)
    assert row["mc_error"] == pytest.approx(error, rel=0.1)
    zero = stats.f.cdf(1.0, 5, 18)
    assert row["p_zero"] == pytest.approx(zero, abs=4 * np.sqrt(zero * (1 - zero) / DRAWS))
    assert abs(row["p_boundary"] - exact) > 8 * error  # what the test is for


def dense_statistic(X, Z, *, reml):
    """-2 log likelihood ratio of a response by brute force over the ratio of variances."""
    n, p = X.shape

    def parts(log_ratio):
        """What makes residuals of a response, and what the criterion has beside them."""
        root = np.linalg.cholesky(np.eye(n) + np.exp(log_ratio) * Z @ Z.T)
        half = np.linalg.solve(root, X)
        value = 2 * np.log(np.diag(root)).sum()
        if reml:
            value += np.linalg.slogdet(half.T @ half)[1]
        white = np.linalg.inv(root)
        return white - half @ np.linalg.lstsq(half, white)[0], value

    def criterion(residuals, value):
        rss = np.sum(residuals**2, axis=-1)
        return (n - p if reml else n) * np.log(rss) + value

    grid = np.linspace(-10, 6, 33)
    makers, values = (np.array(part) for part in zip(*map(parts, grid), strict=True))
    none = parts(-80.0)

    def statistic(y):
        def at(log_ratio):
            maker, value = parts(log_ratio)
            return criterion(maker @ y, value)

        start = grid[np.argmin(criterion(makers @ y, values))]
        best = minimize_scalar(at, bounds=(start - 0.6, start + 0.6), method="bounded").fun
        return max(0.0, criterion(none[0] @ y, none[1]) - best)

    return statistic


@pytest.mark.parametrize("reml", [True, slow(False)])
def test_the_distribution_is_that_of_refits(reml):
    rng = np.random.default_rng(11)
    frame = one_way(0.5, rng, rows=(2, 3, 3, 5, 7))
    formulas = ("y ~ 1" if not reml else "y ~ x", "y ~ x + (1 | g)")
    fits = [getattr(blm.LMM(f, frame), "reml" if reml else "ml")() for f in formulas]
    row = blm.exact_lrt(*fits, draws=DRAWS, random_seed=1).iloc[0]
    X = np.column_stack([np.ones(20), frame["x"]])
    Z = pd.get_dummies(frame["g"]).to_numpy(dtype=float)

    dense = dense_statistic(X, Z, reml=reml)

    def statistic(y):
        found = dense(y)
        if reml:
            return found
        rss = [np.linalg.lstsq(X[:, :k], y)[1][0] for k in (1, 2)]
        return found + 20 * np.log(rss[0] / rss[1])

    assert row["chisq"] == pytest.approx(statistic(frame["y"].to_numpy()), abs=1e-4)
    values = np.array([statistic(y) for y in rng.standard_normal((200, 20))])
    share = np.mean(values >= row["chisq"])
    assert row["p_value"] == pytest.approx(share, abs=4 * np.sqrt(max(share, 0.01) / 200))
    assert row["p_zero"] == pytest.approx(np.mean(values < 1e-6), abs=0.14)


def test_the_exact_test_beside_other_random_effects(sleepstudy):
    formulas = ["Days + (1 | Subject)", "Days + (Days || Subject)"]
    fits = [blm.LMM(f"Reaction ~ {part}", sleepstudy).reml() for part in formulas]
    table = blm.exact_lrt(*fits, random_seed=1)
    assert table["chisq"].iloc[0] == pytest.approx(42.796, abs=1e-3)
    assert table["p_value"].iloc[0] == 1 / 10_001
    assert "Greven" in table.attrs["note"]
    assert blm.exact_lrt(*fits, random_seed=1).equals(table)


def test_weights_and_relationships_in_the_exact_test():
    rng = np.random.default_rng(2)
    frame = one_way(0.7, rng, rows=(3,) * 8).assign(w=rng.uniform(0.5, 2.0, 24))
    names = frame["g"].unique()
    A = pd.DataFrame(0.5 * np.eye(8) + 0.5, index=names, columns=names)
    plain, mixed = blm.LMM("y ~ 1", frame), blm.LMM("y ~ 1 + (1 | g)", frame)
    related = blm.LMM("y ~ 1 + (1 | g)", frame, relationships={"g": A})
    one = blm.exact_lrt(plain.reml(), mixed.reml(), random_seed=1)
    two = blm.exact_lrt(plain.reml(), related.reml(), random_seed=1)
    assert_allclose(two, one, rtol=1e-5)  # the constant of A is in the span of the intercept
    weighted = [blm.LMM(f, frame, weights="w").reml() for f in ("y ~ 1", "y ~ 1 + (1 | g)")]
    scaled = frame.assign(a=np.sqrt(frame["w"]), y=frame["y"] * np.sqrt(frame["w"]))
    other = [blm.LMM(f, scaled).reml() for f in ("y ~ 0 + a", "y ~ 0 + a + (0 + a | g)")]
    found, expected = (blm.exact_lrt(*fits, random_seed=1) for fits in (weighted, other))
    assert_allclose(found, expected, rtol=1e-5)


def test_maxima_between_the_points_of_a_grid():
    x = np.linspace(-1.0, 1.0, 21)
    curves = -((x - np.array([[0.03], [-0.44], [3.0]])) ** 2)
    assert_allclose(_maxima(curves), [0.0, 0.0, -4.0], atol=1e-12)


def test_what_has_no_exact_test(sleepstudy):
    def fits(*parts, method="reml", **options):
        models = [blm.LMM(f"Reaction ~ {part}", sleepstudy, **options) for part in parts]
        return [getattr(model, method)() for model in models]

    with pytest.raises(ValueError, match="less one term of one variance"):
        blm.exact_lrt(*fits("Days + (1 | Subject)", "Days + (Days | Subject)"))
    with pytest.raises(ValueError, match=r"fit both models with reml\(\)"):
        blm.exact_lrt(*fits("Days + (1 | Subject)", "Days + (Days || Subject)", method="ml"))
    with pytest.raises(ValueError, match="different fixed effects"):
        blm.exact_lrt(*fits("1", "Days + (1 | Subject)"))
    with pytest.raises(blm.DataError, match="independent residuals"):
        blm.exact_lrt(*fits("Days", "Days + (1 | Subject)", residual="ar1(Days | Subject)"))
    for draws in (0, "a", 10.5):
        with pytest.raises(ValueError, match=f"draws={draws!r}"):
            blm.exact_lrt(*fits("Days", "Days + (1 | Subject)"), draws=draws)
    streamed = [
        blm.LMM(f, [sleepstudy]).reml()
        for f in ("Reaction ~ Days", "Reaction ~ Days + (1 | Subject)")
    ]
    with pytest.raises(blm.DataError, match="data beyond memory"):
        blm.exact_lrt(*streamed)
    known = fits("Days + (1 | Subject)", "Days + (Days || Subject)", fixed={"sigma": 30.0})
    with pytest.raises(blm.DataError, match="known covariance parameters"):
        blm.exact_lrt(*known)
