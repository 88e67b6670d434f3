"""A formula is data: nothing in it runs, and nothing in it is too much."""

import builtins
import json
import os
import subprocess
import sys

import formula_fuzz
import numpy as np
import pandas as pd
import pytest
from forged_files import forge
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.__main__ import main
from bayeslmm.exceptions import BayesLMMError, DataError, FormulaError, StorageError
from bayeslmm.formula.grammar import parse
from bayeslmm.formula.matrices import evaluate, evaluate_response
from bayeslmm.storage.files import read
from bayeslmm.storage.model import unpack_model

# expressions that would leave a file `canary`, end the process, read a file, or reach what does
ATTACKS = [
    "I(__import__('os').system('touch canary'))",
    "I(__import__('pathlib').Path('canary').touch() or x)",
    "{__import__('os').system('touch canary')}",
    "{open('canary', 'w').write('x')}",
    "open('canary', 'w')",
    "log(open('canary', 'w'))",
    'exec(\'open("canary", "w")\')',
    'eval(\'open("canary", "w")\')',
    "compile('1', 'canary', 'exec')",
    'I(exec(\'open("canary", "w")\') or x)',
    "exit()",
    "quit()",
    "I(exit())",
    "breakpoint()",
    "input()",
    "print(x)",
    "help()",
    "globals()",
    "locals()",
    "vars()",
    "dir()",
    "I(globals()['__builtins__'])",
    "getattr(x, 'to_csv')('canary')",
    "setattr(x, 'a', 1)",
    "memoryview(x)",
    "type('T', (), {})",
    "object()",
    "super()",
    "I(x.to_csv('canary'))",
    "I(x.to_pickle('canary') or x)",
    "x.to_csv('canary')",
    "{x.to_csv('canary')}",
    "I(x.tofile('canary'))",
    "I(().__class__.__base__.__subclasses__())",
    "I(''.__class__.__mro__)",
    "I(x.__class__)",
    "I(x.__class__.__init__.__globals__['os'].system('touch canary'))",
    "I(log.__self__)",
    "I(np.load('canary'))",
    "I(np.save('canary', x))",
    "I(np.savetxt('canary', x))",
    "np.savetxt('canary', x)",
    "I(np.fromfile('canary'))",
    "I(np.f2py.os.system('touch canary'))",
    "I(np.__dict__)",
    "I(np.log.__class__)",
    "I(np.random.seed(1))",
    "I(np.vectorize(exit)(x))",
    "I(np.frompyfunc(exec, 1, 1)(x))",
    "I(np.apply_along_axis(exec, 0, x))",
    "I(np.core.multiarray)",
    "np.lib.npyio.os.system('touch canary')",
    "I((lambda: open('canary', 'w'))())",
    "I([open('canary', 'w') for _ in x])",
    "I({open('canary', 'w') for _ in x})",
    "I({1: open('canary', 'w') for _ in x})",
    "I(next(open('canary', 'w') for _ in x))",
    'I(f\'{open("canary", "w")}\')',
    "I(f'{x:{x}}')",
    "I('{0.__class__}'.format(x))",
    "I('%s' % x)",
    "I((a := open('canary', 'w')))",
    "I(x if open('canary', 'w') else x)",
    "I(x or open('canary', 'w'))",
    "I(x and exit())",
    "I(not exit())",
    "I(x[open('canary', 'w')])",
    "I(x[0])",
    "x[exit()]",
    "I(*[exit()])",
    "log(x, **{'out': x})",
    "np.log(x, out=x)",
    "np.log(x, where=exit())",
    "scale(x, _state={})",
    "poly(x, 2, _spec=exit())",
    "C(f, exit())",
    "C(f, contr.__class__)",
    "C(f, contr.treatment(exit()))",
    "C(f, contr.treatment.__init__)",
    "C(f, Treatment(open('canary', 'w')))",
    "C(f, levels=[exit()])",
    "C(f, {exit(): [1]})",
    "hashed(f, 3, hash_func=exit)",
    "poly(x, degree=exit())",
    "bs(x, knots=open('canary', 'w'))",
    "Q(exit())",
    "Q('x', exit())",
    "np.where(exit(), 1, 2)",
    "I(await x)",
    "I((yield))",
    "I(__builtins__)",
    "I(__FORMULAIC_STATE__)",
    "I(__name__)",
    "log(x)(exit())",
    "log(x).__class__",
    "(lambda: 0)()",
    "`log`(x)",
    "I(`exit`())",
    "\uff4c\uff4f\uff47(x)",  # Python would read it as log
    "I(e\uff58it())",
    "I(x @ x)",
    "I(x << 1000000000)",
    "I('a' * 1000000000)",
    "I(b'x')",
    "I(...)",
    "I(1j)",
    "I(x; exit())",
    "I(x)\nexit()",
    "I(x) # + (1 | g)",
]

