"""Random small models, with default and with hostile priors, and an independent sampler of them.

The independent sampler is sequential Monte Carlo: it starts from draws of the prior, which cannot
miss where the prior has its mass, and tempers the likelihood in steps. A kernel density of its
particles then proposes points that are weighted to the posterior, which takes away what the steps
left of bias. It shares the density with the collapsed sampler, which is compared with dense algebra
elsewhere, and nothing else.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import logsumexp

import bayeslmm as blm
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.log_posterior import log_likelihood_batch, log_prior_batch, reduce_at
from bayeslmm.sampling.joint_draws import points_of

# What a sampler may differ from the reference by: a median in units of half the central 68%, the
# log of the ratio of these halves, and log evidence. Quantiles, since log sds have long left tails.
# Where a reference of 600 particles differs by more it is made with 2,400 and then with 9,600,
# whose own errors are well below a third of these.
MEDIAN, LOG_SPREAD, EVIDENCE = 0.2, 0.2, 0.1

KERNEL_DF = 5.0
BRIDGE_DF = 8.0
PROPOSALS = 4
"""Draws of the kernel density per particle."""

FORMULAS = (
    "y ~ 1 + (1 | g)",
    "y ~ x + (1 | g)",
    "y ~ x + (x | g)",
    "y ~ x + (x || g)",
    "y ~ 1 + (1 | g) + (1 | h)",
    "y ~ x + (1 | g / h)",
    "y ~ f + (0 + f | g)",
)


@dataclass(frozen=True)
class Case:
    """A model of random data, with the generators of the priors that a user gave."""

    number: int
    formula: str
    data: pd.DataFrame
    weights: np.ndarray | None
    priors: dict[str, Any] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> blm.LMM:
        return blm.LMM(self.formula, self.data, weights=self.weights, priors=self.priors or None)


def make_case(number: int, *, hostile: bool) -> Case:
    rng = np.random.default_rng([number, 2026])
    formula = FORMULAS[number % len(FORMULAS)]
    g = np.repeat(np.arange(rng.integers(3, 9)), rng.integers(3, 7))
    g = np.append(np.repeat(np.unique(g), 3), g[rng.random(len(g)) < rng.choice([0.3, 0.7])])
    n = len(g)
    x = rng.normal(rng.choice([0.0, 3.0]), 1.0, n)
    h, f = rng.integers(0, 4, n), rng.integers(0, 2, n)
    sigma = 10.0 ** rng.uniform(-0.7, 0.7)
    sds = rng.choice([0.0, 0.3, 1.0, 3.0], 3)
    y = 2.0 + x + rng.normal(0, sds[0], 9)[g] + rng.normal(0, sds[1], 9)[g] * x
    y = y + rng.normal(0, sds[2], (9, 4))[g, h] + sigma * rng.normal(size=n)
    data = pd.DataFrame({"y": y * (unit := 10.0 ** rng.uniform(-3, 3)), "x": x})
    data = data.assign(g=[f"g{i}" for i in g], h=[f"h{i}" for i in h], f=[f"f{i}" for i in f])
    weights = rng.uniform(0.3, 3.0, n) if rng.random() < 0.2 else None
    plain = Case(number=number, formula=formula, data=data, weights=weights)
    return _with_hostile_priors(plain, unit * sigma, rng) if hostile else plain


def _with_hostile_priors(case: Case, sigma: float, rng: np.random.Generator) -> Case:
    table = case.model.priors.table()
    priors, generators, words = {}, {}, {}
    for key in table["parameter"]:
        if key.startswith("cor"):
            eta = float(rng.choice([0.3, 1.0, 5.0, 200.0]))
            made = _lkj(eta) if rng.random() < 0.5 else None
        elif key.startswith("sd") or key == "sigma":
            made = _scale(sigma, rng) if rng.random() < 0.6 else None
        else:
            made = _coefficient(sigma, rng) if rng.random() < 0.15 else None
        if made is not None:
            words[key], priors[key], generators[key] = made
    return Case(
        number=case.number,
        formula=case.formula,
        data=case.data,
        weights=case.weights,
        priors=priors,
        generators=generators,
        words=words,
    )


def _lkj(eta: float) -> tuple[str, Any, Any]:
    import pymc as pm

    return f"LKJ({eta:g})", pm.LKJCorr.dist(2, eta), None


def _scale(sigma: float, rng: np.random.Generator) -> tuple[str, Any, Any]:
    """A prior on a standard deviation, often far from the data, often narrow, often bounded."""
    import pymc as pm

    at = sigma * 10.0 ** rng.uniform(-1.5, 1.5)
    width = 10.0 ** rng.uniform(-4.0, 0.3)
    kind = rng.choice(["uniform", "truncated", "gamma", "lognormal", "halfnormal", "zero"])
    if kind == "uniform":
        made = pm.Uniform.dist(at, at * (1 + width)), stats.uniform(at, at * width)
    elif kind == "zero":
        made = pm.Uniform.dist(0, at), stats.uniform(0, at)
    elif kind == "truncated":
        sd = at * width
        made = (
            pm.TruncatedNormal.dist(at, sd, lower=0),
            stats.truncnorm(-at / sd, np.inf, loc=at, scale=sd),
        )
    elif kind == "gamma":
        shape = 1.0 / width
        made = pm.Gamma.dist(shape, shape / at), stats.gamma(shape, scale=at / shape)
    elif kind == "lognormal":
        made = pm.LogNormal.dist(np.log(at), width), stats.lognorm(width, scale=at)
    else:
        made = pm.HalfNormal.dist(at), stats.halfnorm(scale=at)
    return f"{kind} at {at / sigma:.3g} sigma, width {width:.2g}", *made


def _coefficient(sigma: float, rng: np.random.Generator) -> tuple[str, Any, Any]:
    import pymc as pm

    at, width = sigma * rng.normal(0, 3), sigma * 10.0 ** rng.uniform(-3, 0.5)
    if rng.random() < 0.5:
        return (
            f"uniform at {at / sigma:.3g} sigma, width {width / sigma:.2g}",
            pm.Uniform.dist(at, at + width),
            stats.uniform(at, width),
        )
    return (
        f"Laplace at {at / sigma:.3g} sigma, scale {width / sigma:.2g}",
        pm.Laplace.dist(at, width),
        stats.laplace(at, width),
    )


# --- sequential Monte Carlo ----------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Median and half the central 68% of the unconstrained coordinates, and the log evidence."""

    median: np.ndarray
    spread: np.ndarray
    log_evidence: float


