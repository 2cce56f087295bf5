"""`ringmain serve`: the buses of a ringmain.toml, in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ..bus import Fenced, Writer
from ..storage import StoreSettings
from ..subscribers.health import HEALTH, Change, HealthMonitor, publish_change
from .configuration import BusPlan, Configuration, load_configuration
from .exit_codes import FAILED
from .gateway_child import GatewayChild
from .notify import Notifier
from .printing import new_table, plain, print_text, stdout
from .service_log import LogFormat, event, start_logging

__all__ = ["recovery_told", "serve", "tell_change", "tell_store_failures"]

LOOK_S = 0.25
PROGRESS_S = 2.0  # how often a long recovery says how far it is
LEVELS = {"healthy": logging.INFO, "gone": logging.INFO, "degraded": logging.WARNING, "failed": logging.ERROR}


def serve(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to run; see docs/operations.md.")],
    check: Annotated[bool, typer.Option("--check", help="Say what would run, and open nothing.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Fence a writer that is alive and should not be.")
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(help="How events are written to standard error.")] = LogFormat.text,
) -> None:
    """Run the writers of a configuration's buses, and publish their health, until SIGTERM or Ctrl-C.

    It tells systemd when it is ready (Type=notify), and feeds its watchdog. A second signal ends it at once.

    Example: ringmain serve ringmain.toml
    """
    configuration = load_configuration(config)
    if configuration.cluster is not None:
        raise ValueError(f"{config}: it has a table [cluster]; run `ringmain cluster node {config}`")
    if check:
        _print_plan(configuration)
        return
    start_logging(log_format)
    notifier = Notifier()
    with _Signals() as signals, contextlib.ExitStack() as opened:
        writers = [_open(plan, take_over, notifier, opened) for plan in configuration.buses]
        for writer in writers:
            opened.enter_context(HealthMonitor(writer.bus, on_change=_told(writer)))
        gateway = None
        if configuration.gateway is not None:
            gateway = GatewayChild(config, log_format)
            opened.callback(gateway.close)
        names = ", ".join(writer.bus for writer in writers)
        event("ready", buses=names)
        notifier.ready(f"serving {names}")
        failed = _run(writers, gateway, signals, notifier)
        notifier.stopping()
        event("stopping")
    event("stopped")
    if failed:
        raise typer.Exit(FAILED)


class _Signals:
    """SIGTERM and SIGINT, which ask to stop, and SIGHUP. What a handler may not do (log, lock: it may have come amid that), the
    loop does, which hears of them through a pipe. The second time SIGTERM and SIGINT do what they do by themselves.
    """

    def __enter__(self) -> _Signals:
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._former = {number: signal.signal(number, self._restore) for number in (signal.SIGTERM, signal.SIGINT)}
        self._former[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._told.fileno())
        return self

    def __exit__(self, *_error: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._heard.close()
        self._told.close()

    @staticmethod
    def _restore(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    def asked_to_stop(self, timeout_s: float) -> bool:
        """Wait for a signal, for at most `timeout_s`."""
        if not select.select([self._heard], [], [], timeout_s)[0]:
            return False
        numbers = self._heard.recv(64)
        if signal.SIGHUP in numbers:
            event("SIGHUP: a changed configuration needs a restart", level=logging.WARNING)
        return signal.SIGTERM in numbers or signal.SIGINT in numbers


def recovery_told(bus: str, notifier: Notifier) -> Callable[[int, int], None]:
    """Tells now and then how far a recovery is, for Writer's `progress`."""
    told_at = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= PROGRESS_S:
            told_at = time.monotonic()
            event("recovering", bus=bus, done_bytes=done, total_bytes=total)
            notifier.status(f"recovering {bus}: {done * 100 // max(1, total)} %")

    return progress


