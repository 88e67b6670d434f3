"""The parameters of a model in one order and with one set of labels, for every table.

Labels are ``beta[Days]``, ``sd[Subject, Days]``, ``cor[Subject, Intercept, Days]`` and ``sigma``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.structure import Structure
from bayeslmm.covariance.unstructured import structure_of
from bayeslmm.data.design import Design
from bayeslmm.schema import BETA, SIGMA, cor_name, sd_name

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Kind = Literal["beta", "sd", "cor", "sigma"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One scalar parameter of a model.

    Attributes
    ----------
    label : str
        As tables show it.
    kind : {"beta", "sd", "cor", "sigma"}
        What it is.
    group : str or None
        Grouping factor; None for fixed effects and sigma.
    terms : tuple of str
        Its coefficient, the two of a correlation, or nothing for sigma.
    factor : int
        Position of the grouping factor in the design; -1 where there is none.
    index : tuple of int
        Positions of the coefficients.
    """

    label: str
    kind: Kind
    group: str | None
    terms: tuple[str, ...]
    factor: int
    index: tuple[int, ...]


def probability(value: object, name: str) -> float:
    """Check the coverage of an interval.

    Raises
    ------
    ValueError
        If it is not a number between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < 1.0:
        raise ValueError(f"{name}={value!r}: a number between 0 and 1 is expected, such as 0.95.")
    return float(value)


def check_kinds(kinds: Kind | Sequence[Kind]) -> tuple[Kind, ...]:
    """Kinds of parameters as a tuple.

    Raises
    ------
    ValueError
        If one is unknown, or there is none.
    """
    chosen: tuple[Kind, ...] = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in chosen if kind not in KINDS]
    if unknown or not chosen:
        raise ValueError(f"kinds={kinds!r}: any of 'beta', 'sd', 'cor', 'sigma' are expected.")
    return chosen


def structures(design: Design) -> tuple[Structure, ...]:
    """Covariance structures of a design's grouping factors."""
    return tuple(structure_of(factor) for factor in design.random)


def fixed_parameters(design: Design) -> list[Parameter]:
    """Fixed effects, in the order of the columns of X."""
    return [
        Parameter(f"beta[{coef}]", "beta", None, (coef,), -1, (i,))
        for i, coef in enumerate(design.coefs)
    ]


def covariance_parameters(design: Design) -> list[Parameter]:
    """Standard deviations and correlations per grouping factor, then sigma."""
    result = []
    for f, (factor, structure) in enumerate(zip(design.random, structures(design), strict=True)):
        for i, coef in enumerate(factor.coefs):
            label = f"sd[{factor.name}, {coef}]"
            result.append(Parameter(label, "sd", factor.name, (coef,), f, (i,)))
        for row, col in structure.pairs:
            first, second = sorted((row, col))
            terms = (factor.coefs[first], factor.coefs[second])
            label = f"cor[{factor.name}, {terms[0]}, {terms[1]}]"
            result.append(Parameter(label, "cor", factor.name, terms, f, (first, second)))
    result.append(Parameter("sigma", "sigma", None, (), -1, ()))
    return result


def parameters(design: Design) -> list[Parameter]:
    """All parameters but the random effects: fixed effects, then covariance parameters."""
    return fixed_parameters(design) + covariance_parameters(design)


def labelled(rows: Sequence[Parameter], numbers: pd.DataFrame) -> pd.DataFrame:
    """The table that every other table of parameters is made from.

    Parameters
    ----------
    rows : sequence of Parameter
        m parameters.
    numbers : pandas.DataFrame
        m rows.

    Returns
    -------
    pandas.DataFrame
        Rows by label; columns kind, group, coef, coef_2 (of a correlation) and the numbers.
    """
    names = {
        "kind": [p.kind for p in rows],
        "group": [p.group for p in rows],
        "coef": [p.terms[0] if p.terms else None for p in rows],
        "coef_2": [p.terms[1] if len(p.terms) > 1 else None for p in rows],
    }
    parts = [pd.DataFrame(names, dtype=object), numbers.reset_index(drop=True)]
    return pd.concat(parts, axis=1).set_axis(label_index(rows), axis=0)


def label_index(rows: Sequence[Parameter]) -> pd.Index:
    """Labels of parameters, as tables have them."""
    return pd.Index([p.label for p in rows], name="parameter")


def parameter_matrix(dataset: xr.Dataset, design: Design, rows: Sequence[Parameter]) -> Array:
    """Draws (S, m) of several parameters."""
    return np.column_stack([parameter_draws(dataset, design, row).ravel() for row in rows])


def parameter_draws(dataset: xr.Dataset, design: Design, parameter: Parameter) -> Array:
    """Draws (chain, draw) of a parameter from a dataset with the names of the schema."""
    key = design.random[parameter.factor].key
    if parameter.kind == "beta":
        return dataset[BETA].values[..., parameter.index[0]]
    if parameter.kind == "sigma":
        return dataset[SIGMA].values
    name = sd_name(key) if parameter.kind == "sd" else cor_name(key)
    values = dataset[name].values
    for position in reversed(parameter.index):
        values = values[..., position]
    return values


def sds_by_group(design: Design, sds: Sequence[Array]) -> dict[str, pd.Series]:
    """Standard deviations (k,) of random effects, labelled per grouping factor."""
    return {
        factor.name: pd.Series(values, index=list(factor.coefs), name="sd")
        for factor, values in zip(design.random, sds, strict=True)
    }


def correlations_by_group(design: Design, matrices: Sequence[Array]) -> dict[str, pd.DataFrame]:
    """Correlation matrices (k, k) of random effects, labelled per grouping factor."""
    return {
        factor.name: pd.DataFrame(matrix, index=list(factor.coefs), columns=list(factor.coefs))
        for factor, matrix in zip(design.random, matrices, strict=True)
    }


# --- scales ----------------------------------------------------------------------------


def unconstrained(kind: Kind, values: Array) -> Array:
    """Values on the scale where intervals are symmetric: log sds, atanh correlations."""
    if kind == "beta":
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.arctanh(values) if kind == "cor" else np.log(values)


def natural(kind: Kind, values: Any) -> Any:
    """Values as tables show them, undoing :func:`unconstrained`."""
    if kind == "beta":
        return values
    return np.tanh(values) if kind == "cor" else np.exp(values)


def slope(kind: Kind, value: float) -> float:
    """Derivative of :func:`unconstrained`; infinite or NaN at a boundary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "beta":
            return 1.0
        derivative = 1.0 - np.float64(value) ** 2 if kind == "cor" else np.float64(value)
        return float(1.0 / derivative)
