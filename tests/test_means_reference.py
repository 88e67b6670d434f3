"""Marginal means, contrasts, slopes and F tests of estimates beside emmeans and lmerTest."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reference_data import list_fits, load_fit, load_reference_data
from reference_formulas import STANDS_FOR, translated
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.effects.tests_of_fixed import term_hypotheses

FIGURES = json.loads(
    (Path(__file__).parent / "reference" / "means" / "means.json").read_text(encoding="utf-8")
)

ANOVA = json.loads(
    (Path(__file__).parent / "reference" / "means" / "anova.json").read_text(encoding="utf-8")
)

# R: FORMULA, DATA, WEIGHTS of the fits in make_means.R
MODELS = {
    "machines_int": ("score ~ Machine + (1 | Worker)", "Machines", None),
    "machines_slopes": ("score ~ Machine + (0 + Machine | Worker)", "Machines", None),
    "orthodont": ("distance ~ age * Sex + (age | Subject)", "Orthodont", None),
    "sleepstudy": ("Reaction ~ Days + (Days | Subject)", "sleepstudy", None),
    "sleepstudy_quadratic": (
        "Reaction ~ poly(Days, 2, raw=True) + (Days | Subject)",
        "sleepstudy",
        None,
    ),
    "design_inter": ("y ~ x + f1 * f2 + (1 | g)", "sim_design", None),
    "design_three": ("y ~ x * f1 + f1:f2 + f2 + (1 | g)", "sim_design", None),
    "rankdef": ("y ~ a * b + x1 + (1 | g)", "sim_rankdef", None),
    "offset": ("y ~ x + offset(o) + (1 | g)", "sim_offset", None),
    "weights": ("y ~ x + (x | g)", "sim_weights", "w"),
    "cake": ("angle ~ recipe * temperature + (1 | recipe:replicate)", "cake", None),
    "oats": ("Q('yield') ~ Variety * nitro + (1 | Block / Variety)", "Oats", None),
}

RELATIVE = 2e-6
"""lme4 stops at a relative error of theta of about 1e-6."""

DF_RELATIVE = 2e-3
"""lmerTest differentiates the variances of the fixed effects and the deviance numerically."""

P_RELATIVE = 5e-3
"""p-values inherit the error of df, magnified in the far tails."""

P_ABSOLUTE = 1e-7
"""R's ptukey is good to about 1e-8 and returns 0 below."""


@cache
def estimate(name):
    formula, data, weights = MODELS[name]
    frame = load_reference_data(data)
    for column in frame:  # R's factors are unordered in make_means.R
        if isinstance(frame[column].dtype, pd.CategoricalDtype):
            frame[column] = frame[column].cat.as_unordered()
    return blm.LMM(formula, frame, weights=weights).reml()


def check_table(table, figures):
    """Compare a table with one of emmeans row by row, NaN where it says nonEst."""
    assert len(table) == len(figures)
    frame = pd.DataFrame(figures)
    value = next(c for c in frame if c in ("emmean", "estimate") or c.endswith(".trend"))
    expected = frame[[value, "SE", "df", "lower.CL", "upper.CL", "t.ratio", "p.value"]]
    expected = expected.astype(float).to_numpy().T
    got = (
        table[["estimate", "std_error", "df", "conf_low", "conf_high", "statistic", "p_value"]]
        .to_numpy()
        .T
    )
    scale = np.nanmax(np.abs(expected[0])) + np.nanmax(expected[1])
    np.testing.assert_allclose(got[0], expected[0], atol=RELATIVE * scale)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5)
    np.testing.assert_allclose(got[2], expected[2], rtol=DF_RELATIVE)
    width = np.nanmax(expected[4] - expected[3])
    np.testing.assert_allclose(got[3:5], expected[3:5], atol=3e-4 * width + RELATIVE * scale)
    np.testing.assert_allclose(
        got[5], expected[5], rtol=1e-4, atol=RELATIVE * scale / np.nanmin(expected[1])
    )
    np.testing.assert_allclose(got[6], expected[6], rtol=P_RELATIVE, atol=P_ABSOLUTE)


