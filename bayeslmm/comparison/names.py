"""Names that other software gives to coefficients and grouping factors, matched with ours.

Coefficients here have formulaic's labels: ``Sex[T.Female]``, ``I(day ** 2)``, ``poly(x, 2)[1]``.
R writes ``SexFemale``, ``I(day^2)``, ``poly(x, 2)1``. R's names cannot be taken apart (``f12`` is
level 12 of f or level 2 of f1), so every known label is spelled as R might spell it, and the name
is looked up among these spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from types import MappingProxyType

INTERCEPTS = ("(Intercept)", "Intercept")

_LEVEL = re.compile(r"(?P<factor>.+)\[(?P<coding>[A-Z]+\.)?(?P<level>.*)\]", re.DOTALL)
_FACTOR_CALL = re.compile(r"(?:C|factor)\((?P<argument>[^,()]+)(?:,.*)?\)", re.DOTALL)
_CENTERED = re.compile(r"scale\((.*),scale=(?:False|F)\)")
_REWRITES = (
    (re.compile(r"[\s`]+"), ""),
    (re.compile("'"), '"'),
    (re.compile(r"\^"), "**"),
    (re.compile("TRUE"), "True"),
    (re.compile("FALSE"), "False"),
    (re.compile(r"\b(?:np|numpy|stats|splines)\.|\b(?:stats|splines)::"), ""),
    (re.compile(r"\bas\.factor\("), "factor("),
)
Key = tuple[str, ...]
Names = Mapping[str, str]
NO_NAMES: Names = MappingProxyType({})


def from_r(name: str, known: Sequence[str], names: Names = NO_NAMES) -> str | None:
    """Find the label of a coefficient by the name that R, or another program, gives it.

    Parameters
    ----------
    name : str
        For example ``"age:SexFemale"``; formulaic's own labels are found too.
    known : sequence of str
        Labels of all coefficients of the term or model, in order.
    names : mapping, optional
        Names that stand for others and come before all rules.

    Returns
    -------
    str or None
        The label, or None where there is none.

    Raises
    ------
    ValueError
        If R would give this name to more than one of the labels.

    Examples
    --------
    >>> from_r("age:SexFemale", ["Intercept", "age", "Sex[T.Female]", "age:Sex[T.Female]"])
    'age:Sex[T.Female]'
    >>> from_r("poly(x, 2)1", ["Intercept", "poly(x, 2)[1]", "poly(x, 2)[2]"])
    'poly(x, 2)[1]'
    """
    name = names.get(name, name)
    if name in known:
        return name
    index = _index(tuple(known))
    found = index.get(_key(name)) or index.get(_key(_without_brackets(name)), [])
    if len(found) > 1:
        raise ValueError(
            f"The name {name!r} fits {' and '.join(map(repr, found))}: say which one is meant "
            f"with names={{{name!r}: {found[0]!r}}}."
        )
    return found[0] if found else None


def pair_from_r(name: str, known: Sequence[str], names: Names = NO_NAMES) -> tuple[str, str] | None:
    """Find the two coefficients of a correlation such as ``"(Intercept).Days"``.

    Parameters
    ----------
    name : str
        Two names joined by a dot, in any order; the names may hold dots themselves.
    known : sequence of str
        Labels of the coefficients of the grouping factor, in order.
    names : mapping, optional
        As for :func:`from_r`.

    Returns
    -------
    tuple of str or None
        The two labels in the order of `known`, or None.

    Examples
    --------
    >>> pair_from_r("Days.(Intercept)", ["Intercept", "Days"])
    ('Intercept', 'Days')
    """
    for dot in (match.start() for match in re.finditer(r"\.", name)):
        first, second = (from_r(part, known, names) for part in (name[:dot], name[dot + 1 :]))
        if first is not None and second is not None and first != second:
            low, high = sorted((first, second), key=list(known).index)
            return low, high
    return None


def group_from_r(name: str, known: Sequence[str], names: Names = NO_NAMES) -> str | None:
    """Find a grouping factor by the name that another program gives it.

    Parameters
    ----------
    name : str
        For example ``"cask:batch"``. lme4's second term on one factor, ``"Subject.1"``, belongs to
        that factor; a factor nested in others goes by its own name, ``"cask"``, where it is the
        only one.
    known : sequence of str
        Grouping factors of the model.
    names : mapping, optional
        As for :func:`from_r`.

    Returns
    -------
    str or None

    Examples
    --------
    >>> group_from_r("cask:batch", ["batch", "batch:cask"])
    'batch:cask'
    """
    name = names.get(name, name)
    parts = _group_parts(name)
    same = [group for group in known if _group_parts(group) == parts]
    if not same and (numbered := re.fullmatch(r"(.+)\.\d+", name)):
        same = [group for group in known if _group_parts(group) == _group_parts(numbered[1])]
    if not same and len(parts) == 1:
        same = [group for group in known if parts[0] in _group_parts(group)]
    return same[0] if len(same) == 1 else None


def _group_parts(name: str) -> Key:
    return tuple(sorted(part.strip(" `") for part in re.split(r"[:/]", name)))


@lru_cache(maxsize=8)
def _index(known: tuple[str, ...]) -> dict[Key, list[str]]:
    """The labels by every key under which R may write them."""
    families = _families(known)
    index: dict[Key, list[str]] = {}
    for label in known:
        if label in INTERCEPTS:
            keys = {_key(name) for name in INTERCEPTS}
        else:
            parts = [set(_part_spellings(part, families)) for part in _split(label)]
            keys = {_key(":".join(spelling)) for spelling in product(*parts)}
        for key in keys:
            index.setdefault(key, []).append(label)
    return index


def _families(known: Iterable[str]) -> dict[str, list[str]]:
    """Columns of each factor, basis or contrast, in order, by what they share."""
    families: dict[str, list[str]] = {}
    for part in (part for label in known for part in _split(label)):
        if match := _LEVEL.fullmatch(part):
            family = families.setdefault(_family(match), [])
            if part not in family:
                family.append(part)
    return families


def _family(match: re.Match[str]) -> str:
    return f"{match['factor']}[{match['coding'] or ''}"


def _part_spellings(part: str, families: Mapping[str, list[str]]) -> Iterator[str]:
    """Spellings of one factor of an interaction."""
    yield part
    if part.startswith("I(") and part.endswith(")"):
        yield part[2:-1]
    elif match := _LEVEL.fullmatch(part):
        factor, coding, level = match.group("factor", "coding", "level")
        position = str(families[_family(match)].index(part) + 1)
        numbered = coding not in (None, "T.")
        basis = coding is None and "(" in factor and not _FACTOR_CALL.fullmatch(factor)
        suffixes = [position] if numbered or basis else [level]
        if numbered and not level.isdigit():
            suffixes.append(level)
        if re.fullmatch(r"-?\d+\.0", level):
            suffixes.append(level[:-2])
        for spelling in _factor_spellings(factor):
            yield from (spelling + suffix for suffix in suffixes)
    else:
        yield f"I({part})"


def _without_brackets(name: str) -> str:
    """A label of formulaic or patsy as R spells it, where factors are columns: C(f)[T.a] is fa."""
    parts = _split(name)
    for i, match in enumerate(map(_LEVEL.fullmatch, parts)):
        if match and match["coding"] in (None, "T."):
            call = _FACTOR_CALL.fullmatch(match["factor"])
            parts[i] = (call["argument"] if call else match["factor"]) + match["level"]
    return ":".join(parts)


def _factor_spellings(factor: str) -> Iterator[str]:
    yield factor
    call = _FACTOR_CALL.fullmatch(factor)
    inner = call["argument"].strip() if call else factor
    if call or "(" not in factor:
        yield from (inner, f"factor({inner})", f"C({inner})")


def _split(label: str) -> list[str]:
    """Factors of an interaction: split at colons outside brackets."""
    parts, depth = [""], 0
    for character in label:
        depth += (character in "([") - (character in ")]")
        if character == ":" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _key(name: str) -> Key:
    """A name without what programs write differently; interactions in alphabetical order."""
    for pattern, replacement in _REWRITES:
        name = pattern.sub(replacement, name)
    return tuple(sorted(_CENTERED.sub(r"center(\1)", name).split(":")))


def unmatched_message(theirs: Iterable[str], ours: Iterable[str]) -> str:
    """Say which names of two models have no counterpart, and what to do."""
    theirs, ours = list(theirs), list(ours)
    return (
        "The estimate and the model do not have the same parameters.\n"
        f"  only in the estimate: {', '.join(theirs) or 'none'}\n"
        f"  only in the model: {', '.join(ours) or 'none'}\n"
        "Where only the names differ, say which is which with names={'their name': 'our name'}; "
        "otherwise compare fits of the same formula with the same contrasts."
    )
