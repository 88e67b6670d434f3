"""What bayeslmm relies on in formulaic, and what it adds."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest

from bayeslmm.exceptions import DataError, FormulaError, listed
from bayeslmm.formula import expressions
from bayeslmm.formula.formulaic_seam import parsed_terms
from bayeslmm.formula.matrices import evaluate, evaluate_response, reevaluate
from bayeslmm.formula.syntax import read_operand, tokens
from bayeslmm.formula.terms import read_side


def make_frame():
    return pd.DataFrame(
        {
            "y": np.arange(6.0),
            "x": [1, 2, 3, 4, 5, 7],
            "f": list("abcabc"),
            "flag": [True, False] * 3,
            "size": pd.Categorical(list("SLSLSM"), categories=["XS", "S", "M", "L"]),
            "code": pd.Categorical([3, 1, 3, 1, 2, 2]),
            "a b": np.arange(6) / 2,
            "neg": [-1.0, 1, 2, 3, 4, 5],
            "C": np.arange(6) ** 2,
            "day": pd.date_range("2020-01-01", periods=6),
        }
    )


# --- tokens, terms, variables ----------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y ~ -1 + x", ["name y", "operator ~", "operator -", "value 1", "operator +", "name x"]),
        ("(x||g)", ["context (", "name x", "operator ||", "name g", "context )"]),
        ("x | | g", ["name x", "operator |", "operator |", "name g"]),
        ("I(x|1)|g", ["python I(x|1)", "operator |", "name g"]),
        ("`a b`+{x|1}", ["name `a b`", "operator +", "python {x|1}"]),
        ("a %in% b**2", ["name a", "operator %in%", "name b", "operator **", "value 2"]),
        ("log(`a (b`)", ["python log(`a (b`)"]),
        (". + a.b", ["value .", "operator +", "name a.b"]),
        ("", []),
    ],
)
def test_tokens(source, expected):
    found = tokens(source)
    assert [f"{token.kind} {token.text}" for token in found] == expected
    assert all(source[token.start : token.end] == token.text for token in found)


def test_token_value_is_unquoted():
    assert [token.value for token in tokens("`a b` + {x|1} + c")][::2] == ["a b", "x|1", "c"]


@pytest.mark.parametrize(
    ("rhs", "terms"),
    [
        ("1 + x", {"1", "x"}),
        ("0 + x", {"x"}),
        ("x - 1", {"x"}),
        ("0", set()),
        ("(x + f + z)^2 - x:f", {"1", "x", "f", "z", "x:z", "f:z"}),
        ("z:x", {"1", "x:z"}),
        ("f / x", {"1", "f", "f:x"}),
        ("x %in% f", {"1", "f", "f:x"}),
        ("poly(x,2)", {"1", "poly(x, 2)"}),
    ],
)
def test_terms_are_those_of_formulaic(rhs, terms):
    assert read_side(rhs).keys == terms
    assert {":".join(sorted(term)) or "1" for term in parsed_terms(rhs)} == terms


@pytest.mark.parametrize(
    ("rhs", "message", "marked"),
    [
        ("x f", "Missing operator between `x` and `f`.", "x f"),
        ("1 + x*", "Operator `*` has insufficient arguments and/or is misplaced.", "*"),
        ("x + 'a'", "String literals are not valid in formulae.", "'a'"),
        ("x^(-1)", "This is not a valid sum of terms.", "x^(-1)"),
    ],
)
def test_formulaic_errors_keep_their_place(rhs, message, marked):
    with pytest.raises(FormulaError) as caught:
        parsed_terms(rhs)
    assert caught.value.message == message
    assert rhs[caught.value.start : caught.value.end] == marked


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("1 + x:z", {"x", "z"}),
        ("0", set()),
        ("Sepal.Length + `my var`", {"Sepal.Length", "my var"}),
        ("log(x) + np.sqrt(z) + sin(2*pi*t)", {"x", "z", "t"}),
        ("C(f, contr.sum) + C(g, Treatment('a')) + C(h, Sum)", {"f", "g", "h"}),
        ("poly(x, 2, raw=TRUE) + bs(z, df=4)", {"x", "z"}),
        ("I(np.where(x > 1, a, `b`) + 3)", {"x", "a", "b"}),
        ("I(`pi` + pi) + log(`np`)", {"pi", "np"}),
        ("Q('u v') + log(`k l`)", {"u v", "k l"}),
        ("{abs(q) + 1}", {"q"}),
        ("id:C(id) + log(scale) + C", {"id", "scale", "C"}),
    ],
)
def test_required_variables(expression, names):
    assert read_side(expression).variables == names


def test_required_variables_of_broken_python():
    with pytest.raises(FormulaError, match="not a valid Python expression"):
        read_side("x + log(x +)")


# --- columns ---------------------------------------------------------------------------

LABELS = [
    ("1", ["Intercept"]),
    ("0", []),
    ("1 + x", ["Intercept", "x"]),
    ("1 + f", ["Intercept", "f[T.b]", "f[T.c]"]),
    ("0 + f", ["f[a]", "f[b]", "f[c]"]),
    ("1 + size", ["Intercept", "size[T.M]", "size[T.L]"]),
    ("1 + code", ["Intercept", "code[T.2]", "code[T.3]"]),
    ("1 + flag", ["Intercept", "flag[T.True]"]),
    ("1 + I(x > 3)", ["Intercept", "I(x > 3)[T.True]"]),
    ("1 + flag:x", ["Intercept", "flag[False]:x", "flag[True]:x"]),
    ("1 + f / x", ["Intercept", "f[T.b]", "f[T.c]", "f[a]:x", "f[b]:x", "f[c]:x"]),
    ("1 + `a b`:x", ["Intercept", "a b:x"]),
    ("1 + Q('a b')", ["Intercept", "Q('a b')"]),
    ("1 + C", ["Intercept", "C"]),
    ("1 + C(f)", ["Intercept", "C(f)[T.b]", "C(f)[T.c]"]),
    ("1 + factor(code)", ["Intercept", "factor(code)[T.2]", "factor(code)[T.3]"]),
    ("1 + C(f, contr.sum)", ["Intercept", "C(f, contr.sum)[S.a]", "C(f, contr.sum)[S.b]"]),
    (
        "1 + C(f, contr.helmert)",
        ["Intercept", "C(f, contr.helmert)[H.b]", "C(f, contr.helmert)[H.c]"],
    ),
    ("1 + C(f, contr.poly)", ["Intercept", "C(f, contr.poly)[.L]", "C(f, contr.poly)[.Q]"]),
    ("1 + poly(x, 2)", ["Intercept", "poly(x, 2)[1]", "poly(x, 2)[2]"]),
    ("1 + ns(x, 2)", ["Intercept", "ns(x, 2)[1]", "ns(x, 2)[2]"]),
    ("0 + bs(x, df=4)", [f"bs(x, df=4)[{i}]" for i in range(1, 5)]),
    ("0 + cs(x, df=3)", [f"cs(x, df=3)[{i}]" for i in range(1, 4)]),
    ("0 + scale(x) + center(x)", ["scale(x)", "center(x)"]),
]


@pytest.mark.parametrize(("rhs", "names"), LABELS)
def test_columns_and_their_re_evaluation(rhs, names):
    frame = make_frame()
    columns = evaluate(rhs, frame)
    assert list(columns.names) == names
    assert columns.values.shape == (6, len(names))
    assert columns.values.dtype == np.float64
    spec = pickle.loads(pickle.dumps(columns.encoding))
    again = reevaluate(spec, frame.iloc[[4, 0]])
    assert again.names == columns.names
    np.testing.assert_allclose(again.values, columns.values[[4, 0]], atol=1e-14)


@pytest.mark.parametrize(
    ("rhs", "expected"),
    [
        ("0 + log(x) + exp(x) + sqrt(x)", lambda x: [np.log(x), np.exp(x), np.sqrt(x)]),
        ("0 + sin(2*pi*x) + cos(pi*x)", lambda x: [np.sin(2 * np.pi * x), np.cos(np.pi * x)]),
        ("0 + log10(x) + log2(x) + log1p(x)", lambda x: [np.log10(x), np.log2(x), np.log1p(x)]),
        ("0 + abs(neg) + floor(x / 2)", lambda x: [[1, 1, 2, 3, 4, 5], np.floor(x / 2)]),
        ("0 + scale(x)", lambda x: [(x - x.mean()) / x.std(ddof=1)]),
        ("0 + I(x**2) + I(x // 2)", lambda x: [x**2, x // 2]),
        ("0 + pmin(x, 3) + np.tanh(x)", lambda x: [np.minimum(x, 3), np.tanh(x)]),
    ],
)
def test_functions(rhs, expected):
    x = np.array([1.0, 2, 3, 4, 5, 7])
    np.testing.assert_allclose(evaluate(rhs, make_frame()).values, np.transpose(expected(x)))


@pytest.mark.parametrize(
    ("rhs", "first_rows"),
    [
        ("0 + x + C(f, contr.sum)", [[1, 1, 0], [2, 0, 1], [3, -1, -1]]),
        ("0 + x + C(f, contr.helmert)", [[1, -1, -1], [2, 1, -1], [3, 0, 2]]),
        (
            "0 + x + C(f, contr.poly)",
            [[1, -(0.5**0.5), 6**-0.5], [2, 0, -2 * 6**-0.5], [3, 0.5**0.5, 6**-0.5]],
        ),
    ],
)
def test_contrasts_are_those_of_r(rhs, first_rows):
    values = evaluate(f"1 + {rhs.removeprefix('0 + ')}", make_frame()).values[:3, 1:]
    np.testing.assert_allclose(values, first_rows, atol=1e-12)


@pytest.mark.parametrize(
    "column",
    [
        pd.array([1, 2, 3, 4, 5, 7], dtype="Int64"),
        pd.array([1.0, 2, 3, 4, 5, 7], dtype="Float64"),
        pd.array([1, 2, 3, 4, 5, 7], dtype="int64[pyarrow]"),
        np.array([1, 2, 3, 4, 5, 7], dtype=object),
        np.array([1, 2, 3, 4, 5, 7], dtype=np.uint8),
    ],
)
def test_every_kind_of_number(column):
    values = evaluate("1 + z + I(z * 1.5)", pd.DataFrame({"z": column})).values
    np.testing.assert_allclose(values[:, 1], [1, 2, 3, 4, 5, 7])
    np.testing.assert_allclose(values[:, 2], 1.5 * values[:, 1])


@pytest.mark.parametrize(
    "column",
    [
        np.array(list("uvw"), dtype=object),
        pd.array(list("uvw"), dtype="string"),
        pd.array(list("uvw"), dtype="string[pyarrow]"),
        pd.array(list("uvw"), dtype="str"),
        pd.Categorical(list("uvw")),
    ],
)
def test_every_kind_of_string(column):
    columns = evaluate("1 + z", pd.DataFrame({"z": column}))
    assert columns.names == ("Intercept", "z[T.v]", "z[T.w]")
    np.testing.assert_array_equal(columns.values, [[1, 0, 0], [1, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize(
    "column",
    [
        np.array([True, False]),
        np.array([True, False], dtype=object),
        pd.array([True, False], dtype="boolean"),
        pd.array([True, False], dtype="bool[pyarrow]"),
    ],
)
def test_every_kind_of_boolean(column):
    columns = evaluate("1 + z", pd.DataFrame({"z": column}))
    assert columns.names == ("Intercept", "z[T.True]")
    np.testing.assert_array_equal(columns.values, [[1, 1], [1, 0]])


def test_index_does_not_matter():
    frame = make_frame().set_axis([5, 3, 3, 1, 0, 9])
    expected = evaluate("1 + f*x + C(size) + poly(x, 2)", make_frame()).values
    np.testing.assert_array_equal(
        evaluate("1 + f*x + C(size) + poly(x, 2)", frame).values, expected
    )


def test_callers_names_are_invisible():
    secret = 3.0
    assert secret == 3.0
    with pytest.raises(DataError, match="`secret` not found in the data"):
        evaluate("1 + I(x * secret)", make_frame())


def test_other_columns_do_not_hide_functions():
    frame = make_frame().assign(log=1.0, center=2.0)
    assert evaluate("0 + log(x) + C(f) + center(x)", frame).values.shape == (6, 5)


def test_values_are_a_writable_copy():
    frame = make_frame()
    columns = evaluate("0 + y", frame)
    columns.values[:] = 0
    np.testing.assert_array_equal(frame["y"], np.arange(6.0))


@pytest.mark.parametrize(
    ("rhs", "message"),
    [
        ("1 + zz", "`zz` not found in the data; the columns are `C`, `a b`, `code`"),
        ("1 + log(neg)", "`log(neg)` is missing or undefined (NaN) in some rows."),
        (
            "1 + I(1 / (x - 1))",
            "`I(1 / (x - 1))` is missing, undefined or infinite in 1 of 6 rows "
            "(first at position 0).",
        ),
        ("1 + log(f)", "The columns of the model cannot be evaluated on these data: Unable to"),
        ("1 + day", "`day` must be converted from dates or times to numbers."),
        ("0 + day", "`day` must be converted from dates or times to numbers."),
        ("1 + ns(x, 0)", "ns() needs df >= 1, got df=0"),
    ],
)
def test_evaluation_errors(rhs, message):
    with pytest.raises(DataError) as caught:
        evaluate(rhs, make_frame())
    assert message in str(caught.value)


# --- new data --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rhs", "factor", "unseen", "known"),
    [
        ("1 + f", "f", ["q"], ["a", "b", "c"]),
        ("1 + size", "size", ["XS", "XL"], ["S", "M", "L"]),
        ("1 + code", "code", [4.0], [1, 2, 3]),
        ("1 + C(f, contr.sum)", "C(f, contr.sum)", ["q"], ["a", "b", "c"]),
        ("1 + C(size)*x", "size", ["XS", "XL"], ["S", "M", "L"]),
        ("1 + x + I(f == 'q')", "I(f == 'q')", [True], [False]),
    ],
)
def test_unseen_levels(rhs, factor, unseen, known):
    columns = evaluate(rhs, make_frame())
    new = make_frame().iloc[:2].assign(f=["q", "a"], size=["XS", "XL"], code=[4, 1])
    message = (
        f"The factor `{factor}` has levels that the model has not seen: {listed(unseen)}. The "
        f"known ones are {listed(known)}. A coefficient of a new level cannot be known"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        reevaluate(columns.encoding, new)


def test_only_levels_of_the_side_must_be_known():
    new = make_frame().iloc[:2].assign(f=["q", "a"], size=["XS", "XL"], code=[4, 1])
    columns = evaluate("1 + x", make_frame())
    np.testing.assert_array_equal(reevaluate(columns.encoding, new).values, columns.values[:2])


def test_formulaic_would_have_been_silent():
    """The trap that the check of levels is for; if this fails, formulaic has fixed it."""
    formulaic = pytest.importorskip("formulaic")
    spec = formulaic.model_matrix("1 + f", make_frame()).model_spec
    with pytest.warns() as caught:
        values = np.asarray(spec.get_model_matrix(pd.DataFrame({"f": ["q"]})), dtype=float)
    assert any("outside of the nominated levels" in str(w.message) for w in caught)
    np.testing.assert_array_equal(values, [[1, 0, 0]])


def test_new_data_may_lose_the_categorical_type():
    columns = evaluate("1 + code*x + size", make_frame())
    new = make_frame().assign(code=[3, 1, 3, 1, 2, 2], size=list("SLSLSM"))
    np.testing.assert_array_equal(reevaluate(columns.encoding, new).values, columns.values)


def test_new_data_may_hold_one_level():
    columns = evaluate("1 + size + f", make_frame())
    one = make_frame().iloc[[5]]
    np.testing.assert_array_equal(reevaluate(columns.encoding, one).values, columns.values[[5]])


@pytest.mark.parametrize(
    ("rhs", "change", "message"),
    [
        ("1 + x", {"x": list("abcabc")}, "`x` was numerical when the model was built and is"),
        ("1 + flag", {"flag": [1, 0] * 3}, "`flag` was categorical when the model was built"),
        ("1 + x", {"x": [np.nan] * 6}, "`x` is missing or undefined (NaN)"),
    ],
)
def test_new_data_errors(rhs, change, message):
    columns = evaluate(rhs, make_frame())
    with pytest.raises(DataError, match=re.escape(message)):
        reevaluate(columns.encoding, make_frame().assign(**change))


def test_new_data_need_every_column():
    columns = evaluate("1 + x", make_frame())
    with pytest.raises(DataError, match="`x` not found in the data"):
        reevaluate(columns.encoding, make_frame()[["y"]])


# --- responses and offsets -------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("y", [0, 1, 2, 3, 4, 5]),
        ("log(y + 10)", np.log(np.arange(6) + 10)),
        ("I(2*x)", [2, 4, 6, 8, 10, 14]),
        ("{x + 1}", [2, 3, 4, 5, 6, 8]),
        ("`a b`", [0, 0.5, 1, 1.5, 2, 2.5]),
        ("I(`a b` * 2)", [0, 1, 2, 3, 4, 5]),
        ("center(y)", [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]),
        ("I(3)", [3, 3, 3, 3, 3, 3]),
    ],
)
def test_evaluate_response(expression, expected):
    values = evaluate_response(expression, make_frame())
    np.testing.assert_allclose(values, expected)
    assert read_operand(expression).text == expression
    assert values.dtype == np.float64 and values.flags.writeable


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("f", "`f` must be one numeric column, but it is categorical or boolean"),
        ("flag", "`flag` must be one numeric column, but it is categorical or boolean"),
        ("C(x)", "`C(x)` must be one numeric column, but it is categorical or boolean"),
        ("poly(x, 2)", "`poly(x, 2)` must be one numeric column, got 2 columns."),
        ("day", "`day` must be one numeric column, got datetime64[us] values."),
        ("log(neg)", "`log(neg)` is missing, undefined or infinite in 1 of 6 rows"),
        ("zz", "`zz` not found in the data"),
        ("log(f)", "`log(f)` cannot be evaluated on these data: TypeError"),
    ],
)
def test_evaluate_response_errors(expression, message):
    with pytest.raises(DataError) as caught:
        evaluate_response(expression, make_frame())
    assert message in str(caught.value)


# --- R ---------------------------------------------------------------------------------


@pytest.mark.reference
def test_poly_is_that_of_r():
    from reference_data import FOLDER, load_reference_data

    columns = np.loadtxt(FOLDER / "data" / "sim_design_basis.csv.gz", delimiter=",", skiprows=1)
    values = evaluate("0 + poly(x, 2) + ns(x, 3)", load_reference_data("sim_design")).values
    np.testing.assert_allclose(values, columns, atol=1e-14)


@pytest.mark.reference
@pytest.mark.parametrize("slug", ["helmert", "inter", "minus", "nested_fixed", "noint", "ns"])
def test_columns_are_those_of_lme4(slug):
    check_against_lme4(f"sim_design__{slug}_reml")


@pytest.mark.reference
@pytest.mark.parametrize(
    "name", ["cake__temperature_poly_reml", "Ovary__diag_reml", "sim_design__threeway_reml"]
)
def test_more_columns_are_those_of_lme4(name):
    check_against_lme4(name)


def check_against_lme4(name):
    from reference_data import load_fit, load_reference_data

    from bayeslmm.formula.grammar import parse

    fit = load_fit(name)
    rhs = parse(fit["formula"]).fixed
    for variable, contrasts in dict(fit["contrasts_used"]).items():
        if contrasts != "contr.treatment":
            rhs = re.sub(rf"\b{variable}\b", f"C({variable}, {contrasts})", rhs)
    columns = evaluate(rhs, load_reference_data(fit["dataset"]))
    assert len(columns.names) == fit["p"]
    np.testing.assert_allclose(columns.values[:6], fit["X_head"]["values"], atol=1e-12)


def test_functions_are_listed():
    assert {"C", "abs", "log", "ns", "poly", "scale", "sin"} <= set(expressions.FUNCTIONS)
    assert not {"contr", "np", "max", "eval", "pi"} & set(expressions.FUNCTIONS)
