"""The smallest valid picture and sound, for tasks that answer with one."""

from __future__ import annotations

import struct
import zlib

PNG_TYPE, WAV_TYPE = "image/png", "audio/wav"


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _tiny_png() -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)  # one grey pixel of eight bits
    pixels = zlib.compress(b"\x00\x80")
    chunks = _chunk(b"IHDR", header), _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _tiny_wav() -> bytes:
    samples = b"\x80" * 8
    form = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)  # PCM, mono, 8 kHz, 8 bits
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


TINY_PNG = _tiny_png()
TINY_WAV = _tiny_wav()
FILES = {"tiny.png": (TINY_PNG, PNG_TYPE), "tiny.wav": (TINY_WAV, WAV_TYPE)}
FILES["tiny.mp4"] = (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "video/mp4")
