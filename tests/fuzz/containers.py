"""Mutations of the content of a container, with corrected lengths and checksums."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from random import Random

from tests.fuzz.mutations import Mutation, mutate_bytes, mutate_json


def mutate_header(content: bytes, rng: Random) -> bytes:
    """Change names, types, shapes or offsets in a safetensors header, and keep its length right."""
    size = int.from_bytes(content[:8], "little")
    header = mutate_json(content[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def mutate_member(content: bytes, rng: Random) -> bytes:
    """Change the pickle in a torch checkpoint, with right checksums around it."""
    return archive(content, mutate_bytes, rng, only="data.pkl" if rng.random() < 0.8 else "")


def compressed(content: bytes, rng: Random) -> bytes:
    """Compress the archive, as torch never does: small on disk, large in memory."""
    return archive(content, lambda member, _: member, rng, kind=zipfile.ZIP_DEFLATED)


def archive(content: bytes, mutation: Mutation, rng: Random, only: str = "", kind: int = zipfile.ZIP_STORED) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(out, "w", kind) as new:
        for name in old.namelist():
            member = old.read(name)
            new.writestr(zipfile.ZipInfo(name), mutation(member, rng) if name.endswith(only) else member, kind)
    return out.getvalue()


def mutate_chunk(content: bytes, rng: Random) -> bytes:
    """Change one chunk of a PNG, with the right length and checksum."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    if not chunks:
        return mutate_bytes(content, rng)
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    chunks[which] = kind, mutate_bytes(body, rng)
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(chunks))
    return content[:8] + b"".join(png_chunk(kind, body) for kind, body in chunks)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
