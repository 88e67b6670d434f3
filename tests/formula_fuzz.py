"""Formulas made at random, right ones and wrong ones, and a data frame to try them on.

``python tests/formula_fuzz.py SEED COUNT`` tries them under a limit of memory.
"""

import json
import logging
import random
import re
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import bayeslmm as blm

ROWS = 96
NUMERIC = ["x", "z", "n", "u8", "`a b`", "Sepal.Length", "été", "`__class__`", "`if`", "log"]
FACTORS = ["f", "h", "b", "c"]
GROUPS = ["g", "k", "`my group`", "g:k", "g/k", "k*g", "(g/k)", "f"]
CALLS = [
    "log({v} + 10)", "exp({v})", "sqrt(abs({v}))", "np.tanh({v})", "np.log1p(abs({v}))",
    "I({v}^2)", "I({v}**2 - 1)", "I(-{v}^2 + {w})", "I({v} * {w})", "I({v} > {w})",
    "I(({v} > 0) & ({w} < 1))", "{{{v} / 2}}", "scale({v})", "center({v})", "poly({v}, 2)",
    "poly({v}, 3, raw=TRUE)", "bs({v}, df=4)", "ns({v}, df=3)", "cr({v}, df=4)", "cc({v}, df=3)",
    "bs({v}, knots=[0.1, .4])", "C({f})", "C({f}, contr.sum)", "C(f, Treatment('b'))",
    "C({f}, contr.helmert)", "factor({f})", "C(f, levels=['a', 'b', 'c'])", "pmax({v}, {w})",
    "np.where({v} > 0, {w}, 1)", "lag({v}, 0)", "np.clip({v}, 0, 1)", "round({v}, 1)",
    "I({v} + pi)", "hashed({f}, levels=3)", "Q('a b')", "standardize({v})", "exp10({v} / 100)",
    "C(f, {{'a': [1, 0, 0]}})", "I({f} == 'a')", "I(1 < {v} < 2)",
]  # fmt: skip
SPICE = [
    "^", "**", "~", "|", "||", "(", ")", "[", "]", "{", "}", "`", "'", '"', "\\", ":", ":=", "=",
    "==", ",", ";", "#", "@", "!", "%", "%in%", ".", "..", "...", "*", "/", "//", "-", "--", "+",
    "\n", "\t", "\0", "\x1b[31m", "\u200b", "\u202e", "\u2066", "\xa0", "\ufeff", "\ud800",
    "\udfff", "\U0001f600", "\U0010ffff", "\u0301", "ﬁ", "\uff4c\uff4f\uff47", "x²", "٣",
    "lambda x: x", "lambda:0", "if", "else", "await x", "yield", "not", "and", "in", "is", "None",
    "True", "import os", "exec('1')", "eval('1')", "__import__('os')", "().__class__",
    "x.__class__", ".__mro__", "f'{x}'", "f'{x!r:>{10**9}}'", "'%999999999d' % n",
    "'{0.__class__}'.format(x)", "b'x'", "[x for x in y]", "{x: 1}", "{*x}", "*x", "**x",
    "(x := 1)", "x[0]", "x[::-1]", "9**9**9", "1e999", "10**10**10", "x**1e9", "x^999999999",
    "1<<10**9", "'a'*10**9", "0x"+ "f"* 300, "9"* 5000, "1_0", "1j", ".5.5", "1.", "0", "1", "-1",
    "np", "np.", "np.log", "np.random", "np.load('x')", "np.ones(10**9)", "np.log.__self__",
    "contr.sum", "pi", "TRUE", "offset(x)", "offset()", "poly(x, 10**6)", "poly(x, 99)",
    "bs(x, df=99)", "C(x)", "bs(x, df=1000000)", "hashed(f, 1000000000)", "(a+b+c)^20",
    "(x + z + n)**9", "(x+f+h)^3", "x*z*n*f", "f:h:c:g:k", "f*h*c*b", "g:k:f", "exit()", "quit()",
    "globals()", "open('/x')", "print(x)", "breakpoint()", "input()", "getattr(x, 'y')",
    "C(f, x)", "C(f, [1,2])", "poly(x, f)", "log(f)", "log()", "log(x, z)", "log(x=z)",
    "scale(x, _state={})", "Q(x)", "Q('nope')", "nope", "lag(x, 1)", "I(y)", "y", "1:x", "2:x",
    "I(day)", "day", "C(day)", "I(x, z)", "I()", "center(f)", "`x y z`", "``",
]  # fmt: skip


