"""mmbus: without its write-ahead log, or with it (`logging`), which is then synced now and then, not per record."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .peer import RECEIVE_S, RECORD_BYTES, Item, Peer, Receive, Send
from .rows import BATCH

__all__ = ["Mmbus"]

SLOTS = 16_384


class Mmbus(Peer):
    name = module = "mmbus"

    def __init__(
        self,
        *,
        batches: bool = False,
        subscriber_count: int = 1,
        sleeping: bool = False,
        logging: bool = False,
        directory: Path = Path("/dev/shm"),
    ) -> None:
        super().__init__(batches=batches, subscriber_count=subscriber_count, sleeping=sleeping)
        self.logging = logging
        self.directory = tempfile.mkdtemp(prefix="ringmain-bench-mmbus-", dir=directory)

    def _bus(self) -> Any:
        bus = self.load().Bus(
            self.label,
            base_dir=self.directory,
            capacity=SLOTS,
            slot_size=RECORD_BYTES,
            max_subscribers=8,
            backpressure="error",
            wal_enabled=self.logging,
        )
        self.held.append(bus)
        return bus

    def item(self, record: bytes) -> Item:
        if not self.batches:
            return record
        return [record[at : at + RECORD_BYTES] for at in range(0, len(record), RECORD_BYTES)]

    def open_sender(self) -> Send:
        full = self.load().BusFullError
        topic = self._bus().topic("records")
        self.held.append(topic)  # with it the subscribers would be cut off
        publish, publish_many = topic.publish, topic.publish_many

        def send(record: bytes) -> None:
            while True:
                try:
                    return publish(record)
                except full:
                    time.sleep(0)

        def send_many(records: list[bytes]) -> None:
            while records:
                try:
                    records = records[publish_many(records) :]
                except full:
                    time.sleep(0)

        return send_many if self.batches else send

    def open_receiver(self, index: int) -> Receive:
        subscriber = self._bus().subscribe("records", timeout_secs=30)
        self.held.append(subscriber)
        if self.batches:
            buffer = np.zeros(16 * BATCH * RECORD_BYTES, np.uint8)
            receive_into = subscriber.recv_into_buffer

            def receive_many() -> Any:
                count = receive_into(buffer, RECORD_BYTES, RECEIVE_S)
                return buffer[: count * RECORD_BYTES] if count else None

            return receive_many
        if not self.sleeping:
            return subscriber.try_recv
        receive = subscriber.recv_timeout
        return lambda: receive(RECEIVE_S)

    def clean_up(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
