"""Profile likelihood intervals.

A parameter is held at a value and every other one re-estimated; the interval holds the values at
which twice the log-likelihood lost is below the chi-squared quantile. Covariance parameters are
profiled on the criterion of the fit (the restricted likelihood for REML), fixed effects always on
the full likelihood: a restricted one does not depend on them.

References
----------
Bates, Maechler, Bolker, Walker (2015), doi:10.18637/jss.v067.i01, section 5.1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from bayeslmm.covariance.coordinates import plain_coordinates
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import sd_leaders, sds_and_correlation
from bayeslmm.estimation.constrained import (
    Curve,
    Entry,
    FixedEffect,
    ResidualSd,
    StandardDeviation,
    StratumSd,
    correlation_target,
    make_frame,
)
from bayeslmm.estimation.estimate import Fit, fit_likelihood, search_tolerance
from bayeslmm.estimation.executor import Executor, Tasks, results
from bayeslmm.estimation.held import HeldCurve, HeldEffect, log_units, search_of
from bayeslmm.estimation.signed import canonical, reported
from bayeslmm.likelihood.factorise import single_threaded

Array = NDArray[np.float64]
Kind = Literal["sd", "cor", "sigma", "power_residual", "cor_residual", "beta"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_log = logging.getLogger(__name__)

ROOT_TOLERANCE = 1e-7
"""Relative error of the signed root of the deviance at a limit."""

FARTHEST = 1e6
"""A standard deviation beyond this multiple of its natural scale counts as unbounded."""

NEGLIGIBLE = 1e-6
"""A standard deviation below this multiple of its natural scale counts as zero."""

FAR_LOG = float(np.log(FARTHEST))
"""Farthest from its estimate that the log of a residual standard deviation is looked for."""

FAR_ENTRY = 20.0
"""The same of a power, or of a correlation coordinate: far out correlations are one."""

MAX_TRIALS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileInterval:
    """Profile likelihood interval of one parameter.

    Attributes
    ----------
    kind : {"sd", "cor", "sigma", "power_residual", "cor_residual", "beta"}
        What the parameter is.
    factor : int or None
        Index of the grouping factor (sd, cor).
    coefs : tuple of int
        Index of the coefficient: one for sd and beta, two for cor, none for sigma.
    estimate : float
        The value of the fit; NaN for a correlation with a coefficient that does not vary.
    lower, upper : float
        Limits.
    lower_at_bound, upper_at_bound : bool
        Whether a limit is the end of the parameter space (0, -1, 1 or infinity) because the
        likelihood does not fall far enough before it.
    criterion : {"REML", "ML"}
        What was profiled.
    """

    kind: Kind
    factor: int | None
    coefs: tuple[int, ...]
    estimate: float
    lower: float
    upper: float
    lower_at_bound: bool
    upper_at_bound: bool
    criterion: Literal["REML", "ML"]


def profile_intervals(
    fit: Fit,
    *,
    level: float = 0.95,
    kinds: Iterable[Kind] = KINDS,
    executor: Executor | None = None,
) -> list[ProfileInterval]:
    """Profile likelihood intervals of the parameters of a REML or ML fit.

    Parameters
    ----------
    fit : Fit
        From :func:`bayeslmm.estimation.estimate.fit_likelihood`.
    level : float
        Coverage.
    kinds : iterable of {"sd", "cor", "sigma", "power_residual", "cor_residual", "beta"}
        Which parameters; all by default.
    executor : Executor, optional
        Where the profiles are computed, parameter by parameter; they are the same everywhere. Where
        some parameters are known, the others are profiled here.

    Returns
    -------
    list of ProfileInterval
        Per grouping factor the distinct standard deviations, then the correlations in the order of
        ``Structure.pairs``; standard deviations, powers and correlations of the residuals; the
        fixed effects.

    Raises
    ------
    ValueError
        If the fit is neither REML nor ML, the level is not between 0 and 1, or a kind is unknown.

    Notes
    -----
    The fixed effects of a REML fit are profiled on the full likelihood, around its own maximum;
    `estimate` stays that of the REML fit.
    """
    kinds = tuple(kinds)
    if fit.method not in ("REML", "ML"):
        raise ValueError(f"a profile needs a fit by 'ML' or 'REML', not {fit.method!r}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}")
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kinds of parameters {unknown}; allowed are {sorted(KINDS)}")
    cutoff = float(np.sqrt(chdtri(1, 1.0 - level)))
    if fit.plan.held is not None:
        with single_threaded():
            return _held_intervals(fit, kinds, cutoff)
    items = _wanted(fit, kinds)
    full = fit
    if fit.method == "REML" and any(item[0] == "beta" for item in items):
        with single_threaded():
            full = fit_likelihood(fit.plan, "ML")
    tasks = Tasks(
        make=_profiler,
        parts=(fit, full, cutoff),
        items=items,
        size=len(items),
        title="Profiles",
        label=lambda number: f"Profile {number + 1} of {len(items)} ({items[number][0]})",
    )
    with results(tasks, executor, False) as found:
        return [interval for intervals in found for interval in intervals]


Wanted = tuple[str, *tuple[Any, ...]]
"""What to profile: a standard deviation, a correlation, the residuals or a fixed effect."""


def _wanted(fit: Fit, kinds: Sequence[Kind]) -> list[Wanted]:
    items: list[Wanted] = []
    for factor, structure in enumerate(fit.plan.products.structures):
        if "sd" in kinds:
            items += [("sd", factor, place) for place in sd_leaders(structure).tolist()]
        if "cor" in kinds:
            items += [("cor", factor, pair) for pair in structure.pairs]
    items.append(("residuals", kinds))
    if "beta" in kinds:
        items += [("beta", place) for place in range(len(fit.beta))]
    return items


def _profiler(fit: Fit, full: Fit, cutoff: float) -> Callable[[Wanted], list[ProfileInterval]]:
    """Work of the profiles; `full` is the maximum likelihood estimate."""

    def profile(item: Wanted) -> list[ProfileInterval]:
        what, where = item[0], item[1:]
        if what == "sd":
            return [_sd(fit, where[0], where[1], cutoff)]
        if what == "cor":
            return [_cor(fit, where[0], where[1], cutoff)]
        if what == "residuals":
            return _residuals(fit, where[0], cutoff)
        return [_beta(full, where[0], float(fit.beta[where[0]]), cutoff)]

    return profile


# --- one parameter ---------------------------------------------------------------------


def _sd(fit: Fit, factor: int, coef: int, cutoff: float) -> ProfileInterval:
    target = _sd_target(fit, factor, coef)
    sds, _ = sds_and_correlation(fit.factors[factor])
    estimate = float(sds[coef] * fit.sigma)
    unit = target.unit * fit.sigma
    curve = Curve(target, fit, estimate)
    spread = np.exp(cutoff * _log_sd_error(fit, factor, coef))
    lower = (0.0, True)
    if estimate > NEGLIGIBLE * unit:
        guess = estimate / spread if np.isfinite(spread) else 0.5 * estimate
        lower = _search(curve, estimate, guess, 0.0, cutoff)
    guess = estimate * spread if np.isfinite(spread) else max(2.0 * estimate, 0.1 * unit)
    inside = np.log(max(estimate, 1e-3 * unit))
    log_upper, at_bound = _search(
        curve.on_log_scale, inside, np.log(guess), np.log(FARTHEST * unit), cutoff
    )
    upper = (np.inf if at_bound else float(np.exp(log_upper)), at_bound)
    return _interval(fit, "sd", factor, (coef,), estimate, lower, upper)


def _cor(fit: Fit, factor: int, pair: tuple[int, int], cutoff: float) -> ProfileInterval:
    _, corr = sds_and_correlation(fit.factors[factor])
    estimate = float(corr[pair])
    lowest = _lowest(fit, factor, pair)
    lower, upper = (lowest, True), (1.0, True)
    # A zero sd within the limits leaves the correlation free.
    free = np.isnan(estimate) or any(
        Curve(_sd_target(fit, factor, i), fit, 0.0)(0.0)[0] <= cutoff for i in pair
    )
    if not free:
        angle, farthest = float(np.arccos(estimate)), float(np.arccos(lowest))
        target = correlation_target(fit.plan, fit.method == "REML", factor, pair)
        curve = Curve(target, fit, angle)
        if angle < farthest:
            guess = _cor_guess(fit, factor, pair, estimate, -cutoff, farthest)
            end, at_bound = _search(curve, angle, guess, farthest, cutoff)
            lower = (float(np.cos(end)), at_bound)
        if angle > 0.0:
            guess = _cor_guess(fit, factor, pair, estimate, cutoff, 0.0)
            end, at_bound = _search(curve, angle, guess, 0.0, cutoff)
            upper = (float(np.cos(end)), at_bound)
    return _interval(fit, "cor", factor, pair, estimate, lower, upper)


def _lowest(fit: Fit, factor: int, pair: tuple[int, int]) -> float:
    """Lower end of the range of a correlation."""
    structure = fit.plan.products.structures[factor]
    parts = zip(structure.blocks, structure.parts, strict=True)
    part = next(part for block, part in parts if pair[0] in block)
    return part.lowest if isinstance(part, Pattern) else -1.0


def _sigma(fit: Fit, cutoff: float) -> ProfileInterval:
    centre = float(np.log(fit.sigma))
    curve = Curve(ResidualSd(make_frame(fit.plan, fit.method == "REML")), fit, centre)
    products = fit.plan.products
    error = 1.0 / np.sqrt(2.0 * (products.n_obs - products.n_fixed))
    far = np.log(FARTHEST)
    low, low_at_bound = _search(curve, centre, centre - cutoff * error, centre - far, cutoff)
    high, high_at_bound = _search(curve, centre, centre + cutoff * error, centre + far, cutoff)
    lower = (0.0 if low_at_bound else float(np.exp(low)), low_at_bound)
    upper = (np.inf if high_at_bound else float(np.exp(high)), high_at_bound)
    return _interval(fit, "sigma", None, (), fit.sigma, lower, upper)


def _residuals(fit: Fit, kinds: Sequence[Kind], cutoff: float) -> list[ProfileInterval]:
    """The parameters of the residuals.

    Correlations that cannot be coordinates by themselves, those of a pattern with several, have no
    profile: their limits are NaN.
    """
    structure, start = fit.plan.residual, fit.plan.theta.shape.start
    ratios, powers = len(structure.scales) - 1, len(structure.powers)
    found = []
    if "sigma" in kinds:
        found.append(_sigma(fit, cutoff))
        found += [_stratum(fit, start + i, i, cutoff) for i in range(ratios)]
    if "power_residual" in kinds:
        places = range(ratios, ratios + powers)
        found += [_entry(fit, "power_residual", i, cutoff) for i in places]
    law = structure.correlation
    if "cor_residual" in kinds and law is not None:
        first = len(fit.shape) - structure.n_cors
        alone = [_isolated(fit, i) for i in range(structure.n_cors)]
        found += [
            _entry(one[0], "cor_residual", one[1], cutoff, first + i)
            for i, one in enumerate(alone)
            if one is not None
        ]
        if None in alone:
            _log.info("correlations of this pattern have no profile: use 'wald' or 'bootstrap'")
            unknown = (np.nan, False)
            values = law.correlations(fit.shape[None, first:])[0]
            found += [
                _interval(fit, "cor_residual", None, (), float(value), unknown, unknown)
                for value in values
            ]
    return found


def _isolated(fit: Fit, place: int) -> tuple[Fit, int] | None:
    """The fit in coordinates of which a correlation of the residuals is one; None without such."""
    found, stack = fit.plan.residual.isolated(place, fit.shape), fit.plan.stack
    if found is None or stack is None:
        return None
    structure, shape, at = found
    if structure == fit.plan.residual:
        return fit, at
    turned = replace(stack, law=stack.law.under(structure))
    return replace(fit, plan=replace(fit.plan, stack=turned).at(shape)), at


def _stratum(fit: Fit, entry: int, place: int, cutoff: float) -> ProfileInterval:
    """The standard deviation of a stratum or occasion but the first."""
    centre = float(np.log(fit.sigma) + fit.shape[place])
    curve = Curve(StratumSd(make_frame(fit.plan, fit.method == "REML"), entry), fit, centre)
    error = _error(fit, place) or 0.5
    ends = [
        _search(curve, centre, centre + sign * cutoff * error, centre + sign * FAR_LOG, cutoff)
        for sign in (-1.0, 1.0)
    ]
    lower, upper = ((float(np.exp(value)), at_bound) for value, at_bound in ends)
    return _interval(fit, "sigma", None, (), float(np.exp(centre)), lower, upper)


def _entry(
    fit: Fit, kind: Kind, place: int, cutoff: float, number: int | None = None
) -> ProfileInterval:
    """A parameter of the residuals that is one entry of theta, shown on its natural scale.

    It is the one after the first of the natural parameters with this number, by default its place.
    """
    centre, entry = float(fit.shape[place]), fit.plan.theta.shape.start + place
    curve = Curve(Entry(make_frame(fit.plan, fit.method == "REML"), entry), fit, centre)
    error = _error(fit, place) or 0.5
    ends = [
        _search(curve, centre, centre + sign * cutoff * error, centre + sign * FAR_ENTRY, cutoff)
        for sign in (-1.0, 1.0)
    ]
    shapes = np.tile(fit.shape, (3, 1))
    shapes[:, place] = centre, ends[0][0], ends[1][0]
    natural = np.concatenate(fit.plan.residual.natural(np.ones(3), shapes), axis=1)
    shown = natural[:, 1 + (place if number is None else number)].tolist()
    lower, upper = ((x, at_bound) for x, (_, at_bound) in zip(shown[1:], ends, strict=True))
    return _interval(fit, kind, None, (), shown[0], lower, upper)


def _error(fit: Fit, place: int) -> float:
    """Asymptotic standard error of an entry of the residuals' shape; zero where it has none."""
    at = fit.plan.theta.shape.start + place
    variance = fit.internal_cov[at, at]
    return float(np.sqrt(variance)) if np.isfinite(variance) and variance > 0.0 else 0.0


