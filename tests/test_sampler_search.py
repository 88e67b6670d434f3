"""The collapsed sampler is right or says that it is not: a search for silent failures.

Every fifteenth of 300 designs runs under both families of priors with -m slow, and all of them with
BAYESLMM_TEST_ALL=1.
"""

from __future__ import annotations

import numpy as np
import pytest
from sampler_search import (
    Case,
    Reference,
    coordinates,
    difference,
    judge,
    make_case,
    sequential,
)
from scipy import stats
from slow_cases import ALL, one_in, slow

import bayeslmm as blm
from bayeslmm.estimation.start import prior_ranges
from bayeslmm.exceptions import SamplingError

DESIGNS = 300
STEP = 1 if ALL else 15
BLOCKS = 10

REFUSED = 0.03
"""Share of models under hostile priors that may be refused or flagged; of default ones, none."""


def run(numbers: range, *, hostile: bool) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"right": [], "refused": [], "flagged": [], "wrong": []}
    for number in numbers:
        verdict = judge(make_case(number, hostile=hostile))
        words = f"{number}: {verdict.case.formula} {verdict.case.words} {verdict.detail}"
        found[verdict.outcome].append(words)
    return found


@pytest.mark.parametrize("numbers", [(1001, 1005, 1006), slow((1000, 1003))])
def test_no_silent_failure_in_a_few_designs(numbers):
    """A model of every formula, under hostile priors; the quick ones in the default run."""
    found = run(numbers, hostile=True)
    assert not found["wrong"]
    assert len(found["right"]) >= len(numbers) - 1


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("hostile", [False, True], ids=["default priors", "hostile priors"])
def test_no_silent_failure(block, hostile):
    """Formulas take turns, so that every block and every step meet all of them."""
    size = DESIGNS // BLOCKS
    numbers = range(block * size + block % STEP, (block + 1) * size, STEP)
    found = run(numbers, hostile=hostile)
    assert not found["wrong"]
    stopped = found["refused"] + found["flagged"]
    assert len(stopped) <= (1 + REFUSED * len(numbers) if hostile else 0), stopped


# --- priors that contradict the data of sleepstudy -----------------------------------------------

SDS = ("sd[Subject, Intercept]", "sd[Subject, Days]")


def narrow(at: float):
    return "TruncatedNormal", {"mu": at, "sigma": 0.01, "lower": 0}, stats.norm(at, 0.01)


def uniform(low: float, high: float):
    return "Uniform", {"lower": low, "upper": high}, stats.uniform(low, high - low)


CONFLICTS = {
    "sds below 5": (SDS, uniform(0, 5)),
    "sigma at 100": (("sigma",), narrow(100)),
    "slope sd at 20": (SDS[1:], narrow(20)),
    "sigma above 45": (("sigma",), uniform(45, 60)),
    "sds of a thousandth": (SDS, uniform(1e-3, 2e-3)),
    "slope below 5": (("Days",), uniform(0, 5)),
}
"""The first four ended in a point, or in refusal, before weights were tempered."""


@pytest.fixture(scope="module", params=one_in(6, CONFLICTS))
def conflict(request) -> tuple[Case, Reference]:
    """A model of sleepstudy, and its posterior by the independent sampler."""
    import pymc as pm

    keys, (family, parameters, generator) = CONFLICTS[request.param]
    case = Case(
        number=0,
        formula="Reaction ~ Days + (Days | Subject)",
        data=blm.load_dataset("sleepstudy"),
        weights=None,
        priors={key: getattr(pm, family).dist(**parameters) for key in keys},
        generators=dict.fromkeys(keys, generator),
    )
    return case, sequential(case, 600)


def test_priors_that_contradict_the_data(conflict):
    case, reference = conflict
    post = case.model.fit(method="collapsed", draws=500, random_seed=1, progressbar=False)
    assert post.diagnostics.ok, post.diagnostics.messages()
    assert difference(coordinates(case.model, post), reference) == ""


