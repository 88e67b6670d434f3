"""Every reference fit by lme4 recomputed: a table of the worst differences.

    python benchmarks/reference_table.py [--no-profile] [part of a name ...]

Columns, worst over a fit: criterion (ours less lme4's), criterion at given theta (relative),
gradient and Hessian in theta (relative to the curvature), beta and its covariance matrix (in
standard errors), Satterthwaite degrees of freedom (relative), covariances of the random effects
(in their sds), sigma (relative), asymptotic covariance of the covariance parameters (in standard
errors), conditional modes (in their sds), their sds given beta and with beta integrated out
(relative), limits of profile intervals of the criterion and of lme4's of the likelihood (in
widths). A dash: the reference has none. The big fits are profiled in the slow tests only.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import reference_checks as checks
from reference_data import list_fits

COLUMNS: dict[str, Callable[[checks.Case], float | None]] = {
    "criterion": checks.criterion,
    "at theta": checks.criterion_at,
    "deriv": lambda case: max(checks.derivatives(case) or (0.0,)) or None,
    "beta": checks.beta,
    "vcov": checks.standard_errors,
    "df": checks.satterthwaite,
    "cov": checks.covariances,
    "sigma": checks.sigma,
    "var par": checks.parameter_cov,
    "modes": checks.modes,
    "cond sd": partial(checks.conditional_sds, given_beta=True),
    "pred se": partial(checks.conditional_sds, given_beta=False),
}
PROFILES: dict[str, Callable[[checks.Case], float | None]] = {
    "profile": checks.profile,
    "prof ML": checks.profile_ml,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Worst differences from the reference fits.")
    parser.add_argument("names", nargs="*", help="parts of the names of the fits; default all")
    parser.add_argument("--no-profile", action="store_true", help="leave out profile intervals")
    options = parser.parse_args()
    logging.getLogger("bayeslmm").setLevel(logging.ERROR)
    columns = COLUMNS if options.no_profile else COLUMNS | PROFILES
    names = [n for n in list_fits() if not options.names or any(p in n for p in options.names)]
    width = max(map(len, names), default=10)
    print("fit".ljust(width), *(f"{column:>9}" for column in columns), f"{'seconds':>9}")
    worst: dict[str, float] = dict.fromkeys(columns, 0.0)
    for name in names:
        start = time.perf_counter()
        case = checks.load_case(name)
        seconds = time.perf_counter() - start
        values = {column: check(case) for column, check in columns.items()}
        for column, value in values.items():
            worst[column] = max(worst[column], abs(value or 0.0))
        print(name.ljust(width), *map(cell, values.values()), f"{seconds:9.2f}", flush=True)
    print("worst".ljust(width), *map(cell, worst.values()))


def cell(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.1e}"


if __name__ == "__main__":
    main()
