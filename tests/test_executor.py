"""Refits and simulations give the same wherever they run, and say what went wrong there."""

import os
import threading
import time
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_all_start_methods, get_context

import numpy as np
import pandas as pd
import pytest
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.estimation import bootstrap
from bayeslmm.estimation.executor import FEWEST_PARCELS, PARCELS, Tasks, results
from bayeslmm.exceptions import DataError, FormulaError, NoEstimateError, SamplingError


@pytest.fixture(scope="module")
def model():
    """Seven groups, the last far from the others; a function of one's own in the formula."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(7), 5)
    x = rng.standard_normal(35)
    y = x + rng.standard_normal(7)[g] + 8.0 * (g == 6) + 0.5 * rng.standard_normal(35)
    data = pd.DataFrame({"y": y, "x": x, "g": [f"group {i}" for i in g]})
    return blm.LMM("y ~ twice(x) + (1 | g)", data, functions={"twice": lambda column: 2.0 * column})


@pytest.fixture(scope="module")
def fits(model):
    return model.reml(), model.fit(draws=250, random_seed=1, progressbar=False)


QUIET = {"progressbar": False}
VERBS = {
    "bootstrap": lambda reml, _, **at: [reml.bootstrap(7, random_seed=1, **at)],
    "intervals": lambda reml, _, **at: [
        reml.confint("bootstrap", draws=5, random_seed=np.random.default_rng(2), **at)
    ],
    "predictions": lambda reml, _, **at: [
        reml.predict(uncertainty="bootstrap", draws=5, random_seed=3, **at)
    ],
    "influence": lambda reml, _, **at: list(influence_of(reml.check.influence("g", **at))),
    "calibration": lambda _, post, **at: list(calibration_of(post, **at)),
    "loo": lambda _, post, **at: [post.loo(by="g", **at)[name] for name in ("elpd_i", "pareto_k")],
    "compare": lambda _, post, **at: [blm.compare({"a": post, "b": post}, by="g", **at)["elpd"]],
}


def influence_of(found):
    return found.table, found.dfbetas, found.estimates


def calibration_of(post, **at):
    check = blm.LMM.from_fit(post).check_calibration(
        4, method="laplace", draws=50, random_seed=4, **at
    )
    return check.ranks, check.kept


@pytest.fixture(scope="module")
def alone(fits):
    """What each verb gives without an executor."""
    return {name: verb(*fits, **QUIET) for name, verb in VERBS.items()}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *((name, "threads") for name in VERBS if name != "compare"),
        ("bootstrap", "pool"),
        *(slow(name, "pool") for name in VERBS if name not in ("bootstrap", "compare")),
    ],
)
def test_results_do_not_depend_on_the_executor(name, where, fits, alone, request):
    found = VERBS[name](*fits, executor=request.getfixturevalue(where), **QUIET)
    for one, other in zip(alone[name], found, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_some_scores_were_sampled_anew(alone):
    assert np.any(alone["loo"][1] == 0.0)


def test_scores_are_those_of_one_row_or_group_alone(fits, alone, monkeypatch):
    """A stream of its own: which others are sampled changes nothing."""
    monkeypatch.setattr("bayeslmm.checks.loo.MOST_RESAMPLED", 1)
    elpd, k = VERBS["loo"](*fits, **QUIET)
    place = int(np.flatnonzero(k == 0.0).item())
    assert float(elpd[place]) == float(alone["loo"][0][place])


def test_a_stream_given_is_left_as_without_an_executor(fits, threads):
    streams = [np.random.default_rng(5) for _ in range(2)]
    for stream, executor in zip(streams, (None, threads), strict=True):
        fits[0].bootstrap(3, random_seed=stream, executor=executor, **QUIET)
    assert streams[0].bit_generator.state == streams[1].bit_generator.state


def test_failed_refits_are_replaced_by_the_same_ones(fits, threads, monkeypatch):
    """Every fifth response or so has no refit; the next that has one takes its place."""

    def fit(y, method):
        if y[0] * 1e6 % 10 < 2:
            raise NoEstimateError("no maximum")
        return float(y[0])

    monkeypatch.setattr(bootstrap, "marginal_system", lambda design: design.y)
    monkeypatch.setattr(bootstrap, "fit_likelihood", fit)
    monkeypatch.setattr(bootstrap, "Fit", float)
    monkeypatch.setattr(bootstrap, "MOST_FAILURES", 1.0)
    design, estimate = fits[0].design, fits[0].fit
    streams = [np.random.default_rng(6) for _ in range(2)]
    one, other = (
        bootstrap.bootstrap_fits(design, estimate, 40, stream, executor=at, progressbar=False)
        for stream, at in zip(streams, (None, threads), strict=True)
    )
    first = bootstrap.simulate_responses(design, estimate, 80, np.random.default_rng(6))[:, 0]
    good = first[first * 1e6 % 10 >= 2][:40].tolist()
    assert good != first[:40].tolist()
    assert one == other == good
    assert streams[0].bit_generator.state == streams[1].bit_generator.state


def test_too_many_failures_end_a_bootstrap(fits, threads, monkeypatch):
    def fail(*_):
        raise NoEstimateError("no maximum")

    monkeypatch.setattr(bootstrap, "fit_likelihood", fail)
    for executor in (None, threads):
        with pytest.raises(SamplingError, match=r"3 refits .* beside 0 that .*: no max"):
            fits[0].bootstrap(20, random_seed=1, executor=executor, **QUIET)


# --- the map itself ---------------------------------------------------------------------


def tasks(work, size=6, parts=()):
    """Tasks whose work is made by a function of no module, which pickles by value."""
    return Tasks(
        make=lambda *given: lambda item: work(item, *given),
        parts=parts,
        items=range(size),
        size=size,
        title="Tasks",
        label=lambda number: f"Task {number}",
    )


def run(given, executor=None):
    with results(given, executor, False) as found:
        return list(found)


def test_results_keep_their_order(threads, pool):
    def late_first(item):
        time.sleep(0.02 * (item == 0))
        return item, os.getpid()

    expected = list(range(6))
    for executor in (None, threads, pool):
        found = run(tasks(late_first), executor)
        assert [item for item, _ in found] == expected
        elsewhere = {process for _, process in found} - {os.getpid()}
        assert bool(elsewhere) == (executor is pool)


def test_no_tasks_are_no_results(threads):
    assert run(tasks(lambda item: item, 0)) == run(tasks(lambda item: item, 0), threads) == []


@pytest.mark.parametrize("where", ["threads", "pool"])
def test_the_first_error_by_number_says_which_task_it_was(where, request):
    def work(item):
        if item == 4:
            raise DataError("too few levels")
        time.sleep(0.02 * item)
        if item == 2:
            raise FormulaError("what is this?", "y ~ x", 4, 5)
        return item

    executor = request.getfixturevalue(where)
    with pytest.raises(FormulaError, match=r"Task 2: what is this\?\n  y ~ x\n      \^"):
        run(tasks(work), executor)


@pytest.mark.parametrize("where", ["threads", "pool"])
def test_other_errors_become_ours_with_their_traceback(where, request):
    def divide(item):
        return 1 / (item - 3)

    with pytest.raises(SamplingError, match="Task 3: ZeroDivisionError: division by zero") as seen:
        run(tasks(divide), request.getfixturevalue(where))
    (note,) = seen.value.__cause__.__notes__
    assert "in divide" in note


@pytest.mark.parametrize("where", ["threads", "pool"])
def test_what_cannot_be_made_is_an_error_of_the_first_task(where, request):
    def make():
        raise DataError("no such thing")

    given = Tasks(
        make=make, parts=(), items=range(2), size=2, title="", label=lambda n: f"Task {n}"
    )
    with pytest.raises(DataError, match="no such thing"):
        run(given, request.getfixturevalue(where))


class Recording:
    """An executor that runs everything at once and keeps its futures."""

    def __init__(self, error=None, after=0):
        self.error, self.after, self.calls, self.futures = error, after, [], []

    def submit(self, fn, /, *args):
        future = Future()
        if len(self.futures) < self.after or self.error is None:
            future.set_result(fn(*args))
        elif len(self.futures) == self.after:
            future.set_exception(self.error)
        self.calls.append((fn, args))
        self.futures.append(future)
        return future


def test_the_model_is_sent_a_few_times_and_made_once():
    made = []

    def make(part):
        made.append(part)
        return lambda item: item

    executor = Recording()
    given = Tasks(make=make, parts=(made,), items=iter(range(1000)), size=1000, title="", label=str)
    assert run(given, executor) == list(range(1000))
    assert PARCELS / 2 < len(executor.calls) <= PARCELS
    assert len({id(fn) for fn, _ in executor.calls}) == 1


def test_large_models_are_sent_less_often(monkeypatch):
    monkeypatch.setattr("bayeslmm.estimation.executor.LARGEST_SENT", 0)
    executor = Recording()
    run(tasks(lambda item: item, 1000), executor)
    assert FEWEST_PARCELS / 2 < len(executor.calls) <= FEWEST_PARCELS


def test_threads_share_one_model(threads):
    made = []

    def make():
        made.append(threading.current_thread())
        return lambda item: item

    given = Tasks(make=make, parts=(), items=range(50), size=50, title="", label=str)
    assert run(given, threads) == list(range(50))
    assert made == [threading.current_thread()]


def test_rows_are_sent_without_the_data_they_were_made_of(fits):
    design = fits[0].design
    assert design.without_data().data.shape == (35, 0)
    assert design.data.shape[1] == 3
    executor = Recording()
    fits[0].bootstrap(1, random_seed=1, executor=executor, **QUIET)
    sent = executor.calls[0][0].args[1]
    assert b"bayeslmm" in sent
    assert len(sent) < 20_000


def test_ctrl_c_cancels_what_has_not_begun(fits):
    executor = Recording(KeyboardInterrupt(), after=2)
    with pytest.raises(KeyboardInterrupt):
        fits[0].bootstrap(6, random_seed=1, executor=executor, **QUIET)
    assert [future.cancelled() for future in executor.futures] == [False] * 3 + [True] * 3


def test_an_error_cancels_what_has_not_begun():
    executor = Recording(SamplingError("lost"), after=1)
    with pytest.raises(SamplingError, match="did not do Task 1: SamplingError: lost"):
        run(tasks(lambda item: item), executor)
    assert all(future.cancelled() for future in executor.futures[2:])


# --- executors that fail ----------------------------------------------------------------


class KilledWorker(Exception):
    """As Dask's, which is no BrokenExecutor."""


