"""What a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd
import xarray as xr

from bayeslmm.checks.posterior_influence import PosteriorInfluence
from bayeslmm.checks.residual_checks import ResidualChecks
from bayeslmm.checks.sensitivity import Contraction, Sensitivity
from bayeslmm.checks.singularity import PosteriorSingularity
from bayeslmm.data.design import Design
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.diagnostics import Diagnostics


class Source(Protocol):
    """Everything that a report asks of a posterior."""

    @property
    def design(self) -> Design:
        """Design of the model."""

    @property
    def priors(self) -> Priors:
        """Its priors."""

    @property
    def data(self) -> xr.DataTree:
        """Draws in the ArviZ schema."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything a reader should know."""

    @property
    def diagnostics(self) -> Diagnostics:
        """Convergence checks."""

    def summary(self) -> pd.DataFrame:
        """Parameters with diagnostics."""

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Posterior means of the random effects."""

    def ranef_sd(self) -> dict[str, pd.DataFrame]:
        """Posterior standard deviations of the random effects."""

    def methods_paragraph(self, *, references: bool = False, findings: Any = None) -> str:
        """Methods in prose."""

    def residual_checks(
        self, draws: int = 200, *, random_seed: int | None = None
    ) -> ResidualChecks:
        """Checks of residuals and random effects."""

    def influence(self, by: str | None = None, *, progressbar: bool = True) -> PosteriorInfluence:
        """Rows or levels left out."""

    def sensitivity(self) -> Sensitivity:
        """Power-scaling sensitivity."""

    def contraction(self, draws: int = 20_000, *, random_seed: int | None = None) -> Contraction:
        """Prior against posterior."""

    def singularity(self) -> PosteriorSingularity:
        """Nearness to a loss of rank."""

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

    def predictive_check(
        self, statistic: str, *, prob: float | None = None, random_seed: int | None = None
    ) -> pd.DataFrame:
        """A statistic of the data and of replicates."""

    def with_posterior_predictive(self, *, random_seed: int | None = None) -> Source:
        """With replicates of the response."""

    def plot_caterpillar(
        self, group: str, *, levels: Sequence[Any], prob: float | None, backend: Any
    ) -> Any:
        """Random effects with intervals."""

    def plot_shrinkage(self, group: str, *, levels: Sequence[Any], backend: Any) -> Any:
        """Levels alone and partially pooled."""

    def plot_fitted(self, *, group: str, prob: float | None, backend: Any) -> Any:
        """Data and fitted lines."""

    def plot_prior_posterior(self, *, backend: Any) -> Any:
        """Prior and posterior densities."""

    def plot_reml(self, reml: Any, *, prob: float | None, backend: Any) -> Any:
        """Posterior densities with an estimate."""

    def plot_covariance(self, which: str, *, levels: Sequence[Any], backend: Any) -> Any:
        """Covariance matrices."""

    def plot_residuals(self, *, backend: Any) -> Any:
        """Residuals."""

    def plot_predictive(self, kind: str, *, backend: Any) -> Any:
        """Predictive check."""