def plain(contrasts):
    return contrasts.table(adjust="none")


MEANS = {
    ("machines_int", "means"): lambda e: e.means("Machine"),
    ("machines_slopes", "means"): lambda e: e.means("Machine"),
    ("orthodont", "means"): lambda e: e.means("Sex"),
    ("orthodont", "at"): lambda e: e.means("Sex", by="age", at={"age": [8, 14]}),
    ("sleepstudy", "means"): lambda e: e.means(),
    ("sleepstudy", "at"): lambda e: e.means("Days", at={"Days": [0, 5, 9]}),
    ("design_inter", "means"): lambda e: e.means("f1"),
    ("design_inter", "proportional"): lambda e: e.means("f1", weights="proportional"),
    ("design_inter", "outer"): lambda e: e.means("f1", weights="outer"),
    ("design_inter", "cells"): lambda e: e.means("f1", weights="cells"),
    ("design_inter", "by"): lambda e: e.means("f1", by="f2"),
    ("rankdef", "both"): lambda e: e.means(["a", "b"]),
    ("rankdef", "a"): lambda e: e.means("a"),
    ("rankdef", "b"): lambda e: e.means("b"),
    ("offset", "means"): lambda e: e.means(),
    ("offset", "at"): lambda e: e.means("x", at={"x": [-1, 1]}),
    ("weights", "means"): lambda e: e.means(),
    ("weights", "at"): lambda e: e.means("x", at={"x": [-1, 1]}),
    ("cake", "means"): lambda e: e.means("temperature"),
    ("oats", "means"): lambda e: e.means("Variety"),
    ("orthodont", "trends"): lambda e: e.slopes("age", by="Sex"),
    ("sleepstudy", "trends"): lambda e: e.slopes("Days", new="grid"),
    ("sleepstudy_quadratic", "trends"): lambda e: e.slopes(
        "Days", by="Days", at={"Days": [0, 4.5, 9]}
    ),
    ("design_three", "trends"): lambda e: e.slopes("x", by="f1", new="grid"),
    ("oats", "trends"): lambda e: e.slopes("nitro", by="Variety", new="grid"),
}
CONTRASTS = {
    ("machines_int", "pairwise"): lambda e: e.contrasts("Machine").table(),
    ("machines_int", "holm"): lambda e: e.contrasts("Machine", adjust="holm").table(),
    ("machines_int", "sidak"): lambda e: e.contrasts("Machine", adjust="sidak").table(),
    ("machines_int", "bonferroni"): lambda e: e.contrasts("Machine").table(adjust="bonferroni"),
    ("machines_int", "none"): lambda e: plain(e.contrasts("Machine")),
    ("machines_int", "reference"): lambda e: plain(e.contrasts("Machine", "reference")),
    ("machines_int", "sequential"): lambda e: plain(e.contrasts("Machine", "sequential")),
    ("machines_int", "effects"): lambda e: plain(e.contrasts("Machine", "effects")),
    ("machines_int", "polynomial"): lambda e: e.contrasts("Machine", "polynomial").table(),
    ("machines_int", "custom"): lambda e: e.contrasts(
        "Machine", {"C - mean(A, B)": {"A": -0.5, "B": -0.5, "C": 1}}
    ).table(),
    ("machines_slopes", "pairwise"): lambda e: e.contrasts("Machine").table(),
    ("orthodont", "pairwise"): lambda e: e.contrasts("Sex").table(),
    ("orthodont", "at_pairwise"): lambda e: e.contrasts(
        "Sex", by="age", at={"age": [8, 14]}
    ).table(),
    ("orthodont", "trends_pairwise"): lambda e: e.slopes("age", by="Sex").contrasts().table(),
    ("design_inter", "pairwise"): lambda e: e.contrasts("f1").table(),
    ("design_inter", "by_pairwise"): lambda e: e.contrasts("f1", by="f2").table(),
    ("design_inter", "both_pairwise"): lambda e: e.contrasts(["f1", "f2"]).table(),
    ("rankdef", "by_pairwise"): lambda e: plain(e.contrasts("a", by="b")),
    ("rankdef", "both_pairwise"): lambda e: plain(e.contrasts(["a", "b"])),
    ("cake", "polynomial"): lambda e: e.contrasts("temperature", "polynomial").table(),
    ("cake", "pairwise"): lambda e: e.contrasts("temperature").table(),
}


