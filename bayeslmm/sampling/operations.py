"""PyTensor operations that are computed by NumPy, with their derivatives."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.numba.dispatch.basic import (
    generate_fallback_impl,
    register_funcify_and_cache_key,
)

from bayeslmm.covariance.residual import STEP, BoundResidual, Correlation

Array = NDArray[np.float64]


class DensityOp(Op, ABC):
    """A log density of several inputs.

    Outputs are the log density, minus infinity outside its support, followed by its derivatives by
    each input, so that value and gradient come from one evaluation.
    """

    @abstractmethod
    def evaluate(self, inputs: Sequence[Array]) -> list[Any]:
        """The log density and its derivatives; LinAlgError and OverflowError mean it is zero."""

    def make_node(self, *inputs: Any) -> Apply:
        """Declare the outputs: a scalar, then one derivative of the type of each input."""
        tensors = [pt.as_tensor_variable(value).astype("float64") for value in inputs]
        return Apply(self, tensors, [pt.dscalar(), *(tensor.type() for tensor in tensors)])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list[Any]]) -> None:
        """Evaluate the log density and its derivatives."""
        arrays = [np.asarray(value, dtype=float) for value in inputs]
        for cell, value in zip(output_storage, self._outputs(arrays), strict=True):
            cell[0] = np.ascontiguousarray(value, dtype=float).reshape(np.shape(value))

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        """Return the gradient; the derivatives themselves cannot be differentiated."""
        first, *rest = cotangents
        if not all(isinstance(value.type, DisconnectedType) for value in rest):
            raise NotImplementedError(f"{type(self).__name__} has no second derivatives.")
        if isinstance(first.type, DisconnectedType):
            return [disconnected_type() for _ in inputs]
        return [first * derivative for derivative in outputs[1:]]

    def _outputs(self, inputs: Sequence[Array]) -> list[Any]:
        impossible = [-np.inf, *(np.zeros(value.shape) for value in inputs)]
        if not all(np.isfinite(value).all() for value in inputs):
            return impossible
        try:
            with np.errstate(all="ignore"):
                values = self.evaluate(inputs)
        except (np.linalg.LinAlgError, OverflowError):
            return impossible
        return values if all(np.isfinite(value).all() for value in values) else impossible


class ResidualOp(DensityOp):
    """Log density of residuals in units of their scale, up to ``-n log(2 pi) / 2``.

    Inputs are the residuals (n,) over sigma times the roots of their weights, and the shape (r,) of
    their covariance matrix.

    Parameters
    ----------
    law : BoundResidual
        The relative precision matrix of the rows.
    """

    def __init__(self, law: BoundResidual) -> None:
        self.law = law

    def evaluate(self, inputs: Sequence[Array]) -> list[Any]:
        """``(log |P| - e'Pe) / 2`` and its derivatives."""
        (e, shape), entries = inputs, self.law.entries
        rows, cols, apart = entries.rows, entries.cols, entries.rows != entries.cols
        values, log_det = (part[0] for part in self.law.precision(shape[None]))
        each = values[entries.kinds]
        by_row = np.bincount(rows, each * e[cols], minlength=len(e))
        by_row += np.bincount(cols, each * apart * e[rows], minlength=len(e))
        products = e[rows] * e[cols] * np.where(apart, 2.0, 1.0)
        by_value = -0.5 * np.bincount(entries.kinds, products, minlength=len(values))
        by_shape = self.law.pull_back(shape, by_value, 0.5)
        return [0.5 * (log_det - e @ by_row), -by_row, by_shape]


class MapOp(Op):
    """A function of a vector (n,), whose outputs are its value (m,) and derivatives (m, n).

    Parameters
    ----------
    function : callable
        The value at a point.
    slopes : callable
        The derivatives at a point and its value; those that are not finite become zero.
    """

    def __init__(
        self, function: Callable[[Array], Array], slopes: Callable[[Array, Array], Array]
    ) -> None:
        self.function = function
        self.slopes = slopes

    def make_node(self, *inputs: Any) -> Apply:
        """Declare the value and the derivatives."""
        return Apply(self, [pt.as_tensor_variable(inputs[0])], [pt.dvector(), pt.dmatrix()])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list[Any]]) -> None:
        """Evaluate both."""
        point = np.asarray(inputs[0], dtype=float)
        with np.errstate(all="ignore"):
            value = self.function(point)
            slopes = self.slopes(point, value)
        output_storage[0][0] = np.ascontiguousarray(value)
        output_storage[1][0] = np.ascontiguousarray(np.where(np.isfinite(slopes), slopes, 0.0))

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        """Return the gradient; the derivatives themselves cannot be differentiated."""
        value, slopes = cotangents
        if not isinstance(slopes.type, DisconnectedType):
            raise NotImplementedError("MapOp has no second derivatives.")
        return [pt.dot(value, outputs[1])]


def coordinates_of(law: Correlation, parameters: Any) -> Any:
    """Coordinates (n,) of the correlations of one arm from the parameters (n,) with priors."""
    op: Any = MapOp(
        lambda values: law.from_parameters(values[None])[0],
        lambda _, z: np.diag(1.0 / law.parameter_slopes(z)),
    )
    return op(parameters)[0]


def correlations_of(law: Correlation, z: Any) -> Any:
    """The correlations (n_cors,) that determine all others, from coordinates (n_cors,)."""

    def slopes(z: Array, _: Array) -> Array:
        shifts = STEP * np.eye(len(z))
        ahead, behind = (law.correlations(z + shift) for shift in (shifts, -shifts))
        return np.asarray((ahead - behind).T / (2.0 * STEP))

    op: Any = MapOp(lambda z: law.correlations(z[None])[0], slopes)
    return op(z)[0]


def run_by_python(kind: Any) -> None:
    """Let Numba call operations of a class as Python functions, without warning that it does."""
    register_funcify_and_cache_key(kind)(_call_python_from_numba)


def _call_python_from_numba(op: Op, node: Apply, **kwargs: Any) -> tuple[Any, None]:
    """Object mode without the warning; no cache key, because the data are not part of one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numba will use object mode")
        return generate_fallback_impl(op, node, **kwargs), None


run_by_python(DensityOp)
run_by_python(MapOp)
