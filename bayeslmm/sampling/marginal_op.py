"""The marginal density of the data as a PyTensor operation with a gradient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.numba.dispatch.basic import (
    generate_fallback_impl,
    register_funcify_and_cache_key,
)

from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.marginal import log_density_given_beta_grad, log_density_grad


class MarginalOp(Op):
    """Log density of the data with the random effects, and usually beta, integrated out.

    Inputs are the relative factors (k, k), one per grouping factor, then sigma and, where beta is
    sampled, beta (p,). Outputs are the log density followed by its derivatives by each input, so
    that value and gradient come from one factorisation.

    Parameters
    ----------
    system : Plan
        The data, from ``marginal.marginal_system``.
    prior : GaussianBeta, optional
        Prior on an integrated beta; flat by default.
    given_beta : bool
        Whether beta is an input rather than integrated out.

    Examples
    --------
    >>> op = MarginalOp(marginal_system(design))               # doctest: +SKIP
    >>> log_density = op(*factors, sigma)[0]                   # doctest: +SKIP
    """

    def __init__(
        self, system: Plan, prior: GaussianBeta | None = None, *, given_beta: bool = False
    ) -> None:
        self.system = system
        self.prior = prior
        self.given_beta = given_beta

    def make_node(self, *inputs: Any) -> Apply:
        """Declare the outputs: a scalar, then one derivative of the type of each input."""
        tensors = [pt.as_tensor_variable(value).astype("float64") for value in inputs]
        return Apply(self, tensors, [pt.dscalar(), *(tensor.type() for tensor in tensors)])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list[Any]]) -> None:
        """Evaluate the log density and its derivatives."""
        for cell, value in zip(output_storage, self._evaluate(inputs), strict=True):
            cell[0] = np.ascontiguousarray(value, dtype=float).reshape(np.shape(value))

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        """Return the gradient; the derivatives themselves cannot be differentiated."""
        first, *rest = cotangents
        if not all(isinstance(value.type, DisconnectedType) for value in rest):
            raise NotImplementedError("MarginalOp has no second derivatives.")
        if isinstance(first.type, DisconnectedType):
            return [disconnected_type() for _ in inputs]
        return [first * derivative for derivative in outputs[1:]]

    def _evaluate(self, inputs: Sequence[Any]) -> list[Any]:
        n_factors = len(self.system.products.structures)
        factors = [np.asarray(value) for value in inputs[:n_factors]]
        sigma = float(inputs[n_factors])
        impossible = [-np.inf, *(np.zeros(np.shape(value)) for value in inputs)]
        if not (np.isfinite(sigma) and sigma > 0 and all(np.isfinite(t).all() for t in factors)):
            return impossible
        try:
            with np.errstate(all="ignore"):
                values = self._differentiate(factors, sigma, inputs[n_factors + 1 :])
        except (np.linalg.LinAlgError, OverflowError):
            return impossible
        finite = all(np.isfinite(value).all() for value in values)
        return values if finite else impossible

    def _differentiate(self, factors: list[Any], sigma: float, rest: Sequence[Any]) -> list[Any]:
        if self.given_beta:
            beta = np.asarray(rest[0])
            value, d_factors, d_sigma, d_beta = log_density_given_beta_grad(
                self.system, factors, sigma, beta
            )
            return [value, *d_factors, d_sigma, d_beta]
        value, d_factors, d_sigma = log_density_grad(self.system, factors, sigma, self.prior)
        return [value, *d_factors, d_sigma]


@register_funcify_and_cache_key(MarginalOp)
def _call_python_from_numba(op: MarginalOp, node: Apply, **kwargs: Any) -> tuple[Any, None]:
    """Object mode without the warning; no cache key, because the data are not part of one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numba will use object mode")
        return generate_fallback_impl(op, node, **kwargs), None
