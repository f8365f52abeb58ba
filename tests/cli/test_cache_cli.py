"""``ovtensor cache``: what it prints, what it removes, and its exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cache_entries import KEY_FIELDS, Builder
from ovtensor import cli
from ovtensor.cache import ModelCache
from ovtensor.cli import cache as cache_commands


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run ``ovtensor cache`` on the test's folder; gives status, standard output and error."""
    monkeypatch.setenv("OVTENSOR_CACHE_DIR", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(["cache", *arguments])
        except SystemExit as stop:
            status = int(stop.code)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def filled(cache) -> ModelCache:
    """Two entries, of which the second was used an hour later, two hours ago."""
    for index, label in enumerate(["UNet of sdxl, bf16", ""]):
        fields = {**KEY_FIELDS, "n": index}
        with cache.open(fields, Builder(bytes(2_000_000 * (index + 1))), label=label) as entry:
            pass
        path = entry.folder / "manifest.json"
        used = path.stat().st_mtime - 3600 * (3 - index) - 5
        os.utime(path, (used, used))
    return cache


def test_where(run, tmp_path):
    assert run("where") == (0, f"{tmp_path / 'cache'}\n", "")
    assert run("where", "--path", "/elsewhere")[1] == "/elsewhere\n"
    assert json.loads(run("where", "--json")[1])["path"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_list(run, filled):
    newer, older = [entry.key for entry in filled.entries()][::-1]
    status, out, _ = run("list")
    assert status == 0
    assert out.splitlines() == [
        "key             size  used     what",
        f"{newer[:12]}  4.0 MB  2 h ago  kind=ir, weights=0123, openvino=2026.4.1, n=1",
        f"{older[:12]}  2.0 MB  3 h ago  UNet of sdxl, bf16",
        f"2 entries, 6.0 MB in {filled.path}",
    ]


def test_list_as_json(run, filled):
    found = json.loads(run("list", "--json")[1])
    assert [entry["key_fields"]["n"] for entry in found["entries"]] == [0, 1]
    assert found["entries"][0]["label"] == "UNet of sdxl, bf16"
    assert found["max_bytes"] == 20 * 2**30


def test_list_says_what_is_in_use_and_what_is_broken(run, filled):
    used, broken = (entry for entry in filled.entries())
    (filled.path / "entries" / broken.key / "manifest.json").write_text("{")
    with filled.open(used.key_fields, Builder()):
        out = run("list")[1]
    assert "in use   UNet of sdxl" in out
    assert "manifest.json cannot be read" in out


def test_an_empty_cache(run):
    status, out, _ = run("list")
    assert status == 0
    assert out.startswith("0 entries, 0 B in ")
    assert run("verify")[:2] == (0, "sound\n")
    assert run("clear")[:2] == (0, "0 entries, 0 B removed\n")


def test_verify(run, filled):
    assert run("verify") == (0, "sound\n", "")
    key = filled.entries()[0].key
    with (filled.path / "entries" / key / "model.bin").open("r+b") as file:
        file.write(b"x")
    status, out, _ = run("verify")
    assert status == 1
    assert out.splitlines()[0] == (
        f"{key}  model.bin is not what was written: its checksum differs"
    )
    status, out, _ = run("verify", "--json")
    assert (status, list(json.loads(out)["problems"])) == (1, [key])


def test_prune(run, filled):
    status, out, _ = run("prune", "--max-size", "5MB")
    assert (status, out) == (0, "1 entry, 2.0 MB removed\n1 entry, 4.0 MB left\n")
    assert [entry.key_fields["n"] for entry in filled.entries()] == [1]
    found = json.loads(run("prune", "--max-size", "0", "--json")[1])
    assert [entry["key_fields"]["n"] for entry in found["removed"]] == [1]
    assert found["left"] == []


def test_clear_leaves_what_is_in_use(run, filled):
    fields = filled.entries()[0].key_fields
    with filled.open(fields, Builder()):
        out = run("clear")[1]
    assert out == "1 entry, 4.0 MB removed\n1 entry, 2.0 MB left, 1 of them in use\n"
    assert run("clear")[1] == "1 entry, 2.0 MB removed\n"
    assert filled.entries() == []


def test_clear_names_what_nothing_proves_to_be_its_own(run, filled):
    md5 = "0123456789abcdef" * 2
    (filled.path / "entries" / md5).mkdir()
    (filled.path / "entries" / md5 / "thesis.docx").write_text("mine")
    assert run("clear")[1].splitlines() == [
        "2 entries, 6.0 MB removed",
        f"{md5}  stays, for nothing proves it to be an entry: it has no manifest.json",
    ]
    assert (filled.path / "entries" / md5 / "thesis.docx").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("5", 5),
        ("5B", 5),
        ("10GB", 10**10),
        ("10g", 10**10),
        ("1.5 KiB", 1536),
        ("2TiB", 2**41),
        ("3mb", 3 * 10**6),
    ],
)
def test_sizes(text, size):
    assert cache_commands._size(text) == size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "--max-size"),
        (["prune", "--max-size", "big"], "'big' is no size such as 10GB"),
        (["prune", "--max-size", "-1"], "--max-size"),
        (["prune", "--max-size", "5iB"], "is no size"),
        (["burn"], "invalid choice: 'burn'"),
        ([], "required"),
    ],
)
def test_bad_arguments_are_status_two_and_a_clear_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ovtensor cache")
    assert message in err


def test_a_folder_that_is_none_is_status_one(run, tmp_path):
    (tmp_path / "file").write_text("x")
    status, out, err = run("list", "--path", str(tmp_path / "file"))
    assert (status, out) == (1, "")
    assert err.startswith("ovtensor: [Errno")
    assert err.count("\n") == 1


def python(*lines: str) -> subprocess.CompletedProcess[str]:
    code = "\n".join(("import sys", *lines))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "line",
    [
        "cli.main(['cache', 'list'])",
        "cli.main(['cache', 'verify'])",
        "import ovtensor; ovtensor.ModelCache()",
    ],
)
def test_no_framework_is_loaded(filled, monkeypatch, line):
    monkeypatch.setenv("OVTENSOR_CACHE_DIR", str(filled.path))
    heavy = ("numpy", "torch", "openvino", "diffusers", "transformers")
    listing = f"print([name for name in {heavy} if name in sys.modules])"
    done = python("from ovtensor import cli", line, listing)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("package", ["filelock", "platformdirs", "xxhash"])
def test_a_missing_package_is_one_line(package):
    done = python(
        f"sys.modules[{package!r}] = None",
        "from ovtensor import cli",
        "sys.exit(cli.main(['cache', 'where']))",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"ovtensor: ovtensor.ModelCache needs {package}, which is not installed: "
        'pip install "ovtensor[all]"\n'
    )
