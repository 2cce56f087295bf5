"""The gateway's protocol against a real client: modes, fields, filters, formats, the past and the present without a seam."""

from __future__ import annotations

import itertools
import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.bus.observing import Observer
from ringmain.storage import Schema
from ringmain.tools.gateway.frames import Frame
from support.gateways import TIMEOUT_S, Client, Gateway, gateway, values
from support.logs import wait_until
from websockets.sync.client import connect

pytestmark = pytest.mark.process

TICKS = Schema(
    "ticks", {"instrument": "u4", "price": "i8", "side": "S4", "ratio": "f8", "levels": "3i4"}, key=("instrument",)
)
FIRST = 1 << 62  # beyond what a float holds exactly


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Writer, Gateway]]:
    """A bus with a log and a gateway that offers it. Each test subscribes from what is there when it begins."""
    bus = f"t{os.getpid()}-gateway"
    quiet = Schema("quiet", {"value": "u8"})
    with (
        Writer(bus, [TICKS, quiet], data_dir=tmp_path_factory.mktemp("bus"), slots=1024) as writer,
        gateway(bus) as running,
    ):
        yield writer, running


@pytest.fixture
def ticks(place: tuple[Writer, Gateway]) -> str:
    return f"{place[0].bus}/ticks"


def publish(writer: Writer, count: int = 1, instrument: int | None = None) -> range:
    """Publish rows that tell their sequence; their sequences."""
    first = writer["ticks"].watermarks.published + 1
    rows = np.zeros(count, TICKS.payload_dtype)
    numbers = np.arange(first, first + count)
    rows["instrument"] = numbers % 10 if instrument is None else instrument
    rows["price"], rows["ratio"] = FIRST + numbers, numbers / 4
    rows["side"] = np.where(numbers % 2, b"BUY", b"SELL")
    rows["levels"] = numbers[:, None] + np.arange(3)
    assert writer["ticks"].publish_batch(rows) == first + count - 1
    return range(first, first + count)


def take(client: Client, stream: int, wanted: range) -> list[dict[str, Any] | Frame]:
    """Messages until the last wanted sequence; together they must be exactly these rows, and say so."""
    found: list[int] = []
    messages: list[dict[str, Any] | Frame] = []
    expected = wanted.start
    for message in client.batches(stream):
        first, last, lost = (
            (message.first, message.last, message.lost)
            if isinstance(message, Frame)
            else (message["first"], message["last"], message["lost"])
        )
        assert (first, lost) == (expected, 0)
        expected = last + 1
        found += values(message, "sequence")
        messages.append(message)
        if last >= wanted.stop - 1:
            break
    assert found == list(wanted)
    return messages


def test_rows_come_as_json_for_people(place, ticks):
    writer, running = place
    with Client(running.url) as client:
        subscribed = client.subscribe(ticks)
        assert subscribed["sequence"] == writer["ticks"].watermarks.published
        assert subscribed["schema"] == json.loads(TICKS.to_json())
        (number,) = publish(writer)
        (message,) = take(client, subscribed["stream"], range(number, number + 1))
        assert isinstance(message, dict)
        (row,) = message["rows"]
        assert row["price"] == FIRST + number
        assert row["side"] == ("BUY" if number % 2 else "SELL")
        assert (row["ratio"], row["levels"]) == (number / 4, [number, number + 1, number + 2])


def test_rows_come_as_they_are_in_memory_for_programs(place, ticks):
    writer, running = place
    with Client(running.url) as client:
        subscribed = client.subscribe(ticks, format="binary")
        assert np.dtype(subscribed["dtype"]) == TICKS.dtype
        wanted = publish(writer, 5)
        frames = take(client, subscribed["stream"], wanted)
        rows = np.concatenate([frame.rows for frame in frames if isinstance(frame, Frame)])
        assert rows["price"].tolist() == [FIRST + number for number in wanted]
        assert rows["levels"][-1].tolist() == [wanted[-1], wanted[-1] + 1, wanted[-1] + 2]


def test_fields_asked_for_come_alone_behind_the_stamp(place, ticks):
    writer, running = place
    with Client(running.url) as client:
        binary = client.subscribe(ticks, id=1, fields=["side", "price"], format="binary")
        text = client.subscribe(ticks, id=2, fields=["side", "price"])
        assert binary["dtype"]["names"] == ["sequence", "timestamp_ns", "side", "price"]
        (number,) = publish(writer)
        both = [client.receive(), client.receive()]
        (frame,) = [message for message in both if isinstance(message, Frame)]
        (message,) = [message for message in both if isinstance(message, dict)]
        assert frame.rows["price"].tolist() == [FIRST + number]
        assert (message["stream"], list(message["rows"][0])) == (text["stream"], binary["dtype"]["names"])


