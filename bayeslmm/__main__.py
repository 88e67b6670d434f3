"""Fit a model from the command line: ``python -m bayeslmm FORMULA DATA``.

``python -m bayeslmm products FORMULA DATA --out FILE`` makes sums that are fitted elsewhere.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslmm.exceptions import (
    BayesLMMError,
    DataError,
    FormulaError,
    OptionalDependencyError,
    PriorError,
)

if TYPE_CHECKING:
    import pandas as pd

    from bayeslmm.fits.lmm import LMM
    from bayeslmm.fits.posterior import Posterior

_log = logging.getLogger("bayeslmm.cli")

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

WIDTH = 100
COLUMNS = ("estimate", "std_error", "mean", "sd")

EPILOG = """\
DATA is a CSV file (.csv, .csv.gz), a tab-separated one (.tsv, .tsv.gz), a Parquet file (.parquet)
or the name of a bundled data set. A plain name such as "sleepstudy" is the bundled data set even
where a file has that name; write ./sleepstudy for the file. A folder of Parquet, CSV or Arrow
files, a pattern of their names in quotation marks, and with --batches a single one of these files,
are read in batches, so that they need not fit into memory. Files of cross-products (.products), one
or a pattern of names, are added up; "python -m bayeslmm products --help" says how to make them.

Results go to the standard output, all else to the standard error. The exit code is 0 on success,
2 for a command line, a formula or data that cannot be used, 1 for any other failure and 130 after
an interrupt.

examples:
  python -m bayeslmm "Reaction ~ Days + (Days | Subject)" sleepstudy
  python -m bayeslmm "y ~ x + (1 | site/plot)" yields.csv --seed 1 --out fit.nc
  python -m bayeslmm "sold ~ price + (price | shop)" "sales/2024-*.parquet"
  python -m bayeslmm "y ~ arm + (1 | site)" "sites/*.products"
"""

PRODUCTS_EPILOG = """\
The file has sums over the rows of DATA, which are as for fits. It is added to those of other sites
and fitted there. --levels or --like make the columns the same at all sites. What a file discloses
is in the how-to of federated fits.

