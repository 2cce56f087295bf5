"""Who gets in, how far, and what becomes of those who send what is none of the protocol."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.tools.exit_codes import FAILED, MISSING, OK, USAGE
from ringmain.tools.gateway.table import TokenError, load_tokens
from ringmain.tools.gateway.tokens import find_token
from support.command import ringmain
from support.gateways import TIMEOUT_S, Client, Gateway, gateway, handshake, values
from support.logs import wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.process

SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
FUZZ_ROUNDS = 3000 if os.environ.get("RINGMAIN_NIGHTLY") else 60
POINTS = Schema("points", {"value": "u8"})
OTHERS = Schema("others", {"value": "u8"})


class Guarded:
    """A bus, a gateway before it that wants tokens and allows little, and those tokens."""

    def __init__(self, writer: Writer, running: Gateway, tokens: dict[str, str]) -> None:
        self.writer, self.gateway, self.tokens = writer, running, tokens
        self.topic = f"{writer.bus}/points"

    def connect(self, name: str | None, **options: Any) -> Client:
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name is not None else {}
        return Client(self.gateway.url, additional_headers=headers, **options)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    bus, folder = f"t{os.getpid()}-guarded", tmp_path_factory.mktemp("guarded")
    tokens: dict[str, str] = {}
    with (folder / "tokens.toml").open("wb") as file:
        for name, pattern in (("all", f"{bus}/*"), ("points", f"{bus}/poin*"), ("crowd", "*")):
            made = ringmain("token", name, "--topic", pattern)
            tokens[name] = made.stderr.decode().split()[-1]
            file.write(made.stdout)
    config = folder / "ringmain.toml"
    config.write_text(
        f'[bus.{bus}]\ntopics.points.fields.value = "u8"\n'
        '[gateway]\nport = 0\ntokens = "tokens.toml"\norigins = ["https://example.com"]\n'
        'message_bytes_max = "2 KiB"\nmessages_per_s = 1\nmessages_burst = 30\nsubscriptions_max = 3\nauthenticate_time = "1 s"\n'
        "connections_max = 12\nconnections_per_address_max = 10\nconnections_per_token_max = 5\n"
    )
    with Writer(bus, [POINTS, OTHERS]) as writer:
        running = Gateway("--config", str(config))
        try:
            yield Guarded(writer, running, tokens)
        finally:
            running.process.kill()
            running.wait()
        assert not [line for line in running.lines if line["level"] == "error"]  # no defect of ours came to light
    for left in Path("/dev/shm").glob(f"ringmain.{bus}*"):
        left.unlink()


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_shown_in_the_header_as_a_subprotocol_or_in_the_first_message(guarded):
    with guarded.connect("all") as client:
        client.subscribe(guarded.topic)
    with Client(guarded.gateway.url, subprotocols=["ringmain.1", f"token.{guarded.tokens['all']}"]) as client:
        assert client.connection.subprotocol == "ringmain.1"
        client.subscribe(guarded.topic)
    with guarded.connect(None) as client:
        assert client.ask("authenticate", token=guarded.tokens["all"]) == {"type": "authenticated", "name": "all"}
        client.subscribe(guarded.topic)


def test_a_wrong_token_is_refused_wherever_it_is_shown(guarded):
    for options in (
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"subprotocols": ["ringmain.1", "token.wrong"]},
        {"subprotocols": ["ringmain.1", "token."]},
    ):
        with pytest.raises(InvalidStatus) as refused:
            Client(guarded.gateway.url, **options)
        assert refused.value.response.status_code == 401
    with guarded.connect(None) as client:
        client.send("authenticate", token="wrong")
        assert client.closed() == (4401, "a known token is expected first")


def test_without_a_token_nothing_can_be_asked_and_the_url_is_no_place_for_one(guarded):
    for url in (guarded.gateway.url, f"{guarded.gateway.url}?token={guarded.tokens['all']}"):
        with Client(url) as client:
            client.send("subscribe", id=1, topic=guarded.topic)
            assert client.closed()[0] == 4401
    with guarded.connect(None) as client:
        assert client.closed() == (4401, "no token was shown in time")


def test_a_token_reads_the_topics_of_its_patterns_and_no_others(guarded):
    with guarded.connect("points") as client:
        client.subscribe(guarded.topic)
        for topic in (f"{guarded.writer.bus}/others", f"{guarded.writer.bus}/nowhere", "elsewhere/points"):
            assert client.ask("subscribe", id=2, topic=topic)["code"] == "forbidden"
    with guarded.connect("crowd") as client:  # may read all that is offered; that is this bus
        assert client.ask("subscribe", id=2, topic="elsewhere/points")["code"] == "forbidden"


def test_figures_are_for_those_with_a_token(guarded):
    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{guarded.gateway.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert status("/health") == 200
    assert status("/metrics") == status("/metrics", Authorization="Bearer wrong") == 401
    assert status("/metrics", Authorization=f"Bearer {guarded.tokens['points']}") == 200
    assert status("/") == 404


# --- origins ----------------------------------------------------------------------------------------------------------


def refused_status(url: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refused, Client(url, **options):
        pass
    return refused.value.response.status_code


def test_pages_of_foreign_origins_may_not_connect(guarded):
    port = guarded.gateway.port
    for welcome in ("https://example.com", f"http://127.0.0.1:{port}"):
        with guarded.connect("all", origin=welcome):
            pass
    for foreign in (
        "https://evil.example",
        f"http://127.0.0.1:{port + 1}",
        "https://example.com.evil.example",
        "null",
        "http://[",
    ):
        headers = {"Authorization": f"Bearer {guarded.tokens['all']}"}
        assert refused_status(guarded.gateway.url, origin=foreign, additional_headers=headers) == 403


def test_without_tokens_a_page_cannot_pretend_that_this_machine_is_its_own_host(bus_name):
    with Writer(bus_name, [POINTS]), gateway(bus_name) as running:
        for host in ("evil.example", "["):
            with socket.create_connection(("127.0.0.1", running.port), TIMEOUT_S) as raw:
                raw.sendall(handshake(host, f"Origin: http://{host}\r\n"))
                assert b" 403 " in raw.recv(4096)
        with Client(running.url, origin=f"http://127.0.0.1:{running.port}") as client:
            client.subscribe(f"{bus_name}/points")


def test_a_program_may_connect_by_whatever_name_the_machine_has(bus_name):
    with Writer(bus_name, [POINTS]), gateway(bus_name, "--host", "0.0.0.0", "--open") as running:
        for host in ("desk.example", f"desk.example:{running.port}"):
            with socket.create_connection(("127.0.0.1", running.port), TIMEOUT_S) as raw:
                raw.sendall(handshake(host))
                assert b" 101 " in raw.recv(4096)


def test_without_tokens_it_listens_on_this_machine_only_unless_it_is_told_to_be_open(bus_name, tmp_path):
    refused = ringmain("gateway", bus_name, "--host", "0.0.0.0")
    assert refused.returncode == USAGE
    assert "without tokens it listens on this machine only, not on 0.0.0.0" in refused.stderr.decode()
    with (
        Writer(bus_name, [POINTS]),
        gateway(bus_name, "--host", "0.0.0.0", "--open") as running,
        Client(running.url) as client,
    ):
        client.subscribe(f"{bus_name}/points")


# --- limits -----------------------------------------------------------------------------------------------------------


def test_there_are_so_many_connections_of_a_token_of_an_address_and_in_all(guarded):
    url = guarded.gateway.url
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(guarded.connect("crowd"))
        headers = {"Authorization": f"Bearer {guarded.tokens['crowd']}"}
        assert refused_status(url, additional_headers=headers) == 429
        with guarded.connect(None) as client:
            client.send("authenticate", token=guarded.tokens["crowd"])
            assert client.closed() == (4429, "too many connections with this token")
        for _ in range(5):
            stack.enter_context(guarded.connect("all"))
        assert refused_status(url, additional_headers={"Authorization": f"Bearer {guarded.tokens['points']}"}) == 429
        for _ in range(2):
            stack.enter_context(guarded.connect("points", source_address=("127.0.0.2", 0)))
        assert refused_status(url, additional_headers=headers, source_address=("127.0.0.3", 0)) == 503
    wait_until(lambda: can_connect(guarded), TIMEOUT_S)  # those who have gone do not count


def connections(guarded: Guarded) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{guarded.gateway.port}/metrics", headers={"Authorization": f"Bearer {guarded.tokens['all']}"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.load(answer)["connections"]


def can_connect(guarded: Guarded) -> bool:
    try:
        guarded.connect("crowd").close()
    except InvalidStatus:
        return False
    return True


def test_a_client_has_so_many_subscriptions(guarded):
    with guarded.connect("all") as client:
        for id in range(3):
            client.subscribe(guarded.topic, id=id, where=[["value", ">", id]])
        assert client.ask("subscribe", id=3, topic=guarded.topic)["code"] == "limit"
        client.ask("unsubscribe", id=0)
        client.subscribe(guarded.topic, id=3)


def test_who_sends_too_much_is_cut_off_and_nobody_else_is(guarded):
    with guarded.connect("all") as other, guarded.connect("all") as client:
        stream = other.subscribe(guarded.topic)["stream"]
        with contextlib.suppress(ConnectionClosed):  # it may be before all are sent
            for id in range(40):
                client.send("ping", id=id)
        assert client.closed() == (4429, "too many messages")
        guarded.writer["points"].publish(1)
        assert values(next(other.batches(stream)), "value") == [1]
    with guarded.connect("all") as client:
        client.send("ping", id=1, more="x" * 2048)
        assert client.closed()[0] == 1009


# --- what is none of the protocol -----------------------------------------------------------------------------------


def raw_client(guarded: Guarded) -> socket.socket:
    """Connected, with a token; whatever is sent then comes from no library."""
    raw = socket.create_connection(("127.0.0.1", guarded.gateway.port), TIMEOUT_S)
    raw.sendall(handshake(f"127.0.0.1:{guarded.gateway.port}", f"Authorization: Bearer {guarded.tokens['all']}\r\n"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += raw.recv(4096)
    assert b" 101 " in answer
    return raw


def frame(kind: int, payload: bytes, *, mask: bool = True) -> bytes:
    assert len(payload) < 126
    return bytes([0x80 | kind, (0x80 if mask else 0) | len(payload)]) + (bytes(4) if mask else b"") + payload


def close_code(raw: socket.socket) -> int:
    """Of the close frame that comes, whatever comes before; 0 where the connection ends without one."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := raw.recv(4096):
            data += part
            while len(data) >= 2 and len(data) >= 2 + data[1]:
                if data[0] & 15 == 8:
                    return struct.unpack_from("!H", data, 2)[0]
                data = data[2 + data[1] :]
    return 0


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xff" * 100, 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
        (frame(1, b"{}", mask=False), 1002),
        (frame(3, b"{}"), 1002),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(2, b"{}"), 1003),
        (bytes([0x81, 0xFF]) + (1 << 40).to_bytes(8) + bytes(4), 1009),
        (b"\x01\xfe" + (1500).to_bytes(2) + bytes(4) + b" " * 1500 + b"\x80\xfe" + (1500).to_bytes(2) + bytes(4), 1009),
    ],
    ids=["noise", "http", "unmasked", "opcode", "utf8", "binary", "oversized", "oversized_in_parts"],
)
def test_who_sends_garbage_is_cut_off_with_a_code_that_says_why(guarded, sent, code):
    with guarded.connect("all") as other, raw_client(guarded) as raw:
        stream = other.subscribe(guarded.topic)["stream"]
        raw.sendall(sent)
        assert close_code(raw) == code
        guarded.gateway.wait_for("disconnected", code=code, level="warning")
        guarded.writer["points"].publish(5)
        assert values(next(other.batches(stream)), "value") == [5]


