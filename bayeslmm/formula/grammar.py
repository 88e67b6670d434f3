"""lme4-style formulas: from a string to the parts of a model, without data."""

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula.expressions import FUNCTIONS
from bayeslmm.formula.members import Members, read_members
from bayeslmm.formula.structures import BY, OCCASIONS, kind_of, take_by
from bayeslmm.formula.syntax import (
    EXAMPLE,
    Group,
    Item,
    Operand,
    Token,
    blank_strings,
    check_text,
    check_tokens,
    expression,
    fail,
    flat,
    has_bar,
    is_membership,
    is_offset,
    is_operator,
    nest,
    operand,
    plainly,
    python_tokens,
    read_sum,
    tokens,
)
from bayeslmm.formula.terms import MOST_RANDOM, Side, check_expansion, check_grouping, side

_GROUPING_ALLOWED = (
    "The right side of a bar names grouping factors joined by `:` (interaction), `/` (nesting) "
    "or `*` (both and their interaction), such as (1 | a), (1 | a:b) or (1 | a/b)"
)


@dataclass(frozen=True, slots=True)
class RandomTerm:
    """One random-effects term on one grouping factor.

    Parameters
    ----------
    left : Side
        What varies by group.
    factors : tuple of str
        Variables of the grouping factor in source order, ``("a", "b")`` for ``a:b`` and for
        ``mm(a, b)``.
    members : Members or None
        What ``mm()`` says of them, where a row belongs to a level in each of them.
    correlated : bool
        False for ``||`` and ``diag()``.
    structure : str
        Covariance structure, hom= taken in: "us" (also without a name), "homdiag", "cs", "homcs",
        "ar1", "hetar1", "toep", "homtoep".
    by : str or None
        Column in each level of which the covariance matrix is another.
    source : str
        The term as written, ``"(Days | Subject)"``.
    span, factor_span : tuple of int
        Positions of the term and of its grouping side in `Formula.source`.
    """

    left: Side
    factors: tuple[str, ...]
    members: Members | None
    correlated: bool
    structure: str
    by: str | None
    source: str
    span: tuple[int, int]
    factor_span: tuple[int, int]

    @property
    def effects(self) -> str:
        """What varies by group, with an explicit intercept: ``"1 + Days"``, ``"0 + x"``."""
        return self.left.text

    @property
    def group(self) -> str:
        """Name of the grouping factor, ``"a:b"`` or ``"mm(a, b)"``."""
        return ":".join(self.factors) if self.members is None else f"mm({', '.join(self.factors)})"

    @property
    def identity(self) -> tuple[bool, frozenset[str]]:
        """What terms share that are on one grouping factor."""
        return self.members is not None, frozenset(self.factors)

    @property
    def group_variables(self) -> frozenset[str]:
        """Variables of the grouping factor, with those of the weights of members."""
        weights = frozenset[str]() if self.members is None else self.members.columns
        return weights.union(self.factors)


@dataclass(frozen=True, slots=True)
class Formula:
    """A mixed-model formula, read.

    Parameters
    ----------
    source : str
        The formula as written.
    left : Operand
        The response.
    right : Side
        The fixed effects.
    shifts : tuple of Operand
        The expressions inside ``offset()``.
    random : tuple of RandomTerm
        In source order; ``/`` and ``*`` between grouping factors are expanded.
    """

    source: str
    left: Operand
    right: Side
    shifts: tuple[Operand, ...]
    random: tuple[RandomTerm, ...]

    @property
    def response(self) -> str:
        """The left side, a column or one expression."""
        return self.left.text

    @property
    def fixed(self) -> str:
        """The fixed effects with an explicit intercept: ``"1 + Days"``, ``"0 + f + x"``."""
        return self.right.text

    @property
    def offsets(self) -> tuple[str, ...]:
        """The expressions inside ``offset()``."""
        return tuple(shift.text for shift in self.shifts)

    @property
    def grouping(self) -> frozenset[str]:
        """Variables of the grouping factors, with those of the weights of members."""
        return frozenset[str]().union(*(term.group_variables for term in self.random))

    @property
    def members(self) -> frozenset[str]:
        """Columns of members, in which a value may be missing, and that are nothing else."""
        several = {name for t in self.random if t.members is not None for name in t.factors}
        others = [t.factors for t in self.random if t.members is None]
        return frozenset(several).difference(*others, self._others(), self.weights)

    @property
    def weights(self) -> frozenset[str]:
        """Columns of weights of members."""
        found = (t.members.columns for t in self.random if t.members is not None)
        return frozenset[str]().union(*found)

    def _others(self) -> frozenset[str]:
        """All variables but those of grouping factors."""
        return self.left.variables | self.predictors(groups=False)

    def predictors(self, *, effects: bool = True, groups: bool = True) -> frozenset[str]:
        """Variables on the right, with those of the random effects if wanted."""
        parts: list[Side | Operand] = [self.right, *self.shifts]
        if effects:
            parts += [term.left for term in self.random]
        found = frozenset[str]().union(*(part.variables for part in parts))
        if effects:
            found |= {term.by for term in self.random if term.by is not None}
        return found | self.grouping if groups else found

    @property
    def variables(self) -> frozenset[str]:
        """All variables."""
        return self.left.variables | self.predictors()


