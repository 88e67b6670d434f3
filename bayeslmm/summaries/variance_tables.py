"""Tables of the variance explained, of posteriors and of estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.sampling.estimate_draws import estimate_draws, point_draws
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise
from bayeslmm.summaries.variance_explained import (
    R2Method,
    block_labels,
    check_method,
    intraclass_correlation,
    intraclass_correlation_at,
    r_squared,
    rows_at,
    variance_parts,
)

Array = NDArray[np.float64]
Spread = Literal["laplace", "bootstrap"]
Seed = int | np.random.Generator | None


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """m numbers that every draw of a model's parameters gives.

    Attributes
    ----------
    index : pandas.Index
        Their labels, of length m.
    values : callable
        Takes S joint draws, returns the numbers (S, m).
    """

    index: pd.Index
    values: Callable[[JointDraws], Array]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Uncertainty:
    """How the uncertainty of functions of an estimate is found.

    Attributes
    ----------
    method : {"laplace", "bootstrap"} or None
        Where draws around the estimate come from; None for point values alone.
    level : float
        Coverage of the intervals.
    draws : int
        Number of draws.
    random_seed : int or numpy.random.Generator or None
        Seed.
    """

    method: Spread | None
    level: float
    draws: int
    random_seed: Seed

    def __post_init__(self) -> None:
        probability(self.level, "level")
        if self.method is not None and self.method not in get_args(Spread):
            allowed = ", ".join(map(repr, get_args(Spread)))
            raise ValueError(f"uncertainty={self.method!r}: None, {allowed} are allowed")
        _check_draws(self.draws)

    def around(self, design: Design, fit: Fit) -> JointDraws | None:
        """Draws around an estimate."""
        if self.method is None:
            return None
        return estimate_draws(design, fit, self.method, self.draws, self.random_seed)


def _check_draws(draws: object) -> None:
    if isinstance(draws, bool) or not isinstance(draws, Integral) or int(draws) < 2:
        raise ValueError(f"draws={draws!r}: a whole number of at least 2 is expected")


# --- quantities ------------------------------------------------------------------------


def icc_quantity(design: Design, at: Any = None) -> Quantity:
    """Intraclass correlations by grouping factor, and by row of covariates where given."""
    names = [factor.name for factor in design.random]
    if at is None:
        index = pd.Index(names, name="group")
        return Quantity(index, lambda joint: intraclass_correlation(design, joint))
    rows, labels = rows_at(design, at)
    index = pd.MultiIndex.from_arrays(
        [
            np.repeat(np.array(names, dtype=object), rows.n),
            *(np.tile(labels[name].to_numpy(), len(names)) for name in labels),
        ],
        names=["group", *labels.columns],
    )
    return Quantity(
        index, lambda joint: intraclass_correlation_at(rows, joint).reshape(joint.size, -1)
    )


def r2_quantity(design: Design, method: R2Method) -> Quantity:
    """Marginal and conditional R2."""
    check_method(method)
    index = pd.Index(["marginal", "conditional"], name="r2")
    return Quantity(index, lambda joint: r_squared(design, joint, method))


def share_of_total(parts: Array) -> Array:
    """Parts (S, m) over their sum on each draw."""
    return np.asarray(parts / parts.sum(axis=1, keepdims=True))


def part_labels(design: Design) -> pd.DataFrame:
    """Component, grouping factor and coefficients of each part of the variance."""
    rows = [
        ("fixed", None, None),
        *(("random", group, term) for group, term in block_labels(design)),
        ("residual", None, None),
    ]
    return pd.DataFrame(rows, columns=["component", "group", "term"])


# --- tables ----------------------------------------------------------------------------


def posterior_table(quantity: Quantity, joint: JointDraws, prob: float | None) -> pd.DataFrame:
    """Mean, sd, median and interval of each number."""
    prob, kind = interval_defaults(prob)
    return summarise(quantity.values(joint), quantity.index, prob, kind)


def estimate_table(
    quantity: Quantity,
    design: Design,
    fit: Fit,
    modes: Sequence[Array],
    uncertainty: Uncertainty,
) -> pd.DataFrame:
    """Value at the estimate and, where asked for, standard error and interval of each number."""
    around = uncertainty.around(design, fit)
    values = None if around is None else quantity.values(around)
    point = quantity.values(point_draws(fit, modes))[0]
    return _estimates(point, values, quantity.index, uncertainty.level)


def posterior_partition(design: Design, joint: JointDraws, prob: float | None) -> pd.DataFrame:
    """Variances and shares of the parts of a model, summarised over draws."""
    prob, kind = interval_defaults(prob)
    labels = part_labels(design)
    parts = variance_parts(design, joint)
    tables = [
        summarise(draws, labels.index, prob, kind).drop(columns="median").add_prefix(f"{name}_")
        for name, draws in (("variance", parts), ("share", share_of_total(parts)))
    ]
    return pd.concat([labels, *tables], axis=1)


def estimate_partition(
    design: Design, fit: Fit, modes: Sequence[Array], uncertainty: Uncertainty
) -> pd.DataFrame:
    """Variances and shares of the parts of a model at an estimate."""
    labels = part_labels(design)
    around = uncertainty.around(design, fit)
    point = variance_parts(design, point_draws(fit, modes))
    parts = None if around is None else variance_parts(design, around)
    tables = []
    for name, of in (("variance", np.asarray), ("share", share_of_total)):
        draws = None if parts is None else of(parts)
        table = _estimates(of(point)[0], draws, labels.index, uncertainty.level)
        names = {column: f"{name}_{column}" for column in table if column != "estimate"}
        tables.append(table.rename(columns={"estimate": name, **names}))
    return pd.concat([labels, *tables], axis=1)


def _estimates(point: Array, draws: Array | None, index: pd.Index, level: float) -> pd.DataFrame:
    table = pd.DataFrame({"estimate": point}, index=index)
    if draws is not None:
        tail = (1.0 - level) / 2.0
        table["std_error"] = draws.std(axis=0, ddof=1)
        table["conf_low"], table["conf_high"] = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    return table
