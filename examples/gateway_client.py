"""A program on another machine: binary rows over WebSocket, each message decoded by numpy in one call, resumed after a break.

It starts a publisher and a gateway of its own, reads 500 rows, drops the connection in the middle, and goes on behind the last row
that it had. It needs the extra `web`, for the gateway and for `websockets`; a client needs only the latter, and numpy.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from ringmain.bus import Writer
from ringmain.storage import Schema
from websockets.sync.client import connect

WANTED = 500


def read(url: str, topic: str, last: int, until: int) -> tuple[int, int]:
    """Read the rows behind `last` until there is row `until`; the last sequence read, and the sum of the values."""
    total = 0
    with connect(url, compression=None) as socket:
        wishes = {"fields": ["value"], "format": "binary", "from": last + 1}
        socket.send(json.dumps({"op": "subscribe", "id": 1, "topic": topic, **wishes}))
        subscribed = json.loads(socket.recv())
        dtype = np.dtype(subscribed["dtype"])
        while last < until:
            message = socket.recv(decode=False)
            header_bytes, count = int.from_bytes(message[2:4], "little"), int.from_bytes(message[8:12], "little")
            rows = np.frombuffer(message, dtype, count, header_bytes)
            assert rows["sequence"][0] == last + 1
            last, total = int(rows["sequence"][-1]), total + int(rows["value"].sum())
    return last, total


def publish(writer: Writer, stop: threading.Event) -> None:
    number = 0
    while not stop.wait(0.001):
        number += 1
        writer["points"].publish(number * number)


def main() -> None:
    bus = f"gateway-client-{os.getpid()}"
    points, stop = Schema("points", {"value": "u8"}), threading.Event()
    command = [sys.executable, "-m", "ringmain.tools", "gateway", bus, "--port", "0", "--log-format", "json"]
    with (
        tempfile.TemporaryDirectory() as directory,
        Writer(bus, [points], data_dir=directory) as writer,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as gateway,
    ):
        assert gateway.stderr is not None
        port = json.loads(gateway.stderr.readline())["port"]
        publisher = threading.Thread(target=publish, args=(writer, stop))
        publisher.start()
        try:
            url, topic = f"ws://127.0.0.1:{port}/ws", f"{bus}/points"
            broken_at, first = read(url, topic, 0, WANTED // 2)
            time.sleep(0.1)  # rows that are published meanwhile come as well
            last, second = read(url, topic, broken_at, WANTED)
            right = first + second == sum(number * number for number in range(1, last + 1))
            print(
                f"read every row from 1 to {WANTED} and on, in two connections: the sum is {'right' if right else 'WRONG'}"
            )
        finally:
            stop.set()
            publisher.join()
            gateway.terminate()


if __name__ == "__main__":
    main()
