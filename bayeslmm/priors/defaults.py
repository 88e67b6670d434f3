"""Default and user priors of a design.

One principle: a prior speaks about the linear predictor, in the units of the response. Then neither
units, origin, contrasts nor basis of the columns change what the model says. For fixed effects it
is a joint normal prior on orthonormal combinations of the columns; for a block of correlated random
effects it is a prior on the working columns, each of which is what a column adds to those before
it. What is not invariant is the coding of a factor inside such a block, ``(f | g)`` against
``(0 + f | g)``, because half-t standard deviations and uniform correlations depend on the axes.

References
----------
Goodrich, Gabry, Ali, Brilleman: rstanarm's ``QR = TRUE``; Buerkner (2017),
doi:10.18637/jss.v080.i01, brms's ``decomp = "QR"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.covariance.coordinates import plain_coordinates
from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.residual import Residual
from bayeslmm.covariance.structure import DEPENDENT
from bayeslmm.data.design import Design, RandomFactor, Spec
from bayeslmm.exceptions import PriorError
from bayeslmm.formula.moments import Moments, moments_of
from bayeslmm.priors.families import LKJ, Fixed, Flat, HalfFlat, HalfStudentT, Normal, Prior
from bayeslmm.priors.fixed import fixed_by_slot, held_coordinates
from bayeslmm.priors.keys import INTERCEPT, Slot, addressed, priors_by_slot, slot_names
from bayeslmm.priors.record import Labels, Priors, sd_label, uniform_correlations
from bayeslmm.priors.residual import ResidualPriors, uniform_residual_correlations
from bayeslmm.priors.scale import DEGREES_OF_FREEDOM as DEGREES
from bayeslmm.priors.scale import LOG_SCALE, ScaleLabels, ScalePriors

Array = NDArray[np.float64]
Preset = Literal["default", "flat"]
Given = Mapping[Slot, Prior | LKJ]

WIDTH = 2.5
DEGREES_OF_FREEDOM = 3.0

ROUNDING = 1e-12
"""Share of a column along another one that is rounding."""


def default_priors(design: Design) -> Priors:
    """Weakly informative priors on the linear predictor.

    With s_y the standard deviation of the response, offset subtracted:

    - the linear predictor at the column means of X is Normal(mean of y, 2.5 s_y), and orthonormal
      combinations of the centred columns, of standard deviation one, have coefficients
      Normal(0, 2.5 s_y); so beta is jointly normal, and the coefficient of a single covariate
      Normal(0, 2.5 s_y / s_x). Where X does not span the constant, the combinations are of the
      columns as they are, of root mean square one, around zero, with rms(y) for s_y;
    - a block of correlated random effects has HalfStudentT(3, s_y / s) standard deviations and
      LKJ(1) correlations on its working columns: each column less its part along earlier ones, of
      standard deviation s (root mean square in a block without the constant); with ``by=``, the
      columns of a stratum are taken in its own rows;
    - a block with a covariance pattern, such as ``cs(0 + f | g)``, stays in the columns that users
      see: HalfStudentT(3, s_y / s) standard deviations with s the root mean square of a column
      where it is not zero, one for an indicator, and correlation parameters that are uniform over
      the range in which the matrix is positive definite;
    - sigma is HalfStudentT(3, s_y), that of each stratum or occasion where there are several;
      powers and exponents of covariates in it are Normal(0, 1), correlations of residuals uniform:
      LKJ(1), or each parameter uniform on its range.

    - degrees of freedom of Student-t residuals are Gamma(2, 0.1); where the residual scale has
      predictors, sigma is that at their column means, and what changes its log has the priors of
      ``bayeslmm.priors.scale``.

    Parameters
    ----------
    design : Design
        The design of a model.

    Returns
    -------
    Priors

    Raises
    ------
    PriorError
        If the response does not vary, so that it sets no scale.
    """
    return _assemble(design, "default", {})


def flat_priors(design: Design) -> Priors:
    """Flat priors on beta, standard deviations and sigma, uniform ones on correlation matrices.

    The posterior mode of the covariance parameters is then the REML estimate.

    Parameters
    ----------
    design : Design
        The design of a model.

    Returns
    -------
    Priors
    """
    return _assemble(design, "flat", {})


def resolve_priors(
    design: Design,
    user: str | Mapping[str, Any] | Priors | None = None,
    *,
    preset: Preset = "default",
) -> Priors:
    """Priors of a model: the defaults, a preset, or the defaults with a user's changes.

    A coefficient with a prior of the user's stands alone; the others keep the default rule on
    their own columns. A block of random effects with any prior of the user's is in the columns
    that users see, with the default HalfStudentT(3, s_y / rms of the column) and LKJ(1) for what
    they left open.

    Parameters
    ----------
    design : Design
        The design of a model.
    user : {"default", "flat"}, mapping or Priors, optional
        A mapping goes from keys to PyMC distributions made with ``.dist``, to texts such as
        ``"normal(0, 10)"`` or to the records of this package. Keys are "Intercept" (the linear
        predictor at the column means), a coefficient's label or "beta[label]", "beta" (all but the
        intercept), "sd", "sd[factor]", "sd[factor, coef]", "cor", "cor[factor]" and "sigma"; with
        ``by=f``, also "sd[factor, f[level]]" and "cor[factor, f[level]]" for a stratum. The more
        specific key wins, whatever the order.
    preset : {"default", "flat"}
        What a mapping changes.

    Returns
    -------
    Priors

    Raises
    ------
    PriorError
        For an unknown key, which lists the valid ones, or a distribution that does not fit.
    """
    if isinstance(user, Priors):
        return user
    if user is None or user == "default":
        return default_priors(design)
    if user == "flat":
        return flat_priors(design)
    if not isinstance(user, Mapping):
        raise PriorError(
            f"priors={user!r} is not understood: give 'default', 'flat' or a mapping from "
            "parameters to distributions."
        )
    labels = labels_of(design.spec)
    given = priors_by_slot(labels, user)
    _check_free(labels, design.spec, user, fixed_by_slot(labels, design.spec))
    return _assemble(design, preset, given)


def _check_free(
    labels: Labels, spec: Spec, user: Mapping[str, Any], held: Mapping[Slot, Fixed]
) -> None:
    """Refuse priors on nothing but parameters that are known."""
    known = {slot_names(labels)[slot] for slot in held}
    for key in user:
        if known and addressed(labels, [key]) <= known:
            why = "by known standard errors" if key not in spec.known else "by fixed="
            raise PriorError(f"{key!r} is held {why} and has no prior: take it out of priors=.")


def labels_of(spec: Spec) -> Labels:
    """The names of a model's parameters."""
    return Labels(
        coefs=spec.fixed.coefs,
        factors=tuple(factor.name for factor in spec.random),
        factor_coefs=tuple(factor.coefs for factor in spec.random),
        blocks=tuple(factor.blocks for factor in spec.random),
        kinds=tuple(factor.kinds for factor in spec.random),
        residual=spec.residual_structure,
        strata=tuple(factor.stratum_names for factor in spec.random)
        if any(factor.divided for factor in spec.random)
        else (),
        scale_labels=scale_labels(spec),
    )


