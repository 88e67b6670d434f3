"""Names of other projects that our pages link to, without the network.

A file in ``inventories`` has the address of one project's documentation (``url``) and, under
``[names]``, the page of each object that our docstrings name, as ``"domain:role name"``. Sphinx's
inventories are made of them when the pages are built, so that a build needs nothing from outside.

To renew the pages from the projects' own inventories, with the network::

    python docs/outside_names.py

It prints what changed and the names that a project no longer has; the files are rewritten.
"""

import re
import sys
import tomllib
import zlib
from pathlib import Path
from urllib.request import urlopen

HERE = Path(__file__).parent / "inventories"
HEAD = """# Sphinx inventory version 2
# Project: {}
# Version:
# The remainder of this file is compressed using zlib.
"""


def projects() -> dict[str, dict]:
    """What the files say, by their stems."""
    files = sorted(HERE.glob("*.toml"))
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in files}


def mapping() -> dict[str, tuple[str, str]]:
    """Addresses and inventories, for Sphinx's ``intersphinx_mapping``."""
    return {name: (said["url"], f"inventories/{name}.inv") for name, said in projects().items()}


def links() -> dict[str, str]:
    """What the names in the types of docstrings become; numpydoc knows those of Python itself."""
    keys = [key.split(" ") for said in projects().values() for key in said["names"]]
    kept = [name for kind, name in keys if "." in name or kind == "py:exception"]
    return {name: f":py:obj:`{name}`" for name in kept}


def write_inventories() -> None:
    """Write Sphinx's inventories beside the files they are made of."""
    for name, said in projects().items():
        lines = []
        for key, page in said["names"].items():
            kind, target = key.split(" ")
            lines.append(f"{target} {kind} 1 {page} {'-' if kind.startswith('py:') else target}\n")
        body = zlib.compress("".join(lines).encode())
        (HERE / f"{name}.inv").write_bytes(HEAD.format(name).encode() + body)


def read_inventory(content: bytes) -> dict[str, str]:
    """Pages by ``"domain:role name"`` in a Sphinx inventory."""
    *_, body = content.split(b"\n", maxsplit=4)
    pages = {}
    for line in zlib.decompress(body).decode().splitlines():
        if found := re.match(r"(.+?)\s+(\S+:\S+)\s+-?\d+\s+(\S*)", line):
            name, kind, page = found.groups()
            pages[f"{kind} {name}"] = page.removesuffix("$") + (name if page.endswith("$") else "")
    return pages


def renew() -> None:
    """Take the pages from the projects' inventories; needs the network."""
    for project, said in projects().items():
        with urlopen(said["url"] + "objects.inv", timeout=60) as answer:
            known = read_inventory(answer.read())
        lines = [f'url = "{said["url"]}"', "", "[names]"]
        for key, page in said["names"].items():
            new = known.get(key, page)
            if key not in known:
                sys.stdout.write(f"{project} has no {key}\n")
            elif new != page:
                sys.stdout.write(f"{project}: {page} is now {new}\n")
            lines.append(f'"{key}" = "{new}"')
        (HERE / f"{project}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    renew()
