import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.errors import Stopped
from atgrpo_jax.common.stopping import DEAF_S, LOOK_S, ONE_STOP_S, PATIENCE_S, Stopping


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_once_where_nothing_can_be_lost(number):
    with Stopping() as stopping, pytest.raises(Stopped) as raised, stopping.interruptible():
        send(number)
        pytest.fail("went on")
    assert raised.value.signum == number


def test_an_event_loop_is_left_without_a_task_that_complains(caplog):
    finished = []

    async def one(i):
        await asyncio.sleep(0)
        if i == 1:
            send(signal.SIGINT)
        await asyncio.sleep(0.1)
        finished.append(i)

    async def everything():
        await asyncio.gather(*(one(i) for i in range(3)))

    with Stopping() as stopping, pytest.raises(Stopped) as raised, stopping.interruptible():
        coroutines.run(everything())
    assert raised.value.signum == signal.SIGINT
    assert finished == [] and caplog.records == []


@pytest.mark.parametrize("moment", ["new_event_loop", "set_event_loop"])
def test_a_loop_that_is_being_made_is_waited_for(moment, monkeypatch, capfd):
    plain = getattr(asyncio.events, moment)
    signals = iter([signal.SIGTERM])

    def interrupted(*args):
        for number in signals:
            send(number)
        return plain(*args)

    monkeypatch.setattr(asyncio.events, moment, interrupted)
    with Stopping() as stopping, pytest.raises(Stopped), stopping.interruptible():
        coroutines.run(asyncio.sleep(60))
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_cancellation_of_other_causes_is_passed_on():
    with Stopping() as stopping, pytest.raises(asyncio.CancelledError), stopping.interruptible():
        raise asyncio.CancelledError


def test_a_swallowed_exception_stops_at_the_end_of_the_stage():
    swallow = contextlib.suppress(Stopped)  # as Python does in finalizers and callbacks
    with Stopping() as stopping, pytest.raises(Stopped), stopping.interruptible(), swallow:
        send(signal.SIGTERM)


def test_anywhere_at_once_while_nothing_is_unsaved():
    with pytest.raises(Stopped), Stopping():
        send(signal.SIGTERM)
        pytest.fail("went on")


def test_anywhere_a_loop_of_tasks_is_cancelled_while_nothing_is_unsaved():
    async def stopped():
        send(signal.SIGTERM)
        await asyncio.sleep(60)

    with pytest.raises(Stopped) as raised, Stopping():
        coroutines.run(stopped())
    assert raised.value.signum == signal.SIGTERM


def test_elsewhere_at_the_next_such_place(capfd):
    reached = []
    with Stopping() as stopping:
        stopping.unsaved = lambda: True
        send(signal.SIGTERM)
        reached.append("the end of the stage")
        with pytest.raises(Stopped), stopping.interruptible():
            reached.append("never")
    assert reached == ["the end of the stage"]
    assert "stopping when this step is complete and saved" in capfd.readouterr().err


def test_a_task_that_does_not_end_is_torn_up():
    """It blocks the loop, as a task of a user's may: a cancellation never reaches it."""

    async def blocks():
        send(signal.SIGTERM)
        time.sleep(60)

    with Stopping() as stopping, pytest.raises(Stopped), stopping.interruptible():
        stopping.unsaved = lambda: True
        coroutines.run(blocks())


def test_a_swallowed_exception_is_raised_again():
    """Python prints and forgets what is raised in a finalizer or a callback of C."""
    with pytest.raises(Stopped), Stopping():
        with contextlib.suppress(Stopped):
            send(signal.SIGTERM)
        time.sleep(60)


def test_who_cleans_up_after_a_stop_has_the_time_that_it_takes():
    ended = []
    with pytest.raises(Stopped), Stopping():
        try:
            send(signal.SIGTERM)
        finally:
            time.sleep(PATIENCE_S + 10 * LOOK_S)
            ended.append("servers")
    assert ended == ["servers"]


def test_a_second_signal_does_not_wait():
    with Stopping() as stopping, pytest.raises(KeyboardInterrupt) as raised:
        stopping.unsaved = lambda: True
        send(signal.SIGTERM)
        time.sleep(ONE_STOP_S + 0.1)
        send(signal.SIGTERM)
        time.sleep(60)
    assert not isinstance(raised.value, Stopped)


def test_two_signals_at_once_are_one_stop():
    """GNU timeout and some schedulers send to the process and to its group."""
    with Stopping() as stopping:
        stopping.unsaved = lambda: True
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        time.sleep(2 * LOOK_S)
        with pytest.raises(Stopped), stopping.interruptible():
            pytest.fail("went on")


def test_a_main_thread_that_hears_nothing_is_ended():
    """Its time goes by in one call of C, in which Python runs no handler: a compiler, say."""
    program = (
        "import ctypes\n"
        "from atgrpo_jax.common.stopping import Stopping\n"
        "mutex = ctypes.create_string_buffer(64)\n"
        "lock = ctypes.CDLL(None).pthread_mutex_lock\n"
        "with Stopping():\n"
        "    lock(mutex)\n"
        "    print('ready', flush=True)\n"
        "    lock(mutex)  # never comes back\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)  # until it is in that call
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "stopped at once; the same command goes on from what is saved" in err


def test_a_process_of_somebody_else_is_not_ended():
    """Its main thread hears nothing for six seconds, in which an impatient person sends two signals."""
    program = (
        "import ctypes, threading, time\n"
        "from atgrpo_jax.common.errors import Stopped\n"
        "from atgrpo_jax.common.stopping import Stopping\n"
        "mutex = ctypes.create_string_buffer(64)\n"
        "lock, unlock = ctypes.CDLL(None).pthread_mutex_lock, ctypes.CDLL(None).pthread_mutex_unlock\n"
        "try:\n"
        "    with Stopping(may_exit=False):\n"
        "        lock(mutex)\n"
        "        threading.Timer(6.0, unlock, [mutex]).start()\n"
        "        print('ready', flush=True)\n"
        "        lock(mutex)\n"
        "        time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('goes on')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # until it is in that call
    process.send_signal(signal.SIGINT)
    time.sleep(DEAF_S + 0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "goes on\n"), err
    assert err.strip() == "stopping when what is compiled or computed now has ended"


def test_threads_other_than_the_main_one_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Stopping() as stopping, stopping.interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_handlers_before_are_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stopping():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_nobody_is_asked_who_has_left():
    """A host that fails waits for the others to leave. Their news must not become its own stop."""
    with Stopping() as outer:
        with Stopping() as inner:
            pass
        inner.ask(signal.SIGTERM)
        time.sleep(2 * LOOK_S)
        assert outer.asked is None
