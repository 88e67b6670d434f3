"""The same model fitted to other responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr

from bayeslmm.data.design import Design
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.engine import FitMethod, sample_posterior

COMPILED = frozenset({"draws", "form", "tune", "chains", "cores", "target_accept"})
"""Options with which NUTS is compiled once for all responses."""


def refit_function(
    design: Design, priors: Priors, method: FitMethod, options: Mapping[str, Any]
) -> Callable[[Design, np.random.Generator], xr.DataTree]:
    """Function that fits a model, with the priors it has, to another response.

    Parameters
    ----------
    design, priors : Design, Priors
        The model; its response is not used.
    method : {"auto", "collapsed", "nuts", "laplace"}
        The engine.
    options : mapping
        ``draws``, ``chains`` and further arguments of the engine.

    Returns
    -------
    callable
        Takes the design with another response and a Generator, returns the draws.
    """
    if method == "nuts" and options.keys() <= COMPILED and options.get("form") != "marginal":
        from bayeslmm.sampling.nuts import compile_nuts

        return compile_nuts(design, priors, **options)
    quiet = {"progressbar": False} if method == "nuts" else {}
    others = {**quiet, **options}
    draws, chains = others.pop("draws", 1000), others.pop("chains", 4)
    require_positive(draws=draws, chains=chains)

    def refit(changed: Design, rng: np.random.Generator) -> xr.DataTree:
        return sample_posterior(
            changed,
            lambda: marginal_system(changed),
            priors,
            method=method,
            draws=draws,
            chains=chains,
            random_seed=rng,
            options=others,
        )

    return refit


def require_positive(**counts: Any) -> None:
    """Raise ValueError unless every count is a whole number of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: a whole number of at least 1 is expected")
