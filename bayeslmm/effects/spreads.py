"""Standard deviations of single responses, by which effects are measured and means corrected."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bayeslmm.effects.sources import EstimateSource, Source
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.residuals import mean_variance
from bayeslmm.sampling.joint_draws import point_draws
from bayeslmm.summaries.variance_explained import factor_variances

Array = NDArray[np.float64]
Spread = Literal["residual", "total"]


def check_spread(sigma: str) -> None:
    """Raise ValueError for an unknown standard deviation."""
    if sigma not in get_args(Spread):
        allowed = ", ".join(map(repr, get_args(Spread)))
        raise ValueError(f"sigma={sigma!r}: {allowed} or a positive number is expected.")


def refuse_known(source: Source) -> None:
    """Raise ValueError where residuals are sampling errors that are known."""
    assert source.design is not None
    spec = source.design.spec.residual
    if spec is not None and spec.formula.known:
        raise ValueError(
            "The residual standard deviations of this model are known sampling errors, not those "
            "of responses: give a number as sigma=, with edf= for an estimate."
        )


def spread(source: Source, kind: str) -> Array:
    """Standard deviations of responses given the fixed effects: (1,) of an estimate, (S,) of draws.

    Parameters
    ----------
    source : EstimateSource or PosteriorSource
        Of quantities of a fit.
    kind : {"residual", "total"}
        Of residuals alone, or of residuals and random effects; means over the rows where they
        differ between rows.
    """
    check_spread(kind)
    design = source.design
    assert design is not None
    if isinstance(source, EstimateSource):
        joint = point_draws(source.inference.fit, ())
    else:
        assert source.joint is not None
        joint = source.joint
    variance = mean_variance(design, joint.points)
    if kind == "total" and design.random:
        variance = variance + factor_variances(design, joint).sum(axis=1)
    return np.sqrt(variance)


def residual_df(fit: Fit) -> float | None:
    """Degrees of freedom of an estimated residual sd, from its curvature; None if it has no one.

    The variance of the log of an sd on d degrees of freedom is about 1 / (2 d); without random
    effects d is rows less fixed effects.
    """
    if not fit.plan.residual.plain or fit.method == "MAP":
        return None
    variance = float(fit.internal_cov[-1, -1])
    return 0.5 / variance if variance > 0 else None
