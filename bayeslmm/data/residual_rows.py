"""A residual structure on data: occasions, times, strata and covariates of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.ante_dependence import AnteDependence
from bayeslmm.covariance.compound_symmetry import CompoundSymmetry
from bayeslmm.covariance.distance import Decay, OverDistance
from bayeslmm.covariance.moving_average import MovingAverage
from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.residual import Correlation, Residual, ResidualRows
from bayeslmm.covariance.toeplitz import Toeplitz
from bayeslmm.covariance.unstructured import Unstructured
from bayeslmm.data.grouping import (
    GroupingFactor,
    grouping_factor,
    is_continuous,
    lookup_levels,
    new_levels,
)
from bayeslmm.data.known_covariance import KnownCovariance
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.residual import KNOWN, ResidualFormula, ResidualTerm

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

POWERS = {"power": "power_residual", "exp": "exponent_residual"}
"""Names of the coefficients of covariates."""

PATTERNS: dict[str, Callable[[int, bool], Pattern]] = {
    "cs": CompoundSymmetry,
    "toep": Toeplitz,
    "ad": AnteDependence,
    "ma1": MovingAverage,
}
"""Correlations over occasions that have a pattern, by the name without its h."""

DECAYS: dict[str, Decay] = {"car1": "car1", "exp": "exp", "gau": "gau"}
"""Functions of a distance that need not be whole."""

MOST_OCCASIONS = 60
"""Occasions of a structure over them: 1770 correlations."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Covariate:
    """A column in the log standard deviation, ``coefficient * (g(x) - centre) / scale``.

    Attributes
    ----------
    column : str
    log : bool
        Whether g is the logarithm.
    centre, scale : float
        The mean and, but for a logarithm, the standard deviation of g(x) over the rows.
    """

    column: str
    log: bool
    centre: float
    scale: float

    def values(self, frame: pd.DataFrame) -> Array:
        """Coefficients (n,) in the log standard deviation of rows."""
        x = numbers(frame, self.column, "power()" if self.log else "exp()")
        if self.log and np.any(x <= 0.0):
            raise DataError(
                f"power({self.column}) needs positive values, and {int(np.sum(x <= 0))} of "
                f"{len(x)} are not; exp({self.column}) takes any."
            )
        return np.asarray(((np.log(x) if self.log else x) - self.centre) / self.scale)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ResidualSpec:
    """What a model knows of its residual structure without rows.

    Attributes
    ----------
    formula : ResidualFormula
    structure : Residual
    group, occasions, arms, strata : GroupingFactor or None
        The levels of each; occasions only where they are levels and not times.
    covariates : tuple of Covariate
    known : KnownCovariance or None
        The known covariance matrix, whose labels are the occasions.
    """

    formula: ResidualFormula
    structure: Residual
    group: GroupingFactor | None
    occasions: GroupingFactor | None
    arms: GroupingFactor | None
    strata: GroupingFactor | None
    covariates: tuple[Covariate, ...]
    known: KnownCovariance | None = None

    @property
    def dim(self) -> str:
        """What the standard deviations are by: "occasion", "stratum", or nothing."""
        term = self.formula.correlation
        if term is not None and term.per_occasion:
            return "occasion"
        return "stratum" if self.strata is not None or self.arms is not None else ""

    @property
    def nlme_names(self) -> list[str]:
        """Names of nlme's parameters of this structure."""
        law = self.structure
        name = "" if law.correlation is None else law.correlation.nlme_name
        words = {"power": "varPower", "exp": "varExp"}
        return [
            "sigma",
            *(f"varIdent[{label}]" for label in law.scales[1:]),
            *(f"{words[one.kind]}[{one.place[0]}]" for one in self.formula.powers),
            *(f"{name}[{label}]" if label else name for label in law.cors),
        ]

    def nlme(self, sds: Array, powers: Array, cors: Array) -> Array:
        """Nlme's parameters (S, 1 + r) from standard deviations, powers and correlations."""
        centres = np.array([c.centre for c in self.covariates])
        deltas = powers / np.array([c.scale for c in self.covariates])
        sigma = sds[:, :1] * np.exp(-deltas @ centres)[:, None]
        law = self.structure.correlation
        own = cors if law is None else law.nlme(cors)
        return np.concatenate([sigma, sds[:, 1:] / sds[:, :1], deltas, own], axis=1)

    def precisions(self, frame: pd.DataFrame) -> Array | None:
        """One over known variances (n,); None without them."""
        if self.known is not None:
            return 1.0 / self.known.matrix.diagonal()[_need(self._occasion(frame))]
        return precisions(self.formula, frame)

    def rows(self, frame: pd.DataFrame) -> ResidualRows:
        """The structure's columns of complete rows; groups may be new.

        Raises
        ------
        DataError
            If an occasion, stratum or arm is new, or an occasion stands twice in a group.
        """
        group = None
        if self.group is not None:
            group = new_levels(self.group, frame, lookup_levels(self.group, frame))[0]
        return self._rows(frame, group, self.group)

    def rows_apart(self, frame: pd.DataFrame) -> ResidualRows:
        """The same with groups numbered from 0, whether the model knows them or not."""
        if self.group is None:
            return self._rows(frame, None, None)
        codes, factor = grouping_factor(frame, self.group.factors)
        return self._rows(frame, codes, factor)

    def _rows(
        self, frame: pd.DataFrame, group: Indices | None, known: GroupingFactor | None
    ) -> ResidualRows:
        term = self.formula.correlation
        arm = _known(self.arms, frame, "an arm of the residuals")
        occasion = self._occasion(frame)
        place = None if term is None or group is None else _places(term, frame, group, occasion)
        log_sd = self._log_sds(frame, arm, occasion)
        if term is not None and group is not None and place is not None:
            labels = [] if known is None else known.levels.tolist()
            _check_groups(self, term, group, arm, place, labels)
        return ResidualRows(
            group=group,
            place=place,
            arm=np.zeros(len(frame), dtype=np.intp) if arm is None else arm,
            log_sd=log_sd,
        )

    def _occasion(self, frame: pd.DataFrame) -> Indices | None:
        known = self.known is not None
        words = "a row of the known covariance matrix" if known else "an occasion of the residuals"
        return _known(self.occasions, frame, words)

    def together(self, old: ResidualRows, new: ResidualRows) -> ResidualRows:
        """Rows of the model and then other rows of the same groups.

        Where places are the order of rows, the others come after those of the model.

        Raises
        ------
        DataError
            If one of the others is in a group at a place where the model has a row, or in an arm
            that its group is not in.
        """
        term = self.formula.correlation
        group, place, levels = new.group, new.place, self.group
        assert term is not None and levels is not None and old.group is not None
        assert group is not None and place is not None
        if term.place == ("1",):
            place = place + np.bincount(old.group, minlength=int(group.max(initial=0)) + 1)[group]
            new = replace(new, place=place)
        both = old.followed_by(new)
        table = pd.DataFrame(np.asarray(both.place).reshape(both.n, -1)).assign(group=both.group)
        twice = table.duplicated().to_numpy()[old.n :]
        if twice.any():
            row = int(twice.argmax())
            raise DataError(
                f"{term.text}: the data of the model have a row of `{levels.levels[group[row]]}` "
                f"of {levels.name} at `{'`, `'.join(term.place)}` "
                f"{_shown_place(self, term, place[row])}, as "
                f"{int(twice.sum())} of {new.n} rows to predict have, and its residual is known. "
                'Take such rows out, or draw residuals anew: residuals="new".'
            )
        arm = np.zeros(int(max(old.group.max(), group.max())) + 1, dtype=np.intp)
        arm[old.group] = old.arm
        strange = np.isin(group, old.group) & (arm[group] != new.arm)
        if strange.any():
            level = levels.levels[group[int(strange.argmax())]]
            raise DataError(
                f"{term.text}: `{level}` of {levels.name} has another value of `{term.arm}` in "
                "the rows to predict than in the data of the model; it must be constant within a "
                "group."
            )
        return both

    def _log_sds(self, frame: pd.DataFrame, arm: Indices | None, occasion: Indices | None) -> Array:
        """Coefficients (n, m + q) of the log standard deviations."""
        code = np.zeros(len(frame), dtype=np.intp)
        if self.strata is not None:
            code = _need(_known(self.strata, frame, "a stratum of the residuals"))
        if arm is not None:
            code = arm
        if self.dim == "occasion":
            assert self.occasions is not None
            code = code * len(self.occasions.levels) + _need(occasion)
        scales = (code[:, None] == np.arange(len(self.structure.scales))).astype(float)
        return np.column_stack([scales, *(c.values(frame) for c in self.covariates)])