@pytest.mark.parametrize("case", MEANS, ids="-".join)
def test_means_and_slopes_are_emmeans(case):
    check_table(MEANS[case](estimate(case[0])).table(), FIGURES[case[0]][case[1]])


MANY_MEANS = {("design_inter", "pairwise"), ("design_inter", "both_pairwise"), ("cake", "pairwise")}
"""Tukey's adjustment at many degrees of freedom is what takes the time."""


@pytest.mark.parametrize(
    "case", [slow(c) if c in MANY_MEANS else c for c in CONTRASTS], ids="-".join
)
def test_contrasts_are_emmeans(case):
    table, figures = CONTRASTS[case](estimate(case[0])), FIGURES[case[0]][case[1]]
    check_table(table, figures)
    labels = [label.replace("temperature", "") for label in pd.DataFrame(figures)["contrast"]]
    assert table.index.get_level_values("contrast").tolist() == labels


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n, figures in FIGURES.items() for k in (1, 2, 3) if f"anova{k}" in figures],
)
def test_anova_is_lmertests(name, kind):
    got = estimate(name).anova(kind)
    expected = pd.DataFrame(FIGURES[name][f"anova{kind}"]).set_index("term")
    assert {frozenset(t.split(":")) for t in got.index} == {
        frozenset(t.split(":")) for t in expected.index
    }
    if name == "rankdef":  # lmerTest's own answer for x1 beside an empty cell is the same
        assert got.loc["a:b", "num_df"] == 1
    order = {frozenset(t.split(":")): t for t in expected.index}
    expected = expected.loc[[order[frozenset(t.split(":"))] for t in got.index]]
    assert got["num_df"].tolist() == expected["num_df"].tolist()
    for column in ("sum_sq", "mean_sq", "statistic"):
        np.testing.assert_allclose(got[column], expected[column], rtol=2e-5)
    np.testing.assert_allclose(got["den_df"], expected["den_df"], rtol=DF_RELATIVE)
    np.testing.assert_allclose(got["p_value"], expected["p_value"], rtol=P_RELATIVE, atol=1e-12)


LOST = [2, 5, 6, 11, 20, 21, 33, 40, 41, 42, 54]
"""Rows of Machines that make_anova.R leaves out, counted from one."""

DF_TIGHT = 1e-5
"""lmerTest's numerical derivatives are this good where theta is far from its boundary; other rows
of the same hypothesis change df by 1e-4 to 1e-2."""


@cache
def uneven_machines(formula):
    data = load_reference_data("Machines")
    data["rep"] = (data.groupby(["Worker", "Machine"], observed=True).cumcount() + 1).astype(str)
    data = data[~np.isin(np.arange(1, len(data) + 1), LOST)]
    return blm.LMM(f"{formula} + (0 + Machine | Worker)", data).reml()


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "formula"),
    [("machines_one", "score ~ Machine"), ("machines_two", "score ~ Machine * rep")],
)
def test_terms_of_several_df_have_lmertests_df(name, formula, kind):
    got = uneven_machines(formula).anova(kind)
    expected = pd.DataFrame(ANOVA[name][f"anova{kind}"]).set_index("term")
    assert got.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(got["statistic"], expected["statistic"], rtol=2e-5)
    np.testing.assert_allclose(got["den_df"], expected["den_df"], rtol=DF_TIGHT)


