"""Several processes with one cache, and processes that are killed wherever they are."""

from __future__ import annotations

import os
import random
import time

import pytest

from cache_entries import KEY_FIELDS, Builder, left_overs
from ovtensor import _disk
from ovtensor.cache import ModelCache, ScratchStore
from ovtensor.cache.locks import try_hold

COMMON = """
import os, sys, signal, warnings
from pathlib import Path
from cache_entries import KEY_FIELDS, Builder
from ovtensor.cache import ModelCache, ScratchStore, store
cache = ModelCache(sys.argv[1])
def meet():  # say that it has come this far, and wait to be told to go on
    print("here", flush=True)
    sys.stdin.readline()
"""


def comes_to_meet(process) -> None:
    assert process.stdout.readline() == "here\n", process.communicate()[1]


def goes_on(process) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def output(process) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


# Killed

# The first folder is used by a process that dies at the first thing that it asks of the system
# there, or writes, the next one by one that dies at the second, and so on; they print how many
# they did. Forking is how they start quickly.
DYING = (
    COMMON
    + """
def step(event="write", args=()):
    global steps
    if event == "open" and not str(args[0]).startswith(path):
        return  # what is imported, and the time zone
    if event in ("write", "open", "fcntl.flock") or event.startswith(("os.", "shutil.")):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
class Slow(Builder):
    def __call__(self, folder):
        super().__call__(folder)
        with (folder / "model.bin").open("wb", buffering=0) as file:
            for start in range(0, len(self.content), 1000):
                step()
                file.write(self.content[start:start + 1000])
warnings.simplefilter("ignore")
for last, path in enumerate(sys.argv[2:], int(sys.argv[1])):
    if os.fork() == 0:
        steps = 0
        sys.addaudithook(step)
        cache = ModelCache(path, max_bytes=20_000)
        cache.open(KEY_FIELDS, Slow()).close()
        print(steps, flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    assert status == (-signal.SIGKILL if last else 0), status
"""
)


def nothing(_cache: ModelCache) -> None:
    pass


def a_broken_entry(cache: ModelCache) -> None:
    with cache.open(KEY_FIELDS, Builder(b"x" * 5000)) as entry:
        pass
    (entry.folder / "model.bin").write_bytes(b"y" * 5000)


def too_many_entries(cache: ModelCache) -> None:
    for index in range(2):
        cache.open({"n": index}, Builder(b"z" * 9000)).close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="too slow where processes are not forked")
@pytest.mark.parametrize("before", [nothing, a_broken_entry, too_many_entries])
def test_a_process_that_is_killed_leaves_whole_entries_or_none(tmp_path, python, before):
    before(ModelCache(tmp_path / "all"))
    steps = int(output(python(DYING, 0, tmp_path / "all")))
    assert steps > 40
    paths = [tmp_path / str(index) for index in range(steps)]
    for path in paths:
        before(ModelCache(path))
    broken = ModelCache(paths[0]).verify()
    assert output(python(DYING, 1, *paths)) == ""
    found = set()
    for path in paths:
        after = ModelCache(path)
        assert after.verify() in ({}, broken)
        found.add(
            KEY_FIELDS in [entry.key_fields for entry in after.entries()] and not after.verify()
        )
        assert not any(entry.in_use for entry in after.entries())
        after.clear()  # a broken one would be warned of, and that is tested elsewhere
        build = Builder()
        with after.open(KEY_FIELDS, build) as entry:
            assert (entry.folder / "model.bin").read_bytes() == build.content
        assert left_overs(after) == [], path
    assert found == {True, False}


def test_killed_while_writing_at_any_time(tmp_path, python):
    code = (
        COMMON
        + """
meet()
cache.open(KEY_FIELDS, Builder(bytes(200_000_000))).close()
"""
    )
    cache = ModelCache(tmp_path / "cache")
    for _ in range(6):
        process = python(code, cache.path)
        comes_to_meet(process)
        goes_on(process)
        time.sleep(random.uniform(0, 0.4))
        process.kill()
        process.communicate()
        assert cache.verify() == {}
    cache.clear()
    ModelCache(cache.path).open({"n": 1}, Builder()).close()
    assert left_overs(cache) == []


# At once


def test_processes_that_start_at_once_build_once(cache, python):
    code = (
        COMMON
        + """
build = Builder()
meet()
with cache.open(KEY_FIELDS, build) as entry:
    assert (entry.folder / "model.bin").read_bytes() == build.content
print(build.calls, entry.hit)
"""
    )
    processes = [python(code, cache.path) for _ in range(4)]
    for process in processes:
        comes_to_meet(process)
    for process in processes:
        goes_on(process)
    assert sorted(map(output, processes)) == ["0 True\n"] * 3 + ["1 False\n"]


