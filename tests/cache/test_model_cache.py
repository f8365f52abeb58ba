"""Entries: found, built once, checked, healed, bounded, and never outside of the folder."""

from __future__ import annotations

import json
import os
import stat
import threading
import warnings

import pytest

import ovtensor
from cache_entries import KEY_FIELDS, Builder, left_overs
from ovtensor.cache import ModelCache, ScratchStore, store_of
from ovtensor.cache.folder import CacheFolder
from ovtensor.errors import CacheWarning, InputError


def content(entry) -> bytes:
    return (entry.folder / "model.bin").read_bytes()


def age(cache: ModelCache, entry, seconds: float) -> None:
    """Make an entry look as if it had not been used for a while."""
    path = cache.path / "entries" / entry.key / "manifest.json"
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime - seconds))


def test_an_entry_is_built_once_and_holds_what_was_built(cache, build):
    with cache.open(KEY_FIELDS, build) as first:
        assert not first.hit
        assert content(first) == build.content
    with cache.open(dict(reversed(KEY_FIELDS.items())), build) as second:
        assert second.hit
        assert (second.folder, second.key) == (first.folder, first.key)
        assert second.content == first.content != ""
    with ModelCache(cache.path).open(KEY_FIELDS, build) as third:
        assert third.hit
    assert build.calls == 1
    assert left_overs(cache) == []


@pytest.mark.filterwarnings("error")
def test_an_entry_is_found_only_if_it_is_there_and_whole(cache, build):
    assert cache.find(KEY_FIELDS) is None
    entry = cache.open(KEY_FIELDS, build)
    blob = cache.open({"kind": "blob"}, build, base=entry)
    with cache.find(KEY_FIELDS) as found:
        assert found.hit
        assert (found.folder, found.key, found.content) == (entry.folder, entry.key, entry.content)
        with cache.find({"kind": "blob"}, base=found) as other:
            assert other.key == blob.key
        assert cache.find({"kind": "blob"}) is None
    assert cache.find({"kind": "blob"}, base=found) is None  # it is closed
    blob.close()
    entry.close()
    assert left_overs(cache) == []
    (entry.folder / "model.bin").write_bytes(b"weighty" * 1000)
    assert cache.find(KEY_FIELDS) is None
    assert entry.folder.exists()  # `open` says so, and makes it anew
    assert left_overs(cache) == []
    with pytest.warns(CacheWarning, match="made anew"):
        cache.open(KEY_FIELDS, build).close()
    cache.find(KEY_FIELDS).close()
    with pytest.raises(InputError, match="leave it out"):
        cache.find({"base": 1})


def test_what_is_found_stays_while_it_is_used(cache, build):
    with cache.open(KEY_FIELDS, build) as base:
        cache.open({"kind": "blob"}, build, base=base).close()
    with cache.find(KEY_FIELDS) as base:
        blob = cache.find({"kind": "blob"}, base=base)
    with blob:  # which is of no use without its base
        assert cache.clear() == []
    assert len(cache.clear()) == 2
    assert cache.find(KEY_FIELDS) is None


def test_nobody_is_waited_for(cache, build):
    with cache.open(KEY_FIELDS, build) as entry, cache._folder.locked(entry.key):
        assert cache.find(KEY_FIELDS) is None
    cache.find(KEY_FIELDS).close()
    assert ScratchStore().find(KEY_FIELDS) is None


def test_every_field_makes_an_entry_of_its_own(cache):
    for index, fields in enumerate(
        [KEY_FIELDS, {**KEY_FIELDS, "scale": 0.8}, {**KEY_FIELDS, "scale": 0.81}]
    ):
        with cache.open(fields, Builder(bytes([index]))) as entry:
            assert content(entry) == bytes([index])
    assert len(cache.entries()) == 3


