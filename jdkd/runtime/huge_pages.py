"""Huge pages for what XLA allocates on CPUs."""

import os
import sys

VARIABLE, SETTING = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb'


def restart_with() -> None:
    """Starts this command anew, in the same process, if glibc does not ask for huge pages yet.

    On CPUs XLA allocates the temporary memory of every step, up to gigabytes, and frees it again.
    In pages of 4 KiB, which the kernel clears one by one, that takes up to a fifth of a train
    step's CPU time (`benchmarks/huge_pages.py`). glibc reads the setting once, when a process
    starts.
    `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` keeps the pages small.
    """
    tunables = os.environ.get(VARIABLE, '')
    if sys.platform != 'linux' or SETTING in tunables:
        return
    os.environ[VARIABLE] = ':'.join(filter(None, [tunables, f'{SETTING}=1']))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
