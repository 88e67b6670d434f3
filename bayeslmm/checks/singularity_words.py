"""What a posterior says about singular covariance matrices, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bayeslmm.summaries.text import listed, percent

COMPATIBLE = float(np.exp(-1.92))
"""Relative likelihood from which a value is compatible with the data: 0.15, the 95 % limit of the
likelihood-ratio statistic with one degree of freedom."""

SMALL_SHARE = 0.01
"""Share of the variance below which a principal component is called small."""

LIKELY = 0.5
"""Posterior probability above which a finding is drawn from."""


def posterior_messages(
    table: pd.DataFrame,
    rank: pd.DataFrame,
    *,
    eps: float,
    rho: float,
    reml_singular: bool | None,
) -> tuple[str, ...]:
    """Findings: one per parameter, one per factor of three or more coefficients, one on REML.

    Parameters
    ----------
    table, rank : pandas.DataFrame
        Those of a :class:`~bayeslmm.checks.singularity.PosteriorSingularity`.
    eps, rho : float
        Its limits.
    reml_singular : bool or None
        Whether the REML fit is singular; None where there is none.

    Returns
    -------
    tuple of str
    """
    messages = [_parameter_message(table, str(label), eps, rho) for label in table.index]
    large = rank[rank["n_coefs"] > 2]
    messages += [_rank_message(row, str(group), eps) for group, row in large.iterrows()]
    return (*messages, _reml_message(table["support"], reml_singular))


def _parameter_message(table: pd.DataFrame, label: str, eps: float, rho: float) -> str:
    row = table.loc[label]
    chance = percent(row["probability"])
    if label.startswith("sd["):
        event = f"is negligible (below {eps:g} residual standard deviations)"
        boundary = "zero"
    else:
        event = f"is beyond {rho:g} in size"
        boundary = "a perfect correlation"
    tail = f"the posterior probability that it {event} is {chance}."
    if row["probability"] == 0.0:
        tail = f"in no posterior draw it {event}."
    if not np.isfinite(row["support"]):
        return f"{label}: {tail}"
    support = percent(max(row["support"], np.finfo(float).tiny))
    verdict = "is compatible" if row["support"] >= COMPATIBLE else "is not compatible"
    return (
        f"{label}: {boundary} {verdict} with the data (integrated likelihood there {support} of "
        f"its maximum); {tail}"
    )


def _rank_message(row: pd.Series, group: str, eps: float) -> str:
    """What the smallest principal component is to the others, and to the residuals."""
    deficient, negligible = row["p_deficient"], row["p_negligible"]
    text = (
        f"{group}: effective rank {row['mean']:.2f} of {row['n_coefs']:.0f} (posterior mean). The "
        f"smallest principal component has less than {100 * SMALL_SHARE:g} % of the variance in "
        f"{percent(deficient)} of the posterior draws, and is negligible (a standard deviation "
        f"below {eps:g} residual ones) in {percent(negligible)}."
    )
    if negligible > LIKELY:
        return f"{text} Fewer dimensions would do."
    if deficient > LIKELY:
        return (
            f"{text} A small share of a large variance need not be small: this does not show that "
            "fewer dimensions would do."
        )
    return text


def _reml_message(supports: pd.Series, singular: bool | None) -> str:
    if singular is None:
        return "There is no REML fit to compare with: its likelihood has no maximum."
    ends = [str(label) for label in supports.index[supports >= COMPATIBLE]]
    unjudged = [str(label) for label in supports.index[supports.isna()]]
    message = _open_message(singular, ends) if ends else _closed_message(singular, bool(unjudged))
    return f"{message} {_unjudged_message(unjudged)}".rstrip()


def _open_message(singular: bool, ends: Sequence[str]) -> str:
    """REML beside boundaries that are compatible with the data."""
    if not singular:
        return (
            f"REML is not singular, although the data do not rule the boundary out for "
            f"{listed(ends)}: a REML fit to similar data could well be."
        )
    return (
        f"REML is singular, and the posterior agrees that the boundary is possible "
        f"({listed(ends)}). It says no more than that: the intervals show which other "
        "values the data allow, and averages over them need no choice between keeping and "
        "dropping the effect."
    )


def _closed_message(singular: bool, unjudged: bool) -> str:
    """REML where no boundary that was judged is compatible with the data."""
    if not singular:
        if unjudged:
            return "REML is not singular, and every boundary that was judged is ruled out."
        return "REML is not singular, and the posterior stays away from the boundary too."
    if unjudged:
        return "REML is singular, although every boundary that was judged is ruled out."
    return (
        "REML is singular: it sits on the boundary jointly. No single parameter's boundary is "
        "supported once the others are integrated out."
    )


def _unjudged_message(labels: Sequence[str]) -> str:
    """Which boundaries say nothing, and what to look at instead."""
    if not labels:
        return ""
    return (
        f"Not judged were the boundaries of {listed(labels)}: correlations of three or more "
        "coefficients have bounds that depend on each other. The smallest principal component "
        "tells whether they are dependent."
    )
