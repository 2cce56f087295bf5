"""What a repair of a store did, for people and programs, and how it is gathered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .repair import set_aside

__all__ = ["Change", "LostRows", "Notes", "Repaired"]


@dataclass(frozen=True, slots=True)
class Change:
    """A file that was replaced, made or put aside, by its path in the store. copy: the old one, whole."""

    path: Path
    what: str
    copy: Path | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" + (f"; the old one is {self.copy}" if self.copy else "")


@dataclass(frozen=True, slots=True)
class LostRows:
    """Rows of a topic that are gone, and the file that had them.

    keys: the first and the last key that they can have had, by their values; None: any. first, last: likewise their sequences.
    count: how many, or (at_most) how many at most; None where nothing tells.
    """

    topic: str
    path: Path
    keys: tuple[tuple[Any, ...], tuple[Any, ...]] | None
    first: int
    last: int
    count: int | None
    at_most: bool = False

    def __str__(self) -> str:
        count = "rows" if self.count is None else f"{'at most ' if self.at_most else ''}{self.count} rows"
        keys = "" if self.keys is None else f"keys {_words(self.keys[0])} to {_words(self.keys[1])}, "
        return f"{self.path}: topic {self.topic!r} lost {count}: {keys}sequences {self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did, or (dry_run) would do. `str()` of it is for people.

    taken_again_count: rows that log and archive still had. remarks: what cannot be told, in words.
    """

    directory: Path
    dry_run: bool
    changes: tuple[Change, ...] = ()
    lost: tuple[LostRows, ...] = ()
    remarks: tuple[str, ...] = ()
    taken_again_count: int = 0

    def __str__(self) -> str:
        if not self.changes:
            return f"{self.directory}: nothing is damaged, and nothing {'would be' if self.dry_run else 'was'} changed"
        lines = [f"{self.directory}: {'would be repaired' if self.dry_run else 'repaired'}; {self._loss()}"]
        if self.taken_again_count:
            lines.append(f"  {self.taken_again_count} rows are taken from the log again")
        lines += [f"  {item}" for item in (*self.lost, *self.changes, *self.remarks)]
        return "\n".join(lines)

    def _loss(self) -> str:
        if not self.lost:
            return "no row is lost"
        counts = [entry.count for entry in self.lost if entry.count is not None]
        if len(counts) < len(self.lost):
            return "rows are lost"
        return f"{'at most ' if any(entry.at_most for entry in self.lost) else ''}{sum(counts)} rows are lost"


@dataclass(slots=True)
class Notes:
    """What is found and done while a store is repaired. directory: the store's, which paths are told relative to.

    bad: files that go to lost+found once the manifest does not name them any more, and what is wrong with each.
    """

    directory: Path
    changes: list[Change] = field(default_factory=list[Change])
    lost: list[LostRows] = field(default_factory=list[LostRows])
    remarks: list[str] = field(default_factory=list[str])
    bad: list[tuple[Path, str]] = field(default_factory=list[tuple[Path, str]])
    taken_again_count: int = 0

    def relative(self, path: Path) -> Path:
        return path.relative_to(self.directory)

    def change(self, path: Path, what: str, copy: Path | None = None) -> None:
        self.changes.append(Change(self.relative(path), what, None if copy is None else self.relative(copy)))

    def set_aside(self, path: Path, what: str) -> None:
        """Move a file to lost+found."""
        self.change(path, what, set_aside(path))

    def lose(
        self,
        topic: str,
        path: Path,
        keys: tuple[tuple[Any, ...], tuple[Any, ...]] | None,
        whole: tuple[int, int],
        count: int,
        gone: Iterable[tuple[int, int]],
    ) -> None:
        """Write down what of `count` rows with sequences within `whole` is lost, `gone` being all sequences that are nowhere."""
        ranges = [(max(first, whole[0]), min(last, whole[1])) for first, last in gone]
        ranges = [(first, last) for first, last in ranges if first <= last]
        if ranges and count:
            missing = sum(last - first + 1 for first, last in ranges)
            self.lost.append(
                LostRows(
                    topic,
                    self.relative(path),
                    keys,
                    ranges[0][0],
                    ranges[-1][1],
                    min(count, missing),
                    at_most=ranges != [whole],
                )
            )


def _words(key: tuple[Any, ...]) -> str:
    return str(key[0]) if len(key) == 1 else str(key)
