"""The shape of the fits: few bases, every verb said once, and the public verbs."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import bayeslmm as blm
from bayeslmm.checks.accessors import EstimateChecks, PosteriorChecks
from bayeslmm.estimation.model import Model
from bayeslmm.plots.accessors import EstimatePlots, PosteriorPlots
from bayeslmm.plots.model_accessor import ModelPlots

PACKAGE = Path(blm.__file__).parent
MODULES = [
    ".".join(("bayeslmm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    )
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__main__"
]
MOST_BASES = 5

BOTH = """
    G R V augment average_predictions beta check coef comparisons contrasts corrs design fitted
    fixef glance heterogeneity hypothesis icc joint_tests means method methods_paragraph model nobs
    notes plot predict predict_missing priors r2 ranef ranef_sd reference_grid residuals sds sigma
    simulate slopes study summary tidy to_html to_latex to_marginaleffects to_markdown varcorr
    variance_partition with_source
"""
VERBS = {
    blm.LMM: """
        X Z all_fit check_calibration design dropped effect_labels fit formula from_fit
        from_products implied_priors map
        ml model nobs planned plot prior_predictive priors pymc reml study system update
        with_source y
    """,
    blm.Estimate: BOTH
    + """
        aic anova bic bootstrap confint contest converged criterion drop1 fit loglik n_parameters
        ranova singular step tried vcov choice inference robust with_df
    """,
    blm.Posterior: BOTH
    + """
        compare_reml data diagnostics draw_u draws extend findings impute kfold log_evidence loo
        predict_draws random_seeds reference_based_effect report save to_arviz
        with_groups with_log_likelihood with_log_prior with_posterior_predictive with_prior
    """,
    EstimatePlots: """
        caterpillar comparisons contrasts covariance fitted forest hypothesis influence means
        new_level predictions profile residuals slopes variance
    """,
    PosteriorPlots: """
        caterpillar comparisons contrasts covariance fitted forest hypothesis influence means
        new_level pareto_k predictions predictive prior_posterior reml residuals sensitivity
        shrinkage slopes variance
    """,
    ModelPlots: "implied_priors prior_predictions prior_predictive priors",
    EstimateChecks: "influence residuals singularity",
    PosteriorChecks: """
        contraction influence loo_pit predictive residuals sensitivity singularity
    """,
}
AS_ANOTHER = {"R", "V", "to_latex", "to_markdown"}
"""Verbs whose one line names the verb that they are like."""
PAIRS = [
    (blm.Estimate, blm.Posterior),
    (EstimatePlots, PosteriorPlots),
    (EstimateChecks, PosteriorChecks),
]


def public(cls):
    """Public attributes of a class, its fields among them."""
    names = {*dir(cls), *getattr(cls, "__dataclass_fields__", ())}
    return {name for name in names if not name.startswith("_")}


def own_doc(cls, name):
    """Class that a name's own docstring is in; None where it has none or is a field."""
    for base in cls.__mro__:
        if name in vars(base):
            value = inspect.getattr_static(base, name)
            if inspect.getdoc(getattr(value, "fget", value)) and getattr(value, "__doc__", None):
                return base
    return None


@pytest.mark.parametrize("cls", VERBS, ids=lambda cls: cls.__name__)
def test_the_public_verbs(cls):
    assert public(cls) == set(VERBS[cls].split())


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_what_both_have_is_said_once(pair):
    one, two = pair
    fields = set(one.__dataclass_fields__) | set(two.__dataclass_fields__)
    accessors = {"check", "plot"}  # of another class each
    for name in (public(one) & public(two)) - fields - accessors:
        said = own_doc(one, name)
        assert said is not None, f"{name} has no docstring"
        assert said is own_doc(two, name), f"{name} is said twice"
        for cls in pair:
            overrides = [base for base in cls.__mro__ if name in vars(base) and base is not said]
            assert not any(vars(base)[name].__doc__ for base in overrides)


