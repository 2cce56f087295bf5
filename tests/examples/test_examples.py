"""Every small example runs to its end, shows what it says, and leaves nothing behind."""

import re
import tomllib
from pathlib import Path

import pytest
from support.example_runs import EXAMPLES, TIME_LIMIT_S, Run, run_example, segments_of

pytestmark = [pytest.mark.process, pytest.mark.timeout(TIME_LIMIT_S + 30)]


def lines_of(run: Run) -> list[str]:
    """What a run printed, once it is known to have gone well."""
    assert (run.code, run.errors, run.left) == (0, "", []), run
    return run.output.splitlines()


def test_hello_reads_the_three_trades_that_were_published():
    assert lines_of(run_example("hello.py")) == [
        "1: 100 of 600519 at 1825.00",
        "2: 200 of 600519 at 1825.00",
        "3: 300 of 600519 at 1825.00",
    ]


def test_a_late_joiner_reads_every_record_once_the_old_ones_from_the_log():
    joined, read, sources, verdict = lines_of(run_example("late_joiner.py"))
    assert joined == "published 10,000 records, 1,024 of which the ring holds"
    assert read == "read 20,000 records, 0 lost, up to sequence 20,000"
    from_log, from_ring = (
        int(number.replace(",", "")) for number in re.findall(r"[\d,]+(?= came| from the ring)", sources)
    )
    assert from_log >= 10_000 - 1_024
    assert from_log + from_ring == 20_000
    assert verdict == "the sum is right"


def test_replay_reads_the_parts_that_were_asked_for():
    assert lines_of(run_example("replay.py")) == [
        "everything: 1 to 2000, prices 10000 to 20999",
        "from 501, up to 600: 501 to 600, prices 10500 to 10599",
        "before noon: 1 to 1000, prices 10000 to 10999",
        "since noon: 1001 to 2000, prices 20000 to 20999",
    ]


def test_after_a_crash_the_next_publisher_goes_on_and_nothing_is_lost():
    first, killed, second, summary = lines_of(run_example("crash_and_continue.py"))
    assert re.fullmatch(r"publisher \d+ goes on behind 0", first)
    behind = int(killed.rpartition(" ")[2].replace(",", ""))
    assert behind > 20_000
    assert killed.startswith(first.split(" goes")[0])
    assert second.endswith(f" goes on behind {behind:,}")
    assert second.split(" goes")[0] != first.split(" goes")[0]
    assert summary == f"read 1 to {behind + 1_000:,}: 1,000 of the second, 0 wrong, 0 lost"


def test_three_processes_publish_in_one_order_and_one_that_is_killed_loses_nothing():
    killed, summary = lines_of(run_example("three_publishers.py"))
    assert re.fullmatch(r"desk 0 is killed, [\d,]+ of its orders seen so far", killed)
    found = re.fullmatch(
        r"read ([\d,]+) orders: ([\d,]+) of desk 0, ([\d,]+) of desk 1, ([\d,]+) of desk 2; 0 wrong", summary
    )
    assert found is not None, summary
    total, *by_desk = (int(number.replace(",", "")) for number in found.groups())
    assert total == sum(by_desk)
    assert min(by_desk) >= 30_000


def test_an_async_subscriber_waits_while_the_event_loop_works():
    *ticks, work = lines_of(run_example("async_subscriber.py"))
    assert ticks == [f"tick {number}: {1825 + (number - 1) / 100:.2f}" for number in range(1, 21)]
    turns = re.fullmatch(r"(\d+) turns of other work meanwhile", work)
    assert turns is not None
    assert int(turns[1]) >= 3


def test_bars_hold_the_first_highest_lowest_and_last_price_and_the_volume_of_each_instrument():
    assert lines_of(run_example("ohlcv_bars.py")) == [
        "600519: open 1824.95, high 1825.61, low 1824.59, close 1824.98",
        "600519: 508,800 in 1,012 trades; more than one bar: True",
        "601318: open 1825.02, high 1825.61, low 1824.62, close 1824.94",
        "601318: 487,200 in 988 trades; more than one bar: True",
    ]


