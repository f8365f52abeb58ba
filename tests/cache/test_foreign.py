"""Only what is provably the cache's own is deleted or trusted, whatever else lies in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cache_entries import KEY_FIELDS, Builder
from ovtensor.cache import ModelCache, fingerprints, store
from ovtensor.cache.manifest import key_of
from ovtensor.errors import CacheWarning

FOLDERS = ("", "entries", "writing", "locks", "leases", "files")
KEY = key_of(KEY_FIELDS)
OTHER = "0123456789abcdef" * 2  # as an md5 of somebody else's
RANDOM = "fedcba9876543210"

names = st.sampled_from(
    [
        "thesis.docx",
        ".DS_Store",
        "manifest.json",
        "model.bin.bak",
        OTHER,
        f"{OTHER}.txt",
        f"{KEY}.txt",
        f"{KEY}.bak",
        f"{KEY}.{RANDOM}x",
        f"{OTHER}.{RANDOM}",
        f"{KEY}.{RANDOM}",
        "1f-2a.json",
        "1f-2a.json.0123abcd",
        "ordner mit umläuten",
        "new\nline",
    ]
)
foreign = st.tuples(
    st.sampled_from([*FOLDERS, f"entries/{KEY}", f"entries/{OTHER}"]),
    names,
    st.sampled_from(["file", "json", "manifest", "folder", "deep", "link", "folder link", "gone"]),
)


def plant(root: Path, outside: Path, place: str, name: str, kind: str) -> None:
    path = root / place / name
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    if kind == "file":
        path.write_text("mine")
    elif kind == "json":
        path.write_text(json.dumps({"device": 31, "inode": 42, "xxh3_128": "0" * 32}))
    elif kind == "manifest":
        path.write_text(json.dumps({"format": 2, "key": name, "files": {"thesis.docx": {}}}))
    elif kind in ("folder", "deep"):
        for _ in range(1 if kind == "folder" else 40):
            path.mkdir()
            path = path / "inner"
        path.write_text("mine")
    else:
        path.symlink_to({"link": outside / "file", "folder link": outside}.get(kind, "nowhere"))


def snapshot(root: Path) -> dict[str, object]:
    """Everything under a folder, links as links."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[str(path)] = path.readlink()
        else:
            found[str(path)] = path.read_bytes() if stat.S_ISREG(mode) else "folder"
    return found


def use(cache: ModelCache, weights: Path) -> None:
    """Everything that a session and the command line do."""
    build = Builder()
    with cache.open(KEY_FIELDS, build) as entry:
        assert (entry.folder / "model.bin").read_bytes() == build.content
        cache.open({"kind": "blob"}, Builder(b"blob"), base=entry).close()
    if (found := cache.find(KEY_FIELDS)) is not None:
        with found:
            assert (found.folder / "model.bin").read_bytes() == build.content
    cache.fingerprint_files([weights])
    cache.entries()
    cache.verify()
    cache.prune(100)
    with cache.open({**KEY_FIELDS, "n": 1}, Builder()) as entry:
        entry.reject("for this test")
    cache.clear()


@contextlib.contextmanager
def each_warning_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert all(one.category is CacheWarning for one in caught)
    messages = [str(one.message) for one in caught]
    assert len(messages) == len(set(messages))


@pytest.mark.skipif(os.name == "nt", reason="links and names that Windows does not have")
@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(foreign, min_size=1, max_size=6), st.booleans())
@example([("files", "thesis.docx", "file"), ("files", "1f-2a.json", "file")], False)
@example([(f"entries/{OTHER}", "thesis.docx", "file")], False)
@example([(f"entries/{OTHER}", "manifest.json", "file")], False)
@example([(f"entries/{KEY}", "thesis.docx", "file")], True)
@example([("writing", f"{OTHER}.{RANDOM}", "folder")], False)
@example([("leases", f"{OTHER}.{RANDOM}", "file")], False)
@example([("locks", KEY, "file")], False)
@example([("", "files", "folder link")], False)
@example([("", "entries", "folder link")], False)
@example([("", "CACHEDIR.TAG", "gone")], False)
@example([("entries", KEY, "folder link")], False)
@example([(f"entries/{KEY}", "model.bin", "folder")], False)
def test_nothing_foreign_is_deleted_or_written_to(plants, filled):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "_SETTLED", -1.0)
        patch.setattr(fingerprints, "_MOST_REMEMBERED", 0)
        root, outside = Path(folder, "cache"), Path(folder, "outside")
        (outside / "inner").mkdir(parents=True)
        for path in (outside / "file", outside / "inner" / "file", outside / f"{KEY}.{RANDOM}"):
            path.write_text("mine")
        weights = Path(folder, "model.safetensors")
        weights.write_bytes(b"x")
        root.mkdir(mode=0o700)
        if filled:
            ModelCache(root).open(KEY_FIELDS, Builder()).close()
        ours = snapshot(root)
        for one in plants:
            plant(root, outside, *one)
        before = {
            path: content
            for path, content in {**snapshot(root), **snapshot(outside)}.items()
            if path not in ours
            and content != "folder"
            # what has the name of an entry's file is a broken one
            and path != str(root / "entries" / KEY / "manifest.json")
        }
        for _ in range(2):
            with each_warning_once():
                use(ModelCache(root), weights)
        after = {**snapshot(root), **snapshot(outside)}
        kept = {path: after.get(path) for path in before}
        # What stands where an entry belongs is kept beside it.
        if kept.get(str(root / "entries" / KEY), "") is None:
            path = str(root / "entries" / KEY)
            (aside,) = root.glob(f"entries/{KEY}.*[0-9a-f]")
            kept[path] = snapshot(root)[str(aside)]
        assert kept == before