def test_evidence_of_the_reported_failure():
    """Where the sampler ended in a point it gave a log evidence of -2465.86."""
    import pymc as pm

    model = blm.LMM(
        "Reaction ~ Days + (Days | Subject)",
        blm.load_dataset("sleepstudy"),
        priors={"sd[Subject]": pm.Uniform.dist(0, 5)},
    )
    post = model.fit(method="collapsed", random_seed=1, progressbar=False)
    assert post.log_evidence.value == pytest.approx(-899.49, abs=0.02)
    assert 0 < post.log_evidence.error < 0.01
    assert post.data["posterior"]["sd_Subject"].std(("chain", "draw")).min() > 0.2


# --- where the search starts ---------------------------------------------------------------------


def ranges_of(priors):
    model = blm.LMM(
        "Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"), priors=priors
    )
    return prior_ranges(model.priors)


def test_ranges_are_those_of_the_priors():
    import pymc as pm

    ranges = ranges_of({"sigma": pm.Uniform.dist(45, 60), "Days": pm.Uniform.dist(2, 3)})
    low, high = np.exp([ranges.low[3], ranges.high[3]])
    assert 45 < low < 47 and 58 < high < 60
    assert 2 < ranges.low[5] < 2.1 and 2.9 < ranges.high[5] < 3
    assert not np.isfinite([ranges.low[2], ranges.high[2]]).any()  # a correlation
    x = np.array([3.0, 1.5, 0.1, np.log(25.0), 298.5, 10.5])
    assert not ranges.contains(x)
    moved = ranges.clip(x)
    assert ranges.contains(moved)
    assert moved[4] == 298.5  # the intercept at the column means
    assert moved[:3] == pytest.approx(x[:3]) and np.exp(moved[3]) == pytest.approx(low)


def test_proposals_are_no_wider_than_priors():
    import pymc as pm

    ranges = ranges_of({"sigma": pm.Uniform.dist(45, 45.001)})
    root = np.linalg.cholesky(0.5 * np.eye(4) + 0.5)
    found = ranges.narrow(root)
    sds = np.linalg.norm(found, axis=1)
    assert sds[:3] == pytest.approx(1.0)
    assert sds[3] < 1e-5
    corr = found @ found.T / np.outer(sds, sds)
    assert corr == pytest.approx(root @ root.T, abs=1e-8)


def test_flat_priors_have_no_ranges():
    ranges = ranges_of("flat")
    assert np.all(np.isinf(ranges.high))
    assert np.all(np.isinf(ranges.low))


def test_a_density_without_a_generator_is_sampled():
    """PyMC cannot draw from it, so the search starts without its range."""
    import pymc as pm
    import pytensor.tensor as pt

    def logp(x, scale):
        return pt.switch(pt.gt(x, 0), -x / scale - pt.log(scale), -np.inf)

    data = blm.load_dataset("Dyestuff")
    own = blm.LMM(
        "Yield ~ (1 | Batch)", data, priors={"sigma": pm.CustomDist.dist(50.0, logp=logp)}
    )
    known = blm.LMM("Yield ~ (1 | Batch)", data, priors={"sigma": pm.Exponential.dist(scale=50.0)})
    found, wanted = (
        model.fit(method="collapsed", random_seed=1, progressbar=False).log_evidence
        for model in (own, known)
    )
    assert found.value == pytest.approx(wanted.value, abs=5 * np.hypot(found.error, wanted.error))


def test_a_prior_that_no_point_satisfies_is_refused():
    """The density vanishes wherever the search looks: an error, and NUTS by itself after it."""
    import pymc as pm
    import pytensor.tensor as pt

    def logp(x, at):
        return pt.switch(pt.lt(pt.abs(x - at), 1e-9), 0.0, -np.inf)

    data = blm.load_dataset("Dyestuff")
    model = blm.LMM(
        "Yield ~ (1 | Batch)", data, priors={"sigma": pm.CustomDist.dist(777.0, logp=logp)}
    )
    with pytest.raises(SamplingError, match="vanishes at all"):
        model.fit(method="collapsed", random_seed=1, progressbar=False)