def frame() -> pd.DataFrame:
    """A data frame that most of the right formulas fit."""
    rng = np.random.default_rng(5)
    columns = {
        name: rng.normal(size=ROWS) for name in ["y", "x", "z", "a b", "Sepal.Length", "été", "log"]
    }
    columns |= {"__class__": rng.normal(size=ROWS), "if": rng.uniform(size=ROWS)}
    columns |= {"n": np.arange(ROWS) % 7, "u8": (np.arange(ROWS) * 7 % 251).astype(np.uint8)}
    columns |= {"f": np.resize(list("abc"), ROWS), "h": rng.choice(list("stuv"), ROWS)}
    columns |= {"b": rng.uniform(size=ROWS) < 0.5, "day": pd.date_range("2020", periods=ROWS)}
    columns["c"] = pd.Categorical(rng.choice(["lo", "mid", "hi"], ROWS), ["lo", "mid", "hi"])
    columns |= {"g": np.repeat(np.arange(8), ROWS // 8), "k": rng.choice(list("pqrst"), ROWS)}
    columns["my group"] = np.resize(np.arange(6), ROWS)
    return pd.DataFrame(columns)


def formulas(seed: int, count: int) -> Iterator[str]:
    """Right formulas, changed ones and noise, in turn."""
    rng = random.Random(seed)
    kinds = [right, mutated, mutated, spiced, spiced, noise, nested, long]
    weights = [30, 15, 15, 15, 10, 5, 6, 4]
    for kind in rng.choices(kinds, weights, k=count):
        yield kind(rng)


def right(rng: random.Random) -> str:
    """A formula of the grammar."""
    terms = [term(rng) for _ in range(rng.randint(0, 4))]
    bars = [f"({bar(rng)})" for _ in range(rng.randint(1, 2))]
    pieces = terms + bars
    rng.shuffle(pieces)
    response = rng.choice(["y", "y", "log(y + 10)", "I(y^2)", "{y * 2}", "scale(y)"])
    return f"{response} ~ {' + '.join(pieces)}"


def bar(rng: random.Random) -> str:
    slopes = [factor(rng) for _ in range(rng.choice([0, 0, 1]))]
    left = " + ".join([rng.choice(["1", "1", "0"]) if slopes else "1", *slopes])
    return f"{left} {rng.choice(['|', '|', '||'])} {rng.choice(GROUPS)}"


def term(rng: random.Random) -> str:
    parts = [factor(rng) for _ in range(rng.choice([1, 1, 1, 2, 2, 3]))]
    text = rng.choice([":", "*", "/", " %in% ", " + ", " - "]).join(parts)
    return rng.choice([text, text, text, f"({text})^2", f"({text})"])


def factor(rng: random.Random) -> str:
    if rng.random() < 0.45:
        return rng.choice(NUMERIC + FACTORS)
    names = [n for n in NUMERIC if n != "Sepal.Length"]
    return rng.choice(CALLS).format(v=rng.choice(names), w=rng.choice(names), f=rng.choice(FACTORS))


def mutated(rng: random.Random) -> str:
    """A right formula with a few characters deleted, doubled, exchanged or inserted."""
    text = list(right(rng))
    for _ in range(rng.randint(1, 4)):
        if not text:
            break
        at = rng.randrange(len(text))
        action = rng.randrange(4)
        if action == 0:
            del text[at]
        elif action == 1:
            text.insert(at, text[at])
        elif action == 2:
            other = rng.randrange(len(text))
            text[at], text[other] = text[other], text[at]
        else:
            text.insert(at, rng.choice(SPICE))
    return "".join(text)


def spiced(rng: random.Random) -> str:
    """A formula, or an expression in one, with something hostile in it."""
    spice = rng.choice(SPICE)
    return rng.choice(
        [
            f"y ~ x + {spice} + (1 | g)",
            f"y ~ I({spice}) + (1 | g)",
            f"y ~ I(x {rng.choice('+-*/^,')} {spice}) + (x | g)",
            f"y ~ x + ({spice} | g)",
            f"y ~ (1 | {spice})",
            f"{spice} ~ x + (1 | g)",
            f"y ~ log({spice}) + scale({spice}) + (1 | g)",
            f"y ~ x{spice} + (1 | g)",
            f"y ~ x + (1 | g) + offset({spice})",
            f"y ~ poly(x, {spice}) + (1 | g)",
            f"y ~ C(f, {spice}) + (1 | g)",
            f"y ~ {{{spice}}} + (1 | g)",
            f"y ~ `{spice}` + (1 | g)",
            right(rng).replace("x", spice, 1),
            right(rng).replace(" + ", f" {spice} ", 1),
        ]
    )


def noise(rng: random.Random) -> str:
    """Characters of all planes."""
    planes = [(32, 127), (0, 0x100), (0x100, 0x3000), (0x10000, 0x10FFFF), (0xD800, 0xDFFF)]
    length = rng.choice([1, 5, 30, 300])
    text = "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(length))
    return rng.choice([text, f"y ~ {text} + (1 | g)", f"y ~ I({text}) + (1 | g)"])


def nested(rng: random.Random) -> str:
    """Nesting, up to a hundred thousand deep."""
    depth = rng.choice([5, 15, 25, 60, 99, 110, 400, 1500, 3000, 10**5])
    start, core, end = rng.choice(
        [
            ("(", "x", ")"), ("I(", "x", ")"), ("-", "x", ""), ("log(", "x", ")"), ("[", "x", "]"),
            ("{", "x", "}"), ("(a-", "x", ")"), ("(x+", "z", ")"), ("~", "x", ""),
            ("(1|", "g", ")"),
            ("x**", "2", ""), ("x+", "z", ""), ("x*", "z", ""), ("x:", "z", ""), ("x/", "z", ""),
            ("not ", "x", ""), ("`", "x", "`"), ("lambda:", "x", ""), ("x if x else ", "z", ""),
            ("f(", "x", ")"), ("x<", "z", ""), ("x,", "z", ""), ("offset(", "x", ")"),
            ("z-(", "x", ")"),
        ]
    )  # fmt: skip
    text = start * depth + core + end * rng.choice([depth, depth, depth - 1])
    return rng.choice(
        [f"y ~ {text} + (1 | g)", f"y ~ I({text}) + (1 | g)", f"y ~ ({text} | g)", text]
    )


def long(rng: random.Random) -> str:
    """Many terms, large powers, long names: up to a million characters."""
    count = rng.choice([10, 100, 400, 1200, 3000, 10**5])
    names = [f"x{i}" for i in range(count)]
    joined = rng.choice(["+", "*", ":", "/", "-", " + I(x^2) + "]).join(names)
    known = "+".join(f"I({rng.choice(['x', 'z', 'n'])} * {i})" for i in range(min(count, 2000)))
    return rng.choice(
        [
            f"y ~ {joined} + (1 | g)",
            f"y ~ ({'+'.join(names[:12])})^{rng.choice([2, 3, 5, 12, 20, 10**6])} + (1 | g)",
            f"y ~ (x+z+n+f+h+c)^{rng.choice([2, 3, 4, 5, 6, 7, 20])} + (1 | g)",
            f"y ~ (1 | {rng.choice(['*', ':', '/']).join(names[:30])})",
            f"y ~ {'x' * min(10**6, count * 10)} + (1 | g)",
            f"y ~ {known} + (1 | g)",
            f"y ~ I({'+'.join(['x'] * count)}) + (1 | g)",
            " + ".join([f"y ~ x + (0 + I(x*{i}) | g)" for i in range(count)]),
            f"y ~ x + {' + '.join(f'(0 + I(x * {i}) | g)' for i in range(min(count, 400)))}",
            f"y ~ {' + '.join(['bs(x, df=90)'] * min(count, 30))} + (1 | g)",
            f"y ~ {'*'.join(rng.sample([*'xznfhcbgk'], 6))} + (1 | g)",
            f"y ~ {':'.join(rng.sample([*'fhcbgk', 'C(n)'], 6))} + (1 | g)",
        ]
    )


# --- trying them -----------------------------------------------------------------------

MEGABYTES = 200
"""Memory that all formulas together may add to the process."""


def faults(formula: str, data: pd.DataFrame) -> tuple[str, str]:
    """The outcome of a formula, and what is wrong with it: nothing, if all is well."""
    try:
        blm.LMM(formula, data)
        outcome, message = "model", ""
    except (blm.FormulaError, blm.DataError) as error:
        outcome, message = type(error).__name__, str(error)
    except BaseException as error:
        return type(error).__name__, f"{type(error).__name__}: {error}"[:300]
    if any(0xD800 <= ord(character) < 0xE000 for character in message):
        return outcome, "a message that cannot be encoded"
    swallowed = re.search("MemoryError|RecursionError", message)
    return outcome, swallowed.group() if swallowed else ""


def limit_memory() -> None:
    """Let this process grow by `MEGABYTES` from now on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + MEGABYTES * 2**20,) * 2
    )


def main(seed: int, count: int) -> None:
    """Try formulas and print the outcomes as JSON."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    data = frame()
    blm.LMM("y ~ poly(x, 2) * f + bs(z, df=4) + (x | g)", data)
    limit_memory()
    outcomes: Counter[str] = Counter()
    wrong = []
    slowest = (0.0, "")  # for whoever runs this; no test judges a time
    for formula in formulas(seed, count):
        start = time.process_time()
        outcome, fault = faults(formula, data)
        slowest = max(slowest, (time.process_time() - start, formula[:300]))
        outcomes[outcome] += 1
        if fault:
            wrong.append([formula[:300], fault])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.process_time()
    report = {"outcomes": outcomes, "wrong": wrong, "peak MB": peak, "seconds": seconds}
    report["slowest"] = slowest
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