@pytest.mark.parametrize("kind", [0, 9, 10], ids=["continuation", "ping", "pong"])
def test_who_sends_too_many_frames_of_any_kind_is_cut_off_and_nobody_else_is(guarded, kind):
    with guarded.connect("all") as other, raw_client(guarded) as raw:
        stream = other.subscribe(guarded.topic)["stream"]
        raw.sendall(b"\x01\x80" + bytes(4))  # a message begins; more of it may come, and control frames between
        with contextlib.suppress(OSError):  # it may be before all are sent
            for _ in range(400):
                raw.sendall(bytes([0x80 | kind if kind else 0, 0x80]) + bytes(4))
        assert close_code(raw) == 4429
        guarded.gateway.wait_for("disconnected", code=4429, reason="too many messages", level="warning")
        guarded.writer["points"].publish(9)
        assert values(next(other.batches(stream)), "value") == [9]


def test_text_that_is_no_message_is_answered_and_changes_nothing(guarded):
    with guarded.connect("all") as client:
        stream = client.subscribe(guarded.topic)["stream"]
        for text, id in (
            ("", None),
            ("nonsense", None),
            ("[" * 1000, None),
            ('{"op": "fly", "id": 4}', 4),
            ('{"op": "ping", "id": "x"}', None),
        ):
            client.connection.send(text)
            answer = client.wait_for("error")
            assert (answer["code"], answer["id"]) == ("bad_message", id), text
        guarded.writer["points"].publish(6)
        assert values(next(client.batches(stream)), "value") == [6]