def scale_labels(spec: Spec) -> ScaleLabels | None:
    """The names of the parameters of Student-t residuals and of predictors of their scale."""
    if spec.conditional is None:
        return None
    random = () if spec.scale is None else spec.scale.random
    return ScaleLabels(
        student=spec.family == "student",
        coefs=() if spec.scale is None else spec.scale.coefs,
        factors=tuple(factor.name for factor in random),
        factor_coefs=tuple(factor.coefs for factor in random),
        blocks=tuple(factor.blocks for factor in random),
    )


def _assemble(design: Design, preset: Preset, given: Given) -> Priors:
    labels = labels_of(design.spec)
    held = fixed_by_slot(labels, design.spec)
    given = {**given, **held}
    scale = _response_scale(design) if preset == "default" else 1.0
    fixed = _fixed(design, preset, given)
    terms = [_random(f, factor, preset, given, scale) for f, factor in enumerate(design.random)]
    mean, root, sampled = _beta_moments(fixed.priors, fixed.rows)
    names = slot_names(labels)
    sources: dict[Slot, str] = dict.fromkeys(given, "user") | dict.fromkeys(held, "fixed")
    plain = plain_coordinates(labels.structures, labels.residual)
    scale_priors, where = _scale(design, preset, given)
    return Priors(
        **vars(labels),
        fixed_map=fixed.rows,
        beta=fixed.priors,
        alone=fixed.alone,
        beta_mean=mean,
        beta_root=root,
        beta_sampled=sampled,
        mixing=tuple(term.mixing for term in terms),
        sd=tuple(term.sd for term in terms),
        cor=tuple(term.cor for term in terms),
        residuals=_residual(labels.residual, preset, given, scale),
        sources={name: sources.get(slot, _open(slot, preset)) for slot, name in names.items()},
        held=held_coordinates(plain, held).held,
        where=fixed.where | {k: v for term in terms for k, v in term.where.items()} | where,
        scale=scale_priors,
    )


