"""What every part of a posterior stands on: its values and what is computed from them once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.fits.state import field_values
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws, posterior_draws
from bayeslmm.summaries import posterior_tables

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PosteriorBase:
    """Values of a posterior; :class:`~bayeslmm.Posterior` adds the methods, subject by subject."""

    design: Design
    priors: Priors
    data: xr.DataTree

    def __getstate__(self) -> dict[str, Any]:
        return field_values(self)

    def with_groups(self, **groups: xr.Dataset) -> Self:
        """A copy whose `data` has further groups, or replaced ones.

        Parameters
        ----------
        **groups : xarray.Dataset
            Groups by name.
        """
        present = {child: node.to_dataset() for child, node in self.data.children.items()}
        tree = xr.DataTree.from_dict({**present, **groups})
        tree.attrs.update(self.data.attrs)
        return replace(self, data=tree)

    @cached_property
    def _plan(self) -> Plan:
        return marginal_system(self.design)

    @cached_property
    def _joint(self) -> JointDraws:
        return posterior_draws(self.design, lambda: self._plan, self._draws)

    @cached_property
    def _draws(self) -> xr.Dataset:
        return self.data["posterior"].to_dataset()

    @cached_property
    def _means(self) -> list[Array]:
        return posterior_tables.mean_arrays(self.data, self.design)

    @cached_property
    def _covariances(self) -> list[Array]:
        draws = posterior_tables.covariance_draws(self._draws, self.design)
        return [draw.mean(axis=0) for draw in draws]

    @cached_property
    def _sigma_squared(self) -> float:
        return float(np.mean(posterior_tables.sigma_draws(self._draws) ** 2))
