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
