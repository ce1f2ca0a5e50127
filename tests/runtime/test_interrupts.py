"""Signals end a process with its code, at once or after a checkpoint."""

import signal
import subprocess
import sys
import threading

import pytest

from jdkd.runtime import interrupts

# Works until a signal comes; then saves if it may, for as many seconds as the flag says.
PROGRAM = """
import sys, time
from jdkd.runtime import interrupts

mode, seconds = sys.argv[1], float(sys.argv[2])
with interrupts.handle_signals():
    if mode == 'work':
        print('ready', flush=True)
        time.sleep(60)
    with interrupts.defer_exit() as stop:
        print('ready', flush=True)
        stop.wait(60)
        print('saving', flush=True)
        time.sleep(seconds)
        print('saved', flush=True)
        interrupts.exit_after_saving()
"""


def start(mode, seconds=0.0):
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, mode, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'ready\n'
    return process


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_work_at_once_with_its_code(number, code):
    process = start('work')
    process.send_signal(number)
    returncode, _, err = finish(process)
    assert returncode == code
    assert 'finished work is kept. Run the same command to resume.' in err


def test_training_saves_before_it_ends():
    process = start('train')
    process.send_signal(signal.SIGTERM)
    returncode, out, err = finish(process)
    assert returncode == 75 and out == 'saving\nsaved\n'
    assert 'stopping; saving a checkpoint' in err and 'the checkpoint is saved' in err


def test_a_second_signal_does_not_wait_for_the_checkpoint():
    process = start('train', seconds=60)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == 'saving\n'
    process.send_signal(signal.SIGINT)
    returncode, out, err = finish(process)
    assert returncode == 130 and out == ''
    assert 'finished work is kept' in err


def test_saving_may_not_take_for_ever():
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'from jdkd.runtime import interrupts\ninterrupts._GRACE_SECONDS = 0.5\n' + PROGRAM,
            'train',
            '60',
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    returncode, out, err = finish(process)
    assert returncode == 75 and out == 'saving\n'
    assert 'the last checkpoint is kept' in err


def test_handlers_are_those_of_before_afterwards():
    before = {number: signal.getsignal(number) for number in interrupts.EXIT_CODES}
    with interrupts.handle_signals():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in interrupts.EXIT_CODES} == before


def test_a_thread_changes_no_handler():
    before = {number: signal.getsignal(number) for number in interrupts.EXIT_CODES}
    seen = []

    def run():
        with interrupts.handle_signals():
            seen.append({number: signal.getsignal(number) for number in interrupts.EXIT_CODES})

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
