"""Seeded frames of every type: the model that plain Python gives, or one of our errors."""

import datetime as dt
import warnings

import numpy as np
import pandas as pd
import pytest
from frame_fuzz import BACKENDS, framed, make_case, rendered
from slow_cases import ALL

import bayeslmm as blm
from bayeslmm.data.building import build_design
from bayeslmm.exceptions import BayesLMMError

SEEDS = 50
SEEDS_SLOW = 3000 if ALL else 1500
EXTREME = {"huge", "tiny"}  # their sums and squares are not those of float64


# --- what a design must be -------------------------------------------------------------


def complete_rows(case):
    n = len(next(iter(case.columns.values())).values)
    used = [column.values for column in case.columns.values()]
    return [i for i in range(n) if all(values[i] is not None for values in used)]


def known(case, rows):
    """The values of each role, of those columns that hold nothing hostile."""
    return {
        role: [column.values[i] for i in rows]
        for role, column in case.columns.items()
        if column.values
    }


def has_column(design, values):
    return any(np.array_equal(column, values) for column in design.X_full.T)


def check_design(design, case):
    assert np.isfinite(design.X).all() and np.isfinite(design.y).all()
    n = len(case.data) if not isinstance(case.data, dict) else len(next(iter(case.data.values())))
    assert design.n + len(design.dropped) == n
    plain = all(column.values for column in case.columns.values())
    if plain:
        rows = complete_rows(case)
        assert np.delete(np.arange(n), design.dropped).tolist() == rows
    else:
        rows = np.delete(np.arange(n), design.dropped).tolist()
    values = known(case, rows)
    if "y" in values:
        np.testing.assert_array_equal(design.y, np.array(values["y"], dtype=float))
    if case.weights and "w" in values:
        np.testing.assert_array_equal(design.weights, np.array(values["w"], dtype=float))
    check_fixed(design, case, values)
    check_groups(design, case, values)


def check_fixed(design, case, values):
    right = case.formula.partition("~")[2].split("(1 |")[0]
    written = {role: f"`{name}`" in right for role, name in case.names.items()}
    if "x" in values and written["x"]:
        x = np.array(values["x"], dtype=float)
        if "**2" in right:
            assert has_column(design, x**2)
        elif " - " not in right:
            assert has_column(design, x)
        elif "o" in values:
            assert has_column(design, x - np.array(values["o"], dtype=float))
    if "offset(" in right and "o" in values:
        np.testing.assert_array_equal(design.offset, np.array(values["o"], dtype=float))
    if "f" in values and written["f"]:
        first, *others = sorted(set(values["f"]))
        of_level = {
            level: np.array([v == level for v in values["f"]], dtype=float) for level in others
        }
        assert all(has_column(design, indicator) for indicator in of_level.values())
        assert not has_column(design, np.array([v == first for v in values["f"]], dtype=float))


def check_groups(design, case, values):
    for factor in design.random:
        roles = [next(r for r, n in case.names.items() if n == v) for v in factor.factors]
        assert sorted(set(factor.codes.tolist())) == list(range(factor.n_levels))
        assert len(set(factor.levels)) == factor.n_levels
        if not all(role in values for role in roles):
            continue
        cells = list(zip(*(values[role] for role in roles), strict=True))
        assert len(set(cells)) == len(set(zip(cells, factor.codes.tolist(), strict=True)))
        assert len(set(cells)) == factor.n_levels
        if all(isinstance(value, str | int) for value in cells[0]) and len(roles) == 1:
            labels = [factor.levels[code] for code in factor.codes]
            assert labels == [str(value) for (value,) in cells]


