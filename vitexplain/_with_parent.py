"""Imported first by the fork server: it ends with the process that started it.

By itself it notices that only when it has imported the rest, seconds later.
"""

import contextlib
import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)

if sys.platform == "linux":
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