def test_half_a_frame_holds_nobody_up_and_its_rest_is_still_understood(guarded):
    with guarded.connect("all") as other, raw_client(guarded) as raw:
        whole = frame(1, b'{"op": "ping", "id": 12}')
        raw.sendall(whole[:9])
        stream = other.subscribe(guarded.topic)["stream"]
        guarded.writer["points"].publish(7)
        assert values(next(other.batches(stream)), "value") == [7]
        raw.sendall(whole[9:])
        assert json.loads(raw.recv(4096)[2:]) == {"type": "pong", "id": 12}
        raw.sendall(whole[:5])  # and it goes, in the middle of one
    with guarded.connect("all") as client:
        client.subscribe(guarded.topic)


def test_whatever_clients_send_the_others_go_on(guarded):
    """Valid frames, damaged at random: RINGMAIN_SEED chooses others."""
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    messages = [
        b'{"op": "subscribe", "id": 1, "topic": "%s", "from": 1, "format": "binary"}' % guarded.topic.encode(),
        b'{"op": "ping", "id": 7}',
        b'{"op": "unsubscribe", "id": 1}',
    ]
    with guarded.connect("all") as other:
        stream = other.subscribe(guarded.topic)["stream"]
        for round in range(FUZZ_ROUNDS):
            with raw_client(guarded) as raw:
                for _ in range(choice.randrange(1, 8)):
                    sent = bytearray(frame(choice.choice([1, 1, 1, 2, 8, 9, 10, 0]), choice.choice(messages)))
                    for _ in range(choice.randrange(3)):
                        sent[choice.randrange(len(sent))] = choice.randrange(256)
                    with contextlib.suppress(OSError):
                        raw.sendall(sent[: choice.choice([len(sent), len(sent), choice.randrange(len(sent))])])
                guarded.writer["points"].publish(round)
            assert values(next(other.batches(stream)), "value") == [round]
            wait_until(lambda: connections(guarded) <= 2, TIMEOUT_S)  # or it would be too many, and not the garbage


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n",
    ],
    ids=["first", "second", "body"],
)
def test_half_a_request_holds_a_connection_for_a_while_only(guarded, whole):
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), TIMEOUT_S) as raw:
        if whole:
            raw.sendall(whole)
            assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")
        raw.sendall(b"GET /ws HTTP/1.1\r\nHost: 127")
        assert close_code(raw) == 0  # cut off
    assert not guarded.gateway.rest, "no traceback was logged"


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_with_a_certificate_it_speaks_tls_only(bus_name, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", *files],
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with (
        Writer(bus_name, [POINTS]) as writer,
        gateway(bus_name, "--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")) as running,
    ):
        with Client(running.url.replace("ws:", "wss:"), ssl=trusting) as client:
            stream = client.subscribe(f"{bus_name}/points")["stream"]
            writer["points"].publish(8)
            assert values(next(client.batches(stream)), "value") == [8]
        with pytest.raises(Exception, match=r"did not receive a valid HTTP response|closed|reset"):
            Client(running.url)


