"""Check what a wheel and an sdist hold against the files of this repository, and their metadata.

    python -m build --no-isolation && python tools/check_dist.py dist

The wheel has every file of ``src/ovtensor`` and nothing else beside its metadata. The sdist has
every file that git knows, with which the tests run from it, but those that only a repository needs.
"""

from __future__ import annotations

import argparse
import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
ONLY_IN_GIT = (".ci/", ".gitattributes")
URLS = {"Homepage", "Documentation", "Issues", "Changelog"}
CLASSIFIERS = {"Typing :: Typed", "Programming Language :: Python :: 3.10"}
DEPENDENCIES = {"numpy", "typing-extensions"}


def known_to_git(folder: str = ".") -> set[str]:
    """Every file below a folder, new ones included, ignored ones not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def differences(what: str, found: set[str], wanted: set[str]) -> list[str]:
    """A line for each file that is missing or not meant to be there."""
    return [
        *(f"{what} lacks {name}" for name in sorted(wanted - found)),
        *(f"{what} should not have {name}" for name in sorted(found - wanted)),
    ]


def metadata_faults(what: str, raw: bytes) -> list[str]:
    """What an index would refuse, and what it would not show."""
    metadata = Metadata.from_email(raw, validate=True)
    requirements = metadata.requires_dist or ()
    checks = {
        "urls": set(metadata.project_urls or {}) == URLS,
        "license": metadata.license_expression == "Apache-2.0",
        "license files": metadata.license_files == ["LICENSE"],
        "oldest Python": str(metadata.requires_python) == ">=3.10",
        "text": metadata.description == (ROOT / "README.md").read_text(encoding="utf-8"),
        "type of its text": metadata.description_content_type == "text/markdown",
        "classifiers": set(metadata.classifiers or ()) >= CLASSIFIERS,
        "hard dependencies": {one.name for one in requirements if not one.marker} == DEPENDENCIES,
    }
    return [f"{what}: wrong {name}" for name, right in checks.items() if not right]


def wheel_faults(path: Path) -> list[str]:
    """Faults of a wheel."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = next(PurePosixPath(name).parts[0] for name in names if ".dist-info/" in name)
        wanted = {name.removeprefix("src/") for name in known_to_git("src")}
        wanted |= {
            f"{info}/{name}"
            for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
        }
        faults = differences(path.name, names, wanted | {"ovtensor/py.typed"})
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
        if dict(scripts["console_scripts"]) != {"ovtensor": "ovtensor.cli:main"}:
            faults.append(f"{path.name}: wrong console scripts")
        return faults + metadata_faults(path.name, archive.read(f"{info}/METADATA"))


def sdist_faults(path: Path) -> list[str]:
    """Faults of an sdist."""
    top = path.name.removesuffix(".tar.gz") + "/"
    with tarfile.open(path) as archive:
        names = {one.name for one in archive if not one.isdir()}
        outside = sorted(name for name in names if not name.startswith(top))
        if outside:
            return [f"{path.name} has {name} outside of {top}" for name in outside]
        wanted = {name for name in known_to_git() if not name.startswith(ONLY_IN_GIT)}
        found = {name.removeprefix(top) for name in names}
        metadata = archive.extractfile(top + "PKG-INFO")
        assert metadata is not None
        return [
            *differences(path.name, found, wanted | {"PKG-INFO"}),
            *metadata_faults(path.name, metadata.read()),
        ]


def main() -> None:
    """Check the one wheel and the one sdist of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    folder = parser.parse_args().folder
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    faults = wheel_faults(wheel) + sdist_faults(sdist)
    if faults:
        sys.exit("\n".join(faults))
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, as it should be")


if __name__ == "__main__":
    main()
