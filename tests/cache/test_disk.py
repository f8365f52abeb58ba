"""A folder that cannot be used: one warning, and work goes on without it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset16 as ops
import pytest

from cache_entries import KEY_FIELDS, Builder
from ovtensor.cache import ModelCache
from ovtensor.errors import CacheWarning


@pytest.fixture
def mount(tmp_path):
    """Mount a file system of its own kind and size, where the system allows that."""
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("no way to mount a small file system here")
    with contextlib.ExitStack() as mounted:

        def mount(options: str):
            path = tmp_path / "mounted"
            path.mkdir(exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", str(path)], check=True)
            return path

        yield mount


@contextlib.contextmanager
def warned():
    """Collect the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def works_without(cache: ModelCache, reason: str) -> None:
    """Entries as two sessions need them, with one warning."""
    with warned() as caught:
        for fields in (KEY_FIELDS, KEY_FIELDS, {"kind": "other"}):
            build = Builder()
            with cache.open(fields, build) as entry:
                assert not entry.hit
                assert cache.path not in entry.folder.parents
                assert (entry.folder / "model.bin").read_bytes() == build.content
            assert not entry.folder.exists()
            assert build.calls == 1
    (warning,) = caught
    assert warning.category is CacheWarning
    assert str(cache.path) in str(warning.message)
    assert re.search(reason, str(warning.message))


def test_a_read_only_file_system(mount):
    path = mount("size=1m,ro")
    works_without(ModelCache(path / "cache"), "Read-only file system")
    works_without(ModelCache(path), "Read-only file system")


def test_a_cache_that_became_read_only(mount, build):
    path = mount("size=1m")
    ModelCache(path).open(KEY_FIELDS, build).close()
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    works_without(ModelCache(path), "Read-only file system")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root is not refused anything"
)
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    try:
        works_without(ModelCache(tmp_path / "cache"), "Permission denied")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("x")
    works_without(ModelCache(tmp_path / "file"), "exists|Not a directory")
    works_without(ModelCache(tmp_path / "file" / "cache"), "exists|Not a directory")


def test_a_folder_that_goes_away_is_made_again(cache, build):
    for _ in range(2):
        with cache.open(KEY_FIELDS, build) as entry:
            assert not entry.hit
        shutil.rmtree(cache.path)
    assert cache.entries() == []
    assert cache.verify() == {}
    assert cache.clear() == []


@pytest.mark.parametrize("inodes", range(8, 14))
def test_no_room_for_one_more_file(mount, inodes):
    """Whichever step it fails at, from making folders to the manifest."""
    cache = ModelCache(mount(f"size=1m,nr_inodes={inodes}") / "cache")
    with warned() as caught:
        for _ in range(2):
            build = Builder()
            with cache.open(KEY_FIELDS, build) as entry:
                assert (entry.folder / "model.bin").read_bytes() == build.content
    assert len(caught) <= 1
    assert entry.hit or (len(caught) == 1 and "No space left" in str(caught[0].message))


@pytest.mark.parametrize("size", [8, 16, 20, 24, 28])
def test_a_full_disk(mount, size):
    """Whichever step it fails at; the files have 10 kB, and each takes whole pages."""
    cache = ModelCache(mount(f"size={size}k") / "cache")
    with warned() as caught:
        for _ in range(2):
            with cache.open(KEY_FIELDS, Builder(bytes(10_000))) as entry:
                assert (entry.folder / "model.bin").read_bytes() == bytes(10_000)
    assert cache.verify() == {}
    assert len(caught) == (not entry.hit)
    assert entry.hit or "No space left" in str(caught[0].message)
    assert list((cache.path / "writing").iterdir()) == []


def test_the_disk_fills_while_openvino_writes(mount):
    """What OpenVINO raises then is no OSError."""
    weights = ops.constant(np.ones((256, 1024), np.float32))
    parameter = ops.parameter([1, 256], np.float32)
    model = ov.Model(ops.matmul(parameter, weights, False, False), [parameter])
    path = mount("size=512k")

    def build(folder):
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)

    with pytest.raises(RuntimeError, match="iostream"):
        build(path)
    for left in path.iterdir():
        left.unlink()
    with pytest.warns(CacheWarning, match="iostream"):
        entry = ModelCache(path).open(KEY_FIELDS, build)
    with entry:
        assert (entry.folder / "model.bin").stat().st_size == 4 * 256 * 1024
    assert list((path / "writing").iterdir()) == []


def fail_to_write(number: int):
    def build(folder):
        if build.calls == 0:
            build.calls += 1
            (folder / "model.bin").write_bytes(b"half")
            raise RuntimeError("conversion failed") from OSError(number, os.strerror(number))
        (folder / "model.bin").write_bytes(b"whole")

    build.calls = 0
    return build


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_while_an_entry_is_built(cache, number):
    with pytest.warns(CacheWarning, match=os.strerror(number)) as caught:
        entry = cache.open(KEY_FIELDS, fail_to_write(number))
    with entry:
        assert (entry.folder / "model.bin").read_bytes() == b"whole"
    assert len(caught) == 1
    assert cache.entries() == []
    assert list((cache.path / "writing").iterdir()) == []


def test_a_disk_that_fails_under_the_temporary_folder_too(cache):
    def build(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.warns(CacheWarning), pytest.raises(OSError, match="No space left"):
        cache.open(KEY_FIELDS, build)


@pytest.mark.skipif(sys.platform != "linux", reason="looks a descriptor's path up in /proc")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(cache, monkeypatch, number):
    import fcntl

    lock = fcntl.flock

    def flock(descriptor, operation):
        # The temporary folder is on another disk, which has them.
        if str(cache.path) in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(number, os.strerror(number))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    works_without(cache, os.strerror(number))
    assert not (cache.path / "entries").exists() or not any((cache.path / "entries").iterdir())
