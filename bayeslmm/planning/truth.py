"""What is taken to be true in a planned study: one set of parameters, or draws of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.estimate import Fit, points_of_fits
from bayeslmm.estimation.residuals import draw_residuals
from bayeslmm.exceptions import PriorError, listed
from bayeslmm.priors.defaults import labels_of, resolve_priors
from bayeslmm.priors.fixed import fixed_by_slot, held_by
from bayeslmm.priors.keys import slot_names
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import joint_parameter, label_index, parameters

Array = NDArray[np.float64]

DRAWS = 4000
"""Draws from distributions that stand for the truth."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Parameters from which data are simulated.

    Attributes
    ----------
    points : Points
        S sets of parameters, the fixed effects (S, p) among them. Each simulation takes one at
        random.
    """

    points: Points

    @property
    def known(self) -> bool:
        """Whether there is one set of parameters."""
        return len(self.points.sigma) == 1

    def draw(self, rng: np.random.Generator) -> Points:
        """One set of parameters."""
        size = len(self.points.sigma)
        place = int(rng.integers(size)) if size > 1 else 0
        return self.points.take(slice(place, place + 1))

    def table(self, design: Design) -> pd.DataFrame:
        """Value by parameter; mean and standard deviation where it is not one."""
        joint = JointDraws(
            shape=(1, len(self.points.sigma)),
            beta=self.points.beta,
            points=self.points,
            effects=lambda wanted: [],
        )
        rows = parameters(design)
        values = np.array([joint_parameter(joint, row) for row in rows])
        table = pd.DataFrame({"mean": values.mean(axis=1)}, index=label_index(rows))
        if self.known:
            return table.rename(columns={"mean": "value"})
        return table.assign(sd=values.std(axis=1))


def simulate_response(design: Design, points: Points, rng: np.random.Generator) -> Array:
    """Response (n,) at one set of parameters, with new random effects and residuals."""
    random = []
    for factor, root in zip(design.random, points.roots, strict=True):
        z = rng.standard_normal((factor.n_levels, factor.n_coefs))
        random.append(factor.effects(z @ root[0].T)[None])
    mean = linear_predictor(design, points.beta, random)
    return np.asarray((mean + draw_residuals(design, points, rng))[0])


def truth_of_fit(fit: Fit) -> Truth:
    """The estimate."""
    return Truth(replace(points_of_fits([fit]), beta=fit.beta[None]))


def truth_of_draws(joint: JointDraws) -> Truth:
    """Draws of a posterior."""
    return Truth(replace(joint.points, beta=joint.beta))


def truth_of_priors(priors: Priors) -> Truth:
    """Draws from the prior.

    Raises
    ------
    PriorError
        If a prior is flat.
    """
    return Truth(priors.sample(np.random.default_rng(0), DRAWS))


def truth_of_values(design: Design, given: Mapping[str, Any]) -> Truth:
    """Parameters by name.

    Parameters
    ----------
    design : Design
        The design.
    given : mapping of str to number, matrix or distribution
        By the names that ``priors=`` and ``fixed=`` have; distributions also in Stan's words, as
        ``priors=`` reads them. Coefficients that are not named are zero,
        and so are correlations of random effects.

    Raises
    ------
    PriorError
        If a name is unknown, a value is out of range, or a standard deviation or a parameter of
        the residuals is not there.
    """
    if not isinstance(given, Mapping):
        raise PriorError(
            f"truth={given!r}: a mapping from parameters to values is expected, such as "
            "{'Days': 10, 'sd[Subject]': 25, 'sigma': 30}."
        )
    numbers = {key: value for key, value in given.items() if _is_value(value)}
    uncertain = {key: value for key, value in given.items() if key not in numbers}
    beta = _coefficients(design, numbers)
    others = {key: value for key, value in numbers.items() if _coefficient(design, key) is None}
    known = replace(design, spec=replace(design.spec, known={**design.spec.known, **others}))
    known = _with_zero_correlations(known, set(uncertain))
    if uncertain:
        return _uncertain(known, uncertain, beta)
    points = _known_points(known)
    return Truth(replace(points, beta=beta[None]))


def truth_at(truth: Truth, changes: Mapping[str, Any], design: Design) -> Truth:
    """A truth with other fixed effects, by the names of coefficients.

    Raises
    ------
    PriorError
        If a name is of no coefficient, or a value is not a finite number.
    """
    unknown = [key for key in changes if _coefficient(design, key) is None]
    if unknown:
        raise PriorError(
            f"{listed(list(map(repr, unknown)))}: only coefficients can be changed; they are "
            f"{', '.join(design.coefs)}."
        )
    beta = truth.points.beta.copy()
    for key, value in changes.items():
        beta[:, _coefficient(design, key)] = _finite(key, value)
    return Truth(replace(truth.points, beta=beta))


# --- values by name --------------------------------------------------------------------


def _is_value(value: Any) -> bool:
    """Whether something is a number or a matrix, and not a distribution."""
    return isinstance(value, bool | Real | list | tuple | np.ndarray | pd.DataFrame | None)


def _coefficient(design: Design, key: str) -> int | None:
    """Place of a coefficient by its label or ``beta[label]``."""
    for place, coef in enumerate(design.coefs):
        if key in (coef, f"beta[{coef}]"):
            return place
    return None


def _finite(key: str, value: Any) -> float:
    if isinstance(value, bool | str) or np.ndim(value) or not np.isfinite(float(value)):
        raise PriorError(f"truth: {key!r} must be a finite number; got {value!r}.")
    return float(value)


def _coefficients(design: Design, numbers: Mapping[str, Any]) -> Array:
    beta = np.zeros(design.p)
    for key, value in numbers.items():
        if key in design.aliased:
            raise PriorError(
                f"truth: the coefficient {key!r} is a combination of the others in this design, "
                "and not in the model."
            )
        if (place := _coefficient(design, key)) is not None:
            beta[place] = _finite(key, value)
    return beta


def _with_zero_correlations(design: Design, uncertain: set[str]) -> Design:
    """The design with what is known, correlations of random effects that are not named at zero."""
    labels, spec = labels_of(design.spec), design.spec
    try:
        found = fixed_by_slot(labels, spec)
    except PriorError as error:
        names = ", ".join((*design.coefs, *list(slot_names(labels).values())[design.p :]))
        words = str(error).replace("fixed:", "truth:")
        raise PriorError(f"{words} The parameters of this study are {names}.") from error
    zero, missing = {}, []
    for slot, name in slot_names(labels).items():
        kind, factor, place = slot
        general = {kind, f"{kind}[{labels.factors[factor]}]"} if kind in ("sd", "cor") else {kind}
        if kind == "beta" or slot in found or uncertain & {name, *general}:
            continue
        if kind == "cor":
            part = labels.structures[factor].parts[place]
            zero[name] = 0.0 if part.n_cors == 1 else np.eye(part.n_coefs)
        else:
            missing.append(name)
    if missing:
        raise PriorError(f"truth lacks {listed(missing)}: give the value in units of the response.")
    return replace(design, spec=replace(spec, known={**spec.known, **zero}))


def _known_points(design: Design) -> Points:
    """Covariance parameters, all of which are known."""
    held = held_by(labels_of(design.spec), design.spec)
    assert held is not None
    return held.to_user(held.points(held.complete(np.zeros((1, 0)))))


def _uncertain(design: Design, distributions: Mapping[str, Any], beta: Array) -> Truth:
    """Draws where some parameters have distributions, and the coefficients without are `beta`."""
    if "Intercept" in distributions:
        raise PriorError(
            "truth: give the intercept as a number; no test of another coefficient depends on it."
        )
    priors = resolve_priors(design, distributions)
    places = {_coefficient(design, key) for key in distributions}
    held = [place for place in range(design.p) if place not in places]
    if "beta" in distributions:
        held = [place for place in held if design.coefs[place] == "Intercept"]
    flat = [key for key in distributions if key in priors.improper()]
    if flat:
        raise PriorError(f"truth: {listed(flat)} cannot be drawn from; give a proper distribution.")
    points = priors.sample(np.random.default_rng(0), DRAWS)
    points.beta[:, held] = beta[held]
    return Truth(points)
