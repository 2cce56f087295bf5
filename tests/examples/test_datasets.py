"""Real data sets go into rows and come back equal to their files, column by column."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from csv_columns import read_columns
from csv_table import INTEGER, PRICE, TEXT, Table, decimal
from interleave import interleave
from order_book import OrderBook
from other_sets import BTCUSDT, SSE
from ringmain.storage import Schema

DATA = os.environ.get("RINGMAIN_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="RINGMAIN_DATA does not name the folder of market data samples")

WITH_NOISE = {"OrderPrice", "TradePrice", "TradeMoney"}
ROWS = {
    "sse_orders": 149_359,
    "sse_trades": 109_616,
    "btcusdt_trades": 21_313,
    "btcusdt_book_ticker": 66_089,
    "btcusdt_depth_updates": 443_521,
    "btcusdt_depth_snapshot": 2_000,
}


@pytest.fixture(scope="module", params=[SSE, BTCUSDT], ids=["sse", "btcusdt"])
def data_set(request):
    return request.param, request.param.load(Path(DATA or ""))


def stamped(schema: Schema, rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """What a subscriber gets: the rows behind their stamp."""
    full = np.zeros(len(rows), schema.dtype)
    for name in rows.dtype.names or ():
        full[name] = rows[name]
    return full


@needs_data
def test_every_column_comes_back_as_it_stands_in_the_file(data_set):
    source, topics = data_set
    for topic, rows in topics.items():
        assert len(rows) == ROWS[topic]
        file = read_columns(Path(DATA or "") / source.folder / source.files[topic])
        back = source.to_columns(topic, stamped(source.tables[topic].schema, rows))
        assert set(back) == set(file)
        for name, text in file.items():
            if name in WITH_NOISE:
                assert back[name] == [f"{float(value):.2f}" for value in text], name
                assert np.abs(np.array(back[name], float) - np.array(text, float)).max() < 1e-9
            else:
                assert back[name] == list(text), name


@needs_data
def test_a_set_is_one_stream_that_can_go_on_anywhere(data_set):
    source, topics = data_set
    last = 0
    out = {topic: [] for topic in topics}
    for count, (topic, rows) in enumerate(source.in_order(topics)):
        assert rows[source.order][0] >= last
        last = rows[source.order][-1]
        if count < 1_000:
            out[topic].append(rows)
    for topic, rows in source.in_order(topics, {topic: sum(map(len, parts)) for topic, parts in out.items()}):
        out[topic].append(rows)
    for topic, rows in topics.items():
        assert np.array_equal(np.concatenate(out[topic]), rows)


@needs_data
def test_the_five_shares_have_the_events_that_the_set_describes():
    topics = SSE.load(Path(DATA or ""))
    orders, trades = topics["sse_orders"], topics["sse_trades"]
    assert len(orders) + len(trades) == 258_975
    assert len(np.unique(np.concatenate([orders["event"], trades["event"]]))) == 258_975
    assert [(orders["order_type"] == kind).sum() for kind in (2, 10)] == [109_771, 39_588]
    assert [(trades["side"] == side).sum() for side in (0, 1, 2)] == [1_590, 49_517, 58_509]
    assert np.array_equal(trades["price"] * trades["quantity"], trades["money"])


@needs_data
def test_the_books_of_the_five_shares_close_uncrossed():
    topics = SSE.load(Path(DATA or ""))
    books = {instrument: OrderBook() for instrument in SSE.file_blocks}
    for topic, rows in SSE.in_order(topics):
        for row in rows:
            book = books[row["instrument"]]
            if topic == "sse_orders":
                kind, side = b"D" if row["order_type"] == 10 else b"A", b" BS"[row["side"] :][:1]
                book.apply_order(int(row["order_id"]), int(row["price"]), int(row["quantity"]), side, kind)
            else:
                ids = int(row["buy_order_id"]), int(row["sell_order_id"])
                book.apply_trade(*ids, int(row["quantity"]), b"NBS"[row["side"] :][:1])
    closes = {instrument: book.levels(1) for instrument, book in books.items()}
    assert all(bid[0] < ask[0] for bid, _, ask, _ in closes.values())
    assert (closes[b"600536.SH"][0][0], closes[b"600536.SH"][2][0]) == (507_300, 507_400)


@needs_data
@pytest.mark.parametrize(("day", "row_count"), [(0, 27_955), (1, 28_254)])
def test_futures_ticks_come_back_byte_for_byte_and_as_their_csv(day, row_count):
    pytest.importorskip("zstandard", reason="the packed records are zstd-compressed")
    import futures_ticks

    path = Path(DATA or "") / futures_ticks.FOLDER / futures_ticks.FILES[day]
    rows = futures_ticks.load_ticks(path)["futures_ticks"]
    assert len(rows) == row_count
    full = stamped(futures_ticks.TICKS, rows)
    assert futures_ticks.to_records(full) == futures_ticks.read_records(path)
    back = futures_ticks.to_columns(full)
    file = read_columns(path.with_suffix(".csv.gz"))
    assert set(back) == set(file)
    for name, text in file.items():
        assert back[name] == list(text), name
    for levels in ("bid_prices", "ask_prices", "bid_qty", "ask_qty"):
        assert not rows[levels][:, 1:].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:10], "10 bytes are too few"),
        (lambda data: b"?" + data[1:], "magic"),
        (lambda data: data[:-1], "follow it"),
        (lambda data: data[:20] + b"\0" + data[21:], "byte 20"),
    ],
)
def test_a_damaged_tick_file_is_refused_with_the_reason(tmp_path, change, words):
    zstandard = pytest.importorskip("zstandard", reason="the packed records are zstd-compressed")
    import futures_ticks

    frame = zstandard.ZstdCompressor().compress(bytes(range(201)) * 4)
    path = tmp_path / "ticks.dsb"
    path.write_bytes(change(struct.pack("<8sHHQ", b"&^%$#@!\0", 24, 2, len(frame)) + frame))
    with pytest.raises(ValueError, match=words) as raised:
        futures_ticks.read_records(path)
    assert str(path) in str(raised.value)


def test_packed_ticks_of_no_file_round_trip(tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="the packed records are zstd-compressed")
    import futures_ticks

    records = np.random.default_rng(3).bytes(402 * 5)
    frame = zstandard.ZstdCompressor().compress(records)
    path = tmp_path / "ticks.dsb"
    path.write_bytes(struct.pack("<8sHHQ", b"&^%$#@!\0", 24, 2, len(frame)) + frame)
    assert futures_ticks.to_records(futures_ticks.load_ticks(path)["futures_ticks"]) == records


SHORT = Table(
    Schema("short", {"number": "u4", "price": "i8", "size": "i8", "name": "S8"}),
    {"n": ("number", INTEGER), "p": ("price", PRICE), "q": ("size", decimal(3)), "name": ("name", TEXT)},
    {"x": "same"},
)


def write_csv(path, *lines):
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    return path


def test_a_table_gives_back_what_it_read(tmp_path):
    lines = "n,p,x,q,name", "7,15.929999999999999,same,0.010,五", "8,1801,same,61.500,b"
    path = write_csv(tmp_path / "t.csv.gz", *lines)
    rows = SHORT.load(path)
    assert rows.tolist() == [(7, 159_300, 10, "五".encode()), (8, 18_010_000, 61_500, b"b")]
    assert SHORT.to_columns(rows) == {
        "n": ["7", "8"],
        "p": ["15.93", "1801.00"],
        "q": ["0.010", "61.500"],
        "name": ["五", "b"],
        "x": ["same", "same"],
    }


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("n,p,x,q", "7,1,same,0.010"), "expected"),
        (("n,p,x,q,name", "7,1,other,0.010,a"), "column x holds 'other'"),
        (("n,p,x,q,name", "7,1,same,0.01,a"), "column q: '0.01' is not a positive number with 3 decimal places"),
        (("n,p,x,q,name", "7,1,same,-0.010,a"), "column q: '-0.010' is not a positive number"),
        (("n,p,x,q,name", "7,1.234,same,0.010,a"), "column p: '1.234' is not a multiple of 0.01"),
        (("n,p,x,q,name", "7,nan,same,0.010,a"), "column p: 'nan' is not a multiple of 0.01"),
        (("n,p,x,q,name", "7,1,same,0.010,a", "8,1,same,0.010,longer than it"), "'longer than it' does not fit name"),
        (("n,p,x,q,name", "4294967296,1,same,0.010,a"), "column n: '4294967296' does not fit number"),
        (("n,p,x,q,name", "seven,1,same,0.010,a"), "column n: invalid literal"),
    ],
)
def test_a_file_that_is_not_as_declared_is_refused_with_the_column(tmp_path, lines, words):
    path = write_csv(tmp_path / "t.csv.gz", *lines)
    with pytest.raises(ValueError, match=words) as raised:
        SHORT.load(path)
    assert str(path) in str(raised.value)


def test_topics_interleave_by_number_and_the_first_named_goes_first():
    schema = Schema("numbers", {"n": "u4"})

    def rows(*numbers):
        return np.array([(n,) for n in numbers], schema.payload_dtype)

    topics = {"a": rows(1, 2, 5), "b": rows(2, 3, 6), "none": rows()}
    keyed = {topic: (some, some["n"]) for topic, some in topics.items()}
    assert [(topic, run["n"].tolist()) for topic, run in interleave(keyed)] == [
        ("a", [1, 2]),
        ("b", [2, 3]),
        ("a", [5]),
        ("b", [6]),
    ]
    rest = interleave(keyed, {"a": 3, "b": 1})
    assert [(topic, run["n"].tolist()) for topic, run in rest] == [("b", [3]), ("b", [6])]
    assert list(interleave({"none": keyed["none"]})) == []
