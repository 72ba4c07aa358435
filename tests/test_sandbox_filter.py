"""The filter of system calls, on both processors."""

import os
import resource
import struct

import pytest

from atgrpo_jax.sandbox import system_calls


def decide(code, architecture, number, *arguments):
    """What the kernel's interpreter of such filters would answer: "allow" or an error's number."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    instructions = [struct.unpack("<HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
    at, held = 0, 0
    while True:
        kind, yes, no, value = instructions[at]
        at += 1
        if kind == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif kind == 0x06:
            return "allow" if value == 0x7FFF0000 else value & 0xFFFF
        else:
            at += yes if (held == value if kind == 0x15 else held & value) else no


@pytest.mark.parametrize(
    "machine, name, read, socket, opens, clone, kill, prlimit, madvise, links",
    [
        ("x86_64", 0xC000003E, 0, 41, {2: 1, 257: 2}, 56, 62, 302, 28, (89, 267)),
        ("aarch64", 0xC00000B7, 63, 198, {56: 2}, 220, 129, 261, 233, (78,)),
    ],
)
def test_the_filter(machine, name, read, socket, opens, clone, kill, prlimit, madvise, links):
    code = system_calls.filter_for(machine, pid=77)
    assert decide(code, name, read) == "allow" and decide(code, name, socket) == 1
    assert decide(code, 0x40000003, read) == 38  # another processor's call
    assert decide(code, name, read | 0x40000000) == 1  # another table of calls
    for call, before in opens.items():  # how many arguments come before the flags
        first = [0] * before
        assert decide(code, name, call, *first, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == "allow"
        for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
            assert decide(code, name, call, *first, flag) == 13
    thread = 0x3D0F00
    assert decide(code, name, clone, thread) == "allow" and decide(code, name, clone, 17) == 1
    assert decide(code, name, clone, thread | 0x10000000) == 1  # a thread in a namespace of its own
    assert decide(code, name, kill, 77, 9) == "allow"
    assert {decide(code, name, kill, pid, 9) for pid in (1, 0, 2**64 - 1, 76)} == {1}
    assert decide(code, name, prlimit, 0, 7, 0) == "allow"
    assert {decide(code, name, prlimit, 0, 7, new) for new in (1, 2**32, 2**47)} == {1}
    assert {decide(code, name, madvise, 0, 4096, advice) for advice in (4, 8, 14, 102)} == {"allow"}
    assert {decide(code, name, madvise, 0, 4096, advice) for advice in (12, 100, 101, 2**31)} == {1}
    assert {decide(code, name, number) for number in links} == {1}
    stack = resource.RLIMIT_STACK  # read, or set to no effect
    assert [decide(code, name, prlimit, 0, stack, new) for new in (0, 1, 2**47)] == ["allow", 0, 0]


def test_the_filter_of_a_process_yet_to_come():
    made = system_calls.computing()
    for pid in (1, 77, 4_194_304):
        assert system_calls.own(made, pid) == system_calls.filter_for(os.uname().machine, pid)
