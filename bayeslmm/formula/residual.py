"""Residual structures as they are written, such as ``"us(visit | arm / id)"``.

The words are mmrm's for correlations over occasions, nlme's ideas for variances.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from bayeslmm.exceptions import FormulaError, listed
from bayeslmm.formula.syntax import check_text

OCCASIONS = ("us", "cs", "csh", "ar1", "ar1h", "toep", "toeph", "ad", "adh", "ma1", "ma1h")
"""Structures over the occasions of a group; those that end in h have a variance per occasion."""

DISTANCES = ("car1", "sp_exp", "exp", "gau")
"""Structures over the distance in time or space."""

VARIANCES = ("strata", "power", "exp", "se")
"""Structures of the variance alone."""

SE_COLUMN = "a column of standard errors"

KNOWN = ("known",)
"""Known covariance matrices, variances and correlations."""

EXAMPLES = "us(visit | id), ar1(time | g), car1(time | g), strata(f) or power(x)"

_TOKEN = re.compile(r"\s*(?:(?P<name>`[^`]+`|[^\W\d][\w.]*|1)|(?P<mark>[()|/*+,:=]))")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualTerm:
    """One factor of a residual structure.

    Attributes
    ----------
    kind : str
        ``"us"``, ``"car1"``, ``"strata"``, ...
    text : str
        As written.
    place : tuple of str
        Occasion, time or coordinates before the bar; ``("1",)`` for the order of rows; for a
        variance its columns.
    arm : str or None
        Variable whose values have parameters of their own.
    group : tuple of str
        Variables whose cells are the groups; empty for a variance.
    start, end : int
        Where it stands.
    sigma : bool
        Of ``"se"`` and ``"known"``: whether what is known has a multiplier sigma that is estimated.
    """

    kind: str
    text: str
    place: tuple[str, ...]
    arm: str | None
    group: tuple[str, ...]
    start: int
    end: int
    sigma: bool = False

    @property
    def correlated(self) -> bool:
        """Whether residuals of a group are correlated."""
        return bool(self.group)

    @property
    def per_occasion(self) -> bool:
        """Whether each occasion has a variance of its own."""
        return self.kind == "us" or (self.kind in OCCASIONS and self.kind.endswith("h"))

    @property
    def holds_variances(self) -> bool:
        """Whether the variances are known, but perhaps for a multiplier."""
        return self.kind in ("se", *KNOWN)

    @property
    def multiplied(self) -> str:
        """How known variances are written with a multiplier sigma that is estimated."""
        groups = f" | {':'.join(self.group)}" if self.group else ""
        return f"{self.kind}({self.place[0]}{groups}, sigma=True)"

    @property
    def variables(self) -> frozenset[str]:
        """Columns that it reads."""
        names = (*self.place, *self.group, *(() if self.arm is None else (self.arm,)))
        return frozenset(names) - {"1"}


@dataclass(frozen=True, slots=True)
class ResidualFormula:
    """A residual structure that has been read.

    Attributes
    ----------
    source : str
        As written.
    terms : tuple of ResidualTerm
        One factor each; at most one correlates residuals.
    """

    source: str
    terms: tuple[ResidualTerm, ...]

    @property
    def correlation(self) -> ResidualTerm | None:
        """The factor that correlates residuals."""
        return next((term for term in self.terms if term.correlated), None)

    @property
    def strata(self) -> ResidualTerm | None:
        """The factor with a variance per stratum."""
        return next((term for term in self.terms if term.kind == "strata"), None)

    @property
    def powers(self) -> tuple[ResidualTerm, ...]:
        """The factors in which the variance follows a covariate."""
        return tuple(t for t in self.terms if t.kind in ("power", "exp") and not t.correlated)

    @property
    def errors(self) -> ResidualTerm | None:
        """The factor with known variances."""
        return next((term for term in self.terms if term.holds_variances), None)

    @property
    def matrix(self) -> str | None:
        """Name of the known covariance matrix."""
        return next((term.place[0] for term in self.terms if term.kind in KNOWN), None)

    @property
    def known(self) -> bool:
        """Whether the variances are known, sigma held at one."""
        return self.errors is not None and not self.errors.sigma

    @property
    def variables(self) -> frozenset[str]:
        """Columns that it reads."""
        return frozenset[str]().union(*(term.variables for term in self.terms))

    @property
    def grouping(self) -> frozenset[str]:
        """Columns that group rows."""
        return frozenset(name for term in self.terms for name in term.group)


def parse_residual(source: str) -> ResidualFormula:
    """Read a residual structure.

    Parameters
    ----------
    source : str
        Such as ``"us(visit | id)"`` or ``"ar1(time | g) * strata(f)"``.

    Returns
    -------
    ResidualFormula

    Raises
    ------
    FormulaError
        If it cannot be understood; carets mark the place.

    Examples
    --------
    >>> parse_residual("us(visit | arm / id)").terms[0].arm
    'arm'
    """
    check_text(source)
    reader = _Reader(source)
    terms = [reader.term()]
    while reader.take("*"):
        terms.append(reader.term())
    if reader.here is not None:
        reader.fail("Residual structures are joined by `*`: a variance times a correlation")
    _check_together(source, terms)
    return ResidualFormula(source, tuple(terms))


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    is_name: bool
    start: int
    end: int


def _pieces(source: str) -> Iterator[_Piece]:
    place = 0
    while source[place:].strip():
        match = _TOKEN.match(source, place)
        if match is None:
            start = place + len(source[place:]) - len(source[place:].lstrip())
            raise FormulaError(
                f"`{source[start]}` has no meaning in a residual structure; write {EXAMPLES}.",
                source,
                start,
                start + 1,
            )
        name = match["name"]
        text = match["mark"] if name is None else name
        start = match.end() - len(text)
        yield _Piece(text.strip("`"), name is not None, start, match.end())
        place = match.end()


class _Reader:
    """Reads pieces from left to right."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.pieces = list(_pieces(source))
        self.at = 0

    @property
    def here(self) -> _Piece | None:
        """The next piece."""
        return self.pieces[self.at] if self.at < len(self.pieces) else None

    def fail(self, message: str) -> NoReturn:
        """Raise with a caret at the next piece."""
        end = len(self.source)
        start, stop = (end, end + 1) if self.here is None else (self.here.start, self.here.end)
        raise FormulaError(f"{message}, such as {EXAMPLES}.", self.source, start, stop)

    def take(self, mark: str) -> bool:
        """Pass a mark, if it is next."""
        found = self.here is not None and not self.here.is_name and self.here.text == mark
        self.at += found
        return found

    def need(self, mark: str, where: str) -> None:
        """Pass a mark that must be next."""
        if not self.take(mark):
            self.fail(f"`{mark}` is expected {where}")

    def name(self, what: str) -> str:
        """Pass a name."""
        piece = self.here
        if piece is None or not piece.is_name:
            self.fail(f"{what} is expected here")
        self.at += 1
        return piece.text

    def names(self, what: str, joint: str) -> tuple[str, ...]:
        """Pass names joined by a mark."""
        found = [self.name(what)]
        while self.take(joint):
            found.append(self.name(what))
        return tuple(found)

    def term(self) -> ResidualTerm:
        """Pass one structure."""
        first = self.here
        kind = self.name("A residual structure")
        if first is None or kind not in {*OCCASIONS, *DISTANCES, *VARIANCES, *KNOWN}:
            self.at -= 1
            self.fail(_unknown(kind))
        self.need("(", f"after {kind}")
        joint = "," if kind == "strata" else "+"
        place = self.names("A column", joint)
        sigma = kind == "se" and self.take(",") and self._multiplier(kind)
        arm: str | None = None
        group: tuple[str, ...] = ()
        if self.take("|"):
            group = self.names("A grouping factor", ":")
            if self.take("/"):
                arm, group = self._arm(group), self.names("A grouping factor", ":")
        sigma = sigma or (kind in KNOWN and self.take(",") and self._multiplier(kind))
        self.need(")", f"after what {kind} is of")
        last = self.pieces[self.at - 1]
        text = self.source[first.start : last.end]
        term = ResidualTerm(
            kind="car1" if kind == "sp_exp" and len(place) == 1 else kind.replace("sp_", ""),
            text=text,
            place=place,
            arm=arm,
            group=group,
            start=first.start,
            end=last.end,
            sigma=sigma,
        )
        _check_term(self.source, term)
        return term

    def _multiplier(self, kind: str) -> bool:
        """Pass ``sigma=True`` or ``sigma=False``."""
        if self.here is None or self.here.text != "sigma":
            what = "the name of a matrix and the groups" if kind in KNOWN else SE_COLUMN
            self.fail(f"{kind}() takes {what} and sigma=True or sigma=False")
        self.at += 1
        self.need("=", "after sigma")
        if self.here is None or self.here.text not in ("True", "False"):
            self.fail("sigma is True (estimated) or False (held at 1)")
        return self.name("True or False") == "True"

    def _arm(self, names: tuple[str, ...]) -> str:
        if len(names) > 1:
            self.at -= 1
            self.fail("Separate parameters are by the values of one variable")
        return names[0]