@pytest.mark.parametrize("error", [BrokenExecutor("gone"), KilledWorker("gone")])
def test_dead_workers_are_named_by_what_they_did(error):
    with pytest.raises(SamplingError, match=r"died before it was done with Task 1 \(\w+: gone\)"):
        run(tasks(lambda item: item), Recording(error, after=1))


def test_a_worker_that_dies_is_said_in_words():
    method = "fork" if "fork" in get_all_start_methods() else "spawn"

    def die(item):
        return os._exit(1) if item == 3 else item

    with ProcessPoolExecutor(1, mp_context=get_context(method)) as executor:
        with pytest.raises(SamplingError, match=r"died before .* Task \d .*out of memory"):
            run(tasks(die), executor)
        with pytest.raises(SamplingError, match="new executor"):  # it is broken from then on
            run(tasks(die), executor)


def test_an_executor_that_is_shut_down_is_said_in_words():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(SamplingError, match=r"did not do Task 0: .*shutdown.* must not be shut"):
        run(tasks(lambda item: item), executor)


@pytest.mark.parametrize("wrong", [4, "threads", ThreadPoolExecutor, object()])
@pytest.mark.parametrize("name", VERBS)
def test_what_is_no_executor_is_refused(name, wrong, fits):
    with pytest.raises(TypeError, match=r"executor=.*ProcessPoolExecutor\(\)"):
        VERBS[name](*fits, executor=wrong, **QUIET)


