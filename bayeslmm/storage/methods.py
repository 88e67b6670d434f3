"""Saving and extending: methods of posteriors."""

from __future__ import annotations

from bayeslmm.results.posterior_base import PosteriorBase


class PosteriorStorage(PosteriorBase):
    """Saving and extending a posterior."""