@pytest.mark.parametrize(
    ("there", "code", "words"),
    [
        ((), MISSING, "cert.pem: No such file or directory"),
        (("cert.pem",), MISSING, "key.pem: No such file or directory"),
        (("cert.pem", "key.pem"), FAILED, "cert.pem, key.pem: a certificate and its key are expected, in PEM"),
    ],
    ids=["no_cert", "no_key", "no_pem"],
)
def test_a_certificate_that_cannot_be_used_is_named_and_it_is_never_ready(tmp_path, monkeypatch, there, code, words):
    monkeypatch.chdir(tmp_path)
    for name in there:
        Path(name).write_text("neither\n")
    done = ringmain("gateway", "some", "--cert", "cert.pem", "--key", "key.pem", "--port", "0")
    assert (done.returncode, done.stderr.decode()) == (code, f"ringmain: {words}\n")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "topics"),
    [
        (("--topic", "exchange/*", "--topic", "other/quotes"), ("exchange/*", "other/quotes")),
        (("--topic", '"quoted"'), ('"quoted"',)),
        ((), ("*",)),
    ],
    ids=["two", "quoted", "every"],
)
def test_a_token_made_is_of_the_form_that_the_gateway_reads(tmp_path, options, topics):
    made = ringmain("token", "Dash-board_1", *options)
    assert made.returncode == OK
    text = made.stderr.decode().split()[-1]
    assert text not in made.stdout.decode()
    (tmp_path / "tokens.toml").write_bytes(made.stdout)
    (token,) = load_tokens(tmp_path / "tokens.toml")
    assert (token.name, token.topics) == ("Dash-board_1", topics)
    assert find_token([token], text) is token


