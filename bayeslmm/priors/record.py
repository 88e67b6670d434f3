"""The record of a model's priors: densities by parameter, table and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, Points
from bayeslmm.covariance.kinds import blocked
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.residual import Residual
from bayeslmm.covariance.structure import Structure, sd_leaders
from bayeslmm.exceptions import PriorError, check_choice
from bayeslmm.priors.brms_table import brms_table
from bayeslmm.priors.families import LKJ, Fixed, Normal, Prior, Uniform
from bayeslmm.priors.residual import ResidualPriors
from bayeslmm.priors.scale import ScaleLabels, ScalePriors

Array = NDArray[np.float64]

TableStyle = Literal["default", "brms"]

PARAMETER_KEYS = ("beta", "cor", "nu", "sd", "sigma", "beta_sigma", "cor_sigma", "sd_sigma")
"""Keys that name parameters: a coefficient of that label is addressed as ``beta[label]``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Labels:
    """The names of a model's parameters.

    Attributes
    ----------
    coefs : tuple of str
        Labels of the p fixed-effect coefficients.
    factors : tuple of str
        Names of the grouping factors.
    factor_coefs : tuple of tuple of str
        Labels of the coefficients per grouping factor.
    blocks : tuple of tuple of tuple of int
        Blocks of correlated coefficients per grouping factor.
    kinds : tuple of tuple of str
        Name of the covariance structure of each block, per grouping factor.
    residual : Residual
        Structure of the residuals, with the names of its parameters.
    strata : tuple of tuple of str
        Per grouping factor, the stratum of each coefficient, "" where it is of all levels; nothing
        where no term has ``by=``.
    scale_labels : ScaleLabels or None
        Of Student-t residuals and of predictors of the residual scale.
    """

    coefs: tuple[str, ...]
    factors: tuple[str, ...]
    factor_coefs: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[tuple[int, ...], ...], ...]
    kinds: tuple[tuple[str, ...], ...]
    residual: Residual
    strata: tuple[tuple[str, ...], ...] = ()
    scale_labels: ScaleLabels | None = None

    @property
    def structures(self) -> tuple[Structure, ...]:
        """Covariance structure of each grouping factor."""
        pairs = zip(self.blocks, self.kinds, strict=True)
        return tuple(blocked(blocks, kinds) for blocks, kinds in pairs)

    def sd_names(self, factor: int) -> list[str]:
        """Names of the standard deviations of a grouping factor: (n_sds,)."""
        structure, coefs = self.structures[factor], self.factor_coefs[factor]
        return sd_labels(self.factors[factor], coefs, structure)


