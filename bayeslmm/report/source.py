"""What a report is made of."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd

from bayeslmm.checks.accessors import PosteriorChecks
from bayeslmm.plots.accessors import PosteriorPlots
from bayeslmm.sampling.diagnostics import Diagnostics
from bayeslmm.summaries.fits import PosteriorLike


class Source(PosteriorLike, Protocol):
    """Everything that a report asks of a posterior."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything a reader should know."""

    @property
    def diagnostics(self) -> Diagnostics:
        """Convergence checks."""

    @property
    def check(self) -> PosteriorChecks:
        """Other checks."""

    @property
    def plot(self) -> PosteriorPlots:
        """Pictures."""

    def summary(self) -> pd.DataFrame:
        """Parameters with diagnostics."""

    def glance(self) -> pd.DataFrame:
        """One row about the posterior."""

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Posterior means of the random effects."""

    def ranef_sd(self) -> dict[str, pd.DataFrame]:
        """Posterior standard deviations of the random effects."""

    def methods_paragraph(self, *, references: bool = False, findings: Any = None) -> str:
        """Methods in prose."""

    def loo(self, *, progressbar: bool = True) -> Any:
        """Leave-one-out scores of the rows."""

    def icc(self, prob: float | None = None) -> pd.DataFrame:
        """Intraclass correlations."""

    def r2(self, *, prob: float | None = None) -> pd.DataFrame:
        """Marginal and conditional R2."""

    def variance_partition(self, prob: float | None = None) -> pd.DataFrame:
        """Variances and shares by part of the model."""

    def compare_reml(self, reml: Any, *, prob: float | None = None) -> pd.DataFrame:
        """Posterior beside an estimate."""