def _need(codes: Indices | None) -> Indices:
    assert codes is not None
    return codes


def check_weights_once(formula: ResidualFormula) -> None:
    """Raise DataError for known standard errors beside precision weights."""
    if formula.errors is not None:
        raise DataError(
            f"weights= and {formula.errors.text} both say how variances of rows differ: give one "
            "of them, such as standard errors divided by the root of the weights."
        )


def precisions(formula: ResidualFormula, frame: pd.DataFrame) -> Array | None:
    """One over the squares (n,) of known standard errors; None without them.

    Raises
    ------
    DataError
        If a standard error is not positive.
    """
    term = formula.errors
    if term is None:
        return None
    errors = numbers(frame, term.place[0], "se()")
    if np.any(errors <= 0.0):
        bad = errors[errors <= 0.0]
        raise DataError(
            f"{term.text}: standard errors must be positive, and {len(bad)} of {len(errors)} "
            f"are not, such as {bad[0]:g}; drop these rows."
        )
    with np.errstate(over="ignore", divide="ignore"):
        result = np.asarray(1.0 / errors**2)
    if not np.all(np.isfinite(result) & (result > 0.0)):
        raise DataError(
            f"{term.text}: the squares of the standard errors, which go from "
            f"{errors.min():.3g} to {errors.max():.3g}, leave double precision; change the "
            "units of the response."
        )
    return result


