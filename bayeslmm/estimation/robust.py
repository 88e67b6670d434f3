"""Cluster-robust standard errors and their degrees of freedom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, override

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.connected import by_part
from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import gathered
from bayeslmm.estimation.estimate import Fit, points_of_fits
from bayeslmm.estimation.inference import EMPTY, FTest, Inference, independent_rows
from bayeslmm.estimation.row_blocks import alike_blocks, check_blocks
from bayeslmm.exceptions import DataError, check_choice

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Kind = Literal["CR0", "CR1", "CR2", "CR3"]

WHAT = "robust()"
INSTEAD = "Take smaller clusters, or model-based standard errors."

LOST = 1e-12
"""What counts as zero in a cluster's residual covariance, over what it is without estimation."""


DETERMINED = 1e-10
"""A cluster takes a direction of beta up where the others have less than this share of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Which rows may depend on each other, whatever the model says.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Cluster of each row used.
    label : str
        What they are called.
    kind : {"CR0", "CR1", "CR2", "CR3"}
        Correction of the residuals.
    """

    codes: Indices
    label: str
    kind: Kind


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sandwich:
    """A sandwich estimator, and what its variance under the model depends on.

    Attributes
    ----------
    scores : ndarray (J, p)
        E_j e_j of each cluster, whose squares add up to the covariance matrix of beta.
    spread : ndarray (J, p, p)
        E_j V_j E_j'.
    pull : ndarray (J, p, p)
        E_j X_j L.
    root : ndarray (p, p)
        L, with L L' the model's covariance matrix of beta.
    """

    scores: Array
    spread: Array
    pull: Array
    root: Array

    @property
    def vcov(self) -> Array:
        """Covariance matrix (p, p) of beta."""
        return np.asarray(self.scores.T @ self.scores)

    def single_df(self, weights: Array) -> Array:
        """Bell and McCaffrey's degrees of freedom (m,) of combinations with weights (m, p)."""
        own = np.einsum("mp,jpq,mq->mj", weights, self.spread, weights, optimize=True)
        pull = np.einsum("mp,jpq->mjq", weights, self.pull)
        size = np.sum(pull**2, axis=2)
        gram = pull.swapaxes(1, 2) @ pull
        total, model = np.sum(own - size, axis=1), np.sum((weights @ self.root) ** 2, axis=1)
        squares = np.sum(own**2 - 2.0 * own * size, axis=1) + np.sum(gram**2, axis=(1, 2))
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN of what one cluster determines
            return np.where(total > LOST * model, total**2 / squares, np.nan)

    def joint_df(self, rows: Array) -> float:
        """Degrees of freedom of Hotelling's T^2 of q combinations (q, p), HTZ in clubSandwich."""
        q = len(rows)
        own = rows @ self.spread @ rows.T  # (J, q, q)
        pull = rows @ self.pull  # (J, q, p)
        sizes, vectors = np.linalg.eigh(np.sum(own - pull @ pull.swapaxes(1, 2), axis=0))
        half = (vectors / np.sqrt(sizes)) @ vectors.T
        own, pull = half @ own @ half, half @ pull
        mine = pull @ pull.swapaxes(1, 2)
        cross = np.einsum("jsa,jtb->satb", pull, pull, optimize=True)
        traces, mine_traces = np.einsum("jss->j", own), np.einsum("jss->j", mine)
        total = np.sum(own * (own - 2.0 * mine)) + np.sum(traces * (traces - 2.0 * mine_traces))
        total += np.sum(cross**2) + np.einsum("satb,tasb->", cross, cross)
        return float(q * (q + 1) / total)


