"""Versions of the software that made a fit."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from bayeslmm.priors.pymc_priors import PymcPrior
from bayeslmm.priors.record import Priors

ARVIZ = "ArviZ (arviz_stats)"

RECORDED = {
    "bayeslmm": "modeling_interface_version",
    "Python": "python_version",
    "NumPy": "numpy_version",
}
"""Attributes of the root of a posterior that hold the versions that made its draws."""


def posterior_versions(attrs: Mapping[Any, Any], priors: Priors) -> dict[str, str]:
    """Versions by name: those recorded with the draws, which a loaded posterior keeps.

    What was not recorded is left out, but for PyMC and ArviZ, which are those at work now: ArviZ
    computes the convergence checks anew.

    Parameters
    ----------
    attrs : mapping
        Attributes of the root of a posterior.
    priors : Priors
        Priors of the model: PyMC counts where it evaluates one.
    """
    found = {name: str(attrs[key]) for name, key in RECORDED.items() if key in attrs}
    if any(isinstance(record, PymcPrior) for record in priors.records().values()):
        found["PyMC"] = version("pymc")
    if attrs["method"] == "nuts":
        found["PyMC"] = version("pymc")
        library = str(attrs.get("inference_library", "pymc"))
        recorded = attrs.get("inference_library_version")
        if library != "pymc":
            found[library] = version(library) if recorded is None else str(recorded)
        elif recorded is not None:
            found["PyMC"] = str(recorded)
    return found | {ARVIZ: version("arviz_stats")}


def estimate_versions() -> dict[str, str]:
    """Versions by name."""
    return {
        "bayeslmm": version("bayeslmm"),
        "Python": platform.python_version(),
        "NumPy": version("numpy"),
    }


def versions_sentence(versions: Mapping[str, str]) -> str:
    """The versions in a sentence."""
    texts = [f"{name} {number}" for name, number in versions.items()]
    return f"Software: {', '.join(texts)}."