def test_only_rows_with_the_keys_and_of_which_the_conditions_are_true_come(place, ticks):
    writer, running = place
    with Client(running.url) as client:
        start = writer["ticks"].watermarks.published
        odd = client.subscribe(ticks, id=1, key={"side": ["BUY"]}, where=[["price", ">", FIRST + start + 10]])
        one = client.subscribe(
            ticks, id=2, key={"instrument": [3, 4]}, where=[["ratio", "<", 1e9], ["side", "!=", "BUY"]]
        )
        wanted = publish(writer, 100)
        found: dict[int, list[int]] = {odd["stream"]: [], one["stream"]: []}
        expected = {
            odd["stream"]: [number for number in wanted if number % 2 and number > start + 10],
            one["stream"]: [number for number in wanted if number % 10 == 4],
        }
        while found != expected:
            message = client.wait_for("rows")
            found[message["stream"]] += values(message, "sequence")
            assert all(found[stream] == expected[stream][: len(found[stream])] for stream in found)


def test_delayed_batches_hold_the_newest_row_of_each_key(place, ticks):
    writer, running = place
    with Client(running.url) as client:
        subscribed = client.subscribe(ticks, mode="delayed", interval=0.2, conflate=["instrument"], format="binary")
        wanted = publish(writer, 100)
        frames: list[Frame] = []
        for frame in client.batches(subscribed["stream"]):
            assert isinstance(frame, Frame)
            assert frame.conflated
            frames.append(frame)
            if frame.last == wanted[-1]:
                break
        newest = {int(row["instrument"]): int(row["sequence"]) for frame in frames for row in frame.rows}
        assert sorted(newest.values()) == list(wanted[-10:])
        assert sum(len(frame.rows) for frame in frames) < 100
        assert frames[0].first == wanted[0]


def test_of_a_conflated_past_as_of_the_present_conditions_look_at_the_newest_rows(place, ticks):
    writer, running = place
    wishes = {"mode": "delayed", "interval": 0.2, "conflate": ["instrument"], "where": [["price", ">=", 100]]}
    rows = np.zeros(4, TICKS.payload_dtype)
    rows["instrument"], rows["price"] = (7, 7, 8, 9), (150, 50, 120, 100)
    with Client(running.url) as present, Client(running.url) as past:
        stream = present.subscribe(ticks, **wishes)["stream"]
        first = writer["ticks"].watermarks.published + 1
        writer["ticks"].publish_batch(rows)
        assert values(next(present.batches(stream)), "instrument") == [8, 9]
        stream = past.subscribe(ticks, **wishes, **{"from": first})["stream"]
        assert values(next(past.batches(stream)), "instrument") == [8, 9]


@pytest.mark.parametrize("form", ["json", "binary"])
def test_from_a_sequence_the_past_comes_and_then_the_present_without_gap_or_repeat(place, ticks, form):
    writer, running = place
    past = publish(writer, 5_000)  # more than the ring holds
    with Client(running.url) as other, Client(running.url) as client:
        other.subscribe(ticks, format=form)  # the stream is there, and in the present
        subscribed = client.subscribe(ticks, format=form, **{"from": past[0]})
        assert subscribed["sequence"] == past[0] - 1
        for _ in range(20):
            publish(writer, 50)
        present = publish(writer, 1)
        take(client, subscribed["stream"], range(past[0], present[-1] + 1))
        more = publish(writer, 10)
        take(client, subscribed["stream"], more)


def test_a_client_that_comes_again_resumes_behind_the_last_row_that_it_had(place, ticks):
    writer, running = place
    first = last = publish(writer, 1)[0]
    found: list[int] = []
    for round in range(5):
        with Client(running.url) as client:
            subscribed = client.subscribe(ticks, format="binary", key={"side": ["BUY"]}, **{"from": last + 1})
            publish(writer, 300)
            for frame in itertools.islice(client.batches(subscribed["stream"]), 1 + round):
                assert isinstance(frame, Frame)
                found += frame.rows["sequence"].tolist()
                last = frame.last
                if len(found) % 7 == 0:
                    publish(writer, 20)
                if last >= writer["ticks"].watermarks.published - 1:
                    break
        publish(writer, 100)
    assert found == [number for number in range(first + 1, last + 1) if number % 2]