def test_the_help_of_a_token_says_that_it_is_for_every_topic_unless_told():
    assert "without it: every topic" in " ".join(ringmain("token", "--help").stdout.decode().replace("│", " ").split())


@pytest.mark.parametrize("name", ["my dash", 'bad"name', "a.b", "é", ""])
def test_a_token_s_name_is_what_toml_takes_without_quotes_wherever_it_stands(tmp_path, name):
    made = ringmain("token", name)
    words = f"token name {name!r}: letters (a to z), digits, - and _ are expected"
    assert (made.returncode, made.stdout, made.stderr.decode()) == (USAGE, b"", f"ringmain: {words}\n")
    path = tmp_path / "tokens.toml"
    path.write_text(f'[tokens.{json.dumps(name)}]\nsha256 = "{"0" * 64}"\n')
    with pytest.raises(TokenError) as refused:
        load_tokens(path)
    assert refused.value.expected == words


def test_an_empty_file_of_tokens_says_what_is_expected(tmp_path):
    (tmp_path / "tokens.toml").touch()
    done = ringmain("gateway", "some", "--tokens", tmp_path / "tokens.toml")
    assert done.returncode == FAILED
    assert "tokens.toml: tokens: at least one token; `ringmain token NAME` makes one" in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "buses to offer are expected, such as `ringmain gateway exchange`, or --config FILE"),
        (("some", "--config", "ringmain.toml"), "buses, or --config FILE, are expected, not both"),
        (
            (
                "--tokens",
                "t.toml",
                "--config",
                "ringmain.toml",
                "--port",
                "8765",
                "--open",
            ),  # also where it is the default
            "--config says all of it: leave out --port, --tokens, --open",
        ),
    ],
    ids=["neither", "both", "options"],
)
def test_either_buses_and_options_or_a_configuration_say_what_it_does(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("ringmain.toml").write_text("[bus.some]\ntopics.trades = {}\n[gateway]\nport = 70000\n")  # it is not looked at
    done = ringmain("gateway", *arguments, "--log-format", "json")
    assert (done.returncode, done.stderr.decode()) == (USAGE, f"ringmain: {words}\n")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('port = "x"', "line 4: gateway.port: Expected `int | null`, got `str`"),
        ("port = 70000", "line 4: gateway.port: 0 to 65535 is expected"),
        ('host = "0.0.0.0"', "line 4: gateway.host: without tokens it listens on this machine only"),
        ('cert = "nowhere.pem"', "line 4: gateway.cert: a file that can be read; /"),
        ('cert = "nowhere.pem"', "/nowhere.pem: No such file or directory"),
        ('tokens = "nowhere.toml"', "line 4: gateway.tokens: a file that can be read; /"),
        ('queue_bytes = "1 kB"', "line 4: gateway.queue_bytes: at least 1 MiB is expected"),
        ('tokens.a.sha256 = "12"', "line 4: gateway.tokens.a: sha256: 64 lower-case hex digits are expected"),
        ("tokens = {}", "line 4: gateway.tokens: at least one token"),
        ("speed = 3", "gateway.speed: unknown here"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_its_place(tmp_path, table, words):
    config = tmp_path / "ringmain.toml"
    config.write_text(f'[bus.some]\ntopics.points.fields.value = "u8"\n[gateway]\n{table}\n')
    done = ringmain("gateway", "--config", config)
    assert done.returncode == FAILED
    assert words in done.stderr.decode()
