"""What the page of rOpenSci's standards names is there; conditions that no other test has."""

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bayeslmm as blm

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "standards.md"
SLEEP = "Reaction ~ Days + (Days | Subject)"


def numbers(prefix, *counts):
    """Numbers of standards: those of section i run from 0 to counts[i], or from a pair."""
    result = []
    for section, count in enumerate(counts, start=1):
        first, last = count if isinstance(count, tuple) else (0, count)
        result += [f"{prefix}{section}.{i}" for i in range(first, last + 1)]
    return result


STANDARDS = [
    *numbers("G", 6, 16, 1, 0, 12),
    *numbers("BS", 5, (1, 15), 2, 7, 5, 5, 4),
    *numbers("RE", 4, 4, 3, 18, 0, 3, 4),
]


# --- the page ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    if not PAGE.exists():
        pytest.skip("the documentation is not part of this copy")
    return PAGE.read_text(encoding="utf-8")


def test_every_standard_has_one_row(page):
    found = re.findall(r"^\| ((?:G|BS|RE)\d\.\d+) \|", page, re.MULTILINE)
    assert found == STANDARDS


def test_every_row_gives_a_verdict(page):
    rows = re.findall(r"^\| (?:G|BS|RE)\d\.\d+ \|.*$", page, re.MULTILINE)
    verdicts = [row.split(" | ")[2] for row in rows]
    assert set(verdicts) == {"met", "partly", "not met", "not applicable"}
    for verdict in set(verdicts):
        count = re.search(rf"^\| {verdict} \| (\d+) \|$", page, re.MULTILINE)
        assert count and int(count[1]) == verdicts.count(verdict), verdict


def test_what_rows_name_exists(page):
    paths = re.findall(r"`((?:tests|docs|benchmarks|notebooks|bayeslmm|\.ci)/[^`]+)`", page)
    assert len(paths) > 100
    assert [path for path in paths if not (ROOT / path).exists()] == []
    named = re.findall(r"`(tests/\w+\.py)` \(\*([^*]+)\*\)", page)
    assert len(named) > 90
    for file, words in named:
        name = f"test_{'_'.join(words.split())}"
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


# --- the conditions ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sleep():
    return blm.load_dataset("sleepstudy")


def test_noise_in_the_last_digit_does_not_matter(sleep):
    rng, eps = np.random.default_rng(1), np.finfo(float).eps
    noisy = sleep.assign(
        **{name: sleep[name] * (1 + eps * rng.normal(size=180)) for name in ("Reaction", "Days")}
    )
    one, two = (blm.LMM(SLEEP, data).reml().summary() for data in (sleep, noisy))
    np.testing.assert_allclose(two["estimate"], one["estimate"], rtol=1e-9)
    np.testing.assert_allclose(two["std_error"], one["std_error"], rtol=1e-7)


def test_seeds_do_not_matter_beyond_monte_carlo_error(sleep):
    model = blm.LMM(SLEEP, sleep)
    tables = [model.fit(random_seed=seed).summary() for seed in (1, 2)]
    one, two = (table["mean"].astype(float) for table in tables)
    error = np.hypot(*(table["mcse_mean"].astype(float) for table in tables))
    assert (abs(one - two) < 4.5 * error).all()


def test_estimates_come_nearer_to_the_truth_with_more_levels():
    truth = {"Intercept": 2.0, "x": -1.0, "sd": 1.5, "sigma": 0.7}
    errors = {}
    for levels in (10, 1000):
        found = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            g, x = np.repeat(np.arange(levels), 5), rng.normal(size=5 * levels)
            u = rng.normal(scale=1.5, size=levels)
            y = 2.0 - x + u[g] + rng.normal(scale=0.7, size=5 * levels)
            data = pd.DataFrame({"y": y, "x": x, "g": pd.Categorical(g)})
            reml = blm.LMM("y ~ x + (1 | g)", data).reml()
            found.append([*reml.beta, reml.sds["g"].iloc[0], reml.sigma])
        errors[levels] = np.sqrt(((np.array(found) - list(truth.values())) ** 2).mean(axis=0))
    assert (errors[1000] < 0.1).all()
    assert (errors[1000] < errors[10] / 4).all()  # a hundred times the levels: about a tenth


def test_data_that_say_nothing_leave_the_prior(sleep):
    model = blm.LMM(
        "Reaction ~ Days + (1 | Subject)",
        sleep.assign(w=1e-12),
        weights="w",
        fixed={"sigma": 1.0},
        priors={"Days": "normal(3, 2)", "sd[Subject]": "gamma(4, 0.5)"},
    )
    draws = model.fit(random_seed=2).data["posterior"]
    for values, prior in (
        (draws["beta"].sel(coef="Days"), stats.norm(3, 2)),
        (draws["sd_Subject"], stats.gamma(4, scale=2)),
    ):
        values = values.to_numpy().ravel()
        expected = prior.ppf([0.05, 0.25, 0.5, 0.75, 0.95])
        reached = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(reached, expected, atol=0.1 * prior.std())


def test_predictions_are_less_certain_further_away(sleep):
    new = pd.DataFrame({"Days": [9, 12, 18, 30], "Subject": "308"})
    for fit in (blm.LMM(SLEEP, sleep).reml(), blm.LMM(SLEEP, sleep).fit(draws=250, random_seed=1)):
        table = fit.predict(new, kind="response", random_seed=1)
        widths = table.iloc[:, -1] - table.iloc[:, -2]
        assert (np.diff(widths) > 0).all()


def test_tables_have_no_missing_numbers(sleep):
    model = blm.LMM(SLEEP, sleep)
    for fit in (model.reml(), model.fit(draws=100, random_seed=1)):
        tables = [fit.fixef(), fit.ranef()["Subject"], fit.coef()["Subject"], fit.G(), fit.V()]
        tables += [fit.fitted(), fit.residuals(), fit.predict(sleep.head(3)), fit.icc(), fit.r2()]
        for table in tables:
            values = table.toarray() if hasattr(table, "toarray") else np.asarray(table)
            assert np.isfinite(values.astype(float)).all()


def test_what_an_evaluation_reads_does_not_grow_with_the_rows(sleep):
    many = pd.concat([sleep] * 50, ignore_index=True)
    sizes = [len(pickle.dumps(blm.LMM(SLEEP, data).system)) for data in (sleep, many)]
    assert abs(sizes[1] - sizes[0]) < 64
