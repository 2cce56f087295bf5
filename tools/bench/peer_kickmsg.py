"""kickmsg. It has no back-pressure and overruns whoever is slow, so a run ends before its ring is full once."""

from __future__ import annotations

from datetime import timedelta

from .peer import RECEIVE_S, Peer, Receive, Send
from .rows import BATCH, BLOCK

__all__ = ["Kickmsg"]

RING_RECORDS = 1 << 19


class Kickmsg(Peer):
    name = module = "kickmsg"

    def __init__(self, *, batches: bool = False, subscriber_count: int = 1, sleeping: bool = False) -> None:
        super().__init__(batches=batches, subscriber_count=subscriber_count, sleeping=sleeping)
        self.record_count_max = RING_RECORDS - 8 * BLOCK

    def _join(self) -> object:
        library, entries = self.load(), RING_RECORDS // BATCH if self.batches else RING_RECORDS
        settings = library.Config()
        settings.max_payload_size = self.item_bytes
        settings.max_subscribers = self.subscriber_count
        settings.sub_ring_capacity = entries
        settings.pool_size = entries + 1024
        region = library.SharedRegion.create_or_open(f"/{self.label}", library.ChannelType.PubSub, settings)
        self.held.append(region)
        return region

    def open_sender(self) -> Send:
        return self.load().Publisher(self._join()).send

    def open_receiver(self, index: int) -> Receive:
        subscriber = self.load().Subscriber(self._join())
        if not self.sleeping:
            return subscriber.try_receive
        receive, limit = subscriber.receive, timedelta(seconds=RECEIVE_S)
        return lambda: receive(limit)

    def clean_up(self) -> None:
        self.load().unlink_shm(f"/{self.label}")
