"""Plain model matrices are those of formulaic, and the tokens are those of its tokenizer."""

import pickle

import numpy as np
import pandas as pd
import pytest
from formulaic.errors import FormulaParsingError
from formulaic.parser.algos.tokenize import tokenize
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.evaluation import Variables
from bayeslmm.formula.formulaic_seam import formulaic_columns, parsed_terms
from bayeslmm.formula.matrices import Encoding, evaluate, plain_columns, reevaluate
from bayeslmm.formula.syntax import tokens
from bayeslmm.formula.terms import read_side

# --- frames and formulas ---------------------------------------------------------------

ATOMS = ["x", "z", "whole", "f", "h", "`a b`", "flag", "size", "code", "one", "log(w)", "I(x^2)"]
ATOMS += ["I(x > 0)", "pmax(x, z)", "I(2)"]


@st.composite
def frames(draw):
    """Frames with every kind of column that a plain formula reads."""
    n = draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    sizes = pd.CategoricalDtype(["XS", "S", "M", "L"], ordered=draw(st.booleans()))
    levels = draw(st.integers(1, 3))
    return pd.DataFrame(
        {
            "x": rng.normal(size=n).round(3),
            "z": rng.normal(size=n) * 10.0 ** draw(st.integers(-3, 3)),
            "w": rng.uniform(0.5, 2.0, n),
            "whole": rng.integers(-5, 5, n),
            "f": rng.choice(list("abc")[:levels], n),
            "h": rng.choice(["u v", "é", "[T.x]"], n),
            "a b": rng.choice([True, False], n).astype(object),
            "flag": rng.choice([True, False], n),
            "size": pd.Categorical(rng.choice(["S", "M", "L"], n)).astype(sizes),
            "code": pd.Categorical(rng.choice([3, 1, 2], n), categories=[3, 1, 2, 7]),
            "one": "same",
        }
    )


atoms = st.sampled_from(ATOMS)


def joined(parts):
    operators = st.sampled_from([" + ", ":", " * ", " / ", " %in% ", " - "])
    return st.tuples(parts, operators, parts).map("".join)


sums = st.recursive(
    atoms,
    lambda parts: (
        joined(parts)
        | parts.map("({})".format)
        | parts.map("({})**2".format)
        | st.tuples(parts, parts).map("({0[0]} + {0[1]})^2".format)
    ),
    max_leaves=6,
)
starts = st.sampled_from(["1 + ", "0 + ", "", "-1 + "])
sides = st.tuples(starts, sums, st.sampled_from(["", " - x", " + f - f", " - 1", " + f:h"]))


def of_formulaic(side, frame):
    readings = {part.label: part.reading for part in side.operands}
    return formulaic_columns(side.terms, readings, Variables(frame), {})


# --- equality --------------------------------------------------------------------------


def plain_matrices_are_those_of_formulaic(text, frame):
    side = read_side(text)
    terms = parsed_terms(side.text)
    assume(len(terms) <= 15 and max(map(len, terms), default=0) <= 4)
    assert side.is_plain()
    assert side.terms == tuple(sorted(terms, key=len))
    expected, builder = of_formulaic(side, frame)
    plain = plain_columns(side, Variables(frame))
    assert plain is not None
    values, own = plain
    assert own.names == builder.names
    assert values.dtype == expected.dtype == np.float64
    assert values.flags.c_contiguous == expected.flags.c_contiguous
    np.testing.assert_array_equal(values, expected)


def new_data_are_read_as_formulaic_reads_them(text, frame, new):
    side = read_side(text)
    assume(len(side.terms) <= 15 and max(map(len, side.terms), default=0) <= 4)
    columns = evaluate(side, frame)
    _, builder = of_formulaic(side, frame)
    own = pickle.loads(pickle.dumps(columns.encoding))
    other = Encoding(builder=builder, variables=own.variables, categories=own.categories)
    outcomes = [outcome(own, new), outcome(other, new)]
    if isinstance(outcomes[0], str):
        assert outcomes[0] == outcomes[1]
    else:
        np.testing.assert_array_equal(outcomes[0], outcomes[1])