def _unknown(kind: str) -> str:
    known = [*OCCASIONS, *DISTANCES, *VARIANCES, *KNOWN]
    close = difflib.get_close_matches(kind.lower(), known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"`{kind}` is no residual structure.{hint} There are {listed(known)}"


def _check_term(source: str, term: ResidualTerm) -> None:
    kind, size = term.kind, len(term.place)

    def refuse(message: str) -> NoReturn:
        raise FormulaError(message, source, term.start, term.end)

    if kind in OCCASIONS and not term.group:
        refuse(f"{kind}() needs the groups: {kind}(occasion | group).")
    if kind in KNOWN and not (term.group and size == 1 and term.arm is None):
        refuse(f"{kind}() has the name of a matrix and the groups: {kind}(V | group).")
    if kind in ("car1", "gau") and not term.group:
        refuse(f"{kind}() needs the groups: {kind}(time | group).")
    if kind in ("strata", "power", "se") and term.group:
        refuse(f"{kind}() is of the variance alone and takes no `|`.")
    if kind in OCCASIONS and size > 1:
        refuse(f"{kind}() has one variable of occasions before the bar.")
    if kind == "car1" and size > 1:
        refuse("car1() has one variable of time before the bar; exp() takes coordinates.")
    if kind in ("power", "exp") and not term.group and size > 1:
        refuse(f"{kind}() follows one covariate; write {kind}(a) * {kind}(b).")
    if kind == "se" and size > 1:
        refuse("se() has one column of standard errors.")
    if "1" in term.place and kind not in ("ar1", "cs"):
        refuse(f"{kind}() needs a variable before the bar; only ar1 and cs can do without.")
    if len({*term.place, *term.group, term.arm}) < size + len(term.group) + 1:
        refuse("A variable stands twice.")


def _check_together(source: str, terms: list[ResidualTerm]) -> None:
    def refuse(message: str, term: ResidualTerm) -> NoReturn:
        raise FormulaError(message, source, term.start, term.end)

    correlations = [term for term in terms if term.correlated]
    if len(correlations) > 1:
        refuse("There are two correlation structures; residuals have one.", correlations[1])
    strata = [term for term in terms if term.kind == "strata"]
    if len(strata) > 1:
        refuse("Strata by several factors are written strata(f, g).", strata[1])
    if strata and correlations and (correlations[0].per_occasion or correlations[0].arm):
        one = correlations[0]
        refuse(
            f"{one.text} has variances of its own, so that strata cannot add to them; "
            "parameters by arm are written before the group: us(visit | arm / id).",
            strata[0],
        )
    errors = [term for term in terms if term.holds_variances]
    if len(errors) > 1 and all(term.kind == "se" for term in errors):
        refuse("There are two columns of known standard errors; give their product.", errors[1])
    if len(errors) > 1:
        refuse("The variances are known twice; give the product of the two.", errors[1])
    if errors and not errors[0].sigma:
        own = [t for t in terms if t.per_occasion or t.arm or t.kind in ("strata", "power")]
        own += [t for t in terms if t.kind == "exp" and not t.correlated]
        if own:
            refuse(
                f"{own[0].text} has variances to be estimated, and {errors[0].text} says that all "
                f"are known; {errors[0].multiplied} multiplies the two.",
                own[0],
            )
    seen: set[str] = set()
    for term in terms:
        if term.text in seen:
            refuse(f"{term.text} stands twice.", term)
        seen.add(term.text)
