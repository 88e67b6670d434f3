"""Files of posteriors with other contents and right checksums, as an attacker would make them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from bayeslmm.storage import files as _files
from bayeslmm.storage import layout as _layout


def parts(path):
    """Head, document and bytes of each variable of a netCDF file of ours."""
    content = Path(path).read_bytes()
    size = int.from_bytes(content[-24:-16], "little")
    index = json.loads(content[-24 - size : -24])
    start = index["places"][_layout.DOCUMENT]
    document = json.loads(content[start : start + index["document"]])
    numbers = {}
    for key, place in index["places"].items():
        if key != _layout.DOCUMENT:
            item = described(document, key)
            count = int(np.prod(item["shape"])) * np.dtype(item["dtype"]).itemsize
            numbers[key] = content[place : place + count]
    return index["head"], document, numbers


def described(document, key):
    """What the document says of a variable."""
    group, _, name = key.rpartition("/")
    if group == _layout.MODEL:
        return next(v for k, v in document["arrays"].items() if k.replace(" ", "_") == name)
    return next(v for v in document["groups"][f"/{group}"]["variables"] if v["name"] == name)


def forge(path, change, *, signed=True):
    """Write a file anew after `change(document, numbers)`, which may return the document as text.

    There is no netCDF in it any more, as nothing of ours reads that.
    """
    head, document, numbers = parts(path)
    text = change(document, numbers) or json.dumps(document).encode()
    if signed:
        head["sha256"] = hashlib.sha256(text + b"".join(numbers.values())).hexdigest()
    blocks, places, content = {_layout.DOCUMENT: text, **numbers}, {}, b""
    for key, block in blocks.items():
        places[key] = len(content)
        content += block
    index = json.dumps({"head": head, "document": len(text), "places": places}).encode()
    end = len(index).to_bytes(8, "little") + _files.END
    Path(path).write_bytes(content + index + end)
