"""What stands at the front, README, home page and project files: figures, links and code hold."""

import ast
import builtins
import io
import re
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib
import pytest

import bayeslmm as blm
from bayeslmm.__main__ import main

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "README.md").exists(), reason="not part of the installed package"
)

TEXTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "paper.md")
FORMULA = "Reaction ~ Days + (Days | Subject)"
MONTE_CARLO = 0.1
"""Posterior means and sds as printed, in posterior sds: five errors of 2,500 draws."""


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), re.DOTALL | re.MULTILINE)


def setting(key):
    return re.search(rf"^{key}: (.*?)(?:  #.*)?$", text("CITATION.cff"), re.MULTILINE)[1].strip('"')


# --- links and names ---------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(name))
    inside = [link for link in links if "://" not in link]
    assert not [link for link in inside if not (ROOT / link).exists()]


def test_the_readme_links_and_has_its_picture():
    links = re.findall(r"\]\(([^)#\s]+)", text("README.md"))
    assert "SECURITY.md" in links
    picture = ROOT / next(link for link in links if link.endswith(".png"))
    assert 10_000 < picture.stat().st_size < 100_000


def test_tests_named_by_the_security_page_exist():
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text("SECURITY.md"))
    assert len(named) > 20
    absent = [
        (file, test)
        for file, test in named
        if not (ROOT / file).exists() or (test and f"def {test}(" not in text(file))
    ]
    assert not absent


def test_one_address_everywhere():
    urls = tomllib.loads(text("pyproject.toml"))["project"]["urls"]
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(urls)
    address = urls["Repository"]
    assert all(url.startswith(address) for url in urls.values())
    assert setting("repository-code") == address
    for name in TEXTS:
        found = set(re.findall(r"https://github\.com/\w+/bayeslmm", text(name)))
        assert found <= {address}


def test_the_citation_is_of_this_version():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert setting("version") == project["version"]
    assert setting("license") == project["license"].split(" AND ")[0]
    assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", setting("date-released"))


def test_citations_of_the_paper_are_in_its_bibliography():
    cited = set(re.findall(r"@([a-z]+\d{4}\w*)", text("paper.md")))
    entries = re.findall(r"^@\w+\{(\w+),", text("paper.bib"), re.MULTILINE)
    assert cited
    assert cited == set(entries)
    assert len(entries) == len(set(entries))


def test_the_source_distribution_has_all_that_the_readme_speaks_of():
    built = tomllib.loads(text("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["sdist"]
    included = [pattern.removeprefix("/") for pattern in built["include"]]
    assert all(list(ROOT.glob(pattern)) for pattern in included)
    for folder in ("bayeslmm", "benchmarks", "docs", "notebooks", "tests", "*.md", "CITATION.cff"):
        assert folder in included


# --- figures -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "paper.md"])
def test_figures_of_speed_are_those_of_the_benchmarks(name):
    rows = [row for row in text(name).splitlines() if re.search(r"`\w+\.py` \|$", row)]
    assert len(rows) >= 5
    found = text("benchmarks/README.md")
    results = found.partition("## Results")[2]
    numbers = set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", results))
    for row in rows:
        _, task, here, beside, script, _ = re.split(r"(?<!\\)\|", row)
        assert script.strip(" `") in found
        for number in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", here + beside):
            assert number in numbers, (task, number)


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "paper.md"])
def test_figures_of_agreement_are_those_of_the_benchmarks(name):
    figures = re.findall(r"\d\.\de-\d\d", text(name))
    assert len(figures) >= 3
    assert not [figure for figure in figures if figure not in text("benchmarks/README.md")]


def test_counts_of_references_are_those_there_are():
    folder = ROOT / "tests" / "reference"
    fits, posteriors = (len(list((folder / f).glob("*.json"))) for f in ("fits", "posteriors"))
    for name in ("README.md", "docs/index.md", "paper.md"):
        found = " ".join(text(name).split())
        assert re.search(rf"\b{fits} fits by lme4", found)
        assert re.search(rf"\b{posteriors} (posteriors|long runs)", found)


# --- code and what it prints -------------------------------------------------------------


def rows_of(printed):
    """Rows of the comparison in a printed text: label to numbers and flag."""
    found = {}
    for line in printed.splitlines():
        cells = re.match(r"((?:beta|sd|cor)\[.*?\]|sigma)\s+(-?\d.*)$", line)
        if cells:
            *numbers, flag = cells[2].split()
            found[cells[1]] = [float(number) for number in numbers], flag
    return found


