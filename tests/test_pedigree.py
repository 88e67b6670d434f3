"""Pedigrees: relationships, their inverse and inbreeding, and what is refused."""

import logging

import numpy as np
import pandas as pd
import pytest
from reference_data import FOLDER

import bayeslmm as blm

EXACT = 1e-12

# Mrode (2014), Linear Models for the Prediction of Animal Breeding Values, example 2.1, and
# Henderson (1976): six animals, the last inbred.
MRODE = {"id": [3, 4, 5, 6], "sire": [1, 1, 4, 5], "dam": [2, None, 3, 2]}
MRODE_A = [
    [1.0, 0.0, 0.5, 0.5, 0.5, 0.25],
    [0.0, 1.0, 0.5, 0.0, 0.25, 0.625],
    [0.5, 0.5, 1.0, 0.25, 0.625, 0.5625],
    [0.5, 0.0, 0.25, 1.0, 0.625, 0.3125],
    [0.5, 0.25, 0.625, 0.625, 1.125, 0.6875],
    [0.25, 0.625, 0.5625, 0.3125, 0.6875, 1.125],
]


def table(ped):
    """A by the tabular method, an animal at a time, parents first."""
    n = len(ped)
    order = np.argsort(ped.generation, kind="stable")
    A = np.zeros((n, n))
    for place, i in enumerate(order):
        parents = [p for p in (ped.sire[i], ped.dam[i]) if p >= 0]
        for j in order[:place]:
            A[i, j] = A[j, i] = 0.5 * sum(A[p, j] for p in parents)
        A[i, i] = 1.0 + (0.5 * A[parents[0], parents[1]] if len(parents) == 2 else 0.0)
    return A


def random_pedigree(n, seed, *, selfing=False, founders=6):
    """Overlapping generations with unknown and half-known parents, rows in any order."""
    rng = np.random.default_rng(seed)
    sire, dam = np.full(n, np.nan), np.full(n, np.nan)
    for i in range(founders, n):
        pool = np.arange(max(0, i - 15), i)
        males, females = (pool, pool) if selfing else (pool[pool % 2 == 0], pool[pool % 2 == 1])
        if rng.random() < 0.85:
            sire[i] = rng.choice(males)
        if rng.random() < 0.85:
            dam[i] = rng.choice(females)
    frame = pd.DataFrame({"id": np.arange(n), "sire": sire, "dam": dam})
    return frame.sample(frac=1.0, random_state=seed)


def check(ped):
    A = table(ped)
    np.testing.assert_allclose(ped.A, A, atol=EXACT)
    np.testing.assert_allclose(ped.inbreeding, np.diag(A) - 1.0, atol=EXACT)
    root = ped.factor()
    np.testing.assert_allclose((root @ root.T).toarray(), A, atol=EXACT)
    np.testing.assert_allclose(ped.A_inverse @ A, np.eye(len(A)), atol=1e-9)


def test_published_example():
    ped = blm.pedigree(MRODE)
    A = ped.A.loc[range(1, 7), range(1, 7)]
    np.testing.assert_allclose(A, MRODE_A, atol=EXACT)
    inverse = pd.DataFrame(ped.A_inverse.toarray(), ped.labels, ped.labels)
    # Mrode's example 2.3, which leaves inbreeding aside only where there is none
    np.testing.assert_allclose(
        inverse.loc[range(1, 7), range(1, 7)], np.linalg.inv(MRODE_A), atol=EXACT
    )
    assert ped.inbreeding.loc[[5, 6]].tolist() == [0.125, 0.125]


