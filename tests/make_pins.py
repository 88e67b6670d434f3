"""Write the pinned figures: run this only to change what the package is held to.

python tests/make_pins.py {posteriors,defaults,estimates,uses} ... [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from typing import Any

import pin_estimates
import pin_posteriors
import pin_uses
from pin_estimates import ESTIMATES
from pin_models import DEFAULTS, POSTERIORS
from pin_uses import USES

SIZE: dict[str, Any] = {"draws": 5000, "chains": 4, "random_seed": 1}
"""Five times what the tests draw, so that most of the combined error is theirs."""

SEEDS = range(1, 21)
"""Of the fits whose spread is the Monte Carlo error of what is made from draws."""


def posteriors(group: str, only: list[str]) -> None:
    models = DEFAULTS if group == "defaults" else POSTERIORS
    for name, pin in models.items():
        if not only or name in only:
            post = pin.model().fit(**SIZE)
            write(group, name, pin.description() | made() | pin_posteriors.record(post))


def estimates(group: str, only: list[str]) -> None:
    for name, case in ESTIMATES.items():
        if not only or name in only:
            tables = pin_estimates.record(case)
            write(group, name, case.description() | made() | {"tables": tables})


def uses(group: str, only: list[str]) -> None:
    for name, case in USES.items():
        if not only or name in only:
            tables = pin_uses.spread([pin_uses.record(case, seed) for seed in SEEDS])
            content = {"seeds": len(SEEDS), "tables": tables}
            write(group, name, case.pin.description() | made() | content)


def made() -> dict[str, Any]:
    packages = {package: version(package) for package in ("bayeslmm", "numpy", "scipy")}
    return {"versions": {"python": platform.python_version()} | packages}


def write(group: str, name: str, content: dict[str, Any]) -> None:
    path = pin_posteriors.FOLDER / group / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{group}/{name}\n")


GROUPS = {
    "posteriors": posteriors,
    "defaults": posteriors,
    "estimates": estimates,
    "uses": uses,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--only", nargs="*", default=[], help="names; default all")
    options = parser.parse_args()
    for group in options.groups:
        GROUPS[group](group, options.only)


if __name__ == "__main__":
    main()