def check_rows(printed, table, columns):
    """Rows as printed are those of a table, estimates to their digits, draws nearly."""
    rows = rows_of(printed)
    assert list(rows) == list(table.index)
    for label, (numbers, flag) in rows.items():
        for number, column in zip(numbers, columns, strict=True):
            exact = column in ("estimate", "std_error")
            slack = 0.006 if exact else MONTE_CARLO * table["sd"][label]
            scale = max(1.0, abs(number)) if exact else 1.0
            assert table[column][label] == pytest.approx(number, abs=slack * scale)
        assert flag == table["flag"][label]


def run_python_of_the_readme(end=None):
    """Names after the README's block of Python, or the part of it before some text."""
    matplotlib.use("agg")
    (code,) = blocks("README.md", "python")
    names = {}
    with redirect_stdout(io.StringIO()):
        exec(compile(code[: code.index(end)] if end else code, "README.md", "exec"), names)
    return names


def test_the_python_of_the_readme_prints_what_it_says():
    names = run_python_of_the_readme("for fit in")
    printed = next(block for block in blocks("README.md", "text") if "fit by REML" in block)
    fit, _, rows = printed.partition("\n\n")
    assert [line.rstrip() for line in str(names["reml"]).splitlines()] == fit.splitlines()
    table = blm.compare_reml(names["post"], names["reml"])
    check_rows(rows, table, ["estimate", "std_error", "mean", "sd"])


@pytest.mark.slow  # PyMC compiles, and the report draws every picture
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python_of_the_readme()
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "sleep.nc"}


def test_the_command_of_the_readme_prints_what_it_says(capsys):
    assert f'python -m bayeslmm "{FORMULA}" sleepstudy' in text("README.md")
    assert main([FORMULA, "sleepstudy", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    shown = next(block for block in blocks("README.md", "text") if "Posterior by" in block)
    words = [re.sub(r"[-\d.]+|\(u\[.*\]\)", "#", line.rstrip()) for line in shown.splitlines()]
    heads = [line for line in words if not line.startswith(("beta", "sd", "cor", "sigma"))]
    printed_words = [
        re.sub(r"[-\d.]+|\(u\[.*\]\)", "#", line.rstrip()) for line in printed.splitlines()
    ]
    assert not [line for line in heads if line and line not in printed_words]
    ours, theirs = rows_of(printed), rows_of(shown)
    assert list(ours) == list(theirs)
    for label, (numbers, flag) in theirs.items():
        sd = numbers[3]
        assert ours[label][0] == pytest.approx(numbers, abs=MONTE_CARLO * sd)
        assert ours[label][1] == flag


# --- pages -------------------------------------------------------------------------------

HIDDEN = re.compile(r"^:tags: .*remove-(?:cell|input)", re.MULTILINE)


def names_in(code):
    """Names that code uses, and those that it makes or Python has."""
    used, made = set(), set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                made.add(name)
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                made.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                made |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
    return used, made


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documentation is not in this copy")
def test_code_that_a_page_shows_needs_none_that_it_hides():
    pages = [path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts]
    found = {}
    for path in pages:
        page = path.read_text(encoding="utf-8")
        cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        shown = [
            re.sub(r"^:.*$", "", cell, flags=re.M) for cell in cells if not HIDDEN.search(cell)
        ]
        used, made = names_in("\n".join(shown))
        found[path.name] = used - made
    assert len(found) > 40
    assert {name: sorted(lacking) for name, lacking in found.items() if lacking} == {}


# --- notebooks ---------------------------------------------------------------------------


def test_what_notebooks_show_is_escaped():
    evil = "<script>alert(1)</script>"
    data = blm.load_dataset("sleepstudy").rename(columns={"Subject": evil})
    data["f"] = ["<img src=x onerror=alert(1)>", "b"] * 90
    model = blm.LMM(f"Reaction ~ f + (1 | `{evil}`)", data)
    reml = model.reml()
    for shown in (model, reml, model.priors, reml.means("f"), reml.contrasts("f")):
        html = shown._repr_html_()
        assert "&lt;" in html
        assert "<script" not in html
        assert "<img" not in html
