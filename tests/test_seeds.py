"""Seeds: every argument `random_seed` refuses what is none in the same words."""

import re

import numpy as np
import pytest

from bayeslmm import LMM, load_dataset
from bayeslmm.data.seeds import seeded
from bayeslmm.estimation.executor import streams


@pytest.fixture(scope="module")
def model():
    return LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))


@pytest.fixture(scope="module")
def post(model):
    return model.fit(draws=50, chains=2, random_seed=np.random.default_rng(1))


@pytest.mark.parametrize("seed", ["1", 1.5, -1, [1.5]])
def test_what_is_no_seed_is_refused(model, post, seed):
    words = rf"random_seed={re.escape(repr(seed))}: a whole number of at least 0 is expected"
    for use in (
        model.fit,
        post.check.residuals,
        post.plot.predictive,
        model.reml().simulate,
        lambda random_seed: streams(random_seed, 2),
    ):
        with pytest.raises(ValueError, match=words):
            use(random_seed=seed)


def test_seeds_are_those_of_numpy():
    for seed in (0, np.int64(3), [1, 2]):
        assert seeded(seed).integers(1000) == np.random.default_rng(seed).integers(1000)
    generator = np.random.default_rng(1)
    assert seeded(generator) is generator
    assert seeded(None) is not seeded(None)
