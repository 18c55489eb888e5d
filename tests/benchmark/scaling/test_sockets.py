"""The bytes of sockets are those that a program writes to them."""

import socket

from lmtrain.benchmark.scaling.sockets import sent_bytes


def test_bytes_of_open_connections_count_once() -> None:
    before = sent_bytes()
    if before is None:  # not Linux
        return
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            sender.sendall(b"x" * 300_000)
            left = 300_000
            while left:
                left -= len(receiver.recv(left))
            receiver.sendall(b"y" * 50)
            assert len(sender.recv(50, socket.MSG_WAITALL)) == 50
            assert sent_bytes() == before + 300_050
    assert sent_bytes() == before
