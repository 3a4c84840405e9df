# SPDX-License-Identifier: Apache-2.0
"""Files that want to be run, fetched, or to fill the memory, for `test_hostile_files.py`."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GIB = 1 << 30
NOT_INSTALLED = "fl_app_hostile_package"


class Runs:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def write_corpus(folder: Path) -> list[Path]:
    """Write all of them, and return their paths; nothing is to appear in ``folder / "ran"``."""
    folder.mkdir()
    mark = folder / "ran"
    made = {
        **dict(checkpoints(mark)),
        **dict(weights(mark)),
        **dict(archives_of_arrays(mark)),
        **dict(descriptions(mark)),
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in made]


def checkpoints(mark: Path) -> Iterator[tuple[str, bytes]]:
    """PyTorch files, which are pickles within archives, or were."""
    good = saved({"w": torch.ones(64)})
    bomb = pickle.dumps({"w": Runs(mark)})
    yield "code.pt", saved({"w": torch.ones(1), "model": Runs(mark)})
    yield "code_of_old_torch.pt", saved({"w": Runs(mark)}, _use_new_zipfile_serialization=False)
    yield "plain_pickle.pt", bomb
    yield "unknown_module.pt", saved({"model": of_a_package_that_is_not_installed()})
    yield "module.pt", saved({"model": nn.Linear(2, 2), "epoch": 3})
    yield "script.pt", script()
    yield "pickle_before_archive.pt", bomb + good
    yield "two_pickles.pt", archived({"a/data.pkl": bomb, "b/data.pkl": bomb, "a/data/0": b"1234"})
    yield "bytearray.pt", archived({"a/data.pkl": asks_for_memory(), "a/version": b"3\n"})
    yield "nested.pt", archived({"a/data.pkl": b"\x80\x02" + b"(" * 1_000_000, "a/version": b"3\n"})
    yield "packed_storage.pt", packed(good, "/data/0", 4 * GIB)
    yield "packed_pickle.pt", packed(good, "/data.pkl", 4 * GIB)
    yield "overlapping.pt", overlapping(good)
    yield "expanded.pt", saved({"w": torch.ones(1).expand(GIB)})
    yield "sparse.pt", saved({"w": torch.sparse_coo_tensor([[0]], [1.0], (GIB * 1024,))})
    yield "meta.pt", saved({"w": torch.empty(GIB * 1024, device="meta")})
    yield "empty.pt", b""
    yield "picture.pt", b"\x89PNG\r\n\x1a\n" + bytes(100)
    for share in (1, 2, 3):
        yield f"cut_{share}.pt", good[: len(good) * share // 4]


def weights(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Safetensors files: a length, a JSON header, numbers."""
    row = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    empty = {**row, "shape": [0], "data_offsets": [0, 0]}
    eight = bytes(8)
    headers: dict[str, Any] = {
        "negative": {"w": {**row, "shape": [-1, -2]}},
        "fraction": {"w": {**row, "data_offsets": [0.0, 8.0]}},
        "truth": {"w": {**row, "shape": [True, 2]}},
        "endless": {"w": {**row, "shape": [1 << 62] * 60}},
        "many_digits": '{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}}',
        "overflow": {"w": {**row, "shape": [1 << 40, 1 << 40], "data_offsets": [0, 1 << 62]}},
        "overlap": {"w": row, "v": row},
        "gap": {"w": {**row, "shape": [1], "data_offsets": [4, 8]}},
        "backwards": {"w": {**row, "shape": [0], "data_offsets": [8, 0]}},
        "unknown_dtype": {"w": {**row, "dtype": "PICKLE"}},
        "nan": '{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        "twice": '{"w":%s,"w":%s}' % ((json.dumps(row),) * 2),
        "twice_within": '{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        "metadata_list": {"__metadata__": [], "w": row},
        "metadata_number": {"__metadata__": {"format": 1}, "w": row},
        "list": [row],
        "row_list": {"w": [row]},
        "nested": '{"__metadata__":' + '{"a":' * 5000 + "1" + "}" * 5000 + "}",
        "nested_a_little": {"__metadata__": ours(model='{"a":' * 900 + "1" + "}" * 900), "w": row},
        "nested_order": {"__metadata__": ours(order="[" * 100_000), "w": row},
        "other_order": {"__metadata__": ours(order='["v"]'), "w": row},
        "order_of_lists": {"__metadata__": ours(order='[["w"]]'), "w": row},
        "model_list": {"__metadata__": ours(model="[]"), "w": row},
        "control": {"w\x1b[2J\n": row},
        "half_a_pair": '{"\\ud800":' + json.dumps(row) + "}",
        "many_arrays": {"w": row} | {str(n): empty for n in range(99_999)},
    }
    for name, header in headers.items():
        yield f"{name}.safetensors", with_header(header, eight)
    yield "utf16.safetensors", with_header(json.dumps({"w": row}).encode("utf-16"), eight)
    yield "spaces.safetensors", with_header(b"{}" + b" " * (40 << 20), b"")
    for power in (31, 40, 62):
        yield f"length_{power}.safetensors", (1 << power).to_bytes(8, "little") + b"{}"
    good = with_header({"w": row}, eight)
    for size in (0, 7, 9, len(good) - 1):
        yield f"cut_{size}.safetensors", good[:size]
    yield "appended.safetensors", good + b"more"
    yield "pickle.safetensors", pickle.dumps(Runs(mark))
    yield "checkpoint.safetensors", saved({"w": Runs(mark)})
    inner = saved({"w": torch.ones(1), "model": Runs(mark)})
    two = {"w": {"dtype": "U8", "shape": [len(inner)], "data_offsets": [0, len(inner)]}}
    both = with_header(two, inner)
    yield "both.safetensors", both  # whole as weights, and an archive with code for who looks there
    yield "both.pt", both


