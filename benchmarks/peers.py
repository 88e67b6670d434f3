"""Where peers answer otherwise, and what is right: sleepstudy.

    python benchmarks/peers.py [--draws 1000]

Every row asks something that has an exact answer or one that follows from the peer's own draws, so
that no row rests on ours being right. Bambi comes with the extra bench. Rows of lme4 and rstanarm
are left out, by name, where R has not the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _bambi import require_bambi
from _common import print_environment

import bayeslmm as blm

FORMULA = "Reaction ~ Days + (Days | Subject)"
LIMIT_K = 0.7
LATER = 10.0
"""A day after the last one, at which two new subjects are predicted."""


@dataclass(frozen=True)
class Row:
    """A question, who was asked, the answer, the right one and how that is known."""

    question: str
    peer: str
    theirs: str
    right: str
    known: str
    ours: str


def interval(values: Any, prob: float = 0.89) -> str:
    """Central interval as text."""
    low, high = np.quantile(values, [(1 - prob) / 2, (1 + prob) / 2])
    return f"{low:.1f} to {high:.1f}"


def bambi_rows(sleep: pd.DataFrame, post: blm.Posterior, draws: int) -> list[Row]:
    """Correlations, new levels, averages, priors and cross-validation."""
    import arviz as az
    import bambi as bmb

    name = f"Bambi {version('bambi')}"
    model = bmb.Model(FORMULA, sleep)
    tree = model.fit(
        draws=draws, chains=4, inference_method="nutpie", random_seed=1, progressbar=False
    )
    found = tree["posterior"]
    return [
        _correlation(name, found, post),
        _new_levels(name, model, tree, post),
        _average_slope(name, bmb, model, tree, post),
        _origin(name, bmb, sleep),
        _cross_validation(name, az, model, tree, post),
    ]


def _correlation(name: str, found: Any, post: blm.Posterior) -> Row:
    names = [str(v) for v in found.data_vars]
    has = any("corr" in v or "cor_" in v for v in names)
    return Row(
        "parameters of (Days | Subject)",
        name,
        f"two standard deviations, {'a' if has else 'no'} correlation",
        "two standard deviations and a correlation",
        "lme4's grammar",
        f"correlation {post.corrs['Subject'].iloc[0, 1]:.2f}",
    )


def _new_levels(name: str, model: Any, tree: Any, post: blm.Posterior) -> Row:
    new = pd.DataFrame({"Days": [LATER, LATER], "Subject": ["new 1", "new 2"]})
    with warnings.catch_warnings():  # it calls the option deprecated, and needs it
        warnings.simplefilter("ignore")
        predicted = model.predict(
            tree, data=new, inplace=False, sample_new_groups=True, random_seed=1
        )
    means = predicted["posterior"]["mu"].to_numpy()
    found = tree["posterior"]
    variances = (
        found["1|Subject_sigma"].to_numpy() ** 2
        + LATER**2 * found["Days|Subject_sigma"].to_numpy() ** 2
    )
    ours = post.predict_draws(new, target="new", kind="epred", random_seed=1)
    values = ours.pivot(index=".draw", columns=".row", values=".epred").to_numpy()
    return Row(
        "sd of the difference between two new subjects, ms",
        name,
        f"{np.std(means[..., 0] - means[..., 1]):.1f}",
        f"{np.sqrt(2 * variances.mean()):.1f}",
        "its own draws of the two standard deviations",
        f"{np.std(values[:, 0] - values[:, 1]):.1f}",
    )


def _average_slope(name: str, bmb: Any, model: Any, tree: Any, post: blm.Posterior) -> Row:
    table = bmb.interpret.slopes(
        model, tree, wrt="Days", average_by="all", prob=0.89, use_hdi=False
    ).summary
    low, high = (float(table.iloc[0, -2]), float(table.iloc[0, -1]))
    found = tree["posterior"]
    of_rows = found["Days|Subject"].mean(
        [d for d in found["Days|Subject"].dims if d not in ("chain", "draw")]
    )
    ours = post.slopes("Days").table().iloc[0]
    return Row(
        "average slope of Days, 89 % interval",
        name,
        f"{low:.1f} to {high:.1f}",
        interval((found["Days"] + of_rows).to_numpy()),
        "the average of its own draws, ten rows a subject",
        f"{ours['eti89_lb']:.1f} to {ours['eti89_ub']:.1f} (of all subjects)",
    )


def _origin(name: str, bmb: Any, sleep: pd.DataFrame) -> Row:
    def scale(data: pd.DataFrame) -> float:
        model = bmb.Model(FORMULA, data)
        model.build()
        terms = model.parameters["mu"].terms if hasattr(model, "parameters") else {}
        return float(terms["1|Subject"].prior.args["sigma"].args["sigma"])

    moved = sleep.assign(Days=sleep["Days"] + 100)
    here = [blm.LMM(FORMULA, data).priors.table() for data in (sleep, moved)]
    same = here[0].iloc[:, :2].equals(here[1].iloc[:, :2])
    return Row(
        "scale of the prior of sd[Subject]: days 0 to 9, 100 to 109",
        name,
        f"{scale(sleep):.0f}, {scale(moved):.0f}",
        "the same for both",
        "the posterior of a slope has no origin",
        "about the linear predictor at the mean day" + (", the same" if same else ""),
    )


def _cross_validation(name: str, az: Any, model: Any, tree: Any, post: blm.Posterior) -> Row:
    model.compute_log_likelihood(tree)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        k = np.asarray(az.loo(tree, pointwise=True).pareto_k)
    ours = np.asarray(post.loo().pareto_k)
    return Row(
        f"rows with Pareto k above {LIMIT_K}, leave-one-out",
        name,
        f"{int((k > LIMIT_K).sum())} of {k.size}, largest {k.max():.2f}",
        "none where the estimate is to be relied on",
        "Vehtari et al. 2024",
        f"{int((ours > LIMIT_K).sum())} of {ours.size}, largest {ours.max():.2f}",
    )


def statsmodels_row(sleep: pd.DataFrame, reml: blm.Estimate) -> Row:
    """Standard error of a variance."""
    import statsmodels.formula.api as smf

    fit = smf.mixedlm("Reaction ~ Days", sleep, groups="Subject", re_formula="~Days").fit()
    printed = float(fit.summary().tables[1].loc["Subject Var", "Std.Err."])
    own = float(fit.bse["Subject Var"] * fit.scale)
    first = reml.varcorr().iloc[0]  # its standard error is that of the standard deviation
    return Row(
        "standard error of the variance of intercepts",
        f"statsmodels {version('statsmodels')}",
        f"{printed:.1f}",
        f"{own:.0f}",
        "its own Hessian, which is per residual variance",
        f"{2 * first['sdcor'] * first['std_error']:.0f}",
    )


def joint_mode_row(model: blm.LMM, reml: blm.Estimate) -> Row:
    """The mode of random effects and standard deviations together, as `pm.find_MAP` has it."""
    import pymc as pm

    with model.pymc("noncentered"), warnings.catch_warnings():  # of changes to come
        warnings.simplefilter("ignore")
        mode = pm.find_MAP(progressbar=False)
    sds = np.asarray(mode["sd_Subject"])
    return Row(
        "standard deviations of intercepts and slopes, a point estimate",
        f"PyMC {version('pymc')}, find_MAP of the noncentered model",
        ", ".join(f"{value:.1f}" for value in sds),
        ", ".join(f"{value:.1f}" for value in reml.sds["Subject"]),
        "REML, as lme4 has it",
        ", ".join(f"{value:.1f}" for value in model.map().sds["Subject"]) + " (map)",
    )


R_SCRIPT = """
options(warn = -1)
frame <- read.csv(commandArgs(TRUE)[1], colClasses = c(Subject = "character"))
out <- list()
if (requireNamespace("lme4", quietly = TRUE)) {
  m <- lme4::lmer(Reaction ~ Days + (Days | Subject), frame)
  ml <- lme4::lmer(Reaction ~ Days + (Days | Subject), frame, REML = FALSE)
  of <- function(fit) unname(suppressMessages(confint(fit, 1, method = "profile", quiet = TRUE)))
  out$lme4 <- list(version = as.character(packageVersion("lme4")), reml = of(m), ml = of(ml))
}
if (requireNamespace("rstanarm", quietly = TRUE)) {
  suppressMessages(library(rstanarm))  # it looks for itself among the attached
  f <- suppressMessages(stan_lmer(Reaction ~ Days + (Days | Subject), frame, seed = 1, refresh = 0))
  new <- data.frame(Days = 10, Subject = c("new 1", "new 2"))
  p <- rstanarm::posterior_linpred(f, newdata = new)
  s <- as.matrix(f)
  v <- s[, "Sigma[Subject:(Intercept),(Intercept)]"] + 100 * s[, "Sigma[Subject:Days,Days]"] +
    20 * s[, "Sigma[Subject:Days,(Intercept)]"]
  k <- loo::pareto_k_values(suppressWarnings(rstanarm::loo(f)))
  out$rstanarm <- list(version = as.character(packageVersion("rstanarm")),
                       sd = sd(p[, 1] - p[, 2]), right = sqrt(2 * mean(v)),
                       k = sum(k > 0.7), worst = max(k))
}
cat(jsonlite::toJSON(out, auto_unbox = TRUE, digits = 10))
"""


def r_rows(
    sleep: pd.DataFrame, model: blm.LMM, post: blm.Posterior, reml: blm.Estimate
) -> list[Row]:
    """lme4's profile of a REML fit, rstanarm's new levels and cross-validation."""
    if shutil.which("Rscript") is None:
        print("left out: lme4 and rstanarm (no Rscript)")
        return []
    with tempfile.TemporaryDirectory() as folder:
        data, script = Path(folder) / "sleep.csv", Path(folder) / "peers.R"
        sleep.to_csv(data, index=False)
        script.write_text(R_SCRIPT, encoding="utf-8")
        done = subprocess.run(
            ["Rscript", str(script), str(data)], capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    rows = []
    for name in ("lme4", "rstanarm"):
        if name not in found:
            print(f"left out: {name} (R has it not)")
    if lme4 := found.get("lme4"):
        rows.append(_profile(lme4, model, reml))
    if rstanarm := found.get("rstanarm"):
        rows += _rstanarm(rstanarm, post)
    return rows


def _profile(found: dict[str, Any], model: blm.LMM, reml: blm.Estimate) -> Row:
    (low, high), (ml_low, ml_high) = found["reml"][0], found["ml"][0]
    rows = [
        fit.confint("profile", level=0.95).loc["sd[Subject, Intercept]"]
        for fit in (reml, model.ml())
    ]
    ours, own = (f"{row['conf_low']:.2f} to {row['conf_high']:.2f}" for row in rows)
    return Row(
        "95 % profile interval of sd[Subject, Intercept] of a REML fit",
        f"lme4 {found['version']}",
        f"{low:.2f} to {high:.2f}; of the ML fit {ml_low:.2f} to {ml_high:.2f}",
        f"{ours}; of the ML fit {own}",
        "the criterion of the fit itself; that of ML agrees",
        "as in the column right",
    )


def _rstanarm(found: dict[str, Any], post: blm.Posterior) -> list[Row]:
    name = f"rstanarm {found['version']}"
    new = Row(
        "sd of the difference between two new subjects, ms",
        name,
        f"{found['sd']:.1f}",
        f"{found['right']:.1f}",
        "its own draws of the covariance matrix",
        "see Bambi's row",
    )
    ours = np.asarray(post.loo().pareto_k)
    k = Row(
        f"rows with Pareto k above {LIMIT_K}, leave-one-out",
        name,
        f"{found['k']} of 180, largest {found['worst']:.2f}",
        "none where the estimate is to be relied on",
        "Vehtari et al. 2024",
        f"{int((ours > LIMIT_K).sum())} of {ours.size}, largest {ours.max():.2f}",
    )
    return [new, k]


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    require_bambi()
    print_environment()
    sleep = blm.load_dataset("sleepstudy")
    model = blm.LMM(FORMULA, sleep)
    reml, post = model.reml(), model.fit(random_seed=1)
    rows = [
        *bambi_rows(sleep, post, options.draws),
        statsmodels_row(sleep, reml),
        joint_mode_row(model, reml),
    ]
    for row in [*rows, *r_rows(sleep, model, post, reml)]:
        print(f"\n{row.question}\n  {row.peer}: {row.theirs}")
        print(f"  right: {row.right} ({row.known})\n  ours: {row.ours}")


if __name__ == "__main__":
    main()