def test_the_manifest_says_what_it_is(cache, build):
    with cache.open(KEY_FIELDS, build, label="UNet of sdxl, bf16") as entry:
        manifest = json.loads((entry.folder / "manifest.json").read_text())
        assert manifest["label"] == "UNet of sdxl, bf16"
        assert manifest["key_fields"] == KEY_FIELDS
        assert manifest["key"] == entry.key == entry.folder.name
        assert manifest["files"]["model.bin"]["size"] == len(build.content)
        assert manifest["versions"]["openvino"]
        assert manifest["created"].endswith("+00:00")
    (listed,) = cache.entries()
    assert (listed.key, listed.label, listed.key_fields) == (
        entry.key,
        manifest["label"],
        KEY_FIELDS,
    )
    assert listed.size == sum(path.stat().st_size for path in entry.folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_folder_is_its_owners_alone(tmp_path, build):
    cache = ModelCache(tmp_path / "a" / "b")
    cache.open(KEY_FIELDS, build).close()
    folders = [cache.path, *(path for path in cache.path.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_what_a_build_raises_passes_through_and_nothing_is_left(cache):
    def fail(folder):
        (folder / "model.xml").write_text("half")
        raise ValueError("no such operation")

    with pytest.raises(ValueError, match="no such operation"):
        cache.open(KEY_FIELDS, fail)
    assert cache.entries() == []
    assert left_overs(cache) == []
    with cache.open(KEY_FIELDS, Builder()) as entry:
        assert not entry.hit


def test_a_file_that_a_build_misses_is_not_the_folders_fault(cache, tmp_path):
    def fail(folder):
        (tmp_path / "nowhere").read_bytes()

    with pytest.raises(FileNotFoundError):
        cache.open(KEY_FIELDS, fail)


@pytest.mark.parametrize("kind", ["nothing", "folder", "link", "manifest"])
def test_what_cannot_be_an_entry_is_refused(cache, tmp_path, kind):
    def build(folder):
        if kind == "folder":
            (folder / "inner").mkdir()
        elif kind == "link":
            (folder / "model.bin").symlink_to(tmp_path)
        elif kind == "manifest":
            (folder / "manifest.json").write_text("{}")

    with pytest.raises(InputError, match="made of plain files"):
        cache.open(KEY_FIELDS, build)
    assert left_overs(cache) == []


# Healing


def flip(path) -> None:
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 0x10]))