def outcome(encoding, new):
    try:
        return reevaluate(encoding, new).values
    except DataError as error:
        return str(error)


FEW = settings(deadline=None, max_examples=30)
MANY = settings(deadline=None)


@FEW
@given(sides.map("".join), frames())
def test_plain_matrices_are_those_of_formulaic(text, frame):
    plain_matrices_are_those_of_formulaic(text, frame)


@FEW
@given(sides.map("".join), frames(), frames())
def test_new_data_are_read_as_formulaic_reads_them(text, frame, new):
    new_data_are_read_as_formulaic_reads_them(text, frame, new)


@pytest.mark.slow
@MANY
@given(sides.map("".join), frames())
def test_many_plain_matrices_are_those_of_formulaic(text, frame):
    plain_matrices_are_those_of_formulaic(text, frame)


@pytest.mark.slow
@MANY
@given(sides.map("".join), frames(), frames())
def test_many_new_data_are_read_as_formulaic_reads_them(text, frame, new):
    new_data_are_read_as_formulaic_reads_them(text, frame, new)


@pytest.mark.parametrize(
    "rhs",
    [
        "1 + log(neg)",
        "1 + I(1 / x)",
        "1 + f:I(1 / x)",
        "1 + I(f + 1)",
        "1 + I(x + log(f))",
        "1 + np.log(x):f",
        "0 + I(day)",
        "1 + many",
        "1 + large:larger",
        "1 + kinds",
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_the_same_words(rhs):
    n = 6000
    frame = pd.DataFrame(
        {
            "x": np.arange(n) % 5,
            "neg": np.arange(n) - 3.0,
            "f": np.where(np.arange(n) % 2, "a", "b"),
            "day": pd.date_range("2020-01-01", periods=n),
            "many": [f"level {i}" for i in range(n)],
            "large": [f"l{i % 150}" for i in range(n)],
            "larger": [f"l{i % 151}" for i in range(n)],
            "kinds": pd.Categorical([[1, "1", 2][i % 3] for i in range(n)]),
        }
    )
    side, words = read_side(rhs), []
    for build in (of_formulaic, evaluate):
        try:
            build(side, frame)
            words.append("")
        except DataError as error:
            words.append(str(error))
    assert words[0] == words[1]


def test_a_level_that_starts_with_underscores_has_a_column():
    """Formulaic takes it for a note to itself and leaves it out."""
    frame = pd.DataFrame({"f": ["__a", "b", "c"]})
    assert evaluate("0 + f", frame).names == ("f[__a]", "f[b]", "f[c]")


@pytest.mark.parametrize("rhs", ["C(f)", "poly(x, 2)", "scale(x)", "2:x", "f:1"])
def test_the_rest_goes_to_formulaic(rhs):
    assert not read_side(f"1 + {rhs}").is_plain()


# --- tokens ----------------------------------------------------------------------------


def split_by_formulaic(text):
    """The tokens of formulaic's tokenizer, its operators run together."""
    try:
        return [(raw.kind.value, raw.source_start) for raw in tokenize(text)]
    except FormulaParsingError:
        return None


@settings(deadline=None)
@given(st.text(alphabet="xg12.~+-*/:^|()`'\"[]{}%\\ \né,I", max_size=16))
def test_tokens_are_those_of_formulaic(text):
    assume(not any(empty in text for empty in ("``", "{}", "%%")))
    try:
        found = tokens(text)
    except FormulaError as error:
        assert split_by_formulaic(text) is None
        assert 0 <= error.start < error.end <= len(text)
        return
    for token in found:
        assert text[token.start : token.end] == token.text
    places = {token.start: token.kind for token in found}
    expected = split_by_formulaic(text)
    assert expected is not None
    for kind, start in expected:
        assert places.pop(start) in (kind, "value")
    assert set(places.values()) <= {"operator"}


@pytest.mark.parametrize("text", ["``", "{}", "%%", "x + ``y"])
def test_empty_quotes_are_refused(text):
    with pytest.raises(FormulaError, match="There is nothing between these quotes"):
        tokens(text)
