"""Ways to spoil what lies inside a container, which is put together soundly around it again."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from random import Random

from tests.fuzz.mutate import Way, changed_bytes, changed_json


def changed_header(content: bytes, rng: Random) -> bytes:
    """Of a safetensors file: other names, types, shapes and offsets, under the right length."""
    size = int.from_bytes(content[:8], "little")
    header = changed_json(content[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def changed_member(content: bytes, rng: Random) -> bytes:
    """Of a checkpoint of torch: its pickle, in an archive with right checksums."""
    return archive(content, changed_bytes, rng, only="data.pkl" if rng.random() < 0.8 else "")


def compressed(content: bytes, rng: Random) -> bytes:
    """As torch never writes them: what is small on the disk may be large in memory."""
    return archive(content, lambda member, _: member, rng, kind=zipfile.ZIP_DEFLATED)


def archive(content: bytes, way: Way, rng: Random, only: str = "", kind: int = zipfile.ZIP_STORED) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(out, "w", kind) as new:
        for name in old.namelist():
            member = old.read(name)
            new.writestr(zipfile.ZipInfo(name), way(member, rng) if name.endswith(only) else member, kind)
    return out.getvalue()


def changed_chunk(content: bytes, rng: Random) -> bytes:
    """Of a PNG: one chunk, under the right length and checksum."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    if not chunks:
        return changed_bytes(content, rng)
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    chunks[which] = kind, changed_bytes(body, rng)
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(chunks))
    return content[:8] + b"".join(png_chunk(kind, body) for kind, body in chunks)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