def test_a_delayed_subscription_from_a_sequence_has_every_row_once(place, ticks):
    writer, running = place
    past = publish(writer, 3_000)
    with Client(running.url) as client:
        subscribed = client.subscribe(ticks, mode="delayed", interval=0.05, format="binary", **{"from": past[0]})
        for _ in range(10):
            publish(writer, 100)
        present = publish(writer, 1)
        take(client, subscribed["stream"], range(past[0], present[-1] + 1))


@pytest.mark.parametrize("conflate", [None, ["instrument"]], ids=["all", "conflated"])
def test_who_is_further_than_the_stream_that_it_joins_gets_no_row_twice(place, ticks, conflate):
    """The stream hands out an interval, of which the newcomer has read the beginning in the past."""
    writer, running = place
    wishes = {"mode": "delayed", "interval": 0.7, "format": "binary"} | ({"conflate": conflate} if conflate else {})
    with Client(running.url) as other, Client(running.url) as client:
        stream = other.subscribe(ticks, **wishes)["stream"]
        begun = publish(writer, 50)
        assert client.subscribe(ticks, **wishes, **{"from": begun[0]})["stream"] == stream
        assert next(frame.first for frame in client.frames(stream) if frame.last == begun[-1]) >= begun[0]
        rest = publish(writer, 50)
        position = begun[-1]
        for frame in client.frames(stream):  # one, unless an interval ends among these rows
            assert frame.first == position + 1
            kept = [*range(frame.first, frame.last + 1)]
            assert values(frame, "sequence") == (kept[-10:] if conflate else kept)
            position = frame.last
            if position == rest[-1]:
                break
        assert any(frame.last == rest[-1] for frame in other.frames(stream))


def test_identical_subscriptions_of_many_clients_are_one_stream_and_others_are_not(place, ticks):
    writer, running = place
    with Client(running.url) as one, Client(running.url) as two, Client(running.url) as three:
        first = one.subscribe(ticks, id=5, key={"instrument": [1, 2]}, format="binary")
        second = two.subscribe(ticks, id=6, key={"instrument": [2, 1]}, format="binary")
        third = three.subscribe(ticks, id=5, key={"instrument": [1, 2]}, format="json")
        assert first["stream"] == second["stream"] != third["stream"]
        wanted = [number for number in publish(writer, 20) if number % 10 in (1, 2)]
        for client, stream in ((one, first), (two, first), (three, third)):
            found: list[int] = []
            for message in client.batches(stream["stream"]):
                found += values(message, "sequence")
                if len(found) >= len(wanted):
                    break
            assert found == wanted


def test_after_unsubscribed_no_row_comes_and_the_id_can_be_used_again(place, ticks):
    writer, running = place
    with Client(running.url) as client:
        client.subscribe(ticks)
        publish(writer, 10)
        assert client.ask("unsubscribe", id=1)["reason"] == ""
        publish(writer, 10)
        assert client.ask("ping", id=9) == {"type": "pong", "id": 9}
        kept = [client.receive() for _ in range(len(client._kept))]
        assert all(
            isinstance(message, dict) and message["last"] <= writer["ticks"].watermarks.published - 10
            for message in kept
        )
        client.subscribe(ticks)


