"""How much of the variance of the response each part of a model accounts for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor, require_random
from bayeslmm.data.frames import column_names, plain_frame
from bayeslmm.data.inputs import check_present
from bayeslmm.data.residual_rows import ResidualSpec
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.residuals import mean_variance, require_variance, residual_variances
from bayeslmm.exceptions import DataError, listed
from bayeslmm.likelihood.sums import fitted_sums
from bayeslmm.sampling.joint_draws import JointDraws, all_levels, estimate_draws, point_draws
from bayeslmm.summaries.parameters import probability, whole_number
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
R2Method = Literal["nakagawa", "gelman"]

AT_ONCE = 1 << 24
"""Numbers held at once where the linear predictor is evaluated on all draws: 128 MB."""

MOST_EFFECTS = 1 << 28
"""Draws of crossed or nested random effects, which have to be held together: 2 GB."""


# --- parts of the variance -------------------------------------------------------------


def fixed_variance(design: Design, joint: JointDraws) -> Array:
    """Sample variance (S,) of X beta over the rows, with divisor n - 1."""
    root = design.moments.centred[:, :-1]
    return np.asarray(np.sum((joint.beta @ root.T) ** 2, axis=1) / (design.n - 1))


def block_variances(design: Design, joint: JointDraws) -> Array:
    """Mean over the rows of z' Sigma z of each independent block of coefficients.

    Parameters
    ----------
    design : Design
        The design.
    joint : JointDraws
        S draws.

    Returns
    -------
    ndarray (S, n_blocks)
        Blocks in the order of `block_labels`.

    References
    ----------
    Johnson (2014), doi:10.1111/2041-210X.12225.
    """
    result = []
    for factor, root in zip(design.random, joint.roots, strict=True):
        for block in factor.blocks:
            columns = list(block)
            # roots rather than Z'Z and Sigma: covariates far from zero would cancel
            mean_root = _rows_root(factor, columns) / np.sqrt(design.n)
            result.append(np.sum((mean_root @ root[:, columns]) ** 2, axis=(1, 2)))
    return np.stack(result, axis=1) if result else np.empty((joint.size, 0))


def _rows_root(factor: RandomFactor, columns: list[int]) -> Array:
    """Root of Z'Z of some columns, rows times the relative standard deviation of their effects."""
    if factor.relationship is None and not factor.spec.divided and not factor.pooled:
        return factor.moments(columns).columns
    rows = factor.Z[:, columns]
    if factor.relationship is not None or factor.pooled:
        every = np.arange(len(rows))
        rows = rows * np.sqrt(factor.similarity(every, every))[:, None]
    return np.asarray(np.linalg.qr(rows, mode="r"))


def block_labels(design: Design) -> list[tuple[str, str]]:
    """Grouping factor and coefficients of each independent block of random effects."""
    return [
        (factor.name, ", ".join(factor.coefs[i] for i in block))
        for factor in design.random
        for block in factor.blocks
    ]


def factor_variances(design: Design, joint: JointDraws) -> Array:
    """Mean over the rows of the variance of each grouping factor's part (S, n_factors)."""
    blocks = block_variances(design, joint)
    if not design.random:
        return blocks
    starts = np.cumsum([0, *(len(factor.blocks) for factor in design.random[:-1])])
    return np.add.reduceat(blocks, starts, axis=1)


def variance_parts(design: Design, joint: JointDraws) -> Array:
    """Variances of the fixed effects, each block of random effects and the residual (S, m)."""
    return np.column_stack(
        [
            fixed_variance(design, joint),
            block_variances(design, joint),
            mean_variance(design, joint.points),
        ]
    )


# --- shares ----------------------------------------------------------------------------


def intraclass_correlation(design: Design, joint: JointDraws) -> Array:
    """Share of each grouping factor in the mean variance given the fixed effects.

    Parameters
    ----------
    design : Design
        The design.
    joint : JointDraws
        S draws.

    Returns
    -------
    ndarray (S, n_factors)
    """
    random = factor_variances(design, joint)
    total = random.sum(axis=1) + mean_variance(design, joint.points)
    return np.asarray(random / total[:, None])


