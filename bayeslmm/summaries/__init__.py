"""Parameters, variances and effects of a fit as labelled tables and text.

Here is what they ask of an estimate and of a posterior, whatever class these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import Inference
from bayeslmm.estimation.model import Model
from bayeslmm.priors.record import Priors

if TYPE_CHECKING:
    import xarray as xr

    from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]


class FitLike(Protocol):
    """What estimates and posteriors both have: the model and one value of everything."""

    @property
    def model(self) -> Model:
        """Design, priors and what is computed from them once."""

    @property
    def design(self) -> Design:
        """The design of the model."""

    @property
    def priors(self) -> Priors:
        """Its priors."""

    @property
    def method(self) -> str:
        """How it was fitted."""

    def means(self, *args: Any, **options: Any) -> Any:
        """Marginal means."""

    def contrasts(self, *args: Any, **options: Any) -> Any:
        """Contrasts of marginal means."""

    def slopes(self, *args: Any, **options: Any) -> Any:
        """Average slopes."""

    def comparisons(self, *args: Any, **options: Any) -> Any:
        """Average differences of predictions."""

    def predict(self, *args: Any, **options: Any) -> Any:
        """Predictions of rows."""

    def hypothesis(self, *args: Any, **options: Any) -> Any:
        """What the fit says of hypotheses."""

    def heterogeneity(self, *args: Any, **options: Any) -> Any:
        """How far estimates with known sampling errors differ."""

    @property
    def _beta(self) -> Array:
        """Fixed effects (p,)."""

    @property
    def _u(self) -> list[Array]:
        """Random effects (J, k) per grouping factor."""

    @property
    def _covariances(self) -> list[Array]:
        """Covariance matrices (k, k) of the random effects per grouping factor."""

    @property
    def _residual(self) -> sp.csr_array:
        """Covariance matrix R (n, n) of the residuals."""


class EstimateLike(FitLike, Protocol):
    """A REML, ML or MAP estimate."""

    @property
    def fit(self) -> Fit:
        """Parameters and their uncertainty as arrays."""

    @property
    def inference(self) -> Inference:
        """Standard errors and tests of the fixed effects."""

    @property
    def n_parameters(self) -> int:
        """Parameters counted by AIC and BIC."""

    @property
    def loglik(self) -> float:
        """Log (restricted) likelihood."""

    @property
    def aic(self) -> float:
        """Akaike's criterion."""

    @property
    def bic(self) -> float:
        """Schwarz's criterion."""


class PosteriorLike(FitLike, Protocol):
    """Posterior draws."""

    @property
    def data(self) -> xr.DataTree:
        """Draws in the ArviZ schema."""

    @property
    def _draws(self) -> xr.Dataset:
        """Group posterior."""

    @property
    def _joint(self) -> JointDraws:
        """Joint draws of all parameters and random effects."""


def is_estimate(value: object) -> TypeGuard[EstimateLike]:
    """Whether a value is an estimate."""
    return isinstance(getattr(value, "fit", None), Fit)


def is_posterior(value: object) -> TypeGuard[PosteriorLike]:
    """Whether a value is a posterior."""
    return isinstance(getattr(value, "model", None), Model) and hasattr(value, "data")


def verbs(accessor: object) -> str:
    """What an accessor offers, by name."""
    return ", ".join(name for name in dir(accessor) if not name.startswith("_"))
