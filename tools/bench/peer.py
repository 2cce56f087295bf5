"""What a bench needs of another library: a way to send, a way to receive, records or batches of them, losing none."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from .rows import BATCH, BLOCK, SCHEMA

__all__ = ["BATCH_BYTES", "RECEIVE_S", "RECORD_BYTES", "Item", "Library", "Peer", "PeerMissing", "Receive", "Send"]

Item: TypeAlias = Any  # what a library's send takes
Send: TypeAlias = Callable[[Item], object]
Receive: TypeAlias = Callable[[], Any]  # None where nothing has come, else something with the buffer protocol

RECORD_BYTES = SCHEMA.row_bytes
BATCH_BYTES = RECORD_BYTES * BATCH
RECEIVE_S = 0.2  # how long a sleeping receive waits at most


class PeerMissing(Exception):
    """The library is not installed, or does not work here."""


class Library:
    """Something else that a user could pick, by the name of its module."""

    name: ClassVar[str]
    module: ClassVar[str]

    @classmethod
    def load(cls) -> Any:
        """The library's module. Raises PeerMissing."""
        try:
            return importlib.import_module(cls.module)
        except Exception as error:
            raise PeerMissing(f"cannot be used: {type(error).__name__}: {error}") from error


class Peer(Library):
    """One library, set up for one measurement. Goes to every process of it; opens things only where told to.

    batches: an item is BATCH records, not one. subscriber_count: how many receive. sleeping: a receive waits in the kernel.
    """

    sleeps_only: ClassVar[bool] = False  # its busy way of receiving is the worse one

    def __init__(self, *, batches: bool = False, subscriber_count: int = 1, sleeping: bool = False) -> None:
        self.batches, self.subscriber_count = batches, subscriber_count
        self.sleeping = sleeping or self.sleeps_only
        self.item_bytes = BATCH_BYTES if batches else RECORD_BYTES
        self.record_count_max = 1 << 62  # more would be lost
        self.label = f"ringmain-bench-{os.getpid()}-{id(self) & 0xFFFFFF:x}"
        self.held: list[Any] = []  # what must live until the end

    def open_sender(self) -> Send:
        """In the publisher's process."""
        raise NotImplementedError

    def open_receiver(self, index: int) -> Receive:
        """In subscriber number `index`'s process."""
        raise NotImplementedError

    def item(self, record: bytes) -> Item:
        """What the sender takes for these bytes."""
        return record

    def clean_up(self) -> None:
        """In the parent, when all others have ended."""


assert BLOCK % BATCH == 0