def test_what_cannot_be_is_told_and_changes_nothing(place, ticks):
    writer, running = place
    bus = writer.bus
    newest = publish(writer)[0]
    with Client(running.url) as client:
        client.subscribe(f"{bus}/quiet", id=1)
        for code, words, facts in (
            ("already", "subscription 1 is there", {"id": 1}),
            ("already", "identical", {"topic": f"{bus}/quiet"}),
            ("not_found", f"no topic '{bus}/nowhere'", {"topic": f"{bus}/nowhere"}),
            ("forbidden", "other/ticks may not be read", {"topic": "other/ticks"}),
            ("bad_request", "topic: address 'ticks': BUS/TOPIC is expected", {"topic": "ticks"}),
            (
                "bad_request",
                "fields: topic 'ticks' has no field 'prise'; it has instrument, price",
                {"fields": ["prise"]},
            ),
            (
                "bad_request",
                "key: instrument: a value of type uint32 is expected, got -1",
                {"key": {"instrument": [-1]}},
            ),
            ("bad_request", "where: levels: an array", {"where": [["levels", "<", 3]]}),
            ("bad_request", "where: price: a number is expected, got 'a'", {"where": [["price", "<", "a"]]}),
            ("bad_request", "where: ratio: no value of type float64", {"where": [["ratio", "<", 10**400]]}),
            ("bad_request", "where: topic 'ticks' has no field '__class__'", {"where": [["__class__", "==", 1]]}),
            ("bad_request", "conflate:", {"mode": "delayed", "conflate": ["ratio"]}),
            ("bad_request", "slow: conflate:", {"slow": {"conflate": ["nothing"]}}),
            ("bad_request", "slow: newest: at most 65536 rows", {"slow": {"newest": 100_000}}),
            ("ahead", f"sequence {newest + 2} is wanted, and the topic ends with {newest}", {"from": newest + 2}),
            ("bad_message", 'interval and conflate are for mode "delayed"', {"interval": 0.1}),
            ("bad_message", "Expected `float` >= 0.02 - at `$.interval`", {"mode": "delayed", "interval": 0.001}),
            ("bad_message", "Invalid enum value 'sideways' - at `$.mode`", {"mode": "sideways"}),
            ("bad_message", "Object contains unknown field `depth`", {"depth": 3}),
            ("bad_message", "`$.from`", {"from": 0}),
        ):
            answer = client.ask("subscribe", **{"id": 2, "topic": ticks, **facts})
            assert (answer["type"], answer["code"]) == ("error", code), answer
            assert words in answer["reason"]
        answer = client.ask("unsubscribe", id=2)
        assert answer["code"] == "unknown_id"
        writer["quiet"].publish(7)
        assert client.wait_for("rows")["rows"][0]["value"] == 7


def test_it_can_be_looked_at_from_outside(place, ticks):
    writer, running = place

    def look(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}{path}", timeout=TIMEOUT_S) as answer:
            return json.load(answer)

    assert look("/health") == {"state": "healthy"}
    with Client(running.url) as client:
        stream = client.subscribe(ticks, mode="delayed")["stream"]
        number = publish(writer)[0]
        client.wait_for("rows")
        shown = look("/metrics")
        assert shown["connections"] >= 1
        assert shown["messages_sent"] >= 2
        (told,) = [told for told in shown["streams"] if told["stream"] == stream]
        assert (told["topic"], told["mode"], told["subscriptions"], told["position"]) == (ticks, "delayed", 1, number)
    wait_until(lambda: not look("/metrics")["streams"], TIMEOUT_S)


def test_a_topic_that_nobody_wants_any_more_is_not_read(place, ticks):
    _, running = place

    def readers() -> list[str]:
        (bus,) = Observer().look(ticks.split("/")[0]).buses
        return [reader.name for topic in bus.topics for reader in topic.readers if topic.topic == TICKS.name]

    wait_until(lambda: not readers(), TIMEOUT_S)
    with Client(running.url) as client, Client(running.url) as other:
        client.subscribe(ticks)
        other.subscribe(ticks, format="binary")
        assert readers() == ["ringmain gateway"]
    wait_until(lambda: not readers(), TIMEOUT_S)


def test_rows_of_a_large_batch_come_in_messages_of_a_size(place, ticks):
    writer, running = place
    with Client(running.url) as client:
        subscribed = client.subscribe(ticks, format="binary", **{"from": 1})
        wanted = range(1, writer["ticks"].watermarks.published + 1)
        frames = take(client, subscribed["stream"], wanted)
        assert max(frame.rows.nbytes for frame in frames if isinstance(frame, Frame)) <= 128 << 10
        assert len(frames) > 1


def test_rows_whose_text_is_far_longer_than_they_are_come_in_messages_of_a_size_too(bus_name):
    flags = Schema("flags", {f"whether_this_or_another_thing_is_so_{number}": "?" for number in range(8)})
    with (
        Writer(bus_name, [flags], slots=1 << 15) as writer,
        gateway(bus_name) as running,
        connect(running.url) as client,  # as it is unless told otherwise: no message above 1 MiB
    ):
        writer["flags"].publish_batch(np.zeros(20_000, flags.payload_dtype))
        client.send(json.dumps({"op": "subscribe", "id": 1, "topic": f"{bus_name}/flags", "from": 1}))
        texts = [client.recv(TIMEOUT_S)]
        while json.loads(texts[-1]).get("last") != 20_000:
            texts.append(client.recv(TIMEOUT_S))
    assert max(map(len, texts)) < 257 << 10
    assert sum(len(json.loads(text)["rows"]) for text in texts[1:]) == 20_000
