"""What paho reads of a broker's socket comes in large pieces, and nothing of it stays behind."""

import socket
from collections.abc import Iterator

import pytest

from bace_bridge.sinks.mqtt.sockets import BufferedSocket

Pair = tuple[BufferedSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, broker = socket.socketpair()
    ours.setblocking(False)
    with ours, broker:
        yield BufferedSocket(ours), broker


def test_all_that_has_come_is_read_at_once_and_given_out_as_it_is_asked_for(pair: Pair) -> None:
    sock, broker = pair
    broker.sendall(b"@\x02\x00\x01@\x02\x00\x02")
    assert [sock.recv(1), sock.recv(1), sock.recv(2)] == [b"@", b"\x02", b"\x00\x01"]
    assert sock.pending() == 4, "the socket itself is not readable any more"
    assert sock.recv(100) == b"@\x02\x00\x02"
    assert sock.pending() == 0


def test_nothing_to_read_and_the_end_are_what_the_socket_says(pair: Pair) -> None:
    sock, broker = pair
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    broker.sendall(b"ab")
    broker.close()
    assert [sock.recv(1), sock.recv(5), sock.recv(1)] == [b"a", b"b", b""]


def test_more_than_a_piece_comes_in_its_order(pair: Pair) -> None:
    sock, broker = pair
    sent = bytes(range(256)) * 300
    broker.setblocking(False)
    left, found = sent, b""
    while len(found) < len(sent):
        if left:
            left = left[broker.send(left) :]
        found += sock.recv(1000)
    assert found == sent


def test_what_tls_has_decrypted_counts() -> None:
    class Tls(socket.socket):
        def pending(self) -> int:
            return 7

    with Tls() as below:
        assert BufferedSocket(below).pending() == 7
