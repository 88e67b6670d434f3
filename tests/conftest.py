"""Settings that every test shares, and the models and fits that many of them use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext

# Before NumPy is loaded: workers that each start a thread per core are in each other's way.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import pandas as pd  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from reference_data import load_reference_data  # noqa: E402

import bayeslmm as blm  # noqa: E402

# The same examples in every automatic run; new ones whenever a person runs the tests.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# --- data, models and fits that many files use: each is made once, where it is first asked for ---


@pytest.fixture(scope="session")
def sleepstudy() -> pd.DataFrame:
    return blm.load_dataset("sleepstudy")


@pytest.fixture(scope="session")
def sleepstudy_model(sleepstudy: pd.DataFrame) -> blm.LMM:
    return blm.LMM("Reaction ~ Days + (Days | Subject)", sleepstudy)


@pytest.fixture(scope="session")
def sleepstudy_fit(sleepstudy_model: blm.LMM) -> blm.Posterior:
    return sleepstudy_model.fit(random_seed=1)


@pytest.fixture(scope="session")
def sleepstudy_reml(sleepstudy_model: blm.LMM) -> blm.Estimate:
    return sleepstudy_model.reml()


@pytest.fixture(scope="session")
def dyestuff_model() -> blm.LMM:
    return blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))


@pytest.fixture(scope="session")
def dyestuff_fit(dyestuff_model: blm.LMM) -> blm.Posterior:
    return dyestuff_model.fit(random_seed=1)


@pytest.fixture(scope="session")
def dyestuff2_model() -> blm.LMM:
    """The REML estimate of its only standard deviation is zero."""
    return blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"))


@pytest.fixture(scope="session")
def dyestuff2_fit(dyestuff2_model: blm.LMM) -> blm.Posterior:
    return dyestuff2_model.fit(random_seed=1)


@pytest.fixture(scope="session")
def pastes_fit() -> blm.Posterior:
    """Nested grouping factors."""
    model = blm.LMM("strength ~ 1 + (1 | batch / cask)", blm.load_dataset("Pastes"))
    return model.fit(random_seed=1)


@pytest.fixture(scope="session")
def penicillin_fit() -> blm.Posterior:
    """Crossed grouping factors."""
    model = blm.LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", blm.load_dataset("Penicillin"))
    return model.fit(random_seed=1)


@pytest.fixture(scope="session")
def weighted_fit() -> blm.Posterior:
    data = load_reference_data("sim_weights")
    return blm.LMM("y ~ x + (x | g)", data, weights="w").fit(random_seed=1)


# --- where tasks are done ----------------------------------------------------------------


# One server imports the package and forks every worker, which is as fresh as a spawned one.
WORKERS = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
if WORKERS.get_start_method() == "forkserver":
    WORKERS.set_forkserver_preload(["bayeslmm.fits.lmm"])


@pytest.fixture(scope="session")
def workers() -> BaseContext:
    """How processes are started for a pool."""
    return WORKERS


@pytest.fixture(scope="module")
def pool(workers: BaseContext) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=workers) as executor:
        yield executor


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as executor:
        yield executor
