"""What is logged: hits and misses with a label and a reason, and what was gone on without."""

from __future__ import annotations

import logging

import pytest

from cache_entries import Builder
from ovtensor import _disk
from ovtensor.cache import ModelCache, fingerprints
from ovtensor.cache.misses import reason_of_miss
from ovtensor.errors import CacheWarning

UNET = {
    "kind": "ir",
    "graph": "unet",
    "weights": {"files": "0123"},
    "loras": [],
    "versions": {"openvino": "2026.3.0", "torch": "2.13.0"},
}


@pytest.fixture
def told(caplog):
    """The lines of one level that were logged since the last call."""
    caplog.set_level(logging.DEBUG, "ovtensor")

    def since(level: int = logging.INFO) -> list[str]:
        assert {record.name for record in caplog.records} <= {"ovtensor"}
        assert all(record.levelno < logging.WARNING for record in caplog.records)
        found = [r.getMessage() for r in caplog.records if r.levelno == level]
        caplog.clear()
        return found

    return since


def test_a_miss_and_a_hit_are_told_with_their_label(cache, build, told):
    with cache.open(UNET, build, label="unet in f32") as entry:
        key = entry.key[:12]
    assert told() == [
        f"cache miss: unet in f32 ({key}): there is no entry of its kind and graph",
    ]
    cache.open(UNET, build, label="unet in f32").close()
    assert told() == [f"cache hit: unet in f32 ({key})"]
    cache.find(UNET).close()
    assert told() == [f"cache hit: unet in f32 ({key})"]


def test_what_is_not_found_at_once_is_a_detail(cache, told):
    """`open` comes next and tells the miss."""
    assert cache.find(UNET) is None
    assert told() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"versions": {"openvino": "2026.4.1", "torch": "2.13.0"}},
            "versions.openvino 2026.3.0 -> 2026.4.1",
        ),
        ({"weights": {"files": "4567"}}, "weights.files 0123 -> 4567"),
        ({"weights": None}, "weights (none) -> null, weights.files 0123 -> (none)"),
        ({"loras": [{"scale": 0.5}]}, "loras [] -> (none), loras[0].scale (none) -> 0.5"),
        ({"tuned": True}, "tuned (none) -> true"),
        ({"weights": "x" * 100}, f"weights (none) -> {'x' * 37}..., weights.files 0123 -> (none)"),
        ({f"n{i}": i for i in range(20)}, "n0 (none) -> 0, "),
        ({"graph": "vae_decoder"}, "there is no entry of its kind and graph"),
    ],
)
def test_a_miss_says_in_what_it_differs(cache, build, told, change, reason):
    cache.open(UNET, build).close()
    told()
    cache.open({**UNET, **change}, build, label="unet").close()
    (line,) = told()
    assert line.partition("): ")[2].startswith(reason)
    assert len(line) < 400


def test_the_nearest_entry_is_compared(cache, build):
    far = {**UNET, "precision": "bf16", "versions": {"openvino": "2025.1"}}
    for fields in (far, UNET, {**far, "x": 1}, {**UNET, "graph": "vae_encoder"}):
        cache.open(fields, build).close()
    fields = {**UNET, "precision": "f32"}
    assert reason_of_miss(cache._folder, fields) == "precision (none) -> f32"


def test_an_entry_and_its_base(cache, build, told):
    for content in (b"one", b"two"):
        with cache.open(UNET, Builder(content)) as base:
            cache.open({"kind": "blob", "graph": "unet"}, build, base=base, label="blob").close()
            with pytest.warns(CacheWarning):
                base.reject("for this test")
    (line,) = (line for line in told() if "base.content" in line)
    assert line.startswith("cache miss: blob (")
    assert "base.key" not in line


def test_a_broken_entry_is_the_reason(cache, build, told):
    with cache.open(UNET, build) as entry:
        pass
    (entry.folder / "model.bin").write_bytes(b"x")
    told()
    with pytest.warns(CacheWarning):
        cache.open(UNET, build, label="unet").close()
    (line,) = told()
    assert line.endswith("the entry was broken: model.bin has 1 bytes, and 7000 were written")


def test_broken_entries_are_no_neighbours(cache, build, told):
    with cache.open(UNET, build) as entry:
        pass
    (entry.folder / "manifest.json").write_text("{")
    assert reason_of_miss(cache._folder, {**UNET, "x": 1}).startswith("there is no entry")


def test_nobody_reads_manifests_for_a_reason_that_is_not_logged(cache, build, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "ovtensor")
    monkeypatch.setattr("ovtensor.cache.entries.reason_of_miss", None)
    cache.open(UNET, build).close()
    assert not caplog.records


def test_what_was_gone_on_without_is_a_detail(cache, build, told, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SETTLED", -1.0)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    nowhere = fingerprints.FileFingerprints(tmp_path / "nowhere")
    assert nowhere.of_files([weights])
    (line,) = told(logging.DEBUG)
    assert line.startswith("a file's hash is not remembered: ")
    assert "No such file" in line

    monkeypatch.setattr(_disk.shutil, "rmtree", lambda path, **_: None)
    _disk.remove(tmp_path)
    assert told(logging.DEBUG) == [f"{tmp_path} cannot be removed now"]


def test_what_is_removed_for_others_is_a_detail(tmp_path, build, told):
    cache = ModelCache(tmp_path / "cache", max_bytes=10_000)
    cache.open({"n": 0}, build, label="the first").close()
    cache.open({"n": 1}, build, label="the second").close()
    assert [line for line in told(logging.DEBUG) if line.startswith("removed")] == [
        "removed the first, used least recently, for max_bytes is 10000"
    ]


def test_nothing_appears_where_nobody_asked(python, tmp_path):
    code = """
import sys
from cache_entries import KEY_FIELDS, Builder
from ovtensor.cache import ModelCache
ModelCache(sys.argv[1]).open(KEY_FIELDS, Builder()).close()
"""
    assert python(code, tmp_path / "cache").communicate() == ("", "")