@dataclass(frozen=True, slots=True)
class ScaleFormula:
    """A one-sided formula of the log residual scale, read.

    Parameters
    ----------
    source : str
        The formula as written, ``"~ x + (1 | g)"``.
    right : Side
        The fixed effects.
    random : tuple of RandomTerm
        In source order.
    """

    source: str
    right: Side
    random: tuple[RandomTerm, ...]

    @property
    def grouping(self) -> frozenset[str]:
        """Variables of the grouping factors."""
        return frozenset(name for term in self.random for name in term.factors)

    @property
    def variables(self) -> frozenset[str]:
        """All variables."""
        parts = [self.right, *(term.left for term in self.random)]
        return self.grouping.union(*(part.variables for part in parts))


def parse_scale(source: str, functions: Collection[str] = ()) -> ScaleFormula:
    """Read the formula of ``sigma=``, the predictors of the log residual scale.

    Parameters
    ----------
    source : str
        For example ``"~ x + (1 | g)"``, in the grammar of the right side of :func:`parse`.
    functions : collection of str, optional
        Names of functions of your own that the formula may call.

    Returns
    -------
    ScaleFormula

    Raises
    ------
    FormulaError
        If the formula cannot be understood; carets mark the place.

    Examples
    --------
    >>> parse_scale("~ Days + (1 | Subject)").right.text
    '1 + Days'
    """
    if not isinstance(source, str):
        raise TypeError(f"sigma must be text such as '~ x', got {type(source).__name__}")
    check_text(source)
    found = tokens(source)
    check_tokens(source, found, functions)
    tildes = [token for token in found if is_operator(token, "~")]
    if len(tildes) != 1 or found[0] is not tildes[0]:
        message = "sigma= is a formula without a left side; write e.g. '~ x + (1 | g)'."
        raise FormulaError(message, source, 0, max(1, len(source)))
    right = nest(source, found)[1:]
    if not right:
        fail("There is nothing on the right of `~`; write e.g. '~ x'.", source, tildes)
    check_expansion(source, right)
    fixed = read_sum(source, right)
    if fixed.offsets:
        fail("The formula of sigma= has no offset().", source, fixed.offsets)
    _check_count(source, right, len(fixed.bars))
    random = tuple(itertools.chain.from_iterable(_random_terms(source, bar) for bar in fixed.bars))
    _check_count(source, right, len(random))
    _check_repeats(source, random)
    for term in random:
        if term.structure != "us" or term.members is not None:
            message = f"`{term.source}`: random effects of sigma= are (x | g) or (x || g)."
            raise FormulaError(message, source, *term.span)
    return ScaleFormula(source=source, right=side(source, right, fixed), random=random)


