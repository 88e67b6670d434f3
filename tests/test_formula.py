"""Formulas: what every way of writing one means, and what is said of the wrong ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula.expressions import FUNCTIONS
from bayeslmm.formula.grammar import Formula, locate, parse
from bayeslmm.formula.structures import STRUCTURES

RANDOM = {
    "(1|g)": [("1", "g", True)],
    "(x|g)": [("1 + x", "g", True)],
    "(1 + x | g)": [("1 + x", "g", True)],
    "(0 + x | g)": [("0 + x", "g", True)],
    "(x + 0 | g)": [("0 + x", "g", True)],
    "(x - 1 | g)": [("0 + x", "g", True)],
    "(-1 + x | g)": [("0 + x", "g", True)],
    "(x || g)": [("1 + x", "g", False)],
    "(0 + x + z || g)": [("0 + x + z", "g", False)],
    "(f | g)": [("1 + f", "g", True)],
    "(0 + f | g)": [("0 + f", "g", True)],
    "(poly(x, 2) | g)": [("1 + poly(x, 2)", "g", True)],
    "(0 + poly(x,2) || g:h)": [("0 + poly(x,2)", "g:h", False)],
    "(x*z | g)": [("1 + x * z", "g", True)],
    "(x:z + I(x | 1) | g)": [("1 + x:z + I(x | 1)", "g", True)],
    "(sin(2*pi*Time) || Mare)": [("1 + sin(2*pi*Time)", "Mare", False)],
    "(1 | a:b)": [("1", "a:b", True)],
    "(1 | (a:b))": [("1", "a:b", True)],
    "(1 | b:a)": [("1", "b:a", True)],
    "(1 | a/b)": [("1", "a", True), ("1", "a:b", True)],
    "(x | a/b)": [("1 + x", "a", True), ("1 + x", "a:b", True)],
    "(x || a/b)": [("1 + x", "a", False), ("1 + x", "a:b", False)],
    "(1 | a/b/c)": [("1", "a", True), ("1", "a:b", True), ("1", "a:b:c", True)],
    "(1 | (a/b)/c)": [("1", "a", True), ("1", "a:b", True), ("1", "a:b:c", True)],
    "(1 | a/(b/c))": [("1", "a", True), ("1", "a:b", True), ("1", "a:b:c", True)],
    "(1 | a/(b:c))": [("1", "a", True), ("1", "a:b:c", True)],
    "(1 | a:b/c)": [("1", "a:b", True), ("1", "a:b:c", True)],
    "(1 | a*b)": [("1", "a", True), ("1", "b", True), ("1", "a:b", True)],
    "(`e f` | `my group`)": [("1 + `e f`", "my group", True)],
    "(1 | `a b`/c.d)": [("1", "a b", True), ("1", "a b:c.d", True)],
    "((1 | g))": [("1", "g", True)],
    "(1 | g) + (0 + x | g)": [("1", "g", True), ("0 + x", "g", True)],
    "(1 | a) + (1 | b) + (1 | a:b)": [("1", "a", True), ("1", "b", True), ("1", "a:b", True)],
}


@pytest.mark.parametrize(("term", "expected"), RANDOM.items())
def test_random_effects_terms(term, expected):
    formula = parse(f"y ~ z + {term}")
    assert [(r.effects, r.group, r.correlated) for r in formula.random] == expected
    assert (formula.response, formula.fixed) == ("y", "1 + z")


FIXED = {
    "y ~ (1|g)": "1",
    "y ~ 1 + (1|g)": "1",
    "y ~ 0 + (1|g)": "0",
    "y ~ (1|g) - 1": "0",
    "y ~ x + (1|g)": "1 + x",
    "y ~ (1|g) + x": "1 + x",
    "y ~ x + (1|g) + z": "1 + x + z",
    "y ~ x + (1|g) - 1 + z": "0 + x + z",
    "y ~ 1 + x + (1|g)": "1 + x",
    "y ~ x + 1 + (1|g)": "1 + x",
    "y ~ 0 + f + x + (1|g)": "0 + f + x",
    "y ~ x + 0 + (1|g)": "0 + x",
    "y ~ x - 1 + (1|g)": "0 + x",
    "y ~ -1 + x + (1|g)": "0 + x",
    "y ~ 0 + 1 + x + (1|g)": "1 + x",
    "y ~ + x + (1|g)": "1 + x",
    "y ~ x + -1 + (1|g)": "0 + x",
    "y~x*f+(1|g)": "1 + x * f",
    "y ~ f1/x + (1 | g)": "1 + f1 / x",
    "y ~ x %in% f + (1 | g)": "1 + x %in% f",
    "y ~ x : f + (1 | g)": "1 + x:f",
    "y ~ (x + f1 + f2)^2 - x:f2 + (1 | g)": "1 + (x + f1 + f2)^2 - x:f2",
    "y ~ (x + f)**2 + (1 | g)": "1 + (x + f)**2",
    "y ~ (1 | g) + x*z - z": "1 + x * z - z",
    "y ~ (x - z) + (1 | g)": "1 + (x - z)",
    "y ~ (x + (1 | g)) + z": "1 + x + z",
    "y ~ (0 + x + (1 | g)) + z": "0 + x + z",
    "y ~ I(x|1) + (1 | g)": "1 + I(x|1)",
    "y ~ {x | 1} + (1 | g)": "1 + {x | 1}",
    "y ~ `a b` + log(`c | d`) + (1 | g)": "1 + `a b` + log(`c | d`)",
    "y ~ Petal.Width + (1 | Species)": "1 + Petal.Width",
    "y ~ C(f, contr.sum) + ns(x, 3) + (1 | g)": "1 + C(f, contr.sum) + ns(x, 3)",
    "y ~ x\n  + (1 | g)\n  + z": "1 + x + z",
    "y ~ offset(o) + x + (1 | g)": "1 + x",
    "y ~ offset(o) + (1 | g)": "1",
}


@pytest.mark.parametrize(("source", "fixed"), FIXED.items())
def test_fixed_part(source, fixed):
    formula = parse(source)
    assert formula.fixed == fixed
    assert formula.source == source


@pytest.mark.parametrize(
    ("source", "response"),
    [
        ("y ~ (1|g)", "y"),
        ("  log(y + 10)~(1|g)", "log(y + 10)"),
        ("`my y` ~ (1|g)", "`my y`"),
        ("I(y / 2) ~ (1|g)", "I(y / 2)"),
        ("{y / 2} ~ (1|g)", "{y / 2}"),
        ("Sepal.Length ~ (1|g)", "Sepal.Length"),
    ],
)
def test_response(source, response):
    assert parse(source).response == response


@pytest.mark.parametrize(
    ("source", "offsets"),
    [
        ("y ~ x + (1|g)", ()),
        ("y ~ offset(o) + (1|g)", ("o",)),
        ("y ~ (1|g) + offset( log(t) ) + x + offset(`my o`)", ("log(t)", "`my o`")),
        ("y ~ (1|g) + offset(2 * t)", ("I(2 * t)",)),
        ("y ~ (x + offset(o)) + (1|g)", ("o",)),
    ],
)
def test_offsets(source, offsets):
    assert parse(source).offsets == offsets


def test_positions():
    source = "y ~ x + ( z || a/b )"
    first, second = parse(source).random
    assert first.source == source[slice(*first.span)] == "( z || a/b )"
    assert source[slice(*first.factor_span)] == "a/b"
    assert (first.factors, second.factors) == (("a",), ("a", "b"))
    assert second.span == first.span


GROUPING = (
    "The right side of a bar names grouping factors joined by `:` (interaction), `/` (nesting) "
    "or `*` (both and their interaction), such as (1 | a), (1 | a:b) or (1 | a/b)"
)
NESTED = "Random-effects terms cannot be nested; nested grouping is written (1 | a/b)."
NUMERIC = (
    "Numeric literals other than `1` can only be used to scale other terms. "
    "(tip: Use `:` rather than `*` when scaling terms)"
)
# source, message, the text that the carets mark
ERRORS = [
    ("y", "There is no `~` between response and predictors; write e.g. y ~ x + (x | group).", "y"),
    ("", "There is no `~` between response and predictors; write e.g. y ~ x + (x | group).", ""),
    ("y ~ x ~ z + (1 | g)", "There is more than one `~`; it stands once, after the response.", "~"),
    ("(y ~ x) + (1 | g)", "The `~` must not be inside parentheses.", "~"),
    (" ~ x + (1 | g)", "There is no response on the left of `~`.", "~"),
    (
        "y ~",
        "There is nothing on the right of `~`; write at least a random-effects term, e.g. (1 | "
        "group).",
        "~",
    ),
    ("y ~ ( | g)", "The left of this bar is empty; write e.g. (1 | group).", "|"),
    ("y ~ (1 | )", "The right of this bar is empty; write e.g. (1 | group).", "|"),
    ("y ~ ((1 | a) | b)", NESTED, "(1 | a)"),
    ("y ~ (1 | (a | b))", NESTED, "(a | b)"),
    ("y ~ (x + (1 | a) | b)", NESTED, "(1 | a)"),
    (
        "y ~ (1 | a | b)",
        "A random-effects term has one bar; write two terms, e.g. (1 | a) + (1 | b), or (1 | a:b).",
        "|",
    ),
    (
        "y ~ (x ||| g)",
        "A random-effects term has one bar; write two terms, e.g. (1 | a) + (1 | b), or (1 | a:b).",
        "|",
    ),
    ("y ~ x | g", "A random-effects term must be in parentheses, as in (x | group).", "|"),
    ("y ~ x || g", "A random-effects term must be in parentheses, as in (x | group).", "||"),
    ("y ~ x + (1 | g", "This `(` is never closed; add `)`.", "("),
    ("y ~ x) + (1 | g)", "This `)` closes nothing; remove it.", ")"),
    ("y ~ (1 | g]", "This `]` closes nothing; remove it.", "]"),
    ("y ~ [x] + (1 | g)", "Square brackets have no meaning here; use parentheses.", "["),
    ("y ~ log(x + (1 | g)", "This is never closed; add ')'.", "log(x + (1 | g)"),
    ("y ~ `x + (1 | g)", "This is never closed; add '`'.", "`x + (1 | g)"),
    ("y ~ {x + (1 | g)", "This is never closed; add '}'.", "{x + (1 | g)"),
    ("y ~ 'x + (1 | g)", 'This is never closed; add "\'".', "'x + (1 | g)"),
    ("y ~ x %in + (1 | g)", "This is never closed; add '%'.", "%in + (1 | g)"),
    ("y ~ () + (1 | g)", "There is nothing inside these parentheses.", "()"),
    ("y ~ (1 | a + b)", f"{GROUPING}, not `a + b`.", "a + b"),
    ("y ~ (1 | log(g))", f"{GROUPING}, not `log(g)`.", "log(g)"),
    ("y ~ (1 | 1)", f"{GROUPING}, not `1`.", "1"),
    ("y ~ (1 | a b)", f"{GROUPING}, not `a b`.", "a b"),
    ("y ~ (1 | a - b)", f"{GROUPING}, not `a - b`.", "a - b"),
    ("y ~ (1 | a/)", f"{GROUPING}; a name is missing here.", "/"),
    ("y ~ (1 | :a)", f"{GROUPING}; a name is missing here.", ":"),
    ("y ~ (1 | a:a)", "`a` occurs twice in this grouping factor.", "a"),
    ("y ~ (1 | a/b/a)", "`a` occurs twice in this grouping factor.", "a"),
    (
        "y ~ x:(1 | g)",
        "A random-effects term is added with `+`; it cannot be part of an interaction.",
        "(1 | g)",
    ),
    (
        "y ~ (1 | g) * x",
        "A random-effects term is added with `+`; it cannot be part of an interaction.",
        "(1 | g)",
    ),
    ("y ~ x (1 | g)", "A `+` is missing next to this random-effects term.", "(1 | g)"),
    ("y ~ x - (1 | g)", "A random-effects term cannot be subtracted; leave it out.", "(1 | g)"),
    (
        "y ~ (x + (1 | g))^2",
        "Random-effects terms and offsets must stand outside these parentheses.",
        "(x + (1 | g))",
    ),
    (
        "y ~ z - (x + (1 | g))",
        "Random-effects terms and offsets must stand outside these parentheses.",
        "(x + (1 | g))",
    ),
    ("y ~ (1 | g) + (1 | g)", "`(1 | g)` is written twice; remove one.", "(1 | g)"),
    ("y ~ (1|g) + x + (1 | g)", "`(1 | g)` is written twice; remove one.", "(1 | g)"),
    (
        "y ~ (1 | g) + (x | g)",
        "The intercept is repeated on grouping factor `g`: `(1 | g)` and `(x | g)` both have "
        "it. Write `(1 | g) + (0 + x | g)` or `(x | g)`.",
        "(x | g)",
    ),
    (
        "y ~ (x | g) + (1 | g)",
        "The intercept is repeated on grouping factor `g`: `(x | g)` and `(1 | g)` both have "
        "it. Write `(0 + x | g) + (1 | g)` or `(x | g)`.",
        "(1 | g)",
    ),
    (
        "y ~ (x | g) + (z | g)",
        "The intercept is repeated on grouping factor `g`: `(x | g)` and `(z | g)` both have "
        "it. Write `(x | g) + (0 + z | g)` or `(x + z | g)`.",
        "(z | g)",
    ),
    (
        "y ~ (1 | g) + (x || g)",
        "The intercept is repeated on grouping factor `g`: `(1 | g)` and `(x || g)` both have "
        "it. Write `(1 | g) + (0 + x || g)` or `(x || g)`.",
        "(x || g)",
    ),
    (
        "y ~ (1 | `a b`) + (x | `a b`)",
        "The intercept is repeated on grouping factor `a b`: `(1 | `a b`)` and `(x | `a b`)` "
        "both have it. Write `(1 | `a b`) + (0 + x | `a b`)` or `(x | `a b`)`.",
        "(x | `a b`)",
    ),
    (
        "y ~ (1 | a/b) + (1 | a)",
        "The intercept is repeated on grouping factor `a`: `(1 | a/b)` and `(1 | a)` both have "
        "it. Remove it from one of them.",
        "(1 | a)",
    ),
    (
        "y ~ (1 | a:b) + (1 | b:a)",
        "The intercept is repeated on grouping factor `b:a`: `(1 | a:b)` and `(1 | b:a)` both "
        "have it. Remove it from one of them.",
        "(1 | b:a)",
    ),
    (
        "y ~ (x | a/b) + (1 | a)",
        "The intercept is repeated on grouping factor `a`: `(x | a/b)` and `(1 | a)` both have "
        "it. Write the terms so that each coefficient occurs once.",
        "(1 | a)",
    ),
    (
        "y ~ (x | g) + (0 + x | g)",
        "`x` is repeated on grouping factor `g`: `(x | g)` and `(0 + x | g)` both have it. "
        "Write the terms so that each coefficient occurs once.",
        "(0 + x | g)",
    ),
    ("y ~ (0 | g)", "This random-effects term has no coefficient; write e.g. 1 or 0 + x.", "0"),
    ("y ~ (offset(o) | g)", "offset() cannot be part of a random-effects term.", "offset(o)"),
    ("y ~ . + (1 | g)", "`.` for all other columns is not supported; write the columns out.", "."),
    ("y ~ x + (. | g)", "`.` for all other columns is not supported; write the columns out.", "."),
    ("y ~ log(x +) + (1 | g)", "`log(x +)` is not a valid Python expression.", "log(x +)"),
    (
        "y ~ as.factor(x) + (1 | g)",
        "`as.factor(x)` is not a valid Python expression. R's as.factor(x) is C(x) here.",
        "as.factor(x)",
    ),
    ("y ~ offset() + (1 | g)", "offset() needs an expression, such as offset(log(t)).", "offset()"),
    ("y ~ x:offset(o) + (1 | g)", "offset() must be a term of its own.", "offset(o)"),
    ("y ~ log(offset(o)) + (1 | g)", "offset() must be a term of its own.", "log(offset(o))"),
    ("y ~ (1 | g) - offset(o)", "offset() cannot be subtracted; write offset(-x).", "offset(o)"),
    (
        "y ~ (x + offset(o))^2 + (1 | g)",
        "Random-effects terms and offsets must stand outside these parentheses.",
        "(x + offset(o))",
    ),
    ("y ~ x + (1 | g) +", "There is nothing after this `+`.", "+"),
    ("y ~ x:+ (1 | g)", "A term is missing next to this `:`.", ":"),
    ("y ~ x* + (1 | g)", "A term is missing next to this `*`.", "*"),
    ("y ~ (1 | g) - /x", "A term is missing next to this `/`.", "/"),
    ("y ~ (x:):z + (1 | g)", "A term is missing next to this `:`.", ":"),
    ("y ~ x:*z + (1 | g)", "A term is missing next to this `*`.", "*"),
    ("y ~ x z + (1 | g)", "Missing operator between `x` and `z`.", "x z"),
    ("y ~ 2*x + (1 | g)", NUMERIC, "2"),
    ("y ~ (1 | g) + x*2:z*", "A term is missing next to this `*`.", "*"),
    (
        "y ~ x = 1 + (1 | g)",
        "`=` is not a formula operator; the operators are %in% * ** + - / : ^ | || ~. Python "
        "expressions go inside I( ).",
        "=",
    ),
    ("y ~ x^(-1) + (1 | g)", "This is not a valid sum of terms.", "x^(-1)"),
    ("y ~ x^z + (1 | g)", "The right-hand argument of `**` must be a positive integer.", "z"),
    ("y ~ 'a' + (1 | g)", "String literals are not valid in formulae.", "'a'"),
    ("y ~ (2 | g)", NUMERIC, "2"),
    (
        "y + z ~ (1 | g)",
        "The response must be one column or one expression; arithmetic goes inside I( ): I(y + z).",
        "y + z",
    ),
    (
        "3 ~ (1 | g)",
        "The response must be one column or one expression; arithmetic goes inside I( ): I(3).",
        "3",
    ),
    ("(1 | g) ~ x", "Random-effects terms belong on the right of `~`.", "(1 | g)"),
    ("offset(y) ~ (1 | g)", "offset() belongs on the right of `~`.", "offset(y)"),
    (
        "y ~ foo(x) + (1 | g)",
        f"Unknown function `foo`. The functions are {', '.join(sorted(FUNCTIONS))}; NumPy's are "
        "np.<name>. Your own: LMM(..., functions={'foo': foo}).",
        "foo",
    ),
    (
        "y ~ x(1 | g)",
        "Unknown function `x`. A random-effects term needs `+` before its parenthesis; the "
        f"covariance structures around one are {', '.join(sorted(STRUCTURES))}. "
        f"The functions are {', '.join(sorted(FUNCTIONS))}; NumPy's are np.<name>. "
        "Your own: LMM(..., functions={'x': x}).",
        "x",
    ),
]


@pytest.mark.parametrize(("source", "message", "marked"), ERRORS, ids=[e[0] for e in ERRORS])
def test_errors(source, message, marked):
    with pytest.raises(FormulaError) as caught:
        parse(source)
    error = caught.value
    assert error.message == message
    assert error.source == source
    assert source[error.start : error.end] == marked
    assert str(error).startswith(f"{message}\n  {source}\n  ")


def test_error_as_it_is_printed():
    with pytest.raises(FormulaError) as caught:
        parse("y ~ x + (1 | a + b)")
    assert str(caught.value) == (
        f"{GROUPING}, not `a + b`.\n  y ~ x + (1 | a + b)\n               ^^^^^"
    )


@pytest.mark.parametrize("value", [3, None, b"y ~ x", ["y ~ x"]])
def test_not_a_string(value):
    with pytest.raises(FormulaError) as caught:
        parse(value)
    assert str(caught.value) == (
        f"A formula is a string such as 'y ~ x + (x | group)', got {type(value).__name__}."
    )


@pytest.mark.parametrize(
    ("source", "name", "found"),
    [
        ("y ~ x + (1 | g)", "x", (4, 5)),
        ("y ~ x1 + x + (1 | g)", "x", (9, 10)),
        ("y ~ log(x1 + x) + (1 | g)", "x", (13, 14)),
        ("y ~ log(a.x + x) + (1 | g)", "x", (14, 15)),
        ("y ~ C(f, levels=['x']) + x + (1 | g)", "x", (25, 26)),
        ("y ~ log(`a b`) + (1 | g)", "a b", (8, 13)),
        ("y ~ x + (1 | `a b`)", "a b", (13, 18)),
        ("y ~ Q('a b') + (1 | g)", "a b", (6, 11)),
        ("y ~ offset(log(o)) + (1 | g)", "o", (15, 16)),
        ("y ~ x + (1 | g)", "zz", (0, 15)),
    ],
)
def test_locate(source, name, found):
    assert locate(source, name) == found


# --- whatever is printed is read back --------------------------------------------------

NAMES = ["x", "z", "age", "Sepal.Length", "`a b`", "`x|y`", "x_1", "été"]
GROUPS = ["g", "h", "`my group`", "plot.id", "k"]
FACTORS = [*NAMES, "poly(x, 2)", "I(x | 1)", "log(`a b` + 1)", "np.sqrt(z)", "C(f, contr.sum)"]

interactions = st.lists(st.sampled_from(FACTORS), min_size=1, max_size=3, unique=True).map(":".join)
sums = st.tuples(st.booleans(), st.lists(interactions, max_size=4, unique=True))
groupings = st.lists(st.sampled_from(GROUPS), min_size=1, max_size=3, unique=True)
spaces = st.sampled_from(["", " ", "  ", "\n"])


@st.composite
def random_terms(draw):
    """Bars on distinct grouping factors: (intercept, terms, correlated, factors)."""
    chosen = draw(st.lists(groupings, min_size=1, max_size=3, unique_by=frozenset))
    return [
        (*draw(sums.filter(lambda s: s[0] or s[1])), draw(st.booleans()), tuple(factors))
        for factors in chosen
    ]


def as_sum(intercept, terms):
    return " + ".join(["1" if intercept else "0", *terms])


@given(st.data(), sums, random_terms(), st.lists(st.sampled_from(["o", "log(t)"]), max_size=2))
def test_round_trip(data, fixed, random, offsets):
    bars = []
    for intercept, terms, correlated, factors in random:
        gap = data.draw(spaces)
        bar = "|" if correlated else "||"
        bars.append(f"({gap}{as_sum(intercept, terms)}{gap}{bar}{gap}{':'.join(factors)}{gap})")
    pieces = [*fixed[1], *bars, *(f"offset({offset})" for offset in offsets)]
    pieces = data.draw(st.permutations(pieces))
    order = [piece for piece in pieces if piece in bars]
    intercept = data.draw(st.sampled_from(["1", "1 + 1"] if fixed[0] else ["0", "-1", "+0"]))
    formula = parse(f"y ~ {intercept} + {' + '.join(pieces)}")
    kept = [piece for piece in pieces if piece in fixed[1]]
    assert formula.fixed == as_sum(fixed[0], kept)
    assert sorted(formula.offsets) == sorted(offsets)
    expected = [random[bars.index(piece)] for piece in order]
    assert [(r.effects, r.correlated, r.factors) for r in formula.random] == [
        (as_sum(i, terms), correlated, tuple(name.strip("`") for name in factors))
        for i, terms, correlated, factors in expected
    ]
    assert [r.source for r in formula.random] == order
    again = parse(printed(formula))
    assert (again.response, again.fixed, again.offsets) == ("y", formula.fixed, formula.offsets)
    assert [(r.effects, r.group) for r in again.random] == [
        (r.effects, r.group) for r in formula.random
    ]


def printed(formula: Formula) -> str:
    parts = [formula.fixed, *(f"offset({offset})" for offset in formula.offsets)]
    parts += [term.source for term in formula.random]
    return f"{formula.response} ~ {' + '.join(parts)}"


@given(st.text(alphabet="yxg12 ~+-*/:^|()`'.,[]{}%", max_size=25))
def test_any_text_is_read_or_refused(text):
    try:
        formula = parse(text)
    except FormulaError as error:
        assert error.source == text
        assert 0 <= error.start <= error.end <= max(1, len(text))
    else:
        assert formula.random
