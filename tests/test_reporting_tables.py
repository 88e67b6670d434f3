"""Tables for papers: numbers equal those of the fits, every language escaped."""

from __future__ import annotations

import copy
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import pytest

import bayeslmm as blm
from bayeslmm.report.model_table import model_table
from bayeslmm.report.tables import (
    LATEX,
    TextTable,
    decimals_of,
    latex_text,
    markdown_text,
    number,
    p_value,
    render,
)

REFERENCE = Path(__file__).parent / "reference" / "reporting"
OPTIMUM = 2e-4
"""Relative: lme4's default optimiser stops at about this distance from the maximum."""

LIKELIHOOD = 1e-5
"""Of log likelihoods: second order in that distance."""

VOID = {"meta", "br", "img", "link"}
HOSTILE = 'a<b & "c" | d_e%#$~^{x}\\'


class Balanced(HTMLParser):
    """Reads HTML and fails where a tag is not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append(data)


def parsed(html):
    reader = Balanced()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def hostile():
    """A model whose grouping factor and covariate have every special character."""
    data = blm.load_dataset("sleepstudy").rename(columns={"Subject": "s<&|_%#", "Days": "d<i>&_%"})
    return blm.LMM("Reaction ~ `d<i>&_%` + (1 | `s<&|_%#`)", data).reml()


# --- the frame -------------------------------------------------------------------------


def test_frame_has_the_numbers_of_the_fits(sleepstudy_reml, sleepstudy_fit):
    frame = model_table({"REML": sleepstudy_reml, "Bayes": sleepstudy_fit}, format="frame")
    own = sleepstudy_reml.summary(0.89)
    parameters = frame.loc[["fixed", "random", "residual"]]
    for name in ("estimate", "std_error", "conf_low", "conf_high", "p_value"):
        np.testing.assert_array_equal(parameters["REML", name], own[name])
    tidy = sleepstudy_fit.tidy()
    for name in ("estimate", "std_error", "conf_low", "conf_high"):
        np.testing.assert_array_equal(parameters["Bayes", name], tidy[name])
    fit = frame.xs("fit", level="part")
    assert fit.loc[("", "aic"), ("REML", "estimate")] == sleepstudy_reml.aic
    assert fit.loc[("", "bic"), ("REML", "estimate")] == sleepstudy_reml.bic
    assert fit.loc[("", "loglik"), ("REML", "estimate")] == sleepstudy_reml.loglik
    assert fit.loc[("", "nobs"), ("Bayes", "estimate")] == 180
    assert fit.loc[("Subject", "levels"), ("Bayes", "estimate")] == 18
    assert fit.loc[("", "log_evidence"), ("Bayes", "estimate")] == sleepstudy_fit.log_evidence.value
    assert np.isnan(fit.loc[("", "log_evidence"), ("REML", "estimate")])
    icc, shown = sleepstudy_fit.icc().iloc[0], fit.loc[("Subject", "icc"), "Bayes"]
    np.testing.assert_array_equal(shown[["estimate", "conf_low"]], [icc["mean"], icc.iloc[-2]])
    assert (
        fit.loc[("Subject", "icc"), ("REML", "estimate")]
        == sleepstudy_reml.icc()["estimate"].iloc[0]
    )
    for name in ("marginal", "conditional"):
        assert fit.loc[(name, "r2"), ("Bayes", "estimate")] == sleepstudy_fit.r2().loc[name, "mean"]
        assert (
            fit.loc[(name, "r2"), ("REML", "estimate")]
            == sleepstudy_reml.r2().loc[name, "estimate"]
        )


@pytest.mark.parametrize("options", [{"level": 0.8}, {"prob": 0.8}, {"level": 0.8, "prob": 0.8}])
def test_one_level_by_either_name(sleepstudy_reml, sleepstudy_fit, options):
    frame = model_table({"a": sleepstudy_reml, "b": sleepstudy_fit}, format="frame", **options)
    days = frame.loc[("fixed", "", "Days")]
    assert days["a", "conf_low"] == sleepstudy_reml.fixef(level=0.8).loc["Days", "conf_low"]
    assert days["b", "conf_low"] == sleepstudy_fit.fixef(prob=0.8).loc["Days"].iloc[-2]
    assert frame.attrs["level"] == 0.8


def test_two_levels_are_refused(sleepstudy_reml, sleepstudy_fit):
    with pytest.raises(ValueError, match=r"level=0\.8 and prob=0\.5: all intervals of a table"):
        model_table([sleepstudy_reml, sleepstudy_fit], level=0.8, prob=0.5)


def test_the_default_level_is_one_and_stands_in_the_headings(sleepstudy_reml, sleepstudy_fit):
    """ArviZ's beside a posterior; 95 % of estimates alone."""
    both = {"a": sleepstudy_reml, "b": sleepstudy_fit}
    with az.rc_context({"stats.ci_prob": 0.7}):
        days = model_table(both, format="frame").loc[("fixed", "", "Days")]
        assert days["a", "conf_low"] == sleepstudy_reml.fixef(level=0.7).loc["Days", "conf_low"]
        assert days["b", "conf_low"] == sleepstudy_fit.fixef(prob=0.7).loc["Days"].iloc[-2]
        assert "| Term | a [70 %] | b [70 %] |" in model_table(both)
        assert "| Term | REML [95 %] |" in model_table([sleepstudy_reml])
        assert "REML [95 %]" in sleepstudy_reml.to_html()
        assert "[70 %]" in sleepstudy_fit.to_latex().replace("\\%", "%")
    assert "| Term | a | b |" in model_table(both, statistic="std_error")


