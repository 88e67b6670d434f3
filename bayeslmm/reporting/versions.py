"""Versions of the software that made a fit."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from bayeslmm.priors.defaults import PymcPrior
from bayeslmm.priors.record import Priors

NAMES = {"numpy": "NumPy", "pymc": "PyMC", "arviz_stats": "ArviZ (arviz_stats)"}


def posterior_versions(attrs: Mapping[Any, Any], priors: Priors) -> dict[str, str]:
    """Versions by name: those recorded with the draws, else those at work now.

    Parameters
    ----------
    attrs : mapping
        Attributes of the root of a posterior.
    priors : Priors
        Priors of the model: PyMC counts where it evaluates one.
    """
    found = {"bayeslmm": str(attrs.get("modeling_interface_version", version("bayeslmm")))}
    found |= _common()
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
    return found | {NAMES["arviz_stats"]: version("arviz_stats")}


def estimate_versions() -> dict[str, str]:
    """Versions by name."""
    return {"bayeslmm": version("bayeslmm"), **_common()}


def versions_sentence(versions: Mapping[str, str]) -> str:
    """The versions in a sentence."""
    texts = [f"{name} {number}" for name, number in versions.items()]
    return f"Software: {', '.join(texts)}."


def _common() -> dict[str, str]:
    return {"Python": platform.python_version(), NAMES["numpy"]: version("numpy")}
