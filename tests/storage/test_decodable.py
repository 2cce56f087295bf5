"""Threads that decode a struct of structs at the same time, the first time that this process does."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.command import environment

pytestmark = pytest.mark.process

# Threads change places after a microsecond, so that in some of these processes they meet while msgspec learns the struct.
CODE = """if True:
    import os, sys, threading
    import msgspec
    from {module} import {name}
    sys.setswitchinterval(1e-6)
    together = threading.Barrier(8)
    def decode():
        together.wait()
        try:
            msgspec.json.decode({text!r}, type={name})
        except msgspec.ValidationError:
            pass  # an example is as good as a whole one: all its fields up to the one that is wrong are decoded
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            threads = [threading.Thread(target=decode) for _ in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if status:
            sys.exit(f"a process ended with status {{status:#x}}")
"""


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        ("ringmain.storage.manifest_state", "Edit", '{"added": [{"number": 1}]}'),
        ("ringmain.storage.schema_documents", "Document", '{"name": "a", "fields": [{"name": "x", "type": "i8"}]}'),
        ("ringmain.storage.backup_list", "BackupList", '{"files": [{"name": "x"}]}'),
        ("ringmain.storage.snapshot_transfer", "SnapshotList", '{"files": [{"name": "x"}]}'),
        ("ringmain.bus.group_state", "Group", "[1, [[1]]]"),
    ],
)
def test_a_process_does_not_end_by_it(module, name, text):
    code = CODE.format(module=module, name=name, text=text)
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
