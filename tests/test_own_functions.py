"""Powers as in R, arithmetic in double precision, and functions of the user's own."""

import pickle

import numpy as np
import pandas as pd
import pytest
from formulaic.transforms import stateful_transform

import bayeslmm as blm
from bayeslmm.data.building import build_design
from bayeslmm.exceptions import DataError, FormulaError, StorageError
from bayeslmm.formula.grammar import parse
from bayeslmm.formula.matrices import evaluate, reevaluate
from bayeslmm.formula.terms import read_side

X = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
Z = np.array([0.5, -1.0, 2.0, 1.5, -0.5, 3.0])


@pytest.fixture
def frame():
    return pd.DataFrame({"x": X, "z": Z, "i": X.astype(int), "f": [*"ab", "a^b", *"aab"]})


# --- powers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [  # as R computes them: ^ binds tighter than a sign and goes from right to left
        ("I(x^2)", X**2),
        ("I(-x^2)", -(X**2)),
        ("I(2*x^2)", 2 * X**2),
        ("I(x^2*z)", X**2 * Z),
        ("I(1+x^2/z)", 1 + X**2 / Z),
        ("I((x+1)^2)", (X + 1) ** 2),
        ("I(2^-x)", 2**-X),
        ("I(x^-1)", 1 / X),
        ("I(i^-1)", 1 / X),
        ("I(2^x^.5)", 2 ** (X**0.5)),
        ("I((x^2)^3)", X**6),
        ("log(x^2)", 2 * np.log(X)),
        ("{x^2 - 1}", X**2 - 1),
        ("poly(x^2, 1)", (X**2 - (X**2).mean()) / np.linalg.norm(X**2 - (X**2).mean())),
        ("I((f == 'a^b') * 1)", np.eye(6)[2]),
        ("I(`x`^2 * exp(x))", X**2 * np.exp(X)),
    ],
)
def test_powers_are_those_of_r(code, expected, frame):
    np.testing.assert_allclose(evaluate(f"0 + {code}", frame).values[:, 0], expected, rtol=1e-13)


def test_both_ways_of_writing_a_power_are_one_term(frame):
    assert evaluate("1 + I(x^2) + I(x**2)", frame).names == ("Intercept", "I(x ** 2)")
    assert read_side("1 + I((x + 1)^2)").terms == ((), ("I((x + 1) ** 2)",))
    assert parse("y ~ I(x^2) + (I(x^2) | g)").random[0].effects == "1 + I(x^2)"


def test_powers_in_every_part_of_a_formula():
    sleep = blm.load_dataset("sleepstudy")
    formula = "I(Reaction^0.5) ~ I(Days^2) + offset(0.1 * Days^2) + (I(Days^2)|Subject)"
    ours, python = blm.LMM(formula, sleep), blm.LMM(formula.replace("^", "**"), sleep)
    for one, two in [(ours.X, python.X), (ours.y, python.y)]:
        np.testing.assert_array_equal(one, two)
    assert ours.design.random[0].coefs == ("Intercept", "I(Days ** 2)")
    reduced = ours.update("~ . - I(Days^2)")
    assert reduced.design.coefs == ("Intercept",)
    new = ours.design.spec.rows(sleep[5:8])
    np.testing.assert_array_equal(new.X, ours.X.to_numpy()[5:8])
    hypothesis = python.reml().hypothesis(["I(Days^2) > 0", "I(Days ** 2) > 0"]).table()
    assert hypothesis["statistic"].nunique() == 1


# --- arithmetic ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "Int8", "float32"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("I(n**2)", [400, 900, 1600]),
        ("I(n - 25)", [-5, 5, 15]),
        ("I(-n)", [-20, -30, -40]),
        ("I(n * n * n)", [8000, 27000, 64000]),
        ("poly(n, 2, raw=TRUE)", [20, 30, 40]),
        ("I((n > 25) + (n > 35))", [0, 1, 2]),
        ("np.square(n)", [400, 900, 1600]),
    ],
)
def test_small_integers_do_not_wrap_around(dtype, code, expected):
    frame = pd.DataFrame({"n": pd.array([20, 30, 40], dtype=dtype)})
    np.testing.assert_array_equal(evaluate(f"0 + {code}", frame).values[:, 0], expected)


