"""Hashes of weights: nothing that changes a number goes unseen, nothing is read twice."""

from __future__ import annotations

import json
import os
import time
import tracemalloc

import numpy as np
import openvino as ov
import pytest
import torch

from ovtensor.cache import ScratchStore, fingerprints
from ovtensor.cache.fingerprints import FileFingerprints, hash_file, hash_tensors
from ovtensor.errors import DatalessTensorError


@pytest.fixture
def memory(tmp_path) -> FileFingerprints:
    (tmp_path / "files").mkdir()
    return FileFingerprints(tmp_path / "files")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file that is old enough to be remembered."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * 64)
    monkeypatch.setattr(fingerprints, "_SETTLED", 0.02)
    time.sleep(0.05)
    return path


@pytest.fixture
def reads(monkeypatch):
    """The files that were read."""
    found = []

    def counted(path):
        found.append(path)
        return hash_file(path)

    monkeypatch.setattr(fingerprints, "hash_file", counted)
    return found


def rewrite_unseen(path, content: bytes) -> None:
    """Write other content behind the same size and time of change."""
    before = path.stat()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


def test_an_unchanged_file_is_read_once(memory, weights, reads, tmp_path):
    first = memory.of_files([weights])
    assert FileFingerprints(tmp_path / "files").of_files([weights]) == first
    assert reads == [weights]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no time of change of an inode")
def test_a_file_rewritten_behind_size_and_time_is_read_again(memory, weights, reads):
    first = memory.of_files([weights])
    content = bytearray(weights.read_bytes())
    content[5000] ^= 1
    rewrite_unseen(weights, bytes(content))
    assert memory.of_files([weights]) != first
    assert len(reads) == 2


def test_a_file_written_just_now_is_not_remembered(memory, tmp_path, reads):
    """The clock of a file system is coarse: two versions of a file can have the same times."""
    path = tmp_path / "young.safetensors"
    path.write_bytes(b"one")
    first = memory.of_files([path])
    assert list((tmp_path / "files").iterdir()) == []
    rewrite_unseen(path, b"two")
    assert memory.of_files([path]) != first


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    memory, weights, monkeypatch, tmp_path
):
    def slow(path):
        checksum = hash_file(path)
        with path.open("ab") as file:
            file.write(b"more")
        return checksum

    monkeypatch.setattr(fingerprints, "hash_file", slow)
    memory.of_files([weights])
    assert list((tmp_path / "files").iterdir()) == []


def test_a_file_put_in_the_place_of_another(memory, weights, tmp_path):
    first = memory.of_files([weights])
    other = tmp_path / "other"
    other.write_bytes(bytes(weights.stat().st_size))
    os.utime(other, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns))
    other.replace(weights)
    assert memory.of_files([weights]) != first


def test_links_as_a_hub_makes_them(memory, tmp_path, weights):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    link = snapshot / weights.name
    (blobs / "abc").write_bytes(weights.read_bytes())
    (blobs / "def").write_bytes(b"other")
    link.symlink_to(blobs / "abc")
    assert memory.of_files([link]) == memory.of_files([weights])
    link.unlink()
    link.symlink_to(blobs / "def")
    assert memory.of_files([link]) != memory.of_files([weights])


def test_shards_that_change_places_or_names(memory, tmp_path):
    one, two = tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"
    one.write_bytes(b"aaaa")
    two.write_bytes(b"bbbb")
    first = memory.of_files([one, two])
    assert memory.of_files([two, one]) != first
    assert memory.of_files([one]) != first
    assert memory.of_files([one, two.rename(tmp_path / "model-3.safetensors")]) != first
    two = (tmp_path / "model-3.safetensors").rename(two)
    assert memory.of_files([one, two]) == first
    one.write_bytes(b"bbbb")
    two.write_bytes(b"aaaa")
    assert memory.of_files([one, two]) != first
    one.write_bytes(b"aaa")
    two.write_bytes(b"abbbb")
    assert memory.of_files([one, two]) != first


@pytest.mark.parametrize(
    "record", ["", "{}", "[1]", "null", '{"xxh3_128": 5, "path": ""}', "\0\1\2"]
)
def test_a_broken_record_is_no_record(memory, weights, tmp_path, record):
    first = memory.of_files([weights])
    (path,) = (tmp_path / "files").iterdir()
    path.write_text(record)
    assert memory.of_files([weights]) == first


def test_no_folder_for_records_is_no_failure(tmp_path, weights):
    nowhere = FileFingerprints(tmp_path / "nowhere")
    assert nowhere.of_files([weights]) == nowhere.of_files([weights])


def test_a_missing_file_is_an_error(memory, tmp_path):
    with pytest.raises(FileNotFoundError):
        memory.of_files([tmp_path / "nowhere"])


