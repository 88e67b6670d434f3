"""Scores of levels left out, which print as what they are; importing this loads ArviZ."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from arviz_stats import utils

# ArviZ has a class of its own for leave-one-out scores since version 1.3.
_Scores: Any = getattr(utils, "ELPDDataLOO", utils.ELPDData)


class LevelScores(_Scores):
    """ArviZ's scores where each is of all rows of a level.

    Attributes
    ----------
    by : str
        What the levels are of.
    """

    by: str

    def __str__(self) -> str:
        """Print the scores as ArviZ does, with levels in place of observations."""
        count, text = self.n_data_points, str(super().__str__())
        return text.replace(f"{count} observations", f"{count} levels of {self.by}", 1)

    def __repr__(self) -> str:
        return str(self)


def of_levels(scores: Any, by: str) -> LevelScores:
    """The scores as those of the levels of `by`."""
    result = LevelScores(**{field.name: getattr(scores, field.name) for field in fields(scores)})
    result.by = by
    return result
