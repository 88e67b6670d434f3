"""Relationships, ``by=`` and ``mm()`` of data beyond memory: as in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from slow_cases import slow
from test_beyond_memory import DRAWS, assert_same_model, batches, both
from test_relationships import animal_model, ped, repeat_model

import bayeslmm as blm
from bayeslmm.exceptions import DataError, FormulaError, StorageError
from bayeslmm.storage.sums import pack_sums, unpack_sums

ROWS = 240


@pytest.fixture(scope="module")
def pupils():
    """Rows of 12 levels in three arms, and of two members each, the second one at times missing."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "g": rng.integers(0, 12, ROWS),
            "x": rng.normal(2.0, 1.0, ROWS),
            "h": rng.integers(0, 7, ROWS),
            "s1": rng.integers(0, 9, ROWS),
            "s2": rng.integers(0, 9, ROWS).astype(float),
            "w1": rng.uniform(0.2, 1.0, ROWS),
            "w": rng.choice([0.5, 1.0, 2.0], ROWS),
        }
    )
    frame["arm"] = frame["g"].map(lambda g: "abc"[g % 3])
    frame.loc[rng.choice(ROWS, 60, replace=False), "s2"] = np.nan
    frame["w2"] = np.where(frame["s2"].isna(), 0.0, 1.0 - frame["w1"])
    u, v = rng.normal(size=(12, 2)), rng.normal(size=9)
    frame["y"] = frame["x"] + u[frame["g"], 0] + 0.5 * u[frame["g"], 1] * frame["x"]
    frame["y"] += v[frame["s1"]] * frame["w1"] + v[frame["s2"].fillna(0).astype(int)] * frame["w2"]
    frame["y"] += rng.normal(size=ROWS)
    frame.loc[rng.choice(ROWS, 5, replace=False), "x"] = np.nan
    return frame


def relationship(levels, extra=0):
    """Relationships of levels, in falling order, and of some without rows."""
    size = levels + extra
    root = np.random.default_rng(size).normal(size=(size, size)) / 4.0 + np.eye(size)
    labels = np.arange(size)[::-1]
    return pd.DataFrame(root @ root.T, index=labels, columns=labels)


MEMBERS = "mm(s1, s2, weights=(w1, w2))"

MODELS = {
    "related": ("y ~ x + (x | g)", {"relationships": {"g": relationship(12, 3)}}),
    "related, crossed": (
        "y ~ x + (1 | h) + (1 | g)",
        {"relationships": {"g": relationship(12, 3)}, "weights": "w"},
    ),
    "by": ("y ~ x + (x | g, by=arm)", {}),
    "by, twice": ("y ~ x + (1 | g) + (0 + x | g, by=arm) + (1 | h)", {"weights": "w"}),
    "by, independent": ("y ~ x + (x || g, by=arm)", {"weights": "w"}),
    "members": (f"y ~ x + (1 | {MEMBERS})", {}),
    "members, slopes": (f"y ~ x + (x | {MEMBERS}) + (1 | g)", {"weights": "w"}),
    "members and by": (f"y ~ x + (1 | {MEMBERS}) + (1 | g, by=arm)", {}),
    "members, related": (
        f"y ~ x + (1 | {MEMBERS})",
        {"relationships": {"mm(s1, s2)": relationship(9)}},
    ),
    "related, strata": (
        "y ~ x + (1 | g)",
        {"relationships": {"g": relationship(12, 3)}, "residual": "strata(arm)"},
    ),
    "by, correlated": ("y ~ x + (1 | g, by=arm)", {"residual": "ar1(1 | g)", "weights": "w"}),
    "members, correlated": (f"y ~ x + (1 | {MEMBERS})", {"residual": "cs(1 | g)"}),
}


def pair_of(name, pupils):
    formula, options = MODELS[name]
    data = pupils.sort_values("g") if "correlated" in name else pupils
    return both(formula, data, **options)


MANY = {"related, crossed", "by", "by, independent", "members", "members, slopes", "by, correlated"}
"""Models of which the others have every part: slow."""


