"""The methods paragraph of a paper: what was done, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.priors.lkj import LKJ
from bayeslmm.priors.record import Priors
from bayeslmm.report.citations import with_references
from bayeslmm.report.versions import estimate_versions, posterior_versions, versions_sentence
from bayeslmm.report.words import model_sentences, prior_sentences, wald_scales
from bayeslmm.sampling.diagnostics import (
    MAX_PARETO_K,
    MAX_RHAT,
    MIN_EFFICIENCY,
    MIN_ESS_PER_CHAIN,
    Diagnostics,
)
from bayeslmm.summaries.text import counted

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
