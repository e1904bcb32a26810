"""Mutations of files by their content: JSON, TOML, text, safetensors, zip, tar and npy are changed inside as well.

A mutation is a function of the bytes and a random generator. `damage` changes bytes only, as a disk or a network does;
`forge` keeps the format readable and changes values, as an attacker or another tool does; `replace_file` puts something
at the path that is no file.
"""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import random
import re
import string
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAMES = [
    "../up",
    "/tmp/absolute",
    "a/../../b",
    "\x1b[2J\n",
    "a\0b",
    "\ud800",
    "",
    ".",
    "..",
    "x" * 300,
    "CON",
    "é",
    "a\\b",
]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 10**23, 2**62, 2**63, 10**12, -(2**31), 65537, 1e-320, 1e308, -0.5, 0.5,
    float("inf"), float("-inf"), float("nan"), "", "x", "F32", "U8", "none", *NAMES, [], [[]], [-1, 5], [0],
    [0, 10**12], [3] * 200, ["x"], {}, {"a": 1}, {"a": {"b": []}}, [None] * 3, [10**6] * 3, "9" * 5000, "K/0",
    [1.5, "x"],
]  # fmt: skip
_LITERALS = ["inf", "nan", "-1", "1e400", "[]", "{}", '""', "true", "[[[[[]]]]]", "1979-05-27", '"\\u0000"', "0x10"]
_TEXTS = [
    "\0",
    "\x1b[2J",
    "\ud7ff",
    '"',
    "'",
    ",",
    "\t",
    ";",
    "\r",
    "\n",
    "\n\n",
    "\ufeff",
    "../x",
    ":",
    "=",
    "-1",
    "1e400",
]
_DEPTHS = (90, 110, 3000, 100_000)


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return the content with bits flipped, bytes replaced, cut off, inserted, moved or repeated."""
    data = bytearray(content) or bytearray(b"\0")
    kind = rng.choice(["flip", "flip", "flip", "bytes", "truncate", "insert", "splice", "swap", "extend", "zeros"])
    # Headers are at the beginning and at the end, so half of all mutations happen there.
    place = rng.choice(
        [rng.randrange(len(data)), rng.randrange(min(len(data), 2048)), -1 - rng.randrange(min(len(data), 400))]
    )
    place %= len(data)
    size = min(rng.choice([1, 2, 4, 8, 64, 1024]), len(data) - place)
    if kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        data[place : place + size] = bytes(
            rng.choice([0, 255, 127, 10, 91, 123, rng.randrange(256)]) for _ in range(size)
        )
    elif kind == "truncate":
        del data[place:]
    elif kind == "insert":
        data[place:place] = rng.randbytes(size)
    elif kind == "splice":
        start = rng.randrange(len(data))
        data[place : place + size] = data[start : start + size]
    elif kind == "swap":
        half = len(data) // 2
        data = data[half:] + data[:half]
    elif kind == "extend":
        data += rng.choice([b"\0", b"\n", bytes(512), rng.randbytes(100), bytes(data[:200])])
    else:
        data[place : place + size] = bytes(size)
    return bytes(data)


def forge(content: bytes, name: str, rng: random.Random) -> bytes:
    """Return the content with one value, name, member or line changed; the format is judged by content and name."""
    return _forger(content, name)(content, rng)


def replace_file(path: Path, rng: random.Random) -> str:
    """Put something else in the place of a file; return what."""
    kind = rng.choice(["missing", "empty", "fifo", "loop", "directory", "device", "dangling", "long line"])
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "long line":
        path.write_bytes(rng.choice([b"[", b"{", b'"', b"a,", b" "]) * 200_000)
    return kind


Forger = Callable[[bytes, random.Random], bytes]


def _forger(content: bytes, name: str) -> Forger:
    if content.startswith(b"PK\x03\x04"):
        return _zip
    if content.startswith(b"\x93NUMPY"):
        return _npy
    if content[257:262] == b"ustar":
        return _tar
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
        return _safetensors
    if name.endswith(".jsonl"):
        return _json_lines
    if _is_json(content):
        return _json
    if name.endswith(".toml"):
        return _toml
    return _text if _is_text(content) else damage


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


# JSON


def _json(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.05:
        return _nested(rng)
    text = json.dumps(changed(json.loads(content), rng))
    if rng.random() < 0.08 and "{" in text:  # a member twice
        places = [found.start() + 1 for found in re.finditer(r"\{", text)]
        names = re.findall(r'"[^"\\]*"(?=: )', text) or ['"a"']
        place = rng.choice(places)
        more = f"{rng.choice(names)}: {json.dumps(rng.choice(VALUES))}" + ", " * (text[place] != "}")
        text = text[:place] + more + text[place:]
    return text.encode("utf-8", "surrogatepass")


def changed(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one member or item replaced, varied, renamed, removed, added, exchanged or nested."""
    place = rng.choice(list(_places(value)))
    if not place:
        return rng.choice(VALUES)
    found = copy.deepcopy(value)
    owner = found
    for step in place[:-1]:
        owner = owner[step]
    last, kind = (
        place[-1],
        rng.choice(["replace", "replace", "vary", "vary", "remove", "rename", "add", "nest", "exchange"]),
    )
    if kind == "remove":
        del owner[last]
    elif kind == "rename" and isinstance(owner, dict):
        owner[rng.choice([*NAMES, *map(str, owner)])] = owner.pop(last)
    elif kind == "add" and isinstance(owner, dict):
        owner[rng.choice([*NAMES, "kind", "a"])] = rng.choice(VALUES)
    elif kind == "add":
        owner.insert(last, rng.choice(VALUES))
    elif kind == "nest":
        owner[last] = rng.choice([[owner[last]], {"a": owner[last]}])
    elif kind == "vary":
        owner[last] = _varied(owner[last], rng)
    elif kind == "exchange":
        other = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
        one = rng.choice(other)
        owner[last], owner[one] = owner[one], owner[last]
    else:
        owner[last] = rng.choice(VALUES)
    return found


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        yield from _places(inner, (*above, name))


