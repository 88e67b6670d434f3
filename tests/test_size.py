"""The package stays as small as it is: its files and lines may only become fewer."""

import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "bayeslmm"

MOST_FILES = 324
MOST_LINES = 57_200
"""Lines of code, without docstrings, comments and blank lines."""

LONGEST_FILE = 810
"""Lines of a file, docstrings and all: one idea is not cut in two to obey a limit."""

NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def code_lines(source):
    """Numbers of the lines of a file that hold code: statements that are only text do not."""
    found, statement = set(), []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            statement.append(token)
        elif token.type == tokenize.NEWLINE:
            if any(t.type != tokenize.STRING and t.string != "..." for t in statement):
                for t in statement:
                    found.update(range(t.start[0], t.end[0] + 1))
            statement = []
    return found


def test_lines_of_code_are_counted():
    source = (
        '"""Doc."""\n\nx = (1,\n  2)  # comment\n# comment\n\ndef f():\n    """Doc.\n\n    """\n'
    )
    assert code_lines(source) == {3, 4, 7}


def test_the_package_does_not_grow():
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    assert len(sources) <= MOST_FILES
    assert sum(len(code_lines(source)) for source in sources) <= MOST_LINES


def test_no_file_is_long():
    sizes = {
        str(p.relative_to(PACKAGE)): len(p.read_text(encoding="utf-8").splitlines())
        for p in PACKAGE.rglob("*.py")
    }
    assert not {name: size for name, size in sizes.items() if size > LONGEST_FILE}
