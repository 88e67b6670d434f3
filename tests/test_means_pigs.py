"""The example of emmeans' vignettes, beside its published figures and multcomp's."""

import numpy as np
import pandas as pd
import pytest

import bayeslmm as blm

# emmeans: data(pigs), from Windels (1964)
CONC = """
27.8 23.7 31.5 28.5 32.8 34 28.3 30.6 32.7 33.7 39.3 34.8 29.8 39.8 40 39.1 38.5 39.2 40 42.9
40.6 31 34.6 42.9 50.1 37.4 59.5 41.4 59.8
"""
PERCENT = "9 9 12 12 12 15 15 18 18 18 9 9 9 12 12 12 15 15 15 18 9 9 9 12 12 12 15 15 18"

MVT = 1e-3
"""multcomp's p-values have an error of up to 9e-4 by its own account."""


@pytest.fixture(scope="module")
def pigs():
    frame = pd.DataFrame(
        {
            "conc": [float(x) for x in CONC.split()],
            "source": pd.Categorical(
                np.repeat(["fish", "soy", "skim"], [10, 10, 9]), ["fish", "soy", "skim"]
            ),
            "percent": [int(x) for x in PERCENT.split()],
        }
    )
    return blm.LMM("log(conc) ~ source + C(percent)", frame).reml()


def test_means_are_those_of_the_vignette(pigs):
    """Transformations and link functions in emmeans: the digits printed there."""
    link = pigs.means("source").table(null=np.log(35))
    assert link["estimate"].round(2).tolist() == [3.39, 3.67, 3.80]
    assert link["std_error"].round(4).tolist() == [0.0367, 0.0374, 0.0394]
    assert link["statistic"].round(3).tolist() == [-4.385, 2.988, 6.130]
    assert link["p_value"].round(4).tolist()[:2] == [0.0002, 0.0066]
    shown = pigs.means("source", type="response").table(null=np.log(35))
    assert shown["estimate"].round(1).iloc[0] == 29.8
    assert shown["std_error"].round(2).iloc[0] == 1.09


# R: multcomp::glht(lm(log(conc) ~ source + p, pigs), mcp(...)), p-values
def test_adjusted_p_values_are_those_of_multcomp(pigs):
    pairs = pigs.contrasts("source", adjust="mvt").table()["p_value"]
    np.testing.assert_allclose(pairs, [7.8338532e-05, 1.4465424e-07, 5.6896880e-02], atol=MVT)
    dunnett = pigs.contrasts("source", "reference", adjust="dunnett").table()
    np.testing.assert_allclose(dunnett["statistic"], [5.152931426, 7.427676640], rtol=1e-8)
    np.testing.assert_allclose(dunnett["p_value"], [6.2434216e-05, 2.9538765e-07], rtol=1e-4)
    steps = pigs.contrasts("percent", "sequential", adjust="mvt").table()
    np.testing.assert_allclose(steps["p_value"], [0.011137272, 0.861331182, 0.520144268], atol=MVT)
    size = (steps["conf_high"] - steps["estimate"]) / steps["std_error"]
    np.testing.assert_allclose(size, 2.5327588, atol=2e-3)  # qmvt's own tolerance


def test_letters_are_those_of_multcomp(pigs):
    assert pigs.means("source").letters(adjust="mvt")["letters"].tolist() == ["a", "b", "b"]
    assert pigs.means("percent").letters(adjust="mvt")["letters"].tolist() == ["a", "b", "b", "b"]