def _residual(structure: Residual, preset: Preset, given: Given, scale: float) -> ResidualPriors:
    """Half-t standard deviations, Normal(0, 1) powers, uniform correlations."""
    open_power = Flat() if preset == "flat" else Normal(0.0, 1.0)

    def priors(kind: str, count: int, default: Prior) -> tuple[Prior, ...]:
        found = [given.get((kind, 0, j), default) for j in range(count)]
        return tuple(prior for prior in found if not isinstance(prior, LKJ))

    uniform = uniform_residual_correlations(structure.correlation)
    arms = () if uniform is None else structure.arms
    cors = [given.get(("cor_residual", 0, arm), uniform) for arm in range(len(arms))]
    return ResidualPriors(
        structure=structure,
        sd=priors("sigma", len(structure.scales), _open_scale(preset, scale)),
        power=priors("power", len(structure.powers), open_power),
        cor=tuple(prior for prior in cors if prior is not None),
    )


def _open(slot: Slot, preset: Preset) -> str:
    """Where a prior that is not given comes from: that of nu has to be proper."""
    return "default" if slot[0] == "nu" else preset


def _scale(
    design: Design, preset: Preset, given: Given
) -> tuple[ScalePriors | None, dict[str, str]]:
    """Priors of the tails and of the predictors of the scale, and words for some of them."""
    if design.spec.conditional is None:
        return None, {}
    free = {slot: prior for slot, prior in given.items() if not isinstance(prior, LKJ)}
    nu = free.get(("nu", 0, 0), DEGREES) if design.spec.family == "student" else None
    rows, spec = design.scale_rows, design.spec.scale
    W = np.empty((design.n, 0)) if rows is None else rows.W
    q, where = W.shape[1], {}
    own = {j: prior for (kind, _, j), prior in free.items() if kind == "beta_sigma"}
    rest = [j for j in range(q) if j == 0 or (j not in own and preset == "default")]
    fixed_map = np.eye(q)
    if spec is not None:
        fixed_map[np.ix_(rest, rest)] = fixed_coordinates(W[:, rest]).rows
        fixed_map[0] = W.mean(axis=0)
        where = {"sigma": f"at the column means of {spec.formula.source}"}
    open_coef = Flat() if preset == "flat" else Normal(0.0, LOG_SCALE)
    kinds = {"sd_sigma": "sd", "cor_sigma": "cor"}
    found = {(kinds[kind], f, s): p for (kind, f, s), p in given.items() if kind in kinds}
    terms = [
        _random(f, factor, preset, found, LOG_SCALE)
        for f, factor in enumerate(() if rows is None else rows.random)
    ]
    for term in terms:
        where |= {f"sd_sigma{name.removeprefix('sd')}": words for name, words in term.where.items()}
    return ScalePriors(
        nu=nu,
        fixed_map=fixed_map,
        gamma=tuple(own.get(j, open_coef) for j in range(1, q)),
        alone=tuple(j not in rest for j in range(1, q)),
        mixing=tuple(term.mixing for term in terms),
        sd=tuple(term.sd for term in terms),
        cor=tuple(tuple(p if isinstance(p, LKJ) else None for p in term.cor) for term in terms),
    ), where