def test_models_with_other_terms_are_aligned(sleepstudy_model, sleepstudy_reml):
    data = blm.load_dataset("sleepstudy")
    small = blm.LMM("Reaction ~ 1 + (1 | Subject)", data).reml()
    frame = model_table({"small": small, "large": sleepstudy_reml}, format="frame")
    assert np.isnan(frame.loc[("fixed", "", "Days"), ("small", "estimate")])
    terms = list(frame.loc["random"].index.get_level_values("term"))
    assert terms == ["sd(Intercept)", "sd(Days)", "cor(Intercept, Days)"]
    assert frame.index.is_unique
    text = model_table({"small": small, "large": sleepstudy_reml})
    row = next(line for line in text.splitlines() if line.startswith("| Days "))
    assert re.match(r"\| Days \|  \| 10\.47 \[", row)


# --- the text --------------------------------------------------------------------------


def cells(text, label):
    """Cells of a row of a Markdown table."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split(" | ")][1:]


def test_markdown_cells_are_the_rounded_numbers(sleepstudy_reml, sleepstudy_fit):
    text = model_table(
        {"REML": sleepstudy_reml, "Bayes": sleepstudy_fit}, statistic=("std_error", "interval")
    )
    own, posterior = sleepstudy_reml.summary(0.89).loc["beta[Days]"], sleepstudy_fit.tidy().iloc[1]
    expected = [
        f"{row['estimate']:.2f} ({row['std_error']:.2f}) "
        f"[{row['conf_low']:.2f}, {row['conf_high']:.2f}]"
        for row in (own, posterior)
    ]
    assert cells(text, "Days") == expected
    assert cells(text, "Rows") == ["180", "180"]
    assert cells(text, "AIC") == [f"{sleepstudy_reml.aic:.2f}", ""]
    evidence = f"{sleepstudy_fit.log_evidence.value:.2f}".replace("-", "−")
    assert cells(text, "Log evidence") == ["", evidence]


def test_statistics_and_p_values(sleepstudy_reml):
    text = sleepstudy_reml.to_markdown(statistic=("statistic", "p_value"), goodness=())
    assert cells(text, "Days") == [r"10.47 t = 6.77 p \< 0.001"]
    assert cells(text, r"sd(Days)") == ["5.92"]
    assert "Rows" not in text
    assert cells(sleepstudy_reml.to_markdown(statistic=None), "Days") == ["10.47"]


def test_footnotes_tell_confidence_from_credibility(sleepstudy_reml, sleepstudy_fit):
    text = model_table(
        {"R": sleepstudy_reml, "B": sleepstudy_fit}, statistic=("interval", "std_error"), prob=0.9
    )
    assert "R: restricted maximum likelihood estimates, 90 % confidence intervals" in text
    assert "B: posterior means, 90 % equal-tailed credible intervals" in text
    assert "of posteriors, posterior standard deviations" in text
    assert "Monte Carlo error of the log evidence: B 0.00" in text


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        (lambda fit: fit, "Satterthwaite t for fixed effects, else Wald"),
        (lambda fit: fit.with_df("kenward-roger"), "Kenward-Roger t for fixed effects"),
        (
            lambda fit: fit.with_df("kenward-roger-linear"),
            "Kenward-Roger t (linear form) for fixed effects",
        ),
        (lambda fit: fit.with_df("residual"), "t with residual degrees of freedom for fixed"),
        (lambda fit: fit.with_df("asymptotic"), "(normal for fixed effects"),
        (lambda fit: fit.robust("Subject"), "cluster-robust t (CR2, by Subject) for fixed effects"),
    ],
)
def test_a_footnote_says_how_fixed_effects_are_judged(sleepstudy_reml, judged, words):
    frame = model_table(judged(sleepstudy_reml), format="markdown")
    assert words in frame.replace("\\", "")
    assert frame.count("Satterthwaite") == words.count("Satterthwaite")


UNLIKE = "not all of the same rows, response and weights"


def test_fits_of_other_data_are_told(sleepstudy_model, sleepstudy_reml):
    """Also where the number of rows and the name of the response are the same."""
    data = blm.load_dataset("sleepstudy").assign(w=lambda d: 1.0 + d["Days"])
    formula = "Reaction ~ Days + (Days | Subject)"
    halves = [blm.LMM(formula, data.iloc[rows]).ml() for rows in (slice(90), slice(90, None))]
    assert halves[0].design.n == halves[1].design.n
    assert UNLIKE in model_table(halves)
    weighted = blm.LMM(formula, data, weights="w").reml()
    assert UNLIKE in model_table([sleepstudy_reml, weighted])
    assert UNLIKE in model_table([sleepstudy_reml, sleepstudy_model.ml(), weighted])
    assert UNLIKE not in model_table([sleepstudy_reml, blm.LMM(formula, data).reml()])
    assert "comparable" not in model_table([sleepstudy_reml, blm.LMM(formula, data).reml()])


def test_restricted_likelihoods_of_other_columns_of_the_same_names(sleepstudy_reml):
    data = blm.load_dataset("sleepstudy").assign(Days=lambda d: 2.0 * d["Days"])
    other = blm.LMM("Reaction ~ Days + (Days | Subject)", data).reml()
    assert list(other.design.coefs) == list(sleepstudy_reml.design.coefs)
    text = model_table([sleepstudy_reml, other])
    assert "different fixed effects" in text
    assert UNLIKE not in text


def test_a_mode_is_no_confidence_interval(sleepstudy_model, sleepstudy_reml):
    fit = sleepstudy_model.map()
    text = fit.to_markdown(statistic=("interval", "std_error", "statistic", "p_value"))
    assert "means of the fixed effects given them, 95 % intervals of a normal approx" in text
    assert "of MAP, posterior standard deviations" in text
    for word in ("confidence", "p =", "p \\<", "t ="):
        assert word not in text
    frame = model_table({"a": fit, "b": sleepstudy_reml}, format="frame")
    assert frame["a"][["df", "statistic", "p_value"]].isna().all(axis=None)
    assert frame.loc[("fixed", "", "Days"), ("b", "p_value")] < 0.001


def test_what_cannot_be_compared_is_said(sleepstudy_model, sleepstudy_reml):
    data = blm.load_dataset("sleepstudy")
    small = blm.LMM("Reaction ~ 1 + (1 | Subject)", data).reml()
    assert "different fixed effects" in model_table([sleepstudy_reml, small])
    assert "of REML and of ML are not comparable" in model_table(
        [sleepstudy_reml, sleepstudy_model.ml()]
    )
    fewer = blm.LMM("Reaction ~ Days + (Days | Subject)", data.iloc[:-1]).reml()
    assert UNLIKE in model_table([sleepstudy_reml, fewer])
    assert "comparable" not in model_table([sleepstudy_reml])
    assert "comparable" not in model_table([sleepstudy_reml, small], goodness=["nobs"])


def test_an_estimate_at_the_boundary_has_no_interval():
    fit = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).reml()
    text = fit.to_markdown()
    assert cells(text, "sd(Intercept)") == ["0.00"]
    assert "without an interval is at the boundary" in text


def test_several_grouping_factors(sleepstudy_fit):
    data = blm.load_dataset("Penicillin")
    fit = blm.LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", data).fit(
        method="laplace", random_seed=1
    )
    text = model_table({"two": fit, "one": sleepstudy_fit})
    assert text.index("Random effects by plate") < text.index("Random effects by sample")
    assert cells(text, "Levels of plate") == ["24", ""]
    assert "Models of diameter, Reaction" in text


def test_labels(sleepstudy_reml):
    labels = {"Days": "Days awake", "Subject": "person", "sigma": "residual", "nobs": "N"}
    text = sleepstudy_reml.to_markdown(labels=labels, caption="A caption")
    assert text.startswith("**A caption**")
    assert cells(text, "cor(Intercept, Days awake)") == ["0.066 [−0.518, 0.608]"]
    assert "Random effects by person" in text
    assert cells(text, "residual") == ["25.59 [22.80, 28.72]"]
    assert cells(text, "N") == ["180"]


def test_headings_say_how_a_fit_was_made(sleepstudy_reml, sleepstudy_fit):
    assert "| Term | REML [89 %] | Posterior (collapsed) [89 %] |" in model_table(
        [sleepstudy_reml, sleepstudy_fit]
    )
    assert "Method" not in model_table([sleepstudy_reml, sleepstudy_fit])
    named = model_table({"a": sleepstudy_reml, "b": sleepstudy_fit})
    assert cells(named, "Method") == ["REML", "Posterior (collapsed)"]


def test_headings_are_unique(sleepstudy_reml):
    frame = model_table([sleepstudy_reml, sleepstudy_reml], format="frame")
    assert list(frame.columns.get_level_values(0).unique()) == ["REML", "REML 2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "docx"}, "format='docx'"),
        ({"statistic": "t"}, "statistic=\\['t'\\]"),
        ({"digits": 0}, "digits=0"),
        ({"digits": True}, "digits=True"),
        ({"goodness": ["waic"]}, "goodness=\\['waic'\\]"),
        ({"goodness": "aic"}, "goodness='aic'"),
        ({"level": 95}, "level=95"),
    ],
)
def test_wrong_options(sleepstudy_reml, options, message):
    with pytest.raises(ValueError, match=message):
        model_table(sleepstudy_reml, **options)


@pytest.mark.parametrize("fits", ["REML", {"a": 3}, [None], 5])
def test_something_else_than_a_fit(fits):
    with pytest.raises(TypeError, match="An estimate or a posterior is expected"):
        model_table(fits)


@pytest.mark.parametrize("fits", [{}, []])
def test_no_fit(fits):
    with pytest.raises(ValueError, match="No fit is given"):
        model_table(fits)


# --- languages -------------------------------------------------------------------------


def test_html_is_accessible_and_escaped(hostile):
    html = hostile.to_html(caption=HOSTILE)
    reader = parsed(html)
    assert HOSTILE in "".join(reader.text)
    assert "Random effects by s<&|_%#" in reader.text
    assert "d<i>&_%" in reader.text
    heads = [attrs for tag, attrs in reader.tags if tag == "th"]
    assert heads
    assert all(attrs.get("scope") in {"col", "row", "rowgroup"} for attrs in heads)
    assert sum(tag == "caption" for tag, _ in reader.tags) == 1


def test_html_rows_have_as_many_cells(sleepstudy_reml, sleepstudy_fit):
    html = model_table({"a": sleepstudy_reml, "b": sleepstudy_fit}, format="html")
    for row in re.findall(r"<tr>(.*?)</tr>", html):
        spans = [int(n) for n in re.findall(r'colspan="(\d)"', row)]
        assert row.count("<t") - len(spans) + sum(spans) - row.count("<tfoot") == 3


def test_latex_is_escaped_and_balanced(hostile):
    text = hostile.to_latex(caption=HOSTILE)
    stripped = re.sub(r"\\textbackslash\{\}|\\[%&$#_{}]", "", text.partition("\n")[2])
    for line in stripped.splitlines():
        assert "%" not in line
        assert "#" not in line
    assert stripped.count("{") == stripped.count("}")
    assert not re.search(r"(?<!\\)[_^~|<>]", stripped)
    assert "s\\textless{}\\&\\textbar{}\\_\\%\\#" in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lr}"):
        assert command in text
    columns = [line.count(" & ") for line in stripped.splitlines() if line.endswith(r"\\")]
    assert columns.count(1) > 3


def test_every_special_character_of_latex():
    assert set("&%$#_{}~^\\") <= set(LATEX)
    assert latex_text("R² of σ − 1 – a") == (r"R\textsuperscript{2} of $\sigma$ $-$ 1 -- a")
    table = TextTable(caption="", header=("a", "b"), groups=(("", (("[x]", "[1, 2]"),)),))
    assert r"{[x]} & {[1, 2]} \\" in render(table, "latex")


def test_markdown_is_escaped(hostile):
    text = hostile.to_markdown(caption=HOSTILE)
    body = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in body} == {3}
    assert r"Random effects by s\<\&\|\_%#" in text
    assert markdown_text("a\nb") == "a b"


def test_markdown_is_read_back_by_another_parser(hostile):
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(hostile.to_markdown())
    reader = parsed(html)
    assert "d<i>&_%" in reader.text
    assert "Random effects by s<&|_%#" in reader.text


def test_markup_shows_itself_in_notebooks(sleepstudy_reml):
    html, latex = sleepstudy_reml.to_html(), sleepstudy_reml.to_latex()
    assert html._repr_mimebundle_() == {"text/plain": str(html), "text/html": str(html)}
    assert set(latex._repr_mimebundle_()) == {"text/plain"}
    for again in (copy.copy(html), pickle.loads(pickle.dumps(html))):
        assert again == html
        assert again.language == "html"


# --- numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "values", "digits", "expected"),
    [
        ([6.82], [251.4], 3, 2),
        ([0.325], [0.066], 3, 3),
        ([1234.0], [9e5], 3, 0),
        ([0.0996], [1.0], 2, 2),  # rounds to 0.10
        ([0.9999], [1.0], 3, 2),  # rounds to 1.00
        ([np.nan, 0.0], [12.0], 3, 1),
        ([np.nan], [0.0], 3, 2),
        ([1e-9], [1.0], 3, None),
    ],
)
def test_decimals(errors, values, digits, expected):
    assert decimals_of(errors, values, digits) == expected


def test_numbers():
    assert number(-1.005, 1, 3) == "−1.0"
    assert number(-0.001, 2, 3) == "0.00"
    assert number(1.234e-9, None, 3) == "1.23e−09"
    assert number(np.nan, 2, 3) == ""
    assert number(-np.inf, 2, 3) == "−∞"
    assert p_value(0.0004) == "p < 0.001"
    assert p_value(0.0416) == "p = 0.042"


# --- glance and augment ----------------------------------------------------------------


def reference_fit(name):
    sleep = blm.load_dataset("sleepstudy").copy()
    sleep["w"] = 1.0 + np.arange(len(sleep)) % 3
    sleep["o"] = 2.0 * sleep["Days"]
    if name == "sleep_reml":
        return blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
    if name == "sleep_weighted_ml":
        formula = "Reaction ~ Days + offset(o) + (Days | Subject)"
        return blm.LMM(formula, sleep, weights="w").ml()
    formula = "diameter ~ 1 + (1 | plate) + (1 | sample)"
    return blm.LMM(formula, blm.load_dataset("Penicillin")).reml()


@pytest.mark.reference
@pytest.mark.parametrize("name", ["sleep_reml", "sleep_weighted_ml", "penicillin_reml"])
def test_glance_and_augment_are_those_of_broom_mixed(name):
    fit = reference_fit(name)
    theirs = pd.read_csv(REFERENCE / "glance.csv").set_index("fit").loc[name]
    row = fit.glance().iloc[0]
    assert row["nobs"] == theirs["nobs"]
    assert row["df_residual"] == theirs["df_residual"]
    for column in ("loglik", "aic", "bic", "criterion"):
        assert row[column] == pytest.approx(theirs[column], abs=LIKELIHOOD * 10)
    assert row["sigma"] == pytest.approx(theirs["sigma"], rel=OPTIMUM)
    table = pd.read_csv(REFERENCE / f"{name}_augment.csv")
    own = fit.augment(influence=True)
    assert {".hat", ".cooksd"} < set(table)
    for column in table:
        scale = np.abs(table[column]).max()
        np.testing.assert_allclose(own[column], table[column], atol=OPTIMUM * scale, rtol=0)


def test_glance_of_a_posterior(sleepstudy_fit, sleepstudy_model):
    row = sleepstudy_fit.glance().iloc[0]
    assert row["log_evidence"] == sleepstudy_fit.log_evidence.value
    assert row["max_rhat"] == sleepstudy_fit.diagnostics.max_rhat
    assert row["min_ess_bulk"] == sleepstudy_fit.diagnostics.min_ess_bulk
    assert row["sigma"] == sleepstudy_fit.sigma
    assert (row["chains"], row["draws"], row["ngrps_Subject"]) == (4, 4000, 18)
    assert np.isnan(row["divergences"])
    laplace = sleepstudy_model.fit(method="laplace", random_seed=1)
    other = laplace.glance().iloc[0]
    assert np.isnan(other["log_evidence"])
    assert other["pareto_k"] == laplace.diagnostics.pareto_k


def test_glance_has_a_column_per_grouping_factor():
    fit = blm.LMM("strength ~ 1 + (1 | batch/cask)", blm.load_dataset("Pastes")).reml()
    row = fit.glance().iloc[0]
    assert (row["ngrps_batch"], row["ngrps_batch_cask"]) == (10, 30)


def test_augment_of_a_posterior_is_computed_on_draws(sleepstudy_fit):
    table = sleepstudy_fit.augment(prob=0.9)
    draws = sleepstudy_fit.data["posterior"].to_dataset().stack(sample=("chain", "draw"))
    x = sleepstudy_fit.design.X
    mu = x @ draws["beta"].transpose("coef", "sample").to_numpy()
    u = draws["u_Subject"].transpose("Subject", "Subject_coef", "sample").to_numpy()
    codes = sleepstudy_fit.design.random[0].codes
    mu += np.einsum("nk,nks->ns", x, u[codes])
    y = sleepstudy_fit.design.y[:, None]
    low, high = np.quantile(mu, [0.05, 0.95], axis=1)
    np.testing.assert_allclose(table[".fitted"], mu.mean(axis=1))
    np.testing.assert_allclose(table[".fitted_low"], low)
    np.testing.assert_allclose(table[".fitted_high"], high)
    sigma = draws["sigma"].to_numpy()
    np.testing.assert_allclose(table[".pearson_resid"], ((y - mu) / sigma).mean(axis=1), atol=1e-12)
    np.testing.assert_array_equal(table[".fitted"], sleepstudy_fit.fitted())
    np.testing.assert_array_equal(table[".fixed"], sleepstudy_fit.fitted(random_effects=False))


def test_augment_in_parts_is_the_same(sleepstudy_fit, monkeypatch):
    whole = sleepstudy_fit.augment()
    monkeypatch.setattr("bayeslmm.report.broom.AT_ONCE", 7 * 4000)
    pd.testing.assert_frame_equal(sleepstudy_fit.augment(), whole)


@pytest.mark.slow
def test_augment_without_stored_effects(sleepstudy_model, sleepstudy_fit):
    lean = sleepstudy_model.fit(random_seed=1, store_u=False)
    table, other = lean.augment(), sleepstudy_fit.augment()
    # quantiles of 4,000 draws: errors of about sd / 30, the sd being below 15
    np.testing.assert_allclose(table[".fitted_low"], other[".fitted_low"], atol=2.5)
    np.testing.assert_array_equal(table[".fitted"], lean.fitted())


@pytest.fixture(scope="module")
def gappy():
    data = blm.load_dataset("sleepstudy").copy()
    data.index = [f"row{i % 90}" for i in range(len(data))]  # every label twice
    data["note"] = "x"
    data.iloc[[3, 100], data.columns.get_loc("Reaction")] = np.nan
    return data


def test_augment_keeps_data_index_and_gaps(gappy):
    fit = blm.LMM("Reaction ~ Days + (Days | Subject)", gappy).reml()
    before = gappy.copy()
    omitted = fit.augment(gappy)
    assert len(omitted) == 178
    assert omitted.attrs["rows_dropped"] == 2
    kept = fit.augment(gappy, incomplete="keep")
    pd.testing.assert_frame_equal(kept[list(gappy.columns)], gappy, check_flags=False)
    assert np.flatnonzero(kept[".fitted"].isna()).tolist() == [3, 100]
    np.testing.assert_array_equal(kept[".fitted"].dropna(), fit.fitted())
    np.testing.assert_array_equal(omitted[".fitted"], fit.fitted())
    assert list(omitted.index) == list(fit.design.index)
    pd.testing.assert_frame_equal(gappy, before)
    assert "note" in omitted
    assert "note" not in fit.augment()


def test_augment_refuses_other_data(gappy, sleepstudy_fit):
    fit = blm.LMM("Reaction ~ Days + (Days | Subject)", gappy).reml()
    with pytest.raises(blm.DataError, match="have 179 rows"):
        fit.augment(gappy.iloc[1:])
    with pytest.raises(blm.DataError, match="`Days` has other values"):
        fit.augment(gappy.assign(Days=1.0))
    with pytest.raises(blm.DataError, match="lack the variable `Days`"):
        fit.augment(gappy.drop(columns="Days"))
    with pytest.raises(blm.DataError, match=r"columns \.fitted"):
        fit.augment(gappy.assign(**{".fitted": 1.0}))
    with pytest.raises(blm.DataError, match="give the data"):
        fit.augment(incomplete="keep")
    for either in (fit, sleepstudy_fit):
        with pytest.raises(ValueError, match="incomplete='drop'"):
            either.augment(incomplete="drop")
    with pytest.raises(ValueError, match="prob=2"):
        sleepstudy_fit.augment(prob=2)


def test_augment_with_influence(sleepstudy_model, gappy):
    for fit in (sleepstudy_model.reml(), sleepstudy_model.map()):
        table, rows = fit.augment(influence=True), fit.check.influence().table
        np.testing.assert_array_equal(table[".hat"], rows["leverage"])
        np.testing.assert_array_equal(table[".cooksd"], rows["cooks_distance"])
        # the residual of broom is the one before leverage enters
        np.testing.assert_allclose(table[".pearson_resid"], rows["residual"], rtol=1e-9)
        whole = table[".pearson_resid"] / np.sqrt(1.0 - table[".hat"])
        np.testing.assert_allclose(whole, rows["standardised"], rtol=1e-9)
        assert table.columns[-2:].tolist() == [".hat", ".cooksd"]
        assert not {".hat", ".cooksd"} & set(fit.augment())
    kept = blm.LMM("Reaction ~ Days + (Days | Subject)", gappy).reml()
    table = kept.augment(gappy, incomplete="keep", influence=True)
    assert np.flatnonzero(table[".hat"].isna()).tolist() == [3, 100]
