"""Run a command and print its wall time (s) and peak memory (bytes) as JSON: ``python child.py COMMAND...``.

A program of its own because Linux counts the memory of the process that starts a child into the child's peak; this one
has next to none.
"""

import json
import os
import sys
import time

began = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - began
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"seconds": seconds, "peak_bytes": usage.ru_maxrss * unit, "code": os.waitstatus_to_exitcode(status)}))
