"""Influence of rows and of levels on a posterior, by importance sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.checks.influence import case_groups
from bayeslmm.checks.integrated import affordable, leave_out_densities
from bayeslmm.checks.joint_parameters import joint_parameter
from bayeslmm.checks.report import Report
from bayeslmm.data.design import Design
from bayeslmm.estimation.progress import tracked
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import MAX_PARETO_K, smooth_weights
from bayeslmm.summaries.parameters import parameters
from bayeslmm.summaries.text import listed

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

LARGE_SHIFT = 0.5
"""Shift of a posterior mean, in posterior standard deviations, that deserves a look."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class PosteriorInfluence(Report):
    """What leaving out each row or level would do to a posterior, by importance weights.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per case: `rows` it has, `max_shift` (largest absolute shift of a posterior mean, in
        posterior standard deviations), `parameter` that shifts most, `kl` (Kullback-Leibler
        divergence of the posterior without the case from that with it, in nats), `ess` (effective
        number of draws under the weights) and `pareto_k`.
    shift : pandas.DataFrame
        Cases by parameters: posterior mean without the case less that with it, over the posterior
        standard deviation with it.
    by : str or None
        Grouping variable; None for rows.
    """

    table: pd.DataFrame
    shift: pd.DataFrame
    by: str | None

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        what = "rows" if self.by is None else f"levels of {self.by}"
        return f"Influence of the {len(self.table)} {what} on the posterior"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_posterior_messages(self))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        top = self.table.sort_values("kl", ascending=False).head(5)
        return {
            "The five largest divergences": top,
            "Shifts of posterior means, in sds": self.shift.loc[top.index],
        }


def posterior_influence(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    by: str | None,
    *,
    progressbar: bool = False,
) -> PosteriorInfluence:
    """Shift of a posterior where a row or a level is left out, by importance sampling.

    Parameters
    ----------
    design : Design
        The design of the model.
    plan : Plan
        Its cross-products.
    priors : Priors
        Its priors.
    joint : JointDraws
        Posterior draws; fewer are used where memory or time demand it.
    by : str or None
        A grouping factor of the model or a variable of its formula; None for single rows.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    PosteriorInfluence

    Raises
    ------
    DataError
        If there is no such variable.

    Notes
    -----
    The draws of beta and the covariance parameters are weighted by one over
    ``p(y_g | y without g, beta, covariance parameters)``, random effects integrated out, smoothed
    by Pareto smoothing. So a whole level can be left out, its random effects with it.

    References
    ----------
    Bradlow, Zaslavsky (1997), doi:10.1080/10618600.1997.10474746, for case influence by
    importance sampling. Vehtari, Simpson, Gelman, Yao, Gabry (2024), arXiv:1507.02646.
    """
    groups, labels = (None, design.index) if by is None else case_groups(design, by)
    joint = joint.thin(affordable(design, plan, joint.size, len(labels)))
    points = replace(joint.points, beta=joint.beta)
    given = replace(priors, beta_sampled=True)
    log_density = leave_out_densities(
        design, plan, given, replace(joint, points=points), groups, progressbar=progressbar
    )
    rows = parameters(design)
    draws = np.column_stack([joint_parameter(joint, row) for row in rows])
    centred = (draws - draws.mean(axis=0)) / draws.std(axis=0, ddof=1)
    shifts = np.empty((len(labels), len(rows)))
    records = []
    for g in tracked(range(len(labels)), "Weights", progressbar):
        log_weights, k = smooth_weights(-log_density[:, g])
        shifts[g] = np.exp(log_weights) @ centred
        records.append(
            {
                "kl": max(0.0, -float(np.mean(log_weights)) - np.log(joint.size)),
                "ess": float(1.0 / np.sum(np.exp(2.0 * log_weights))),
                "pareto_k": k,
            }
        )
    names = [row.label for row in rows]
    table = pd.DataFrame(records, index=labels)
    sizes = np.ones(design.n, int) if groups is None else np.bincount(groups)
    table.insert(0, "rows", sizes)
    table.insert(1, "max_shift", np.max(np.abs(shifts), axis=1))
    table.insert(2, "parameter", [names[i] for i in np.argmax(np.abs(shifts), axis=1)])
    return PosteriorInfluence(
        table=table, shift=pd.DataFrame(shifts, index=labels, columns=names), by=by
    )


def _posterior_messages(result: PosteriorInfluence) -> list[str]:
    table = result.table
    messages = []
    poor = table["pareto_k"] > MAX_PARETO_K
    large = table[(table["max_shift"] > LARGE_SHIFT) & ~poor]
    for case, row in large.sort_values("max_shift", ascending=False).head(5).iterrows():
        label = row["parameter"]
        size = float(result.shift.loc[case, label])
        messages.append(
            f"Without {case} the posterior mean of {label} would be {abs(size):.2f} posterior "
            f"standard deviations {'higher' if size > 0 else 'lower'}."
        )
    if len(large) > 5:
        messages.append(f"{len(large) - 5} more shift a mean by over {LARGE_SHIFT:g}.")
    if poor.any():
        messages.append(
            f"Without {listed(table.index[poor], 5)} the posterior would be so different that "
            f"importance weights do not reach it (Pareto k above {MAX_PARETO_K:g}): the influence "
            "is large, and the figures for them are not reliable. Refit without them."
        )
    return messages or [
        f"None of them, left out, would shift a posterior mean by more than {LARGE_SHIFT:g} "
        "posterior standard deviations."
    ]
