"""The parameters of a model in one order and with one set of labels, for every table.

Labels are ``beta[Days]``, ``sd[Subject, Days]``, ``cor[Subject, Intercept, Days]`` and ``sigma``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points, WorkingPoints
from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.structure import Structure, sd_leaders
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.residuals import require_variance, residual_variances
from bayeslmm.exceptions import DataError
from bayeslmm.priors.defaults import labels_of
from bayeslmm.priors.fixed import held_by
from bayeslmm.priors.record import cor_labels, sd_labels
from bayeslmm.schema import BETA, BETA_SIGMA, NU, cor_name, sd_name

if TYPE_CHECKING:
    import xarray as xr

    from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Kind = Literal[
    "beta",
    "sd",
    "cor",
    "sigma",
    "power_residual",
    "cor_residual",
    "nu",
    "beta_sigma",
    "sd_sigma",
    "cor_sigma",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
VarcorrStyle = Literal["default", "nlme"]
RESIDUAL_KINDS: tuple[Kind, ...] = KINDS[3:6]
SCALE_KINDS: tuple[Kind, ...] = KINDS[6:]
CORRELATIONS = ("cor", "cor_residual", "cor_sigma")
UNBOUNDED = ("beta", "power_residual", "beta_sigma")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One scalar parameter of a model.

    Attributes
    ----------
    label : str
        As tables show it.
    kind : str
        What it is, one of :data:`KINDS`.
    group : str or None
        Grouping factor; None for fixed effects and residuals.
    terms : tuple of str
        Its coefficient, or the two of a correlation; for residuals its stratum, occasion, covariate
        or pair of occasions, if there are several.
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


def whole_number(value: Any, name: str, least: int = 1, why: str = "") -> int:
    """Check a count.

    Raises
    ------
    ValueError
        If it is not a whole number of at least `least`; `why` ends the sentence.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: a whole number of at least {least} is expected{why}.")
    return int(value)


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
        known = ", ".join(map(repr, KINDS))
        raise ValueError(f"kinds={kinds!r}: any of {known} are expected.")
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
    """Parameters of the random effects, then those of the residuals."""
    return random_parameters(design) + residual_parameters(design)


def random_parameters(design: Design) -> list[Parameter]:
    """Standard deviations and correlations per grouping factor.

    Those of covariance patterns are the distinct ones: one standard deviation of coefficients that
    share it, and one pair for each correlation that determines others.
    """
    result = []
    for f, (factor, structure) in enumerate(zip(design.random, structures(design), strict=True)):
        labels = sd_labels(factor.name, factor.coefs, structure)
        for label, i in zip(labels, sd_leaders(structure).tolist(), strict=True):
            result.append(Parameter(label, "sd", factor.name, (factor.coefs[i],), f, (i,)))
        labels = cor_labels(factor.name, factor.coefs, structure)
        for label, pair in zip(labels, structure.pairs, strict=True):
            first, second = sorted(pair)
            terms = (factor.coefs[first], factor.coefs[second])
            result.append(Parameter(label, "cor", factor.name, terms, f, (first, second)))
    return result


def residual_parameters(design: Design) -> list[Parameter]:
    """Standard deviations, powers of covariates and correlations of the residuals.

    Then the degrees of freedom and the parameters of the log scale, whose intercept stands in for
    sigma.
    """
    structure = design.spec.residual_structure
    if design.spec.conditional is not None:
        return scale_parameters(design)
    kinds: list[tuple[Kind, Sequence[str], tuple[str, ...]]] = [
        ("sigma", structure.sd_names, structure.scales),
        ("power_residual", structure.powers, structure.powers),
        ("cor_residual", structure.cor_names, structure.cors),
    ]
    return [
        Parameter(name, kind, None, (label,) if label else (), -1, (i,))
        for kind, names, labels in kinds
        for i, (name, label) in enumerate(zip(names, labels, strict=True))
    ]


def covariance_labels(design: Design) -> dict[str, Parameter]:
    """Labels of summary tables, correlations in either order; ``sd[g]``, ``cor[g]`` of but one."""
    found = covariance_parameters(design)
    labels = {parameter.label: parameter for parameter in found}
    for parameter in found:
        named = parameter.terms and parameter.group is not None
        for terms in (parameter.terms, parameter.terms[::-1]) if named else ():
            labels.setdefault(f"{parameter.kind}[{parameter.group}, {', '.join(terms)}]", parameter)
    for kind in ("sd", "cor"):
        for f, factor in enumerate(design.random):
            own = [p for p in found if p.kind == kind and p.factor == f]
            if len(own) == 1:
                labels.setdefault(f"{kind}[{factor.name}]", own[0])
    return labels