def test_who_waits_for_a_killed_builder_builds(cache, python, build):
    code = (
        COMMON
        + """
def build(folder):
    (folder / "model.bin").write_bytes(b"half")
    meet()
cache.open(KEY_FIELDS, build)
"""
    )
    builder = python(code, cache.path)
    comes_to_meet(builder)
    waiting = python(COMMON + "print(cache.open(KEY_FIELDS, Builder()).hit)", cache.path)
    with pytest.raises(TimeoutError):
        _ended(waiting, 1.5)
    builder.kill()
    assert output(waiting) == "False\n"
    assert left_overs(cache) == []


def _ended(process, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


USER = (
    COMMON
    + """
with cache.open(KEY_FIELDS, Builder()) as entry:
    meet()
    assert (entry.folder / "model.bin").read_bytes() == Builder().content
"""
)


def test_an_entry_that_another_process_uses_does_not_go(cache, python, build):
    user = python(USER, cache.path)
    comes_to_meet(user)
    assert cache.prune(1) == cache.clear() == []
    assert [entry.in_use for entry in cache.entries()] == [True]
    goes_on(user)
    output(user)
    assert [entry.in_use for entry in cache.entries()] == [False]
    assert len(cache.clear()) == 1


def test_a_process_that_was_killed_uses_nothing(cache, python):
    user = python(USER, cache.path)
    comes_to_meet(user)
    assert cache.clear() == []
    user.kill()
    user.communicate()
    assert len(cache.clear()) == 1
    assert left_overs(cache) == []


# Temporary folders


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder in which temporary ones are made."""
    from ovtensor.cache import store

    monkeypatch.setattr(store, "temporary_folder", lambda: tmp_path)
    return tmp_path


def test_a_temporary_entry_goes_when_it_is_closed(scratch, build):
    with ScratchStore().open(KEY_FIELDS, build) as entry:
        assert not entry.hit
        assert (entry.folder / "model.bin").read_bytes() == build.content
        with ScratchStore().open(KEY_FIELDS, build) as other:
            assert other.folder != entry.folder
        assert entry.folder.is_dir()
        entry.reject("is of no use, which is no news to anybody")
    entry.close()
    assert list(scratch.iterdir()) == []


def test_a_temporary_entry_goes_when_its_build_fails(scratch):
    def fail(folder):
        (folder / "model.bin").write_bytes(b"half")
        raise ValueError("no such operation")

    with pytest.raises(ValueError, match="no such operation"):
        ScratchStore().open(KEY_FIELDS, fail)
    assert list(scratch.iterdir()) == []


def test_a_temporary_entry_goes_when_it_is_forgotten(scratch, build):
    ScratchStore().open(KEY_FIELDS, build)
    assert list(scratch.iterdir()) == []


SCRATCH = (
    COMMON
    + """
store.temporary_folder = lambda: Path(sys.argv[1])
entry = ScratchStore().open(KEY_FIELDS, Builder())
meet()
"""
)


def test_a_temporary_entry_goes_with_its_process(scratch, python):
    process = python(SCRATCH, scratch)
    comes_to_meet(process)
    assert list(scratch.iterdir()) != []
    goes_on(process)
    output(process)
    assert list(scratch.iterdir()) == []


def test_a_killed_process_leaves_nothing_for_ever(scratch, python, build):
    killed, alive = python(SCRATCH, scratch), python(SCRATCH, scratch)
    comes_to_meet(killed)
    comes_to_meet(alive)
    killed.kill()
    killed.communicate()
    assert len([path for path in scratch.iterdir() if path.is_dir()]) == 2
    ScratchStore().open(KEY_FIELDS, build).close()
    assert len([path for path in scratch.iterdir() if path.is_dir()]) == 1
    goes_on(alive)
    output(alive)
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_takes_nothing_along(scratch, cache, python):
    code = (
        COMMON
        + """
store.temporary_folder = lambda: Path(sys.argv[2])
entries = [cache.open(KEY_FIELDS, Builder()), ScratchStore().open(KEY_FIELDS, Builder())]
warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
if os.fork() == 0:
    for entry in entries:
        entry.close()
    sys.exit()
os.wait()
assert all((entry.folder / "model.bin").exists() for entry in entries)
meet()
"""
    )
    process = python(code, cache.path, scratch)
    comes_to_meet(process)
    assert cache.clear() == []
    goes_on(process)
    output(process)


def test_large_temporary_files_go_where_there_is_a_disk(tmp_path):
    folder = _disk.temporary_folder()
    assert folder.is_dir()
    hold = try_hold(tmp_path / "x")
    assert try_hold(tmp_path / "x") is None
    hold.release(and_remove=True)
    assert list(tmp_path.iterdir()) == []