@dataclass(frozen=True, eq=False, kw_only=True)
class Priors(Labels):
    """The priors of a model, with the names of its parameters.

    Attributes
    ----------
    fixed_map : ndarray (p, p)
        The matrix C of the coordinates ``gamma = C beta`` in which the priors are independent.
    beta : tuple of Prior
        Priors on the entries of gamma.
    alone : tuple of bool
        Which entries of gamma are the coefficient of the same place or, for the intercept, the
        linear predictor at the column means; the others share a joint prior.
    beta_mean : ndarray (p,)
        Prior mean of beta where it is normal, else zeros.
    beta_root : ndarray (p, p) or None
        A matrix R with ``R'R`` the prior precision of beta where it is normal; None where it is
        flat or sampled.
    beta_sampled : bool
        Whether beta cannot be integrated out: neither all normal nor all flat.
    mixing : tuple of ndarray (k, k)
        The matrix W per grouping factor: standard deviations and correlations with priors are
        those of the working columns ``Z @ W``.
    sd : tuple of tuple of Prior
        Priors on the standard deviations, per grouping factor: of each working column, or of those
        that share one.
    cor : tuple of tuple of (LKJ or Prior or None)
        Priors on the correlations, per grouping factor and block: of the matrix, or of each
        parameter of a pattern; None for a block without correlations.
    residuals : ResidualPriors
        Priors on the parameters of the residuals.
    scale : ScalePriors or None
        Priors on degrees of freedom and predictors of the residual scale.
    sources : mapping of str to str
        Where each row of the table comes from: "default", "flat", "user" or "fixed".
    where : mapping of str to str
        What a row of the table is meant at, in words; rows that need none are not there.
    held : tuple of (int, float)
        Places of the parameters' vector that are known, and the coordinates there.

    Notes
    -----
    The key ``"Intercept"`` means the centred intercept: the linear predictor (without the offset)
    at the column means of X.
    """

    fixed_map: Array
    beta: tuple[Prior, ...]
    alone: tuple[bool, ...]
    beta_mean: Array
    beta_root: Array | None
    beta_sampled: bool
    mixing: tuple[Array, ...]
    sd: tuple[tuple[Prior, ...], ...]
    cor: tuple[tuple[LKJ | Prior | None, ...], ...]
    residuals: ResidualPriors
    sources: Mapping[str, str]
    where: Mapping[str, str]
    held: tuple[tuple[int, float], ...] = ()
    scale: ScalePriors | None = None

    @cached_property
    def coordinates(self) -> Coordinates:
        """The vector of parameters that samplers move."""
        return Coordinates(
            structures=self.structures,
            mixing=self.mixing,
            fixed=self.fixed_map if self.beta_sampled else np.empty((0, 0)),
            residual=self.residual,
            held=self.held,
        )

    @property
    def sigma(self) -> Prior:
        """Prior on the residual standard deviation, the first where there are several."""
        return self.residuals.sd[0]

    @property
    def beta_precision(self) -> Array | None:
        """Prior precision (p, p) of beta where it is normal; None where it is flat or sampled."""
        return None if self.beta_root is None else self.beta_root.T @ self.beta_root

    @property
    def proper(self) -> bool:
        """Whether every prior integrates to one, so that it can be drawn from."""
        return not self.improper()

    def table(self, style: TableStyle = "default") -> pd.DataFrame:
        """List the priors.

        Parameters
        ----------
        style : {"default", "brms"}
            "brms" for the columns of ``brms::default_prior``, in Stan's words.

        Returns
        -------
        pandas.DataFrame
            Columns parameter, prior, where and source ("default", "flat", "user" or "fixed"), one
            row per parameter. The parameters are also the keys that `priors=` and `fixed=` accept.
            Of coefficients with a joint prior the row is the marginal one; `where` says at which
            values of other columns a row is meant. For "brms": prior, class, coef, group, resp,
            dpar, lb, ub, source and where; bounds are NaN where there are none.

        Raises
        ------
        ValueError
            If there is no such style.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> priors = {"Days": "normal(0, 10)"}
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep, priors=priors)
        >>> model.priors.table("brms")[["prior", "class", "coef", "group"]].iloc[1].tolist()
        ['normal(0, 10)', 'b', 'Days', '']
        """
        records = self.records()
        check_choice(style, get_args(TableStyle), "style")
        if style == "brms":
            of_scale = () if self.scale_labels is None else self.scale_labels.factors
            factors = [*self.factors, *of_scale]
            return brms_table(records, self.coefs, factors, self.where, self.sources)
        return pd.DataFrame(
            {
                "parameter": list(records),
                "prior": [str(record) for record in records.values()],
                "where": [self.where.get(key, "") for key in records],
                "source": [self.sources[key] for key in records],
            }
        )

    def __repr__(self) -> str:
        return self.table().to_string(index=False, justify="left")

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, border=0)

    def records(self) -> dict[str, Prior | LKJ]:
        """Return the priors by the names that the table shows, in order; marginal where joint."""
        marginal = self._marginal_beta()
        records: dict[str, Prior | LKJ] = {
            coef_label(coef): prior if alone else own
            for coef, prior, own, alone in zip(
                self.coefs, self.beta, marginal, self.alone, strict=True
            )
        }
        for f, row in enumerate(self.sd):
            records |= dict(zip(self.sd_names(f), row, strict=True))
        for f, priors in enumerate(self.cor):
            for b, prior in enumerate(priors):
                if prior is not None:
                    records[cor_label(self, f, b)] = prior
        records |= self.residuals.records()
        if self.scale is not None and self.scale_labels is not None:
            records |= self.scale.records(self.scale_labels)
        return records

    def _marginal_beta(self) -> list[Prior]:
        """Marginal normal priors of the coefficients; of those with a joint prior only."""
        joint = [not alone for alone in self.alone]
        if not any(joint):
            return list(self.beta)
        inverse = np.linalg.inv(self.fixed_map)
        normals = [p if isinstance(p, Normal) else Normal(0.0, 1.0) for p in self.beta]
        means = inverse @ np.array([p.mu for p in normals])
        sds = np.sqrt(inverse**2 @ np.array([p.sigma for p in normals]) ** 2)
        return [Normal(float(m), float(s)) for m, s in zip(means, sds, strict=True)]

    def sample(self, rng: np.random.Generator, size: int) -> Points:
        """Draw from the prior.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        size : int
            Number of independent draws.

        Returns
        -------
        Points
            In the columns that users see, the fixed effects among them; without the random
            effects in the residual scale.

        Raises
        ------
        PriorError
            If a prior is flat.
        """
        if improper := self.improper():
            raise PriorError(
                f"Flat priors cannot be drawn from: {', '.join(improper)}. "
                "Give these parameters proper priors."
            )
        gamma = np.empty((size, len(self.coefs)))
        for j, prior in enumerate(self.beta):
            gamma[:, j] = prior.sample(rng, size)
        structures = self.coordinates.structures
        sds = [np.stack([p.sample(rng, size) for p in row], axis=1) for row in self.sd]
        sds = [sd[:, s.sd_places] for sd, s in zip(sds, structures, strict=True)]
        chols = [self._sample_chol(f, rng, size) for f in range(len(self.factors))]
        sigma, shapes = self.residuals.sample(rng, size)
        coordinates = self.coordinates
        none = np.empty((size, len(coordinates.fixed)))
        points = coordinates.to_user(coordinates.working(sds, chols, sigma, shapes, none))
        beta = np.linalg.solve(self.fixed_map, gamma.T).T
        points = replace(points, beta=beta)
        if self.scale is None or self.scale_labels is None:
            return points
        return replace(points, scale=self.scale.sample(self.scale_labels, points.sigma, rng))

    def _sample_chol(self, factor: int, rng: np.random.Generator, size: int) -> Array:
        chol = np.tile(np.eye(len(self.factor_coefs[factor])), (size, 1, 1))
        structure = self.coordinates.structures[factor]
        parts = zip(structure.blocks, structure.parts, self.cor[factor], strict=True)
        for block, part, prior in parts:
            rows = np.array(block)
            if isinstance(prior, LKJ):
                chol[:, rows[:, None], rows] = prior.sample_cholesky(rng, size, len(block))
            elif isinstance(prior, Fixed):
                chol[:, rows[:, None], rows] = part.cholesky(np.array([prior.z]))
            elif isinstance(part, Pattern) and prior is not None:
                draws = np.stack([prior.sample(rng, size) for _ in range(part.n_cors)], axis=1)
                chol[:, rows[:, None], rows] = part.cholesky(part.coordinates_at(draws))
        return chol

    def log_cor(self, factor: int, roots: Array) -> Array:
        """Log prior density (S,) of the correlations of one factor, from their roots (S, k, k)."""
        total: Array = np.zeros(len(roots))
        structure = self.coordinates.structures[factor]
        parts = zip(structure.blocks, structure.parts, self.cor[factor], strict=True)
        for block, part, prior in parts:
            rows = roots[:, list(block)]
            if isinstance(prior, LKJ):
                total += prior.logpdf_correlation(rows @ rows.swapaxes(1, 2))
            elif isinstance(part, Pattern) and prior is not None:
                total += np.sum(prior.logpdf(part.parameters(rows)), axis=1)
        return total

    def improper(self) -> list[str]:
        """Return the names of the parameters with improper priors."""
        return [
            key
            for key, record in self.records().items()
            if not isinstance(record, LKJ) and not record.proper
        ]