def known_labels(design: Design) -> set[str]:
    """Labels of the covariance parameters that are held at known values."""
    held = held_by(labels_of(design.spec), design.spec)
    places = [] if held is None else held.held_places.tolist()
    rows = covariance_parameters(design)
    return {rows[place].label for place in places}


def free_parameters(design: Design) -> list[Parameter]:
    """All parameters but the random effects that are not held at known values."""
    known = known_labels(design)
    return [row for row in parameters(design) if row.label not in known]


def marked(table: pd.DataFrame, design: Design) -> pd.DataFrame:
    """A table by label with the column `fixed` in models some of whose parameters are known."""
    known = known_labels(design)
    return table.assign(fixed=table.index.isin(known)) if known else table


def scale_parameters(design: Design) -> list[Parameter]:
    """Parameters of Student-t residuals and of predictors of the residual scale."""
    spec, rows = design.spec.scale, design.scale_rows
    result = [] if spec is not None else [Parameter("sigma", "sigma", None, (), -1, (0,))]
    if design.spec.family == "student":
        result.append(Parameter("nu", "nu", None, (), -1, (0,)))
    if spec is None or rows is None:
        return result
    for j, coef in enumerate(spec.coefs):
        result.append(Parameter(f"beta_sigma[{coef}]", "beta_sigma", None, (coef,), -1, (j,)))
    for f, factor in enumerate(rows.random):
        for i, coef in enumerate(factor.coefs):
            label = f"sd_sigma[{factor.name}, {coef}]"
            result.append(Parameter(label, "sd_sigma", factor.name, (coef,), f, (i,)))
        for pair in structure_of(factor).pairs:
            first, second = sorted(pair)
            terms = (factor.coefs[first], factor.coefs[second])
            label = f"cor_sigma[{factor.name}, {', '.join(terms)}]"
            result.append(Parameter(label, "cor_sigma", factor.name, terms, f, (first, second)))
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
    if parameter.kind == "beta":
        return dataset[BETA].values[..., parameter.index[0]]
    if parameter.kind in RESIDUAL_KINDS:
        values = dataset[parameter.kind].values
        return values if values.ndim == 2 else values[..., parameter.index[0]]
    if parameter.kind == "nu":
        return dataset[NU].values
    if parameter.kind == "beta_sigma":
        return dataset[BETA_SIGMA].values[..., parameter.index[0]]
    of_scale = parameter.kind in SCALE_KINDS and design.scale_rows is not None
    factors = design.scale_rows.random if of_scale and design.scale_rows else design.random
    key = factors[parameter.factor].key
    name = sd_name(key) if parameter.kind in ("sd", "sd_sigma") else cor_name(key)
    values = dataset[name].values
    for position in reversed(parameter.index):
        values = values[..., position]
    return values


def joint_parameter(draws: JointDraws | Points | WorkingPoints, row: Parameter) -> Array:
    """Draws (S,) of one parameter; correlations in [-1, 1] in spite of rounding."""
    if row.kind == "beta":
        return draws.beta[:, row.index[0]]
    points = draws if isinstance(draws, Points | WorkingPoints) else draws.points
    if row.kind in RESIDUAL_KINDS:
        return points.natural[RESIDUAL_KINDS.index(row.kind)][:, row.index[0]]
    sds, chols = points.sds, points.chols
    if row.kind in SCALE_KINDS:
        assert points.scale is not None
        sds, chols = points.scale.sds, points.scale.chols
        if row.kind == "nu":
            return np.asarray(points.scale.nu)
        if row.kind == "beta_sigma":
            return points.scale.gamma[:, row.index[0]]
    if row.kind in ("sd", "sd_sigma"):
        return sds[row.factor][:, row.index[0]]
    pair = chols[row.factor][:, list(row.index)]
    return np.clip(np.sum(pair[:, 0] * pair[:, 1], axis=1), -1.0, 1.0)


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


# --- tidy tables with broom.mixed's columns, for estimates and posteriors alike ----------

Effects = Literal["fixed", "ran_pars", "ran_vals", "ran_coefs"]
EFFECTS: tuple[Effects, ...] = get_args(Effects)

