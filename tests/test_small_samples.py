"""How fixed effects of an estimate are judged: the choice, and the verbs that follow it."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bayeslmm as blm
from bayeslmm.estimation.inference import combined_df

FORMULA = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def reml():
    return blm.LMM(FORMULA, blm.load_dataset("sleepstudy")).reml()


@pytest.fixture(scope="module")
def post():
    model = blm.LMM(FORMULA, blm.load_dataset("sleepstudy"))
    return model.fit(method="laplace", draws=100, random_seed=1)


VERBS = {
    "summary": lambda e, **k: e.summary(**k).loc[["beta[Intercept]", "beta[Days]"], "df"],
    "fixef": lambda e, **k: e.fixef(**k)["df"],
    "tidy": lambda e, **k: e.tidy("fixed", **k)["df"],
    "anova": lambda e, **k: e.anova(**k)["den_df"],
    "contest": lambda e, **k: e.contest([[0, 1]], **k)["den_df"],
    "means": lambda e, **k: e.means(**k).table()["df"],
    "contrasts": lambda e, **k: e.contrasts("Days", at={"Days": [0, 9]}, **k).table()["df"],
    "slopes": lambda e, **k: e.slopes("Days", **k).table()["df"],
    "comparisons": lambda e, **k: e.comparisons("Days", **k).table()["df"],
    "average_predictions": lambda e, **k: e.average_predictions(**k).table()["df"],
    "hypothesis": lambda e, **k: e.hypothesis("Days = 8", **k).table()["df"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_follows_the_estimate_and_its_own_df(reml, verb):
    ask = VERBS[verb]
    np.testing.assert_array_equal(ask(reml, df="residual"), 178.0)
    np.testing.assert_array_equal(ask(reml.with_df("residual")), 178.0)
    assert np.isinf(ask(reml.with_df("residual"), df="asymptotic")).all()
    np.testing.assert_array_equal(ask(reml), ask(reml, df="satterthwaite"))
    np.testing.assert_allclose(ask(reml).iloc[-1], 17.0, atol=1.0)  # 18 subjects


def test_p_values_and_intervals_follow_the_degrees_of_freedom(reml):
    row = reml.fixef(df="residual").loc["Days"]
    assert row["p_value"] == pytest.approx(2.0 * stats.t.sf(row["statistic"], 178.0), rel=1e-10)
    margin = stats.t.ppf(0.975, 178.0) * row["std_error"]
    wald = reml.confint(df="residual").loc["beta[Days]"]
    np.testing.assert_allclose(wald, row["estimate"] + np.array([-margin, margin]), rtol=1e-12)
    test = reml.anova(df="asymptotic").loc["Days"]
    assert test["p_value"] == pytest.approx(stats.chi2.sf(test["statistic"], 1), rel=1e-10)


def test_predictions_of_the_mean_follow_the_estimate(reml):
    rows = pd.DataFrame({"Days": [0.0, 5.0], "Subject": ["new", "new"]})
    tables = {
        name: chosen.predict(rows, target="average", kind="linpred")
        for name, chosen in (("default", reml), ("residual", reml.with_df("residual")))
    }
    ratio = stats.t.ppf(0.975, 178.0)
    for name, df in (("default", None), ("residual", 178.0)):
        table = tables[name]
        margin = (table["conf_high"] - table["conf_low"]) / 2.0 / table["std_error"]
        if df:
            np.testing.assert_allclose(margin, ratio, rtol=1e-10)
        else:
            assert (margin > ratio + 0.1).all()


def test_prints_say_what_was_chosen(reml):
    chosen = reml.with_df("asymptotic")
    said = "Tests and intervals of fixed effects use normal distributions"
    assert said in repr(chosen) and said in chosen.notes[-1]
    assert said in chosen.anova().attrs["note"] and said in repr(chosen.means())
    assert "use normal distributions" in chosen.methods_paragraph()
    assert said not in repr(reml) and not reml.anova().attrs
    assert "Satterthwaite's degrees of freedom" in reml.methods_paragraph()


def test_choices_that_cannot_be_are_refused_in_words(reml, post):
    with pytest.raises(ValueError, match="one of 'satterthwaite', 'residual'"):
        reml.with_df("kenwardroger")
    with pytest.raises(ValueError, match="MAP estimate is a posterior one"):
        blm.LMM(FORMULA, blm.load_dataset("sleepstudy")).map().fixef(df="residual")
    for verb in (
        lambda: post.means(df="residual"),
        lambda: post.slopes("Days", df="residual"),
        lambda: post.comparisons("Days", df="residual"),
        lambda: post.average_predictions(df="residual"),
    ):
        with pytest.raises(ValueError, match="A posterior has draws"):
            verb()


def test_rows_with_a_known_variance_count_among_the_others():
    # of two t statistics, one with known variance: E(t^2) is 1, and df / (df - 2) of the other
    np.testing.assert_allclose(combined_df(np.array([np.inf, 10.0])), 2 * 2.25 / (2.25 - 2))