@pytest.mark.parametrize("weights", ["equal", "proportional", "outer", "cells"])
def test_precision_weights_do_not_weight_means(weights):
    data = load_reference_data("sim_weights")
    data["a"] = np.where(data["x"] > 0, "hi", "lo")
    number = data["g"].astype(str).str[1:].astype(int)
    data["b"] = np.array(["u", "v", "v"])[number % 3]
    reml = blm.LMM("y ~ a * b + x + (1 | g)", data, weights="w").reml()
    check_table(reml.means("a", weights=weights).table(), ANOVA["weighted"][weights])


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("machines_int", [[0, 1, 0], [0, 0, 1]]),
        ("orthodont", [[0, 1, 0, 0], [0, 1, 0, 1]]),
        ("sleepstudy", [[1, 0], [0, 1]]),
    ],
)
def test_contest_is_lmertests(name, weights):
    got = estimate(name).contest(weights).iloc[0]
    (expected,) = FIGURES[name]["contest"]
    for column in ("sum_sq", "num_df", "statistic"):
        assert got[column] == pytest.approx(expected[column], rel=2e-5)
    assert got["den_df"] == pytest.approx(expected["den_df"], rel=DF_RELATIVE)


# Fits by R that cannot be matched: large ones, and one whose F lmerTest gets wrong because its
# covariates are of the order of 1e6 and 1e-6 (F is not the square of its own t there).
LEFT_OUT = {"sim_scale__int_reml"}
ANOVA_FITS = [
    name
    for name in list_fits(big=False)
    if load_fit(name)["REML"]
    and name not in LEFT_OUT | STANDS_FOR.keys()
    and (load_fit(name).get("anova") or {}).get("satterthwaite")
    and load_fit(name)["n"] <= 2000
]


def _terms(name):
    return np.atleast_1d(load_fit(name)["anova"]["satterthwaite"]["terms"])


SLOW = [pytest.mark.slow]
"""A type III test of a single term says no more than its t test."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW if len(_terms(n)) == 1 else []) for n in ANOVA_FITS]
)
def test_type_three_of_every_reference_fit(name):
    fit = load_fit(name)
    data = load_reference_data(fit["dataset"])
    got = blm.LMM(translated(fit), data, weights=fit.get("weights")).reml().anova()
    expected = pd.DataFrame({k: np.atleast_1d(v) for k, v in fit["anova"]["satterthwaite"].items()})
    known = expected["num_df"].notna().to_numpy()
    got, expected = got[known], expected[known]
    assert got["num_df"].tolist() == expected["num_df"].tolist()
    np.testing.assert_allclose(got["statistic"], expected["F"].astype(float), rtol=2e-5)
    np.testing.assert_allclose(got["den_df"], expected["den_df"].astype(float), rtol=DF_RELATIVE)


def test_an_f_test_of_one_coefficient_is_its_t_test_at_any_scale():
    model = blm.LMM("y ~ big + small + (1 | g)", load_reference_data("sim_scale"))
    reml = model.reml()
    squares = reml.fixef()["statistic"].to_numpy()[1:] ** 2
    np.testing.assert_allclose(reml.anova()["statistic"], squares, rtol=1e-7)


def test_type_three_does_not_depend_on_the_coding_of_factors():
    data = load_reference_data("sim_design")
    plain_model = blm.LMM("y ~ x * f1 * f2 + (1 | g)", data).reml()
    coded = blm.LMM("y ~ x * C(f1, contr.sum) * C(f2, contr.helmert) + (1 | g)", data).reml()
    np.testing.assert_allclose(
        plain_model.anova().to_numpy(float), coded.anova().to_numpy(float), rtol=1e-6, atol=1e-300
    )


def test_type_three_of_balanced_data_is_type_one():
    reml = estimate("cake")
    np.testing.assert_allclose(reml.anova(3)["statistic"], reml.anova(1)["statistic"], rtol=1e-9)


def test_a_redundant_term_has_no_test():
    model = blm.LMM("y ~ x1 + x2 + x3 + (1 | g)", load_reference_data("sim_rankdef"))
    table = model.reml().anova()
    assert table["num_df"].tolist() == [1, 1, 0]
    assert np.isnan(table.loc["x3", "statistic"])
    assert term_hypotheses(model.design, 3)["x3"].shape == (0, 3)
