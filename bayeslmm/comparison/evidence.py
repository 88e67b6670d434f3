"""The log evidence of a model and Bayes factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayeslmm.exceptions import DataError, PriorError, SamplingError
from bayeslmm.priors.record import Priors
from bayeslmm.summaries.fits import is_posterior


@dataclass(frozen=True, slots=True)
class LogEvidence:
    """Log marginal likelihood log p(y) of a model, all constants kept.

    Attributes
    ----------
    value : float
        Estimate.
    error : float
        Its Monte Carlo standard error.
    """

    value: float
    error: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.3f} (Monte Carlo error {self.error:.2g})"


@dataclass(frozen=True, slots=True)
class BayesFactor:
    """Ratio of the evidence of two models of the same data.

    Attributes
    ----------
    log : float
        Natural logarithm of the ratio; positive favours the first model.
    error : float
        Its Monte Carlo standard error.
    """

    log: float
    error: float

    @property
    def value(self) -> float:
        """The ratio itself."""
        return float(np.exp(self.log))

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.3g} (log {self.log:.3f}, Monte Carlo error {self.error:.2g})"


def log_evidence(attrs: Mapping[Any, Any], priors: Priors) -> LogEvidence:
    """Log evidence of draws by the collapsed sampler.

    Raises
    ------
    PriorError
        If a prior is improper: the evidence then has no meaning.
    SamplingError
        If another method made the draws.
    """
    if improper := priors.improper():
        raise PriorError(
            f"Under improper priors there is no evidence: {', '.join(improper)} "
            f"{'is' if len(improper) == 1 else 'are'} flat. Give proper priors."
        )
    if "log_evidence" not in attrs:
        raise SamplingError(
            f"The method {attrs.get('method')!r} does not estimate the evidence: use "
            "fit(method='collapsed')."
        )
    return LogEvidence(float(attrs["log_evidence"]), float(attrs["log_evidence_error"]))


def bayes_factor(first: Any, second: Any) -> BayesFactor:
    """Compare two models of the same data by the ratio of their evidence.

    Bayes factors depend on the priors, whatever the amount of data: compare models only under
    priors that you mean.

    Parameters
    ----------
    first, second : Posterior
        Posteriors by the collapsed sampler.

    Returns
    -------
    BayesFactor
        In favour of the first model.

    Raises
    ------
    TypeError
        If something else than posteriors is given.
    DataError
        If the models have not the same response.
    PriorError
        If a prior is improper.
    SamplingError
        If another method made the draws.

    References
    ----------
    Kass, Raftery (1995), doi:10.1080/01621459.1995.10476572.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> data = blm.load_dataset("sleepstudy")
    >>> slopes = blm.LMM("Reaction ~ Days + (Days | Subject)", data).fit(random_seed=1)
    >>> intercepts = blm.LMM("Reaction ~ Days + (1 | Subject)", data).fit(random_seed=1)
    >>> round(blm.bayes_factor(slopes, intercepts).log, 1)
    17.3
    """
    for fit in (first, second):
        if not is_posterior(fit):
            raise TypeError(
                f"{type(fit).__name__} has no evidence: posteriors are expected, from model.fit()."
            )
    a, b = first.design, second.design
    if not np.array_equal(a.y, b.y):
        what = f"{a.n} and {b.n} rows of {a.response!r} and {b.response!r}"
        if a.n == b.n:
            what += ", with different values"
        raise DataError(
            f"A Bayes factor compares models of the same rows and response; these have {what}. "
            "Fit both to the same complete rows."
        )
    one, two = first.log_evidence, second.log_evidence
    return BayesFactor(one.value - two.value, float(np.hypot(one.error, two.error)))