def _beta(full: Fit, coef: int, estimate: float, cutoff: float) -> ProfileInterval:
    centre, error = float(full.beta[coef]), float(np.sqrt(full.vcov[coef, coef]))
    curve = Curve(FixedEffect(make_frame(full.plan, False), coef), full, centre)
    lower = _search(curve, centre, centre - cutoff * error, -np.inf, cutoff)
    upper = _search(curve, centre, centre + cutoff * error, np.inf, cutoff)
    return _interval(full, "beta", None, (coef,), estimate, lower, upper)


# --- where parameters are known: coordinates by themselves, known ones held -----------------


def _held_intervals(fit: Fit, kinds: Sequence[Kind], cutoff: float) -> list[ProfileInterval]:
    """As :func:`profile_intervals`; limits of known parameters are NaN."""
    profile = _HeldProfile(fit, cutoff)
    coordinates = profile.search.coordinates
    found = []
    for factor, structure in enumerate(coordinates.structures):
        if "sd" in kinds:
            for s, coef in enumerate(sd_leaders(structure).tolist()):
                place = coordinates.sds(factor).start + s
                found.append(profile.interval("sd", place, factor, (coef,)))
        start = coordinates.cors(factor).start
        for part in structure.parts if "cor" in kinds else ():
            at = range(start, start + part.n_cors)
            found += [profile.correlation(place, factor, alone=len(at) == 1) for place in at]
            start = at.stop
    residual, first = coordinates.residual, coordinates.sigma
    law = residual.correlation
    counts: list[tuple[Kind, int]] = [
        ("sigma", len(residual.scales)),
        ("power_residual", len(residual.powers)),
        ("cor_residual", residual.n_cors),
    ]
    for kind, count in counts:
        alone = kind != "cor_residual" or law is None or law.separable
        if kind in kinds:
            places = range(first, first + count)
            found += [profile.interval(kind, place, None, (), alone=alone) for place in places]
        first += count
    if "beta" in kinds and len(fit.beta):
        found += _held_effects(fit, cutoff)
    return found


