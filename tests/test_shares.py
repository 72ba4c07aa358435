"""Instances are handed out as hosts get free: each is played once, and nobody waits for a slow host."""

import asyncio
import itertools

import pytest

from atgrpo_jax.common import coroutines
from atgrpo_jax.rollout.shares import Shown, share


class Counter:
    """Gives 0, 1, 2, ... to whoever asks, and remembers how many were asked for."""

    def __init__(self):
        self.given = 0

    def __call__(self):
        self.given += 1
        return self.given - 1


class Host:
    """Plays an instance in ``passes`` passes of the event loop. Its episodes are (instance, episode)."""

    def __init__(self, passes, fails_at=None):
        self.passes = passes
        self.fails_at = fails_at
        self.begun = []
        self.ended = []
        self.most = 0  # that were played at the same time

    async def play(self, number):
        self.begun.append(number)
        self.most = max(self.most, len(self.begun) - len(self.ended))
        try:
            for _ in range(self.passes):
                await asyncio.sleep(0)
                if number == self.fails_at:
                    raise RuntimeError(f"instance {number}")
        finally:
            self.ended.append(number)
        return [(number, episode) for episode in range(2)]


def play(hosts, count, at_once):
    """What each host returns, if all share a counter."""

    async def everything():
        taken = Counter()
        return await asyncio.gather(*(share(host.play, taken, count, at_once) for host in hosts))

    return coroutines.run(everything())


@pytest.mark.parametrize("passes", [(0, 0, 0), (0, 1, 7), (3, 3, 3), (9, 0, 1)])
@pytest.mark.parametrize(("count", "at_once"), [(0, 2), (1, 2), (7, 3), (10, 1), (20, 2)])
def test_every_instance_is_played_by_one_host(passes, count, at_once):
    hosts = [Host(each) for each in passes]
    played = play(hosts, count, at_once)
    every = [(number, episode) for number in range(count) for episode in range(2)]
    assert sorted(itertools.chain(*played)) == every
    for host, own in zip(hosts, played, strict=True):
        assert sorted(number for number, _ in own[::2]) == sorted(host.begun)
        assert host.most <= at_once


def test_a_host_that_is_slow_plays_less():
    slow, fast = Host(passes=40), Host(passes=4)
    play([slow, fast], 44, 2)
    assert len(slow.begun) == 4 and len(fast.begun) == 40  # ten times as many


def test_nobody_begins_with_more_than_a_fair_part():
    """All of them take at once what they can play at once; instances that take long stay there."""
    hosts = [Host(passes=9) for _ in range(3)]
    play(hosts, 8, at_once=3)
    assert [host.begun for host in hosts] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_the_order_of_a_host_is_that_of_the_numbers():
    host = Host(passes=2)
    play([host], 5, at_once=2)
    assert host.begun == [0, 1, 2, 3, 4]


def test_an_error_ends_the_host_at_once_and_what_it_plays():
    host, other = Host(passes=50, fails_at=3), Host(passes=50)
    with pytest.raises(RuntimeError, match="instance 3"):
        play([host, other], 1000, at_once=4)
    assert sorted(host.ended) == host.begun == [0, 1, 2, 3]


def test_a_bar_goes_on_with_what_other_hosts_take():
    calls = []
    shown = Shown(lambda: calls.append(1), at_once=4)
    taken_and_shown = [(4, 1), (4, 2), (9, 5), (10, 6), (10, 6)]
    for taken, most in taken_and_shown:
        shown.played(taken)
        assert len(calls) == most
    shown.show(10)
    assert len(calls) == 10