TIDY = ["effect", "group", "level", "term", "estimate", "std_error", "conf_low", "conf_high"]
"""Terms of covariance parameters are ``sd__Intercept``, ``cor__Intercept.Days`` and, with group
"Residual", ``sd__Observation``."""


def check_effects(effects: str | Iterable[str]) -> tuple[str, ...]:
    """Names of effects as a tuple; refuses anything else."""
    effects = (effects,) if isinstance(effects, str) else tuple(effects)
    unknown = [name for name in effects if name not in EFFECTS]
    if unknown:
        raise ValueError(
            f"effects={unknown!r}: one or several of {', '.join(map(repr, EFFECTS))} are expected."
        )
    return effects


def kinds_of(effects: Sequence[str]) -> tuple[Kind, ...]:
    """Kinds of parameters that effects ask for."""
    fixed: tuple[Kind, ...] = ("beta",) if "fixed" in effects else ()
    return (*fixed, *KINDS[1:]) if "ran_pars" in effects else fixed


def broom(table: pd.DataFrame) -> pd.DataFrame:
    """A table of parameters with effect, group and term as broom.mixed names them."""

    def names(kind: str, group: str | None, *coefs: str | None) -> tuple[str, str | None, Any]:
        if kind == "beta":
            return "fixed", None, coefs[0]
        if kind in (*RESIDUAL_KINDS, "nu", "beta_sigma"):
            name = "sd" if kind == "sigma" else kind.removesuffix("_residual")
            of = ".".join(filter(None, coefs)) or "Observation"
            return "ran_pars", "Residual", f"{name}__{of}"
        return "ran_pars", group, f"{kind}__{'.'.join(filter(None, coefs))}"

    columns = (table[name] for name in ("kind", "group", "coef", "coef_2"))
    rows = [names(*row) for row in zip(*columns, strict=True)]
    found = pd.DataFrame(rows, columns=["effect", "group", "term"])
    numbers = table.drop(columns=["kind", "group", "coef", "coef_2"]).reset_index(drop=True)
    return pd.concat([found, numbers], axis=1)


def level_rows(
    factor: RandomFactor, effect: str, labels: Sequence[str], numbers: Mapping[str, Any]
) -> pd.DataFrame:
    """A row per level and coefficient, from numbers (J, k) or (J k,)."""
    names = {
        "effect": effect,
        "group": factor.name,
        "level": np.repeat(np.asarray(factor.levels), len(labels)),
        "term": np.tile(np.asarray(labels, dtype=object), factor.n_levels),
    }
    return pd.DataFrame({**names, **{name: np.ravel(values) for name, values in numbers.items()}})


# --- scales ----------------------------------------------------------------------------


def unconstrained(kind: Kind, values: Array) -> Array:
    """Values on the scale where intervals are symmetric: log sds, atanh correlations."""
    if kind in UNBOUNDED:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.arctanh(values) if kind in CORRELATIONS else np.log(values)


def natural(kind: Kind, values: Any) -> Any:
    """Values as tables show them, undoing :func:`unconstrained`."""
    if kind in UNBOUNDED:
        return values
    return np.tanh(values) if kind in CORRELATIONS else np.exp(values)


