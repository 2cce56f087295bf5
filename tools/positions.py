"""Where reading begins or ends, as people write it: `latest`, `earliest`, a sequence, or a time."""

from __future__ import annotations

import datetime
import re
from typing import Literal, NamedTuple

__all__ = ["Position", "read_position"]

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
FRACTION = re.compile(r"(?<=\d)[.,](\d{1,9})(?=$|Z|[+-])")


class Position(NamedTuple):
    """A place in a topic. value: the sequence, or the time in ns since the Unix epoch; 0 for the other two."""

    kind: Literal["latest", "earliest", "sequence", "time"]
    value: int = 0


def read_position(text: str, option: str) -> Position:
    """Read what was given for `option`. A time is ISO 8601, to the nanosecond; without an offset it is UTC."""
    if text == "latest":
        return Position("latest")
    if text == "earliest":
        return Position("earliest")
    if text.isascii() and text.isdigit():
        if not 0 < int(text) < 1 << 64:
            raise ValueError(f"{option}: a sequence from 1 on is expected, got {text}")
        return Position("sequence", int(text))
    fraction = FRACTION.search(text)
    try:
        moment = datetime.datetime.fromisoformat(FRACTION.sub("", text))
    except ValueError:
        raise ValueError(
            f"{option}: latest, earliest, a sequence, or a time such as 2023-02-01T09:30:00+08:00 is expected, got {text!r}"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    whole = (moment - EPOCH) // datetime.timedelta(seconds=1)
    return Position("time", whole * 1_000_000_000 + int(fraction[1].ljust(9, "0") if fraction else 0))
