"""The methods paragraph of a paper: model, priors, estimation, checks and software in words."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.estimate import Fit
from bayeslmm.priors.lkj import LKJ
from bayeslmm.priors.pymc_priors import PymcPrior
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.diagnostics import (
    MAX_PARETO_K,
    MAX_RHAT,
    MIN_EFFICIENCY,
    MIN_ESS_PER_CHAIN,
    Diagnostics,
)
from bayeslmm.summaries.text import MOST, counted, listed

INTERCEPT = "Intercept"


def model_sentences(design: Design) -> list[str]:
    """Response, rows, fixed effects, random effects, residuals, what was dropped."""
    rows = counted(design.n, "observation")
    sentences = [
        f"A linear mixed model of {design.response} was fitted to {rows} "
        f"(formula: {' '.join(design.formula.source.split())})."
    ]
    sentences += dropped_sentences(design)
    sentences.append(_fixed_sentence(design))
    if design.random:
        parts = [_random_phrase(factor) for factor in design.random]
        sentences.append(f"Random effects were {_joined(parts)}.")
        sentences.append("Random effects were normally distributed with mean zero.")
    sentences.append(_residual_sentence(design))
    return sentences


def dropped_sentences(design: Design) -> list[str]:
    """Rows and columns that were left out."""
    sentences = []
    if count := len(design.dropped):
        total = count + design.n
        rows = counted(count, "row")
        sentences.append(
            f"{rows} of {total:,} {'was' if count == 1 else 'were'} left out because a variable "
            "of the model is missing there."
        )
    if design.aliased:
        columns = "column" if len(design.aliased) == 1 else "columns"
        sentences.append(
            f"The fixed-effects {columns} {listed(design.aliased)} "
            f"{'was' if len(design.aliased) == 1 else 'were'} left out as linear combinations of "
            "the others."
        )
    return sentences


def _fixed_sentence(design: Design) -> str:
    if not design.p:
        text = "There were no fixed effects"
    else:
        names = ["the intercept" if name == INTERCEPT else name for name in design.coefs]
        verb = "The fixed effect was" if design.p == 1 else "Fixed effects were"
        text = f"{verb} {listed(names)}"
        if INTERCEPT not in design.coefs:
            text += ", without an intercept"
    if design.formula.offsets:
        text += f"; the offset {' + '.join(design.formula.offsets)} entered with coefficient one"
    return f"{text}."


def _random_phrase(factor: RandomFactor) -> str:
    slopes = [name for name in factor.coefs if name != INTERCEPT]
    parts = ["intercepts"] if INTERCEPT in factor.coefs else []
    parts += [f"coefficients of {listed(slopes)}"] if slopes else []
    levels = counted(factor.n_levels, "level")
    return f"{' and '.join(parts)} by {factor.name} ({levels}){_structure(factor)}"


def _structure(factor: RandomFactor) -> str:
    """Which coefficients of a grouping factor are correlated."""
    if factor.n_coefs == 1:
        return ""
    if len(factor.blocks) == 1:
        return ", correlated with each other"
    correlated = [block for block in factor.blocks if len(block) > 1]
    if not correlated:
        return ", independent of each other"
    blocks = [f"{{{', '.join(factor.coefs[i] for i in block)}}}" for block in correlated]
    return f", correlated within {' and within '.join(blocks)} and independent otherwise"


def _residual_sentence(design: Design) -> str:
    if design.weights is None:
        return "Residuals were independent and normal with one standard deviation."
    source = f" {design.recipe.weights}" if design.recipe.weights else ""
    return (
        "Residuals were independent and normal, with variance sigma squared over the precision "
        f"weight{source} of the row."
    )


def wald_scales(design: Design) -> str:
    """Scales on which intervals of covariance parameters are symmetric."""
    sds = "standard deviations on the logarithmic scale"
    if all(len(block) == 1 for factor in design.random for block in factor.blocks):
        return sds
    return f"{sds}, correlations on the inverse hyperbolic tangent scale"


def _joined(parts: Sequence[str]) -> str:
    """Phrases with commas inside, as a list."""
    return parts[0] if len(parts) == 1 else f"{'; '.join(parts[:-1])}; and {parts[-1]}"


def prior_sentences(priors: Priors) -> list[str]:
    """Priors with their values: the defaults, those given, flat ones."""
    records = priors.records()
    by_source: dict[str, list[str]] = {}
    for key, record in records.items():
        by_source.setdefault(priors.sources[key], []).append(f"{key} ~ {record}")
    sentences = []
    if "flat" in by_source:
        text = "Priors were flat (improper): uniform on the fixed effects, the standard deviations"
        text += " and sigma"
        if any(isinstance(record, LKJ) for record in records.values()):
            text += "; LKJ(1), which is uniform over correlation matrices, on the correlations"
        sentences.append(f"{text}.")
    if "user" in by_source:
        sentences.append(f"Priors chosen for this analysis: {_shortened(by_source['user'])}.")
    if "default" in by_source:
        which = "Other priors" if "user" in by_source else "Priors"
        sentences.append(
            f"{which} were the weakly informative defaults of bayeslmm, scaled by the standard "
            f"deviations of response and covariates: {_shortened(by_source['default'])}."
        )
    centred = INTERCEPT in priors.coefs and len(priors.coefs) > 1
    if centred and priors.sources.get(INTERCEPT) in ("default", "user"):
        sentences.append(
            "The prior of the intercept is that of the linear predictor at the means of the "
            "covariates."
        )
    return sentences


def _shortened(phrases: Sequence[str]) -> str:
    more = len(phrases) - MOST
    return "; ".join(phrases[:MOST]) + (f"; and {more} more" if more > 0 else "")


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


# --- the methods paragraph of a paper -----------------------------------------------

FORMS = {
    "noncentered": "with standardised (noncentred) random effects",
    "centered": "with centred random effects",
    "marginal": "with the random effects integrated out and drawn exactly afterwards",
}


# --- estimates -------------------------------------------------------------------------


def estimate_paragraph(
    fit: Fit,
    design: Design,
    notes: Sequence[str],
    priors: Priors | None = None,
    *,
    references: bool,
) -> str:
    """Methods paragraph of a REML, ML or MAP fit.

    Parameters
    ----------
    fit : Fit
        The fit.
    design : Design
        Its design.
    notes : sequence of str
        What a reader should know of it: singular, not converged.
    priors : Priors, optional
        Priors of "MAP".
    references : bool
        Whether the literature follows.
    """
    sentences = model_sentences(design)
    if fit.method == "MAP":
        unknown = ["Its priors are not recorded in the estimate: name those of model.priors here."]
        sentences += unknown if priors is None else prior_sentences(priors)
    elif priors is not None:
        raise ValueError(f"priors= is for MAP; {fit.method} has none.")
    sentences += _estimate_sentences(fit, design)
    sentences += [note for note in notes if not note.startswith("Fixed-effects columns dropped")]
    sentences.append(versions_sentence(estimate_versions()))
    paragraph = " ".join(sentences)
    return with_references(paragraph, _estimate_citations(fit)) if references else paragraph


def _estimate_sentences(fit: Fit, design: Design) -> list[str]:
    if fit.method == "MAP":
        sentences = _mode_sentences(fit, design)
    else:
        name = "restricted maximum likelihood" if fit.method == "REML" else "maximum likelihood"
        tests = (
            "Tests and confidence intervals of fixed effects use t distributions with "
            "Satterthwaite's degrees of freedom; other confidence intervals"
        )
        sentences = [
            f"Parameters were estimated by {name} ({fit.method}).",
            f"{tests if design.p else 'Confidence intervals'} are Wald intervals "
            f"({wald_scales(design)}).",
        ]
    if fit.optimum.converged:
        sentences.append("The optimiser converged.")
    return sentences


def _mode_sentences(fit: Fit, design: Design) -> list[str]:
    fixed = design.p and not fit.given_beta
    given = "; fixed effects are their means given this mode" if fixed else ""
    parameters = "Fixed effects and covariance" if fit.given_beta else "Covariance"
    return [
        f"{parameters} parameters were estimated by the mode of their posterior density with the "
        f"{'fixed and ' if fixed else ''}random effects integrated out (MAP){given}.",
        "Standard errors and intervals are those of a normal approximation to the posterior at the "
        f"mode ({wald_scales(design)}).",
    ]


def _estimate_citations(fit: Fit) -> list[str]:
    keys = ["lmm", "reml"] if fit.method == "REML" else ["lmm"]
    return keys if fit.method == "MAP" or not len(fit.beta) else [*keys, "satterthwaite"]


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
        *_engine_sentences(attrs, data["posterior"].attrs, priors, found),
        *diagnostic_sentences(str(attrs["method"]), found),
        *checked,
        versions_sentence(posterior_versions(attrs, priors)),
    ]
    paragraph = " ".join(sentences)
    keys = _posterior_citations(str(attrs["method"]), priors, found)
    return with_references(paragraph, keys) if references else paragraph


def _engine_sentences(
    attrs: Mapping[Any, Any], group: Mapping[Any, Any], priors: Priors, found: Diagnostics
) -> list[str]:
    method = str(attrs["method"])
    size = f"{counted(found.chains, 'chain')} of {counted(found.draws, 'draw')}"
    if method == "nuts":
        sentences = _nuts_sentences(attrs, group, size)
    elif method == "laplace":
        sentences = [
            f"The posterior of the {_covariances(priors)} was approximated by a normal "
            "distribution around its mode, on the scale of log standard deviations and "
            f"unconstrained correlations (Laplace), from which {found.chains * found.draws:,} "
            f"independent draws were taken; {_effects(priors)} were drawn exactly given each."
        ]
    else:
        sentences = [
            f"The posterior was sampled with the {_effects(priors)} integrated out: "
            f"{_covariances(priors)} by an independence Metropolis-Hastings sampler with proposals "
            f"adapted by importance sampling ({size}), and {_effects(priors)} from their normal "
            "distribution given each draw."
        ]
        if found.surrogate_error:
            sentences.append(
                "Its density was evaluated by an interpolation whose error in log density, checked "
                f"against exact values, has a standard deviation of {found.surrogate_error:.1g}."
            )
    if "fallback" in attrs:
        sentences.insert(
            0,
            "The collapsed sampler, which is the first choice, refused this posterior "
            f"({str(attrs['fallback']).rstrip('.')}), so NUTS was used instead.",
        )
    return sentences


def _nuts_sentences(attrs: Mapping[Any, Any], group: Mapping[Any, Any], size: str) -> list[str]:
    form = FORMS.get(str(attrs.get("form")), "")
    library = str(attrs.get("inference_library", "pymc"))
    steps = group.get("tuning_steps")
    tuned = f" after {counted(int(steps), 'tuning step')} per chain" if steps is not None else ""
    through = "PyMC" if library == "pymc" else f"PyMC and {library}"
    text = f"The posterior was sampled with the No-U-Turn sampler (NUTS) of {through}, {form}"
    return [f"{text.rstrip(', ')}: {size}{tuned}."]


def _covariances(priors: Priors) -> str:
    if priors.beta_sampled:
        return "fixed effects and covariance parameters"
    return "covariance parameters"


def _effects(priors: Priors) -> str:
    """Coefficients that are integrated out and drawn afterwards."""
    return (
        "fixed and random effects" if priors.coefs and not priors.beta_sampled else "random effects"
    )


def diagnostic_sentences(method: str, found: Diagnostics) -> list[str]:
    """What the convergence checks found, poor convergence included."""
    if found.approximate:
        count = found.chains * found.draws
        sentence = (
            f"The approximation was checked by importance ratios: Pareto k {found.pareto_k:.2f}, "
            f"effective sample size {found.importance_ess:,.0f} of {count:,}"
        )
        criteria = f"(criteria: k below {MAX_PARETO_K}, at least {100 * MIN_EFFICIENCY:g} %)"
    else:
        sentence = _sampler_sentence(method, found)
        criteria = f"(criteria: R-hat below {MAX_RHAT}, {MIN_ESS_PER_CHAIN:g} draws per chain)"
    if found.ok:
        return [f"{sentence}. No check gave reason for concern {criteria}."]
    return [f"{sentence}. The draws did not pass all checks {criteria}:", *found.messages()]


def _sampler_sentence(method: str, found: Diagnostics) -> str:
    parts = []
    if np.isfinite(found.max_rhat):
        parts.append(f"the largest R-hat was {found.max_rhat:.3f}")
    else:
        parts.append("there was no R-hat with a single chain")
    parts.append(f"the smallest bulk effective sample size {found.min_ess_bulk:,.0f}")
    parts.append(f"the smallest tail effective sample size {found.min_ess_tail:,.0f}")
    if method == "nuts":
        parts.append(f"{counted(found.divergences, 'transition')} diverged")
    if np.isfinite(found.proposal_k):
        parts.append(f"Pareto k of the proposals was {found.proposal_k:.2f}")
        parts.append(f"their acceptance rate {found.acceptance_rate:.2f}")
    return f"Of the parameters checked, {', '.join(parts[:-1])} and {parts[-1]}"


def _posterior_citations(method: str, priors: Priors, found: Diagnostics) -> list[str]:
    engine = {"nuts": ["nuts", "pymc"], "laplace": ["laplace"], "collapsed": ["independence"]}
    keys = [*engine.get(method, []), "lmm"]
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
