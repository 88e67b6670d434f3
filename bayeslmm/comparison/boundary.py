"""Likelihood-ratio tests of variances, whose null hypothesis is at a boundary."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import chdtrc

from bayeslmm.data.design import Design
from bayeslmm.data.random_factors import RandomFactor

Block = tuple[frozenset[str], str]
"""Labels of coefficients that are correlated, and the kind of their covariance."""


def mixture_p_value(chisq: float, df: int) -> float:
    """Probability of a larger value under half chi-squared on df - 1 and half on df.

    The distribution of a likelihood-ratio statistic where the smaller model lacks one of the
    random effects that a level has: its variance is zero, and its correlations are not there.

    Parameters
    ----------
    chisq : float
        The statistic.
    df : int
        Parameters that the smaller model lacks.

    References
    ----------
    Self, Liang (1987), doi:10.1080/01621459.1987.10478472; Stram, Lee (1994),
    doi:10.2307/2533455.
    """
    below = float(chdtrc(df - 1, chisq)) if df > 1 else float(chisq <= 0.0)
    return 0.5 * below + 0.5 * float(chdtrc(df, chisq))


def lacks_one_effect(small: Design, large: Design) -> bool:
    """Whether the random part of a model is that of a larger one less one effect of a level.

    Then, and where the other variances are positive, the likelihood-ratio statistic has the
    distribution of :func:`mixture_p_value`. Of several effects at once it has another mixture,
    whose weights depend on the data.
    """
    if small.spec.residual_source != large.spec.residual_source:
        return False
    if any(factor.spec.divided for design in (small, large) for factor in design.random):
        return False
    inner, outer = _blocks(small.random), _blocks(large.random)
    if not inner.keys() <= outer.keys():
        return False
    fewer = []
    for key, blocks in outer.items():
        own = inner.get(key, frozenset())
        fewer.append((blocks - own, own - blocks))
    changed = [(gone, new) for gone, new in fewer if gone or new]
    return len(changed) == 1 and _is_one_less(*changed[0])


def _blocks(factors: tuple[RandomFactor, ...]) -> Mapping[object, frozenset[Block]]:
    return {
        factor.spec.identity: frozenset(
            (frozenset(factor.coefs[i] for i in block), kind)
            for block, kind in zip(factor.blocks, factor.spec.kinds, strict=True)
        )
        for factor in factors
    }


def _is_one_less(gone: frozenset[Block], new: frozenset[Block]) -> bool:
    if len(gone) != 1 or len(new) > 1:
        return False
    (large, kind), *_ = gone
    if not new:
        return len(large) == 1
    (small, _), *_ = new
    return kind == "us" and small < large and len(small) == len(large) - 1


def boundary_p_value(
    small: Design, large: Design, chisq: float, df: int, *, interior: bool
) -> float:
    """P-value at the boundary where the mixture is known; else NaN.

    Parameters
    ----------
    small, large : Design
        Designs of nested models.
    chisq, df : float, int
        Their likelihood-ratio statistic and the difference of their numbers of parameters.
    interior : bool
        Whether the smaller model has no variance at zero itself.
    """
    if not interior or df < 1 or not lacks_one_effect(small, large):
        return float(np.nan)
    return mixture_p_value(chisq, df)
