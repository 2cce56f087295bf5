"""Where reading begins or ends, as people write it: `latest`, `earliest`, a sequence, or a time."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Kind", "Position", "read_position"]

Kind: TypeAlias = Literal["latest", "earliest", "sequence", "time"]

KINDS: dict[Kind, str] = {  # as a message names them
    "latest": "latest",
    "earliest": "earliest",
    "sequence": "a sequence",
    "time": "a time such as 2023-02-01T09:30:00+08:00",
}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
FRACTION = re.compile(r"(?<=\d)[.,](\d{1,9})(?=$|Z|[+-])")


class Position(NamedTuple):
    """A place in a topic. value: the sequence, or the time in ns since the Unix epoch; 0 for the other two."""

    kind: Kind
    value: int = 0


def read_position(text: str, option: str, kinds: Sequence[Kind] = tuple(KINDS)) -> Position:
    """Read what was given for `option`, which takes these kinds of positions. Raises ValueError saying which.

    A time is ISO 8601, to the nanosecond; without an offset it is UTC.
    """
    if text == "latest" or text == "earliest":
        position = Position(text)
    elif text.isascii() and text.isdigit():
        position = Position("sequence", int(text))
    else:
        position = _read_time(text)
    if position is None or position.kind not in kinds:
        *others, last = (KINDS[kind] for kind in kinds)
        expected = f"{', '.join(others)}{',' * (len(others) > 1)} or {last}" if others else last
        raise ValueError(f"{option}: {expected} is expected, got {text!r}")
    if position.kind == "sequence" and not 0 < position.value < 1 << 64:
        raise ValueError(f"{option}: a sequence from 1 on is expected, got {text}")
    return position


def _read_time(text: str) -> Position | None:
    fraction = FRACTION.search(text)
    try:
        moment = datetime.datetime.fromisoformat(FRACTION.sub("", text))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    whole = (moment - EPOCH) // datetime.timedelta(seconds=1)
    return Position("time", whole * 1_000_000_000 + int(fraction[1].ljust(9, "0") if fraction else 0))