def archives_of_arrays(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Files in the place of a node's ``reference.npz``."""
    objects = io.BytesIO()
    np.savez(objects, about=np.array([Runs(mark)], object), baseline=np.array([Runs(mark)], object))
    yield "objects.npz", objects.getvalue()
    yield "pickle.npz", pickle.dumps(Runs(mark))
    wide = npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({GIB * 1024},), }}")
    code = npy(f"__import__('os').mkdir({str(mark)!r})")
    about = npy("{'descr': '<U2', 'fortran_order': False, 'shape': (), }") + "{}".encode(
        "utf-32-le"
    )
    yield "wide.npz", archived({"about.npy": about, "baseline.npy": wide})
    yield "code.npz", archived({"about.npy": code, "baseline.npy": code})
    yield (
        "packed.npz",
        packed(archived({"about.npy": about, "baseline.npy": wide}), "about.npy", 4 * GIB),
    )
    yield "nothing.npz", archived({})
    deep = io.BytesIO()
    np.savez(deep, about=np.array("[" * 100_000), baseline=np.zeros((2, 4)))
    yield "nested.npz", deep.getvalue()


def descriptions(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Files in the place of a ``data.yaml``."""
    yield "code.yaml", f"!!python/object/apply:os.mkdir ['{mark}']".encode()
    yield (
        "code_within.yaml",
        f"train: !!python/object/apply:os.mkdir ['{mark}']\nnames: [a]".encode(),
    )
    # Each name stands for nine of the one before it: a billion in ten lines.
    names = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    yield "laughs.yaml", "\n".join(["a0: &a0 [x]", *names, "names: *a9", "train: t"]).encode()
    yield "nested.yaml", b"names: " + b"[" * 20_000


def saved(content: object, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def of_a_package_that_is_not_installed() -> object:
    """Return an object whose class must be imported from a package that nobody has."""
    module = types.ModuleType(NOT_INSTALLED)
    kind = type("Model", (), {"__module__": NOT_INSTALLED})
    module.Model = kind  # type: ignore[attr-defined]
    sys.modules[NOT_INSTALLED] = module
    return kind()


def asks_for_memory() -> bytes:
    """A pickle of {"w": bytearray(2**31 - 1)}, in the opcodes that torch allows."""
    return b"\x80\x02}X\x01\x00\x00\x00wcbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85Rs."


def archived(parts: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def packed(good: bytes, ending: str, size: int) -> bytes:
    """Replace a part of an archive by so many zeros, packed into some megabytes."""
    step = 64 << 20
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(step)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    content = block * (size // step) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in parts if name.endswith(ending))
    file, directory = io.BytesIO(), []
    for part, plain in parts.items():
        method, data, full = (8, content, size) if part == name else (0, plain, len(plain))
        directory.append((part.encode(), method, len(data), full, file.tell()))
        file.write(entry(b"PK\x03\x04", b"", directory[-1]) + part.encode() + data)
    start = file.tell()
    for row in directory:
        file.write(entry(b"PK\x01\x02", b"\x14\x00", row) + row[0])
    length, count = file.tell() - start, len(directory)
    file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, length, start, 0))
    return file.getvalue()


def entry(sign: bytes, made_by: bytes, row: tuple[bytes, int, int, int, int]) -> bytes:
    """A local header, or with `made_by` the directory's; sizes of 4 GiB as good as fit."""
    name, method, size, full, offset = row
    sizes = struct.pack("<3L", 0, size, min(full, 0xFFFFFFFE))
    head = sign + made_by + struct.pack("<5H", 20, 0, method, 0, 0) + sizes
    tail = struct.pack("<2H", len(name), 0)
    return head + tail + (struct.pack("<3H2L", 0, 0, 0, 0, offset) if made_by else b"")


def overlapping(good: bytes) -> bytes:
    """An archive that says a thousand times that the same bytes are another part of it."""
    file = io.BytesIO(good)
    with zipfile.ZipFile(file, "a") as archive:
        part = next(p for p in archive.infolist() if p.filename.endswith("data/0"))
        for number in range(1000):
            again = zipfile.ZipInfo(part.filename.replace("data/0", f"data/{number + 9}"))
            again.header_offset, again.CRC = part.header_offset, part.CRC
            again.file_size = again.compress_size = part.file_size
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    return file.getvalue()


def with_header(header: object, data: bytes) -> bytes:
    text = (
        header
        if isinstance(header, bytes)
        else header
        if isinstance(header, str)
        else json.dumps(header)
    )
    content = text if isinstance(text, bytes) else text.encode()
    return len(content).to_bytes(8, "little") + content + data


def ours(order: str = '["w"]', model: str = "{}") -> dict[str, str]:
    text = f'{{"format": "fl-app-weights/2", "order": {order}, "model": {model}}}'
    return {"fl-app": text}


def npy(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
