"""The command line."""

import gzip
import io
import logging
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import version

import arviz as az
import numpy as np
import pytest
from slow_cases import slow, whole

from bayeslmm import SamplingError, list_datasets, load, load_dataset
from bayeslmm.__main__ import WIDTH, main
from bayeslmm.fits.lmm import LMM

BATCHES = "Yield ~ 1 + (1 | Batch)"
QUICK = ["--method", "laplace", "--draws", "250", "--seed", "1"]


@pytest.fixture
def run(capsys):
    """Runs the command in this process: exit code, output, errors."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def expected():
    """What a quick run prints."""
    with redirect_stdout(io.StringIO()) as out:
        assert main([BATCHES, "Dyestuff", *QUICK]) == 0
    return out.getvalue()


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def batches(tmp_path):
    load_dataset("Dyestuff").to_csv(tmp_path / "batches.csv", index=False)
    return tmp_path / "batches.csv"


def command(*arguments, **kwargs):
    line = [sys.executable, "-m", "bayeslmm", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, **kwargs)


# --- as a process ----------------------------------------------------------------------


def test_success():
    result = command(BATCHES, "Dyestuff", *QUICK)
    assert result.returncode == 0
    assert "Formula: Yield ~ 1 + (1 | Batch)" in result.stdout
    assert "sd[Batch, Intercept]" in result.stdout
    assert result.stderr == ""


def test_options_that_are_wrong():
    result = command(BATCHES, "Dyestuff", "--draws", "0")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "'0' is no positive whole number" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise")
def test_a_reader_that_leaves():
    line = [sys.executable, "-m", "bayeslmm", BATCHES, "Dyestuff", *QUICK]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, text=True, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == ""


# --- in this process -------------------------------------------------------------------


def test_a_formula_that_is_wrong(run):
    code, out, err = run("Yield ~ 1 + (1 | Batch", "Dyestuff")
    assert code == 2
    assert out == ""
    message, source, caret = err.splitlines()
    assert message.startswith("bayeslmm: ")
    assert source == "  Yield ~ 1 + (1 | Batch"
    assert caret.strip() == "^"


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise")
def test_a_reader_that_has_left(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([BATCHES, "Dyestuff", *QUICK]) == 1
    assert capsys.readouterr().err == ""


def test_what_is_printed(run):
    code, out, err = run("Reaction ~ Days + (Days | Subject)", "sleepstudy", *QUICK)
    assert (code, err) == (0, "")
    for part in (
        "Number of obs: 180, groups: Subject, 18",
        "Posterior by laplace:\n1000 independent draws from an approximation\nPareto k",
        "No problems found.",
        "REML (estimate, std_error) and posterior (mean, sd, 89 % ETI):",
        "eti89_lb",
        "cor[Subject, Intercept, Days]",
        "agrees",
    ):
        assert part in out
    assert max(map(len, out.splitlines())) <= WIDTH


def test_long_labels_fit_the_width(run):
    formula = "distance ~ age * Sex + (age | Subject)"
    code, out, _ = run(formula.replace("age", "I(age / 12 + 0 * age)"), "Orthodont", *QUICK)
    assert code == 0
    assert max(map(len, out.splitlines())) <= WIDTH


def test_arviz_chooses_the_interval(run):
    with az.rc_context({"stats.ci_prob": 0.5, "stats.ci_kind": "hdi"}):
        assert "50 % HDI" in run(BATCHES, "Dyestuff", *QUICK)[1]


def test_the_seed_makes_runs_equal(run, expected):
    assert run(BATCHES, "Dyestuff", *QUICK)[1] == expected
    assert run(BATCHES, "Dyestuff", *QUICK, "--seed", 2)[1] != expected


def test_priors_and_weights(run, batches, expected):
    assert run(BATCHES, "Dyestuff", *QUICK, "--priors", "flat")[1] != expected
    frame = load_dataset("Dyestuff").assign(w=np.arange(30) + 1.0)
    frame.to_csv(batches, index=False)
    assert run(BATCHES, batches, *QUICK, "--weights", "w")[1] != expected
    code, _, err = run(BATCHES, batches, *QUICK, "--weights", "v")
    assert code == 2
    assert "v" in err


def test_residuals(run):
    formula, line = "distance ~ age + (1 | Subject)", ["Orthodont", *QUICK]
    _, out, _ = run(formula, *line, "--residual", "strata(Sex)")
    assert "sigma[Male]" in out and "sigma[Female]" in out
    _, out, _ = run(formula, *line, "--fixed", "sigma = 1.2", "--fixed", "sd[Subject]=2")
    assert out.count("fixed\n") == 2
    code, _, err = run(formula, *line, "--fixed", "tau=1")
    assert code == 2
    assert "tau" in err
    for conditional in (["--family", "student"], ["--sigma", "~ Sex"]):
        code, _, err = run(formula, *line, *conditional)
        assert code == 2
        assert "integrates the random effects out" in err


@pytest.mark.slow
@whole
def test_without_a_reml_estimate(run):
    line = ["distance ~ Sex + (1 | Subject)", "Orthodont", "--draws", "100", "--chains", "2"]
    code, out, _ = run(*line, "--sigma", "~ Sex")
    assert code == 0
    assert "sigma[Sex[T.Female]]" in out and "REML" not in out


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "parquet"])
def test_files(run, tmp_path, kind, expected):
    frame = load_dataset("Dyestuff")
    path = tmp_path / f"file.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    assert run(BATCHES, path, *QUICK)[1] == expected


def test_data_in_batches(run, tmp_path, batches, expected):
    folder = tmp_path / "parts"
    folder.mkdir()
    frame = load_dataset("Dyestuff")
    for part in range(3):
        frame.iloc[10 * part : 10 * part + 10].to_parquet(folder / f"{part}.parquet")
    for data in ([f"{folder}/*.parquet"], [batches, "--batches"]):
        code, out, _ = run(BATCHES, *data, *QUICK)
        assert (code, out) == (0, expected)
    code, out, _ = run(BATCHES, folder, *QUICK, "--out", "fit.nc")
    assert (code, out) == (0, f"{expected}\nDraws written to fit.nc\n")
    assert load("fit.nc").nobs == 30
    code, _, err = run(BATCHES, "none/*.csv", *QUICK)
    assert code == 2
    assert "No file is found" in err


def test_numbers_as_grouping_factor(run, batches):
    frame = load_dataset("Dyestuff")
    frame.assign(Batch=frame["Batch"].cat.codes).to_csv(batches, index=False)
    assert "groups: Batch, 6" in run(BATCHES, batches, *QUICK)[1]


def test_a_bundled_name_wins_over_a_file_of_that_name(run, tmp_path):
    (tmp_path / "Dyestuff").write_text("x\n1\n")
    code, _, err = run(BATCHES, "Dyestuff", *QUICK)
    assert code == 0
    assert f"write .{os.sep}Dyestuff for the file" in err
    code, _, err = run(BATCHES, f".{os.sep}Dyestuff", *QUICK)
    assert code == 2
    assert "in no known format" in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "There is no file 'absent.csv' and no bundled data set"),
        ("Sleepstudy", None, "Bundled are: bcg, cake, Dyestuff"),
        ("data.xlsx", b"", "in no known format"),
        ("empty.csv", b"", "empty.csv cannot be read: No columns"),
        ("broken.csv", b'a,b\n1,2\n3,4,5,6\n"', "broken.csv cannot be read"),
        ("latin.csv", b"a\n\xe9\xff\n", "latin.csv cannot be read"),
        ("broken.csv.gz", b"a\n1\n", "broken.csv.gz cannot be read"),
        ("broken.parquet", b"a\n1\n", "broken.parquet cannot be read"),
        ("rows.csv", b"Yield,Batch\n", "Yield"),
        ("columns.csv", b"a,b\n1,2\n", "`Yield` is not a column"),
    ],
)
def test_data_that_cannot_be_used(run, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = run(BATCHES, name, *QUICK)
    assert code == 2
    assert out == ""
    assert err.startswith("bayeslmm: ")
    if name != "rows.csv":
        assert message in err


def test_a_directory_without_data(run, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    code, _, err = run(BATCHES, "folder.csv")
    assert code == 2
    assert "No file is found at `folder.csv`" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [BATCHES],
        [BATCHES, "Dyestuff", "--draws", "0"],
        [BATCHES, "Dyestuff", "--chains", "two"],
        [BATCHES, "Dyestuff", "--seed", "-1"],
        [BATCHES, "Dyestuff", "--method", "magic"],
        [BATCHES, "Dyestuff", "--priors", "horseshoe"],
        [BATCHES, "Dyestuff", "--fixed", "sigma"],
        [BATCHES, "Dyestuff", "--family", "cauchy"],
        [BATCHES, "Dyestuff", "--unknown"],
    ],
)
def test_a_command_line_that_is_wrong(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "usage: python -m bayeslmm" in err


def test_help_and_version(run):
    code, out, _ = run("--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= WIDTH
    assert "./sleepstudy for the file" in out
    assert run("--version") == (0, f"bayeslmm {version('bayeslmm')}\n", "")


def test_list_of_data_sets(run):
    code, out, _ = run("--list-datasets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(list_datasets()["name"])
    assert max(map(len, out.splitlines())) <= WIDTH


# --- writing ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fit.nc", slow("fit.zarr")])
def test_draws_are_written(run, tmp_path, name):
    if name.endswith(".zarr"):
        pytest.importorskip("zarr")
    code, out, err = run(BATCHES, "Dyestuff", *QUICK, "--out", name)
    assert (code, err) == (0, "")
    assert f"Draws written to {name}" in out
    read = az.from_netcdf if name.endswith(".nc") else az.from_zarr
    tree = read(tmp_path / name)
    assert tree.attrs["modeling_interface"] == "bayeslmm"
    assert tree["posterior"].sizes["draw"] == 250
    tree.close()
    code, out, err = run(BATCHES, "Dyestuff", *QUICK, "--out", name)
    assert (code, out) == (2, "")
    assert f"--out {name}: this exists; add --force" in err
    short = [*QUICK, "--draws", "200"]
    assert run(BATCHES, "Dyestuff", *short, "--out", name, "--force")[0] == 0
    with read(tmp_path / name) as tree:
        assert tree["posterior"].sizes["draw"] == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fit.csv", "must end in .nc"),
        ("fit", "must end in .nc"),
        ("absent/fit.nc", "there is no directory absent"),
        ("folder.nc", "this is a directory"),
        ("file.zarr", "this is a file"),
        ("full.zarr", "this directory is no Zarr store"),
    ],
)
def test_targets_that_cannot_be_written(run, tmp_path, name, message):
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "file.zarr").write_text("")
    (tmp_path / "full.zarr").mkdir()
    (tmp_path / "full.zarr" / "thesis.txt").write_text("all of it")
    code, out, err = run(BATCHES, "Dyestuff", *QUICK, "--out", name, "--force")
    assert (code, out) == (2, "")
    assert err.startswith(f"bayeslmm: --out {name}: ")
    assert message in err
    assert (tmp_path / "full.zarr" / "thesis.txt").exists()


# --- log lines, failures, interrupts ---------------------------------------------------


@pytest.fixture
def gaps(batches):
    """Data with a missing value, of which the REML fit is singular."""
    frame = load_dataset("Dyestuff2")
    frame.loc[3, "Yield"] = np.nan
    frame.to_csv(batches, index=False)
    return batches


def test_log_lines_go_to_stderr(run, gaps):
    code, out, err = run(BATCHES, gaps, *QUICK)
    assert code == 0
    assert "1 of 30 rows" in err
    assert "REML: sd[Batch, Intercept] is estimated at zero." in err
    assert "The fit is singular" not in out
    assert "at the boundary" in out


def test_quiet(run, gaps):
    code, out, err = run(BATCHES, gaps, *QUICK, "--quiet")
    assert (code, err) == (0, "")
    assert "at the boundary" in out


def test_logging_is_left_as_it_was(run):
    package = logging.getLogger("bayeslmm")
    before = package.level, list(package.handlers), signal.getsignal(signal.SIGINT)
    run(BATCHES, "absent.csv", "--quiet")
    assert before == (package.level, package.handlers, signal.getsignal(signal.SIGINT))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "options", "shown"),
    [(Terminal, [], True), (Terminal, ["--quiet"], False), (io.StringIO, [], False)],
)
def test_the_progress_bar_needs_a_terminal(monkeypatch, stream, options, shown):
    asked = {}

    def fit(model, **kwargs):
        asked.update(kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(LMM, "fit", fit)
    monkeypatch.setattr(sys, "stderr", stream())
    assert main([BATCHES, "Dyestuff", "--draws", "7", "--chains", "3", *options]) == 130
    assert asked == {
        "method": "auto",
        "draws": 7,
        "chains": 3,
        "random_seed": None,
        "progressbar": shown,
    }


def raising(error):
    def fit(model, **kwargs):
        raise error

    return fit


def test_an_interrupt(run, monkeypatch):
    monkeypatch.setattr(LMM, "fit", raising(KeyboardInterrupt()))
    code, _, err = run(BATCHES, "Dyestuff")
    assert (code, err) == (130, "bayeslmm: Interrupted.\n")


def test_an_interrupt_that_the_sampler_keeps_to_itself(run, monkeypatch):
    def fit(model, **kwargs):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SamplingError("Sampling ended early.") from None

    monkeypatch.setattr(LMM, "fit", fit)
    assert run(BATCHES, "Dyestuff")[0] == 130


def test_other_failures(run, monkeypatch):
    monkeypatch.setattr(LMM, "fit", raising(SamplingError("Sampling ended early.")))
    code, _, err = run(BATCHES, "Dyestuff")
    assert (code, err) == (1, "bayeslmm: Sampling ended early.\n")
    monkeypatch.setattr(LMM, "fit", raising(OSError("No space left on device")))
    assert run(BATCHES, "Dyestuff")[0] == 1