def described(x: np.ndarray, weights: np.ndarray, log_evidence: float) -> Reference:
    low, median, high = np.quantile(
        x,
        [0.16, 0.5, 0.84],
        axis=0,
        weights=np.broadcast_to(weights[:, None], x.shape),
        method="inverted_cdf",
    )
    return Reference(median=median, spread=(high - low) / 2, log_evidence=log_evidence)


@dataclass(frozen=True)
class Particles:
    """Draws (n, d) of a posterior, the parts of its log density there, and those as functions."""

    x: np.ndarray
    prior: np.ndarray
    loglik: np.ndarray
    log_prior: Any
    likelihood: Any

    def target(self, x: np.ndarray) -> np.ndarray:
        return self.log_prior(x) + self.likelihood(x)


def sequential(case: Case, particles: int, seed: int = 0) -> Reference:
    """Importance sampling from a kernel density of the particles."""
    rng = np.random.default_rng([seed, case.number])
    found = tempered(case, particles, rng)
    return _weighted(found.x, found.target, rng)


def bridged(case: Case, particles: int, rounds: int = 14, seed: int = 0) -> Reference:
    """Particles moved further, and bridge sampling (Meng, Wong 1996): for many coordinates."""
    rng = np.random.default_rng([seed, case.number])
    found = tempered(case, particles, rng)
    state = found.x, found.prior, found.loglik
    for _ in range(rounds):
        state = _move(*state, 1.0, found.log_prior, found.likelihood, rng)
    x, log_density = state[0], state[1] + state[2]
    half = particles // 2
    mean, cov = x[:half].mean(axis=0), np.cov(x[:half], rowvar=False)
    proposal = stats.multivariate_t(mean, cov * (BRIDGE_DF - 2) / BRIDGE_DF, BRIDGE_DF)
    z = proposal.rvs(half, random_state=rng)
    own = log_density[half:] - proposal.logpdf(x[half:])
    other = found.target(z) - proposal.logpdf(z)
    log_ratio = float(np.median(own))
    for _ in range(200):  # its fixed point
        up, down = np.logaddexp(other, log_ratio), np.logaddexp(own, log_ratio)
        log_ratio = logsumexp(other - up) - logsumexp(-down)
    return described(x, np.ones(len(x)), float(log_ratio))


