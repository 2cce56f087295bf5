"""Trades in a browser: a page that decodes binary rows, the newest of each instrument five times a second.

Run it, open the address it prints, and end it with Ctrl-C; or say after how many seconds it should end. It needs the extra `web`.
The page is browser/index.html, what it decodes rows with browser/decoder.js.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

from ringmain.bus import Writer
from ringmain.storage import TRADES

INSTRUMENTS = (600519, 601318, 600036)


class Pages(SimpleHTTPRequestHandler):
    """The files of browser/."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve_pages() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, directory=str(Path(__file__).parent / "browser")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    end = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else float("inf"))
    bus = f"browser-page-{os.getpid()}"
    pages = serve_pages()
    origin = f"http://127.0.0.1:{pages.server_port}"
    command = [sys.executable, "-m", "ringmain.tools", "gateway", bus, "--port", "0", "--origin", origin]
    with (
        Writer(bus, [TRADES]) as writer,
        subprocess.Popen([*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True) as gateway,
    ):
        try:
            assert gateway.stderr is not None
            port = json.loads(gateway.stderr.readline())["port"]
            threading.Thread(target=gateway.stderr.read, daemon=True).start()
            asked = urlencode({"gateway": f"ws://127.0.0.1:{port}/ws", "topic": f"{bus}/trades"}, safe=":/")
            print(f"open {origin}/?{asked}", flush=True)
            number = 0
            while time.monotonic() < end:
                number += 1
                price = 18_250_000 + number % 1_000
                quantity, instrument = 100 * (1 + number % 9), INSTRUMENTS[number % 3]
                side = b"B" if number % 2 else b"S"
                writer["trades"].publish(number, 0, time.time_ns(), number, number, price, quantity, instrument, side)
                time.sleep(0.01)
        finally:
            gateway.terminate()
            pages.shutdown()
            pages.server_close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
