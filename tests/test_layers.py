"""Imports go one way: a file imports only from files listed before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bayeslmm"

LAYERS = [
    "exceptions",
    "schema",
    "_optional",
    "_writing",
    "_arrow",
    "column_types",
    "formula._splines",
    "formula._signatures",
    "formula._python",
    "formula._expressions",
    "formula._columns",
    "formula._functions",
    "formula._evaluation",
    "formula._formulaic",
    "formula._syntax",
    "formula._expansion",
    "formula.grammar",
    "formula",
    "design.data",
    "design.grouping",
    "design._rank",
    "design._scales",
    "design.random_factors",
    "design._dummies",
    "design._inputs",
    "design.design",
    "design.row_space",
    "design.row_groups",
    "design",
    "priors.families",
    "priors.lkj",
    "priors._pymc",
    "priors.record",
    "priors.defaults",
    "priors",
    "likelihood",
    "likelihood.covariance",
    "likelihood.crossprod",
    "likelihood.nested",
    "likelihood.elimination",
    "likelihood.shrinkage",
    "likelihood.factorise",
    "likelihood.split_rows",
    "likelihood.nested_inverse",
    "likelihood.moments",
    "likelihood.marginal",
    "likelihood.draws",
    "likelihood.log_posterior",
    "likelihood.batch",
    "likelihood.batch_posterior",
    "likelihood.iterative_draws",
    "likelihood.batch_draws",
    "inference",
    "inference.effects",
    "inference.effect_summary",
    "inference.draw_effects",
    "inference.variables",
    "inference.joint_draws",
    "inference.tree",
    "inference.log_densities",
    "inference.prior_predictive",
    "inference.progress",
    "inference.optimise",
    "inference.reported",
    "inference.estimate",
    "inference.start",
    "inference.bootstrap",
    "inference.estimate_draws",
    "inference.point_draws",
    "inference.map_estimate",
    "inference.constrained",
    "inference.profile",
    "inference.completion",
    "inference.laplace",
    "inference.mixture",
    "inference.warp",
    "inference.importance",
    "inference.pareto",
    "inference.propriety",
    "inference.surrogate",
    "inference.density_sampler",
    "inference.surrogate_sampler",
    "inference.covariance_sampler",
    "inference.collapsed",
    "inference.marginal_op",
    "inference.model",
    "inference.nuts",
    "inference.engine",
    "inference.refit",
    "inference.diagnostics",
    "inference.uniformity",
    "inference.calibration",
    "results",
    "results.parameters",
    "results.variance",
    "results.matrices",
    "results.estimate_tables",
    "results.posterior_tables",
    "results.words",
    "results.text",
    "results.random_tables",
    "results.tidy",
    "results.evidence",
    "results.state",
    "results.estimate_base",
    "results.posterior_base",
    "prediction",
    "prediction.rows",
    "prediction.linear",
    "prediction.new_group",
    "prediction.predict",
    "prediction.updated_point",
    "prediction.tables",
    "prediction.checks",
    "prediction.estimate_methods",
    "prediction.posterior_methods",
    "prediction.arviz_methods",
    "prediction.methods",
    "assessment",
    "assessment.row_roots",
    "assessment.row_forms",
    "assessment.integrated",
    "assessment.resampled",
    "assessment.level_scores",
    "assessment.loo",
    "assessment.loo_methods",
    "assessment.variance_explained",
    "assessment.variance_tables",
    "assessment.variance_methods",
    "assessment.methods",
    "diagnosis",
    "diagnosis.report",
    "diagnosis.joint_parameters",
    "diagnosis.boundary",
    "diagnosis.singularity_words",
    "diagnosis.singularity",
    "diagnosis.few_levels",
    "diagnosis.sensitivity",
    "diagnosis.implied_priors",
    "diagnosis.whitening",
    "diagnosis.standardised",
    "diagnosis.outliers",
    "diagnosis.residual_checks",
    "diagnosis.influence_words",
    "diagnosis.influence",
    "diagnosis.posterior_influence",
    "diagnosis.methods",
    "means",
    "means.linear",
    "means.adjust",
    "means.contrast_weights",
    "means.sources",
    "means.tests_of_fixed",
    "means.quantities",
    "means.grid",
    "means.marginal_means",
    "means.terms",
    "means.rows",
    "means.slopes",
    "means.comparisons",
    "means.expressions",
    "means.symbols",
    "means.densities",
    "means.evidence",
    "means.hypothesis",
    "means.estimate_methods",
    "means.posterior_methods",
    "means.methods",
    "plots",
    "plots.common",
    "plots.level_order",
    "plots.caterpillar",
    "plots.pooling",
    "plots.shrinkage",
    "plots.fitted",
    "plots.sources",
    "plots.prior_posterior",
    "plots.covariance",
    "plots.residuals",
    "plots.predictive",
    "plots.estimate_methods",
    "plots.effect_methods",
    "plots.model_methods",
    "plots.methods",
    "comparison",
    "comparison.nesting",
    "reporting",
    "reporting.numbers",
    "reporting.markup",
    "reporting.words",
    "reporting.citations",
    "reporting.versions",
    "reporting.columns",
    "reporting.model_text",
    "reporting.model_table",
    "reporting.glance",
    "reporting.augment",
    "reporting.methods_text",
    "reporting.methods",
    "results.estimate",
    "comparison.names",
    "comparison._statsmodels",
    "comparison.frequentist",
    "comparison.modes",
    "comparison.tables",
    "comparison.models",
    "comparison.plots",
    "results.calibration_plot",
    "results.calibration",
    "reporting.page",
    "reporting.pictures",
    "reporting.frames",
    "reporting.source",
    "reporting.finding_topics",
    "reporting.findings",
    "reporting.findings_section",
    "reporting.sections",
    "reporting.picture_sections",
    "reporting.report",
    "reporting.posterior_methods",
    "storage",
    "storage._values",
    "storage._frames",
    "storage._priors",
    "storage._layout",
    "storage._design",
    "storage._model",
    "storage._files",
    "storage.update_formula",
    "storage.update",
    "storage.extending",
    "storage.methods",
    "results.posterior",
    "storage.load",
    "storage.model_methods",
    "fit",
    "datasets",
    "__main__",
]
HEAVY = {"arviz", "matplotlib", "nutpie", "pymc", "pytensor"}
FIRST_HEAVY = "inference.marginal_op"
MAY_USE_PYMC_IN_FUNCTIONS = {"priors.families", "priors._pymc", "priors.defaults"}
FORMULAIC_SEAM = ("formula._formulaic", "formula._functions")
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    """Dotted name of a file below the package; a package's `__init__` has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{module}.{alias.name}"
                is_file = full.removeprefix("bayeslmm.") in LAYERS or module == "bayeslmm"
                found.append((node.lineno, full if is_file else module))
    return found


