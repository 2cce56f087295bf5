"""Structs that several threads may decode, the first time as well.

msgspec learns a struct's fields as it is first decoded. Where these are structs themselves, other threads may run meanwhile, and
one that decodes the same struct then ends the process with SIGSEGV (0.22). So what threads decode is learnt as it is declared.
"""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

__all__ = ["decodable"]

Kind = TypeVar("Kind", bound=type)

_learning = threading.Lock()


def decodable(kind: Kind) -> Kind:
    """Have msgspec learn a struct, or a dataclass, now; returns it. A decorator, or a call before others decode."""
    with _learning:
        msgspec.msgpack.Decoder(kind)
    return kind