def check_same(one, two):
    assert one.coefs_full == two.coefs_full
    for name in ("y", "X_full", "offset", "dropped", "weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for first, second in zip(one.random, two.random, strict=True):
        np.testing.assert_array_equal(first.codes, second.codes)
        np.testing.assert_array_equal(first.levels, second.levels)
        np.testing.assert_array_equal(first.Z, second.Z)


def in_another_frame(case, rng):
    backend = BACKENDS[int(rng.integers(len(BACKENDS)))]
    columns = {
        case.names[role]: rendered(column.values, backend, rng)
        for role, column in case.columns.items()
    }
    return framed(columns, backend, rng)


# --- trying a frame --------------------------------------------------------------------


def snapshot(data):
    """What could be changed: the values, types and labels of pandas, and lists."""
    if isinstance(data, pd.DataFrame):
        values = [repr(data[name].tolist()) for name in data]
        return values, list(data.dtypes), list(data.columns), data.index.tolist()
    return {
        name: (repr(list(values)), getattr(values, "dtype", None))
        for name, values in data.items()
        if isinstance(values, pd.Series | np.ndarray | list)
    }


def attempt(case, seed, *, fit=False, tmp_path=None):
    """The outcome, after every check that it allows."""
    rng = np.random.default_rng([seed, 1])
    changeable = isinstance(case.data, pd.DataFrame | dict)
    before = snapshot(case.data) if changeable and rng.random() < 0.2 else None
    try:
        model = build_design(case.formula, case.data, weights=case.weights)
    except BayesLMMError as error:
        assert str(error)
        return "error"
    check_design(model, case)
    if rng.random() < 0.1 and all(column.values for column in case.columns.values()):
        check_same(
            model, build_design(case.formula, in_another_frame(case, rng), weights=case.weights)
        )
    if rng.random() < 0.05 and not _extreme(case):
        try_estimate(case)
    if fit:
        try_posterior(case, tmp_path)
    if before is not None:
        assert snapshot(case.data) == before
    return "model"


def _extreme(case):
    return any(column.note in EXTREME for column in case.columns.values())


def try_estimate(case):
    """Fit, and predict on the same rows."""
    model = blm.LMM(case.formula, case.data, weights=case.weights)
    try:
        estimate = model.reml()
    except BayesLMMError:
        return
    assert np.isfinite(estimate.criterion)
    if not model.dropped:
        estimate.predict(case.data)


def try_posterior(case, tmp_path):
    try:
        model = blm.LMM(case.formula, case.data, weights=case.weights)
        post = model.fit(draws=50, chains=2, random_seed=1, progressbar=False)
        post.save(tmp_path / "a.nc", overwrite=True)
    except BayesLMMError:
        return
    again = blm.load(tmp_path / "a.nc")
    check_same(again.design, post.design)
    if not model.dropped:
        post.predict(case.data)


def run(seeds, tmp_path, fits):
    outcomes = {"model": 0, "error": 0}
    for seed in seeds:
        case = make_case(np.random.default_rng(seed))
        try:
            with warnings.catch_warnings():
                if _extreme(case):
                    warnings.simplefilter("ignore", RuntimeWarning)
                outcome = attempt(case, seed, fit=seed in fits, tmp_path=tmp_path)
        except Exception as error:
            notes = {case.names[role]: column.note for role, column in case.columns.items()}
            error.add_note(f"seed {seed}: {case.formula}, {case.weights}, {case.note}, {notes}")
            raise
        assert case.expected in (outcome, "either"), (seed, case.expected, outcome, case.formula)
        outcomes[outcome] += 1
    return outcomes


def test_frames_of_every_type(tmp_path, capfd):
    outcomes = run(range(SEEDS), tmp_path, fits={4})
    assert min(outcomes.values()) > SEEDS / 5
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_many_frames_of_every_type(tmp_path, capfd):
    outcomes = run(range(SEEDS, SEEDS + SEEDS_SLOW), tmp_path, fits=set(range(SEEDS, 4000, 700)))
    assert min(outcomes.values()) > SEEDS_SLOW / 5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "values",
    [
        [dt.date(2020, 1, 2), dt.date(2019, 5, 1), dt.date(2021, 1, 1)],
        [dt.datetime(2020, 1, 2), dt.datetime(2019, 5, 1), dt.datetime(2021, 1, 1)],
        [3, "a", "2"],
        [(1,), (2,), (1, 2)],
        [2.5, 1.0, 2.0],
    ],
    ids=["dates", "moments", "mixed", "tuples", "numbers"],
)
def test_means_of_levels_of_any_kind(values):
    column = np.fromiter([values[i % 3] for i in range(36)], dtype=object, count=36)
    data = {"y": np.arange(36) % 11 * 1.5, "f": pd.Series(column), "g": np.arange(36) // 6}
    fit = blm.LMM("y ~ C(f) + (1 | g)", data).reml()
    averages, means = fit.average_predictions("f"), fit.means("f")
    assert set(averages.quantities.labels["f"]) == set(values)
    np.testing.assert_allclose(averages.table()["estimate"], means.table()["estimate"])
