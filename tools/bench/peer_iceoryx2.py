"""iceoryx2, publish-subscribe over loaned samples; asleep, an event beside it wakes the receiver.

Told to retry until delivered, sending from Python (0.10) still drops a sample when a receiver's queue is full: a run counts
only when the receiver kept up.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .peer import BATCH_BYTES, RECEIVE_S, RECORD_BYTES, Peer, Receive, Send
from .rows import BATCH

__all__ = ["Iceoryx2"]

QUEUE = 1024  # items a receiver may lag


class Record(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint64 * (RECORD_BYTES // 8)),)


class Iceoryx2(Peer):
    name = module = "iceoryx2"

    def _service(self, kind: str) -> Any:
        library = self.load()
        library.set_log_level(library.LogLevel.Error)
        node = library.NodeBuilder.new().create(library.ServiceType.Ipc)
        builder = node.service_builder(library.ServiceName.new(f"{self.label}/{kind}"))
        self.held.append(node)
        if kind == "wake":
            return builder.event().open_or_create()
        payload = library.Slice[Record] if self.batches else Record
        records = builder.publish_subscribe(payload).enable_safe_overflow(False).history_size(0)
        records = records.max_publishers(1).max_subscribers(8).subscriber_max_buffer_size(QUEUE)
        return records.open_or_create()

    def open_sender(self) -> Send:
        library, service, copy = self.load(), self._service("records"), ctypes.memmove
        builder = service.publisher_builder().backpressure_strategy(library.BackpressureStrategy.RetryUntilDelivered)
        if self.batches:
            builder = builder.initial_max_slice_len(BATCH)
        publisher = builder.create()
        self.held += [service, publisher]
        loan, loan_slice = publisher.loan_uninit, publisher.loan_slice_uninit

        def send(record: bytes) -> None:
            sample = loan()
            copy(sample.payload_ptr, record, RECORD_BYTES)
            sample.assume_init().send()

        def send_many(records: bytes) -> None:
            sample = loan_slice(BATCH)
            copy(sample.payload_ptr, records, BATCH_BYTES)
            sample.assume_init().send()

        if self.batches or not self.sleeping:
            return send_many if self.batches else send
        notifier = self._service("wake").notifier_builder().create()
        self.held.append(notifier)
        notify = notifier.notify

        def send_and_wake(record: bytes) -> None:
            send(record)
            notify()

        return send_and_wake

    def open_receiver(self, index: int) -> Receive:
        library, service = self.load(), self._service("records")
        subscriber = service.subscriber_builder().create()
        self.held += [service, subscriber]
        take, many = subscriber.receive, self.batches
        in_use: list[Any] = [None]  # a sample goes back when the last reference to it goes

        def receive() -> Any:
            in_use[0] = None
            sample = in_use[0] = take()
            if sample is None:
                return None
            return (ctypes.c_char * BATCH_BYTES).from_address(sample.payload_ptr) if many else sample.payload().contents

        if self.batches or not self.sleeping:
            return receive
        listener = self._service("wake").listener_builder().create()
        self.held.append(listener)
        wait, limit = listener.timed_wait, library.Duration.from_millis(int(RECEIVE_S * 1000))

        def receive_asleep() -> Any:
            record = receive()
            if record is None:
                wait(limit)
                record = receive()
            return record

        return receive_asleep