def flip_unseen(path) -> None:
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def append(path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def edit_manifest(folder, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def move_to(name):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = manifest["files"].pop("model.bin")
        edit_manifest(folder, files=manifest["files"])

    return change


def link_out(folder) -> None:
    outside = folder.parent.parent.parent / "outside.bin"
    outside.write_bytes((folder / "model.bin").read_bytes())
    (folder / "model.bin").unlink()
    (folder / "model.bin").symlink_to(outside)


def link_folder_out(folder) -> None:
    outside = folder.parent.parent.parent / "outside"
    folder.rename(outside)
    folder.symlink_to(outside, target_is_directory=True)


def become_a_file(folder) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("no folder")


DAMAGES = {
    "truncated": (lambda f: os.truncate(f / "model.bin", 100), "has 100 bytes"),
    "grown": (lambda f: append(f / "model.bin"), "bytes"),
    "emptied": (lambda f: (f / "model.xml").write_bytes(b""), "has 0 bytes"),
    "flipped": (lambda f: flip(f / "model.bin"), "checksum differs"),
    "flipped unseen": (lambda f: flip_unseen(f / "model.bin"), "checksum differs"),
    "graph flipped": (lambda f: flip(f / "model.xml"), "checksum differs"),
    "missing": (lambda f: (f / "model.bin").unlink(), "model.bin is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
    "empty manifest": (lambda f: (f / "manifest.json").write_bytes(b""), "cannot be read"),
    "binary manifest": (lambda f: (f / "manifest.json").write_bytes(b"\xff\x00"), "cannot be read"),
    "foreign manifest": (lambda f: (f / "manifest.json").write_text("[1]"), "cannot be read"),
    "other manifest": (
        lambda f: edit_manifest(f, key_fields={"kind": "other"}),
        "of another entry",
    ),
    "other format": (lambda f: edit_manifest(f, format=0), "another format"),
    "more fields": (lambda f: edit_manifest(f, pickle="x"), "cannot be read"),
    "odd files": (lambda f: edit_manifest(f, files={"model.bin": 5}), "cannot be read"),
    "no files": (lambda f: edit_manifest(f, files=[]), "cannot be read"),
    "path up": (move_to("../../../outside.bin"), "names a file"),
    "absolute path": (move_to("/etc/passwd"), "names a file"),
    "windows path": (move_to("..\\outside.bin"), "names a file"),
    "drive": (move_to("C:outside.bin"), "names a file"),
    "folder itself": (move_to(".."), "names a file"),
    "link out": (link_out, "no plain file"),
    "linked folder": (link_folder_out, "no folder"),
    "a file": (become_a_file, "no folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("same_object", [True, False])
def test_a_broken_entry_is_said_once_and_made_anew(cache, build, tmp_path, damage, same_object):
    (tmp_path / "outside.bin").write_bytes(b"not to be touched")
    cache.open(KEY_FIELDS, build).close()
    change, message = DAMAGES[damage]
    change(next((cache.path / "entries").iterdir()))
    reader = cache if same_object else ModelCache(cache.path)
    with pytest.warns(CacheWarning, match=message) as caught:
        entry = reader.open(KEY_FIELDS, build)
    with entry:
        assert not entry.hit
        assert content(entry) == build.content
    assert len(caught) == 1
    assert build.calls == 2
    with reader.open(KEY_FIELDS, build) as entry:
        assert entry.hit
    # What a link or a path led to is still there.
    assert (tmp_path / "outside.bin").exists()
    if damage == "linked folder":
        assert (tmp_path / "outside" / "model.bin").read_bytes() == build.content
    assert left_overs(cache) == []


def test_a_file_that_cannot_be_read(cache, build, monkeypatch):
    """Permissions do not stop root, so the error is made here."""
    from ovtensor.cache import manifest

    cache.open(KEY_FIELDS, build).close()
    with monkeypatch.context() as patch:

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        patch.setattr(manifest, "hash_file", refuse)
        assert "cannot be read" in next(iter(cache.verify().values()))
        reader = ModelCache(cache.path)
        with pytest.warns(CacheWarning) as caught:
            entry = reader.open(KEY_FIELDS, build)
        with entry:
            assert content(entry) == build.content  # from a folder of its own
    assert ["cannot be read" in str(w.message) for w in caught] == [True, False]


def test_what_a_finder_leaves_in_an_entry_does_no_harm(cache, build):
    cache.open(KEY_FIELDS, build).close()
    (next((cache.path / "entries").iterdir()) / ".DS_Store").write_bytes(b"x")
    with cache.open(KEY_FIELDS, build) as entry:
        assert entry.hit


def test_an_entry_of_no_use_is_made_anew_and_stays_readable(cache, build):
    with cache.open(KEY_FIELDS, build) as entry:
        with pytest.warns(CacheWarning, match="for another instruction set"):
            entry.reject("the blob is for another instruction set")
        with cache.open(KEY_FIELDS, build) as other:
            assert not other.hit
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                entry.reject("said twice, it does not touch what came after")
            assert content(other) == build.content
    assert build.calls == 2
    with cache.open(KEY_FIELDS, build) as entry:
        assert entry.hit


def test_verify_changes_nothing(cache, build):
    cache.open(KEY_FIELDS, build).close()
    cache.open({"kind": "other"}, build).close()
    assert cache.verify() == {}
    (key, _) = (entry.key for entry in cache.entries())
    flip(cache.path / "entries" / key / "model.bin")
    assert list(cache.verify()) == [key]
    assert len(cache.entries()) == 2


# Bounds


def test_the_least_recently_used_goes(tmp_path):
    cache = ModelCache(tmp_path / "cache", max_bytes=25_000)
    names = []
    for index in range(3):  # of 7 kB each
        with cache.open({"n": index}, Builder()) as entry:
            names.append(entry.key)
        age(cache, entry, 100 - index)
    cache.open({"n": 0}, Builder()).close()
    cache.open({"n": 3}, Builder()).close()
    kept = {entry.key_fields["n"] for entry in cache.entries()}
    assert kept == {0, 2, 3}
    with cache.open({"n": 4}, Builder()):  # at once, not only when something is closed
        assert {entry.key_fields["n"] for entry in cache.entries()} == {0, 3, 4}


def test_an_entry_in_use_does_not_go(tmp_path, build):
    cache = ModelCache(tmp_path / "cache", max_bytes=10_000)
    with cache.open({"n": 0}, build) as first:
        age(cache, first, 100)
        with cache.open({"n": 1}, build) as second:
            assert content(first) == content(second) == build.content
            assert [entry.in_use for entry in cache.entries()] == [True, True]
            assert ModelCache(cache.path).clear() == []
    assert len(cache.entries()) == 1


def test_an_entry_that_goes_while_sizes_are_looked_at(cache, build, monkeypatch):
    with cache.open(KEY_FIELDS, build) as entry:
        pass
    gone = "0" * len(entry.key)
    monkeypatch.setattr(CacheFolder, "keys", lambda _: [gone, entry.key])
    assert cache.prune(10**9) == []
    assert [one.key for one in cache.prune(0)] == [entry.key]


def test_an_entry_beyond_the_bound_works_and_goes(tmp_path, build):
    cache = ModelCache(tmp_path / "cache", max_bytes=1000)
    with pytest.warns(CacheWarning, match="UNet takes .* goes as soon as it is closed"):
        entry = cache.open(KEY_FIELDS, build, label="UNet")
    with entry:
        assert content(entry) == build.content
    assert cache.entries() == []


def test_prune_and_clear(cache, build):
    for index in range(4):
        with cache.open({"n": index}, build) as entry:
            pass
        age(cache, entry, 100 - index)
    assert [entry.key_fields["n"] for entry in cache.prune(15_500)] == [0, 1]
    with cache.open({"n": 3}, build):
        assert [entry.key_fields["n"] for entry in cache.clear()] == [2]
    assert [entry.key_fields["n"] for entry in cache.clear()] == [3]
    assert list((cache.path / "locks").iterdir()) == []
    assert left_overs(cache) == []


def test_an_entry_that_was_forgotten_is_not_in_use(cache, build):
    cache.open(KEY_FIELDS, build)
    assert [entry.in_use for entry in cache.entries()] == [False]


def test_what_is_not_ours_stays(cache, build, tmp_path):
    cache.open(KEY_FIELDS, build).close()
    notes = cache.path / "entries" / "notes"
    notes.mkdir()
    (notes / "model.bin").write_bytes(b"mine")
    assert len(cache.entries()) == 1
    assert cache.verify() == {}
    (cache.path / "writing" / "notes.txt").write_text("mine")
    cache.clear()
    ModelCache(cache.path).open(KEY_FIELDS, build).close()
    assert (notes / "model.bin").read_bytes() == b"mine"
    assert (cache.path / "writing" / "notes.txt").read_text() == "mine"


# An entry that goes with another one


def write_blob(folder) -> None:
    (folder / "compiled.blob").write_bytes(b"blob")


def test_a_blob_goes_with_the_bytes_of_its_weights(cache):
    contents = iter([b"one", b"one", b"two"])
    hits = []
    for _ in range(3):  # the same fields, and a conversion that does not always give the same
        with cache.open(KEY_FIELDS, Builder(next(contents))) as ir:
            with cache.open({"kind": "blob"}, write_blob, base=ir) as blob:
                hits.append(blob.hit)
            with pytest.warns(CacheWarning):
                ir.reject("to have it built again")
    assert hits == [False, True, False]


def test_opening_a_blob_keeps_and_marks_its_base(cache, build):
    ir = cache.open(KEY_FIELDS, build)
    for hit in (False, True):
        age(cache, ir, 1000)
        with cache.open({"kind": "blob"}, write_blob, base=ir) as blob:
            assert blob.hit is hit
            assert [entry.key_fields["kind"] for entry in cache.entries()] == ["blob", "ir"]
    blob = cache.open({"kind": "blob"}, write_blob, base=ir)
    ir.close()
    assert cache.clear() == []
    blob.close()
    assert len(cache.clear()) == 2


def test_a_base_has_to_be_open(cache, build):
    ir = cache.open(KEY_FIELDS, build)
    ir.close()
    with pytest.raises(InputError, match="has to be open"):
        cache.open({"kind": "blob"}, write_blob, base=ir)
    with pytest.raises(InputError, match="leave it out"):
        cache.open({"base": "x"}, write_blob)


def test_what_goes_with_an_entry_that_is_not_cached_is_not_either(cache, build):
    with ScratchStore().open(KEY_FIELDS, build) as ir:
        with cache.open({"kind": "blob"}, write_blob, base=ir) as blob:
            assert (blob.folder / "compiled.blob").exists()
        assert cache.entries() == []


# Threads


def test_threads_that_start_at_once_build_once(cache, build):
    together = threading.Barrier(8)
    hits = []

    def work():
        together.wait()
        with cache.open(KEY_FIELDS, build) as entry:
            assert content(entry) == build.content
            hits.append(entry.hit)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(hits) == [False] + [True] * 7
    assert build.calls == 1


def test_readers_do_not_wait_for_writers(cache, build):
    cache.open(KEY_FIELDS, build).close()
    started, finish = threading.Event(), threading.Event()

    def slow(folder):
        started.set()
        (folder / "model.bin").write_bytes(b"slow")
        assert finish.wait(60)

    writer = threading.Thread(target=lambda: cache.open({"kind": "slow"}, slow).close())
    writer.start()
    try:
        assert started.wait(60)
        for reader in (cache, ModelCache(cache.path)):
            with reader.open(KEY_FIELDS, build) as entry:
                assert entry.hit
            assert reader.verify() == {}
            assert len(reader.entries()) == 1
            assert len(reader.clear()) == 1
            cache.open(KEY_FIELDS, build).close()
    finally:
        finish.set()
        writer.join()
    assert len(cache.entries()) == 2


# Which store


def test_the_store_that_an_argument_means(tmp_path, monkeypatch):
    assert isinstance(store_of(None), ScratchStore)
    assert isinstance(store_of(False), ScratchStore)
    cache = ModelCache(tmp_path)
    assert store_of(cache) is cache
    assert store_of(str(tmp_path)).path == store_of(tmp_path).path == tmp_path
    monkeypatch.setenv("OVTENSOR_CACHE_DIR", str(tmp_path / "there"))
    assert store_of(True).path == tmp_path / "there"
    monkeypatch.delenv("OVTENSOR_CACHE_DIR")
    assert store_of(True).path.name == "ovtensor"
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("value", [0, 1, 3.5, object(), ["a"]])
def test_an_argument_that_means_no_store(value):
    with pytest.raises(InputError, match="is no cache"):
        store_of(value)


@pytest.mark.parametrize("size", [0, -1, 1.5, "10GB", True, None])
def test_a_bound_that_is_none(size, tmp_path):
    with pytest.raises(InputError, match="max_bytes is a positive number"):
        ovtensor.ModelCache(tmp_path, max_bytes=size)


def test_a_path_that_is_none():
    with pytest.raises(InputError, match="an empty path"):
        ModelCache("")
    with pytest.raises(InputError, match="a int does not name"):
        ovtensor.ModelCache(5)


@pytest.mark.parametrize(
    "path",
    [
        "~nosuchuser/cache",
        "a\0b",
        pytest.param("a\ud800b", marks=pytest.mark.skipif(os.name == "nt", reason="a name there")),
    ],
)
def test_a_path_that_no_folder_can_have(path):
    with pytest.raises(InputError, match="cannot be the folder of a cache"):
        ModelCache(path)
