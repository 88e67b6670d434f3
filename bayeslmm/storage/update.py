"""A changed model: other data, formula, weights or priors, the rest as it was."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design, build_design
from bayeslmm.data.frames import column_names, listed, read_only
from bayeslmm.data.inputs import predictors, response_variables
from bayeslmm.exceptions import DataError, FormulaError, PriorError
from bayeslmm.formula.expansion import check_expansion
from bayeslmm.formula.formulaic_seam import called_functions, check_terms, tokens
from bayeslmm.formula.functions import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula, parse
from bayeslmm.formula.syntax import (
    Item,
    blank_strings,
    check_text,
    fail,
    flat,
    has_bar,
    is_offset,
    is_operator,
    nest,
)
from bayeslmm.priors.defaults import resolve_priors
from bayeslmm.priors.families import Prior
from bayeslmm.priors.keys import addressed
from bayeslmm.priors.lkj import LKJ
from bayeslmm.priors.record import Priors

_DOT = re.compile(r"(?<![\w.)\]])\.(?![\w.])")
_ROLES = ("fixed", "offset", "random")


@dataclass(frozen=True, slots=True)
class _Part:
    """A signed term as written; `role` is one of `_ROLES` or "intercept"."""

    negative: bool
    text: str
    role: str
    items: tuple[Item, ...]


def update_formula(old: Formula, new: str) -> str:
    """Change a formula.

    Parameters
    ----------
    old : Formula
        The formula as it is.
    new : str
        ``"~ . - Days"``, ``". ~ . + (1 | g)"``, ``"log(.) ~ ."`` or a whole formula. A dot on the
        left stands for the old response; as a term on the right, for the old fixed effects,
        offsets and random-effects terms. Terms are taken out with ``-``; random-effects terms in
        parentheses too. Without a left side the response stays.

    Returns
    -------
    str

    Raises
    ------
    FormulaError
        If there is no ``~``, a dot is part of a larger term, or a term to be taken out is not
        there.

    References
    ----------
    R's ``update.formula``; a term that is not there is ignored by R and an error here.

    Examples
    --------
    >>> update_formula(parse("y ~ x + (x | g)"), "~ . - (x | g) + (1 | g)")
    'y ~ x + (1 | g)'
    """
    check_text(new)
    found = tokens(new)
    tildes = [token for token in found if is_operator(token, "~")]
    if len(tildes) != 1:
        raise FormulaError(
            "A change of a formula has one `~`, as in '~ . - x' or '. ~ . + (1 | g)'; a dot stands "
            "for what there was.",
            new,
            0,
            max(1, len(new)),
        )
    split = tildes[0].start
    response = _response(old.response, new[:split])
    items = nest(new, [token for token in found if token.start > split])
    if not items:
        fail("There is nothing on the right of `~`; a dot keeps what there was.", new, tildes)
    check_expansion(new, items)
    parts: list[_Part] = []
    for part in _parts(new, items):
        if _is_dot(part):
            parts += _old_parts(old)
        elif part.negative and part.role != "intercept":
            parts = _without(parts, part, new)
        elif part.role != "fixed" or not _present(part, parts):
            parts.append(part)
    return f"{response} ~ {_joined(parts)}"


def _response(old: str, left: str) -> str:
    if not left.strip():
        return old
    pieces, start = [], 0
    for match in _DOT.finditer(blank_strings(left)):
        pieces += [left[start : match.start()], old]
        start = match.end()
    return "".join([*pieces, left[start:]]).strip()


# --- terms -----------------------------------------------------------------------------


def _parts(source: str, items: Sequence[Item]) -> Iterator[_Part]:
    """Split at the top-level ``+`` and ``-``; signs in a row multiply."""
    negative, current = False, list[Item]()
    for item in items:
        if not is_operator(item, "+", "-"):
            current.append(item)
            continue
        if current:
            yield _part(source, negative, current)
            negative, current = False, []
        negative ^= is_operator(item, "-")
    if not current:
        fail("A term is missing after this sign.", source, items[-1:])
    yield _part(source, negative, current)


def _part(source: str, negative: bool, items: Sequence[Item]) -> _Part:
    only = items[0]
    text = source[only.start : items[-1].end]
    role = "fixed"
    if len(items) == 1 and text in ("0", "1"):
        role = "intercept"
    elif len(items) == 1 and has_bar(only):
        role = "random"
    elif len(items) == 1 and any(is_offset(token) for token in flat(items)):
        role = "offset"
    part = _Part(negative, text, role, tuple(items))
    dots = [token for token in flat(items) if token.text == "."]
    if dots and (negative or not _is_dot(part)):
        fail(
            "Here `.` stands for all of the old right-hand side, so it must be a term of its own; "
            "write the terms out.",
            source,
            dots[:1],
        )
    return part


def _is_dot(part: _Part) -> bool:
    return part.text == "."


def _old_parts(old: Formula) -> list[_Part]:
    """The right-hand side that there was, its parenthesised sums opened where they can be."""
    found = tokens(old.source)
    tilde = next(token for token in found if is_operator(token, "~"))
    items = nest(old.source, [token for token in found if token.start > tilde.start])
    return list(_opened(old.source, items))


def _opened(source: str, items: Sequence[Item]) -> Iterator[_Part]:
    for part in _parts(source, items):
        only = part.items[0]
        group = len(part.items) == 1 and part.text.startswith("(") and part.role == "fixed"
        inner = list(_opened(source, only.items)) if group and hasattr(only, "items") else []
        if inner and not part.negative and not any(p.negative for p in inner):
            yield from inner
        else:
            yield part


def _without(parts: list[_Part], unwanted: _Part, source: str) -> list[_Part]:
    """The parts without one, or with it subtracted where it is a piece of a larger one."""
    same = [part for part in parts if not part.negative and _same(part, unwanted)]
    if same:
        return [part for part in parts if part not in same]
    if unwanted.role == "fixed" and set(_terms(unwanted)) <= _fixed_terms(parts):
        return [*parts, unwanted]
    kinds = {"random": "random-effects term", "offset": "offset", "fixed": "fixed-effects term"}
    present = [part.text for part in parts if part.role == unwanted.role and not part.negative]
    fail(
        f"There is no {kinds[unwanted.role]} `{unwanted.text}` to take out; the formula has "
        f"{', '.join(f'`{text}`' for text in present) or 'none'}.",
        source,
        unwanted.items,
    )


def _same(one: _Part, two: _Part) -> bool:
    if one.role != two.role:
        return False
    if one.role == "random":
        return _random_key(one) == _random_key(two)
    if one.role == "fixed":
        return set(_terms(one)) == set(_terms(two))
    return "".join(one.text.split()) == "".join(two.text.split())


def _present(part: _Part, parts: Sequence[_Part]) -> bool:
    return set(_terms(part)) <= _fixed_terms(parts)


def _terms(part: _Part) -> tuple[str, ...]:
    return tuple(term for term in check_terms(f"0 + {part.text}") if term != "0")


def _fixed_terms(parts: Sequence[_Part]) -> set[str]:
    fixed = [part for part in parts if part.role == "fixed"]
    text = "".join(f" {'-' if part.negative else '+'} {part.text}" for part in fixed)
    return set(check_terms(f"0{text}"))


def _random_key(part: _Part) -> tuple[object, ...]:
    terms = parse(f"y ~ 1 + {part.text}", called_functions(part.text)).random
    return tuple((frozenset(check_terms(t.effects)), t.factors, t.correlated) for t in terms)


def _joined(parts: Sequence[_Part]) -> str:
    mentioned = [part for part in parts if part.role == "intercept"]
    kept = [part for part in parts if part.role != "intercept"]
    fixed = [part for part in kept if part.role == "fixed" and not part.negative]
    pieces = []
    if mentioned and (mentioned[-1].text == "1") == mentioned[-1].negative:
        pieces.append("0")
    elif mentioned or not fixed:
        pieces.append("1")
    text = " + ".join(pieces)
    for part in sorted(kept, key=lambda part: _ROLES.index(part.role)):
        sign = "-" if part.negative else "+"
        text = f"{text} {sign} {part.text}" if text else part.text
    return text


# --- a changed model ----------------------------------------------------------------

_log = logging.getLogger(__name__)


def updated_design(
    design: Design,
    *,
    data: Any = None,
    formula: str | None = None,
    weights: Any = None,
    functions: UserFunctions | None = None,
) -> Design:
    """Design of a changed model.

    Parameters
    ----------
    design : Design
        The design as it is.
    data : data frame or mapping, optional
        New data; those of the model by default, which have its variables and its rows only.
    formula : str, optional
        A change of the formula, as :func:`~bayeslmm.storage.update.update_formula` reads
        it.
    weights : str, array-like or False, optional
        New precision weights; those of the model by default; none if False.
    functions : mapping of str to callable, optional
        The user's functions that are new or replace those of the model.

    Returns
    -------
    Design

    Raises
    ------
    DataError
        If new data are needed, or new weights.
    FormulaError
        If the formula is wrong.
    """
    number = not isinstance(weights, str) and np.ndim(weights) == 0
    if number and weights is not None and weights is not False:
        raise ValueError(f"weights={weights!r}: a column, an array or False is expected")
    if data is None and formula is None and weights is None and not functions:
        return design
    own = {**design.recipe.functions, **own_functions(functions)}
    changed = design.formula if formula is None else _changed_formula(design.formula, formula, own)
    if data is not None:
        new = _new_weights(design, data, weights)
        return build_design(changed, data, weights=new, functions=own)
    return _on_own_data(design, changed, weights, own)


def _changed_formula(old: Formula, formula: str, functions: UserFunctions) -> Formula:
    if not isinstance(formula, str):
        raise TypeError(f"formula must be text such as '~ . - x', got {type(formula).__name__}")
    return parse(update_formula(old, formula), functions)


def _new_weights(design: Design, data: Any, weights: Any) -> Any:
    """Weights for new data: as given, else the column of the old ones."""
    if weights is False or (weights is None and design.weights is None):
        return None
    if weights is not None:
        return weights
    column = design.recipe.weights
    if column is None:
        raise DataError(
            "The weights of the model were given as values, not as a column, so new data need new "
            "ones: give weights=, or weights=False for none."
        )
    if column not in column_names(data):
        raise DataError(
            f"The new data have no column `{column}`, which held the weights: give weights=, or "
            "weights=False for none."
        )
    return column


def _on_own_data(
    design: Design, formula: Formula, weights: Any, functions: UserFunctions
) -> Design:
    needed = response_variables(formula) | predictors(formula, effects=True, groups=True)
    absent = sorted(needed - set(design.data.columns))
    if absent:
        raise DataError(
            f"The model keeps the variables of its own formula only, {listed(design.data.columns)},"
            f" and {listed(absent)} is not among them: give data= too."
        )
    if len(design.dropped):
        _log.warning(
            "%d rows stay dropped, also where the new formula does not need what they lack: give "
            "data= to start from all rows",
            len(design.dropped),
        )
    values, column = weights, weights if isinstance(weights, str) else None
    if weights is None or (isinstance(weights, str) and weights == design.recipe.weights):
        values, column = design.weights, design.recipe.weights
    elif weights is False:
        values = None
    elif isinstance(weights, str) and weights not in design.data:
        raise DataError(
            f"The model does not keep the column `{weights}`: give data= too, or the values."
        )
    built = build_design(formula, design.data, weights=values, functions=functions)
    recipe = replace(built.recipe, weights=column)
    return replace(built, dropped=_all_dropped(design, built.dropped), recipe=recipe)


def _all_dropped(design: Design, more: NDArray[np.intp]) -> NDArray[np.intp]:
    """Positions in the original data of the rows dropped then, and of `more` of those kept."""
    rows = np.delete(np.arange(design.n + len(design.dropped)), design.dropped)
    return read_only(np.sort(np.concatenate([design.dropped, rows[more]])))


# --- priors ----------------------------------------------------------------------------


def updated_priors(old: Priors, design: Design, user: Any = None) -> Priors:
    """Priors of a changed model.

    Parameters
    ----------
    old : Priors
        The priors as they were.
    design : Design
        The design of the changed model.
    user : {"default", "flat"} or mapping, optional
        By default, and with a mapping, the priors that the user had given are kept and the other
        ones are computed from the new data. A mapping adds to them; None for a prior takes the
        user's one away. "default" and "flat" forget all of them.

    Returns
    -------
    Priors

    Raises
    ------
    PriorError
        If a prior that the user had given is on parameters none of which the model still has. A
        key for several parameters, such as "sd[g]", stays as long as it addresses one of them.
    """
    if user is not None and not isinstance(user, Mapping):
        return resolve_priors(design, user)
    preset: Literal["default", "flat"] = "flat" if "flat" in old.sources.values() else "default"
    fresh = resolve_priors(design, preset)
    changes = {} if user is None else dict(user)
    kept = _kept(old, fresh, list(changes))
    given = {key: value for key, value in changes.items() if value is not None}
    if not kept and not given:
        return fresh
    return resolve_priors(design, {**kept, **given}, preset=preset)


def _kept(old: Priors, fresh: Priors, changed: Sequence[str]) -> dict[str, Prior | LKJ]:
    """The user's earlier priors that no changed key addresses."""
    replaced = set[str]()
    for key in changed:
        found = _addressed(old, key) | _addressed(fresh, key)
        replaced |= found or addressed(fresh, [key])  # which raises
    mine = {k: record for k, record in old.records().items() if old.sources[k] == "user"}
    kept = {key: record for key, record in mine.items() if key not in replaced}
    gone = [key for key in kept if key not in fresh.records()]
    broad = [key for key in gone if _given_broadly(old, fresh, key)]
    if broad:
        _log.info("the new model has no %s; the prior stays that of the others", listed(broad))
    kept = {key: record for key, record in kept.items() if key not in broad}
    if gone := [key for key in gone if key not in broad]:
        shown = ", ".join(f"{key!r}: None" for key in gone)
        raise PriorError(
            f"The new model has no parameter {', '.join(gone)}, to which you had given a prior. "
            f"Take it away with priors={{{shown}}}, or start anew with priors='default'."
        )
    return kept


def _given_broadly(old: Priors, fresh: Priors, name: str) -> bool:
    """Whether a key such as "sd[g]" can have given a prior, and addresses what remains with it."""
    records, remain = old.records(), set(fresh.records())
    keys = ["beta", "sd", "cor"]
    keys += [f"{kind}[{factor}]" for factor in old.factors for kind in ("sd", "cor")]
    for key in keys:
        names = _addressed(old, key)
        if name not in names or any(old.sources[other] != "user" for other in names):
            continue
        if any(str(records[other]) == str(records[name]) for other in names & remain):
            return True
    return False


def _addressed(priors: Priors, key: str) -> set[str]:
    try:
        return addressed(priors, [key])
    except PriorError:
        return set()