# Manifests

json_values = st.recursive(
    st.sampled_from([None, True, 0, -5, 1e300, float("inf"), float("nan"), 10**30])
    | st.sampled_from(["", "x", "..", "a/b", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
FIELDS = ["files", "key", "label", "key_fields", "created", "versions", "format"]
NAMES = ["../x", "/x", "C:x", "a\\b", ".", "..", ""]


def one_file(name="model.bin", size=7000, checksum="0" * 32):
    return {"files": {name: {"size": size, "xxh3_128": checksum}}}


damages = st.one_of(
    st.tuples(st.sampled_from(FIELDS), json_values).map(lambda pair: dict([pair])),
    json_values.map(lambda size: one_file(size=size)),
    json_values.map(lambda checksum: one_file(checksum=checksum)),
    (st.text(max_size=5) | st.sampled_from(NAMES)).map(one_file),
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(damages)
@example({"files": {}})
@example({"files": [None]})
@example({"files": "ab"})
@example(one_file(size=float("inf")))
@example(one_file(size=True))
@example(one_file("manifest.json"))
@example({"label": 5})
@example({"created": None})
@example({"versions": []})
def test_a_manifest_of_nonsense_is_one_warning_and_made_anew(change):
    with tempfile.TemporaryDirectory() as folder:
        cache = ModelCache(Path(folder, "cache"))
        with cache.open(KEY_FIELDS, Builder()) as entry:
            pass
        path = entry.folder / "manifest.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({**stored, **change}))
        harmless = {"label": str, "created": str, "versions": dict}
        ((field, value),) = change.items()
        if (field in harmless and isinstance(value, harmless[field])) or stored[field] == value:
            return
        cache.entries()
        assert len(cache.verify()) == 1
        assert cache.find(KEY_FIELDS) is None
        with pytest.warns(CacheWarning) as caught:
            entry = ModelCache(cache.path).open(KEY_FIELDS, Builder())
        with entry:
            assert not entry.hit
            assert (entry.folder / "model.bin").read_bytes() == Builder().content
        assert len(caught) == 1
        assert cache.verify() == {}
        with cache.open(KEY_FIELDS, Builder()) as entry:
            assert entry.hit


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"format": 2, "key_fields": ' + "[" * 900 + "]" * 900 + "}",
        " " * 2**25,
        '{"size": ' + "9" * 5000 + "}",
        "null",
    ],
    ids=["arrays", "objects", "deep", "large", "long number", "null"],
)
def test_a_manifest_that_is_hard_to_read(cache, build, text):
    with cache.open(KEY_FIELDS, build) as entry:
        pass
    (entry.folder / "manifest.json").write_text(text)
    assert cache.entries()[0].problem
    assert len(cache.verify()) == 1
    with pytest.warns(CacheWarning, match="manifest.json") as caught:
        cache.open(KEY_FIELDS, build).close()
    assert len(caught) == 1
    assert cache.verify() == {}


def test_an_entry_of_another_version_is_ours_all_the_same(cache, build):
    """What an older or newer release wrote: it is of no use here, and goes when room is needed."""
    with cache.open(KEY_FIELDS, build) as entry:
        pass
    path = entry.folder / "manifest.json"
    stored = json.loads(path.read_text())
    stored["facts"] = stored.pop("key_fields")
    path.write_text(json.dumps({**stored, "format": 1}))
    assert cache.entries()[0].size > 7000
    assert [one.key for one in cache.clear()] == [entry.key]
    assert not entry.folder.exists()


def test_what_is_not_ours_makes_no_room(tmp_path, build):
    """It cannot be removed: so it does not count either, or everything else would go for it."""
    cache = ModelCache(tmp_path / "cache", max_bytes=20_000)
    cache.open(KEY_FIELDS, build).close()
    (cache.path / "entries" / OTHER).mkdir()
    (cache.path / "entries" / OTHER / "video.mp4").write_bytes(bytes(10**6))
    with cache.open({"n": 1}, build), cache.open(KEY_FIELDS, build) as entry:
        assert entry.hit
    assert not list((cache.path / "locks").glob(OTHER))


# Reports


@pytest.mark.parametrize("missing", [("writing",), ("locks",), ("leases",), ("writing", "locks")])
def test_clear_says_what_it_did_where_a_folder_is_missing(cache, build, missing):
    with cache.open(KEY_FIELDS, build) as entry:
        pass
    for name in missing:
        for path in (cache.path / name).iterdir():
            path.unlink()
        (cache.path / name).rmdir()
    removed = ModelCache(cache.path).clear()
    assert [one.key for one in removed] == [entry.key]
    assert not entry.folder.exists()


def test_clear_of_a_folder_that_is_no_cache_leaves_it_as_it_is(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.docx").write_text("mine")
    before = snapshot(tmp_path)
    assert ModelCache(tmp_path).clear() == []
    assert ModelCache(tmp_path).entries() == []
    assert snapshot(tmp_path) == before


def test_what_somebody_else_removed_is_not_said_to_be_removed(cache, build):
    cache.open(KEY_FIELDS, build).close()
    assert cache._folder.take_away_unused(KEY)
    assert not cache._folder.take_away_unused(KEY)


def test_an_entry_that_cannot_be_removed_is_an_error_and_others_go(cache, build, monkeypatch):
    for n in range(3):
        cache.open({"n": n}, build).close()
    stuck = cache.entries()[0].key
    rename = Path.rename

    def refuse(path, target):
        if path.name == stuck:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        cache.clear()
    assert [entry.key for entry in cache.entries()] == [stuck]


def test_hashes_that_cannot_be_forgotten_are_an_error(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SETTLED", -1.0)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    cache.fingerprint_files([weights])

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        cache.clear()


# Whose folder it is

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users and modes here")


def used_without(cache: ModelCache, reason: str, weights: Path) -> None:
    before = snapshot(cache.path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with cache.open(KEY_FIELDS, Builder()) as entry:
                assert not entry.hit
                assert cache.path not in entry.folder.parents
            assert cache.find(KEY_FIELDS) is None
            cache.fingerprint_files([weights])
    assert [str(one.message).count(reason) for one in caught] == [1]
    for report in (cache.entries, cache.verify, cache.clear):
        with pytest.raises(PermissionError, match=reason):
            report()
    assert snapshot(cache.path) == before


@posix
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o722])
@pytest.mark.parametrize("place", ["", "entries", "files", "leases"])
def test_a_folder_that_others_may_write_to_is_not_used(cache, build, mode, place, tmp_path):
    cache.open(KEY_FIELDS, build).close()
    (cache.path / place).chmod(mode)
    if mode == 0o1777 and not place:  # as /tmp: nobody else can exchange the folders in it
        with cache.open(KEY_FIELDS, build) as entry:
            assert entry.hit
        return
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    used_without(ModelCache(cache.path), "other users may write", weights)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize("place", ["", "entries", "files"])
def test_a_folder_of_another_user_is_not_used(cache, build, place, tmp_path):
    cache.open(KEY_FIELDS, build).close()
    os.chown(cache.path / place, 12345, -1)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    used_without(ModelCache(cache.path), "belongs to the user 12345", weights)


@posix
def test_an_entry_that_others_may_write_to_is_made_anew(cache, build):
    with cache.open(KEY_FIELDS, build) as entry:
        pass
    entry.folder.chmod(0o777)
    with pytest.warns(CacheWarning, match="other users may write to it"):
        cache.open(KEY_FIELDS, build).close()
    assert stat.S_IMODE(entry.folder.stat().st_mode) == 0o700
    assert cache.verify() == {}


@posix
def test_hashes_in_a_folder_of_others_are_not_believed(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SETTLED", -1.0)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    right = cache.fingerprint_files([weights])
    (record,) = (cache.path / "files").iterdir()
    forged = {**json.loads(record.read_text()), "xxh3_128": "0" * 32}
    record.write_text(json.dumps(forged))
    assert cache.fingerprint_files([weights]) != right
    (cache.path / "files").chmod(0o777)
    assert cache.fingerprint_files([weights]) == right


def test_where_there_are_no_users_and_modes(cache, build, monkeypatch):
    """As on Windows."""
    cache.open(KEY_FIELDS, build).close()
    cache.path.chmod(0o777)
    monkeypatch.delattr(os, "geteuid", raising=False)
    with cache.open(KEY_FIELDS, build) as entry:
        assert entry.hit


# Temporary folders


def test_temporary_folders_that_are_not_ours_stay(tmp_path, monkeypatch, build):
    monkeypatch.setattr(store, "temporary_folder", lambda: tmp_path)
    for name in ("ovtensor-scratch-notes", f"ovtensor-scratch-{RANDOM}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.docx").write_text("mine")
        (tmp_path / f"{name}.lock").write_text("" if "notes" in name else "mine")
    before = snapshot(tmp_path)
    store.ScratchStore().open(KEY_FIELDS, build).close()
    assert snapshot(tmp_path) == before
