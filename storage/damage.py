"""What repair has to do: how each damaged file of a log should look, and which records are gone. Nothing is changed here.

1. Bytes between two valid frames are given up whole, and nothing else is: a valid frame keeps its place.
2. How many records a topic lost follows from the sequences around a damaged place. Only at the end of the log nothing
   stands behind it; there the damaged frame's own header is used where most of it agrees with what must be there, and
   otherwise as many sequences are given up as can have been in those bytes, so that none is ever used twice.
3. The same directory gives the same answer however much of it was carried out already.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from . import _log
from .drafts import FRAME, HEADER, LOST_BYTES, Draft, Lost, Region, TopicSlot, declared_topics
from .errors import StorageError
from .log_files import FileHeader, Frames, LogFile, LogTopic, file_path, lost_ranges, read_topics, row_frames
from .mend import mend_frame
from .recovery import newest_durable
from .repair_headers import draft_files
from .schema import Schema

__all__ = ["plan"]

FILE_BYTES_MAX = 1 << 32  # frames that tell of a longer file are not believed


def plan(
    directory: Path, archive: Path | None = None, declared: Mapping[int, Schema] | None = None, log_id: int = 0
) -> tuple[list[Draft], list[Path], dict[int, str]]:
    """How the log's files should be, oldest first; files that are no part of it; the topics' names by number.

    archive: where the oldest files are, if they are not in the directory. declared: topics by number, for a log in which a
    declaration is damaged and nowhere else. log_id: the log's, where it is known.
    Raises StorageError where it cannot be told, FormatMismatch for another version.
    """
    drafts, strangers = draft_files(directory, archive, log_id)
    following = _Following(directory, drafts, declared or {})
    for index in range(len(drafts)):
        following.add(index)
    following.finish()
    return drafts, strangers, {number: topic.schema.name for number, (topic, _) in following.catalog.items()}


@dataclass(slots=True)
class _State:
    """A topic while the log is followed: the next sequence (None: not known yet), and what was passed since that was sure."""

    expected: int | None
    last_ns: int = 0
    passed: list[Region | TopicSlot] = field(default_factory=list[Region | TopicSlot])


@dataclass(slots=True)
class _Tail:
    """A damaged place with what each topic was expected to continue with there, and the file it is in."""

    region: Region
    draft: Draft
    expected: dict[int, int]


class _Following:
    """Goes through the files in order, and gives every loss a place."""

    def __init__(self, directory: Path, drafts: list[Draft], declared: Mapping[int, Schema]) -> None:
        self.directory, self.drafts, self.declared = directory, drafts, declared
        self.states: dict[int, _State] = {}
        self.catalog: dict[int, tuple[LogTopic, bytes]] = {}
        self.damaged: list[_Tail] = []
        self.known_durable = 0

    def add(self, index: int) -> None:
        draft = self.drafts[index]
        following = self.drafts[index + 1] if index + 1 < len(self.drafts) else None
        limit = following.header.start_position - draft.header.start_position if following else None
        file = draft.load()
        frames, regions, draft.end = self._find_regions(file, limit)
        if draft.path is None and limit is None:  # room for what made-up files hold: the declarations
            draft.end += sum(TopicSlot(*known).frame_bytes for known in self.catalog.values())
            regions = [Region(HEADER, draft.end)] if draft.end > HEADER else []
        if regions and self._mend_topics(draft, file, frames, regions):
            file = draft.load()
            frames, regions, draft.end = self._find_regions(file, limit)
        self.known_durable = max(self.known_durable, newest_durable(file, frames))
        draft.regions = regions
        own = {topic.number: (topic, topic.schema.to_json()) for topic in read_topics(file, frames)}
        self.catalog.update(own)
        used = set(row_frames(frames)["topic"].tolist())
        if draft.header_wrong or used - own.keys() or (regions and regions[0].start < draft.header.start_bytes):
            self._declare_again(index, frames, own)
        for slot in (slot for region in regions for slot in region.slots):
            self.catalog[slot.topic.number] = slot.topic, slot.json
        self._follow(draft, file, frames, first=index == 0)

    def _find_regions(self, file: LogFile, limit: int | None) -> tuple[Frames, list[Region], int]:
        """The valid frames, the damaged places among them, and the end. limit: the end, where a successor tells it."""
        if limit is None:
            limit = self._end_of_newest(file)
        parts: list[Frames] = []
        regions: list[Region] = []
        at = HEADER
        while at < limit:
            frames, end = file.scan(at, limit)
            parts.append(frames)
            if end < limit:
                found = file.find_frame(end, limit)
                regions.append(Region(end, limit if found is None else found))
                end = regions[-1].end
            at = end
        return np.concatenate([np.empty(0, _log.FRAME_DTYPE), *parts]), regions, max(at, HEADER)

    def _end_of_newest(self, file: LogFile) -> int:
        """Behind the last frame that counts: the one before the first invalid place that was not on the disk yet."""
        durable = max(self.known_durable, newest_durable(file, np.empty(0, _log.FRAME_DTYPE)))
        runs: list[tuple[int, int]] = []
        at: int | None = HEADER
        while (at := file.find_frame(at)) is not None:
            frames, end = file.scan(at)
            runs.append((at, end))
            durable = max(durable, newest_durable(file, frames))
            if frames["kind"][-1] == _log.FRAME_CLOSE:
                break
            at = end
        known_bytes = durable - file.header.start_position
        room = min(max(len(file.data), file.header.file_bytes), FILE_BYTES_MAX)
        if known_bytes > room:
            raise StorageError(
                f"{file.path}: its frames say that {known_bytes} bytes of it were on the disk, and at most {room} can have been. "
                "Restore the file from a copy"
            )
        end = HEADER
        for start, stop in runs:
            if start != end and file.header.start_position + end >= durable:
                return end  # a torn tail
            end = stop
        return max(end, durable - file.header.start_position)

    def _mend_topics(self, draft: Draft, file: LogFile, frames: Frames, regions: list[Region]) -> bool:
        """Put right what single wrong bytes did to the declarations at the file's beginning."""
        for region in regions:
            at = region.start
            while at < min(region.end, _begin_limit(draft.header, frames)):
                for frame_bytes in _sizes_at(file.data, at, region.end):
                    mended = mend_frame(bytes(file.data[at : at + frame_bytes]))
                    if mended is not None and _is_topic(mended, file, at):
                        draft.patches.append((at, mended))
                        at += frame_bytes
                        break
                else:
                    break
        return bool(draft.patches)

    def _declare_again(self, index: int, frames: Frames, own: dict[int, tuple[LogTopic, bytes]]) -> None:
        """Put the declarations that this file lacks into its damaged beginning."""
        draft = self.drafts[index]
        used = set(row_frames(frames)["topic"].tolist())
        neighbours = [
            declared_topics(other) for other in self.drafts[max(0, index - 1) : index + 2] if other is not draft
        ]
        same = [
            other
            for other in self.drafts[max(0, index - 1) : index + 2]
            if other is not draft and other.path is not None and other.header.epoch == draft.header.epoch
        ]
        offered = {
            number: TopicSlot(LogTopic(number, schema, 1, 0), schema.to_json())
            for number, schema in self.declared.items()
        }
        offered |= {slot.topic.number: slot for slots in reversed(neighbours) for slot in slots}
        offered |= {number: TopicSlot(topic, json) for number, (topic, json) in self.catalog.items()}
        wanted = set(own) | used | set(self.catalog)
        if draft.path is None or not own:
            wanted |= set(offered)
        wanted |= {slot.topic.number for other in same for slot in declared_topics(other)}
        if index + 1 < len(self.drafts):  # a topic that has records when the next file begins was declared by now
            following = declared_topics(self.drafts[index + 1])
            wanted |= {slot.topic.number for slot in following if slot.topic.next_sequence > 1}
        places = [region for region in draft.regions if region.start <= _begin_limit(draft.header, frames)]
        missing = sorted((wanted | set(range(max(wanted, default=0)))) - set(own))
        for position, number in enumerate(missing):
            slot = offered.get(number)
            if slot is None:
                raise StorageError(
                    f"{draft.path}: the declaration of topic number {number} is damaged, and no other file of this log has it; "
                    "without it the rows cannot be read. Restore the file from a copy"
                )
            slot = TopicSlot(slot.topic, slot.json)
            place = next((region for region in places if _fits(region.room - slot.frame_bytes)), None)
            if place is None and draft.path is None and number not in self.catalog and position == len(missing) - 1:
                break  # made up: a topic that came later need not be here
            if place is None:
                raise StorageError(
                    f"{draft.path or file_path(Path(), draft.header.file_number)}: the declaration of topic "
                    f"{slot.topic.schema.name!r} does not fit into the damaged place. Restore the file from a copy"
                )
            place.slots.append(slot)
        begin = [region for region in draft.regions if region.slots]
        ends = [
            int(frame["offset"] + (FRAME + int(frame["payload_bytes"]) + 7) // 8 * 8)
            for frame in frames
            if frame["kind"] == _log.FRAME_TOPIC
        ]
        ends += [region.end - region.room for region in begin]
        if draft.header_wrong and draft.header.start_bytes == HEADER and ends:
            draft.header = replace(draft.header, start_bytes=max(ends))

    def _fits_rows(self, frames: Frames, number: int, schema: Schema) -> bool:
        """Whether a schema from elsewhere can be that of a topic: the log has rows of it, of this size, and no other such topic."""
        if any(topic.schema.name == schema.name for topic, _ in self.catalog.values()):
            return False
        sizes = row_frames(frames)
        sizes = sizes["row_bytes"][sizes["topic"] == number]
        return bool(len(sizes)) and bool((sizes == schema.row_bytes).all())

    def _follow(self, draft: Draft, file: LogFile, frames: Frames, *, first: bool) -> None:
        whole = frames if draft.regions else frames[frames["kind"] == _log.FRAME_TOPIC]
        events: list[tuple[int, int | Region]] = [(int(frame["offset"]), at) for at, frame in enumerate(whole)]
        events += [(region.start, region) for region in draft.regions]
        for _, event in sorted(events, key=lambda event: event[0]):
            if isinstance(event, Region):
                self._pass(draft, event)
            elif whole["kind"][event] == _log.FRAME_TOPIC:
                self._declared_here(draft, int(whole["topic"][event]), int(whole["first_sequence"][event]), first=first)
            elif whole["kind"][event] in (_log.FRAME_ROWS, _log.FRAME_TOMBSTONES):
                self._seen(
                    int(whole["topic"][event]), int(whole["first_sequence"][event]), int(whole["row_count"][event])
                )
            else:
                self._seen_gaps(lost_ranges(file, whole[event : event + 1]))
        rows = row_frames(frames)
        if not draft.regions:  # nothing is missing inside: only where it ends matters
            for number in self.states:
                mine = rows[rows["topic"] == number]
                if len(mine):
                    end = int(mine["first_sequence"][-1]) + int(mine["row_count"][-1])
                    self.states[number].expected = max(self.states[number].expected or 0, end)
            self._seen_gaps(lost_ranges(file, frames))
        for number, state in self.states.items():
            mine = rows[rows["topic"] == number]
            if len(mine):
                state.last_ns = int(mine["first_timestamp_ns"][-1])

    def _declared_here(self, draft: Draft, number: int, sequence: int, *, first: bool) -> None:
        known_start = not first or draft.header.file_number == 1
        self.states.setdefault(number, _State(1 if known_start else None))
        self._seen(number, sequence, 0)

    def _seen_gaps(self, lost: Frames) -> None:
        for entry in lost:
            number, first, count = int(entry["topic"]), int(entry["first_sequence"]), int(entry["count"])
            state = self.states.get(number)
            if state is not None and (state.expected is None or first + count > state.expected):
                self._seen(number, first, count)

    def _pass(self, draft: Draft, region: Region) -> None:
        first = draft is self.drafts[0] and draft.header.file_number != 1
        for slot in region.slots:
            state = self.states.setdefault(slot.topic.number, _State(None if first else 1))
            state.passed.append(slot)
        for state in self.states.values():
            state.passed.append(region)
        expected = {number: state.expected for number, state in self.states.items() if state.expected is not None}
        self.damaged.append(_Tail(region, draft, expected))

    def _seen(self, number: int, first: int, count: int) -> None:
        """A valid frame says that the topic stands at `first`, and goes on by `count`."""
        state = self.states.setdefault(number, _State(first))
        self._settle(number, state, first)
        state.expected = max(state.expected or 0, first + count)

    def _settle(self, number: int, state: _State, first: int) -> None:
        """Give what is missing before `first` to one of the places passed; every declaration passed gets its sequence."""
        before = first if state.expected is None else state.expected
        place: Region | None = None
        if first > before:
            regions = [item for item in state.passed if isinstance(item, Region) and item.room_lost > 0]
            if not regions:
                raise StorageError(
                    f"{self.directory}: records {before} to {first - 1} of topic number {number} are missing, and there is no "
                    "damaged place that they can have been in. Restore the log from a copy"
                )
            place = max(regions, key=lambda region: region.room_lost)
            place.lost.append(Lost(number, before, first - before))
        behind = False
        for item in state.passed:
            if isinstance(item, TopicSlot):
                item.topic = replace(
                    item.topic, next_sequence=first if behind else before, last_timestamp_ns=state.last_ns
                )
            behind = behind or item is place
        state.passed.clear()

    # --- the end of the log: nothing valid stands behind ---------------------------------------------------------------

    def finish(self) -> None:
        """Judge what was in the damaged places that no valid frame follows."""
        open_topics = {number: state for number, state in self.states.items() if state.passed}
        cursor = {number: state.expected or 1 for number, state in open_topics.items()}
        unexplained: list[tuple[Region, int]] = []  # with so many bytes
        for tail in self.damaged:
            if not any(tail.region is item for state in open_topics.values() for item in state.passed):
                continue
            expected = {**tail.expected, **cursor}
            rest = self._explain(tail, expected)
            for number, state in open_topics.items():
                gained = expected[number] - cursor[number]
                if gained and any(tail.region is item for item in state.passed):
                    tail.region.lost.append(Lost(number, cursor[number], gained))
                    cursor[number] += gained
            if rest >= FRAME + LOST_BYTES:
                unexplained.append((tail.region, rest))
        for number, state in open_topics.items():
            sequence = state.expected or 1
            for item in state.passed:
                if isinstance(item, TopicSlot):
                    item.topic = replace(item.topic, next_sequence=sequence, last_timestamp_ns=state.last_ns)
                else:
                    sequence += sum(lost.count for lost in item.lost if lost.topic == number and lost.first == sequence)
            mine = [rest for region, rest in unexplained if any(region is item for item in state.passed)]
            self._reserve(number, cursor[number], mine)

    def _explain(self, tail: _Tail, expected: dict[int, int]) -> int:
        """Follow damaged frames by what their headers still say; moves `expected` on. Returns the bytes left unexplained."""
        region = tail.region
        at = min(region.end, max(region.end - region.room, tail.draft.header.start_bytes))
        data = tail.draft.load().data if tail.draft.path is not None else bytearray()
        while at < region.end:
            head = bytes(data[at : at + FRAME])
            if region.end - at == FRAME or _is_bare(head):
                at += FRAME
                continue
            guess = self._guess(head, region.end - at, expected)
            if guess is None:
                return region.end - at
            number, count, frame_bytes = guess
            expected[number] += count
            at += frame_bytes
        return 0

    def _guess(self, head: bytes, room: int, expected: dict[int, int]) -> tuple[int, int, int] | None:
        """(topic, rows, frame bytes) of a damaged frame, where at least four of six things in its header agree."""
        if len(head) < FRAME:
            return None
        frame_bytes, topic, first = (int.from_bytes(head[at:to], "little") for at, to in ((8, 12), (14, 16), (24, 32)))
        row_count, row_bytes, payload = (int.from_bytes(head[at : at + 4], "little") for at in (32, 56, 60))
        best: tuple[int, tuple[int, int, int]] | None = None
        for number, sequence in expected.items():
            size = self.catalog[number][0].schema.row_bytes
            for rows in {row_count, payload // size, (frame_bytes - FRAME) // size, (room - FRAME) // size}:
                whole = FRAME + rows * size
                agreeing = (topic == number) + (first == sequence) + (row_count == rows) + (row_bytes == size)
                agreeing += (payload == rows * size) + (frame_bytes == whole)
                if (
                    rows > 0
                    and whole <= room
                    and whole <= _log.GROUP_BYTES_MAX
                    and (best is None or agreeing > best[0])
                ):
                    best = agreeing, (number, rows, whole)
        return best[1] if best is not None and best[0] >= 4 else None

    def _reserve(self, number: int, first: int, unexplained: list[int]) -> None:
        """Give up as many sequences as can have been in so many bytes, behind the end of the log."""
        newest = self.drafts[-1]
        size = self.catalog[number][0].schema.row_bytes
        count = sum((rest - FRAME) // size for rest in unexplained)
        if newest.path is None:
            count += (newest.header.file_bytes - HEADER) // size
        if count > 0:
            newest.reserved.append(Lost(number, first, count, at_most=True))


def _begin_limit(header: FileHeader, frames: Frames) -> int:
    """Where a file's declarations end at the latest: a header made anew does not say."""
    if header.start_bytes > HEADER:
        return header.start_bytes
    others = frames["offset"][frames["kind"] != _log.FRAME_TOPIC]
    return int(others[0]) if len(others) else 2**63


def _fits(left: int) -> bool:
    """Whether so many bytes can be left over: none, or enough for a gap."""
    return left == 0 or left >= FRAME


def _sizes_at(data: mmap.mmap | bytearray, at: int, limit: int) -> list[int]:
    """How long the damaged frame at an offset may be, by each thing that tells."""
    said = int.from_bytes(data[at + 8 : at + 12], "little")
    payload = int.from_bytes(data[at + 60 : at + 64], "little")
    sizes = dict.fromkeys((said, FRAME + (payload + 7) // 8 * 8, limit - at))
    return [size for size in sizes if FRAME <= size <= limit - at and size % 8 == 0]


def _is_topic(frame: bytes, file: LogFile, at: int) -> bool:
    frames, _ = _log.scan(
        bytes(at) + frame, start_position=file.header.start_position, epoch=file.header.epoch, offset=at
    )
    return (
        len(frames) == 1
        and int(frames["kind"][0]) == _log.FRAME_TOPIC
        and _reads(frame, int(frames["payload_bytes"][0]))
    )


def _reads(frame: bytes, payload_bytes: int) -> bool:
    try:
        Schema.from_json(frame[FRAME : FRAME + payload_bytes])
    except StorageError:
        return False
    return True


def _is_bare(head: bytes) -> bool:
    """Whether a damaged header looks like that of a mark or a close, which carry no rows."""
    sizes = (
        int.from_bytes(head[8:12], "little"),
        int.from_bytes(head[32:36], "little"),
        int.from_bytes(head[60:64], "little"),
    )
    return (
        len(head) == FRAME
        and sum(found == right for found, right in zip(sizes, (FRAME, 0, 0), strict=True)) >= 2
        and head[:4] != b"\0\0\0\0"
    )
