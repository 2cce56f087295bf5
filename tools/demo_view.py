"""How the demo looks while it runs: a live page on a terminal, one line for each thing that happens elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..bus.snapshot import BusFacts, ReaderFacts
from .demo_play import Event, Play
from .demo_publisher import SCHEMAS
from .demo_reports import TopicRead
from .demo_subscribers import AUDITOR, LATE_JOINER, TOPICS_READ
from .printing import count, rate, state_text

__all__ = ["LiveView", "PlainView", "delay"]

REFRESH_S = 0.15
STATUS_EVERY_S = 2.0
MARKET_LINES = 34  # a terminal this high has room for the market
FIXED_LINES = 18  # what a page has besides the market and what happens
BARS = "▁▂▃▄▅▆▇█"
BAR_S = 0.4  # of time that one bar of the pulse stands for
MOODS = {"bad": "bold red", "good": "green"}
FOLLOWS = {AUDITOR: "durable", LATE_JOINER: "log, ring"}


class LiveView:
    """A page that is drawn over itself, with the terminal as it was before afterwards."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
        self._pulse = Pulse()
        self._drawn_s, self._event_count = 0.0, 0

    def show(self, play: Play) -> None:
        """Draw the page, unless that was done just now and nothing has happened since."""
        self._pulse.feel(play.facts)
        now = time.monotonic()
        if now < self._drawn_s + REFRESH_S and self._event_count == len(play.events):
            return
        self._drawn_s, self._event_count = now, len(play.events)
        self._live.update(page(play, self._pulse, self._console), refresh=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class PlainView:
    """A line for each event, and now and then one about how it goes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told_count, self._status_s = 0, STATUS_EVERY_S

    def show(self, play: Play) -> None:
        for event in play.events[self._told_count :]:
            self._print(event)
        self._told_count = len(play.events)
        facts = play.facts
        if play.now_s < self._status_s or facts is None or play.checked is not None:
            return
        self._status_s = play.now_s + STATUS_EVERY_S
        published = sum(topic.published or 0 for topic in facts.topics)
        undurable = published - sum(topic.durable or 0 for topic in facts.topics)
        lags = ", ".join(f"{reader.name} {reader.lag_count:,}" for topic in facts.topics for reader in topic.readers)
        self._print(
            Event(
                play.now_s,
                f"{published:,} records published, {rate(_total_rate(facts))} per second; {undurable:,} not durable yet; "
                f"lag: {lags}",
            )
        )

    def _print(self, event: Event) -> None:
        self._console.print(f"{event.at_s:6.1f} s  {event.words}", soft_wrap=True, markup=False)


class Pulse:
    """Records per second over the last while, as a row of bars."""

    def __init__(self) -> None:
        self.bars: deque[float] = deque(maxlen=200)
        self._last: tuple[float, int] | None = None

    def feel(self, facts: BusFacts | None) -> None:
        now = time.monotonic()
        if facts is None or (self._last is not None and now < self._last[0] + BAR_S):
            return
        published = sum(topic.published or 0 for topic in facts.topics)
        if self._last is not None:
            self.bars.append(max(0, published - self._last[1]) / (now - self._last[0]))
            published = max(published, self._last[1])  # rings that are just being made anew read as less
        self._last = now, published

    def drawn(self, width: int) -> Text:
        bars = list(self.bars)[-width:]
        top = max([*bars, 1.0])
        text = Text()
        for bar in bars:
            text.append(BARS[min(7, int(bar / top * 7.99))], "red" if bar < top / 20 else "cyan")
        return text


def page(play: Play, pulse: Pulse, console: Console) -> RenderableType:
    """What the terminal shows now."""
    width, height = console.size
    facts = play.facts
    parts: list[RenderableType] = [_headline(play), _publisher_line(play, facts, pulse, width)]
    parts += [_panel("topics", _topics(facts)), _panel("subscribers", _subscribers(play, facts))]
    room = height - FIXED_LINES
    if height >= MARKET_LINES:
        market = _market(play)
        parts.append(_panel("the tape's market", market))
        room -= market.row_count + 3
    parts.append(_panel("what happens", _events(play.events, console, width, max(1, room))))
    return Group(*parts)


def delay(delay_us: float | None) -> str:
    """A delay in the unit that suits it."""
    if delay_us is None:
        return "-"
    if delay_us < 1_000:
        return f"{delay_us:.0f} µs"
    return f"{delay_us / 1e3:.1f} ms" if delay_us < 1e6 else f"{delay_us / 1e6:.1f} s"


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=f"[bold]{title}[/]", title_align="left", box=box.ROUNDED, border_style="bright_black")


def _headline(play: Play) -> Table:
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    if play.checked is None:
        bar = ProgressBar(total=play.seconds, completed=min(play.now_s, play.seconds))
        told = f"{min(play.now_s, play.seconds):4.1f} of {play.seconds:g} s"
    else:
        bar, told = ProgressBar(total=1.0, completed=play.checked), f"checking {play.checked:4.0%}"
    line.add_row(Text(" ringmain demo", "bold"), bar, told)
    return line


def _publisher_line(play: Play, facts: BusFacts | None, pulse: Pulse, width: int) -> Text:
    publisher = play.publishers[-1] if play.publishers else None
    if publisher is None or facts is None:
        return Text(" the publisher starts", "dim")
    started_again = len(play.publishers) > 1
    state = "closed" if publisher.report is not None and publisher.report.closed else facts.writer.state
    if state == "dead" and (publisher.report is None or not publisher.running):
        state = "starting" if publisher.running else "dead"
    line = Text.assemble(
        f" publisher {publisher.pid} ",
        state_text(state),
        f", {'the second' if started_again else 'the first'}  ",
        (f"{rate(_total_rate(facts)):>7}", "bold"),
        " records/s  ",
    )
    line.append_text(pulse.drawn(max(0, width - len(line) - 1)))
    return line


def _total_rate(facts: BusFacts) -> float | None:
    rates = [topic.published_per_s for topic in facts.topics if topic.published_per_s is not None]
    return sum(rates) if rates else None


def _table(*columns: str) -> Table:
    """A table over the whole width. A column named ">x" is aligned to the right."""
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=True)
    return table


def _topics(facts: BusFacts | None) -> Table:
    table = _table("topic", ">published", ">per second", ">not logged yet", ">not durable yet")
    known = {topic.topic: topic for topic in facts.topics} if facts is not None else {}
    for schema in SCHEMAS:
        topic = known.get(schema.name)
        if topic is None or topic.published is None:
            table.add_row(schema.name, *["-"] * 4)
            continue
        table.add_row(
            schema.name,
            Text(count(topic.published), "bold"),
            rate(topic.published_per_s),
            count(_behind(topic.published, topic.logged)),
            count(_behind(topic.published, topic.durable)),
        )
    return table


def _behind(published: int, reached: int | None) -> int | None:
    return None if reached is None else max(0, published - reached)


def _subscribers(play: Play, facts: BusFacts | None) -> Table:
    table = _table("subscriber", "topic", "reads", ">read", ">per s", ">lag", ">delay", ">gaps", ">repeats")
    entries: dict[tuple[str, str], ReaderFacts] = {}
    if facts is not None:
        entries = {(reader.name, topic.topic): reader for topic in facts.topics for reader in topic.readers}
    for name, topics in TOPICS_READ.items():
        child = play.subscribers.get(name)
        report = child.report if child is not None else None
        told = {topic.topic: topic for topic in report.topics} if report is not None else {}
        for topic in topics:
            reads = FOLLOWS.get(name, "published")
            _add_subscriber(table, name, topic, reads, told.get(topic), entries.get((name, topic)), child is None)
    return table


def _add_subscriber(
    table: Table, name: str, topic: str, reads: str, told: TopicRead | None, entry: ReaderFacts | None, absent: bool
) -> None:
    if told is None:
        table.add_row(name, topic, reads, Text("later" if absent else "starting", "dim"), style="dim" if absent else "")
        return
    wrong = "bold red" if told.gap_count or told.repeat_count else "green"
    table.add_row(
        name,
        topic,
        reads,
        Text(count(told.read_count), "bold"),
        rate(entry.consumed_per_s) if entry is not None else "-",
        count(entry.lag_count) if entry is not None else "-",
        delay(told.delay_us),
        Text(count(told.gap_count), wrong),
        Text(count(told.repeat_count), wrong),
    )


def _market(play: Play) -> Table:
    table = _table("instrument", ">last price", ">volume", ">trades")
    reports = [child.report for child in play.subscribers.values() if child.report is not None]
    for entry in [entry for report in reports for entry in report.market]:
        table.add_row(
            f"No. {entry.number}", f"{entry.last_price / 10_000:,.2f}", f"{entry.volume:,}", f"{entry.trade_count:,}"
        )
    return table


def _events(events: list[Event], console: Console, width: int, room: int) -> Table:
    """The latest events that fit into `room` lines, oldest first."""
    shown: list[tuple[str, Text]] = []
    for event in reversed(events):
        words = Text(event.words, MOODS.get(event.mood, ""))
        room -= len(words.wrap(console, width - 13))
        if room < 0 and shown:
            break
        shown.insert(0, (f"{event.at_s:5.1f} s", words))
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for at, words in shown:
        table.add_row(at, words)
    return table