@pytest.mark.parametrize("cls", VERBS, ids=lambda cls: cls.__name__)
def test_every_verb_answers(cls):
    """What a shared base only describes is provided by the class."""
    for name in public(cls) - set(getattr(cls, "__dataclass_fields__", ())):
        value = inspect.getattr_static(cls, name)
        function = getattr(value, "fget", None) or getattr(value, "func", value)
        function = getattr(function, "__func__", function)
        assert "NotImplementedError" not in function.__code__.co_names, name


@pytest.mark.parametrize("cls", VERBS, ids=lambda cls: cls.__name__)
def test_every_option_is_described(cls):
    """The options of a verb are in the docstring that it shares."""
    for name in public(cls) - set(getattr(cls, "__dataclass_fields__", ())):
        value = getattr(cls, name)
        doc = inspect.getdoc(value) or ""
        if not callable(value) or "Parameters\n-" not in doc:
            continue
        said = doc.split("Parameters\n")[1].split("Returns\n")[0]
        for option in inspect.signature(value).parameters.values():
            if option.name not in ("self", "cls"):
                assert re.search(rf"\b{option.name}\b", said), f"{name}({option.name})"


@pytest.mark.parametrize("cls", VERBS, ids=lambda cls: cls.__name__)
def test_every_verb_says_what_it_returns_and_shows_it(cls):
    for name in public(cls) - set(getattr(cls, "__dataclass_fields__", ())):
        doc = inspect.getdoc(getattr(cls, name)) or ""
        if callable(getattr(cls, name)) and name not in AS_ANOTHER:
            # rows beyond memory need files: with_source of a model sends to that of a fit
            assert "Examples\n--------\n" in doc or (cls, name) == (blm.LMM, "with_source"), name
            assert "Returns\n-------\n" in doc or name == "save", name


def test_classes_have_few_bases():
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__:
                own = [b for b in cls.__mro__[1:] if b.__module__.split(".")[0] == "bayeslmm"]
                found[f"{module.__name__}.{name}"] = len(own)
    assert len(found) > 100
    assert {name: count for name, count in found.items() if count > MOST_BASES} == {}


def test_the_reference_lists_what_exists():
    text = (PACKAGE.parent / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    module = "bayeslmm"
    for line in text.splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.fullmatch(r"   ([A-Za-z][\w.]*)", line):
            *path, name = f"{module}.{found[1]}".split(".")
            assert hasattr(importlib.import_module(".".join(path)), name), found[1]


@pytest.fixture(scope="module")
def model():
    return blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))


def test_fits_share_what_is_computed_once(model, monkeypatch):
    post, reml = model.fit(draws=20, chains=2, random_seed=1), model.reml()
    assert isinstance(model.model, Model)
    assert post.model is reml.model is model.model is post.with_log_prior().model
    assert post.extend(5).model is model.model is blm.LMM.from_fit(post).model
    assert model.reml().fit is reml.fit
    for name in ("fit_likelihood", "marginal_system"):
        monkeypatch.setattr(f"bayeslmm.estimation.model.{name}", None)
    monkeypatch.setattr("bayeslmm.comparison.reml.fit_likelihood", None)
    post.plot.shrinkage(backend="none")
    post.with_prior().check.singularity()
    post.compare_reml(reml)
    post.findings(["sensitivity"])


def test_what_only_the_other_has_is_refused(model):
    reml, post = model.reml(), model.fit(draws=20, chains=2, random_seed=1)
    machines = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
    machines = machines.fit(method="laplace", draws=20, random_seed=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'prob'"):
        reml.fixef(prob=0.9)
    with pytest.raises(TypeError, match="unexpected keyword argument 'level'"):
        post.fixef(level=0.9)
    with pytest.raises(ValueError, match="needs draws of the random effects"):
        reml.average_predictions(target="conditional")
    with pytest.raises(ValueError, match="'population'"):
        reml.average_predictions(target="new")
    with pytest.raises(ValueError, match="for estimates"):
        machines.contrasts("Machine", adjust="holm")


def test_accessors_print_what_they_offer(model):
    assert repr(model.reml().check) == "fit.check: influence, residuals, singularity"
    assert repr(model.reml().plot).endswith("profile, residuals, slopes, variance")
