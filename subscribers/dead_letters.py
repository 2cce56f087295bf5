"""Where rows go that nobody of a group has acknowledged: a function, or a topic that tells what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import numpy as np

from ..bus import Batch
from ..storage import Schema
from .folding import Rows

__all__ = ["DeadLetter", "Publishes", "letter_box"]

# What a topic of dead letters may have besides the fields of the rows, filled in where it does.
ORIGIN = ("original_sequence", "original_timestamp_ns", "deliveries")


class Publishes(Protocol):
    """What a topic of dead letters has to have: a Publisher, or a lane."""

    @property
    def schema(self) -> Schema: ...

    def publish_batch(self, rows: Rows, /) -> object: ...


DeadLetter: TypeAlias = Callable[[Batch], object] | Publishes


def letter_box(dead_letter: DeadLetter | None, schema: Schema) -> Callable[[Batch], object] | None:
    """What to call with rows that are given up. Raises ValueError for a topic that cannot hold them."""
    if dead_letter is None or not hasattr(dead_letter, "publish_batch"):
        return dead_letter  # pyright: ignore[reportReturnType]
    publisher: Publishes = dead_letter  # pyright: ignore[reportAssignmentType]
    theirs, ours = publisher.schema.payload_dtype, schema.payload_dtype
    fields: dict[str, Literal["row", "origin"]] = {}
    for name in theirs.names or ():
        if name in ORIGIN:
            fields[name] = "origin"
        elif ours.fields is not None and name in ours.fields and ours[name] == theirs[name]:
            fields[name] = "row"
        else:
            raise ValueError(
                f"dead_letter: field {name!r} of topic {publisher.schema.name!r} is none of topic {schema.name!r}, nor of {ORIGIN}"
            )

    def send(batch: Batch) -> None:
        rows = np.zeros(len(batch), theirs)
        for name, source in fields.items():
            if source == "row":
                rows[name] = batch.rows[name]
            elif name == "deliveries":
                rows[name] = batch.deliveries
            else:
                rows[name] = batch.rows[name.removeprefix("original_")]
        publisher.publish_batch(rows)

    return send
