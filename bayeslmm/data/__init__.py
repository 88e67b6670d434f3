"""Designs: a formula and data made into response, X and random effects."""

from bayeslmm.data.design import Design, RandomFactor, build_design

__all__ = ["Design", "RandomFactor", "build_design"]
