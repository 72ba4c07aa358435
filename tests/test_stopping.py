import asyncio
import contextlib
import gc
import os
import signal

import pytest

from atgrpo_jax.errors import Stopped
from atgrpo_jax.stopping import Stopping


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
        asyncio.run(everything())
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
        asyncio.run(asyncio.sleep(60))
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_cancellation_of_other_causes_is_passed_on():
    with Stopping() as stopping, pytest.raises(asyncio.CancelledError), stopping.interruptible():
        raise asyncio.CancelledError


def test_a_swallowed_exception_stops_at_the_end_of_the_stage():
    swallow = contextlib.suppress(Stopped)  # as Python does in finalizers and callbacks
    with Stopping() as stopping, pytest.raises(Stopped), stopping.interruptible(), swallow:
        send(signal.SIGTERM)


def test_elsewhere_at_the_next_such_place():
    reached = []
    with Stopping() as stopping:
        send(signal.SIGTERM)
        reached.append("the end of the stage")
        with pytest.raises(Stopped), stopping.interruptible():
            reached.append("never")
    assert reached == ["the end of the stage"]


def test_a_second_signal_does_not_wait():
    with Stopping(), pytest.raises(KeyboardInterrupt) as raised:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert not isinstance(raised.value, Stopped)


def test_the_handlers_before_are_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stopping():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