def parse(source: str, functions: Collection[str] = ()) -> Formula:
    """Read an lme4-style formula.

    Parameters
    ----------
    source : str
        For example ``"log(y) ~ x * f + offset(o) + (1 + x | a/b) + (0 + z || g)"``.
        Names that are not identifiers go in backticks.
    functions : collection of str, optional
        Names of functions of your own that the formula may call.

    Returns
    -------
    Formula

    Raises
    ------
    FormulaError
        If the formula cannot be understood; carets mark the place.

    References
    ----------
    Bates, D., Mächler, M., Bolker, B., & Walker, S. (2015). Fitting linear mixed-effects
    models using lme4. Journal of Statistical Software, 67(1). doi:10.18637/jss.v067.i01

    Examples
    --------
    >>> formula = parse("Reaction ~ Days + (Days | Subject)")
    >>> formula.fixed, formula.random[0].effects, formula.random[0].group
    ('1 + Days', '1 + Days', 'Subject')
    """
    check_text(source)
    found = tokens(source)
    check_tokens(source, found, functions)
    left, right = _sides(source, found)
    check_expansion(source, right)
    response = _response(source, left)
    fixed = read_sum(source, right)
    _check_count(source, right, len(fixed.bars))
    random = tuple(itertools.chain.from_iterable(_random_terms(source, bar) for bar in fixed.bars))
    _check_count(source, right, len(random))
    _check_repeats(source, random)
    return Formula(
        source=source,
        left=response,
        right=side(source, right, fixed),
        shifts=tuple(_shift(source, token) for token in fixed.offsets),
        random=random,
    )


def _check_count(source: str, right: Sequence[Item], count: int) -> None:
    if count > MOST_RANDOM:
        message = f"There are {count} random-effects terms; at most {MOST_RANDOM} are allowed."
        fail(message, source, right)


def absent_functions(source: str, functions: Collection[str]) -> list[str]:
    """List the functions that a formula calls and that are neither listed nor given."""
    check_text(source)
    found = plainly(source, tokens(source))
    python = [expression(source, token) for token in python_tokens(found)]
    called = frozenset[str]().union(*(reading.functions for reading in python))
    return sorted(called - {"offset", *FUNCTIONS, *functions})


def locate(formula_source: str, name: str) -> tuple[int, int]:
    """Find a variable in a formula, also inside Python calls.

    Parameters
    ----------
    formula_source : str
        The formula as written.
    name : str
        The variable, without backticks.

    Returns
    -------
    tuple of int
        Start and end of its first occurrence; the whole formula if it does not occur.

    Examples
    --------
    >>> locate("y ~ log(x) + (1 | g)", "x")
    (8, 9)
    """
    quoted = re.escape(name)
    bare = rf"(?<![\w.`\"']){quoted}(?![\w`\"'])"
    inside = re.compile(rf"`{quoted}`|(?<=Q\()([\"']){quoted}\1|{bare}")
    for token in plainly(formula_source, tokens(formula_source)):
        if token.kind == "name" and token.value == name:
            return token.start, token.end
        if token.kind == "python":
            match = inside.search(blank_strings(token.text, name))
            if match:
                return token.start + match.start(), token.start + match.end()
    return 0, len(formula_source)


