"""The methods paragraph of a paper: model, priors, estimation, checks and software in words."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bayeslmm.covariance.kinds import describe, structure_of
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import Inference
from bayeslmm.priors.families import LKJ, Fixed
from bayeslmm.priors.keys import INTERCEPT
from bayeslmm.priors.pymc_priors import PymcPrior
from bayeslmm.priors.record import Priors
from bayeslmm.report.tables import templates
from bayeslmm.sampling.diagnostics import (
    MAX_PARETO_K,
    MAX_RHAT,
    MIN_EFFICIENCY,
    MIN_ESS_PER_CHAIN,
    Diagnostics,
)
from bayeslmm.summaries.text import MOST, counted, listed

LIMITS = {
    "pareto_k": MAX_PARETO_K,
    "efficiency": MIN_EFFICIENCY,
    "rhat": MAX_RHAT,
    "ess": MIN_ESS_PER_CHAIN,
}


def _sentences(about: str, **values: Any) -> list[str]:
    """Sentences of the template of methods."""
    words = {"counted": counted, "listed": listed, "finite": np.isfinite, "most": MOST}
    words["describe"] = describe
    template = templates().get_template("methods.txt", globals=words)
    text = str(getattr(template.module, about)(**values))
    return [line for line in text.splitlines() if line]


def model_sentences(design: Design) -> list[str]:
    """Response, rows, fixed effects, random effects, residuals, what was dropped."""
    factors = [_OneLevel.of(factor) for factor in design.random]
    return _sentences("model", design=design, factors=factors)


class _OneLevel(NamedTuple):
    """A grouping factor with the coefficients that one level has; `by` divides its levels."""

    name: str
    n_levels: int
    coefs: tuple[str, ...]
    blocks: list[tuple[int, ...]]
    kinds: list[str]
    by: list[str]

    @classmethod
    def of(cls, factor: RandomFactor) -> _OneLevel:
        places = factor.spec.own_places[0].tolist()
        named = zip(factor.blocks, factor.kinds, strict=True)
        own = [
            (tuple(map(places.index, block)), kind) for block, kind in named if block[0] in places
        ]
        by = dict.fromkeys(s.of.name for s in factor.spec.strata if s is not None)
        blocks, kinds = [block for block, _ in own], [kind for _, kind in own]
        return cls(factor.name, factor.n_levels, factor.own_coefs, blocks, kinds, list(by))


def prior_sentences(priors: Priors) -> list[str]:
    """Priors with their values: the defaults, those given, flat ones."""
    records = priors.records()
    by_source: dict[str, list[str]] = {"flat": [], "user": [], "default": [], "fixed": []}
    for key, record in records.items():
        place = "" if key == INTERCEPT else priors.where.get(key, "")
        by_source[priors.sources[key]].append(
            f"{key}{place and ' '}{place} {'' if isinstance(record, Fixed) else '~ '}{record}"
        )
    centred = INTERCEPT in priors.coefs and len(priors.coefs) > 1
    return _sentences(
        "prior",
        by_source=by_source,
        lkj=any(isinstance(record, LKJ) for record in records.values()),
        centred=centred and priors.sources.get(INTERCEPT) in ("default", "user"),
        joint=not all(priors.alone),
    )


def wald_scales(design: Design) -> str:
    """Scales on which intervals of covariance parameters are symmetric."""
    sds = "standard deviations on the logarithmic scale"
    if not any(structure_of(factor).n_cors for factor in design.random):
        return sds
    return f"{sds}, correlations on the inverse hyperbolic tangent scale"


# --- versions of the software that made a fit ---------------------------------------

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


# --- estimates -------------------------------------------------------------------------


def estimate_paragraph(
    inference: Inference,
    design: Design,
    priors: Priors,
    notes: Sequence[str],
    *,
    references: bool,
) -> str:
    """Methods paragraph of a REML, ML or MAP fit.

    Parameters
    ----------
    inference : Inference
        The fit, and how its fixed effects are judged.
    design : Design
        Its design.
    priors : Priors
        Its priors, which "MAP" alone depends on.
    notes : sequence of str
        What a reader should know of it: singular, not converged.
    references : bool
        Whether the literature follows.
    """
    fit, sentences = inference.fit, model_sentences(design)
    if fit.method == "MAP":
        sentences += prior_sentences(priors)
    sentences += _sentences(
        "estimate",
        fit=fit,
        design=design,
        scales=wald_scales(design),
        effects=_integrated(design, fixed=bool(design.p) and not fit.given_beta),
        words=_words(inference, design),
    )
    sentences += [note for note in notes if not note.startswith("Fixed-effects columns dropped")]
    sentences.append(versions_sentence(estimate_versions()))
    paragraph = " ".join(sentences)
    return (
        with_references(paragraph, _estimate_citations(inference, design))
        if references
        else paragraph
    )


def _is_least_squares(fit: Fit, design: Design) -> bool:
    """Whether REML is least squares, with its exact t tests."""
    plain = not design.random and design.residual is None
    return fit.method == "REML" and plain and fit.plan.held is None


def _words(inference: Inference, design: Design) -> str:
    """What tests of fixed effects use."""
    if inference.name == "satterthwaite" and _is_least_squares(inference.fit, design):
        return f"t distributions with {design.n - design.p} degrees of freedom"
    return inference.words


def _estimate_citations(inference: Inference, design: Design) -> list[str]:
    fit = inference.fit
    keys = ["lmm"] if design.random else []
    if fit.method == "REML":
        keys.append("reml")
    if not len(fit.beta) or not inference.citation:
        return keys
    if inference.name == "satterthwaite" and _is_least_squares(fit, design):
        return keys
    return [*keys, inference.citation]


# --- posteriors ------------------------------------------------------------------------


def posterior_paragraph(
    data: xr.DataTree,
    design: Design,
    priors: Priors,
    found: Diagnostics,
    checked: Sequence[str] = (),
    *,
    references: bool,
) -> str:
    """Methods paragraph of a posterior.

    Parameters
    ----------
    data : xarray.DataTree
        Draws and what made them.
    design : Design
        The design of the model.
    priors : Priors
        Its priors.
    found : Diagnostics
        Convergence checks of the draws.
    checked : sequence of str
        What other checks found.
    references : bool
        Whether the literature follows.
    """
    attrs = data.attrs
    sentences = [
        *model_sentences(design),
        *prior_sentences(priors),
        *_engine_sentences(data, design, priors, found),
        *_sentences("convergence", attrs=attrs, found=found, limits=LIMITS),
        *checked,
        versions_sentence(posterior_versions(attrs, priors)),
    ]
    paragraph = " ".join(sentences)
    keys = _posterior_citations(str(attrs["method"]), design, priors, found)
    return with_references(paragraph, keys) if references else paragraph


def _engine_sentences(
    data: xr.DataTree, design: Design, priors: Priors, found: Diagnostics
) -> list[str]:
    sampled = "covariance parameters"
    if priors.beta_sampled:
        sampled = f"fixed effects and {sampled}"
    return _sentences(
        "engine",
        attrs=data.attrs,
        steps=data["posterior"].attrs.get("tuning_steps"),
        found=found,
        parameters=sampled,
        effects=_integrated(design, fixed=bool(priors.coefs) and not priors.beta_sampled),
        random=bool(design.random),
    )


def _integrated(design: Design, *, fixed: bool) -> str:
    """Which effects are integrated out; empty where none is."""
    names = ["fixed"] * fixed + ["random"] * bool(design.random)
    return f"{' and '.join(names)} effects" if names else ""


def _posterior_citations(
    method: str, design: Design, priors: Priors, found: Diagnostics
) -> list[str]:
    engine = {"nuts": ["nuts", "pymc"], "laplace": ["laplace"], "collapsed": ["independence"]}
    keys = [*engine.get(method, []), *(["lmm"] if design.random else [])]
    records = priors.records()
    if any(isinstance(record, LKJ) for record in records.values()):
        keys.append("lkj")
    if any(str(record).startswith("HalfStudentT") for record in records.values()):
        keys.append("half_t")
    keys += ["psis"] if found.approximate or method == "collapsed" else []
    return keys if found.approximate else [*keys, "rhat"]


# --- what a methods section cites ---------------------------------------------------

CITATIONS: dict[str, str] = tomllib.loads(
    Path(__file__).with_name("references.toml").read_text(encoding="utf-8")
)
"""References by what they are cited for."""


def with_references(paragraph: str, keys: Sequence[str]) -> str:
    """Paragraph followed by the references in alphabetical order."""
    lines = sorted(CITATIONS[key] for key in keys)
    return "\n\n".join([paragraph, "References", *lines])
