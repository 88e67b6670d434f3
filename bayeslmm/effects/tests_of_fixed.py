"""F tests of fixed effects: of given weights, and type I, II and III tests of the terms."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bayeslmm.data.design import Design
from bayeslmm.effects.terms import FixedPart, Term, fixed_part
from bayeslmm.estimation.inference import Inference
from bayeslmm.summaries.text import listed

Array = NDArray[np.float64]

COLUMNS = ("sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value")

MAP_NOTE = (
    "A MAP estimate: the covariance matrix of the fixed effects is a posterior one, and the tests "
    "are chi-square tests (F with infinite den_df)."
)

NO_SQUARES = (
    "Sums of squares are left out: residuals of a structure (residual=) have no one variance that "
    "they could be compared with."
)


def f_test(inference: Inference, matrix: Array, value: Array | None = None) -> dict[str, float]:
    """Test the hypothesis ``matrix @ beta == value``.

    Parameters
    ----------
    inference : Inference
        The estimate, and how its fixed effects are judged.
    matrix : ndarray (q, p)
        Weights of the coefficients; repeated rows count once.
    value : ndarray (q,), optional
        Zeros by default.

    Returns
    -------
    dict of str to float
        sum_sq and mean_sq, the sum of squares of the hypothesis on the scale of the residuals and
        over num_df, before F is scaled (Kenward-Roger, cluster-robust); num_df, den_df, statistic
        and p_value of F. NaN where the hypothesis is empty.
    """
    value = np.zeros(len(matrix)) if value is None else value
    statistic, count, den_df, factor = inference.f_test(matrix, value)
    if count == 0:
        return dict.fromkeys(COLUMNS, np.nan) | {"num_df": 0}
    with np.errstate(divide="ignore", invalid="ignore"):  # fewer clusters than rows
        mean_sq = float(np.float64(statistic) / factor) * inference.fit.sigma**2
    numbers = (count * mean_sq, mean_sq, count, den_df, statistic, f_tail(statistic, count, den_df))
    return dict(zip(COLUMNS, numbers, strict=True))


def f_tail(statistic: float, num_df: int, den_df: float) -> float:
    """Probability of a larger F."""
    if np.isinf(den_df):
        return float(stats.chi2.sf(num_df * statistic, num_df))
    return float(stats.f.sf(statistic, num_df, den_df))


def noted(inference: Inference, table: pd.DataFrame, note: str = "") -> pd.DataFrame:
    """Put into ``attrs["note"]`` what a reader should know, and what the tests use.

    Sums of squares on the scale of the residuals are left out where these have no one scale.
    """
    fit = inference.fit
    notes = [MAP_NOTE] * (fit.method == "MAP") + [text for text in (inference.note, note) if text]
    if not fit.plan.residual.plain:
        table = table.drop(columns=["sum_sq", "mean_sq"])
        notes.append(NO_SQUARES)
    if notes:
        table.attrs["note"] = " ".join(notes)
    return table


def contest_table(
    inference: Inference, coefs: Sequence[str], weights: ArrayLike, value: ArrayLike | None
) -> pd.DataFrame:
    """Joint F test of given weights; arguments as in ``estimate.contest()``."""
    if isinstance(weights, Mapping):
        raise TypeError(
            "L is a mapping; rows of weights are expected: an array, or a data frame whose columns "
            "are coefficients, such as pd.DataFrame({'x': [1], 'z': [-1]})."
        )
    if isinstance(weights, pd.DataFrame):
        unknown = [str(name) for name in weights.columns if name not in coefs]
        if unknown:
            raise ValueError(
                f"L names {', '.join(unknown)}; the coefficients are {', '.join(coefs)}."
            )
        weights = weights.reindex(columns=list(coefs), fill_value=0.0).to_numpy()
    matrix = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != len(coefs) or not np.isfinite(matrix).all():
        raise ValueError(
            f"L has shape {np.shape(weights)}: finite weights, one column for each of the "
            f"{len(coefs)} coefficients {', '.join(coefs)}, are expected."
        )
    if not matrix.any(axis=1).all():
        raise ValueError("L has a row of zeros, which is no hypothesis about the coefficients.")
    right = None if value is None else np.atleast_1d(np.asarray(value, dtype=np.float64))
    if right is not None and right.shape != (len(matrix),):
        raise ValueError(f"rhs has shape {right.shape}; L has {len(matrix)} rows.")
    test = f_test(inference, matrix, right)
    table = pd.DataFrame([test], index=pd.Index(["contest"], name="test"))
    return noted(inference, table)


# --- hypotheses of the terms of the fixed part --------------------------------------

_log = logging.getLogger(__name__)

AnovaType = Literal[1, 2, 3]

ZERO = 1e-9
"""Singular value over the largest one that counts as zero."""

PIVOT = 1e-6
"""Length of what is left of a column over the longest one from which it counts as independent."""

TINY = 1e-300
"""Keeps ratios finite where every entry is zero."""


def term_hypotheses(design: Design, kind: AnovaType) -> dict[str, Array]:
    """Weights (q, p) of the coefficients that a test of each term sets to zero.

    Parameters
    ----------
    design : Design
        The design of a model.
    kind : {1, 2, 3}
        1: each term given those before it. 2: given all that do not contain it. 3: SAS' type III,
        which averages over the levels of other factors with equal weights whatever the coding of
        factors and however unbalanced the data.

    Returns
    -------
    dict of str to ndarray
        By term, without the intercept.

    Notes
    -----
    "Given" is without precision weights in types 1 and 2, as in lmerTest. A hypothesis has many
    sets of rows, and the degrees of freedom of Fai and Cornelius depend on the one chosen. In
    types 1 and 2 it is lmerTest's under treatment coding: each column of a term less its
    projection on all columns before it, also those of the term (Doolittle's rows), or in type 2
    the coefficients themselves for a term that no other contains. In a model of one term all
    types are the first. Terms of several covariates (polynomials, splines) have columns of unit
    length here, and degrees of freedom may differ there.

    References
    ----------
    SAS/STAT User's Guide, "The Four Types of Estimable Functions"; R's ``lmerTest::anova``.
    """
    return _hypotheses(fixed_part(design), kind)


def deletion_hypotheses(design: Design) -> dict[str, Array]:
    """Weights (q, p) of the coefficients that are zero without a term, by term.

    Of the terms whose variables no other term has all of (R's ``drop.scope``).
    """
    part = fixed_part(design)
    pieces = {term.label: term.factors | term.covariates for term in part.terms}
    rank, found = _rank_of(part.terms), {}
    for i, term in enumerate(part.terms):
        own = pieces[term.label]
        if not own or any(own < other for other in pieces.values()):
            continue
        others = [other for other in part.terms if other is not term]
        spanned = bool(others) and _rank_of(others) == rank
        found[term.label] = _nothing(part) if spanned else _sequential(part, part.terms, i, 2)
    return found


def _rank_of(terms: list[Term]) -> int:
    """Dimensions that terms span."""
    return _range(np.hstack([_unit(term.columns) for term in terms])).shape[1]


def _nothing(part: FixedPart) -> Array:
    """The empty hypothesis."""
    return np.empty((0, part.X.shape[1]))


def _used(part: FixedPart) -> list[Term]:
    """Terms that are no linear combinations of earlier ones."""
    used, given = [], np.empty((len(part.X), 0))
    for term in part.terms:
        wider = _range(np.hstack([given, _unit(term.columns)]))
        if wider.shape[1] > given.shape[1]:
            used.append(term)
        given = wider
    return used


def _hypotheses(part: FixedPart, kind: AnovaType) -> dict[str, Array]:
    found, used = {}, _used(part)
    for term in part.terms:
        if term not in used:
            found[term.label] = _nothing(part)
        elif term.label != "Intercept":
            single = sum(t.label != "Intercept" for t in used) == 1
            make = _type_three if kind == 3 and not single else _sequential
            found[term.label] = make(part, used, used.index(term), 1 if single else kind)
    return found


def _sequential(part: FixedPart, terms: list[Term], i: int, kind: AnovaType) -> Array:
    """Columns of a term less their projection on those of the terms it is adjusted for, times X."""
    term = terms[i]
    if kind == 1:
        given = terms[:i]
    else:
        given = [t for t in terms if t is not term and not term.contained_in(t)]
    left = _sized(term)
    if given:
        basis = _range(np.hstack([_sized(t) for t in given]))
        left = left - basis @ (basis.T @ left)
        left = left - basis @ (basis.T @ left)
    left = left[:, _pivots(left)]
    if kind == 1 or any(term.contained_in(t) for t in terms):
        orthogonal, triangle = np.linalg.qr(left)
        return _through_model(part, orthogonal / np.diag(triangle))
    return _through_model(part, left @ np.linalg.inv(left.T @ left))


def _sized(term: Term) -> Array:
    """Columns of a term, those of a factor keeping their relative sizes."""
    if not term.factors:
        return _unit(term.columns)
    return term.columns / np.linalg.norm(term.columns, axis=0).max()


def _type_three(part: FixedPart, terms: list[Term], i: int, kind: AnovaType) -> Array:
    """Estimable functions without effects outside the term, orthogonal to those of its superiors.

    They are written with a one for all levels but the first, as under treatment coding.
    """
    del kind
    term = terms[i]
    columns = [t.columns for t in terms]
    everything = np.hstack(columns)
    owner = np.repeat(np.arange(len(terms)), [c.shape[1] for c in columns])
    size = np.array([max(_root_mean_square(columns[j], part.n), TINY) for j in owner])
    above = [j for j, t in enumerate(terms) if term.contained_in(t)]
    rows = _range((everything / size).T).T
    outside = ~np.isin(owner, [i, *above])
    functions = _null(rows[:, outside].T).T @ rows
    # the rows are orthonormal, so those that the term takes part in, separated from those of its
    # superiors alone by the left singular vectors, are orthogonal to these
    functions = _range(functions[:, owner == i]).T @ functions
    own = functions[:, owner == i]
    functions = np.linalg.solve(own[:, _pivots(own)], functions)
    combine = np.linalg.lstsq((everything / size).T, functions.T)[0]
    return _through_model(part, combine / size[owner == i][0])


def _root_mean_square(columns: Array, n: int) -> float:
    """Of the sum of the columns of a term; indicators have one."""
    return float(np.linalg.norm(columns) / np.sqrt(n))


def _through_model(part: FixedPart, left: Array) -> Array:
    """Weights (q, p) of the coefficients in the combinations left' X b, exact for large means."""
    if not part.has_constant:
        return np.asarray(left.T @ part.X)
    means = part.ones @ part.X / part.n
    return left.T @ (part.X - np.outer(part.ones, means)) + np.outer(part.ones @ left, means)


def _unit(columns: Array) -> Array:
    lengths = np.linalg.norm(columns, axis=0)
    return columns / np.where(lengths > 0, lengths, 1.0)


def _pivots(matrix: Array) -> list[int]:
    """Independent columns, later ones preferred, in order."""
    chosen: list[int] = []
    basis = np.empty((len(matrix), 0))
    for j in reversed(range(matrix.shape[1])):
        left = matrix[:, j] - basis @ (basis.T @ matrix[:, j])
        left = left - basis @ (basis.T @ left)
        length = np.linalg.norm(left)
        if length > PIVOT * np.linalg.norm(matrix, axis=0).max():
            chosen.append(j)
            basis = np.column_stack([basis, left / length])
    return sorted(chosen)


def _range(matrix: Array) -> Array:
    """Orthonormal basis of the column space."""
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    return left[:, sizes > ZERO * max(sizes.max(initial=0.0), TINY)]


def _null(matrix: Array) -> Array:
    """Orthonormal basis (columns) of the vectors that the matrix sends to zero."""
    if not matrix.shape[0]:
        return np.eye(matrix.shape[1])
    _, sizes, right = np.linalg.svd(matrix, full_matrices=True)
    rank = int(np.sum(sizes > ZERO * max(1.0, sizes.max(initial=0.0))))
    return right[rank:].T


def anova_table(design: Design, inference: Inference, kind: AnovaType) -> pd.DataFrame:
    """F test of each term of the fixed part.

    Parameters
    ----------
    design : Design
        The design of the model.
    inference : Inference
        Its estimate, and how fixed effects are judged.
    kind : {1, 2, 3}
        As in :func:`term_hypotheses`.

    Returns
    -------
    pandas.DataFrame
        Columns sum_sq, mean_sq (neither where residuals have a structure), num_df, den_df,
        statistic and p_value, one row per term;
        ``attrs["note"]`` says what the tests are for "MAP", and of type 3 where a combination of
        levels has no rows.

    Raises
    ------
    TypeError
        If another fit is given.
    ValueError
        If the kind is unknown.
    """
    _check_kind(kind)
    part = fixed_part(design)
    tests = {label: f_test(inference, rows) for label, rows in _hypotheses(part, kind).items()}
    index = pd.Index(list(tests), name="term")
    table = pd.DataFrame(list(tests.values()), index=index, columns=list(COLUMNS))
    note = empty_cells_note(part.terms) if kind == 3 else ""
    if note:
        _log.warning(note)
    return noted(inference, table, note)


def _check_kind(kind: object) -> None:
    """Refuse what is no type of tests, another fit above all: R's ``anova`` compares fits."""
    if hasattr(kind, "design"):
        raise TypeError(
            "anova() tests the terms of one model, and type= is 1, 2 or 3. To compare two models, "
            "as R's anova(fit, other) does, call blm.lrt(fit, other)."
        )
    if isinstance(kind, bool) or not isinstance(kind, Real | str):
        raise TypeError(f"type= is a {type(kind).__name__}: 1, 2 or 3 is expected.")
    if kind not in (1, 2, 3):
        raise ValueError(f"type={kind!r}: 1, 2 or 3 is expected.")


def deletion_table(
    design: Design, inference: Inference, scope: Collection[str] | None = None
) -> pd.DataFrame:
    """F test of each term of the fixed part that no other contains; see ``estimate.drop1()``."""
    hypotheses = deletion_hypotheses(design)
    if scope is not None:
        if unknown := [term for term in scope if term not in hypotheses]:
            raise ValueError(
                f"scope= names {listed(unknown)}, but what can be dropped are terms that no other "
                f"term contains: {listed(list(hypotheses)) or 'none'}."
            )
        hypotheses = {term: hypotheses[term] for term in hypotheses if term in scope}
    tests = [f_test(inference, rows) for rows in hypotheses.values()]
    index = pd.Index(list(hypotheses), name="term", dtype=object)
    types = {name: np.int64 if name == "num_df" else np.float64 for name in COLUMNS}
    table = pd.DataFrame(tests, index=index, columns=list(COLUMNS)).astype(types)
    return noted(inference, table)


def empty_cells_note(terms: Sequence[Term]) -> str:
    """What type III tests are about where combinations of levels have no rows; else nothing."""
    lacking = [term for term in terms if term.empty]
    inside = [t for t in terms if any(t is u or t.contained_in(u) for u in lacking)]
    touched = [term.label for term in inside if term.label != "Intercept"]
    if len(touched) < 2:  # a term that contains no other is tested as a whole in any case
        return ""
    smallest = [t for t in lacking if not any(u.factors < t.factors for u in lacking)]
    cells = [cell for term in smallest for cell in term.empty]
    return (
        f"Empty cells: no row has {listed(cells)}. The type III tests of "
        f"{listed(touched)} are then about the cells "
        "that have rows: they depend on which ones are empty, and are not the tests of a complete "
        "table. Compare means and contrasts of the cells that are of interest."
    )
