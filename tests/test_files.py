import errno
import os
import stat
from pathlib import Path

import pytest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import (
    append_json_line,
    folder_path,
    make_folder,
    read_json_lines,
    write_atomically,
)

FULL = Path("/dev/full")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    os.symlink(FULL, tmp_path / ".file.partial")
    with pytest.raises(OSError) as raised:
        write_atomically(path, b"new")
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert not (tmp_path / ".file.partial").exists()


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_lines_are_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "lines"
    append_json_line(path, {"a": 1})
    append_json_line(path, {"a": "ü"})
    assert read_json_lines(path) == [{"a": 1}, {"a": "ü"}]
    with pytest.raises(OSError) as raised:
        append_json_line(FULL, {"a": 1})
    assert raised.value.filename == str(FULL)


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, limited_file_size):
    path = tmp_path / "lines"
    append_json_line(path, {"a": "x" * 50})
    before = path.read_bytes()
    with limited_file_size(100), pytest.raises(OSError) as raised:
        append_json_line(path, {"a": "y" * 50})
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"\xff\xfe", "line 2: not UTF-8 .* at byte 0"),
        (b"nonsense", "line 2: not JSON"),
        (b"", "line 2: not JSON"),
        (b"\xef\xbb\xbf{}", "line 2: not JSON"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b"9" * 10_000, "line 2: not JSON"),
        (b"5", "line 2: not a JSON object but '5'"),
        (b"null", "line 2: not a JSON object but 'None'"),
        (b"[{}]", "line 2: not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "lines"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    with pytest.raises(RunError, match=f"lines, {says}"):
        read_json_lines(path)


@pytest.mark.parametrize("tail", [b'{"a"', b"\xc3", b"\0\0\0", b"5"])
def test_what_a_crash_left_of_a_last_line_is_left_out(tmp_path, tail):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\r\n{}\n' + tail)
    assert read_json_lines(path) == [{"a": 1}, {}]
    assert read_json_lines(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("a\0b", "has a NUL"), ("a\udcff", "is not UTF-8"), ("~nobody.at.all/a", "a home that is not known")],
)
def test_impossible_names_are_told(name, says):
    with pytest.raises(ValueError, match=says):
        folder_path(name)


def test_what_is_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"")
    make_folder(tmp_path / "new" / "folder")
    make_folder(tmp_path / "new" / "folder")
    with pytest.raises(RunError, match="dangling cannot be made: .*dangling is a link to nothing"):
        make_folder(tmp_path / "dangling")
    with pytest.raises(RunError, match="file cannot be made: .*file is no folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(OSError) as raised:
        make_folder(tmp_path / "file" / "inner")
    assert raised.value.errno == errno.ENOTDIR and "inner" in raised.value.filename
