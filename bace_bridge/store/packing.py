"""What is large is stored compressed: datapoints take a sixth of their room and of a memory card's wear."""

import zlib

PACKED_FROM = 2048
"""Bytes from which on it is compressed: session events stay readable for people."""

_MARK = b"\0z"
"""Neither JSON nor a map of MessagePack begins so."""

_LEVEL = 1


def pack(data: bytes) -> bytes:
    return _MARK + zlib.compress(data, _LEVEL) if len(data) >= PACKED_FROM else data


def unpack(data: bytes) -> bytes:
    return zlib.decompress(data[len(_MARK) :]) if data.startswith(_MARK) else data