def numbers(frame: pd.DataFrame, column: str, where: str) -> Array:
    """A column as numbers.

    Raises
    ------
    DataError
        If it holds something else.
    """
    if not _is_numeric(frame[column]):
        raise DataError(f"`{column}` in {where} of the residuals must hold numbers.")
    return frame[column].to_numpy(dtype=np.float64)


def _known(factor: GroupingFactor | None, frame: pd.DataFrame, what: str) -> Indices | None:
    """Levels (n,) of rows, all of which must be known."""
    if factor is None:
        return None
    codes = lookup_levels(factor, frame)
    if np.any(codes < 0):
        rows = frame[list(factor.factors)][codes < 0].drop_duplicates().head(5)
        new = listed([":".join(map(str, row)) for row in rows.itertuples(index=False)])
        raise DataError(
            f"{new} of `{factor.name}` is not {what} in the data of the model; there are "
            f"{listed(factor.levels.tolist())}."
        )
    return codes


def _places(
    term: ResidualTerm, frame: pd.DataFrame, group: Indices, occasion: Indices | None
) -> Array:
    """Occasions (n,), times (n,) or coordinates (n, d)."""
    if term.place == ("1",):
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        within = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
        place = np.empty(len(group))
        place[order] = within
        return place
    if term.kind in DECAYS:
        columns = [numbers(frame, name, term.text) for name in term.place]
        return columns[0] if len(columns) == 1 else np.column_stack(columns)
    if term.kind.startswith("ar1") and _is_numeric(frame[term.place[0]]):
        times = numbers(frame, term.place[0], term.text)
        if np.any(times != np.rint(times)):
            raise DataError(
                f"{term.text} needs whole times or the levels of a factor, and "
                f"`{term.place[0]}` has fractions; car1({term.place[0]} | "
                f"{':'.join(term.group)}) takes any times."
            )
        return times
    return _need(occasion).astype(np.float64)


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(
        column.dtype
    )


