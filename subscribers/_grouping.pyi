"""Rows by their key; see _grouping.pyx."""

from typing import Any

import numpy as np

_Rows = np.ndarray[Any, np.dtype[np.void]]
_Marks = np.ndarray[Any, np.dtype[np.bool_]]

KEY_BYTES_MAX: int

class Keys:
    """Where the key lies in rows of a dtype, and which group each key is.

    fields: names in `dtype`, at least one; integers, truth values and bytes, no arrays. Keys are equal where the fields' bytes
    are; floats are refused, since bytes do not tell whether those are equal. One thread at a time.
    Raises ValueError naming the field.
    """

    @property
    def dtype(self) -> np.dtype[np.void]: ...
    @property
    def fields(self) -> tuple[str, ...]: ...
    def __init__(self, dtype: np.dtype[np.void], fields: tuple[str, ...]) -> None: ...
    def __len__(self) -> int:
        """How many groups there are."""
    def clear(self) -> None:
        """Forget the groups."""
    def number(self, rows: _Rows) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Each row's group: 0, 1, 2, … in the order in which their keys were first met since `clear`."""
    def known(self, rows: _Rows) -> _Marks:
        """Whether each row's key is one of the groups. Adds none."""
    def partition(self, rows: _Rows, index: int, count: int) -> _Marks:
        """Whether each row's key belongs to partition `index` of `count`: its hash leaves that remainder."""
