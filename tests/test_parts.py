"""Sums over parts of the data: whatever the parts and their order, they add up to those of all."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from slow_cases import one_in
from test_beyond_memory import CRITERION, MODELS

import bayeslmm as blm
from bayeslmm.data.level_sets import GroupingSets, Numbers, united
from bayeslmm.data.sources import frames_source
from bayeslmm.data.survey import Coding
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.exceptions import DataError
from bayeslmm.formula.grammar import parse
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.likelihood.parts import read_part

PRODUCTS = 1e-10
"""Largest difference of sums in one basis, relative to the largest of their kind."""


def part(formula, *frames, weights=None, coding=None):
    source = frames_source("The frames", frames)
    return read_part(parse(formula, {}), source, weights, {}, coding)


def coding_of(whole):
    return Coding(sample=whole.summary.sample, states=whole.summary.states)


def cut(frame, count, seed):
    """Rows of a frame in parts, at random."""
    own = np.random.default_rng(seed).integers(0, count, len(frame))
    return [frame[own == i] for i in range(count) if np.any(own == i)]


def total(parts, seed=0):
    """Sum of parts in a random tree."""
    rng, parts = np.random.default_rng(seed), list(parts)
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        both = parts[i] + parts[j]
        parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [both]
    return parts[0]


def assert_same_products(found, expected):
    a, b = found.design({}).products, expected.design({}).products
    assert (a.n_obs, len(a.couplings)) == (b.n_obs, len(b.couplings))
    pairs = [(a.fixed, b.fixed), *zip(a.random, b.random, strict=True)]
    pairs += zip(a.mixed, b.mixed, strict=True)
    pairs += [(c.blocks, d.blocks) for c, d in zip(a.couplings, b.couplings, strict=True)]
    for mine, theirs in pairs:
        largest = np.max(np.abs(theirs), initial=1.0)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=PRODUCTS * largest)
    for mine, theirs in zip(a.couplings, b.couplings, strict=True):
        np.testing.assert_array_equal(mine.first, theirs.first)
        np.testing.assert_array_equal(mine.second, theirs.second)


def criterion(found):
    return fit_likelihood(marginal_system(found.design({})), "REML").criterion


@pytest.mark.parametrize(
    ("count", "name"), [*((2, name) for name in MODELS), *one_in(4, ((9, name) for name in MODELS))]
)
def test_parts_add_up(name, count):
    frame = blm.load_dataset(name)
    whole = part(MODELS[name], frame)
    parts = [part(MODELS[name], own, coding=coding_of(whole)) for own in cut(frame, count, count)]
    found = total(parts)
    assert_same_products(found, whole)
    a, b = found.summary, whole.summary
    for key, counts in b.counts.items():
        np.testing.assert_array_equal(a.counts[key], counts)
    assert (a.n, a.n_dropped, a.ranges) == (b.n, b.n_dropped, b.ranges)
    assert a.means == pytest.approx(b.means)
    assert a.mean_offset == pytest.approx(b.mean_offset)


def test_parts_of_one_row_add_up():
    frame = blm.load_dataset("Pixel")
    whole = part(MODELS["Pixel"], frame)
    rows = [part(MODELS["Pixel"], frame.iloc[[i]], coding=coding_of(whole)) for i in range(30)]
    assert_same_products(total(rows), part(MODELS["Pixel"], frame.iloc[:30]))


def test_weights_offsets_and_gaps_add_up():
    frame = blm.load_dataset("Orthodont")
    rng = np.random.default_rng(1)
    frame["w"] = rng.uniform(0.5, 3.0, len(frame))
    frame.loc[[3, 50, 51], "age"] = np.nan
    formula = "distance ~ scale(age) * Sex + offset(age / 3) + (age | Subject)"
    whole = part(formula, frame, weights="w")
    parts = [part(formula, f, weights="w", coding=coding_of(whole)) for f in cut(frame, 5, 2)]
    found = total(parts)
    assert_same_products(found, whole)
    assert found.summary.log_weights == pytest.approx(whole.summary.log_weights)
    assert found.summary.mean_inverse_weight == pytest.approx(whole.summary.mean_inverse_weight)
    assert found.summary.n_dropped == 3
    assert criterion(found) == pytest.approx(
        blm.LMM(formula, frame, weights="w").reml().criterion, abs=CRITERION
    )


@pytest.mark.parametrize("fixed", ["x", "1"])
@pytest.mark.parametrize(("origin", "unit"), [(1e9, 1.0), (0.0, 1e-9), (-1e6, 1e5)])
def test_parts_that_are_far_from_each_other(origin, unit, fixed):
    """Each part has one value of x, and x is constant, or far from zero, or both."""
    rng = np.random.default_rng(3)
    g, x = rng.integers(0, 20, 600), np.repeat(np.arange(6.0), 100)
    y = rng.normal(size=20)[g] + x + rng.normal(size=600)
    plain = pd.DataFrame({"y": y, "x": x, "g": g})
    moved = plain.assign(x=origin + unit * x)
    formula = f"y ~ {fixed} + (x | g)"
    parts = [part(formula, own) for _, own in moved.groupby("x")]
    expected = blm.LMM(formula, plain).reml().criterion + 2 * np.log(unit) * (fixed == "x")
    digits = np.finfo(float).eps * abs(origin / unit) * 1e4
    assert criterion(total(parts)) == pytest.approx(expected, abs=CRITERION + digits)


def test_a_batch_that_the_first_ones_do_not_foretell():
    """Batches grow, and the fit of the first three rows is wild."""
    rng = np.random.default_rng(5)
    x = np.concatenate([[1.0, 1.0 + 1e-7, 1.0 + 2e-7], rng.normal(size=500), 1e6 + np.arange(99)])
    g = rng.integers(0, 12, len(x))
    frame = pd.DataFrame({"y": rng.normal(size=12)[g] + rng.normal(size=len(x)), "x": x, "g": g})
    ends = [0, 3, 4, 13, 483, 513, len(frame)]
    batches = [frame.iloc[start:end] for start, end in pairwise(ends)]
    for formula in ("y ~ x + (1 | g)", "y ~ 1 + (x | g)", "y ~ 1 + (1 | g) + (0 + x | g)"):
        expected = blm.LMM(formula, frame).reml().criterion
        for own in (batches, batches[::-1]):
            assert blm.LMM(formula, own).reml().criterion == pytest.approx(expected, abs=CRITERION)


def test_columns_that_depend_on_each_other_in_parts_only():
    frame = blm.load_dataset("Orthodont")
    frame["twice"] = 2 * frame["age"] + (frame["Subject"] == frame["Subject"].iloc[0])
    formula = "distance ~ age + twice + Sex + (1 | Subject)"
    whole = part(formula, frame)
    parts = [part(formula, own, coding=coding_of(whole)) for _, own in frame.groupby("Subject")]
    assert_same_products(total(parts, seed=4), whole)


def test_a_part_can_be_sent():
    frame = blm.load_dataset("Oats")
    found = pickle.loads(pickle.dumps(part(MODELS["Oats"], frame)))
    assert_same_products(found, part(MODELS["Oats"], frame))


# --- what does not add up --------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("distance ~ age + (1 | Subject)", r"different models"),
        ("distance ~ age + Sex + (age | Subject)", r"different columns.*Male.*Other"),
    ],
)
def test_sums_of_different_models_do_not_add(other, words):
    frame = blm.load_dataset("Orthodont")
    formula = "distance ~ age + Sex + (age | Subject)"
    changed = frame.assign(Sex=frame["Sex"].astype(str).replace("Male", "Other"))
    with pytest.raises(DataError, match=words):
        part(formula, frame.astype({"Sex": str})) + part(other, changed)


def test_other_base_levels_and_other_memories_do_not_add():
    frame = pd.DataFrame({"y": np.arange(12.0), "f": list("acbc") * 3, "g": list("uvw") * 4})
    first, second = frame[frame["f"] != "b"], frame[frame["f"] != "a"]
    formula = "y ~ f + (1 | g)"  # one column, f[c], over another base level
    with pytest.raises(DataError, match=r"other values for the same rows"):
        part(formula, first) + part(formula, second)
    formula = "y ~ scale(x) + (1 | g)"
    numbers = np.arange(12.0)
    with pytest.raises(DataError, match=r"other values for the same rows"):
        part(formula, frame.assign(x=numbers)) + part(formula, frame.assign(x=numbers**2))


def test_levels_of_two_kinds_do_not_add():
    frame = blm.load_dataset("Dyestuff")
    other = frame.assign(Batch=np.arange(len(frame)) % 5)
    with pytest.raises(DataError, match=r"`Batch` holds text in one part of the data and numbers"):
        part(MODELS["Dyestuff"], frame.astype({"Batch": str})) + part(MODELS["Dyestuff"], other)


def test_a_level_of_a_factor_that_the_coding_lacks():
    frame = blm.load_dataset("Machines")
    few = part(MODELS["Machines"], frame[frame["Machine"] != "C"])
    with pytest.raises(DataError, match=r"Machine.*C"):
        part(MODELS["Machines"], frame, coding=coding_of(few))


# --- levels ----------------------------------------------------------------------------


def test_numbers_are_given_once():
    rng, numbers, known = np.random.default_rng(1), Numbers(), {}
    for _ in range(200):
        values = np.unique(rng.integers(0, 3000, rng.integers(1, 60)))
        found = numbers.number(pd.Index(values))
        for value, own in zip(values, found, strict=True):
            assert known.setdefault(value, own) == own
    assert sorted(known.values()) == list(range(len(numbers)))
    assert numbers.values[list(known.values())].tolist() == list(known)


@pytest.mark.parametrize("kind", ["int64", "str", "category", "float64", "far"])
def test_levels_are_those_of_all_rows(kind):
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"a": rng.integers(-40, 40, 500), "b": rng.integers(0, 9, 500)})
    if kind == "far":  # too wide a range for a table
        frame["a"] *= 1 << 40
    elif kind == "category":
        frame["a"] = pd.Categorical(frame["a"], rng.permutation(np.arange(-40, 40)))
    else:
        frame["a"] = frame["a"].astype(kind)
    groups = [("a",), ("b", "a"), ("a", "b")]
    whole, sets = GroupingSets(groups), GroupingSets(groups)
    codes = whole.add(frame)
    parts = [sets.add(frame.iloc[rows]) for rows in np.array_split(np.arange(500), 7)]
    for i, ((one, own), (two, places)) in enumerate(
        zip(whole.finish(), sets.finish(), strict=True)
    ):
        assert one.factor.levels.tolist() == two.factor.levels.tolist()
        np.testing.assert_array_equal(one.factor.cells, two.factor.cells)
        numbers = np.concatenate([part[i] for part in parts])
        np.testing.assert_array_equal(own[codes[i]], places[numbers])


def test_levels_unite():
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"a": rng.integers(0, 30, 200), "b": rng.choice(list("xyz"), 200)})
    found = []
    for rows in (frame, frame.iloc[:40], frame.iloc[30:]):
        sets = GroupingSets([("a", "b")])
        sets.add(rows)
        found.append(sets.finish()[0][0])
    whole, first, second = found
    both, places, others = united(first, second)
    assert both.factor.levels.tolist() == whole.factor.levels.tolist()
    np.testing.assert_array_equal(both.factor.levels[places], first.factor.levels)
    np.testing.assert_array_equal(both.factor.levels[others], second.factor.levels)
