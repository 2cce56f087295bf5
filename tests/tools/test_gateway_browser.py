"""A browser as a client of the gateway: the example's page and its decoder, in Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.storage import Schema
from support.example_runs import EXAMPLES
from support.gateways import TIMEOUT_S, gateway

sys.path.insert(0, str(EXAMPLES))
from browser_page import serve_pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.process

KINDS = Schema(
    "kinds",
    {
        "yes": "?",
        "a": "i1",
        "b": "u1",
        "c": "i2",
        "d": "u2",
        "e": "i4",
        "f": "u4",
        "g": "i8",
        "h": "u8",
        "x": "f4",
        "y": "f8",
        "name": "S7",
        "many": "3i8",
        "grid": "(2,3)i2",
    },
)
COUNTED = Schema("counted", {"number": "u8"})
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed: the browser's side is not tested")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        page = browser.new_page()
        page.set_default_timeout(1000 * TIMEOUT_S)
        yield page
        browser.close()


def test_the_page_shows_the_newest_trade_of_each_instrument_and_goes_on(page):
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "browser_page.py"), "120"], stdout=subprocess.PIPE, text=True
    ) as example:
        try:
            assert example.stdout is not None
            page.goto(example.stdout.readline().removeprefix("open ").strip())
            page.wait_for_function("document.querySelectorAll('#trades tr').length === 3")
            assert page.inner_text("#state") == "subscribed"
            texts = page.eval_on_selector_all(
                "#trades tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
            )
            assert sorted(text[0] for text in texts) == ["600036", "600519", "601318"]
            assert all(text[1].startswith("1825.") and int(text[2]) % 100 == 0 and text[3] in "BS" for text in texts)
            shown = int(page.inner_text("#last"))
            page.wait_for_function(f"Number(document.getElementById('last').textContent) > {shown + 50}")
        finally:
            example.send_signal(2)
            example.wait(TIMEOUT_S)
    assert example.returncode == 0


# Subscribes in the page, and keeps what comes as text that has every digit.
SUBSCRIBE = """async ({url, wishes}) => {
    const {subscribe} = await import("./decoder.js");
    const exact = value => typeof value === "bigint" ? value.toString() : Array.isArray(value) ? value.map(exact) : value;
    const whole = row => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, exact(value)]));
    window.got = [];
    window.states = [];
    window.subscription = subscribe(url, wishes, {
        rows: rows => got.push(...rows.map(whole)),
        state: text => states.push(text),
    });
}"""


@pytest.fixture
def pages() -> Iterator[str]:
    server = serve_pages()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def rows_of(count: int) -> Any:
    rows = np.zeros(count, KINDS.payload_dtype)
    number = np.arange(count)
    rows["yes"], rows["a"], rows["b"] = number % 2, -number, 255 - number
    rows["c"], rows["d"] = -300 - number, 65_000 + number
    rows["e"], rows["f"] = -(1 << 31) + number, (1 << 32) - 1 - number
    rows["g"], rows["h"] = -(1 << 63) + number, np.uint64((1 << 64) - 1) - number.astype("u8")
    rows["x"], rows["y"], rows["name"] = number / 4, number / 3, [b"n%d" % n for n in number]
    rows["many"] = (1 << 62) + number[:, None] + np.arange(3)
    rows["grid"] = np.arange(6).reshape(2, 3) - 3
    return rows


def exact(value: Any, kind: str) -> Any:
    if isinstance(value, list):
        return [exact(item, kind) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    return str(value) if kind in ("<i8", "<u8") else value


def test_every_kind_of_field_is_decoded_to_the_last_digit(page, pages, bus_name):
    rows = rows_of(5)
    with Writer(bus_name, [KINDS]) as writer, gateway(bus_name, "--origin", pages) as running:
        page.goto(f"{pages}/decoder.js")
        page.evaluate(SUBSCRIBE, {"url": running.url, "wishes": {"topic": f"{bus_name}/kinds", "from": 1}})
        writer["kinds"].publish_batch(rows)
        page.wait_for_function("got.length === 5")
        found = page.evaluate("got")
        page.evaluate("subscription.close()")
    for at, row in enumerate(found):
        assert row.pop("sequence") == str(at + 1)
        assert int(row.pop("timestamp_ns")) > 1 << 60
        assert row == {name: exact(rows[at][name].tolist(), rows.dtype[name].base.str) for name in rows.dtype.names}


def publish(writer: Writer, numbers: range) -> None:
    for number in numbers:
        writer["counted"].publish(number)


def test_a_page_resumes_without_gap_or_repeat_when_its_connection_breaks(page, pages, bus_name, tmp_path):
    with Writer(bus_name, [COUNTED], data_dir=tmp_path / "data") as writer:
        with gateway(bus_name, "--origin", pages) as running:
            page.goto(f"{pages}/decoder.js")
            wishes = {"topic": f"{bus_name}/counted", "from": 1, "fields": ["number"]}
            page.evaluate(SUBSCRIBE, {"url": running.url, "wishes": wishes})
            publish(writer, range(1, 101))
            page.wait_for_function("got.length >= 50")
            page.evaluate("subscription.socket.close()")
            publish(writer, range(101, 201))
            page.wait_for_function("got.length >= 200")
            port = running.port
        publish(writer, range(201, 301))  # while the gateway is away
        with gateway(bus_name, "--origin", pages, port=port):
            page.wait_for_function("got.length >= 300")
            assert page.evaluate("got.map(row => row.number)") == [str(number) for number in range(1, 301)]
            assert page.evaluate("states.filter(state => state === 'subscribed').length") == 3
            page.evaluate("subscription.close()")


def test_a_page_whose_connection_breaks_before_the_first_row_misses_none(page, pages, bus_name, tmp_path):
    with Writer(bus_name, [COUNTED], data_dir=tmp_path / "data") as writer:
        publish(writer, range(1, 6))
        with gateway(bus_name, "--origin", pages) as running:
            page.goto(f"{pages}/decoder.js")
            page.evaluate(SUBSCRIBE, {"url": running.url, "wishes": {"topic": f"{bus_name}/counted"}})
            page.wait_for_function("states.includes('subscribed')")
            port = running.port
        publish(writer, range(6, 11))
        with gateway(bus_name, "--origin", pages, port=port):
            page.wait_for_function("got.length >= 5")
            assert page.evaluate("got.map(row => row.number)") == [str(number) for number in range(6, 11)]
            page.evaluate("subscription.close()")


def test_a_page_that_is_further_than_the_topic_is_told_and_begins_anew(page, pages, bus_name):
    with Writer(bus_name, [COUNTED]) as writer, gateway(bus_name, "--origin", pages) as running:
        page.goto(f"{pages}/decoder.js")
        page.evaluate(SUBSCRIBE, {"url": running.url, "wishes": {"topic": f"{bus_name}/counted", "from": 1}})
        publish(writer, range(1, 101))
        page.wait_for_function("got.length === 100")
        port = running.port
    with Writer(bus_name, [COUNTED]) as writer:
        publish(writer, range(1, 11))
        with gateway(bus_name, "--origin", pages, port=port):
            page.wait_for_function("got.length >= 110")
            publish(writer, range(11, 201))
            page.wait_for_function("got.length >= 300")
            assert page.evaluate("got.map(row => row.number)") == [str(n) for n in (*range(1, 101), *range(1, 201))]
            told = "another stream: from: sequence 101 is wanted, and the topic ends with 10"
            assert page.evaluate("states.filter(state => state.startsWith('another'))") == [told]
            page.evaluate("subscription.close()")


def test_a_page_that_finds_another_log_is_told_and_begins_anew(page, pages, bus_name, tmp_path):
    with (
        Writer(bus_name, [COUNTED], data_dir=tmp_path / "one") as writer,
        gateway(bus_name, "--origin", pages) as running,
    ):
        page.goto(f"{pages}/decoder.js")
        wishes = {"topic": f"{bus_name}/counted", "from": "earliest"}
        page.evaluate(SUBSCRIBE, {"url": running.url, "wishes": wishes})
        publish(writer, range(1, 11))
        page.wait_for_function("got.length === 10")
        port = running.port
    with Writer(bus_name, [COUNTED], data_dir=tmp_path / "other") as writer:
        publish(writer, range(1, 21))  # it is further than the first one was
        with gateway(bus_name, "--origin", pages, port=port):
            page.wait_for_function("got.length >= 30")
            assert page.evaluate("got.map(row => row.number)") == [str(n) for n in (*range(1, 11), *range(1, 21))]
            assert (
                page.evaluate("states.filter(state => state.startsWith('another stream: it has the log')).length") == 1
            )
            page.evaluate("subscription.close()")


def test_a_page_of_another_origin_gets_nothing(page, pages, bus_name):
    with Writer(bus_name, [KINDS]), gateway(bus_name, "--origin", "https://example.com") as running:
        page.goto(f"{pages}/decoder.js")
        page.evaluate(SUBSCRIBE, {"url": running.url, "wishes": {"topic": f"{bus_name}/kinds"}})
        page.wait_for_function("states.length > 0")
        assert page.evaluate("states[0]").startswith("closed (1006")
        page.evaluate("subscription.close()")
        running.wait_for("refused", status=403)