def _check_groups(
    spec: ResidualSpec,
    term: ResidualTerm,
    group: Indices,
    arm: Indices | None,
    place: Array,
    known: Sequence[str],
) -> None:
    """Refuse a group with two rows at one place, or in two arms."""
    table = pd.DataFrame(place.reshape(len(group), -1)).assign(group=group)
    twice = table.duplicated().to_numpy()
    name = ":".join(term.group)

    def label(row: int) -> str:
        code = int(group[row])
        return f"`{known[code]}` of {name}" if code < len(known) else f"a group of {name}"

    if twice.any():
        row = int(twice.argmax())
        shown = _shown_place(spec, term, place[row])
        raise DataError(
            f"{term.text}: {label(row)} has two rows at `{'`, `'.join(term.place)}` {shown} "
            f"({int(twice.sum())} such rows in all); a group has one row per "
            f"{'occasion' if spec.occasions is not None else 'place'}. Add a variable to the "
            "group, or average."
        )
    if arm is not None:
        first = np.full(int(group.max()) + 1, -1)
        first[group[::-1]] = arm[::-1]
        if np.any(first[group] != arm):
            row = int(np.argmax(first[group] != arm))
            raise DataError(
                f"{term.text}: {label(row)} has rows of two values of `{term.arm}`, which must be "
                "constant within a group."
            )


def _shown_place(spec: ResidualSpec, term: ResidualTerm, place: Array) -> str:
    """A place (d,) or () in words."""
    at = np.ravel(place)
    if spec.occasions is None or term.kind in DECAYS or term.kind.startswith("ar1"):
        return ", ".join(f"{value:g}" for value in at)
    return str(spec.occasions.levels[int(at[0])])


# --- building --------------------------------------------------------------------------


def residual_spec(
    formula: ResidualFormula, frame: pd.DataFrame, known: KnownCovariance | None = None
) -> ResidualSpec:
    """Find the levels, times and covariates of a residual structure.

    Parameters
    ----------
    formula : ResidualFormula
        The structure.
    frame : pandas.DataFrame
        The complete rows of a model.
    known : KnownCovariance, optional
        The known covariance matrix, with labels, that the structure names.

    Returns
    -------
    ResidualSpec

    Raises
    ------
    DataError
        If the structure cannot be had on these data.
    """
    check_columns(formula, frame)
    levels = {
        role: grouping_factor(frame, names) for role, names in level_columns(formula, frame).items()
    }
    term, group = formula.correlation, levels.get("group")
    sizes = np.zeros(0, dtype=np.intp) if group is None else np.bincount(group[0])
    unit = 1.0
    if term is not None and group is not None and has_unit(term):
        unit = _median(typical_distances(term, frame, group[0]))
    facts = ResidualFacts(
        levels={role: factor for role, (_, factor) in levels.items()},
        covariates=tuple(_covariate(one, frame) for one in formula.powers),
        largest=int(sizes.max(initial=0)),
        unit=unit,
        known=known,
    )
    spec = spec_of_facts(formula, facts)
    if known is not None and spec.group is not None:
        known.check_rows(spec.rows(frame), frame, spec.group)
    return spec


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ResidualFacts:
    """What a residual structure has to know of all rows.

    Attributes
    ----------
    levels : mapping of str to GroupingFactor
        By their role, as :func:`level_columns` names them.
    covariates : tuple of Covariate
    largest : int
        Rows of the largest group.
    unit : float
        Distance at which a correlation that falls with distance is its parameter.
    known : KnownCovariance or None
        A known covariance matrix.
    """

    levels: Mapping[str, GroupingFactor]
    covariates: tuple[Covariate, ...]
    largest: int
    unit: float
    known: KnownCovariance | None = None