@dataclass(frozen=True, eq=False)
class Robust(Inference):
    """Sandwich standard errors; t tests with Satterthwaite's, F tests with Hotelling's df."""

    clusters: Clusters
    sandwich: Sandwich

    name = "satterthwaite"
    citation = "cluster_robust"

    @property
    def words(self) -> str:  # type: ignore[override]
        """What tests and intervals use."""
        return f"{self._errors} and Satterthwaite's degrees of freedom"

    @property
    def brief(self) -> str:  # type: ignore[override]
        """The same in a few words."""
        return f"cluster-robust t ({self.clusters.kind}, by {self.clusters.label})"

    @property
    def _errors(self) -> str:
        count = len(self.sandwich.scores)
        return (
            f"cluster-robust standard errors ({self.clusters.kind}, {count} clusters: "
            f"{self.clusters.label})"
        )

    @property
    @override
    def vcov(self) -> Array:
        return self.sandwich.vcov

    @override
    def df(self, weights: Array) -> Array:
        return self.sandwich.single_df(weights)

    @override
    def f_test(self, matrix: Array, value: Array) -> FTest:
        """Approximate Hotelling's T^2 test.

        References
        ----------
        Pustejovsky, Tipton (2018), doi:10.1080/07350015.2016.1247004
        (``clubSandwich::Wald_test(test = "HTZ")``).
        """
        rows, gap, statistic = self._wald(matrix, value)
        if not len(rows):
            return EMPTY
        q, nu = len(gap), self.sandwich.joint_df(rows)
        factor = max((nu - q + 1.0) / nu, 0.0)
        return FTest(factor * statistic, q, nu - q + 1.0, factor)

    def _wald(self, matrix: Array, value: Array) -> tuple[Array, Array, float]:
        """Independent rows of a hypothesis, their gap, and its Wald statistic over their number.

        NaN where there are too few clusters for so many rows.
        """
        size = np.sqrt(np.einsum("qi,ij,qj->q", matrix, self.fit.vcov, matrix))
        matrix, value = matrix[size > 0] / size[size > 0, None], value[size > 0] / size[size > 0]
        rows, gap, sizes = independent_rows(self.fit.vcov, matrix, matrix @ self.fit.beta - value)
        rows, gap = rows / np.sqrt(sizes)[:, None], gap / np.sqrt(sizes)
        covariance = rows @ self.vcov @ rows.T
        if np.linalg.matrix_rank(covariance) < len(rows):
            return rows, gap, np.nan
        return rows, gap, float(gap @ np.linalg.solve(covariance, gap)) / max(len(gap), 1)


@dataclass(frozen=True, eq=False)
class RobustAlike(Robust):
    """Sandwich standard errors with one number of degrees of freedom for everything."""

    each: float

    @property
    @override
    def words(self) -> str:  # type: ignore[override]
        """What tests and intervals use."""
        many = np.isinf(self.each)
        return f"{self._errors} and {'infinite' if many else 'residual'} degrees of freedom"

    @override
    def df(self, weights: Array) -> Array:
        return np.full(len(weights), self.each)

    @override
    def f_test(self, matrix: Array, value: Array) -> FTest:
        """Wald test."""
        rows, gap, statistic = self._wald(matrix, value)
        return FTest(statistic, len(gap), self.each) if len(rows) else EMPTY


def clusters_of(design: Design, cluster: object, kind: str) -> Clusters:
    """Clusters from names of variables of the model, or labels of the rows.

    Raises
    ------
    DataError
        If they are not known, not of the length of the data, missing, single, or do not contain
        the levels of a grouping factor or groups of correlated residuals.
    ValueError
        If the kind is unknown.
    """
    check_choice(kind, get_args(Kind), "kind")
    design = gathered(design, WHAT, INSTEAD)
    names = [cluster] if isinstance(cluster, str) else cluster
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        columns, label = _columns(design, names), ":".join(names)
    else:
        columns, label = [_labels(design, cluster)], "labels given"
    codes = np.zeros(design.n, dtype=np.intp)
    for column in columns:
        own = np.unique(column, return_inverse=True)[1].ravel()
        codes = np.unique(codes * (int(own.max()) + 1) + own, return_inverse=True)[1].ravel()
    if codes.max(initial=0) == 0:
        raise DataError(f"robust({label}): all rows are in one cluster; at least two are needed.")
    _check_nested(design, codes, label)
    return Clusters(codes.astype(np.intp), label, kind)  # type: ignore[arg-type]


def _columns(design: Design, names: Sequence[str]) -> list[NDArray[np.str_]]:
    data = design.data
    unknown = [name for name in names if name not in data]
    if unknown:
        raise DataError(
            f"robust(): no variable {', '.join(map(repr, unknown))} in the model, which has "
            f"{', '.join(map(repr, map(str, data.columns)))}. Give labels of the rows instead, "
            "such as data['school']."
        )
    return [data[name].astype(str).to_numpy(dtype=np.str_) for name in names]


def _labels(design: Design, given: object) -> NDArray[np.str_]:
    rows = design.n + len(design.dropped)
    if isinstance(given, pd.Series):
        given = _in_order(design, given)
    values = np.asarray(given)
    if values.ndim != 1 or len(values) not in (design.n, rows):
        raise DataError(
            f"robust(): labels of clusters have shape {values.shape}; a variable of the model, or "
            f"one label for each of the {rows} rows of the data is expected."
        )
    if len(values) == rows:
        values = np.delete(values, design.dropped)
    if pd.isna(values).any():
        raise DataError("robust(): labels of clusters are missing in some rows.")
    return values.astype(np.str_)


