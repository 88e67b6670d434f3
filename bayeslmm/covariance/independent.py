"""No correlations, and one variance: a multiple of the identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bayeslmm.covariance.pattern import Pattern


@dataclass(frozen=True)
class Independent(Pattern):
    """Independent coefficients.

    Examples
    --------
    >>> Independent(3, homogeneous=True).n_theta
    1
    """

    words: ClassVar[str] = "independent"
    names: ClassVar[tuple[str, str]] = ("diag", "homdiag")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """None."""
        return ()

    def rows(self, sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
        """The identity."""
        return list(units)