def intraclass_correlation_at(rows: Design, joint: JointDraws) -> Array:
    """Share of each grouping factor in the variance at given covariates.

    Parameters
    ----------
    rows : Design
        The design evaluated at m rows of covariates.
    joint : JointDraws
        S draws.

    Returns
    -------
    ndarray (S, n_factors, m)

    References
    ----------
    Goldstein, Browne, Rasbash (2002), doi:10.1207/S15328031US0104_02.
    """
    random = np.stack(
        [
            np.sum((factor.Z @ root) ** 2, axis=2)
            for factor, root in zip(rows.random, joint.roots, strict=True)
        ],
        axis=1,
    )
    total = random.sum(axis=1) + residual_variances(rows, joint.points)
    return np.asarray(random / total[:, None])


def r_squared(design: Design, joint: JointDraws, method: R2Method) -> Array:
    """Marginal and conditional R2.

    Parameters
    ----------
    design : Design
        The design.
    joint : JointDraws
        S draws.
    method : {"nakagawa", "gelman"}
        What the conditional one counts: the variance of the population of levels, or that of the
        random effects of the levels in the data.

    Returns
    -------
    ndarray (S, 2)

    Raises
    ------
    ValueError
        If the method is unknown.
    DataError
        If "gelman" would need more draws of random effects than memory should hold.

    References
    ----------
    Nakagawa, Schielzeth (2013), doi:10.1111/j.2041-210x.2012.00261.x; Johnson (2014),
    doi:10.1111/2041-210X.12225; Nakagawa, Johnson, Schielzeth (2017),
    doi:10.1098/rsif.2017.0213; Gelman, Goodrich, Gabry, Vehtari (2019),
    doi:10.1080/00031305.2018.1549100.
    """
    check_method(method)
    fixed = fixed_variance(design, joint)
    residual = mean_variance(design, joint.points)
    explained = fixed + block_variances(design, joint).sum(axis=1)
    marginal = fixed / (explained + residual)
    if method == "gelman":
        explained = fitted_variance(design, joint)
    return np.column_stack([marginal, explained / (explained + residual)])


def check_method(method: str) -> None:
    """Raise ValueError for an unknown definition of R2."""
    if method not in get_args(R2Method):
        allowed = " or ".join(map(repr, get_args(R2Method)))
        raise ValueError(f"method={method!r}: {allowed} is expected")


# --- fitted values ---------------------------------------------------------------------