class _HeldProfile:
    """Profiles of the coordinates of an estimate some of whose parameters are known."""

    def __init__(self, fit: Fit, cutoff: float) -> None:
        self.fit, self.cutoff = fit, cutoff
        self.search = search_of(fit.plan, fit.method == "REML")
        point = canonical(self.search.signed.point(fit.optimum.x))
        self.x = self.search.coordinates.vector(point)[0]
        self.parameters = self.search.report(fit.optimum.x)
        self.errors = np.sqrt(np.maximum(np.diag(fit.parameter_cov), 0.0))

    def curve(self, place: int) -> HeldCurve:
        """The curve of a coordinate."""
        tolerance = search_tolerance(self.fit.plan)
        return HeldCurve(self.search, self.x, self.fit.criterion, place, tolerance)

    def interval(
        self,
        kind: Kind,
        place: int,
        factor: int | None,
        coefs: tuple[int, ...],
        *,
        alone: bool = True,
    ) -> ProfileInterval:
        """The interval of a parameter that is one coordinate."""
        estimate = self._natural(kind, place, self.x[place])
        unknown = (np.nan, False)
        if place in self.search.coordinates.held_places or not alone:
            return _interval(self.fit, kind, factor, coefs, estimate, unknown, unknown)
        curve, centre = self.curve(place), float(self.x[place])
        centre = max(centre, self._zero(place)) if kind == "sd" else centre
        ends = [self._end(curve, kind, place, centre, sign) for sign in (-1, 1)]
        lower, upper = ((self._natural(kind, place, z), at_bound) for z, at_bound in ends)
        lower = (0.0, True) if lower[1] and kind in ("sd", "sigma") else lower
        upper = (np.inf, True) if upper[1] and kind in ("sd", "sigma") else upper
        return _interval(self.fit, kind, factor, coefs, estimate, lower, upper)

    def correlation(self, place: int, factor: int, *, alone: bool) -> ProfileInterval:
        """The interval of a correlation that is alone in its block; NaN for others."""
        coordinates = self.search.coordinates
        sds = coordinates.sds(factor)
        zero = [
            at
            for at in range(sds.start, sds.stop)
            if at not in coordinates.held_places
            and self.curve(at)(self._zero(at))[0] <= self.cutoff
        ]
        if alone and zero and place not in coordinates.held_places:
            part = next(p for p in coordinates.structures[factor].parts if p.n_cors == 1)
            low = part.lowest if isinstance(part, Pattern) else -1.0
            estimate = self._natural("cor", place, self.x[place])
            return _interval(self.fit, "cor", factor, (), estimate, (low, True), (1.0, True))
        return self.interval("cor", place, factor, (), alone=alone)

    def _zero(self, place: int) -> float:
        """Log of a standard deviation that counts as zero."""
        search = self.search
        unit = log_units(search.plan, search.coordinates)[search.signed.log_sds == place]
        return float(np.log(NEGLIGIBLE * self.fit.sigma) + unit[0])

    def _end(
        self, curve: HeldCurve, kind: Kind, place: int, centre: float, sign: int
    ) -> tuple[float, bool]:
        far = FAR_LOG if kind in ("sd", "sigma") else FAR_ENTRY
        error = self.errors[place] if 0.0 < self.errors[place] < 2.0 else 0.5
        bound = centre + sign * far
        guess = centre + sign * self.cutoff * error
        if kind == "sd":
            zero = self._zero(place)
            unit = zero - float(np.log(NEGLIGIBLE))
            bound = zero if sign < 0 else unit + float(np.log(FARTHEST))
            guess = guess if sign < 0 else max(guess, unit + float(np.log(0.1)))
        if bound == centre:
            return centre, True
        return _search(curve, centre, guess, bound, self.cutoff)

    def _natural(self, kind: Kind, place: int, z: float) -> float:
        """A parameter on its natural scale at a coordinate."""
        coordinates = self.search.coordinates
        x = np.where(np.isfinite(self.x), self.x, 0.0)
        x[place] = z
        if kind in ("sd", "sigma"):
            return float(np.exp(z))
        points = coordinates.to_user(coordinates.points(x[None]))
        value = reported(coordinates, points)[0, place]
        return float(value if kind == "power_residual" else np.tanh(value))


