"""The folder of a subscriber's name, and whether what is stored there belongs to the topic that it reads."""

from __future__ import annotations

import os
from pathlib import Path

from ..bus import Attached, PositionRefused
from ..bus.positions import KINDS, Position, position_folder
from ..storage.files import make_directory

__all__ = ["check_position", "folder_of"]


def folder_of(ring: Attached, name: str, directory: str | os.PathLike[str] | None) -> Path:
    """The folder of a name, made where it is missing. ValueError for a bus without a log."""
    if ring.data_directory is None:
        raise ValueError(f"bus {ring.bus!r} has no data_dir: nothing could be read again; open its writer with one")
    folder = (
        position_folder(ring.data_directory, ring.topic, name)
        if directory is None
        else Path(directory) / ring.topic / name
    )
    make_directory(folder)
    return folder


def check_position(position: Position, kind: int, ring: Attached, folder: Path) -> None:
    """Raise PositionRefused unless a stored position belongs to the topic's log, and is of this kind."""
    if position.kind != kind:
        raise PositionRefused(
            f"{folder}: these are the positions of {KINDS[position.kind]}; give this subscriber another name"
        )
    if position.log_id != ring.header["log_id"]:
        raise PositionRefused(
            f"{folder}: the stored position belongs to log {position.log_id:016x}, bus {ring.bus!r} writes log "
            f"{ring.header['log_id']:016x}; give another name, or remove this folder to begin anew"
        )