def _response_scale(design: Design) -> float:
    moments = design.moments
    if moments.n < 2 or moments.constant[-1]:
        raise PriorError(
            f"The response {design.response!r} does not vary, so it sets no scale for the default "
            "priors."
        )
    return float(np.sqrt(moments.variances[-1]))


def _open_scale(preset: Preset, scale: float) -> Prior:
    return HalfFlat() if preset == "flat" else HalfStudentT(DEGREES_OF_FREEDOM, scale)


# --- fixed effects ---------------------------------------------------------------------


class _Fixed(NamedTuple):
    """Priors on ``gamma = rows @ beta``."""

    rows: Array
    priors: tuple[Prior, ...]
    alone: tuple[bool, ...]
    where: dict[str, str]


def _fixed(design: Design, preset: Preset, given: Given) -> _Fixed:
    moments, p = design.moments, design.p
    intercept = _intercept(design.coefs, moments)
    own = {j: prior for (kind, _, j), prior in given.items() if kind == "beta"}
    priors: list[Any] = [own.get(j, Flat()) for j in range(p)]
    rows, alone = np.eye(p), np.ones(p, dtype=bool)
    if preset == "default":
        alone = np.array([j in own for j in range(p)], dtype=bool)
        rest = np.flatnonzero(~alone if intercept is None else ~alone | (np.arange(p) == intercept))
        _fill_joint(moments, rest, intercept, rows, priors)
        for j, prior in own.items():
            priors[j] = prior
    where = {}
    if intercept is not None:
        rows[intercept] = moments.means[:p]
        alone[intercept] = True
        if p > 1:
            where[INTERCEPT] = "at the column means"
    return _Fixed(rows, tuple(priors), tuple(alone.tolist()), where)


def _fill_joint(
    moments: Moments,
    rest: NDArray[np.intp],
    intercept: int | None,
    rows: Array,
    priors: list[Any],
) -> None:
    """The default rule on the columns `rest`, written into rows (p, p) and priors."""
    found = fixed_coordinates(moments.take(rest))
    spread = np.sqrt(moments.variances) if found.centred else moments.root_mean_squares
    width = WIDTH * float(spread[-1])
    places = rest
    if intercept is not None:  # its row is the first
        places = np.concatenate([[intercept], rest[rest != intercept]])
    rows[places] = 0.0
    rows[np.ix_(places, rest)] = found.rows
    for number, place in enumerate(places):
        centre = float(moments.means[-1]) if found.centred and number == 0 else 0.0
        priors[place] = Normal(centre, width)


def _intercept(coefs: Sequence[str], moments: Moments) -> int | None:
    """Position of the intercept among the columns of X."""
    if INTERCEPT not in coefs:
        return None
    position = coefs.index(INTERCEPT)
    return position if moments.low[position] == moments.high[position] == 1.0 else None


def _beta_moments(beta: Sequence[Prior], rows: Array) -> tuple[Array, Array | None, bool]:
    """Mean, root of the precision and whether beta has to be sampled, from the priors on gamma."""
    normal = [prior for prior in beta if isinstance(prior, Normal)]
    if len(normal) == len(beta):
        mean = np.linalg.solve(rows, np.array([prior.mu for prior in normal]))
        return mean, rows / np.array([prior.sigma for prior in normal])[:, None], False
    flat = all(type(prior) is Flat for prior in beta)
    return np.zeros(len(beta)), None, not flat


