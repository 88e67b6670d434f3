"""Tables and text for papers: methods of posteriors."""

from __future__ import annotations

from bayeslmm.results.posterior_base import PosteriorBase


class PosteriorReporting(PosteriorBase):
    """Tables and text for papers of a posterior."""