def test_verbs_that_need_no_executor_here_refuse_a_wrong_one_too(fits):
    reml, post = fits
    for call in (
        lambda: reml.confint(executor=4),
        lambda: reml.check.influence(executor=4),
        lambda: reml.predict(executor=4),
        lambda: post.loo(executor=4),
        lambda: blm.compare({"a": reml, "b": reml}, executor=4),
    ):
        with pytest.raises(TypeError, match="executor=4"):
            call()


def test_what_does_not_pickle_is_said_before_anything_runs(model, threads):
    lock = threading.Lock()

    def locked(column):
        with lock:
            return 2.0 * column

    own = model.update(functions={"twice": locked}).reml()
    executor = Recording()
    with pytest.raises(SamplingError, match=r"cannot pickle '_thread.lock'.*ThreadPoolExecutor"):
        own.bootstrap(2, random_seed=1, executor=executor, **QUIET)
    assert not executor.calls
    here, there = (own.bootstrap(2, random_seed=1, executor=at, **QUIET) for at in (None, threads))
    pd.testing.assert_frame_equal(here, there)


# --- others -----------------------------------------------------------------------------


def test_progress_is_shown_as_results_come(threads, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    with results(tasks(lambda item: item), threads, True) as found:
        assert list(found) == list(range(6))
    shown = capsys.readouterr()
    assert not shown.out
    assert "Tasks" in shown.err
    assert "100%" in shown.err


def test_a_dask_cluster_is_an_executor(fits, alone):
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        for name in ("bootstrap", "influence"):
            found = VERBS[name](*fits, executor=client.get_executor(), **QUIET)
            for one, other in zip(alone[name], found, strict=True):
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
