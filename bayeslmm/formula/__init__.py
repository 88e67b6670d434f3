"""Formulas: lme4's grammar read into the parts of a model, without data."""

from bayeslmm.formula.grammar import Formula, RandomTerm, parse

__all__ = ["Formula", "RandomTerm", "parse"]
