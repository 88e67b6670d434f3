"""Contrasts of factors by argument: what ``C()`` in the formula does."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import bayeslmm as blm
from bayeslmm.formula.contrasts import coded_change, coded_formula
from bayeslmm.formula.grammar import parse

FORMULA = "score ~ Machine + (1 | Worker)"

# columns of R's contr.*, three levels
THIRD, ROOT, SIXTH = 1 / 3, 1 / np.sqrt(2), 1 / np.sqrt(6)
MATRICES = {
    "treatment": [[0, 0], [1, 0], [0, 1]],
    "sum": [[1, 0], [0, 1], [-1, -1]],
    "helmert": [[-1, -1], [1, -1], [0, 2]],
    "poly": [[-ROOT, SIXTH], [0, -2 * SIXTH], [ROOT, SIXTH]],
    "sdif": [[-2 * THIRD, -THIRD], [THIRD, -THIRD], [THIRD, 2 * THIRD]],
    "SAS": [[1, 0], [0, 1], [0, 0]],
}


@pytest.fixture(scope="module")
def machines():
    return blm.load_dataset("Machines")


def by_level(model):
    """Rows of X of the three machines, in order, without the intercept."""
    X = model.X.iloc[:, 1:].set_axis(model.design.data["Machine"].astype(str))
    return X[~X.index.duplicated()].sort_index().to_numpy()


@pytest.mark.parametrize("name", MATRICES)
def test_as_the_contrasts_of_r(machines, name):
    model = blm.LMM(FORMULA, machines, contrasts={"Machine": name})
    assert_allclose(by_level(model), MATRICES[name], atol=1e-12)
    written = "diff" if name == "sdif" else name
    assert model.formula == f"score ~ C(Machine, contr.{written}) + (1 | Worker)"
    other = blm.LMM(model.formula, machines)
    assert list(model.X.columns) == list(other.X.columns)
    assert model.reml().criterion == other.reml().criterion


def test_base_levels_and_matrices(machines):
    model = blm.LMM(FORMULA, machines, contrasts={"Machine": ("treatment", "B")})
    assert_allclose(by_level(model), [[1, 0], [0, 0], [0, 1]])
    matrix = np.array([[1, 0.1], [-0.5, 1 / 3], [-0.5, -1]])
    model = blm.LMM(FORMULA, machines, contrasts={"Machine": matrix})
    assert_allclose(by_level(model), matrix, rtol=1e-15)
    frame = pd.DataFrame(matrix, index=list("CAB"), columns=["u", "v w"])
    model = blm.LMM(FORMULA, machines, contrasts={"Machine": frame})
    assert_allclose(by_level(model), matrix[[1, 2, 0]], rtol=1e-15)
    assert [name.rsplit("[")[-1] for name in model.X.columns[1:]] == ["u]", "v w]"]


@pytest.mark.parametrize(
    ("formula", "contrasts", "expected"),
    [
        ("y ~ f * g + (f | h)", {"f": "sum"}, "y ~ C(f, contr.sum) * g + (f | h)"),
        ("y ~ (f + x)^2 + (1 | f)", {"f": "sum"}, "y ~ (C(f, contr.sum) + x)^2 + (1 | f)"),
        ("f ~ `a b`:f", {"a b": "poly"}, "f ~ C(`a b`, contr.poly):f"),
        ("y ~ C(f, contr.sum)", {"f": "helmert"}, "y ~ C(f, contr.helmert)"),
        ("y ~ C(f, contr.sum) + C(x)", {"f": None}, "y ~ f + C(x)"),
        (
            "y ~ f + log(f2) + offset(f3)",
            {"f": "SAS"},
            "y ~ C(f, contr.SAS) + log(f2) + offset(f3)",
        ),
        ("y ~ f + g", {"f": "sum", "g": "diff"}, "y ~ C(f, contr.sum) + C(g, contr.diff)"),
        ("y ~ f + cs(0 + f | g)", {"f": "contr.sum"}, "y ~ C(f, contr.sum) + cs(0 + f | g)"),
    ],
)
def test_formulas(formula, contrasts, expected):
    assert coded_formula(parse(formula), contrasts) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("~ . - f", "~ . - C(f, contr.sum)"),
        (". ~ . - f:x + f:z", ". ~ . - C(f, contr.sum):x + C(f, contr.sum):z"),
        ("~ . + (f | h)", "~ . + (f | h)"),
        ("y ~ f + z", "y ~ f + z"),  # another formula, not a change
        ("~ . - g", "~ . - g"),
    ],
)
def test_changes_call_factors_by_their_names(change, expected):
    assert coded_change(parse("y ~ C(f, contr.sum) * x + g"), change) == expected


def test_updates(machines):
    model = blm.LMM(FORMULA, machines, contrasts={"Machine": "sum"})
    assert model.update("~ . - Machine").formula == "score ~ 1 + (1 | Worker)"
    other = model.update(contrasts={"Machine": "helmert"})
    assert other.formula == "score ~ C(Machine, contr.helmert) + (1 | Worker)"
    assert model.update(contrasts={"Machine": None}).formula == FORMULA
    again = model.update("~ . + (1 | Worker:Machine)", contrasts={"Machine": "poly"})
    assert again.formula == "score ~ C(Machine, contr.poly) + (1 | Worker) + (1 | Worker:Machine)"
    means = [one.reml().means("Machine").table()["estimate"] for one in (model, other)]
    assert_allclose(*means)


def test_beyond_memory_and_in_files(machines, tmp_path):
    contrasts = {"Machine": "sum"}
    memory = blm.LMM(FORMULA, machines, contrasts=contrasts)
    streamed = blm.LMM(FORMULA, [machines[:20], machines[20:]], contrasts=contrasts)
    assert streamed.design.coefs == memory.design.coefs
    assert streamed.reml().criterion == pytest.approx(memory.reml().criterion, abs=1e-8)
    assert streamed.update("~ . - Machine").formula == "score ~ 1 + (1 | Worker)"
    post = memory.fit(method="laplace", draws=20, chains=1, random_seed=1)
    post.save(tmp_path / "post.nc")
    loaded = blm.load(tmp_path / "post.nc")
    assert loaded.design.coefs == memory.design.coefs
    same = blm.LMM.from_fit(loaded).update("~ . + Machine")
    assert same.formula == memory.formula


def refused(machines, error, message, contrasts, formula=FORMULA):
    with pytest.raises(error, match=message):
        blm.LMM(formula, machines.assign(x=np.arange(54.0)), contrasts=contrasts)


def test_what_makes_no_sense(machines):
    refused(machines, TypeError, "must be a mapping", "sum")
    refused(machines, ValueError, "'foo'; one of 'treatment', 'sum'", {"Machine": "foo"})
    refused(machines, ValueError, "a base level goes with 'treatment'", {"Machine": ("sum", "A")})
    refused(machines, ValueError, "a matrix of numbers", {"Machine": [1, 2, 3]})
    refused(machines, ValueError, "a matrix of numbers", {"Machine": [[np.nan], [1], [2]]})
    refused(machines, blm.DataError, "'Q' of `Machine` is none", {"Machine": ("treatment", "Q")})
    refused(machines, blm.DataError, "Shape", {"Machine": np.eye(2)})
    refused(machines, blm.FormulaError, "`Worker`, not in the fixed part", {"Worker": "sum"})
    refused(machines, blm.DataError, "`x` has numbers", {"x": "sum"}, "score ~ x + (1 | Worker)")
    frame = pd.DataFrame(np.eye(2), index=["A", "B"])
    refused(machines, blm.DataError, "leave out levels", {"Machine": frame})
    model = blm.LMM("score ~ x + (1 | Worker)", machines.assign(x=np.arange(54.0)))
    with pytest.raises(blm.DataError, match="`x` has numbers"):
        model.update(contrasts={"x": "sum"})
