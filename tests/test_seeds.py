"""Seeds: every argument `random_seed` refuses what is none in the same words."""

import re
from dataclasses import replace

import numpy as np
import pytest
from slow_cases import slow

from bayeslmm import LMM, StorageError, load, load_dataset
from bayeslmm.data.seeds import RECORDED, seeded
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


# --- seeds that are kept with the draws ------------------------------------------------


def assert_same_draws(one, two):
    assert one.data["posterior"].equals(two.data["posterior"])


@pytest.mark.parametrize("method", ["collapsed", "laplace", slow("nuts")])
def test_a_run_without_a_seed_can_be_repeated(model, method):
    options = {"method": method, "draws": 20, "chains": 2}
    if method == "nuts":
        options |= {"form": "marginal", "tune": 20, "cores": 1, "progressbar": False}
    first, other = model.fit(**options), model.fit(**options)
    assert first.random_seeds != other.random_seeds
    (seed,) = first.random_seeds
    again = model.fit(**options, random_seed=seed)
    assert_same_draws(again, first)
    assert again.random_seeds == (seed,)


def test_every_run_has_its_seed(model):
    first = model.fit(draws=20, random_seed=np.int64(7))
    more = first.extend(10).extend(5, random_seed=[1, 2])
    assert (more.random_seeds[0], more.random_seeds[2]) == (7, (1, 2))
    again = model.fit(draws=20, random_seed=7)
    for draws, seed in zip((10, 5), more.random_seeds[1:], strict=True):
        again = again.extend(draws, random_seed=seed)
    assert_same_draws(again, more)


def test_the_state_of_a_generator_is_not_kept(post):
    assert post.random_seeds == (None,)
    assert post.extend(5, random_seed=np.random.default_rng(1)).random_seeds == (None, None)


def test_files_keep_seeds(model, tmp_path):
    drawn = model.fit(draws=20).extend(5, random_seed=3)
    drawn.save(tmp_path / "fit.nc")
    assert load(tmp_path / "fit.nc").random_seeds == drawn.random_seeds
    without = drawn.data.copy()
    del without.attrs[RECORDED]
    old = replace(drawn, data=without)  # of a version that kept none
    assert old.random_seeds == (None,)
    assert old.extend(5, random_seed=1).random_seeds == (None, 1)


@pytest.mark.parametrize("text", ["no JSON", "5", '["1"]', "[[1.5]]", "[true]"])
def test_files_with_what_is_no_seed_are_refused(post, tmp_path, text):
    wrong = post.data.copy()
    wrong.attrs[RECORDED] = text
    with pytest.raises(StorageError, match="cannot be read"):  # files are read back when written
        replace(post, data=wrong).save(tmp_path / "fit.nc")