def uniform_correlations(part: Structure) -> LKJ | Prior | None:
    """The default prior on the correlations of one block; None where it has none."""
    if not part.n_cors:
        return None
    return Uniform(part.lowest, 1.0) if isinstance(part, Pattern) else LKJ(1.0)


def coef_label(coef: str) -> str:
    """Name of a fixed-effect coefficient's prior, as the table shows it."""
    return f"beta[{coef}]" if coef in PARAMETER_KEYS else coef


def sd_labels(factor: str, coefs: Sequence[str], structure: Structure) -> list[str]:
    """Names of standard deviations: by coefficient, or by the coefficients that share one."""
    names = []
    for place, leader in enumerate(sd_leaders(structure).tolist()):
        shared = np.flatnonzero(structure.sd_places == place).tolist()
        if len(shared) == structure.n_coefs > 1:
            names.append(f"sd[{factor}]")
        elif len(shared) > 1:
            names.append(f"sd[{factor}, {', '.join(coefs[c] for c in shared)}]")
        else:
            names.append(sd_label(factor, coefs[leader]))
    return names


def sd_label(factor: str, coef: str) -> str:
    """Name of a random-effect standard deviation's prior, as the table shows it."""
    return f"sd[{factor}, {coef}]"


def cor_labels(factor: str, coefs: Sequence[str], structure: Structure) -> list[str]:
    """Names of the correlations that determine all others, in the order of ``structure.pairs``.

    The one parameter of a pattern has the name of its prior.
    """
    names = []
    correlated = sum(part.n_cors > 0 for part in structure.parts)
    for block, part in zip(structure.blocks, structure.parts, strict=True):
        if isinstance(part, Pattern) and part.n_cors == 1:
            inside = "" if correlated == 1 else f", {', '.join(coefs[c] for c in block)}"
            names.append(f"cor[{factor}{inside}]")
            continue
        pairs = (sorted((block[i], block[j])) for i, j in part.pairs)
        names += [f"cor[{factor}, {coefs[first]}, {coefs[second]}]" for first, second in pairs]
    return names


def cor_label(labels: Labels, factor: int, block: int) -> str:
    """Name of the prior on the correlations of a block, as the table shows it."""
    name, blocks = labels.factors[factor], labels.blocks[factor]
    if sum(part.n_cors > 0 for part in labels.structures[factor].parts) == 1:
        return f"cor[{name}]"
    coefs = labels.factor_coefs[factor]
    return f"cor[{name}, {', '.join(coefs[c] for c in blocks[block])}]"