def slope(kind: Kind, value: float) -> float:
    """Derivative of :func:`unconstrained`; infinite or NaN at a boundary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind in UNBOUNDED:
            return 1.0
        derivative = 1.0 - np.float64(value) ** 2 if kind in CORRELATIONS else np.float64(value)
        return float(1.0 / derivative)


# --- the matrices of the textbook: G, R and V = ZGZ' + R, and VarCorr ---------------------


MAX_DENSE = 10_000
"""Largest order returned as a dense labelled matrix: 800 MB."""


def random_covariance(
    design: Design, covariances: Sequence[Array], *, sparse: bool = False
) -> pd.DataFrame | sp.csr_array:
    """G, the covariance matrix of all random effects.

    Parameters
    ----------
    design : Design
        The design.
    covariances : sequence of ndarray (k, k)
        Covariance matrix of each grouping factor's coefficients, on the response scale.
    sparse : bool
        Return a scipy sparse array instead of a labelled data frame.

    Returns
    -------
    pandas.DataFrame or scipy.sparse.csr_array (q, q)
        Rows and columns in the order of the columns of Z: factor, level, coefficient.
    """
    if not design.random:
        return labelled_matrix(sp.csr_array((0, 0)), design.Z_labels(), "G", sparse)
    blocks = [
        sp.kron(_between_levels(factor), sp.csr_array(sigma))
        for factor, sigma in zip(design.random, covariances, strict=True)
    ]
    own = design.own_columns()
    matrix = sp.csr_array(sp.csr_array(sp.block_diag(blocks))[own][:, own])
    return labelled_matrix(matrix, design.Z_labels(), "G", sparse)


def _between_levels(factor: RandomFactor) -> sp.sparray:
    known = factor.relationship
    return sp.eye_array(factor.n_levels) if known is None else sp.csr_array(known.covariance)


AT_ONCE = 100
"""Draws whose residual variances of all rows are held at once."""

MOST_POINTS = 1000
"""Draws over which R of correlated residuals is averaged."""


def residual_covariance(design: Design, points: Points) -> sp.csr_array:
    """R, the covariance matrix (n, n) of the residuals, its mean over the points."""
    if points.scale is not None:
        require_variance(points)
        total = np.zeros(design.n)
        for s in range(0, len(points.sigma), AT_ONCE):
            total += residual_variances(design, points.take(slice(s, s + AT_ONCE))).sum(axis=0)
        return sp.csr_array(sp.diags_array(total / len(points.sigma)))
    if design.residual_rows is None:
        diagonal = np.mean(points.sigma**2) / design.row_weights
        return sp.csr_array(sp.diags_array(diagonal))
    size = len(points.sigma)
    chosen = np.linspace(0, size - 1, min(size, MOST_POINTS)).round().astype(np.intp)
    some = points.take(chosen)
    matrix = some.residual.covariance(design.residual_rows, some.sigma, some.shapes)
    root = sp.diags_array(1.0 / np.sqrt(design.row_weights))
    return sp.csr_array(root @ matrix @ root)


def response_covariance(
    design: Design, covariances: Sequence[Array], residual: sp.csr_array
) -> sp.csr_array:
    """V = ZGZ' + R, the marginal covariance matrix of the response."""
    z = design.Z_matrix()
    g = random_covariance(design, covariances, sparse=True)
    return sp.csr_array(z @ g @ z.T + residual)


def labelled_matrix(
    matrix: sp.csr_array, labels: pd.Index, name: str, sparse: bool
) -> pd.DataFrame | sp.csr_array:
    """A matrix as a table, unless it is asked for sparse or too large for one."""
    if sparse:
        return matrix
    if matrix.shape[0] > MAX_DENSE:
        raise DataError(
            f"{name} has {matrix.shape[0]:,} rows; as a dense table at most {MAX_DENSE:,} are "
            f"possible. Ask for it as a sparse array: {name}(sparse=True)."
        )
    return pd.DataFrame(matrix.toarray(), index=labels, columns=labels)


def variance_frame(
    design: Design, covariances: Sequence[Array], residuals: Sequence[float]
) -> pd.DataFrame:
    """Variances, covariances, standard deviations and correlations (lme4's ``VarCorr``).

    Parameters
    ----------
    design : Design
        The design.
    covariances : sequence of ndarray (k, k)
        Covariance matrix of each grouping factor's coefficients.
    residuals : sequence of float
        Values of the residuals' parameters: standard deviations, powers, correlations.

    Returns
    -------
    pandas.DataFrame
        Columns group, term, term_2 (of a covariance, else missing), vcov, sdcor.
    """
    sds = [np.sqrt(np.diag(cov)) for cov in covariances]  # (k,) per grouping factor
    rows: list[tuple[str | None, str | None, str | None, float, float]] = []
    for p in random_parameters(design):
        i, j = p.index[0], p.index[-1]
        value, product = covariances[p.factor][i, j], sds[p.factor][i] * sds[p.factor][j]
        if p.kind == "sd":
            rows.append((p.group, p.terms[0], None, value, sds[p.factor][i]))
        else:
            rows.append((p.group, *p.terms, value, value / product if product > 0 else np.nan))
    for p, value in zip(residual_parameters(design), residuals, strict=True):
        squared = value**2 if p.kind in ("sigma", "sd_sigma") else np.nan
        name = p.label if p.kind != "sigma" else "".join(p.terms) or None
        rows.append(("Residual", name, None, squared, value))
    frame = pd.DataFrame(rows, columns=["group", "term", "term_2", "vcov", "sdcor"])
    text = frame["group"].dtype  # what pandas makes of text, whether or not a column has any
    return frame.astype({"term": text, "term_2": text})