def tempered(case: Case, particles: int, rng: np.random.Generator) -> Particles:
    """Draws of the prior, taken to the posterior in steps."""
    model = case.model
    system = model.system
    priors = model.priors
    likelihood = partial(_log_likelihood, system, priors)

    def log_prior(x: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            value = log_prior_batch(priors, priors.coordinates.points(x))
            value += priors.coordinates.log_jacobian(x)
        return np.where(np.isfinite(value), value, -np.inf)  # correlations rounded to one

    x = _prior_draws(case, model, particles, rng)
    prior, loglik = log_prior(x), likelihood(x)
    power = 0.0
    while power < 1.0:
        step = _step(loglik, 1.0 - power)
        weights = step * loglik
        top = weights.max()
        power += step
        share = np.exp(weights - top) / np.exp(weights - top).sum()
        kept = np.searchsorted(np.cumsum(share), (rng.random() + np.arange(particles)) / particles)
        kept = kept.clip(max=particles - 1)
        x, prior, loglik = x[kept], prior[kept], loglik[kept]
        x, prior, loglik = _move(x, prior, loglik, power, log_prior, likelihood, rng)
    return Particles(x, prior, loglik, log_prior, likelihood)


def _weighted(x: np.ndarray, target: Any, rng: np.random.Generator) -> Reference:
    """Importance sampling from a kernel density of particles, with t kernels for the tails."""
    n, d = x.shape
    root = np.linalg.cholesky(np.cov(x, rowvar=False).reshape(d, d))
    width = (4.0 / (d + 2) / n) ** (1.0 / (d + 4))
    white = np.linalg.solve(width * root, x.T).T
    kernel = stats.multivariate_t(np.zeros(d), np.eye(d), KERNEL_DF)
    z = white[rng.integers(0, n, PROPOSALS * n)] + kernel.rvs(PROPOSALS * n, random_state=rng)
    constant = kernel.logpdf(np.zeros(d)) - np.log(n) - np.linalg.slogdet(width * root)[1]
    sums = np.array(
        [np.sum((1.0 + (d2 / KERNEL_DF)) ** (-0.5 * (KERNEL_DF + d))) for d2 in _squares(z, white)]
    )
    points = z @ (width * root).T
    with np.errstate(invalid="ignore"):
        log_ratios = target(points) - np.log(sums) - constant
    top = log_ratios.max()
    weights = np.exp(log_ratios - top)
    return described(points, weights, float(top + np.log(weights.mean())))


def _squares(z: np.ndarray, white: np.ndarray) -> Any:
    """Squared distances (n,) of each point (d,) from all particles (n, d)."""
    size = np.sum(white**2, axis=1)
    for start in range(0, len(z), 500):
        part = z[start : start + 500]
        products = part @ white.T
        yield from np.maximum(np.sum(part**2, axis=1)[:, None] - 2.0 * products + size, 0.0)


def _log_likelihood(system: Any, priors: Any, x: np.ndarray) -> np.ndarray:
    points = priors.coordinates.points(x)
    with np.errstate(all="ignore"):
        value = log_likelihood_batch(
            system, priors, reduce_at(system, priors.coordinates, x), points
        )
    return np.where(np.isfinite(value), value, -1e300)


def _prior_draws(case: Case, model: blm.LMM, size: int, rng: np.random.Generator) -> np.ndarray:
    priors, own = model.priors, case.generators

    def draw(key: str, prior: Any) -> np.ndarray:
        if own.get(key) is not None:
            return own[key].rvs(size, random_state=rng)
        return prior.sample(rng, size)

    records = priors.records()
    sds = tuple(
        np.stack([draw(f"sd[{factor}, {c}]", records[f"sd[{factor}, {c}]"]) for c in coefs], axis=1)
        for factor, coefs in zip(priors.factors, priors.factor_coefs, strict=True)
    )
    chols = tuple(priors._sample_chol(f, rng, size) for f in range(len(sds)))
    gamma = np.empty((size, 0))
    if priors.beta_sampled:
        gamma = np.stack([draw(c, p) for c, p in zip(priors.coefs, priors.beta, strict=True)], 1)
    working = priors.coordinates.working(
        sds, chols, draw("sigma", priors.sigma), np.empty((size, 0)), gamma
    )
    return _finite(priors.coordinates.vector(working))


def _finite(x: np.ndarray) -> np.ndarray:
    """Coordinates of correlations that were rounded to plus or minus one: atanh(1 - 1e-16)."""
    return np.nan_to_num(x, posinf=18.7, neginf=-18.7)


def _step(loglik: np.ndarray, left: float) -> float:
    """Largest step of the power at which the effective size falls to six tenths."""
    below = loglik - loglik.max()

    def enough(step: float) -> bool:
        w = np.exp(step * below)
        return w.sum() ** 2 / np.sum(w**2) > 0.6 * len(w)

    if enough(left):
        return left
    low, high = -690.0, np.log(left)
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(np.exp(middle)) else (low, middle)
    return float(np.exp(low))


def _move(
    x: np.ndarray,
    prior: np.ndarray,
    loglik: np.ndarray,
    power: float,
    log_prior: Any,
    likelihood: Any,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random-walk steps of several sizes, some along differences of particles."""
    n, d = x.shape
    for scale in (1.0, 0.4, 1.0, 0.15, 1.0, 0.4):
        pairs = rng.integers(0, n, (2, n))
        moved = x + scale * (x[pairs[0]] - x[pairs[1]]) * rng.choice([1.0, 1.7 / d**0.5], (n, 1))
        new_prior = log_prior(moved)
        inside = np.isfinite(new_prior)
        new_loglik = np.full(n, -np.inf)
        new_loglik[inside] = likelihood(moved[inside])
        with np.errstate(invalid="ignore"):
            gain = new_prior - prior + power * (new_loglik - loglik)
        taken = inside & (np.log(rng.random(n)) < gain)
        x = np.where(taken[:, None], moved, x)
        prior, loglik = np.where(taken, new_prior, prior), np.where(taken, new_loglik, loglik)
    return x, prior, loglik


# --- verdicts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Outcome: "right", "refused", "flagged" or "wrong", which is the silent failure."""

    case: Case
    outcome: str
    detail: str


def judge(case: Case, *, particles: int = 600, draws: int = 500) -> Verdict:
    logging.disable(logging.WARNING)
    try:
        model = case.model
        try:
            post = model.fit(
                method="collapsed", draws=draws, random_seed=case.number, progressbar=False
            )
        except SamplingError as error:
            return Verdict(case, "refused", str(error))
        if not post.diagnostics.ok:
            return Verdict(case, "flagged", " ".join(post.diagnostics.messages()))
        found = coordinates(model, post)
        detail = ""
        for size in (particles, 4 * particles, 16 * particles):
            detail = difference(found, sequential(case, size))
            if not detail:
                return Verdict(case, "right", "")
        return Verdict(case, "wrong", detail)
    finally:
        logging.disable(logging.NOTSET)


def coordinates(model: blm.LMM, post: blm.Posterior) -> Reference:
    """What the stored draws say of the unconstrained coordinates."""
    draws = post.data["posterior"].to_dataset()
    points = points_of(model.design, draws)
    if model.priors.beta_sampled:
        points = replace(points, beta=draws["beta"].to_numpy().reshape(len(points.sigma), -1))
    where = model.priors.coordinates
    x = _finite(where.vector(where.to_working(points)))
    return described(x, np.ones(len(x)), float(post.log_evidence))


def difference(found: Reference, wanted: Reference) -> str:
    """The worst disagreement in words; empty where there is none."""
    shift = np.max(np.abs(found.median - wanted.median) / wanted.spread)
    with np.errstate(divide="ignore"):
        spread = np.max(np.abs(np.log(found.spread / wanted.spread)))
    evidence = abs(found.log_evidence - wanted.log_evidence)
    if shift < MEDIAN and spread < LOG_SPREAD and evidence < EVIDENCE:
        return ""
    return f"median off {shift:.2f}, log spread off {spread:.2f}, log evidence off {evidence:.2f}"