def _open(plan: BusPlan, take_over: bool, notifier: Notifier, opened: contextlib.ExitStack) -> Writer:
    started = time.monotonic()
    progress = recovery_told(plan.name, notifier)
    writer = Writer(plan.name, [*plan.schemas, HEALTH], take_over=take_over, progress=progress, **plan.settings)
    opened.callback(_close, writer)
    carried = writer.carried
    event(
        "opened",
        bus=writer.bus,
        epoch=writer.epoch,
        topics=len(plan.schemas),
        data_dir=writer.data_dir,
        recovered_rows=carried.log.record_count if carried.log is not None else 0,
        saved_from_rings=sum(carried.from_rings.values()),
        seconds=round(time.monotonic() - started, 3),
    )
    return writer


def _close(writer: Writer) -> None:
    try:
        writer.close()
    except Exception:
        event("closing failed: what was not durable by then is not", level=logging.ERROR, bus=writer.bus)
        raise
    event("closed", bus=writer.bus)


def _told(writer: Writer) -> Callable[[Change], None]:
    def on_change(change: Change) -> None:
        tell_change(change)
        with contextlib.suppress(Fenced, ValueError):  # taken over, or closed: nobody reads this ring
            publish_change(writer[HEALTH.name], change)

    return on_change


def tell_change(change: Change) -> None:
    """Log a change of health."""
    subject = change.subject
    event(
        "health",
        level=LEVELS[change.state],
        bus=subject.bus,
        kind=subject.kind,
        name=subject.name,
        topic=subject.topic,
        pid=subject.pid,
        state=change.state,
        reason=change.after.reason if change.after is not None else "",
        amount=change.after.amount if change.after is not None else 0,
    )


def _run(writers: list[Writer], gateway: GatewayChild | None, signals: _Signals, notifier: Notifier) -> bool:
    """Wait to be stopped; returns whether a log failed, which ends it."""
    told: set[object] = set()
    while not signals.asked_to_stop(LOOK_S):
        for writer in writers:
            tell_store_failures(writer, told)
            failure = writer.failure
            if failure is not None:
                event(f"the log failed: {failure}", level=logging.CRITICAL, bus=writer.bus)
                return True
        if gateway is not None:
            gateway.look()
        notifier.feed()
    return False


def tell_store_failures(writer: Writer, told: set[object]) -> None:
    """A table that cannot be written stops no publisher; the log has the rows. told: the failures that were logged."""
    for topic, stats in writer.store.stats().items() if writer.keeps_by_key else ():
        failure = stats.failure
        if failure is not None and (writer.bus, topic, failure.time_ns) not in told:
            told.add((writer.bus, topic, failure.time_ns))
            event(
                "store failed",
                level=logging.ERROR,
                bus=writer.bus,
                topic=topic,
                operation=failure.operation,
                reason=failure.message,
            )


def _print_plan(configuration: Configuration) -> None:
    table = new_table("~BUS/TOPIC", ">ROW BYTES", "~KEY", "BY KEY")
    for plan in configuration.buses:
        store: StoreSettings | None = plan.settings.get("store")
        kept = store.topics if store is not None and store.topics is not None else ()
        for schema in plan.schemas:
            table.add_row(
                plain(f"{plan.name}/{schema.name}"),
                str(schema.row_bytes),
                plain(", ".join(schema.key)),
                "yes" if schema.name in kept else "",
            )
    console = stdout()
    console.print(table)
    for plan in configuration.buses:
        data_dir = plan.settings.get("data_dir")
        print_text(console, plain(f"{plan.name}: {'rings only' if data_dir is None else f'data in {data_dir}'}"))
    if (gateway := configuration.gateway) is not None:
        scheme = "ws" if gateway.cert is None else "wss"
        who = f"{len(gateway.tokens)} tokens" if gateway.tokens else "no tokens"
        topics = ", ".join(gateway.topics)
        print_text(console, plain(f"gateway: {scheme}://{gateway.host}:{gateway.port}/ws, {who}, {topics}"))