def spec_of_facts(formula: ResidualFormula, facts: ResidualFacts) -> ResidualSpec:
    """The structure, from what is known of all rows.

    Raises
    ------
    DataError
        If the structure cannot be had on these data.
    """
    term, levels = formula.correlation, facts.levels
    for role, one in (("arms", term), ("strata", formula.strata), ("occasions", term)):
        if role in levels and one is not None:
            _check_several(levels[role], one)
    occasions, arms, strata = (levels.get(role) for role in ("occasions", "arms", "strata"))
    if facts.known is not None:
        occasions = facts.known.factor
    if term is not None and facts.known is None and occasions is not None and term.kind != "ar1":
        _check_occasions(occasions, term)
    correlation = None if term is None else _correlation(term, facts)
    return ResidualSpec(
        formula=formula,
        structure=Residual(
            scales=_scales(term, occasions, arms, strata),
            powers=tuple(f"{POWERS[one.kind]}[{one.place[0]}]" for one in formula.powers),
            correlation=correlation,
            cors=_cor_labels(correlation, occasions, arms),
            arms=("",) if arms is None else tuple(map(str, arms.levels)),
        ),
        group=levels.get("group"),
        occasions=occasions,
        arms=arms,
        strata=strata,
        covariates=facts.covariates,
        known=facts.known,
    )


