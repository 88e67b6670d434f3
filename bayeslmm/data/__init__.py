"""A formula and data to what a model knows without rows, a spec, and rows under it, a design."""

from bayeslmm.data.building import build_design
from bayeslmm.data.design import Design, RandomFactor, Spec

__all__ = ["Design", "RandomFactor", "Spec", "build_design"]