def test_exp10_is_a_power_of_ten(frame):
    np.testing.assert_allclose(evaluate("0 + exp10(x)", frame).values[:, 0], 10**X, rtol=1e-14)


def test_a_matrix_beside_a_vector_goes_by_rows(frame):
    columns = evaluate("0 + I(poly(x, 2) * z) + np.where(poly(x, 1) > 0, z, 0)", frame)
    assert columns.values.shape == (6, 3)
    np.testing.assert_allclose(columns.values[:, 2], np.where(X.mean() < X, Z, 0))


@pytest.mark.parametrize("code", ["I(f * 2)", "I(f + f)", "I(f % x)", "log(f)", "I(-f)"])
def test_text_is_not_computed_with(code, frame):
    with pytest.raises(DataError, match="`f` must be numbers here, got object values"):
        evaluate(f"1 + {code}", frame)


def test_quoted_names_do_not_disturb_each_other(frame):
    data = frame.rename(columns={"z": "a b"}).assign(a_b=X, if_=Z).rename(columns={"if_": "if"})
    columns = evaluate("0 + center(`a b`) + I(`if` * exp(x)) + I(`x` * exp(x))", data)
    assert columns.names == ("center(`a b`)", "I(`if` * exp(x))", "I(x * exp(x))")
    np.testing.assert_allclose(columns.values[:, 0], Z - Z.mean(), atol=1e-15)
    again = reevaluate(columns.encoding, data[:2])
    np.testing.assert_array_equal(again.values, columns.values[:2])


def test_levels_left_out_are_an_error(frame):
    with pytest.raises(DataError, match="leave out levels that the data have"):
        evaluate("1 + C(f, levels=['a', 'b'])", frame)


@pytest.mark.parametrize("response", ["standardize(y)", "scale(y)", "center(y)"])
def test_responses_remember_their_scale(response):
    rail = blm.load_dataset("Rail").rename(columns={"travel": "y"})
    design = build_design(f"{response} ~ 1 + (1 | Rail)", rail)
    np.testing.assert_array_equal(design.spec.rows(rail[3:7]).y, design.y[3:7])


# --- the user's own functions ----------------------------------------------------------


def cap(x, most=5.0):
    return np.minimum(x, most)


def last(x, most=7.0):
    return cap(x, most)


@stateful_transform
def from_least(x, _state=None):
    """Distance from the smallest value of the data that the model was built with."""
    _state.setdefault("least", np.min(x))
    return x - _state["least"]


SLEEP = blm.load_dataset("sleepstudy")
FORMULA = "cap(Reaction, 300) ~ cap(Days) + from_least(Days) + (cap(Days, most=2) | Subject)"
OWN = {"cap": cap, "from_least": from_least}


def own_model():
    return blm.LMM(FORMULA, SLEEP[SLEEP.Days > 0], functions=OWN)


def check_columns(design, data):
    days = data["Days"].to_numpy(dtype=float)
    expected = np.column_stack([np.ones(len(days)), np.minimum(days, 5), days - 1])
    np.testing.assert_array_equal(design.X, expected)
    np.testing.assert_array_equal(design.random[0].Z[:, 1], np.minimum(days, 2))
    np.testing.assert_array_equal(design.y, np.minimum(data["Reaction"], 300))


def test_own_functions_and_new_data():
    model = own_model()
    check_columns(model.design, SLEEP[SLEEP.Days > 0])
    new = SLEEP[4:9]
    check_columns(model.design.spec.rows(new), new)
    fit = model.reml()
    assert np.isfinite(fit.predict(new)["estimate"]).all()
    assert "from_least(Days)" in str(fit.anova())


def test_own_functions_in_an_update():
    model = own_model()
    assert model.update("~ . - from_least(Days)").design.coefs == ("Intercept", "cap(Days)")
    changed = model.update("~ . + last(Days)", functions={"last": last})
    assert changed.design.coefs[-1] == "last(Days)"
    assert set(changed.update("~ . - cap(Days)").design.spec.functions) == {*OWN, "last"}
    other = model.update(functions={"cap": last}).X["cap(Days)"]
    np.testing.assert_array_equal(other, np.minimum(SLEEP.Days[SLEEP.Days > 0], 7))
    with pytest.raises(FormulaError, match="Unknown function `last`"):
        model.update("~ . + last(Days)")