def _varied(value: Any, rng: random.Random) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 10**6, value // 2, 0, 10**12])
    if isinstance(value, float):
        return rng.choice([-value, value * 1e6, value / 1e6, value * 1e300, 0.0, float("nan")])
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        return rng.choice(
            [value[:cut], value + "x", value[:cut] + rng.choice(_TEXTS) + value[cut:], value.upper(), value * 50]
        )
    if isinstance(value, list):
        return rng.choice([value[:-1], value + value[:1], value * 2, list(reversed(value)), [value], [*value, 0]])
    if isinstance(value, dict):
        return rng.choice([list(value.items()), list(value), {**value, "x": value}])
    return rng.choice(VALUES)


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice(_DEPTHS)
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('{"parts":[', "]}")])
    return (opening * depth + "1" + closing * depth).encode()


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines() or [b""]
    place = rng.randrange(len(lines))
    if _is_json(lines[place]) and rng.random() < 0.7:
        lines[place] = _json(lines[place], rng)
    elif rng.random() < 0.5:
        lines.insert(place, rng.choice([lines[place], b"", b"{", b"null", b"[]", b"\xff", b'"a"', b"7"]))
    else:
        lines[place] = damage(lines[place], rng)
    return b"\n".join(lines) + b"\n"


# Text