def functions(tree: ast.AST) -> list[ast.AST]:
    """Function definitions anywhere in a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def layer_faults(layer: str, tree: ast.AST) -> list[str]:
    """Imports of the package in a file of `layer` that go against the order."""
    faults = []
    for line, name in imports(tree):
        if name.startswith("."):
            faults.append(f"line {line}: relative import {name!r}")
        if name.split(".")[0] != "bayeslmm":
            continue
        target = name.removeprefix("bayeslmm").removeprefix(".")
        if target not in LAYERS:
            faults.append(f"line {line}: {name!r} is no layer; public names are for users")
        elif LAYERS.index(target) >= LAYERS.index(layer):
            faults.append(f"line {line}: {layer} may not import {target}, which comes later")
    return faults


def third_party_faults(layer: str, tree: ast.AST) -> list[str]:
    """Imports of other packages that a file of `layer` may not make."""
    faults = []
    in_functions = {line for function in functions(tree) for line, _ in imports(function)}
    for line, name in imports(tree):
        top = name.split(".")[0]
        if top == "formulaic" and layer not in FORMULAIC_SEAM:
            faults.append(
                f"line {line}: only {FORMULAIC_SEAM[0]} and {FORMULAIC_SEAM[1]} import formulaic"
            )
        if top in HEAVY and LAYERS.index(layer) < LAYERS.index(FIRST_HEAVY):
            allowed = layer in MAY_USE_PYMC_IN_FUNCTIONS and line in in_functions
            if not allowed:
                faults.append(f"line {line}: {layer} may not import {top}")
    return faults


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    layer = layer_of(path)
    if layer == "__init__":
        return
    assert layer in LAYERS, (
        f"{path.name} is not in the list of layers: add it to LAYERS in {Path(__file__).name}, "
        "after every file it imports from and before every file that imports it."
    )
    tree = ast.parse(path.read_text(encoding="utf-8"))
    faults = layer_faults(layer, tree) + third_party_faults(layer, tree)
    assert not faults, f"{path.name}: " + "; ".join(faults)


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        ("design.data", "from bayeslmm.fit import LMM"),
        ("design.data", "from bayeslmm.design.design import Design"),
        ("design.data", "from bayeslmm.design import design"),
        ("design.data", "def f():\n    import bayeslmm.fit"),
        ("design.data", "from bayeslmm import fit"),
        ("design.data", "from bayeslmm import LMM"),
        ("design.data", "import bayeslmm"),
        ("design.data", "from . import fit"),
        ("design.design", "from .data import to_frame"),
        ("design.design", "import formulaic"),
        ("design.design", "def f():\n    import pymc"),
        ("priors.defaults", "import pymc as pm"),
        ("priors.defaults", "if True:\n    from pymc import Normal"),
    ],
)
def test_faults_are_found(layer, code):
    tree = ast.parse(code)
    assert layer_faults(layer, tree) + third_party_faults(layer, tree)


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        ("design.design", "from bayeslmm.design.data import to_frame"),
        ("design.design", "from bayeslmm.design import data"),
        ("priors.defaults", "def f():\n    import pymc as pm"),
        ("inference.model", "import pymc as pm"),
        ("formula._formulaic", "from formulaic import Formula"),
    ],
)
def test_right_imports_pass(layer, code):
    tree = ast.parse(code)
    assert not layer_faults(layer, tree) + third_party_faults(layer, tree)
