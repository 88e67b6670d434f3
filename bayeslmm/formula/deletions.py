"""Formulas with one random-effects term, or one term of its left side, less."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.terms import Term, read_side
from bayeslmm.formula.update import BarTerm, Part, bar_terms, joined, old_parts, part_of, random_key


def random_deletions(
    formula: Formula, *, reduce_terms: bool = True, factors: Collection[str] = frozenset()
) -> dict[str, str]:
    """Each formula that has one piece of the random part less.

    Parameters
    ----------
    formula : Formula
        The formula as it is.
    reduce_terms : bool
        Whether what varies by level is taken out term by term, ``(x | g)`` becoming ``(1 | g)``,
        or as a whole.
    factors : collection of str
        Variables that are factors. Beside one, the intercept of ``(f || g)`` stays, because the
        columns of ``f`` would be others without it.

    Returns
    -------
    dict of str to str
        Formulas by what is gone, ``"x in (x | g)"`` or ``"(1 | g)"``. Terms of a structure by name,
        with ``by=`` or ``mm()`` are taken out whole.

    References
    ----------
    ``lmerTest::ranova``.

    Examples
    --------
    >>> from bayeslmm.formula.grammar import parse
    >>> random_deletions(parse("y ~ x + (x | g)"))
    {'x in (x | g)': 'y ~ x + (1 | g)'}
    """
    parts = old_parts(formula)
    found: dict[str, str] = {}
    for place, part in enumerate(parts):
        if part.role != "random":
            continue
        for label, left in _deletions(part, reduce_terms, factors):
            others = [*parts[:place], *parts[place + 1 :]]
            keys = {random_key(other) for other in others if other.role == "random"}
            fresh = [new for new in map(part_of, left) if random_key(new) not in keys]
            right = joined([*parts[:place], *fresh, *parts[place + 1 :]])
            found.setdefault(label, f"{formula.response} ~ {right}")
    return found


def _deletions(
    part: Part, reduce_terms: bool, factors: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    """What is taken out of a part, and the terms that are left of it."""
    terms = bar_terms(part.text)
    if not terms:
        yield part.text, []
    for i, term in enumerate(terms):
        others = [other.text for other in (*terms[:i], *terms[i + 1 :])]
        for label, smaller in _smaller(term, reduce_terms, factors):
            yield label, [*others[:i], *smaller, *others[i:]]


def _smaller(
    term: BarTerm, reduce_terms: bool, factors: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    if term.bar == "||":
        mixed = any(not read_side(one).variables.isdisjoint(factors) for one in term.lefts)
        for left in term.lefts:
            alone = replace(term, lefts=(left,), bar="|").text
            rest = tuple(one for one in term.lefts if one != left)
            if left != "1" and reduce_terms:
                yield f"{left} in {alone}", [replace(term, lefts=rest or ("1",)).text]
            elif left != "1" or not mixed:
                yield alone, [replace(term, lefts=rest).text] if rest else []
        return
    scope = droppable([read_side(f"0 + {left}").terms[0] for left in term.lefts if left != "1"])
    written = [left for left in term.lefts if left != "1"]
    if not reduce_terms or not scope:
        yield term.text, []
        return
    for place in scope:
        kept = tuple(left for left in term.lefts if left != written[place])
        yield f"{written[place]} in {term.text}", [replace(term, lefts=kept or ("1",)).text]


def droppable(terms: Sequence[Term]) -> list[int]:
    """Places of the terms that no other one contains: R's ``drop.scope``."""
    sets = [frozenset(term) for term in terms]
    return [i for i, own in enumerate(sets) if own and not any(own < other for other in sets)]