def _toml(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().splitlines()
    place = rng.randrange(len(lines))
    name = lines[place].partition("=")[0]
    depth = rng.choice(_DEPTHS)
    new = rng.choice(
        [*_LITERALS, *map(json.dumps, (v for v in VALUES if isinstance(v, str))), "[" * depth + "]" * depth]
    )
    lines[place] = rng.choice([f"{name}= {new}", f"[{name}]", lines[place] + "\n" + lines[place], f"{name}.x = 1", new])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _text(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().split("\n")
    place = rng.randrange(len(lines))
    kind = rng.choice(["insert", "insert", "double", "remove", "join", "repeat", "fields", "value"])
    line = lines[place]
    if kind == "insert":
        cut = rng.randrange(len(line) + 1)
        lines[place] = line[:cut] + rng.choice([*_TEXTS, *string.punctuation]) + line[cut:]
    elif kind == "double":
        lines.insert(place, line)
    elif kind == "remove":
        del lines[place]
    elif kind == "join":
        lines = ["".join(lines)]
    elif kind == "repeat":
        lines[place] = line * rng.choice([2, 50, 5000])
    elif kind == "fields":
        separator = rng.choice(",\t;: ")
        fields = line.split(separator)
        rng.shuffle(fields)
        lines[place] = separator.join(fields[: rng.randrange(len(fields) + 1)])
    else:
        fields = re.split(r"([,\t;:])", line)
        fields[rng.randrange(len(fields))] = str(rng.choice(VALUES))[:6000]
        lines[place] = "".join(fields)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# Containers


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the index, or one of the JSON texts in its metadata."""
    size = int.from_bytes(content[:8], "little")
    body = content[8 + size :]
    try:
        index = json.loads(content[8 : 8 + size])
        metadata = index.get("__metadata__") or {}
        texts = [name for name, text in metadata.items() if text[:1] in ("{", "[")]
        if texts and rng.random() < 0.6:
            name = rng.choice(texts)
            metadata[name] = _json(metadata[name].encode(), rng).decode("utf-8", "replace")
            text = json.dumps(index).encode()
        else:
            text = _overlapping(index, rng) if rng.random() < 0.15 else _json(json.dumps(index).encode(), rng)
    except (ValueError, AttributeError, TypeError):
        return damage(content, rng)
    if rng.random() < 0.05:
        return rng.choice([0, 1, 2**40, 2**63, size + 1]).to_bytes(8, "little") + text + body
    return len(text).to_bytes(8, "little") + text + body


def _overlapping(index: dict[str, Any], rng: random.Random) -> bytes:
    """Give a tensor the place of another, or another type or shape of the same size."""
    names = [name for name in index if name != "__metadata__"]
    if not names:
        return _json(json.dumps(index).encode(), rng)
    one, other = index[rng.choice(names)], index[rng.choice(names)]
    kind = rng.choice(["place", "whole", "dtype", "shape", "flat", "rows"])
    if kind == "place":
        one["data_offsets"] = other["data_offsets"]
    elif kind == "whole":
        index[rng.choice(names)] = dict(other)
    elif kind == "dtype":
        one["dtype"] = rng.choice(["F64", "F16", "BF16", "I8", "U8", "BOOL", "I64", "F8_E4M3", "U16"])
    elif kind == "shape":
        one["shape"] = [*reversed(one["shape"])]
    elif kind == "rows" and one["shape"]:
        one["shape"] = [10**12, *one["shape"][1:]]
    else:
        one["shape"] = [1, *one["shape"]]
    return json.dumps(index).encode()


def _npy(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[8:10], "little")
    try:
        fields = ast.literal_eval(content[10 : 10 + size].decode("latin1"))
    except (ValueError, SyntaxError):
        return damage(content, rng)
    name = rng.choice(["descr", "shape", "fortran_order"])
    shape = list(fields["shape"]) or [1]
    fields[name] = {
        "descr": rng.choice(
            ["<f4", "<f8", ">f4", "|u1", "<i8", "|O", "<U9", "|S3", "|V8", "<M8[s]", "", "x", 5, [("a", "<f4")], "<c16"]
        ),
        "shape": rng.choice(
            [(), (10**12,), (-1, *shape[1:]), tuple(reversed(shape)), (*shape, 1), ("x",), 3, (2**62, 4), (0,)]
        ),
        "fortran_order": rng.choice([not fields["fortran_order"], 2, None, "x"]),
    }[name]
    text = repr(fields).encode().ljust(size)
    return content[:8] + struct.pack("<H", len(text)) + text + content[10 + size :]


def _zip(content: bytes, rng: random.Random) -> bytes:
    """Change a member's content or name, drop it, double it, or change fields of the archive's own headers."""
    if rng.random() < 0.2:
        return _zip_field(content, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, EOFError):
        return damage(content, rng)
    place = rng.randrange(len(members))
    name, inner, method = members[place]
    kind = rng.choice(["forge", "forge", "forge", "damage", "damage", "rename", "drop", "double", "empty", "deflate"])
    if kind in ("forge", "damage"):
        members[place] = (
            name,
            damage(inner, rng) if name.endswith(".pkl") or kind == "damage" else forge(inner, name, rng),
            method,
        )
    elif kind == "rename":
        members[place] = rng.choice([*NAMES[:4], *(other for other, *_ in members)]) or "x", inner, method
    elif kind == "drop":
        del members[place]
    elif kind == "double":
        members.insert(place, (name, damage(inner, rng), method))
    elif kind == "empty":
        members[place] = name, b"", method
    else:
        members[place] = name, inner, rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    return _zipped(members)


def _zipped(members: list[tuple[str, bytes, int]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, inner, method in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = method
            archive.writestr(info, inner)
    return file.getvalue()


def _zip_field(content: bytes, rng: random.Random) -> bytes:
    """Change a number in one of the headers: sizes, offsets, flags, the method, the number of members."""
    marks = [found.start() for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", content)]
    place = rng.choice(marks) + 4 + 2 * rng.randrange(9)
    data = bytearray(content)
    data[place : place + 2] = rng.choice([b"\0\0", b"\xff\xff", b"\x01\0", b"\x08\0", rng.randbytes(2)])
    return bytes(data)


def _tar(content: bytes, rng: random.Random) -> bytes:
    """Change a member's content, name or type, drop it, or double it."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = [(info, archive.extractfile(info).read()) for info in archive if info.isfile()]  # pyright: ignore
    except (tarfile.TarError, OSError, ValueError):
        return damage(content, rng)
    place = rng.randrange(len(members))
    info, inner = members[place]
    kind = rng.choice(["forge", "forge", "damage", "name", "name", "type", "drop", "double", "add", "size"])
    if kind in ("forge", "damage"):
        members[place] = info, damage(inner, rng) if kind == "damage" else forge(inner, info.name, rng)
    elif kind == "name":
        usable = [name for name in NAMES if name and "\0" not in name and name != "\ud800"]
        info.name = rng.choice([*usable, *(m.name for m, _ in members)])
    elif kind == "type":
        info.type = rng.choice(
            [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, b"x", b"Z"]
        )
        info.linkname = rng.choice(NAMES[:4])
    elif kind == "drop":
        del members[place]
    elif kind == "double":
        members.insert(place, members[place])
    elif kind == "add":
        other = tarfile.TarInfo(f"{info.name.partition('.')[0]}.{rng.choice(['cls', 'json', 'txt', 'png', 'x'])}")
        members.insert(
            place + 1, (other, rng.choice([b"3", b"-1", b"[]", b"{}", b'{"cls": []}', b"", b"9" * 30, b"\xff"]))
        )
    if kind == "size":
        return _tar_field(content, rng)
    return _tarred(members)


def _tarred(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for info, inner in members:
            info.size = len(inner) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(inner))
    return file.getvalue()


def _tar_field(content: bytes, rng: random.Random) -> bytes:
    """Change the size of a member, with a checksum that is right."""
    data = bytearray(content)
    place = rng.choice([found.start() - 257 for found in re.finditer(b"ustar", content)])
    data[place + 124 : place + 136] = rng.choice(
        [b"77777777777\0", b"00000000000\0", b"\x80" + b"\xff" * 11, b"-0000000001\0"]
    )
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = f"{sum(data[place : place + 512]):06o}\0 ".encode()
    return bytes(data)