def _sides(source: str, found: Sequence[Token]) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split a formula at its one ``~``."""
    tildes = [token for token in found if is_operator(token, "~")]
    if not tildes:
        message = f"There is no `~` between response and predictors; write e.g. {EXAMPLE}."
        raise FormulaError(message, source, 0, max(1, len(source)))
    if len(tildes) > 1:
        fail("There is more than one `~`; it stands once, after the response.", source, tildes[1:2])
    items = nest(source, found)
    if tildes[0] not in items:
        fail("The `~` must not be inside parentheses.", source, tildes)
    where = items.index(tildes[0])
    if where == 0:
        fail("There is no response on the left of `~`.", source, tildes)
    if where == len(items) - 1:
        fail(
            "There is nothing on the right of `~`; write at least a random-effects term, "
            "e.g. (1 | group).",
            source,
            tildes,
        )
    return items[:where], items[where + 1 :]


def _response(source: str, left: tuple[Item, ...]) -> Operand:
    only = left[0]
    if len(left) == 1 and isinstance(only, Token) and only.kind in ("name", "python"):
        if is_offset(only):
            fail("offset() belongs on the right of `~`.", source, left)
        return operand(source, only)
    if any(is_operator(token, "|", "||") for token in flat(left)):
        fail("Random-effects terms belong on the right of `~`.", source, left)
    text = source[left[0].start : left[-1].end]
    fail(
        "The response must be one column or one expression; arithmetic goes inside I( ): "
        f"I({text}).",
        source,
        left,
    )


def _shift(source: str, token: Token) -> Operand:
    inner = token.text.removeprefix("offset(").removesuffix(")").strip()
    if not inner:
        fail("offset() needs an expression, such as offset(log(t)).", source, [token])
    found = tokens(inner)
    if len(found) > 1 or found[0].kind not in ("name", "python"):
        inner = f"I({inner})"
        found = tokens(inner)
    return operand(inner, found[0])


# --- random-effects terms --------------------------------------------------------------


def _random_terms(source: str, group: Group) -> Iterator[RandomTerm]:
    bars = [i for i, item in enumerate(group.items) if is_operator(item, "|", "||")]
    if len(bars) > 1:
        fail(
            "A random-effects term has one bar; write two terms, e.g. (1 | a) + (1 | b), or "
            "(1 | a:b).",
            source,
            [group.items[bars[1]]],
        )
    left, bar, right = group.items[: bars[0]], group.items[bars[0]], group.items[bars[0] + 1 :]
    right, arguments = _arguments(group, right)
    if not left:
        fail("The left of this bar is empty; write e.g. (1 | group).", source, [bar])
    if not right:
        fail("The right of this bar is empty; write e.g. (1 | group).", source, [bar])
    for item in (*left, *right):
        if has_bar(item):
            fail(
                "Random-effects terms cannot be nested; nested grouping is written (1 | a/b).",
                source,
                [item],
            )
    check_expansion(source, left)
    effects = _effects(source, left)
    check_grouping(source, right)
    _check_names_once(source, right)
    by, arguments = take_by(source, arguments)
    if by is not None and is_membership(bar, right[0]):
        fail("by= does not go with mm(): its rows belong to several levels.", source, right)
    kind = _kind(source, group, arguments)
    if group.call is not None and is_operator(bar, "||"):
        fail(f"{group.call.name}() has one bar; || is the same as diag().", source, [bar])
    if kind in OCCASIONS:
        effects = replace(effects, occasions=True)
    for factors, members in _groupings(source, bar, right):
        yield RandomTerm(
            left=effects,
            factors=factors,
            members=members,
            correlated=is_operator(bar, "|") and kind != "diag",
            structure="us" if kind == "diag" else kind,
            by=by,
            source=source[group.start : group.end],
            span=(group.start, group.end),
            factor_span=(right[0].start, right[-1].end),
        )


def _arguments(
    group: Group, right: tuple[Item, ...]
) -> tuple[tuple[Item, ...], tuple[tuple[int, int], ...]]:
    """The grouping side of a term, and start and end of each argument after it."""
    if group.call is not None:
        return right, group.call.arguments
    commas = [item for item in right if is_operator(item, ",")]
    if not commas:
        return right, ()
    ends = [*(comma.start for comma in commas[1:]), group.end - 1]
    places = tuple((comma.end, end) for comma, end in zip(commas, ends, strict=True))
    return right[: right.index(commas[0])], places


def _kind(source: str, group: Group, arguments: tuple[tuple[int, int], ...]) -> str:
    """Name of the structure of a term with arguments but ``by=``."""
    if group.call is not None:
        return kind_of(replace(group.call, arguments=arguments), source)
    for start, end in arguments:
        text = source[start:end].strip()
        if not text:
            raise FormulaError("There is nothing after this comma.", source, start - 1, start)
        message = f"`{text}` is no argument of a random-effects term; what may be: {BY}."
        raise FormulaError(message, source, start, end)
    return "us"


def _effects(source: str, left: Sequence[Item]) -> Side:
    found = read_sum(source, left)
    if found.bars:
        fail(
            "Random-effects terms cannot be nested; nested grouping is written (1 | a/b).",
            source,
            found.bars,
        )
    if found.offsets:
        fail("offset() cannot be part of a random-effects term.", source, found.offsets)
    if found.intercept is False and not found.terms:
        fail("This random-effects term has no coefficient; write e.g. 1 or 0 + x.", source, left)
    return side(source, left, found)


def _groupings(
    source: str, bar: Item, items: Sequence[Item]
) -> list[tuple[tuple[str, ...], Members | None]]:
    """The grouping factors on the right side of a bar, with what mm() says."""
    only = items[0]
    if not isinstance(only, Token) or not is_membership(bar, only):
        return [(factors, None) for factors in _grouping(source, items)]
    if len(items) > 1:
        fail("mm() stands alone: it is not part of a nesting or an interaction.", source, items)
    return [read_members(source, only)]


def _grouping(source: str, items: Sequence[Item]) -> list[tuple[str, ...]]:
    """Expand the right side of a bar into grouping factors, the smallest first."""
    for symbols in (("/", "*"), (":",)):
        where = [i for i, item in enumerate(items) if is_operator(item, *symbols)]
        if where:
            split = where[-1]
            if split in (0, len(items) - 1):
                fail(f"{_GROUPING_ALLOWED}; a name is missing here.", source, [items[split]])
            left = _grouping(source, items[:split])
            right = _grouping(source, items[split + 1 :])
            crossed = [a + b for a in left for b in right]
            if symbols == (":",):
                return crossed
            if is_operator(items[split], "*"):
                return sorted(left + right + crossed, key=len)
            parent = tuple(dict.fromkeys(itertools.chain.from_iterable(left)))
            return left + [parent + b for b in right]
    only = items[0]
    if len(items) == 1 and isinstance(only, Group):
        return _grouping(source, only.items)
    if len(items) == 1 and isinstance(only, Token) and only.kind == "name":
        return [(only.value,)]
    text = source[items[0].start : items[-1].end]
    fail(f"{_GROUPING_ALLOWED}, not `{text}`.", source, items)


def _check_names_once(source: str, items: Sequence[Item]) -> None:
    seen: set[str] = set()
    for token in flat(items):
        if token.kind == "name" and token.value in seen:
            fail(f"`{token.value}` occurs twice in this grouping factor.", source, [token])
        seen.add(token.value)


def _check_repeats(source: str, random: tuple[RandomTerm, ...]) -> None:
    """Reject a coefficient that two terms give to one grouping factor."""
    listed = [(term, term.left.keys) for term in random]
    for (first, known), (second, new) in itertools.combinations(listed, 2):
        shared = known & new
        if first.identity != second.identity:
            continue
        pooled = first.members is not None
        if pooled and (first.members, first.group) != (second.members, second.group):
            message = f"`{first.source}` has the same members: write mm(...) as there."
            raise FormulaError(message, source, *second.span)
        if not shared:
            continue
        raise FormulaError(_repeat_message(first, second, known, new), source, *second.span)


def _repeat_message(
    first: RandomTerm, second: RandomTerm, known: frozenset[str], new: frozenset[str]
) -> str:
    shared = sorted(known & new)
    if known == new and first.source.replace(" ", "") == second.source.replace(" ", ""):
        return f"`{second.source}` is written twice; remove one."
    what = "The intercept" if shared[0] == "1" else f"`{shared[0]}`"
    message = (
        f"{what} is repeated on grouping factor `{second.group}`: `{first.source}` and "
        f"`{second.source}` both have it."
    )
    if known == new:
        return f"{message} Remove it from one of them."
    if shared != ["1"] or _expands(first) or _expands(second):
        return f"{message} Write the terms so that each coefficient occurs once."
    kept, stripped = (first, second) if new != {"1"} else (second, first)
    slopes = stripped.effects.removeprefix("1 + ")
    bar = "|" if stripped.correlated else "||"
    group = _grouping_text(second)
    independent = f"(0 + {slopes} {bar} {group})"
    kept_text = kept.effects.removeprefix("1 + ")
    joint = slopes if kept_text == "1" else f"{kept_text} + {slopes}"
    pair = (kept.source, independent) if kept is first else (independent, kept.source)
    return f"{message} Write `{pair[0]} + {pair[1]}` or `({joint} {bar} {group})`."


def _grouping_text(term: RandomTerm) -> str:
    start, end = (position - term.span[0] for position in term.factor_span)
    return term.source[start:end]


def _expands(term: RandomTerm) -> bool:
    return bool({"/", "*"} & set(_grouping_text(term)))
