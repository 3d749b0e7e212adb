"""Threads that leave a shared core to others while they wait: for processes that are ours, like the command line's.

The threads of torch's loops (OpenMP) wait for each other by spinning, up to some milliseconds at the end of each loop.
On a core that another process needs too, that is time in which neither gets on: beside two busy processes on two cores
an evaluation took ten times as long.
"""

from __future__ import annotations

import os

_SPINS = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}
"""Of GNU's and of LLVM's OpenMP: some microseconds, as long as a quiet machine needs; then the thread sleeps."""
_USERS = ("OMP_WAIT_POLICY", *_SPINS)


def wait_asleep() -> bool:
    """Let threads sleep while they wait; to be called before torch is imported. Whether it was done.

    Not done where the user's environment settles it already. Results are the same bits.
    """
    if any(name in os.environ for name in _USERS):
        return False
    os.environ |= _SPINS
    return True
