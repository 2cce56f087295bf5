"""The reader table when all of its entries are taken."""

from __future__ import annotations

import os
import subprocess
import sys

from ringmain.bus import Writer, _segment
from ringmain.bus.segments import Segment, control_name
from ringmain.subscribers import RealTime
from support.logs import PAIRS, make_rows

ENTRIES_AT, ENTRY_BYTES = 4096, 256  # FORMAT.md, "Control segment"
ACTIVE = 2

DIE_HOLDING_THE_WRITER = """if True:
    import os, signal, sys
    from ringmain.subscribers import RealTime
    reader = RealTime(sys.argv[1], reliable=True)
    reader.poll()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_entry_of_a_dead_reliable_reader_does_not_bind_the_writer_to_who_takes_it_over(bus_name: str) -> None:
    payloads = make_rows(PAIRS, 1, 16)[["left"]].astype(PAIRS.payload_dtype)
    with Writer(bus_name, [PAIRS], slots=64, full="block", full_timeout=1.0) as writer:
        pairs = writer["pairs"]
        subprocess.run([sys.executable, "-c", DIE_HOLDING_THE_WRITER, f"{bus_name}/pairs"], check=False, timeout=60)
        pairs.publish_batch(payloads)  # the writer has looked, and waits for it
        table = Segment.open(control_name(bus_name, "pairs"), writable=True).memory
        (dead,) = _segment.list_readers(table)
        assert (dead["state"], dead["policy"]) == ("active", "reliable")
        taken = (os.getpid() << 32 | ACTIVE).to_bytes(8, "little") + _segment.process_start(os.getpid()).to_bytes(
            8, "little"
        )
        for index in range(_segment.READERS_MAX):
            if index != dead["index"]:
                at = ENTRIES_AT + index * ENTRY_BYTES
                table[at : at + 16] = taken
        with RealTime(f"{bus_name}/pairs", name="lossy, and idle"):
            for _ in range(10):
                pairs.publish_batch(payloads)
        assert pairs.watermarks.published == 11 * 16