def _held_effects(fit: Fit, cutoff: float) -> list[ProfileInterval]:
    full = fit if fit.method == "ML" else fit_likelihood(fit.plan, "ML")
    search, tolerance = search_of(full.plan, False), search_tolerance(full.plan)
    result = []
    for i, estimate in enumerate(fit.beta.tolist()):
        curve = HeldEffect(search, i, full.optimum.x, full.criterion, tolerance)
        centre, error = float(full.beta[i]), float(np.sqrt(full.vcov[i, i]))
        lower = _search(curve, centre, centre - cutoff * error, -np.inf, cutoff)
        upper = _search(curve, centre, centre + cutoff * error, np.inf, cutoff)
        result.append(_interval(full, "beta", None, (i,), estimate, lower, upper))
    return result


def _sd_target(fit: Fit, factor: int, coef: int) -> StandardDeviation:
    return StandardDeviation(make_frame(fit.plan, fit.method == "REML", factor, (coef,)))


def _log_sd_error(fit: Fit, factor: int, coef: int) -> float:
    """Asymptotic standard error of a log sd; infinite where it has none."""
    place = plain_coordinates(fit.plan.products.structures).sds(factor).start + coef
    variance = fit.parameter_cov[place, place]
    return float(np.sqrt(variance)) if 0.0 < variance < 1.0 else np.inf


