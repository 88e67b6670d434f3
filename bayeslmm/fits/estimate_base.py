"""What every part of an estimate stands on: its values and what is computed from them once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.fits.state import field_values
from bayeslmm.summaries import estimate_tables

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EstimateBase:
    """Values of an estimate; :class:`~bayeslmm.Estimate` adds the methods, subject by subject."""

    design: Design
    fit: Fit

    def __getstate__(self) -> dict[str, Any]:
        return field_values(self)

    @cached_property
    def _modes(self) -> list[Array]:
        return estimate_tables.mode_arrays(self.fit)

    @property
    def _covariances(self) -> list[Array]:
        return estimate_tables.covariances(self.fit)
