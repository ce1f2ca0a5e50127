"""A command starts anew once, with what it was given."""

import os
import subprocess
import sys

from jdkd.runtime import huge_pages

PROGRAM = """
import os, sys
from jdkd.runtime import huge_pages
print('begun', os.getpid())
huge_pages.restart_with()
print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], os.getpid())
"""


def run(*args, **env):
    kept = {k: v for k, v in os.environ.items() if k != huge_pages.VARIABLE}
    command = [sys.executable, '-c', PROGRAM, *args]
    done = subprocess.run(command, env=kept | env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_command_starts_anew_once_as_the_same_process_with_its_arguments():
    first, second, last = run('a b', '--c=1')
    assert first == second and first.startswith('begun ')
    pid = first.removeprefix('begun ')
    assert last == f"glibc.malloc.hugetlb=1 ['a b', '--c=1'] {pid}"


def test_other_settings_stay_and_a_choice_is_kept():
    *_, last = run(GLIBC_TUNABLES='glibc.malloc.arena_max=2')
    assert last.startswith('glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1 []')
    assert len(run(GLIBC_TUNABLES='glibc.malloc.hugetlb=0')) == 2