# --- random effects --------------------------------------------------------------------


class _Term(NamedTuple):
    """Priors of one grouping factor."""

    mixing: Array
    sd: tuple[Prior, ...]
    cor: tuple[LKJ | Prior | None, ...]
    where: dict[str, str]


def _random(f: int, factor: RandomFactor, preset: Preset, given: Given, scale: float) -> _Term:
    structure = structure_of(factor)
    mixing = np.eye(factor.n_coefs)
    sd: list[Any] = [None] * structure.n_sds
    cor: list[Any] = []
    where: dict[str, str] = {}
    for b, (block, part) in enumerate(zip(structure.blocks, structure.parts, strict=True)):
        columns = list(block)
        own = structure.sd_places[columns]
        touched = ("cor", f, b) in given or any(("sd", f, s) in given for s in own)
        z = factor.moments(columns)
        units = root_mean_squares(z)
        if isinstance(part, Pattern):
            units = sizes(z, part.homogeneous)
        elif not touched and preset == "default":
            found = working_columns(z)
            mixing[np.ix_(columns, columns)], units = found.mixing, found.scales
            where |= dict(_places(factor, columns, found.mixing))
        for s, unit in zip(own, units, strict=True):
            sd[s] = given.get(("sd", f, int(s)), _open_scale(preset, scale / unit))
        cor.append(given.get(("cor", f, b), uniform_correlations(part)))
    return _Term(mixing, tuple(sd), tuple(cor), where)


def _places(
    factor: RandomFactor, columns: Sequence[int], mixing: Array
) -> Iterator[tuple[str, str]]:
    """Words for the working columns of a block that are not a single column of the user's.

    A working coefficient is the effect of its column while the later ones follow it: of the
    constant, the random effect at their means.
    """
    follow = np.linalg.inv(mixing)
    part = np.abs(follow) / np.linalg.norm(follow, axis=0)  # of a column along each working column
    for i, column in enumerate(columns):
        others = [j for j in range(len(columns)) if j != i and part[i, j] > ROUNDING]
        if not others:
            continue
        constant = factor.moments([column]).constant[0]
        parts = [f"{factor.coefs[columns[j]]} = {follow[i, j]:.4g}" for j in others]
        words = f"at {', '.join(parts)}" if constant else f"per unit, with {', '.join(parts)}"
        yield sd_label(factor.name, factor.coefs[column]), words


# --- the columns about which default priors speak ----------------------------------------


