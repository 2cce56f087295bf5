"""What clients may send, as types; anything else is refused with the place and what was expected there."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

__all__ = ["Authenticate", "BadMessage", "Ping", "Request", "Slow", "Subscribe", "Unsubscribe", "read_request"]

Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Sequence: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)]
Names: TypeAlias = Annotated[list[Name], msgspec.Meta(max_length=1000)]
Value: TypeAlias = int | float | str | bool
Comparison: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">="]


class BadMessage(ValueError):
    """A message that is none. id: of the message, where it could be read."""

    def __init__(self, reason: str, id: int | None) -> None:
        self.id = id
        super().__init__(reason)


class Authenticate(msgspec.Struct, tag_field="op", tag="authenticate", frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, msgspec.Meta(max_length=1024)]


class Slow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of rows that a client is too slow for: the newest of each key, or the newest of all."""

    conflate: Names | None = None
    newest: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


class Subscribe(
    msgspec.Struct,
    tag_field="op",
    tag="subscribe",
    frozen=True,
    forbid_unknown_fields=True,
    rename={"start": "from"},
    kw_only=True,
):
    id: Id
    topic: Annotated[str, msgspec.Meta(max_length=65)]
    mode: Literal["real-time", "delayed"] = "real-time"
    interval: Annotated[float, msgspec.Meta(ge=0.02, le=3600)] | None = None
    conflate: Names | None = None
    start: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)] | Literal["latest", "earliest"] = msgspec.field(
        name="from", default="latest"
    )
    fields: Names = []
    key: dict[Name, Annotated[list[Value], msgspec.Meta(max_length=10_000)]] = {}
    where: Annotated[list[tuple[Name, Comparison, Value]], msgspec.Meta(max_length=32)] = []
    format: Literal["json", "binary"] = "json"
    slow: Slow | Literal["disconnect"] = "disconnect"

    def __post_init__(self) -> None:
        if self.mode == "real-time" and (self.interval is not None or self.conflate is not None):
            raise ValueError('interval and conflate are for mode "delayed"')
        if self.conflate == []:
            raise ValueError("conflate: at least one field is expected")
        if isinstance(self.slow, Slow) and (self.slow.newest is None) == (not self.slow.conflate):
            raise ValueError("slow: conflate with at least one field, or newest, is expected")


class Unsubscribe(msgspec.Struct, tag_field="op", tag="unsubscribe", frozen=True, forbid_unknown_fields=True):
    id: Id


class Ping(msgspec.Struct, tag_field="op", tag="ping", frozen=True, forbid_unknown_fields=True):
    id: Id


Request: TypeAlias = Authenticate | Subscribe | Unsubscribe | Ping

_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Authenticate | Subscribe | Unsubscribe | Ping)


class _Named(msgspec.Struct):
    id: Any = None


def read_request(text: str) -> Request:
    """What a client's message says. Raises BadMessage."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadMessage(str(error), _id_of(text)) from None


def _id_of(text: str) -> int | None:
    try:
        given = msgspec.json.decode(text, type=_Named).id
    except (msgspec.DecodeError, RecursionError):
        return None
    return given if type(given) is int else None