def level_columns(formula: ResidualFormula, frame: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Columns whose values are levels, by what these are: arms, strata, groups, occasions.

    Whole times of ``ar1`` are no occasions, as it has one variance.
    """
    term, found = formula.correlation, dict[str, tuple[str, ...]]()
    if term is not None and term.arm is not None:
        found["arms"] = (term.arm,)
    if formula.strata is not None:
        found["strata"] = formula.strata.place
    if term is not None:
        found["group"] = term.group
        untimed = term.kind not in (*DECAYS, *KNOWN) and term.place != ("1",)
        if untimed and not (term.kind == "ar1" and _is_numeric(frame[term.place[0]])):
            found["occasions"] = term.place
    return found


def check_columns(formula: ResidualFormula, frame: pd.DataFrame) -> None:
    """Raise DataError for columns with fractions where levels are meant."""
    term, strata = formula.correlation, formula.strata
    roles = level_columns(formula, frame)
    for role, one in (("arms", term), ("strata", strata), ("group", term), ("occasions", term)):
        for name in roles.get(role, ()):
            if one is None or not is_continuous(frame[name]):
                continue
            if role == "occasions":
                raise DataError(
                    f"{one.text}: `{name}` holds fractions, so that its values are no occasions; "
                    f"car1({name} | {':'.join(one.group)}) takes times."
                )
            raise DataError(
                f"{one.text}: `{name}` holds fractions, so that its values are no levels; make "
                "classes of it, e.g. with pandas.cut."
            )


def _check_several(factor: GroupingFactor, term: ResidualTerm) -> None:
    if len(factor.levels) < 2:
        raise DataError(
            f"{term.text}: `{factor.name}` has one level, {factor.levels[0]!r}, in the complete "
            "rows, so that there is nothing to tell apart; take it out."
        )


def _check_occasions(factor: GroupingFactor, term: ResidualTerm) -> None:
    if len(factor.levels) > MOST_OCCASIONS:
        raise DataError(
            f"{term.text} has {len(factor.levels)} occasions; at most {MOST_OCCASIONS} are "
            "supported. ar1, car1 and exp take any number of times."
        )


def _covariate(term: ResidualTerm, frame: pd.DataFrame) -> Covariate:
    values = plain_covariate(term).values(frame)
    sd = float(np.std(values, ddof=1))
    return covariate(term, float(values.mean()), sd, constant=not np.ptp(values) > 0.0)


def plain_covariate(term: ResidualTerm) -> Covariate:
    """The covariate of a term as it is, neither centred nor scaled."""
    return Covariate(column=term.place[0], log=term.kind == "power", centre=0.0, scale=1.0)


def covariate(term: ResidualTerm, mean: float, sd: float, *, constant: bool) -> Covariate:
    """The covariate of a term, centred and scaled by what it is over all rows."""
    if constant:
        raise DataError(f"{term.text}: `{term.place[0]}` has the same value in all complete rows.")
    plain = plain_covariate(term)
    return replace(plain, centre=mean, scale=1.0 if plain.log else sd)


def _scales(
    term: ResidualTerm | None,
    occasions: GroupingFactor | None,
    arms: GroupingFactor | None,
    strata: GroupingFactor | None,
) -> tuple[str, ...]:
    """Labels of the standard deviations."""
    outer = arms or strata
    labels = [""] if outer is None else [str(level) for level in outer.levels]
    if term is None or not term.per_occasion or occasions is None:
        return tuple(labels)
    inner = [str(level) for level in occasions.levels]
    if outer is None:
        return tuple(inner)
    return tuple(f"{occasion}, {label}" for label in labels for occasion in inner)


def _cor_labels(
    correlation: Correlation | None,
    occasions: GroupingFactor | None,
    arms: GroupingFactor | None,
) -> tuple[str, ...]:
    """Labels of the correlations that determine all others, arm after arm."""
    if correlation is None or not correlation.n_cors:
        return ()
    own = [""]
    if isinstance(correlation, OverOccasions) and correlation.structure.n_cors > 1:
        size = correlation.structure.n_coefs
        names = list(map(str, range(1, size + 1))) if occasions is None else occasions.levels
        pairs = (sorted(pair) for pair in correlation.structure.pairs)
        own = [f"{names[i]}, {names[j]}" for i, j in pairs]
    if arms is None:
        return tuple(own)
    return tuple(f"{label}, {arm}" if label else str(arm) for arm in arms.levels for label in own)


def _correlation(term: ResidualTerm, facts: ResidualFacts) -> Correlation:
    if facts.known is not None:
        return facts.known.correlation
    group, arms = facts.levels["group"], facts.levels.get("arms")
    occasions = facts.levels.get("occasions")
    n_arms = 1 if arms is None else len(arms.levels)
    if facts.largest < 2:
        raise DataError(
            f"{term.text}: no `{group.name}` has more than one row, so that nothing is known of "
            "correlations within it."
        )
    if term.kind.startswith("ar1"):
        return OverDistance("ar1", 1.0, n_arms)
    if term.kind in DECAYS:
        return OverDistance(DECAYS[term.kind], facts.unit, n_arms)
    size = facts.largest if occasions is None else len(occasions.levels)
    if term.kind == "us":
        return OverOccasions(Unstructured(size, (tuple(range(size)),)), n_arms)
    return OverOccasions(PATTERNS[term.kind.removesuffix("h")](size, True), n_arms)


def has_unit(term: ResidualTerm) -> bool:
    """Whether the parameter of a correlation is that at a typical distance of the rows."""
    return term.kind in DECAYS


def typical_distances(term: ResidualTerm, frame: pd.DataFrame, codes: Indices) -> Array:
    """Positive distances between successive times, or between all rows of a group in the plane."""
    place = _places(term, frame, codes, None)
    if term.kind == "car1":
        order = np.lexsort((place, codes))
        gaps = np.diff(place[order])[np.diff(codes[order]) == 0]
    else:
        place = place.reshape(len(codes), -1)
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        gaps = np.concatenate(
            [
                np.sqrt(np.sum((place[part][:, None] - place[part]) ** 2, axis=-1))[
                    np.triu_indices(len(part), 1)
                ]
                for part in parts
            ]
        )
    return gaps[gaps > 0]


def _median(distances: Array) -> float:
    return float(np.median(distances)) if len(distances) else 1.0
