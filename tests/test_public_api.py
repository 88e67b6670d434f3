"""The public names: all there, all documented."""

import inspect
from importlib.metadata import version

import pytest

import bayeslmm

EXCEPTIONS = {
    "BayesLMMError",
    "DataError",
    "FormulaError",
    "NoEstimateError",
    "OptionalDependencyError",
    "PriorError",
    "SamplingError",
    "StorageError",
}
OBJECTS = sorted(set(bayeslmm.__all__) - {"__version__"})


def test_the_public_names():
    assert set(bayeslmm.__all__) == EXCEPTIONS | {
        "CrossProducts",
        "LMM",
        "Estimate",
        "Posterior",
        "Study",
        "__version__",
        "bayes_factor",
        "clda",
        "compare",
        "compare_estimates",
        "compare_reml",
        "describe_dataset",
        "expand_visits",
        "list_datasets",
        "load",
        "load_dataset",
        "simulate_design",
        "exact_lrt",
        "lm_list",
        "lrt",
        "model_table",
        "parse_formula",
        "Relationship",
        "pedigree",
    }


def test_no_name_is_listed_twice():
    assert len(bayeslmm.__all__) == len(set(bayeslmm.__all__))


def test_every_name_is_listed_before_it_is_loaded():
    assert set(bayeslmm.__all__) <= set(dir(bayeslmm))
    assert not {"TYPE_CHECKING", "import_module", "version"} & set(dir(bayeslmm))


def test_version_is_that_of_the_distribution():
    assert bayeslmm.__version__ == version("bayeslmm")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lmer'"):
        _ = bayeslmm.lmer


@pytest.mark.parametrize("name", OBJECTS)
def test_name_can_be_loaded_and_is_documented(name):
    value = getattr(bayeslmm, name)
    assert value.__module__.startswith("bayeslmm")
    doc = inspect.getdoc(value)
    assert doc, f"{name} has no docstring"
    if name not in EXCEPTIONS:
        assert "Examples\n--------\n" in doc, f"the docstring of {name} has no Examples section"


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_every_error_is_caught_by_the_base_class(name):
    assert issubclass(getattr(bayeslmm, name), bayeslmm.BayesLMMError)