def test_old_records_go(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SETTLED", -1.0)
    monkeypatch.setattr(fingerprints, "_MOST_REMEMBERED", 2)
    for index in range(5):
        path = tmp_path / f"{index}.safetensors"
        path.write_bytes(b"x")
        memory.of_files([path])
    assert len(list((tmp_path / "files").iterdir())) == 2


def test_what_has_the_name_of_a_record_and_is_none_stays(memory, weights, tmp_path, monkeypatch):
    first = memory.of_files([weights])
    (record,) = (tmp_path / "files").iterdir()
    stored = json.loads(record.read_text())
    mine = {
        record: "mine",
        record.with_name("1f-2a.json"): json.dumps(stored),  # says that it is of another file
        record.with_name("2f-2a.json"): json.dumps({"device": 0x2F, "inode": 0x2A}),
        record.with_name(f"{record.name}.bak"): json.dumps(stored),
        record.with_name(f"{record.name}.0123abcd"): "mine",
    }
    for path, text in mine.items():
        path.write_text(text)
    assert memory.of_files([weights]) == first
    memory.forget(keep=0)
    assert {path: path.read_text() for path in (tmp_path / "files").iterdir()} == mine


def test_half_written_records_go(memory, weights, tmp_path):
    memory.of_files([weights])
    (record,) = (tmp_path / "files").iterdir()
    record.with_name(f"{record.name}.0123abcd").write_text(record.read_text())
    record.with_name("1f-2a.json.0123abcd").write_text("")
    memory.forget(keep=0)
    assert list((tmp_path / "files").iterdir()) == []


def test_a_record_that_is_a_link_is_not_believed(memory, weights, tmp_path):
    first = memory.of_files([weights])
    (record,) = (tmp_path / "files").iterdir()
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps({**json.loads(record.read_text()), "xxh3_128": "0" * 32}))
    record.unlink()
    record.symlink_to(forged)
    assert memory.of_files([weights]) == first


ones = torch.ones(2, 3)
four = torch.arange(4.0)
zeros = torch.zeros(4, dtype=torch.uint8)
one_ulp = torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([("a", ones)], [("b", ones)]),
        ([("a", ones)], [("a", ones.T.contiguous())]),
        ([("a", ones)], [("a", ones.double())]),
        ([("a", ones.to(torch.bfloat16))], [("a", ones.to(torch.float16))]),
        ([("a", torch.zeros(4, dtype=torch.int16))], [("a", torch.zeros(4, dtype=torch.bfloat16))]),
        (
            [("a", torch.zeros(4, dtype=torch.uint8))],
            [("a", torch.zeros(4, dtype=torch.float8_e5m2))],
        ),
        ([("a", torch.tensor([0.0]))], [("a", torch.tensor([-0.0]))]),
        (
            [("a", torch.tensor([1.0]))],
            [("a", torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0])))],
        ),
        ([("a", ones[0]), ("b", ones[1])], [("b", ones[1]), ("a", ones[0])]),
        (
            [("a", torch.arange(3)), ("b", torch.arange(3, 4))],
            [("a", torch.arange(2)), ("b", torch.arange(2, 4))],
        ),
        ([("a", ones)], [("a", ones), ("b", torch.empty(0))]),
        ([("a", four.reshape(2, 2))], [("a", four.reshape(2, 2).T)]),
    ],
)
def test_tensors_that_look_alike(one, other):
    assert hash_tensors(one) != hash_tensors(other)


def test_equal_tensors_have_equal_hashes():
    base = torch.arange(24.0).reshape(4, 6)
    view = base[:, ::2]
    expected = hash_tensors([("a", view)])
    assert hash_tensors([("a", view.contiguous())]) == expected
    assert hash_tensors([("a", torch.nn.Parameter(view))]) == expected
    assert hash_tensors([("a", view.numpy())]) == expected
    assert hash_tensors([("a", ov.Tensor(view.contiguous().numpy()))]) == expected


def test_one_element_of_a_module():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)).to(torch.bfloat16)

    def fingerprint() -> str:
        return hash_tensors([*module.named_parameters(), *module.named_buffers()])

    before = fingerprint()
    with torch.no_grad():
        module[0].weight[3, 5] += 0.25
    changed = fingerprint()
    module[1].running_var[7] = 2
    assert len({before, changed, fingerprint()}) == 3


def test_a_tensor_without_values_is_an_error():
    with pytest.raises(DatalessTensorError):
        hash_tensors([("a", torch.empty(3, device="meta"))])


def test_no_copy_is_made_of_weights():
    weights = torch.zeros(16 * 2**20, dtype=torch.bfloat16)
    tracemalloc.start()
    try:
        hash_tensors([("a", weights)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_without_a_cache_nothing_is_read(tmp_path):
    store = ScratchStore()
    assert store.fingerprint_files([tmp_path / "nowhere"]) == ""
    assert store.fingerprint_tensors([("a", torch.empty(3, device="meta"))]) == ""


def test_masks_and_numpy_arrays():
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    other = np.ma.masked_array([1.0, 2.0], [True, False])
    found = {hash_tensors([("a", value)]) for value in (masked, other, np.array([1.0, 2.0]))}
    assert len(found) == 3