def _cor_guess(
    fit: Fit,
    factor: int,
    pair: tuple[int, int],
    estimate: float,
    distance: float,
    bound: float,
) -> float:
    """Angle of a correlation some standard errors of its atanh away, else halfway to the bound."""
    structure = fit.plan.products.structures[factor]
    cors = plain_coordinates(fit.plan.products.structures).cors(factor)
    place = cors.start + structure.pairs.index(pair)
    variance = fit.parameter_cov[place, place]
    angle = float(np.arccos(estimate))
    guess = np.nan
    if abs(estimate) < 1.0 and variance > 0.0:
        guess = float(np.arccos(np.tanh(np.arctanh(estimate) + distance * np.sqrt(variance))))
    return guess if 0.0 < (guess - angle) / (bound - angle) < 1.0 else 0.5 * (angle + bound)


def _interval(
    fit: Fit,
    kind: Kind,
    factor: int | None,
    coefs: tuple[int, ...],
    estimate: float,
    lower: tuple[float, bool],
    upper: tuple[float, bool],
) -> ProfileInterval:
    return ProfileInterval(
        kind=kind,
        factor=factor,
        coefs=coefs,
        estimate=estimate,
        lower=lower[0],
        upper=upper[0],
        lower_at_bound=lower[1],
        upper_at_bound=upper[1],
        criterion="REML" if fit.method == "REML" else "ML",
    )