def _in_order(design: Design, given: pd.Series) -> pd.Series:
    """Labels by the index of the rows of the model."""
    if given.index.equals(design.index):
        return given
    if not (given.index.is_unique and design.index.isin(given.index).all()):
        raise DataError(
            "robust(): the index of the labels of clusters is not that of the rows of the model. "
            "Give an array, for labels in the order of the rows."
        )
    return given.loc[design.index]


def _check_nested(design: Design, codes: Indices, label: str) -> None:
    """Raise DataError where what rows share crosses the borders of clusters."""
    shared = [(f"`{factor.name}`", slot.codes) for factor in design.random for slot in factor.slots]
    known = design.residual_rows
    if known is not None and known.group is not None:
        shared.append(("the residual structure", known.group))
    for name, levels in shared:
        pairs = np.unique(np.column_stack([levels, codes]), axis=0)
        if len(pairs) > len(np.unique(levels)):
            raise DataError(
                f"robust({label}): levels of {name} are in several clusters. Rows of different "
                "clusters must be independent in the model: cluster by something that contains "
                f"the levels of {name}, or leave that out of the model."
            )
    for factor in design.random:
        if len(factor.members) > 1 or factor.relationship is not None:
            raise DataError(
                f"robust({label}): `{factor.name}` ties rows of different levels to each other "
                "(mm() or relationships), so that clusters are not independent in the model."
            )


def sandwich(design: Design, fit: Fit, clusters: Clusters) -> Sandwich:
    """The sandwich estimator of an estimate, V of the model being the working covariance matrix.

    References
    ----------
    Bell, McCaffrey (2002), Survey Methodology 28, 169-181; Pustejovsky, Tipton (2018),
    doi:10.1080/07350015.2016.1247004 (clubSandwich).
    """
    design = gathered(design, WHAT, INSTEAD)
    blocks = by_part(clusters.codes)
    check_blocks(blocks, WHAT, INSTEAD)
    root = fit.vcov_root
    residual = design.y - design.offset - design.X @ fit.beta
    scores, spread, pull = [], [], []
    for rows, covariances in alike_blocks(design, points_of_fits([fit]), blocks, copies=design.p):
        v, x = covariances[0], design.X[rows]
        bread = (root @ root.T) @ np.linalg.solve(v, x).swapaxes(1, 2)  # (C, p, o)
        estimator = bread @ _corrections(clusters.kind, v, x @ root, len(blocks))
        scores.append(np.einsum("cpo,co->cp", estimator, residual[rows]))
        spread.append(estimator @ v @ estimator.swapaxes(1, 2))
        pull.append(estimator @ x @ root)
    return Sandwich(
        scores=np.concatenate(scores),
        spread=np.concatenate(spread),
        pull=np.concatenate(pull),
        root=root,
    )


def _corrections(kind: Kind, v: Array, x: Array, count: int) -> Array:
    """What the residuals of C clusters are multiplied by: (C, o, o), x (C, o, p) whitened."""
    every = np.eye(len(v))
    if kind == "CR0":
        return every
    if kind == "CR1":
        return np.sqrt(count / (count - 1.0)) * every
    if kind == "CR3":
        right = np.linalg.solve(v, x)
        if np.linalg.eigvalsh(x.swapaxes(1, 2) @ right).max() > 1.0 - DETERMINED:
            raise DataError(
                "robust(kind='CR3'): without some cluster a coefficient cannot be estimated. Take "
                "kind='CR2', which is defined there too."
            )
        return np.asarray(np.linalg.inv(every - x @ right.swapaxes(1, 2)))
    sizes, vectors = np.linalg.eigh(v)
    half = (vectors * np.sqrt(sizes)) @ vectors.T
    inner = half @ (v - x @ x.swapaxes(1, 2)) @ half
    limit = LOST * sizes.max() ** 2
    sizes, vectors = np.linalg.eigh(inner)
    good = sizes > limit
    powers = np.where(good, np.where(good, sizes, 1.0) ** -0.5, 0.0)
    return half @ ((vectors * powers[:, None, :]) @ vectors.swapaxes(1, 2)) @ half


def robust_inference(design: Design, fit: Fit, clusters: Clusters, df: str | None) -> Inference:
    """Judge fixed effects by a sandwich estimator.

    Raises
    ------
    ValueError
        If the degrees of freedom are not there for it.
    """
    made = sandwich(design, fit, clusters)
    if df in (None, "satterthwaite"):
        return Robust(fit, clusters, made)
    products = fit.plan.products
    each = {"asymptotic": np.inf, "residual": float(products.n_obs - products.n_fixed)}
    if df not in each:
        raise ValueError(
            f"df={df!r} is about model-based standard errors. With robust() there are "
            "'satterthwaite', 'residual' and 'asymptotic'."
        )
    return RobustAlike(fit, clusters, made, each[df])
