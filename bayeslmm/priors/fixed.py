"""Covariance parameters that a user holds at known values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, plain_coordinates
from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import Structure
from bayeslmm.data.design import Spec
from bayeslmm.exceptions import PriorError, listed
from bayeslmm.priors.families import Fixed
from bayeslmm.priors.keys import Slot, match_keys, slot_names, slots_by_key
from bayeslmm.priors.record import Labels

Array = NDArray[np.float64]

SMALLEST = 1e-100
"""Smallest standard deviation, one over the largest: squares must not overflow."""

REPRODUCED = 1e-6
"""Largest difference of a correlation matrix from the one of a structure that is nearest to it."""


def fixed_by_slot(labels: Labels, spec: Spec) -> dict[Slot, Fixed]:
    """Known covariance parameters of a model: those of ``fixed=``, and sigma under known errors.

    Parameters
    ----------
    labels : Labels
        The names of its parameters.
    spec : Spec
        What was given.

    Returns
    -------
    dict of Slot to Fixed
        The more specific key wins, whatever the order.

    Raises
    ------
    PriorError
        For an unknown key, which lists the valid ones, or a value out of range.
    """
    slots = slots_by_key(labels)
    names = slot_names(labels)
    betas = {slot for slot in names if slot[0] == "beta"}
    allowed = {key: places for key, places in slots.items() if not betas & set(places)}
    for key in spec.known:
        if key in slots and key not in allowed:
            raise PriorError(
                f"{key!r} is of fixed effects, and fixed= holds covariance parameters: hold a "
                "coefficient with an offset, as in `y ~ x + offset(0.5 * z)`."
            )
    given = match_keys(allowed, spec.known, "hold")
    known = spec.residual is not None and spec.residual.formula.known
    if known and (own := [key for key in given if key.startswith("sigma")]):
        raise PriorError(
            f"{spec.residual_source} has known standard errors, which hold sigma at 1: take "
            f"{own[0]!r} out of fixed=, or write {spec.residual_multiplier}."
        )
    result: dict[Slot, Fixed] = {("sigma", 0, 0): Fixed((0.0,), 1.0)} if known else {}
    for key, places in allowed.items():
        if key in given:
            result |= {slot: _fixed(labels, slot, given[key], key) for slot in places}
    return result


def _fixed(labels: Labels, slot: Slot, value: Any, key: str) -> Fixed:
    kind, f, place = slot
    if kind == "cor":
        block = labels.blocks[f][place]
        coefs = [labels.factor_coefs[f][i] for i in block]
        return _correlations(labels.structures[f].parts[place], value, key, coefs)
    if kind == "cor_residual":
        return _residual_correlations(labels, value, key)
    number = _number(value, key)
    if kind == "power":
        return Fixed((number,), number)
    if number <= 0.0:
        raise PriorError(
            f"fixed: {key!r} is a standard deviation, which must be positive; got {value!r}."
            + (" Without the effects, take their term out of the formula." if kind == "sd" else "")
        )
    if not SMALLEST < number < 1.0 / SMALLEST:
        raise PriorError(
            f"fixed: {key!r} must be between {SMALLEST:g} and {1.0 / SMALLEST:g}; got {value!r}."
        )
    return Fixed((float(np.log(number)),), number)


def _number(value: Any, key: str) -> float:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, bool) or not isinstance(plain, Real) or not np.isfinite(float(plain)):
        raise PriorError(f"fixed: {key!r} must be a finite number; got {value!r}.")
    return float(plain)


def _between(value: Any, key: str, low: float) -> float:
    number = _number(value, key)
    if not low < number < 1.0:
        raise PriorError(
            f"fixed: {key!r} must lie between {low:.3g} and 1, both excluded; got {value!r}."
        )
    return number


def _residual_correlations(labels: Labels, value: Any, key: str) -> Fixed:
    law = labels.residual.correlation
    assert law is not None
    if isinstance(law, OverOccasions):
        return _correlations(law.structure, value, key, None)
    number = _between(value, key, law.lowest)
    every = law.from_parameters(np.full((1, law.n_cors), number))
    return Fixed((float(every[0, 0]),), number)


def _correlations(structure: Structure, value: Any, key: str, coefs: Sequence[str] | None) -> Fixed:
    """The correlation where there is one, else the matrix, which must be of the structure."""
    size = structure.n_coefs
    if structure.n_cors == 1 and np.ndim(value) == 0:
        low = structure.lowest if isinstance(structure, Pattern) else -1.0
        number = _between(value, key, low)
        z = structure.from_correlations(np.array([[number]]))[0]
        return Fixed((float(z[0]),), number)
    if np.ndim(value) == 0:
        raise PriorError(
            f"fixed: {key!r} is of {structure.n_cors} correlations: give the {size} x {size} "
            f"correlation matrix; got {value!r}."
        )
    omega = _matrix(value, key, size, coefs)
    z = structure.coordinates(np.linalg.cholesky(omega)[None])
    root = structure.cholesky(z)[0]
    if not np.max(np.abs(root @ root.T - omega)) < REPRODUCED:
        raise PriorError(
            f"fixed: the matrix of {key!r} is not one of {structure.name}(), which has "
            f"{structure.n_cors} parameter{'s' if structure.n_cors > 1 else ''}."
        )
    return Fixed(tuple(z[0].tolist()), float(omega[1, 0]) if structure.n_cors == 1 else np.nan)


def _matrix(value: Any, key: str, size: int, coefs: Sequence[str] | None) -> Array:
    """A correlation matrix (size, size); a data frame may have its coefficients in any order."""
    if isinstance(value, pd.DataFrame) and coefs is not None:
        labels = [str(label) for label in value.columns]
        if sorted(labels) != sorted(coefs) or [str(label) for label in value.index] != labels:
            raise PriorError(
                f"fixed: the rows and columns of {key!r} must be {listed(coefs)}, in one order; "
                f"got {listed(labels)}."
            )
        order = [labels.index(coef) for coef in coefs]
        value = value.to_numpy()[np.ix_(order, order)]
    try:
        omega = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise PriorError(f"fixed: {key!r} must hold numbers; got {value!r}.") from None
    if omega.shape != (size, size):
        raise PriorError(
            f"fixed: {key!r} must be a {size} x {size} correlation matrix; got shape {omega.shape}."
        )
    symmetric = np.all(np.isfinite(omega)) and np.allclose(omega, omega.T, rtol=0.0, atol=1e-10)
    if not symmetric or not np.allclose(np.diag(omega), 1.0, rtol=0.0, atol=1e-10):
        raise PriorError(
            f"fixed: {key!r} must be symmetric, with ones on the diagonal; got\n{omega}."
        )
    if not np.linalg.eigvalsh(omega)[0] > 0.0:
        raise PriorError(f"fixed: the matrix of {key!r} is not positive definite:\n{omega}.")
    return omega


def held_coordinates(coordinates: Coordinates, fixed: Mapping[Slot, Fixed]) -> Coordinates:
    """Coordinates that know which of them are held."""
    held: list[tuple[int, float]] = []
    scales = len(coordinates.residual.scales)
    cors = coordinates.n_covariance - coordinates.residual.n_cors
    for (kind, f, place), record in fixed.items():
        if kind == "sd":
            start = coordinates.sds(f).start + place
        elif kind == "cor":
            parts = coordinates.structures[f].parts[:place]
            start = coordinates.cors(f).start + sum(part.n_cors for part in parts)
        elif kind == "cor_residual":
            start = cors + place * len(record.z)
        else:
            start = coordinates.sigma + place + (scales if kind == "power" else 0)
        held += [(start + i, value) for i, value in enumerate(record.z)]
    return replace(coordinates, held=tuple(sorted(held)))


def held_by(labels: Labels, spec: Spec) -> Coordinates | None:
    """Coordinates of the user's columns with what is known of them; None where nothing is."""
    fixed = fixed_by_slot(labels, spec)
    if not fixed:
        return None
    return held_coordinates(plain_coordinates(labels.structures, labels.residual), fixed)
