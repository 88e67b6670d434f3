"""Tables and text for papers: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.results.estimate_base import EstimateBase


class EstimateReporting(EstimateBase):
    """Tables and text for papers of an estimate."""
