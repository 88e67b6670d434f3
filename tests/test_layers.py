"""Imports go one way: down the table of folders, and without a cycle inside a folder."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bayeslmm"

ROOMS = [
    "exceptions",
    "schema",
    "writing",
    "arrow",
    "column_types",
    "datasets",
    "covariance",
    "formula",
    "data",
    "priors",
    "likelihood",
    "estimation",
    "sampling",
    "summaries",
    "prediction",
    "checks",
    "effects",
    "comparison",
    "plots",
    "report",
    "storage",
    "selection",
    "planning",
    "fits",
    "__main__",
]
HEAVY = {"arviz", "matplotlib", "nutpie", "pymc", "pytensor"}
FIRST_HEAVY = "sampling"
MAY_USE_PYMC_IN_FUNCTIONS = {
    "priors.families",
    "priors.pymc_priors",
    "priors.defaults",
    "priors.words",
}
FORMULAIC_SEAM = ("formula.formulaic_seam", "formula.transforms")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Dotted name of a file below the package; a folder's `__init__` has the folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """Folder, or file outside folders, that a module is in."""
    return module.split(".")[0]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
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
                is_file = full.removeprefix("bayeslmm.") in MODULES or module == "bayeslmm"
                found.append((node.lineno, full if is_file else module))
    return found


def lines_in_functions(tree: ast.AST) -> set[int]:
    """Lines of imports inside function definitions anywhere in a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return {line for function in functions for line, _ in imports(function)}


def own_imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and module below the package of what a file imports from the package itself."""
    return [
        (line, name.removeprefix("bayeslmm").removeprefix("."))
        for line, name in imports(tree)
        if name.split(".")[0] == "bayeslmm"
    ]


def layer_faults(module: str, tree: ast.AST) -> list[str]:
    """Imports of the package in a file that go up the table of folders."""
    faults = [
        f"line {line}: relative import {name!r}"
        for line, name in imports(tree)
        if name.startswith(".")
    ]
    for line, target in own_imports(tree):
        if target not in MODULES:
            faults.append(f"line {line}: {target!r} is no module; public names are for users")
        elif room_of(target) not in ROOMS:
            faults.append(f"line {line}: {target} is in no room of the table")
        elif ROOMS.index(room_of(target)) > ROOMS.index(room_of(module)):
            faults.append(f"line {line}: {module} may not import {target}, which comes later")
    return faults


def third_party_faults(module: str, tree: ast.AST) -> list[str]:
    """Imports of other packages that a file may not make."""
    faults = []
    for line, name in imports(tree):
        top = name.split(".")[0]
        if top == "formulaic" and module not in FORMULAIC_SEAM:
            faults.append(
                f"line {line}: only {FORMULAIC_SEAM[0]} and {FORMULAIC_SEAM[1]} import formulaic"
            )
        if top in HEAVY and ROOMS.index(room_of(module)) < ROOMS.index(FIRST_HEAVY):
            allowed = module in MAY_USE_PYMC_IN_FUNCTIONS and line in lines_in_functions(tree)
            if not allowed:
                faults.append(f"line {line}: {module} may not import {top}")
    return faults


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    module = module_of(path)
    if module == "__init__":
        return
    assert room_of(module) in ROOMS, (
        f"{room_of(module)} is not in the table of folders: add it to ROOMS in "
        f"{Path(__file__).name}, below every folder it imports from."
    )
    tree = parsed(path)
    faults = layer_faults(module, tree) + third_party_faults(module, tree)
    assert not faults, f"{path.name}: " + "; ".join(faults)


def test_no_file_imports_itself_in_a_circle():
    arrows = {
        module: {target for _, target in own_imports(parsed(path))}
        for module, path in MODULES.items()
    }
    while free := {module for module, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {module: targets for module, targets in arrows.items() if module not in free}
    assert not arrows, f"imports go round in circles among {sorted(arrows)}"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("data.frames", "from bayeslmm.fits.lmm import LMM"),
        ("data.frames", "from bayeslmm.priors.record import Priors"),
        ("data.frames", "def f():\n    import bayeslmm.fits.lmm"),
        ("data.frames", "from bayeslmm import fits"),
        ("data.frames", "from bayeslmm import LMM"),
        ("data.frames", "import bayeslmm"),
        ("data.frames", "from . import design"),
        ("data.design", "from .frames import to_frame"),
        ("data.design", "import formulaic"),
        ("data.design", "def f():\n    import pymc"),
        ("priors.defaults", "import pymc as pm"),
        ("priors.defaults", "if True:\n    from pymc import Normal"),
    ],
)
def test_faults_are_found(module, code):
    tree = ast.parse(code)
    assert layer_faults(module, tree) + third_party_faults(module, tree)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("data.design", "from bayeslmm.data.frames import to_frame"),
        ("data.design", "from bayeslmm.data import frames"),
        ("fits.lmm", "from bayeslmm.fits.load import load"),
        ("priors.defaults", "def f():\n    import pymc as pm"),
        ("sampling.model", "import pymc as pm"),
        ("formula.formulaic_seam", "from formulaic import Formula"),
    ],
)
def test_right_imports_pass(module, code):
    tree = ast.parse(code)
    assert not layer_faults(module, tree) + third_party_faults(module, tree)
