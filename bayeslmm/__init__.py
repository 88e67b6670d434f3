"""Bayesian linear mixed models.

An lme4-style formula and a data frame become one density, and from it come the REML, ML and MAP
estimates and the posterior. Public names are loaded on first use, so that importing the package
stays cheap: neither PyMC nor ArviZ is imported before something needs to sample.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayeslmm.comparison.exact_lrt import exact_lrt
    from bayeslmm.comparison.models import bayes_factor, compare, lrt
    from bayeslmm.comparison.reml import compare_reml
    from bayeslmm.comparison.two_estimates import compare_estimates
    from bayeslmm.data.pedigree import pedigree
    from bayeslmm.data.relationships import Relationship
    from bayeslmm.data.trials import clda, expand_visits
    from bayeslmm.datasets import describe_dataset, list_datasets, load_dataset
    from bayeslmm.exceptions import (
        BayesLMMError,
        DataError,
        FormulaError,
        NoEstimateError,
        OptionalDependencyError,
        PriorError,
        SamplingError,
        StorageError,
    )
    from bayeslmm.fits.estimate import Estimate
    from bayeslmm.fits.lm_list import lm_list
    from bayeslmm.fits.lmm import LMM
    from bayeslmm.fits.load import load
    from bayeslmm.fits.posterior import Posterior
    from bayeslmm.fits.products import CrossProducts
    from bayeslmm.fits.study import Study
    from bayeslmm.formula.grammar import parse as parse_formula
    from bayeslmm.planning.layouts import simulate_design
    from bayeslmm.report.model_table import model_table

    __version__: str

__all__ = [
    "LMM",
    "BayesLMMError",
    "CrossProducts",
    "DataError",
    "Estimate",
    "FormulaError",
    "NoEstimateError",
    "OptionalDependencyError",
    "Posterior",
    "PriorError",
    "Relationship",
    "SamplingError",
    "StorageError",
    "Study",
    "__version__",
    "bayes_factor",
    "clda",
    "compare",
    "compare_estimates",
    "compare_reml",
    "describe_dataset",
    "exact_lrt",
    "expand_visits",
    "list_datasets",
    "lm_list",
    "load",
    "load_dataset",
    "lrt",
    "model_table",
    "parse_formula",
    "pedigree",
    "simulate_design",
]

_SOURCES = {
    "BayesLMMError": ("bayeslmm.exceptions", "BayesLMMError"),
    "CrossProducts": ("bayeslmm.fits.products", "CrossProducts"),
    "DataError": ("bayeslmm.exceptions", "DataError"),
    "Estimate": ("bayeslmm.fits.estimate", "Estimate"),
    "FormulaError": ("bayeslmm.exceptions", "FormulaError"),
    "LMM": ("bayeslmm.fits.lmm", "LMM"),
    "NoEstimateError": ("bayeslmm.exceptions", "NoEstimateError"),
    "OptionalDependencyError": ("bayeslmm.exceptions", "OptionalDependencyError"),
    "Posterior": ("bayeslmm.fits.posterior", "Posterior"),
    "PriorError": ("bayeslmm.exceptions", "PriorError"),
    "Relationship": ("bayeslmm.data.relationships", "Relationship"),
    "SamplingError": ("bayeslmm.exceptions", "SamplingError"),
    "StorageError": ("bayeslmm.exceptions", "StorageError"),
    "Study": ("bayeslmm.fits.study", "Study"),
    "bayes_factor": ("bayeslmm.comparison.models", "bayes_factor"),
    "clda": ("bayeslmm.data.trials", "clda"),
    "compare": ("bayeslmm.comparison.models", "compare"),
    "compare_estimates": ("bayeslmm.comparison.two_estimates", "compare_estimates"),
    "compare_reml": ("bayeslmm.comparison.reml", "compare_reml"),
    "describe_dataset": ("bayeslmm.datasets", "describe_dataset"),
    "exact_lrt": ("bayeslmm.comparison.exact_lrt", "exact_lrt"),
    "expand_visits": ("bayeslmm.data.trials", "expand_visits"),
    "list_datasets": ("bayeslmm.datasets", "list_datasets"),
    "lm_list": ("bayeslmm.fits.lm_list", "lm_list"),
    "load": ("bayeslmm.fits.load", "load"),
    "load_dataset": ("bayeslmm.datasets", "load_dataset"),
    "lrt": ("bayeslmm.comparison.models", "lrt"),
    "model_table": ("bayeslmm.report.model_table", "model_table"),
    "parse_formula": ("bayeslmm.formula.grammar", "parse"),
    "pedigree": ("bayeslmm.data.pedigree", "pedigree"),
    "simulate_design": ("bayeslmm.planning.layouts", "simulate_design"),
}

if not TYPE_CHECKING:  # a type checker would take any attribute to exist

    def __getattr__(name: str) -> object:
        """Load a public name on first use."""
        if name == "__version__":
            return version(__name__)
        if name not in _SOURCES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _SOURCES[name]
        value = getattr(import_module(module), attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names before they are loaded, and not what this file imports for itself."""
    own = {"TYPE_CHECKING", "import_module", "version"}
    return sorted((set(globals()) - own) | set(__all__))
