"""ovtensor and its peers on a middle-size SDXL, in turn: starts, pictures, memory.

    python benchmarks/sdxl_peers.py --json peers.json

Contenders: ovtensor and diffusers (eager in float32 and bfloat16, compiled by inductor), in a
virtual environment that this script makes with nothing but ``ovtensor[all]``; optimum-intel and
openvino-genai, in one that it makes from ``peers-requirements.txt``. Every measurement is a
process of its own. All compute in the precision of ``--precision`` but eager diffusers, which is
shown in both. openvino-genai reads no checkpoints: optimum-intel's export, and the conversion of
the tokenizers, is the first part of its cold start.

- cold: from starting the process to the first picture, from the checkpoint, no cache or export
- warm: the same with what a first run leaves on the disk
- picture: median seconds of the pictures after the first, in the warm processes
- in parentheses: seconds of CPU time, which a busy machine spoils less
- memory: the peak of the warm and of the cold process tree, anonymous; see ``watched.py``

Linux only. Makes a model of 0.6 GB and files of about 3 GB under ``--work``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import watched

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
REQUIREMENTS = HERE / "peers-requirements.txt"
CONSTRAINTS = REPOSITORY / "constraints.txt"


@dataclasses.dataclass(frozen=True, slots=True)
class Contender:
    """How one contender is run: its driver, whose environment, its precision."""

    name: str
    driver: str
    among_peers: bool
    precision: str
    compiled: bool = False


def contenders(precision: str) -> list[Contender]:
    """All contenders, ovtensor first."""
    found = [
        Contender("ovtensor", "draw_ovtensor.py", False, precision),
        Contender("optimum-intel", "draw_optimum.py", True, precision),
        Contender("openvino-genai", "draw_genai.py", True, precision),
        Contender("diffusers f32", "draw_diffusers.py", False, "f32"),
        Contender("diffusers bf16", "draw_diffusers.py", False, "bf16"),
    ]
    if shutil.which("g++"):
        found.append(Contender("inductor", "draw_diffusers.py", False, precision, compiled=True))
    else:
        print("no C++ compiler (g++), so torch.compile with inductor is left out")
    return found


def environment(folder: Path, requirements: list[str], pinned: Path) -> Path:
    """The Python of a virtual environment in ``folder``, made anew if ``pinned`` has changed."""
    python = folder / "bin" / "python"
    done = folder / "made-from"
    if not done.is_file() or done.read_bytes() != pinned.read_bytes():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", *requirements], check=True)
        # It comes along without a CPU build, and then no import of transformers works.
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
        done.write_bytes(pinned.read_bytes())
    return python


class Bench:
    """Runs contenders in processes of their own, with folders for what they leave behind."""

    def __init__(self, args: argparse.Namespace, model: Path, own: Path, peers: Path) -> None:
        self._args = args
        self._model = model
        self._own = own
        self._peers = peers
        self._log = args.work / "peers.log"
        self.exported: dict[str, Any] = {}

    def export(self) -> None:
        """Export for the two peers that need it; seconds and memory of the process."""
        folder = self._args.work / "exported"
        shutil.rmtree(folder, ignore_errors=True)
        python = str(self._peers)
        self.exported = self._process(
            [python, str(HERE / "peers" / "export.py")], {"folder": str(folder)}
        )
        if "error" in self.exported:
            raise SystemExit(f"optimum-intel could not export the model: {self.exported['error']}")

    def draw(self, contender: Contender, *, cold: bool) -> dict[str, Any]:
        """One process that opens the pipeline and draws."""
        folder = self._args.work / contender.name.replace(" ", "-")
        if contender.among_peers:
            folder = self._args.work / ("nothing" if cold else "exported")
        elif cold:
            shutil.rmtree(folder, ignore_errors=True)
        if contender.driver == "draw_genai.py":
            folder = self._args.work / "exported"  # it has no other start
        python = str(self._peers) if contender.among_peers else str(self._own)
        picture = self._args.work / f"{contender.name}.npy".replace(" ", "-")
        result = self._process(
            [python, str(HERE / "peers" / contender.driver)],
            {
                "folder": str(folder),
                "precision": contender.precision,
                "compiled": contender.compiled,
                "pictures": 1 if cold else self._args.pictures,
                "picture": str(picture),
            },
            {"TORCHINDUCTOR_CACHE_DIR": str(folder)},
        )
        if "error" in result:
            return result
        if cold and contender.driver == "draw_genai.py":
            for suffix in ("", "_cpu"):
                result[f"first_picture{suffix}"] += self.exported[f"exported{suffix}"]
            result["anonymous"] = max(result["anonymous"], self.exported["anonymous"])
        return {**result, **_looks(picture)}

    def _process(
        self, command: list[str], job: dict[str, Any], environment: dict[str, str] | None = None
    ) -> dict[str, Any]:
        result = self._args.work / "result.json"
        result.unlink(missing_ok=True)
        job = {
            "model": str(self._model),
            "side": self._args.side,
            "steps": self._args.steps,
            "result": str(result),
            **job,
        }
        seen = watched.run(
            [*self._args.prefix.split(), *command, json.dumps(job)],
            self._log,
            environment={"HF_HUB_OFFLINE": "1", **(environment or {})},
        )
        memory = {"anonymous": seen.anonymous, "file": seen.file, "resident": seen.resident}
        if seen.status != 0 or not result.is_file():
            return {"error": f"status {seen.status}, see {self._log}", **memory}
        return {**json.loads(result.read_text()), **memory}


def _looks(picture: Path) -> dict[str, Any]:
    """Whether a picture is one at all: neither constant nor of the wrong kind."""
    pixels = np.load(picture)
    if pixels.dtype != np.uint8 or pixels.std() < 1:
        raise SystemExit(f"{picture} is no picture: {pixels.dtype}, deviation {pixels.std():.2f}")
    return {"shape": list(pixels.shape), "deviation": round(float(pixels.std()), 2)}


def agreement(work: Path, found: list[Contender]) -> dict[str, float]:
    """Correlation of each contender's last picture with eager float32's."""
    pictures = {c.name: work / f"{c.name}.npy".replace(" ", "-") for c in found}
    eager = pictures.get("diffusers f32")
    if eager is None or not eager.is_file():
        return {}
    reference = np.load(eager).ravel()
    return {
        name: round(float(np.corrcoef(reference, np.load(path).ravel())[0, 1]), 4)
        for name, path in pictures.items()
        if path.is_file()
    }


def summarise(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The table, in Markdown."""
    rows = [
        "| | cold, s | warm, s | picture, s | peak anonymous cold / warm, GB | peak resident, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, kinds in runs.items():
        cold = [run for run in kinds["cold"] if "error" not in run]
        warm = [run for run in kinds["warm"] if "error" not in run]
        if not cold or not warm:
            rows.append(f"| {name} | failed | | | | |")
            continue
        later, later_cpu = (
            statistics.median(seconds for run in warm for seconds in run[key][1:])
            for key in ("pictures", "pictures_cpu")
        )
        cells = [
            f"{_median(cold, 'first_picture'):.1f} ({_median(cold, 'first_picture_cpu'):.0f})",
            f"{_median(warm, 'first_picture'):.1f} ({_median(warm, 'first_picture_cpu'):.0f})",
            f"{later:.2f} ({later_cpu:.1f})",
            f"{_median(cold, 'anonymous') / 1e9:.2f} / {_median(warm, 'anonymous') / 1e9:.2f}",
            f"{_median(warm, 'resident') / 1e9:.2f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _versions(python: Path) -> dict[str, str]:
    listing = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True
    ).stdout
    wanted = {"diffusers", "openvino", "openvino-genai", "optimum-intel", "torch", "transformers"}
    return {d["name"]: d["version"] for d in json.loads(listing) if d["name"] in wanted}


def _native_precision() -> str:
    return "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    base = Path(tempfile.gettempdir()) / "ovtensor-benchmarks"
    parser.add_argument("--work", type=Path, default=base, help="folder for models and caches")
    parser.add_argument("--own", type=Path, help="ovtensor's environment; by default in --work")
    parser.add_argument("--peers", type=Path, help="the peers' environment; by default in --work")
    parser.add_argument("--only", nargs="*", help="names of contenders; by default all of them")
    parser.add_argument("--precision", default=_native_precision(), choices=("f32", "bf16"))
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=4, help="in each warm process")
    parser.add_argument("--rounds", type=int, default=3, help="turns of warm processes")
    parser.add_argument("--cold-rounds", type=int, default=1, help="turns of cold processes")
    parser.add_argument("--prefix", default="", help="put before each measured command")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    own = environment(
        args.own or args.work / "own-venv",
        ["-c", str(CONSTRAINTS), "-e", f"{REPOSITORY}[all]"],
        CONSTRAINTS,
    )
    peers = environment(
        args.peers or args.work / "peers-venv", ["-r", str(REQUIREMENTS)], REQUIREMENTS
    )
    model = args.work / "sdxl-middle"
    tool = REPOSITORY / "tools" / "make_sdxl.py"
    subprocess.run([sys.executable, str(tool), "middle", str(model)], check=True)
    found = [c for c in contenders(args.precision) if not args.only or c.name in args.only]

    bench = Bench(args, model, own, peers)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        c.name: {"cold": [], "warm": []} for c in found
    }
    if any(contender.among_peers for contender in found):
        bench.export()
    for kind, rounds in (("cold", args.cold_rounds), ("warm", args.rounds)):
        for turn in range(rounds):
            for contender in found:
                run = bench.draw(contender, cold=kind == "cold")
                runs[contender.name][kind].append(run)
                print(f"{kind} {turn} {contender.name}: {json.dumps(run)}", flush=True)
                _write(args, runs, bench.exported, found, {"own": own, "peers": peers})
    print(summarise(runs))


def _write(
    args: argparse.Namespace,
    runs: dict[str, Any],
    export: dict[str, Any],
    found: list[Contender],
    pythons: dict[str, Path],
) -> None:
    if args.json is None:
        return
    report = {
        "machine": platform.processor() or platform.machine(),
        "cpu": str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME")),
        "versions": {name: _versions(python) for name, python in pythons.items()},
        "settings": {"side": args.side, "steps": args.steps, "precision": args.precision},
        "export": export,
        "runs": runs,
        "agreement": agreement(args.work, found),
    }
    args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