@pytest.mark.parametrize("name", [slow(name) if name in MANY else name for name in MODELS])
def test_batches_give_the_model_of_all_rows(name, pupils):
    memory, streamed = pair_of(name, pupils)
    assert_same_model(memory, streamed)
    for a, b in zip(memory.design.random, streamed.design.random, strict=True):
        np.testing.assert_array_equal(a.counts(), b.counts())
        assert a.own_coefs == b.own_coefs
    fits = memory.reml(), streamed.reml()
    for table in (
        lambda fit: fit.varcorr(),
        lambda fit: fit.r2(),
        lambda fit: fit.variance_partition(),
        lambda fit: fit.glance(),
    ):
        pd.testing.assert_frame_equal(table(fits[1]), table(fits[0]), rtol=1e-5, atol=1e-6)
    for group, table in fits[0].ranef().items():
        pd.testing.assert_frame_equal(fits[1].ranef()[group], table, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fits[1].fitted(), fits[0].fitted(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [animal_model, repeat_model])
def test_pedigrees_are_those_of_data_in_memory(model):
    memory = model()
    rows = batches(memory.design.data)
    known = {"animal": ped()}
    assert_same_model(memory, blm.LMM(memory.formula, rows, relationships=known))


@pytest.mark.parametrize(
    "name", [slow("related"), "by, twice", slow("members and by"), "members, related"]
)
def test_draws_files_and_predictions(name, pupils, tmp_path):
    memory, streamed = (
        model.fit(draws=40, chains=2, random_seed=1) for model in pair_of(name, pupils)
    )
    for variable, values in memory.data["posterior"].items():
        found = streamed.data["posterior"][variable].values
        np.testing.assert_allclose(found, values.values, rtol=DRAWS, atol=DRAWS)
    streamed.save(tmp_path / "post.nc")
    again = blm.load(tmp_path / "post.nc")
    assert repr(again) == repr(streamed)
    assert again.model.reml.criterion == streamed.model.reml.criterion
    new = pupils.dropna().head(4)
    unseen = new.assign(g=99, arm="a", s1=99) if "related" not in name else new
    for answer in (
        lambda fit: fit.r2(),
        lambda fit: fit.icc(),
        lambda fit: fit.predict(new, random_seed=2),
        lambda fit: fit.predict(unseen, target="new", random_seed=2),
    ):
        pd.testing.assert_frame_equal(answer(again), answer(streamed))
        pd.testing.assert_frame_equal(answer(streamed), answer(memory), rtol=1e-6)


def test_files_whose_factors_do_not_fit_are_refused(pupils):
    for name in ("related", "by, twice", "members"):
        post = pair_of(name, pupils)[1].fit(draws=20, chains=1, random_seed=1)
        description, arrays = pack_sums(post.design, post.priors)
        draws = post.data["posterior"].to_dataset()
        own = [n for n in arrays if n.startswith(("factor 0 relation", "factor 0 strata 1 levels"))]
        own += ["counts 0", "random 0", "mixed 0"]
        for part in own:
            if "labels" not in part:
                with pytest.raises(StorageError, match=r"do not fit|damaged"):
                    unpack_sums(description, arrays | {part: arrays[part][:-1]}, draws)


@pytest.mark.parametrize(
    ("change", "formula", "options", "error", "words"),
    [
        ({}, "y ~ x + (1 | g)", {"relationships": {"q": relationship(3)}}, DataError, "`q`"),
        (
            {},
            "y ~ x + (1 | g)",
            {"relationships": {"g": relationship(10)}},
            DataError,
            "does not have 2 of the levels in the data: '10', '11'",
        ),
        (
            {},
            "y ~ x + (1 | g, by=arm)",
            {"relationships": {"g": relationship(12)}},
            DataError,
            "with different covariance matrices is not defined",
        ),
        ({}, "y ~ x + (1 | g, by=h)", {}, DataError, "needs one value of `h` in each level of `g`"),
        ({"arm": "a"}, "y ~ x + (1 | g, by=arm)", {}, DataError, "by=arm has one level, 'a'"),
        ({}, "y ~ x + (1 | g, by=w1)", {}, FormulaError, "numbers that are not whole"),
        ({}, "y ~ x + (1 | mm(s1, s2))", {}, DataError, "is missing in"),
        ({"w1": -1.0}, f"y ~ x + (1 | {MEMBERS})", {}, DataError, "may not be negative"),
        ({"s2": "text"}, f"y ~ x + (1 | {MEMBERS})", {}, DataError, "no level would be in both"),
        (
            {"s2": np.nan, "w2": 0.0},
            f"y ~ x + (1 | {MEMBERS})",
            {},
            DataError,
            "All 240 values of `s2` are missing",
        ),
    ],
)
def test_errors_are_those_of_data_in_memory(change, formula, options, error, words, pupils):
    frame = pupils.assign(**change)
    for data in (frame, batches(frame)):
        with pytest.raises(error, match=words):
            blm.LMM(formula, data, **options)


def test_levels_that_are_in_several_strata_in_different_batches(pupils):
    moved = pupils.copy()
    moved.loc[moved.index[-1], "arm"] = "abc"[(moved["g"].iloc[-1] + 1) % 3]
    level = moved["g"].iloc[-1]
    with pytest.raises(DataError, match=rf"several in `?'?{level}"):
        blm.LMM("y ~ x + (1 | g, by=arm)", batches(moved))