def test_positions_are_right_whenever_the_process_that_keeps_them_is_killed():
    *begun, counted, first, second, third = lines_of(run_example("position_keeping.py"))
    found = [re.fullmatch(r"begin behind fill ([\d,]+) with (\d) positions", line) for line in begun]
    behind = [int(match[1].replace(",", "")) for match in found if match is not None]
    assert len(behind) == len(begun) == 6
    assert behind == sorted(behind)
    assert behind[-1] > 0
    assert counted == "counted 30,000 fills, in spite of 5 kills"
    assert first == "600036: -120,300, as it should be: True"
    assert second == "600519: -14,800, as it should be: True"
    assert third == "601318: 126,300, as it should be: True"


def test_orders_are_checked_by_whoever_lives_and_the_publisher_learns_who_has_not():
    late, *checked = lines_of(run_example("risk_check.py"))
    assert late == (
        "topic 'orders': sequence 1 was not acknowledged by all within 0.5 s: audit has acknowledged up to 0 (it is not "
        "running); risk has acknowledged up to 0 (process PID)"
    )
    assert checked == [
        "order 1 is checked: the other process has got it",
        "order 3 is too large: 182,500,000.00 EUR",
        "order 4 cannot be checked: tried 2 times",
        "orders up to 5 are settled",
    ]


def test_claimed_rows_are_seen_once_committed_and_never_when_aborted():
    assert lines_of(run_example("claim_in_place.py")) == [
        "before the commit a reader sees None",
        "committed 2 of 100, the last is sequence 6",
        "aborted 10: this curve is no good",
        "sequences [1, 2, 3, 4, 5, 6], y [0.0, 0.11, 0.44, 1.0, 5.0, 5.0]",
    ]


def test_a_store_answers_by_key_as_of_any_moment_and_in_any_process():
    assert lines_of(run_example("store.py")) == [
        "at first: bid 182400, ask 182500, sequence 1",
        "now: bid 182600, ask 182700, sequence 52",
        "as of then: bid 182400, ask 182500, sequence 1",
        "deleted: no row",
        "of two keys, found: [False, True]",
        "from instrument 140 on: 11 rows",
        "another process: instrument 100 is offered at [182700]",
    ]


def test_a_gateway_client_decodes_and_resumes():
    pytest.importorskip("uvicorn", reason="the gateway needs the extra web")
    assert lines_of(run_example("gateway_client.py")) == [
        "read every row from 1 to 500 and on, in two connections: the sum is right"
    ]


def test_the_readme_names_every_example_and_every_map():
    text = (EXAMPLES / "README.md").read_text()
    files = [path.name for folder in (EXAMPLES, EXAMPLES / "maps") for path in folder.iterdir() if path.is_file()]
    assert [name for name in files if name != "README.md" and name not in text] == []
    linked = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in linked if not (EXAMPLES / link).exists()] == []


@pytest.mark.parametrize("path", sorted((EXAMPLES / "maps").glob("*.toml")), ids=lambda path: path.stem)
def test_a_map_says_at_its_top_what_it_turns_into_what(path: Path):
    assert " -> " in path.read_text().splitlines()[0]
    assert "fields" in tomllib.loads(path.read_text())


def test_what_an_example_leaves_is_noticed(tmp_path: Path):
    """The check that the others rely on: a run that is killed does leave its segments and its files."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, tempfile\n"
        "from ringmain.bus import Writer\n"
        "from ringmain.storage import Schema\n"
        "writer = Writer(f'dies-{os.getpid()}', [Schema('points', {'value': 'u8'})], data_dir=tempfile.mkdtemp(prefix='dies-'))\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = run_example(str(script))
    assert run.code == -9
    assert {name.split("-")[0] for name in run.left} == {"ringmain.dies", "dies"}
    assert segments_of(int(run.output)) == []
