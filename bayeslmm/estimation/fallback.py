"""Models fitted in order until one of them converges."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import NoEstimateError, SamplingError

_log = logging.getLogger(__name__)


def first_converging(
    models: Sequence[Model], fit: Callable[[Model], Fit]
) -> tuple[Model, Fit, tuple[str, ...]]:
    """The first model whose estimate can be used.

    Parameters
    ----------
    models : sequence of Model
        In the order in which they are tried.
    fit : callable
        Estimates a model.

    Returns
    -------
    model : Model
    fit : Fit
    notes : tuple of str
        What was tried before and why it was not kept; empty where the first model was.

    Raises
    ------
    SamplingError
        If no model has an estimate that can be used; says why each has none.
    """
    faults: list[str] = []
    for model in models:
        try:
            made = fit(model)
        except NoEstimateError as error:
            reason = str(error).rstrip(".")
        else:
            found = fault(made)
            if found is None:
                return model, made, _notes(name_of(model), faults)
            reason = found
        faults.append(f"{name_of(model)}: {reason}.")
        _log.warning("%s was not kept: %s.", name_of(model), reason)
    raise SamplingError(f"None of {len(models)} models has converged. {' '.join(faults)}")


def fault(fit: Fit) -> str | None:
    """Why an estimate is not one to go on with; None where it is."""
    if not fit.optimum.converged:
        return f"the optimiser did not converge ({fit.optimum.message})"
    if fit.singular:
        return "the fit is singular"
    if (np.isfinite(fit.parameters) & np.isnan(np.diag(fit.parameter_cov))).any():
        return "the data do not determine all of its covariance parameters"
    return None


def name_of(model: Model) -> str:
    """A model by its residual structure, or by its formula where it has none."""
    return model.design.spec.residual_source or model.design.formula.source


def _notes(kept: str, faults: Sequence[str]) -> tuple[str, ...]:
    if not faults:
        return ()
    return (f"Fallen back to {kept}. Tried before and not kept: {' '.join(faults)}",)