def fitted_variance(design: Design, joint: JointDraws) -> Array:
    """Sample variance (S,) of X beta + Zu over the rows, with divisor n - 1."""
    if isinstance(design, SummarisedDesign):
        return _fitted_variance_of_sums(design, joint)
    centre = float(np.mean(design.y - design.offset))
    sums, squares = np.zeros(joint.size), np.zeros(joint.size)
    for wanted, rows in _level_blocks(design, joint.size):
        # draws last, so that picking the level of a row copies one stretch of memory
        effects = [np.ascontiguousarray(u.transpose(2, 1, 0)) for u in joint.effects(wanted)]
        step = max(1, AT_ONCE // joint.size)
        for part in (rows[first : first + step] for first in range(0, len(rows), step)):
            values = design.X[part] @ joint.beta.T - centre
            for factor, levels, u in zip(design.random, wanted, effects, strict=True):
                for slot in factor.slots:
                    places = np.searchsorted(levels, slot.codes[part])
                    for c in range(factor.n_coefs):
                        values += slot.Z[part, c, None] * u[c, places]
            sums += values.sum(axis=0)
            squares += np.einsum("rs,rs->s", values, values)
    return np.asarray((squares - sums**2 / design.n) / (design.n - 1))


def _fitted_variance_of_sums(design: SummarisedDesign, joint: JointDraws) -> Array:
    """The same where rows are not kept, from all random effects at once."""
    if len(design.random) > 1:
        _check_held(design, joint.size)
    _, squares = fitted_sums(design, joint.beta, joint.effects, AT_ONCE)
    return squares / (design.n - 1)


def _check_held(design: Design, size: int) -> None:
    total = sum(factor.n_levels * factor.n_coefs for factor in design.random)
    if size * total > MOST_EFFECTS:
        raise DataError(
            f"method='gelman' needs {size} draws of {total} random effects at once, which "
            f"take {8 * size * total / 2**30:.1f} GB. Use fewer draws, or method='nakagawa', "
            "which needs none."
        )


def _level_blocks(design: Design, size: int) -> Iterator[tuple[list[Indices], Indices]]:
    """Levels whose draws are held together, with their rows; all where factors are several."""
    if len(design.random) > 1 or design.random[0].pooled:
        _check_held(design, size)
        yield all_levels(design), np.arange(design.n)
        return
    factor = design.random[0]
    order = np.argsort(factor.codes, kind="stable")
    codes = factor.codes[order]
    step = max(1, AT_ONCE // (size * factor.n_coefs))
    for first in range(0, factor.n_levels, step):
        levels = np.arange(first, min(first + step, factor.n_levels))
        start, stop = np.searchsorted(codes, [levels[0], levels[-1] + 1])
        yield [levels], order[start:stop]


# --- covariates to evaluate at ---------------------------------------------------------


def rows_at(design: Design, at: Any) -> tuple[Design, pd.DataFrame]:
    """Evaluate the covariates of the random effects at given values.

    Parameters
    ----------
    design : Design
        The design.
    at : data frame or mapping
        m rows with the variables of the random effects, and the weights if they are to count;
        other variables do not matter. A mapping may have scalars, which are repeated.

    Returns
    -------
    rows : Design
        The design at these rows.
    labels : pandas.DataFrame
        Those columns of `at` that belong to the model, without an index of their own.

    Raises
    ------
    DataError
        If a variable is absent, missing or infinite in some row, or none is of the model.
    """
    if isinstance(at, Mapping):
        at = _repeated(at)
    names = column_names(at)
    needed = design.formula.predictors(groups=False)
    random = design.formula.random
    effects = frozenset[str]().union(*(term.left.variables for term in random))
    effects |= {term.by for term in random if term.by is not None}
    if (scale := design.spec.scale) is not None:
        if scale.random:
            raise DataError(
                f"at= is not there with random effects in sigma={scale.formula.source!r}: the "
                "residual variance there depends on their level. Leave at= out for means over the "
                "rows of the data."
            )
        effects |= scale.formula.variables
        needed |= effects
    check_present(effects, names)
    weights = {design.spec.weights} if design.spec.weights in names else set()
    if design.spec.residual is not None and design.spec.has_errors:
        check_present(design.spec.residual.formula.variables, names)
        weights = set(design.spec.residual.formula.variables)
    own = [name for name in names if name in needed | weights]
    if not own:
        allowed = f"they are {listed(sorted(needed))}" if needed else "it has none"
        given = listed(names) or "none"
        raise DataError(
            f"at= has no covariate of the model ({allowed}); the columns given are {given}."
        )
    frame = plain_frame(at, own).reset_index(drop=True)
    labels = frame.copy()
    for name in needed.difference(names):
        # variables of the fixed effects alone: any value gives the same result
        frame[name] = design.sample[name].iloc[[0] * len(frame)].reset_index(drop=True)
    residual = design.spec.has_errors or design.spec.scale is not None
    return design.spec.rows(frame, random="covariates", residual=residual), labels


def _repeated(at: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """One row where all values are scalars; pandas repeats them beside columns."""
    if all(np.ndim(values) == 0 for values in at.values()):
        return {name: [values] for name, values in at.items()}
    return at


# --- tables of the variance explained, of posteriors and of estimates ---------------

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
        whole_number(self.draws, "draws", least=2)

    def around(self, design: Design, fit: Fit) -> JointDraws | None:
        """Draws around an estimate."""
        if self.method is None:
            return None
        return estimate_draws(design, fit, self.method, self.draws, self.random_seed)


# --- quantities ------------------------------------------------------------------------


def icc_quantity(design: Design, at: Any = None) -> Quantity:
    """Intraclass correlations by grouping factor, and by row of covariates where given."""
    require_random(design, "there is no intraclass correlation")
    names = [factor.name for factor in design.random]
    if at is None:
        spec = design.spec.residual
        return mean_icc(design) if spec is None or not spec.dim else _icc_by_scale(design, spec)
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


def mean_icc(design: Design) -> Quantity:
    """Intraclass correlations by grouping factor, from mean variances over all rows."""
    index = pd.Index([factor.name for factor in design.random], name="group")
    return Quantity(index, lambda joint: intraclass_correlation(design, joint))


def _icc_by_scale(design: Design, spec: ResidualSpec) -> Quantity:
    """The same over the rows of each stratum or occasion that has a standard deviation."""
    parts = design.by_scale()
    scales = [spec.structure.scales[place] for place in parts]
    labels = [[factor.name for factor in design.random], scales]
    index = pd.MultiIndex.from_product(labels, names=["group", spec.dim])

    def values(joint: JointDraws) -> Array:
        each = [intraclass_correlation(part, joint) for part in parts.values()]
        return np.stack(each, axis=2).reshape(joint.size, -1)

    return Quantity(index, values)


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
    require_variance(joint.points)
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