@pytest.mark.parametrize("selfing", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_tabular_method(seed, selfing):
    check(blm.pedigree(random_pedigree(120, seed, selfing=selfing), selfing=selfing))


def test_against_reference_matrix():
    rows = pd.read_csv(FOLDER / "relationships" / "sim_pedigree_ped.csv")
    ped = blm.pedigree(rows.iloc[::-1], id="animal")
    cells = pd.read_csv(FOLDER / "relationships" / "sim_pedigree_A.csv.gz")
    A = ped.A
    places = [A.index.get_indexer(cells[name]) for name in ("row", "col")]
    found = A.to_numpy()[*places]
    np.testing.assert_allclose(found, cells["value"], atol=EXACT)
    below = np.tril(A.loc[rows["animal"], rows["animal"]])
    assert np.count_nonzero(below) == len(cells)
    check(ped)


def test_many_generations_and_few_sires():
    rng = np.random.default_rng(3)
    n, size = 1200, 20
    sire, dam = np.full(n, np.nan), np.full(n, np.nan)
    for first in range(size, n, size):
        sire[first : first + size] = rng.choice(np.arange(first - size, first - size + 2), size)
        dam[first : first + size] = rng.choice(np.arange(first - size + 2, first), size)
    ped = blm.pedigree({"id": np.arange(n), "sire": sire, "dam": dam})
    assert ped.generation.max() == n // size - 1
    np.testing.assert_allclose(ped.inbreeding, np.diag(ped.A) - 1.0, atol=1e-10)


def test_labels_of_text_and_a_parent_without_a_row(caplog):
    with caplog.at_level(logging.INFO, logger="bayeslmm"):
        ped = blm.pedigree(
            {"animal": ["b", "c"], "father": ["a", "b"], "mother": [None, "x"]},
            id="animal", sire="father", dam="mother",
        )  # fmt: skip
    assert ped.labels.tolist() == ["b", "c", "a", "x"]
    assert "2 parents have no row" in caplog.text
    assert "`a`, `x`" in caplog.text
    check(ped)


def test_a_code_for_unknown_parents():
    rows = {"id": [1, 2, 3], "sire": [0, 0, 1], "dam": [0, 0, 2]}
    with pytest.raises(blm.DataError, match=r"`0` occurs both as sire and as dam.*`unknown`"):
        blm.pedigree(rows)
    assert len(blm.pedigree(rows, unknown=0)) == 3


def test_founders_only():
    ped = blm.pedigree({"id": ["a", "b"], "sire": [None, None], "dam": [None, None]})
    np.testing.assert_array_equal(ped.A, np.eye(2))
    assert repr(ped) == (
        "Pedigree of 2 individuals: 2 without known parents, 0 generations after them"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"id": ["a", "a"], "sire": [None, None], "dam": [None, None]}, "`a` has more than one"),
        ({"id": ["a", None], "sire": [None, None], "dam": [None, None]}, "missing in 1 rows"),
        ({"id": ["a"], "sire": ["a"], "dam": [None]}, "`a` is its own ancestor.*`a`, `a`"),
        (
            {"id": ["a", "b", "c"], "sire": ["b", "c", "a"], "dam": [None] * 3},
            "is its own ancestor, each of these being an offspring of the next: `a`, `b`, `c`, `a`",
        ),
        ({"id": ["a", "b"], "sire": [None, "a"], "dam": [None, "a"]}, "`a` occurs both as sire"),
        ({"id": [1, 2], "sire": ["1", None], "dam": [None, None]}, "mix numbers with text"),
        ({"id": ["a", 2], "sire": [None, None], "dam": [None, None]}, "mix numbers with text"),
        ({"id": [1], "sire": [None]}, "no column `dam`; its columns are `id`, `sire`"),
    ],
)
def test_refused(rows, message):
    with pytest.raises(blm.DataError, match=message):
        blm.pedigree(rows)


def test_one_column_is_not_two():
    with pytest.raises(blm.DataError, match="three different columns"):
        blm.pedigree({"id": [1], "sire": [None]}, dam="sire")


def test_complete_inbreeding_has_no_inverse():
    n = 80
    selfed = [None, *range(n - 1)]
    ped = blm.pedigree({"id": range(n), "sire": selfed, "dam": selfed}, selfing=True)
    assert ped.inbreeding.iloc[-1] == pytest.approx(1.0, abs=EXACT)
    with pytest.raises(blm.DataError, match="completely inbred"):
        ped.A_inverse  # noqa: B018


def test_input_is_left_alone_and_the_result_is_frozen():
    frame = pd.DataFrame(MRODE)
    before = frame.copy()
    ped = blm.pedigree(frame)
    pd.testing.assert_frame_equal(frame, before)
    with pytest.raises(ValueError, match="read-only"):
        ped.sire[0] = 3
    with pytest.raises(AttributeError):
        ped.sire = ped.dam
