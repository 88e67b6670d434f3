"""Imports go one way: a file imports only from files listed before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bayeslmm"

LAYERS = [
    "exceptions",
    "schema",
    "_optional",
    "_splines",
    "_expressions",
    "_columns",
    "_formulaic",
    "_syntax",
    "formula",
    "data",
    "design",
    "effects",
    "variance",
    "covariance",
    "parameters",
    "prior_families",
    "prior_lkj",
    "prior_pymc",
    "prior_set",
    "priors",
    "crossprod",
    "elimination",
    "factorise",
    "moments",
    "draws",
    "_kernels",
    "marginal",
    "marginal_op",
    "tree",
    "log_densities",
    "model",
    "optimise",
    "curvature",
    "estimate",
    "constrained",
    "profile",
    "log_posterior",
    "map_estimate",
    "laplace",
    "nuts",
    "diagnostics",
    "summary",
    "tables",
    "estimate_tables",
    "posterior_tables",
    "matrices",
    "text",
    "tidy",
    "point",
    "compare",
    "plots",
    "io",
    "fit",
    "datasets",
    "__main__",
]
HEAVY = {"arviz", "matplotlib", "nutpie", "pymc", "pytensor"}
MAY_USE_PYMC_IN_FUNCTIONS = {"prior_families", "prior_pymc", "priors"}
FORMULAIC_SEAM = "_formulaic"
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    """First part of the path below the package, so a folder is one layer."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "bayeslmm":
                found += [(node.lineno, f"bayeslmm.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, module))
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
        target = name.split(".")[1] if "." in name else ""
        if target not in LAYERS:
            faults.append(f"line {line}: {name!r} is no layer; public names are for users")
        elif target != layer and LAYERS.index(target) > LAYERS.index(layer):
            faults.append(f"line {line}: {layer} may not import {target}, which comes later")
    return faults


def third_party_faults(layer: str, tree: ast.AST) -> list[str]:
    """Imports of other packages that a file of `layer` may not make."""
    faults = []
    in_functions = {line for function in functions(tree) for line, _ in imports(function)}
    for line, name in imports(tree):
        top = name.split(".")[0]
        if top == "formulaic" and layer != FORMULAIC_SEAM:
            faults.append(f"line {line}: only {FORMULAIC_SEAM} imports formulaic")
        if top in HEAVY and LAYERS.index(layer) < LAYERS.index("marginal_op"):
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
        ("design", "from bayeslmm.fit import LMM"),
        ("design", "def f():\n    import bayeslmm.fit"),
        ("design", "from bayeslmm import fit"),
        ("design", "from bayeslmm import LMM"),
        ("design", "import bayeslmm"),
        ("design", "from . import fit"),
        ("design", "from .data import to_frame"),
        ("design", "import formulaic"),
        ("design", "def f():\n    import pymc"),
        ("priors", "import pymc as pm"),
        ("priors", "if True:\n    from pymc import Normal"),
    ],
)
def test_faults_are_found(layer, code):
    tree = ast.parse(code)
    assert layer_faults(layer, tree) + third_party_faults(layer, tree)


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        ("design", "from bayeslmm.data import to_frame"),
        ("design", "from bayeslmm import data"),
        ("priors", "def f():\n    import pymc as pm"),
        ("model", "import pymc as pm"),
        ("_formulaic", "from formulaic import Formula"),
    ],
)
def test_right_imports_pass(layer, code):
    tree = ast.parse(code)
    assert not layer_faults(layer, tree) + third_party_faults(layer, tree)