def _search(
    curve: Callable[[float], tuple[float, float]],
    inside: float,
    guess: float,
    bound: float,
    cutoff: float,
) -> tuple[float, bool]:
    """Where a curve that is zero at `inside` reaches the cutoff, and whether that is the bound.

    Newton steps on the root of the deviance, which is nearly linear, within a bracket that grows
    outwards until it holds the limit.
    """
    near, far, value = inside, None, guess
    for _ in range(MAX_TRIALS):
        value = min(value, bound) if bound > inside else max(value, bound)
        root, slope = curve(value)
        if abs(root - cutoff) < ROOT_TOLERANCE * cutoff:
            return value, False
        if root > cutoff:
            far = value
        elif value == bound:
            return bound, True
        else:
            near = value
        if far is not None and abs(far - near) <= 1e-12 * max(abs(far), abs(near)):
            return value, False
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = float(value - np.float64(root - cutoff) / slope)
        if far is None:
            value = _outwards(inside, near, newton)
        else:
            margin = 1e-3 * abs(far - near)
            low, high = min(near, far) + margin, max(near, far) - margin
            value = newton if low < newton < high else 0.5 * (near + far)
    error = abs((bound if far is None else far) - near)
    _log.warning("a profile limit is known to %.2g only", error)
    return value, False


def _outwards(inside: float, near: float, newton: float) -> float:
    """Newton's proposal, its step limited, where no point beyond the limit is known yet."""
    reach = near - inside
    step = newton - near
    if not np.isfinite(step) or step * reach <= 0.0:
        return near + reach
    return near + float(np.sign(reach) * np.clip(abs(step), 0.02 * abs(reach), 3.0 * abs(reach)))