# `{attack}` in every place where a formula has an expression
PLACES = [
    "y ~ {} + (1 | g)",
    "y ~ x + ({} | g)",
    "{} ~ x + (1 | g)",
    "y ~ x + offset({}) + (1 | g)",
    "y ~ x:{} + (1 | g)",
    "y ~ (x + {})^2 + (1 | g)",
]


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path, monkeypatch):
    """A folder in which nothing may appear."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"ran {command}"))
    yield
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def frame():
    return formula_fuzz.frame()


@pytest.fixture(scope="module")
def posterior(frame):
    return blm.LMM("y ~ x + (1 | g)", frame).fit(method="laplace", draws=20, random_seed=1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_everywhere(attack, frame, posterior):
    for place in PLACES:
        with pytest.raises(FormulaError) as caught:
            parse(place.format(attack))
        error = caught.value
        assert 0 <= error.start <= error.end <= max(1, len(error.source))
    with pytest.raises(FormulaError):
        blm.LMM(f"y ~ {attack} + (1 | g)", frame)
    with pytest.raises(FormulaError):
        blm.LMM.from_fit(posterior).update(f"~ . + {attack}")
    with pytest.raises(FormulaError):
        blm.LMM.from_fit(posterior).update(f"~ . - {attack}")
    with pytest.raises(FormulaError):
        posterior.hypothesis(f"{attack} > 0")


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_where_they_would_be_evaluated(attack, frame):
    for call in (evaluate, evaluate_response):
        with pytest.raises(BayesLMMError):
            call(attack, frame)


def test_attacks_are_refused_in_files(frame, posterior, tmp_path):
    posterior.save(tmp_path / "a.nc")
    found = read(tmp_path / "a.nc")
    for text in ATTACKS[::8]:
        changed = found.model | {"formula": f"y ~ x + {text} + (1 | g)"}
        with pytest.raises(StorageError, match="formula"):
            unpack_model(changed, found.arrays, found.tree["posterior"].dataset)

    def attack(document, numbers):
        document["model"]["formula"] = f"y ~ x + {ATTACKS[0]} + (1 | g)"

    forge(tmp_path / "a.nc", attack)
    with pytest.raises(StorageError, match=r"`__import__\('os'\).system` is not allowed"):
        blm.load(tmp_path / "a.nc")


def test_attacks_are_refused_on_the_command_line(tmp_path, capsys, frame):
    frame.to_csv(tmp_path / "data.csv")
    for attack in ATTACKS[:10]:
        assert main([f"y ~ {attack} + (1 | g)", str(tmp_path / "data.csv")]) == 2
        assert "canary" in capsys.readouterr().err


def test_nothing_is_evaluated_by_python(frame, monkeypatch):
    def fail(*arguments, **keywords):
        raise AssertionError("eval or exec was called")

    blm.LMM("y ~ C(f) + x + (1 | g)", frame).update("~ . - x")  # importing a module is an exec
    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, fail)
    right = "I(x^2) + log(`a b` + 10) + poly(z, 2) + C(f, contr.sum) + {x / z} + np.tanh(n)"
    model = blm.LMM(f"log(y + 10) ~ {right} + Q('a b') + (scale(x) | g)", frame)
    model.design.spec.rows(frame[:5])
    model.update("~ . - I(x ** 2)")


# --- what is said ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message", "marked"),
    [
        ("y ~ I(x.real) + (1|g)", "A column called x.real goes in backticks", "x.real"),
        ("y ~ I(x and z) + (1|g)", "`and` and `or` are & and | here", "x and z"),
        ("y ~ I(not x) + (1|g)", "`not` is ~ here", "not x"),
        ("y ~ I(f in ('a',)) + (1|g)", "(f == 'a') | (f == 'b')", "f in ('a',)"),
        ("y ~ I(1 if x else 2) + (1|g)", "np.where(condition, a, b)", "1 if x else 2"),
        ("y ~ I(x - np.mean(x)) + (1|g)", "see center()", "np.mean"),
        ("y ~ np.linspace(0, 1) + (1|g)", "NumPy's are np.abs", "np.linspace"),
        ("y ~ bs(x, knots=z) + (1|g)", "`knots` is written out: a number", "z"),
        ("y ~ poly(x, 1 + 1) + (1|g)", "degree is a whole number, written out", "1 + 1"),
        ("y ~ poly(x, 101) + (1|g)", "degree is at most 100", "101"),
        ("y ~ log(x, 2) + (1|g)", "The arguments of log are log(x).", "log(x, 2)"),
        ("y ~ poly(x, grad=2) + (1|g)", "are poly(x, degree=, raw=)", "poly(x, grad=2)"),
        ("y ~ C(f, sum) + (1|g)", "Contrasts are Diff, Helmert", "sum"),
        ("y ~ C(f, contr.sum(2)) + (1|g)", "The options of contr.sum are none", "contr.sum(2)"),
        ("y ~ I(x + 'a') + (1|g)", "Allowed are columns, numbers", "'a'"),
        ("y ~ I(`é` + __x) + (1|g)", "A column called __x goes in backticks", "__x"),
        ("y ~ I(x * 99999999999999999999) + (1|g)", "write it as 1e20", "9" * 20),
        ("y ~ {x + (1 | g).a} + (1|g)", "`(1 | g).a` is not allowed", "(1 | g).a"),
        ("y ~ (a+b+c)^20 + (1|g)", "3 is the largest that changes anything", "(a+b+c)^20"),
        ("y ~ (a+b+c+d+e+f)^5 + (1|g)", "at most 5000 products", "(a+b+c+d+e+f)^5"),
        ("y ~ a*b*c*d*e*f*g + (1|g)", "up to 7 factors; at most 6", "a*b*c*d*e*f*g"),
        ("y ~ x^2^3 + (1|g)", "A power of a power has no meaning here", "2^3"),
        ("y ~ (1 | a*b*c*d*e*f*g)", "`*` at most 5 times", "a*b*c*d*e*f*g"),
        ("y ~ I('a\\x41' == f) + (1|g)", "no backslashes", "'a\\x41'"),
        ("y ~ \ud800 + (1|g)", "half of a character", "\ud800"),
    ],
)
def test_messages(source, message, marked):
    with pytest.raises(FormulaError) as caught:
        parse(source)
    error = caught.value
    assert message in error.message
    assert error.source == source
    assert source[error.start : error.end] == marked


def test_limits():
    wide = " + ".join(f"x{i}" for i in range(501))
    for source, message in [
        ("y ~ " + "x" * 20_000, "The formula has 20004 characters; at most 20000"),
        (f"y ~ {wide} + (1 | g)", "more than 500 terms"),
        (f"y ~ I({' + '.join(['x'] * 102)}) + (1 | g)", "more than 100 levels deep"),
        (f"y ~ I({'(' * 31}x{')' * 31}) + (1 | g)", "nested more than 30 deep"),
        (f"y ~ {'(' * 21}x{')' * 21} + (1 | g)", "nested more than 20 deep"),
        (f"y ~ I({'x' * 4000}) + (1 | g)", "4003 characters; at most 4000"),
        ("y ~ " + " + ".join(f"(0 + x{i} | g)" for i in range(101)), "101 random-effects terms"),
        ("y ~ " + " + ".join(f"bs(x{i}, df=90)" for i in range(12)) + "+ (1|g)", "1000 columns"),
        (f"y ~ {':'.join(['x'] * 51)} + (1 | g)", "At most 50 factors"),
        (f"y ~ bs(x, knots={list(range(101))}) + (1 | g)", "101 knots; at most 100"),
    ]:
        with pytest.raises(FormulaError) as caught:
            parse(source)
        assert message in caught.value.message


def test_what_is_just_allowed(frame):
    for rhs in [
        " + ".join(f"I(x * {i})" for i in range(300)),
        f"I({' + '.join(['x'] * 97)})",
        f"{'(' * 20}x{')' * 20}",
        f"{'(x - ' * 18}x{')' * 18}",
        "(x + z + n + f + h)^5",
        "(x + z + n + f + h + c)^4",
        "f:h:c:b:g:k",
    ]:
        assert parse(f"y ~ {rhs} + (1 | g)").right.variables <= set(frame)


def test_a_term_of_too_many_columns(frame):
    data = frame.assign(p=np.arange(len(frame)), q=np.arange(len(frame)), r=np.arange(len(frame)))
    with pytest.raises(DataError, match="more than 10000 columns"):
        blm.LMM("y ~ C(p):C(q):C(r) + (1 | g)", data)


def test_a_factor_of_too_many_levels():
    data = pd.DataFrame({"y": np.arange(6000.0), "f": [f"l{i}" for i in range(6000)], "g": 1})
    with pytest.raises(DataError, match="6000 levels, and one of a model matrix may have 5000"):
        evaluate("1 + f", data)


def test_errors_can_be_written_to_any_file():
    for source in ("y ~ \udfff + (1 | g)", "y ~ \x1b[31m + (1 | g)", "y ~ I(\u202e) + (1 | g)"):
        with pytest.raises(FormulaError) as caught:
            parse(source)
        text = str(caught.value)
        text.encode()
        assert "\ufffd" in text
        assert not {"\udfff", "\x1b", "\u202e"} & set(text)


# --- generated formulas ----------------------------------------------------------------


@pytest.mark.parametrize("count", [100, slow(200)])
def test_generated_formulas_end_well(frame, count):
    found = [formula_fuzz.faults(formula, frame) for formula in formula_fuzz.formulas(1, count)]
    assert [fault for _, fault in found if fault] == []
    assert {"model", "FormulaError", "DataError"} == {outcome for outcome, _ in found}


@pytest.mark.slow
def test_many_generated_formulas_end_well_in_little_memory():
    command = [sys.executable, formula_fuzz.__file__, "2", "3000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["outcomes"]["model"] > 500


# --- hypotheses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hypothesis", "message"),
    [
        ("(" * 4000 + "x" + ")" * 4000 + " > 0", "at most 500 labels"),
        ("(" * 40 + "x" + ")" * 40 + " > 0", "nested more than 30 levels deep"),
        ("-" * 40 + "x > 0", "nested more than 30 levels deep"),
        ("2" + "**2" * 40 + " > x", "nested more than 30 levels deep"),
        ("x + " * 4000 + "x > 0", "characters; at most 10000"),
        ("x > 10**400", "`10**400` is no finite number"),
        ("x > 1e999", "`1e999` is no finite number"),
        ("x > (-1)**0.5", "is no finite number"),
        ("x > log(0)", "is no finite number"),
        ("x / 0 > 1", "This divides by zero"),
    ],
)
def test_hypotheses_have_limits(hypothesis, message, posterior):
    for fit in (posterior, blm.LMM.from_fit(posterior).reml()):
        with pytest.raises(FormulaError) as caught:
            fit.hypothesis(hypothesis)
        assert message in caught.value.message
