"""What the checks found: one value that print, report and methods paragraph share."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import bayeslmm as blm
from bayeslmm.priors.families import LKJ
from bayeslmm.report import findings as finding_topics
from bayeslmm.report.findings import LARGE_SHIFT, NOT_ASKED, TOPICS, expected_shift

SD = 0.7


def simulated(levels, rows, seed):
    """Data of a model with random intercepts."""
    rng = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(levels), rows), np.tile(np.linspace(0.0, 1.0, rows), levels)
    y = 1.0 + 2.0 * x + SD * rng.standard_normal(levels)[g] + rng.standard_normal(levels * rows)
    return pd.DataFrame({"y": y, "x": x, "g": [f"g{i}" for i in g], "h": g % 2})


@pytest.fixture(scope="module")
def right():
    return blm.LMM("y ~ x + (1 | g)", simulated(20, 5, 1)).fit(random_seed=1)


@pytest.fixture(scope="module")
def nothing(right):
    return right.findings()


@pytest.fixture(scope="module")
def troubled():
    """Too few draws, a row far out, a grouping factor at zero, another one of two levels."""
    data = simulated(12, 6, 3)
    data["y"] -= data.groupby("g")["y"].transform("mean")
    data.loc[17, "y"] += 12.0
    return blm.LMM("y ~ x + (1 | g) + (1 | h)", data).fit(draws=30, random_seed=1)


@pytest.fixture(scope="module")
def found(troubled):
    return troubled.findings()


def page(post, tmp_path, monkeypatch, **options):
    """The report without its pictures."""
    monkeypatch.setattr("bayeslmm.report.page._png", lambda draw: ("", 10, 10))
    post.report(tmp_path / "report.html", **options)
    return html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))


# --- a right model and a troubled one --------------------------------------------------


def test_a_right_model_raises_no_alarm(nothing):
    assert nothing.alarms == nothing.not_run == ()
    assert [item.topic for item in nothing] == list(TOPICS)
    assert nothing.table["run"].all()
    assert str(nothing).startswith("No alarms.")


@pytest.mark.slow
def test_right_models_seldom_raise_one():
    """Each of the topics that look at many cases may alarm of one in twenty; they are cautious.

    The standard deviations are far from zero, so that REML is singular for none.
    """
    posts = (
        blm.LMM("y ~ x + (1 | g)", simulated(20, 8, seed)).fit(random_seed=1)
        for seed in range(100, 110)
    )
    assert sum(bool(post.findings().alarms) for post in posts) <= 1


def test_planted_trouble_is_listed(found):
    assert set(found.alarms) == {
        "convergence",
        "residuals",
        "influence",
        "sensitivity",
        "singularity",
    }
    assert "The draws did not pass all checks: largest R-hat" in found["convergence"].verdict
    assert "normality of residuals (p = " in found["residuals"].verdict
    assert " without row 17, " in found["influence"].verdict
    assert "sd[h, Intercept]: mostly the prior, too few levels" in found["sensitivity"].verdict
    assert "The REML fit is singular." in found["singularity"].verdict
    text = str(found)
    assert text.startswith(
        "Alarms: convergence, residuals, influence, sensitivity and singularity."
    )
    for item in found:
        assert f"- {item.topic} (" in text
        if item.severity == "alarm":
            assert item.details


def test_a_report_opens_with_what_was_found(troubled, found, tmp_path, monkeypatch):
    text = page(troubled, tmp_path, monkeypatch, findings=found)
    first = text[: text.index('<section id="notes"')]
    assert '<section id="findings"' in first
    assert "Alarms: convergence, residuals and random effects, influence of rows" in first
    for item in found:
        assert f"<td>{item.verdict}</td>" in first
        assert all(f"<li>{detail}</li>" in first for detail in item.details)
    assert "No warnings" not in text
    paragraph = troubled.methods_paragraph(findings=found)
    assert paragraph in text
    for item in found:
        if item.topic != "convergence":
            assert item.verdict in paragraph


def test_a_report_says_what_was_not_run(right, tmp_path, monkeypatch):
    found = right.findings("convergence")
    text = page(right, tmp_path, monkeypatch, findings=found, reml=False)
    assert "No alarms. Nothing found: convergence. Not run: residuals and random effects," in text
    assert text.count(f"<td>not run</td><td>{NOT_ASKED}</td>") == len(TOPICS) - 1
    assert "Not checked: residuals and random effects, influence of rows and levels," in text


@pytest.mark.slow
def test_a_report_runs_the_checks_itself(tmp_path, monkeypatch):
    post = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).fit(random_seed=1)
    text = page(post, tmp_path, monkeypatch, reml=False)
    assert "Alarms: singularity." in text
    assert post.findings(random_seed=0)["residuals"].verdict in text


# --- topics ----------------------------------------------------------------------------


def test_topics_by_name(right):
    found = right.findings(["singularity", "convergence"])
    assert found.not_run == ("residuals", "influence", "sensitivity", "loo")
    assert right.findings("singularity")["singularity"].run
    with pytest.raises(ValueError, match=r"\['lo'\]: of 'convergence', .*'singularity' is expe"):
        right.findings("lo")
    with pytest.raises(KeyError, match="the topics are convergence, residuals"):
        found["rows"]


def test_many_rows_are_not_checked_unasked(right, monkeypatch):
    monkeypatch.setattr(finding_topics, "MOST_ROWS", right.nobs - 1)
    found = right.findings()
    assert found.not_run == ("residuals", "influence", "loo")
    assert 'post.findings("loo") runs it' in found["loo"].verdict
    assert right.findings("loo")["loo"].run


def test_many_levels_are_not_left_out(right, monkeypatch):
    monkeypatch.setattr(finding_topics, "MOST_LEVELS", 19)
    verdict = right.findings("influence")["influence"].verdict
    assert verdict.endswith("Levels of g were not left out: they are too many.")
    assert "level" not in verdict.partition("Levels")[0]


def test_what_cannot_be_judged_was_not_run():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), priors="flat")
    found = model.fit(method="laplace", random_seed=1).findings(["sensitivity", "convergence"])
    assert "sensitivity" in found.not_run
    assert found["sensitivity"].verdict.startswith("Every prior is flat")
    assert "Pareto k of the approximation" in found["convergence"].verdict


def test_a_pull_of_the_priors_is_named():
    """REML of Orthodont has a correlation of -0.67 and a larger sd of the slopes."""
    formula, priors = "distance ~ age * Sex + (age | Subject)", {"cor[Subject]": LKJ(2.0)}
    model = blm.LMM(formula, blm.load_dataset("Orthodont"), priors=priors)
    post = model.fit(random_seed=1)
    verdict = post.findings("sensitivity")["sensitivity"].verdict
    flags = post.compare_reml(model.reml())["flag"]
    pulled = flags[flags == "pulled down by the prior"].index
    assert len(pulled)
    for label in pulled:
        assert re.search(rf"{re.escape(label)}[^;]*: pulled down by the prior", verdict)
    assert "nor do the priors pull" not in verdict


def checks(**p_values):
    table = pd.DataFrame({"p_value": pd.Series(p_values)})
    messages = tuple(f"{name} (p = {value}): look." for name, value in p_values.items())
    result = SimpleNamespace(table=table, draws=200, messages=messages)
    return SimpleNamespace(check=SimpleNamespace(residuals=lambda random_seed: result))


@pytest.mark.parametrize(
    ("p_values", "severity", "verdict"),
    [
        ({"a": 0.5, "b": 0.06}, "none", "None of 2 checks fails"),
        ({"a": 0.5, "new": 0.03}, "note", "1 of 2 checks fails: new (p = 0.03); one in 20 does"),
        ({"a": 0.5, "new": 0.0}, "alarm", "1 of 2 checks fails: new (p below 0.005)."),
        ({"a": 0.02, "new": 0.001}, "alarm", "2 of 2 checks fail: new (p = 0.001) and a (p = 0.0"),
    ],
)
def test_residual_checks_count_as_many_as_there_are(p_values, severity, verdict):
    found = finding_topics.residuals(checks(**p_values), 0)
    assert found.severity == severity
    assert found.verdict.startswith(verdict)
    failed = [name for name, value in p_values.items() if value < 0.05]
    assert [text.partition(" ")[0] for text in found.details] == failed


def test_unreliable_scores_are_an_alarm():
    coords = {"obs_id": ["r1", "r2", "r3"]}
    result = SimpleNamespace(
        elpd=-3.0,
        se=1.0,
        p=2.0,
        good_k=0.7,
        pareto_k=xr.DataArray([0.1, 0.9, 0.8], coords),
        elpd_i=xr.DataArray([-1.0, -1.0, -1.0], coords),
    )
    found = finding_topics.loo(SimpleNamespace(loo=lambda progressbar: result), 0)
    assert found.severity == "alarm"
    assert "the scores of 2 of 3 rows are not reliable" in found.verdict
    assert "above 0.70: r2 and r3." in found.details[0]


def test_the_shift_that_a_right_model_explains():
    """Cases that differ by chance alone: the limit is seldom exceeded, and not by far from it."""
    rng = np.random.default_rng(1)
    cases, parameters, repetitions = 20, 5, 4000
    z = rng.standard_normal((repetitions, parameters, cases))
    largest = np.abs((z**2 - 1.0) / np.sqrt(2.0 * cases)).max(axis=(1, 2))
    limit = expected_shift(cases, parameters)
    # binomial error of 4,000 repetitions: 0.0034
    assert np.mean(largest > limit) == pytest.approx(finding_topics.CHANCE, abs=0.012)
    assert expected_shift(100_000, 5) == LARGE_SHIFT


# --- the methods paragraph -------------------------------------------------------------


def test_methods_say_what_was_checked(right, nothing):
    plain = right.methods_paragraph()
    assert "Not checked" not in plain
    text = right.methods_paragraph(findings=nothing)
    for title in ("Residuals and random effects: None of", "Leave-one-out cross-validation: Exp"):
        assert title in text
        assert title not in plain
    assert "Not checked" not in text
    some = right.methods_paragraph(findings=right.findings(["convergence", "singularity"]))
    assert "Not checked: residuals and random effects, influence of rows and levels, sens" in some
