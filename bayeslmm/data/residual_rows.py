"""A residual structure on data: occasions, times, strata and covariates of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.residual import ResidualFormula, ResidualTerm

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
    """

    formula: ResidualFormula
    structure: Residual
    group: GroupingFactor | None
    occasions: GroupingFactor | None
    arms: GroupingFactor | None
    strata: GroupingFactor | None
    covariates: tuple[Covariate, ...]

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
        """One over the squares (n,) of known standard errors; None without them.

        Raises
        ------
        DataError
            If a standard error is not positive.
        """
        term = self.formula.errors
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

    def rows(self, frame: pd.DataFrame) -> ResidualRows:
        """The structure's columns of complete rows; groups may be new.

        Raises
        ------
        DataError
            If an occasion, stratum or arm is new, or an occasion stands twice in a group.
        """
        n = len(frame)
        group = None
        if self.group is not None:
            group = new_levels(self.group, frame, lookup_levels(self.group, frame))[0]
        term = self.formula.correlation
        arm = _known(self.arms, frame, "an arm of the residuals")
        occasion = None
        if self.occasions is not None:
            occasion = _known(self.occasions, frame, "an occasion of the residuals")
        place = None if term is None or group is None else _places(term, frame, group, occasion)
        log_sd = self._log_sds(frame, arm, occasion)
        if term is not None and group is not None and place is not None:
            _check_groups(self, term, group, arm, place)
        return ResidualRows(
            group=group,
            place=place,
            arm=np.zeros(n, dtype=np.intp) if arm is None else arm,
            log_sd=log_sd,
        )

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
    spec: ResidualSpec, term: ResidualTerm, group: Indices, arm: Indices | None, place: Array
) -> None:
    """Refuse a group with two rows at one place, or in two arms."""
    table = pd.DataFrame(place.reshape(len(group), -1)).assign(group=group)
    twice = table.duplicated().to_numpy()
    name = ":".join(term.group)
    known = [] if spec.group is None else spec.group.levels.tolist()

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


def residual_spec(formula: ResidualFormula, frame: pd.DataFrame) -> ResidualSpec:
    """Find the levels, times and covariates of a residual structure.

    Parameters
    ----------
    formula : ResidualFormula
        The structure.
    frame : pandas.DataFrame
        The complete rows of a model.

    Returns
    -------
    ResidualSpec

    Raises
    ------
    DataError
        If the structure cannot be had on these data.
    """
    term, strata = formula.correlation, formula.strata
    arms = None if term is None or term.arm is None else _levels(frame, [term.arm], term)
    strata_levels = None if strata is None else _levels(frame, strata.place, strata)
    group = None if term is None else _levels(frame, term.group, term, least=1)
    occasions = None
    if term is not None and term.kind not in DECAYS and term.place != ("1",):
        occasions = _occasions(frame, term)
    covariates = tuple(_covariate(one, frame) for one in formula.powers)
    scales = _scales(term, occasions, arms, strata_levels)
    correlation = None if term is None else _correlation(term, frame, group, occasions, arms)
    return ResidualSpec(
        formula=formula,
        structure=Residual(
            scales=scales,
            powers=tuple(f"{POWERS[one.kind]}[{one.place[0]}]" for one in formula.powers),
            correlation=correlation,
            cors=_cor_labels(correlation, occasions, arms),
            arms=("",) if arms is None else tuple(map(str, arms.levels)),
        ),
        group=group,
        occasions=occasions,
        arms=arms,
        strata=strata_levels,
        covariates=covariates,
    )


def _levels(
    frame: pd.DataFrame, names: Sequence[str], term: ResidualTerm, least: int = 2
) -> GroupingFactor:
    for name in names:
        if is_continuous(frame[name]):
            raise DataError(
                f"{term.text}: `{name}` holds fractions, so that its values are no levels; make "
                "classes of it, e.g. with pandas.cut."
            )
    factor = grouping_factor(frame, names)[1]
    if len(factor.levels) < least:
        raise DataError(
            f"{term.text}: `{factor.name}` has one level, {factor.levels[0]!r}, in the complete "
            "rows, so that there is nothing to tell apart; take it out."
        )
    return factor


def _occasions(frame: pd.DataFrame, term: ResidualTerm) -> GroupingFactor | None:
    """The occasions as levels; none for whole times of ``ar1``, which has one variance."""
    name = term.place[0]
    if term.kind == "ar1" and _is_numeric(frame[name]):
        return None
    if is_continuous(frame[name]):
        raise DataError(
            f"{term.text}: `{name}` holds fractions, so that its values are no occasions; "
            f"car1({name} | {':'.join(term.group)}) takes times."
        )
    factor = _levels(frame, [name], term)
    if len(factor.levels) > MOST_OCCASIONS and term.kind != "ar1":
        raise DataError(
            f"{term.text} has {len(factor.levels)} occasions; at most {MOST_OCCASIONS} are "
            "supported. ar1, car1 and exp take any number of times."
        )
    return factor


def _covariate(term: ResidualTerm, frame: pd.DataFrame) -> Covariate:
    log = term.kind == "power"
    plain = Covariate(column=term.place[0], log=log, centre=0.0, scale=1.0)
    values = plain.values(frame)
    if not np.ptp(values) > 0.0:
        raise DataError(f"{term.text}: `{term.place[0]}` has the same value in all complete rows.")
    scale = 1.0 if log else float(np.std(values, ddof=1))
    return Covariate(column=term.place[0], log=log, centre=float(values.mean()), scale=scale)


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
    if correlation is None:
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


def _correlation(
    term: ResidualTerm,
    frame: pd.DataFrame,
    group: GroupingFactor | None,
    occasions: GroupingFactor | None,
    arms: GroupingFactor | None,
) -> Correlation:
    assert group is not None
    n_arms = 1 if arms is None else len(arms.levels)
    codes = grouping_factor(frame, term.group)[0]
    if not np.any(np.bincount(codes) > 1):
        raise DataError(
            f"{term.text}: no `{group.name}` has more than one row, so that nothing is known of "
            "correlations within it."
        )
    if term.kind.startswith("ar1"):
        return OverDistance("ar1", 1.0, n_arms)
    if term.kind in DECAYS:
        return OverDistance(DECAYS[term.kind], _typical_distance(term, frame, codes), n_arms)
    size = int(np.bincount(codes).max()) if occasions is None else len(occasions.levels)
    if term.kind == "us":
        return OverOccasions(Unstructured(size, (tuple(range(size)),)), n_arms)
    return OverOccasions(PATTERNS[term.kind.removesuffix("h")](size, True), n_arms)


def _typical_distance(term: ResidualTerm, frame: pd.DataFrame, codes: Indices) -> float:
    """Median distance between successive times, or between all rows of a group in the plane."""
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
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if len(gaps) else 1.0