example:
  python -m bayeslmm products "y ~ arm + (1 | site)" rows.csv --levels arm=control,treated \\
      --smallest-cell 5 --out north.products
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        0 on success, 2 for unusable input, 1 for other failures, 130 after an interrupt.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    products = given[:1] == ["products"]
    try:
        parser = _products_parser() if products else _parser()
        arguments = parser.parse_args(given[1:] if products else given)
    except SystemExit as stop:  # argparse has printed help, a version or an error
        return int(stop.code or OK)
    with _interrupts() as interrupted, _logging_to_stderr(quiet=arguments.quiet):
        try:
            (_make_products if products else _run)(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # whoever read the output has gone; nothing may be flushed to them at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except KeyboardInterrupt:
            return _fail("Interrupted.", INTERRUPTED)
        except (FormulaError, DataError, PriorError, _UsageError) as error:
            return _fail(str(error), BAD_INPUT)
        except (BayesLMMError, OSError) as error:
            # samplers catch the interrupt and return what they have, which is then refused
            return _fail(str(error), INTERRUPTED if interrupted() else FAILED)
    return OK


class _UsageError(Exception):
    """Arguments that each are well formed and cannot be used."""


def _fail(message: str, code: int) -> int:
    print(f"bayeslmm: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayeslmm",
        usage="python -m bayeslmm [options] FORMULA DATA",
        description="Fit a Bayesian linear mixed model and show it beside its REML estimate.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("formula", metavar="FORMULA", help='such as "y ~ x + (x | g)"')
    add("data", metavar="DATA", help="file, or name of a bundled data set")
    add(
        "--method",
        choices=("auto", "collapsed", "nuts", "laplace"),
        default="auto",
        help="default: auto",
    )
    add("--draws", type=_positive, default=1000, metavar="N", help="per chain; default: 1000")
    add("--chains", type=_positive, default=4, metavar="N", help="default: 4")
    add("--seed", type=_natural, metavar="N", help="makes the run reproducible")
    add("--priors", choices=("default", "flat"), default="default", help="default: default")
    add("--weights", metavar="COL", help="column of precision weights")
    add("--batches", action="store_true", help="read a file in batches, larger than memory or not")
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="keep what has been read in batches there, and go on from it",
    )
    add("--residual", metavar="TERMS", help='structure of the residuals, such as "ar1(time | g)"')
    add(
        "--fixed",
        type=_known,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help='a known parameter, such as "sigma=1" or "sd[study]=0.3"; may be repeated',
    )
    add(
        "--family",
        choices=("gaussian", "student"),
        default="gaussian",
        help="of the residuals; default: gaussian",
    )
    add("--sigma", metavar="FORMULA", help='predictors of the residual scale, such as "~ x"')
    add("--out", type=Path, metavar="FILE", help="save the posterior: FILE.nc or DIRECTORY.zarr")
    add("--force", action="store_true", help="overwrite what --out names")
    add("--quiet", action="store_true", help="no progress bar, no warnings")
    add("--version", action="version", version=f"bayeslmm {version('bayeslmm')}")
    add("--list-datasets", action=_ListDatasets, help="list the bundled data sets and exit")
    return parser


def _products_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayeslmm products",
        usage="python -m bayeslmm products [options] FORMULA DATA --out FILE.products",
        description="Make the cross-products of data, which a model needs in place of the rows.",
        epilog=PRODUCTS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("formula", metavar="FORMULA", help='such as "y ~ x + (x | g)"')
    add("data", metavar="DATA", help="file, or name of a bundled data set")
    add("--out", type=Path, metavar="FILE", required=True, help="FILE.products")
    add("--name", metavar="NAME", help="what the site is called")
    add(
        "--levels",
        type=_levels,
        action="append",
        default=[],
        metavar="NAME=A,B,...",
        help="levels of a factor among the covariates, in order; may be repeated",
    )
    add("--like", type=Path, metavar="FILE", help="cross-products whose columns these have")
    add("--smallest-cell", type=_positive, metavar="M", help="refuse cells of 1 to M - 1 rows")
    add("--weights", metavar="COL", help="column of precision weights")
    add("--batches", action="store_true", help="read a file in batches, larger than memory or not")
    add("--force", action="store_true", help="overwrite what --out names")
    add("--quiet", action="store_true", help="no warnings")
    return parser


class _ListDatasets(argparse.Action):
    """Print the data sets and leave, like ``--version``."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from bayeslmm.datasets import list_datasets

        for row in list_datasets().itertuples():
            print(f"{row.name:<16}{row.rows:>6} rows  {row.description}")
        parser.exit()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _known(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        message = f"{text!r} is not a name and a number, such as sigma=1"
        raise argparse.ArgumentTypeError(message) from None


def _levels(text: str) -> tuple[str, list[Any]]:
    """Name and levels; those that are all whole numbers or truth values are read as such."""
    name, _, values = text.partition("=")
    if not name.strip() or not values.strip():
        message = f"{text!r} is not a name and levels, such as arm=control,treated"
        raise argparse.ArgumentTypeError(message)
    found = [value.strip() for value in values.split(",")]
    if all(value.removeprefix("-").isdecimal() for value in found):
        return name.strip(), list(map(int, found))
    if set(found) <= {"False", "True"}:
        return name.strip(), [value == "True" for value in found]
    return name.strip(), found


def _make_products(arguments: argparse.Namespace) -> None:
    from bayeslmm.fits.products import CrossProducts

    _check_products_target(arguments.out, force=arguments.force)
    products = CrossProducts.of(
        arguments.formula,
        _read(arguments.data, batches=arguments.batches),
        weights=arguments.weights,
        like=arguments.like,
        levels=dict(arguments.levels) or None,
        name=arguments.name,
    )
    print(products, flush=True)
    products.save(arguments.out, overwrite=True, smallest_cell=arguments.smallest_cell)
    print(f"\nCross-products written to {arguments.out}")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.out is not None:
        _check_target(arguments.out, force=arguments.force)
    model = _model(arguments)
    print(model, flush=True)
    options = {} if arguments.method == "laplace" else {"progressbar": _progress(arguments.quiet)}
    post = model.fit(
        method=arguments.method,
        draws=arguments.draws,
        chains=arguments.chains,
        random_seed=arguments.seed,
        **options,
    )
    _report(model, post)
    if arguments.out is not None:
        post.save(arguments.out, overwrite=True)
        print(f"\nDraws written to {arguments.out}")


def _model(arguments: argparse.Namespace) -> LMM:
    from bayeslmm.fits.lmm import LMM

    files = _product_files(arguments.data)
    if files:
        return _model_of_products(arguments, files)
    return LMM(
        arguments.formula,
        _read(arguments.data, batches=arguments.batches),
        priors=arguments.priors,
        weights=arguments.weights,
        residual=arguments.residual,
        fixed=dict(arguments.fixed),
        family=arguments.family,
        sigma=arguments.sigma,
        progressbar=not arguments.quiet,
        checkpoint=arguments.checkpoint,
    )


def _model_of_products(arguments: argparse.Namespace, files: Sequence[Path]) -> LMM:
    from bayeslmm.fits.lmm import LMM
    from bayeslmm.fits.products import CrossProducts

    given = [
        name for name in ("weights", "residual", "sigma", "checkpoint") if getattr(arguments, name)
    ]
    given += ["family"] * (arguments.family != "gaussian")
    if given:
        raise _UsageError(f"--{given[0]} cannot be given with files of cross-products.")
    total = CrossProducts.total([CrossProducts.load(path) for path in files])
    if total.formula != arguments.formula:
        raise _UsageError(f"The cross-products are of the formula {total.formula!r}: give that.")
    return LMM.from_products(total, priors=arguments.priors, fixed=dict(arguments.fixed))


def _report(model: LMM, post: Posterior) -> None:
    from bayeslmm.comparison.reml import compare_reml

    lines = [textwrap.fill(line, WIDTH) for line in str(post.diagnostics).splitlines()]
    print(f"\nPosterior by {post.method}:", *lines, sep="\n")
    if model.design.spec.conditional is not None:  # there is no REML estimate
        print(f"\n{_text(post.summary(), COLUMNS[2:])}", flush=True)
        return
    reml = model.reml()
    for note in reml.notes:
        _log.warning("REML: %s", note)
    table = compare_reml(post, reml)
    percent = f"{100 * table.attrs['prob']:g} % {table.attrs['ci_kind'].upper()}"
    print(f"\nREML (estimate, std_error) and posterior (mean, sd, {percent}):")
    print(_text(table, COLUMNS, ("flag",)), flush=True)


def _text(table: pd.DataFrame, columns: Sequence[str], words: Sequence[str] = ()) -> str:
    """The main columns at four significant digits, at most `WIDTH` characters wide."""
    from bayeslmm.summaries.text import number

    bounds = [name for name in table.columns if name.endswith(("_lb", "_ub"))]
    shown = table[[*columns, *bounds, *words]]
    formatters: dict[str, Callable[[Any], str]] = dict.fromkeys([*columns, *bounds], number)
    return str(shown.to_string(formatters=formatters, index_names=False, line_width=WIDTH))


# --- files -----------------------------------------------------------------------------


def _read(source: str, *, batches: bool) -> pd.DataFrame | Path:
    """Data from a file or, for a bare name, a bundled data set; the path of data in batches."""
    from bayeslmm.datasets import list_datasets, load_dataset

    path = Path(source)
    names = list(list_datasets()["name"])
    if source in names:
        if path.exists():
            _log.warning(
                "%s is taken as the bundled data set; write .%s%s for the file of that name.",
                source,
                os.sep,
                source,
            )
        return load_dataset(source)
    if batches or path.is_dir() or (has_magic(source) and not path.exists()):
        return path
    if not path.exists():
        raise DataError(
            f"There is no file {source!r} and no bundled data set of that name. "
            f"Bundled are: {', '.join(names)}."
        )
    return _read_file(path)


def _product_files(source: str) -> list[Path]:
    """Files of cross-products: one, or those that a pattern finds; none for other data."""
    if not source.endswith(".products"):
        return []
    found = sorted(map(Path, glob(source))) if has_magic(source) else [Path(source)]
    if not found or not all(path.exists() for path in found):
        raise DataError(f"There is no file {source!r}.")
    return found


def _read_file(path: Path) -> pd.DataFrame:
    import pandas as pd

    name = path.name.lower()
    try:
        if name.endswith((".csv", ".csv.gz")):
            return pd.read_csv(path)
        if name.endswith((".tsv", ".tsv.gz")):
            return pd.read_csv(path, sep="\t")
        if name.endswith((".parquet", ".pq")):
            return pd.read_parquet(path)
    except ImportError as error:
        raise OptionalDependencyError(f"Reading {path} needs a package: {error}") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise DataError(
        f"{path} is in no known format: the name must end in .csv, .csv.gz, .tsv, .tsv.gz or "
        ".parquet."
    )


def _check_target(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot or must not be written, before time is spent on sampling."""
    if path.suffix not in (".nc", ".zarr"):
        raise _UsageError(f"--out {path}: the name must end in .nc (netCDF) or .zarr.")
    if not path.parent.is_dir():
        raise _UsageError(f"--out {path}: there is no directory {path.parent}.")
    if not os.access(path.parent, os.W_OK):
        raise _UsageError(f"--out {path}: the directory {path.parent} cannot be written to.")
    if not path.exists():
        return
    if not (path.is_dir() if path.suffix == ".zarr" else path.is_file()):
        kind = "directory" if path.is_dir() else "file" if path.is_file() else "pipe or a device"
        raise _UsageError(f"--out {path}: this is a {kind}; choose another name.")
    if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").exists():
        raise _UsageError(f"--out {path}: this directory is no Zarr store; choose another name.")
    if not force:
        raise _UsageError(f"--out {path}: this exists; add --force to overwrite it.")


def _check_products_target(path: Path, *, force: bool) -> None:
    from bayeslmm.storage.products import check_products_path

    if path.is_file() and not force:
        raise _UsageError(f"--out {path}: this exists; add --force to overwrite it.")
    try:
        check_products_path(path, overwrite=True)
    except (ValueError, OSError) as error:
        raise _UsageError(f"--out {path}: {error}") from error


# --- terminal --------------------------------------------------------------------------


def _progress(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


@contextmanager
def _logging_to_stderr(*, quiet: bool) -> Iterator[None]:
    """Log lines of the package on stderr; those of the diagnostics are part of the results."""
    package, sampler = logging.getLogger("bayeslmm"), logging.getLogger("pymc")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: record.name != "bayeslmm.sampling.diagnostics")
    levels = package.level, sampler.level
    package.addHandler(handler)
    package.setLevel(logging.ERROR if quiet else logging.INFO)
    if quiet:
        sampler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(levels[0])
        sampler.setLevel(levels[1])


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Remember interrupts, which samplers may keep to themselves."""
    seen: list[int] = []

    def remember(number: int, frame: Any) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set handlers
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, previous)


if __name__ == "__main__":
    sys.exit(main())