def test_own_functions_and_files(tmp_path):
    post = own_model().fit(method="laplace", draws=20, random_seed=1)
    post.save(tmp_path / "a.nc")
    again = blm.load(tmp_path / "a.nc", functions=OWN)
    new = SLEEP[4:9]
    pd.testing.assert_frame_equal(again.predict(new), post.predict(new))
    with pytest.raises(StorageError) as caught:
        blm.load(tmp_path / "a.nc", functions={"cap": cap})
    assert "load(path, functions={'from_least': from_least})" in str(caught.value)


def test_own_functions_are_pickled_by_reference():
    design = pickle.loads(pickle.dumps(own_model().design))
    check_columns(design.spec.rows(SLEEP[4:9]), SLEEP[4:9])
    model = blm.LMM("Reaction ~ f(Days) + (1 | Subject)", SLEEP, functions={"f": lambda x: x})
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(model.design)


def test_a_function_and_a_column_of_one_name():
    data = SLEEP.assign(cap=SLEEP.Days * 2.0)
    model = blm.LMM("Reaction ~ cap(cap) + cap + (1 | Subject)", data, functions={"cap": cap})
    np.testing.assert_array_equal(model.X["cap(cap)"], np.minimum(data.cap, 5))
    np.testing.assert_array_equal(model.X["cap"], data.cap)


def test_own_functions_cannot_change_data():
    def spoil(x):
        x *= 0
        return x + np.arange(len(x)) ** 2

    model = blm.LMM(
        "Reaction ~ spoil(Days) + Days + (1 | Subject)", SLEEP, functions={"spoil": spoil}
    )
    np.testing.assert_array_equal(model.X["Days"], SLEEP.Days)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x[:5],
            r"f\(\) must return one value for each of the 180 rows, got .*\(5,\)",
        ),
        (np.mean, r"must return one value for each of the 180 rows, got shape \(\)"),
        (lambda x: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda x: None, r"got shape \(\)"),
        (lambda x: {"a": 1}, r"got shape \(\)"),
        (lambda: 1, "TypeError"),
    ],
)
def test_own_functions_that_fail(function, message):
    for formula in ("Reaction ~ f(Days) + (1 | Subject)", "f(Reaction) ~ (1 | Subject)"):
        with pytest.raises(DataError, match=message):
            blm.LMM(formula, SLEEP, functions={"f": function})


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"log": cap}, "`log` has a meaning in formulas already"),
        ({"np": cap}, "`np` has a meaning"),
        ({"offset": cap}, "`offset` has a meaning"),
        ({"__f__": cap}, "`__f__` has a meaning"),
        ({"a b": cap}, "a name such as 'f' is expected"),
        ({"if": cap}, "a name such as 'f' is expected"),
        ({3: cap}, "a name such as 'f' is expected"),
        ({"f": 3}, "a function is expected, got int"),
        ([cap], "a dict from names to functions"),
    ],
)
def test_names_of_own_functions(functions, message):
    with pytest.raises(FormulaError, match=message):
        blm.LMM("Reaction ~ Days + (1 | Subject)", SLEEP, functions=functions)


def test_unknown_functions_say_how_to_give_them():
    with pytest.raises(FormulaError) as caught:
        blm.LMM("Reaction ~ g(Days) + (1 | Subject)", SLEEP, functions={"f": cap})
    message = caught.value.message
    assert message.startswith("Unknown function `g`. The functions are C, I, Q, abs")
    assert "yours f; NumPy's are np.<name>" in message
    assert message.endswith("Your own: LMM(..., functions={'g': g}).")


def test_means_and_tests_with_own_functions():
    cake = blm.load_dataset("cake")
    model = blm.LMM("angle ~ recipe + cap(temp) + (1 | recipe:replicate)", cake, functions=OWN)
    fit = model.reml()
    assert len(fit.means("recipe").table()) == 3
    assert "cap(temp)" in str(fit.anova())
    assert model.design.overparameterised().shape[1] == 5