IN_SPAN = 1e-8
"""Root mean square distance of a combination of columns from the constant that counts as none."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkingColumns:
    """Working columns ``z @ mixing`` of one block of k random-effects columns z (n, k).

    Attributes
    ----------
    mixing : ndarray (k, k)
        One on the diagonal: a working column is a column less its part along earlier ones.
    scales : ndarray (k,)
        Standard deviation of each working column where the block has the constant, which itself
        counts one; root mean square where it has not.
    """

    mixing: Array
    scales: Array


def working_columns(z: Array | Moments) -> WorkingColumns:
    """Orthogonalise the columns (n, k) of a block in the order written, the constant first.

    A single column, and a block whose columns depend on each other, stays as it is.
    """
    z = moments_of(z)
    k = len(z.constant)
    has_constant = bool(np.any(z.constant & (z.low != 0.0)))
    order = np.argsort(~z.constant, kind="stable") if has_constant else np.arange(k)
    r = np.linalg.qr(z.columns[:, order], mode="r")
    diagonal = np.abs(np.diag(r))
    if k == 1 or np.any(diagonal <= DEPENDENT * np.linalg.norm(r, axis=0)):
        return WorkingColumns(np.eye(k), root_mean_squares(z))
    inverse = solve_triangular(r / np.diag(r)[:, None], np.eye(len(r)), unit_diagonal=True)
    mixing, scales = np.empty_like(r), np.empty(len(r))
    mixing[np.ix_(order, order)] = inverse
    scales[order] = diagonal / np.sqrt(z.n - 1.0 if has_constant else z.n)
    if has_constant:
        scales[order[0]] = 1.0
    return WorkingColumns(mixing, scales)


def column_scales(columns: Moments) -> Array:
    """Standard deviation (k,) of each column, one for a constant one."""
    if columns.n < 2:
        return np.ones(len(columns.constant))
    return np.where(columns.constant, 1.0, np.sqrt(columns.variances))


def covariate_scales(factor: RandomFactor) -> Array:
    """Standard deviation (k,) of each covariate in the rows of the levels that have it."""
    return np.concatenate([column_scales(factor.moments([c])) for c in range(factor.n_coefs)])


def root_mean_squares(columns: Moments) -> Array:
    """Root mean square (k,) of each column; one for a constant one, and where all is zero."""
    rms = columns.root_mean_squares
    return np.where(columns.constant | (rms == 0), 1.0, rms)


def sizes(columns: Moments, together: bool) -> Array:
    """Root mean square (k,) of each column over the rows in which it is not zero.

    An indicator has size one. The columns may be taken together.
    """
    counts, squares = columns.filled, columns.n * columns.root_mean_squares**2
    if together:
        counts, squares = np.full_like(counts, counts.sum()), np.full_like(squares, squares.sum())
    return np.where(counts > 0, np.sqrt(squares / np.maximum(counts, 1)), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class FixedCoordinates:
    """Combinations ``gamma = rows @ beta`` that are worth one unit of the linear predictor each.

    Attributes
    ----------
    rows : ndarray (p, p)
    centred : bool
        Whether the first row of `rows` is the linear predictor at the column means, and the others
        have standard deviation one; otherwise all have root mean square one.
    """

    rows: Array
    centred: bool


def fixed_coordinates(x: Array | Moments) -> FixedCoordinates:
    """Coordinates of the coefficients of columns x (n, p) of full rank.

    With the constant in their span the first is the linear predictor at the column means, and the
    others are orthonormal combinations of the centred columns; else of the columns themselves.
    """
    x = moments_of(x)
    n, p = x.n, len(x.constant)
    if p == 0:
        return FixedCoordinates(np.empty((0, 0)), False)
    lengths = np.linalg.norm(x.columns, axis=0)
    scaled = x.columns / lengths
    constant = np.flatnonzero(x.constant)
    if not constant.size and not _is_combination(x.ones, scaled):
        return FixedCoordinates(np.linalg.qr(scaled, mode="r") * lengths / np.sqrt(n), False)
    means = x.means
    rows = np.empty((p, p))
    if constant.size:
        others = np.delete(np.arange(p), constant[0])
        order = np.concatenate([constant[:1], others])
        rows[:, constant[0]] = 0.0
        rows[np.ix_(order[1:], others)] = _centred_root(x.centred[:, others], n)
        rows[constant[0]] = means
        return FixedCoordinates(rows[order], True)
    rows[0] = means
    rows[1:] = _reduced_root(x.centred, n)
    return FixedCoordinates(rows, True)


def _is_combination(target: Array, columns: Array) -> bool:
    weights = np.linalg.lstsq(columns, target, rcond=None)[0]
    rest = np.linalg.norm(columns @ weights - target)
    return bool(rest <= IN_SPAN * np.linalg.norm(target))


def _centred_root(centred: Array, n: int) -> Array:
    """Upper triangular R (q, q) with R'R the covariance matrix of centred columns."""
    return np.asarray(np.linalg.qr(centred, mode="r")) / np.sqrt(n - 1.0)


def _reduced_root(centred: Array, n: int) -> Array:
    """Root (p - 1, p) of the covariance matrix of centred columns of rank p - 1."""
    lengths = np.linalg.norm(centred, axis=0)
    safe = np.where(lengths > 0, lengths, 1.0)
    _, values, vectors = np.linalg.svd(centred / safe, full_matrices=False)
    return values[:-1, None] * vectors[:-1] * safe / np.sqrt(n - 1.0)
