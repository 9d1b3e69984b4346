"""WebSocket frames as they come: in pieces, of any size, with control frames among them."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.sinks.mqtt.sockets import WebSocket


@pytest.fixture
def ends() -> Iterator[tuple[WebSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield WebSocket(ours), theirs
    ours.close()
    theirs.close()


def frame(data: bytes, opcode: int = 2, *, final: bool = True) -> bytes:
    first, size = opcode | (0x80 if final else 0), len(data)
    if size < 126:
        return bytes([first, size]) + data
    if size < 65_536:
        return bytes([first, 126]) + size.to_bytes(2, "big") + data
    return bytes([first, 127]) + size.to_bytes(8, "big") + data


def unmasked(sent: bytes) -> list[tuple[int, bytes]]:
    """The frames that a client sent."""
    frames = []
    while sent:
        size, at = sent[1] & 0x7F, 2
        assert sent[1] & 0x80, "a client's frames are masked"
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(sent[2 : 2 + width], "big"), 2 + width
        mask, data = sent[at : at + 4], sent[at + 4 : at + 4 + size]
        frames.append((sent[0] & 15, bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))))
        sent = sent[at + 4 + size :]
    return frames


def drained(ours: WebSocket, most: int = 65_536) -> bytes:
    read = b""
    while True:
        try:
            piece = ours.recv(most)
        except BlockingIOError:
            return read
        if not piece:
            return read
        read += piece


@given(
    sizes=st.lists(st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536]), max_size=4),
    pieces=st.lists(st.integers(1, 40_000), max_size=8),
    most=st.integers(1, 70_000),
)
def test_what_was_sent_is_read_however_it_is_cut(sizes: list[int], pieces: list[int], most: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        reading = WebSocket(ours)
        data = [os.urandom(size) for size in sizes]
        wire = b"".join(frame(one, final=False) + frame(b"ping", 9) for one in data)
        read = b""
        for piece in [*pieces, *[40_000] * 10]:
            theirs.sendall(wire[:piece])
            wire = wire[piece:]
            read += drained(reading, most)

    assert read == b"".join(data)


def test_a_frame_of_100_mb_is_never_in_memory(ends: tuple[WebSocket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(bytes([0x82, 127]) + (100_000_000).to_bytes(8, "big"))
    read = 0
    while read < 100_000_000:
        theirs.send(bytes(min(50_000, 100_000_000 - read)))
        piece = ours.recv(65_536)
        read += len(piece)
        assert len(ours._head) + len(ours._out) < 20
    theirs.sendall(frame(b"next"))

    assert ours.recv(100) == b"next"


def test_a_ping_is_answered_with_what_it_held(ends: tuple[WebSocket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(frame(b"hello", 9) + frame(b"data"))

    assert ours.recv(100) == b"data"
    assert unmasked(theirs.recv(1000)) == [(10, b"hello")]


def test_what_is_sent_is_masked_and_whole_although_the_socket_takes_it_in_parts(
    ends: tuple[WebSocket, socket.socket],
) -> None:
    ours, theirs = ends
    data = os.urandom(2_000_000)
    left, got = data, b""
    while left:
        try:
            left = left[ours.send(left) :]
        except BlockingIOError:
            theirs.sendall(frame(b"", 9))
            assert drained(ours) == b""
            got += theirs.recv(100_000)
    theirs.setblocking(False)
    while True:
        try:
            got += theirs.recv(100_000)
        except BlockingIOError:
            break
    frames = unmasked(got)

    assert b"".join(payload for opcode, payload in frames if opcode == 2) == data
    assert {opcode for opcode, _ in frames} <= {2, 10}


@pytest.mark.parametrize("wire", [frame(b"", 8), frame(b"\x03\xe8bye", 8), b""])
def test_a_close_is_the_end(ends: tuple[WebSocket, socket.socket], wire: bytes) -> None:
    ours, theirs = ends
    theirs.sendall(wire)
    theirs.shutdown(socket.SHUT_WR)

    assert ours.recv(100) == b""


@pytest.mark.parametrize("wire", [b"\x82\x84abcdefgh", b"\x83\x01a", b"\x89\x7e\xff\xff", b"\x8b\x01a"])
def test_what_is_no_frame_of_a_server_ends_the_connection(ends: tuple[WebSocket, socket.socket], wire: bytes) -> None:
    ours, theirs = ends
    theirs.sendall(wire)

    with pytest.raises(ConnectionError):
        ours.recv(100)
