"""Fit a model from the command line: ``python -m bayeslmm FORMULA DATA``."""

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
where a file has that name; write ./sleepstudy for the file. A folder, or a pattern of files such as
"sales/*.parquet", is read in batches and only sums over its rows kept, as a file with --batches.

Results go to the standard output, all else to the standard error. The exit code is 0 on success,
2 for a command line, a formula or data that cannot be used, 1 for any other failure and 130 after
an interrupt.

examples:
  python -m bayeslmm "Reaction ~ Days + (Days | Subject)" sleepstudy
  python -m bayeslmm "y ~ x + (1 | site/plot)" yields.csv --seed 1 --out fit.nc
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
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help, a version or an error
        return int(stop.code or OK)
    with _interrupts() as interrupted, _logging_to_stderr(quiet=arguments.quiet):
        try:
            _run(arguments)
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
    add("--batches", action="store_true", help="read DATA in batches, for files beyond memory")
    add("--weights", metavar="COL", help="column of precision weights")
    add("--out", type=Path, metavar="FILE", help="save the posterior: FILE.nc or DIRECTORY.zarr")
    add("--force", action="store_true", help="overwrite what --out names")
    add("--quiet", action="store_true", help="no progress bar, no warnings")
    add("--version", action="version", version=f"bayeslmm {version('bayeslmm')}")
    add("--list-datasets", action=_ListDatasets, help="list the bundled data sets and exit")
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


def _run(arguments: argparse.Namespace) -> None:
    from bayeslmm.fits.lmm import LMM

    if arguments.out is not None:
        _check_target(arguments.out, force=arguments.force)
    data = arguments.data if _in_batches(arguments) else _read(arguments.data)
    model = LMM(arguments.formula, data, priors=arguments.priors, weights=arguments.weights)
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


def _report(model: LMM, post: Posterior) -> None:
    from bayeslmm.comparison.reml import compare_reml

    reml = model.reml()
    for note in reml.notes:
        _log.warning("REML: %s", note)
    table = compare_reml(post, reml)
    percent = f"{100 * table.attrs['prob']:g} % {table.attrs['ci_kind'].upper()}"
    lines = [textwrap.fill(line, WIDTH) for line in str(post.diagnostics).splitlines()]
    print(f"\nPosterior by {post.method}:", *lines, sep="\n")
    print(f"\nREML (estimate, std_error) and posterior (mean, sd, {percent}):")
    print(_text(table), flush=True)


def _text(table: pd.DataFrame) -> str:
    """The main columns at four significant digits, at most `WIDTH` characters wide."""
    from bayeslmm.summaries.text import number

    bounds = [name for name in table.columns if name.endswith(("_lb", "_ub"))]
    shown = table[[*COLUMNS, *bounds, "flag"]]
    formatters: dict[str, Callable[[Any], str]] = dict.fromkeys([*COLUMNS, *bounds], number)
    return str(shown.to_string(formatters=formatters, index_names=False, line_width=WIDTH))


# --- files -----------------------------------------------------------------------------


def _in_batches(arguments: argparse.Namespace) -> bool:
    """Whether data are a folder or a pattern of files, or are said to be beyond memory."""
    from bayeslmm.datasets import list_datasets

    source = arguments.data
    if source in list(list_datasets()["name"]):
        return False
    pattern = any(mark in source for mark in "*?[") and not Path(source).exists()
    return bool(arguments.batches or pattern or Path(source).is_dir())


def _read(source: str) -> pd.DataFrame:
    """Data from a file or, for a bare name, a bundled data set."""
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
    if not path.exists():
        raise DataError(
            f"There is no file {source!r} and no bundled data set of that name. "
            f"Bundled are: {', '.join(names)}."
        )
    return _read_file(path)


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
