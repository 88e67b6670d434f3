"""One evaluation of the marginal density: against LAPACK, with its gradient, and in batches.

    python benchmarks/kernels.py [--repeat 15]

InstEval: one density against LAPACK's Cholesky factorisation (potrf) of a dense matrix as large as
the dense tail that it has to factorise, and density with gradient against density. sleepstudy: the
batched kernel against one evaluation at a time. Repetitions take turns; medians are compared.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from types import SimpleNamespace

import numpy as np
from _common import claim, print_environment
from reference_data import load_fit, load_reference_data
from scipy.linalg.lapack import dpotrf

import bayeslmm as blm
from bayeslmm.likelihood.batch import reduce_equations, to_working
from bayeslmm.likelihood.factorise import eliminate_random
from bayeslmm.likelihood.marginal import log_density, log_density_grad, marginal_system

CROSSED = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"
SLOPES = "Reaction ~ Days + (Days | Subject)"
VALUE_PER_POTRF, GRADIENT_PER_VALUE = 1.5, 3.0
BATCH = 4096

SAME = 1e-9
"""Relative difference of two computations of one number: rounding."""

STEP, SLOPE = 1e-5, 1e-6
"""Step of central differences in log T, and their relative error."""


def in_turn(functions, repeat):
    """Median seconds of each function, run in turn after one warm-up."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def require(what, gap, limit):
    """Print an agreement, or exit without figures."""
    print(f"agreement, {what}: {gap:.1e} (limit {limit:.0e})")
    if not gap <= limit:
        raise SystemExit("the answers disagree; no ratio is printed")


def check_density(plan, factors, sigma):
    """Value against lme4's criterion at its optimum, gradient against differences of the value."""
    value = log_density_grad(plan, factors, sigma)[0]
    reference = load_fit("InstEval__service_reml")["criterion"]["value"]
    require("-2 log density and lme4's REML criterion", abs(-2 * value / reference - 1), SAME)
    again = log_density(plan, factors, sigma)
    require("value with and without gradient", abs(again / value - 1), SAME)
    shifted = [factors[0] * np.exp(0.1), *factors[1:]]  # at the optimum the gradient is zero
    gradient = log_density_grad(plan, shifted, sigma)[1]
    for f in range(len(factors)):
        exact = gradient[f].item() * shifted[f].item()
        gap = abs(difference(plan, shifted, sigma, f) - exact) / (1 + abs(exact))
        require(f"gradient {f} and differences", gap, SLOPE)


def difference(plan, factors, sigma, f):
    """Derivative of the log density by the logarithm of factor f, by central differences."""
    values = []
    for step in (STEP, -STEP):
        moved = [t * np.exp(step * (g == f)) for g, t in enumerate(factors)]
        values.append(log_density(plan, moved, sigma))
    return (values[0] - values[1]) / (2 * STEP)


def dense_matrix(size):
    """A positive definite matrix in LAPACK's order."""
    rng = np.random.default_rng(1)
    half = rng.standard_normal((size, size))
    return np.asfortranarray(half @ half.T + size * np.eye(size))


def crossed(repeat):
    """InstEval: potrf, value, value with gradient."""
    model = blm.LMM(CROSSED, load_reference_data("InstEval"))
    plan, reml = marginal_system(model.design), model.reml()
    factors = [np.array([[float(sd.iloc[0]) / reml.sigma]]) for sd in reml.sds.values()]
    check_density(plan, factors, reml.sigma)
    matrix = dense_matrix(plan.n_tail)
    lower, info = dpotrf(matrix, lower=1)
    require("L L' and the matrix", float(np.max(np.abs(lower @ lower.T - matrix)) + info), SAME)
    work = np.empty_like(matrix)
    seconds, refill = time_crossed(plan, factors, reml.sigma, matrix, work, repeat)
    seconds["potrf"] -= refill
    print(f"\nInstEval, dense tail of {plan.n_tail}, medians of {repeat}:")
    for name, value in seconds.items():
        print(f"  {name:22s} {1e3 * value:9.2f} ms")
    ratio = seconds["value"] / seconds["potrf"]
    claim("value in potrfs of the tail", ratio, VALUE_PER_POTRF, at_least=False)
    ratio = seconds["value and gradient"] / seconds["value"]
    claim("value and gradient in values", ratio, GRADIENT_PER_VALUE, at_least=False)


def time_crossed(plan, factors, sigma, matrix, work, repeat):
    """Medians of the three computations, and of copying the matrix that potrf overwrites."""

    def refill():
        work[...] = matrix

    def potrf():
        refill()
        dpotrf(work, lower=1, overwrite_a=1, clean=0)

    functions = {
        "refill": refill,
        "potrf": potrf,
        "value": lambda: log_density(plan, factors, sigma),
        "value and gradient": lambda: log_density_grad(plan, factors, sigma),
    }
    seconds = in_turn(functions, repeat)
    return {k: v for k, v in seconds.items() if k != "refill"}, seconds["refill"]


def batched(repeat):
    """The sleepstudy model: many evaluations at once against one at a time."""
    model = blm.LMM(SLOPES, blm.load_dataset("sleepstudy"))
    plan = marginal_system(model.design)
    rng = np.random.default_rng(1)
    factors = np.tril(rng.normal(0.0, 0.3, (BATCH, 2, 2))) + np.diag([1.0, 0.3])

    def singly():
        found = [eliminate_random(plan, [t]) for t in to_working(plan, [factors])[0]]
        return [rest.log_det for rest in found], [rest.fixed for rest in found]

    points = SimpleNamespace(factors=[factors], sigma=np.ones(BATCH), shapes=np.empty((BATCH, 0)))
    together = reduce_equations(plan, points)
    log_dets, fixed = singly()
    gap = np.max(np.abs(together.log_det - log_dets) / (1 + np.abs(log_dets)))
    require("log determinants, batched and one by one", float(gap), SAME)
    gap = np.max(np.abs(together.fixed - fixed)) / np.max(np.abs(fixed))
    require("fixed-effects equations, batched and one by one", float(gap), SAME)
    functions = {"batched": lambda: reduce_equations(plan, points), "one by one": singly}
    seconds = in_turn(functions, max(3, repeat // 5))
    print(f"\nsleepstudy, {BATCH} evaluations, microseconds each:")
    for name, value in seconds.items():
        print(f"  {name:22s} {1e6 * value / BATCH:9.2f}")
    print(f"  one by one / batched   {seconds['one by one'] / seconds['batched']:9.1f} x")


def main():
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    repeat = parser.parse_args().repeat
    print_environment()
    crossed(repeat)
    print()
    batched(repeat)


if __name__ == "__main__":
    main()
