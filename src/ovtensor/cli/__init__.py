"""The command line: ``ovtensor demo``, ``ovtensor generate`` and ``ovtensor cache``.

Exit status 0 for success, 2 with one line on standard error for arguments that cannot be right,
1 for a run that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ovtensor
from ovtensor.cli import cache as cache_commands
from ovtensor.errors import InputError, OvtensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL import Image


DEMO_PROMPTS = (
    "a large red circle on a blue background",
    "a small yellow triangle on a black background",
    "a large green square on a white background",
    "a small purple circle on a yellow background",
)
DEMO_STEPS = 20
DEMO_GUIDANCE = 2.0  # draws the embedded model's cleanest shapes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except InputError as error:
        print(f"ovtensor: {_one_line(error)}", file=sys.stderr)
        return 2
    except (OvtensorError, OSError) as error:
        print(f"ovtensor: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ovtensor: interrupted", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for those who ask with ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ovtensor", description=ovtensor.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"ovtensor {ovtensor.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    common = _Parser(add_help=False)
    common.add_argument("--device", default="CPU", help="OpenVINO device (default: CPU)")
    common.add_argument("--quiet", action="store_true", help="no progress bars")

    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="draw four pictures with the embedded model, twice",
        description="Draw four pictures with the embedded model, UNet on OpenVINO and VAE on "
        "torch, then draw them again and compare every byte.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("ovtensor-demo.png"), help="(default: ovtensor-demo.png)"
    )
    demo.set_defaults(run=_drawing(_demo))

    generate = commands.add_parser(
        "generate",
        parents=[common],
        help="draw one picture with any SDXL model",
        description="Draw one picture with any SDXL model.",
    )
    generate.add_argument("prompt", metavar="PROMPT")
    generate.add_argument(
        "--model", help="folder or hub id of an SDXL model (default: the embedded one)"
    )
    generate.add_argument("--steps", type=_positive, default=30, help="(default: 30)")
    generate.add_argument("--guidance", type=float, default=5.0, help="scale (default: 5.0)")
    generate.add_argument("--seed", type=int, default=0, help="(default: 0)")
    generate.add_argument(
        "--size", type=_size, metavar="WIDTHxHEIGHT", help="pixels (default: the model's own)"
    )
    for name, default in (("unet", "openvino"), ("vae", "torch")):
        generate.add_argument(
            f"--{name}", default=default, metavar="BACKEND", help=f"(default: {default})"
        )
    generate.add_argument("--precision", default="auto", help="auto, f32, bf16 or f16")
    generate.add_argument(
        "--cache", action="store_true", help="keep converted models for the next time"
    )
    generate.add_argument(
        "--out", type=Path, default=Path("ovtensor.png"), help="(default: ovtensor.png)"
    )
    generate.set_defaults(run=_drawing(_generate))

    cache_commands.add_commands(commands)
    return parser


def _drawing(draw: Callable[[argparse.Namespace, bool], int]) -> Callable[..., int]:
    """What the commands have in common that write a picture."""

    def run(args: argparse.Namespace) -> int:
        quiet = args.quiet or not sys.stdout.isatty()
        _check_target(args.out)
        with _library_noise(quiet):
            return draw(args, quiet)

    return run


def _demo(args: argparse.Namespace, quiet: bool) -> int:
    import torch

    from ovtensor.pipelines import Backend, sdxl_pipeline

    runs: list[list[bytes]] = []
    seconds: list[float] = []
    compiles: list[int] = []
    with sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), unet=Backend("openvino", args.device), progress=not quiet
    ) as pipe:
        for _ in range(2):
            start = time.perf_counter()
            images = [
                pipe(
                    prompt,
                    num_inference_steps=DEMO_STEPS,
                    guidance_scale=DEMO_GUIDANCE,
                    generator=torch.Generator().manual_seed(seed),
                ).images[0]
                for seed, prompt in enumerate(DEMO_PROMPTS)
            ]
            seconds.append(time.perf_counter() - start)
            runs.append([image.tobytes() for image in images])
            compiles.append(sum(row.compiles for row in pipe.ovtensor.report()))
        report = pipe.ovtensor.report()
    _save(_grid(images), args.out)
    print(report)
    print(
        f"compilations: {compiles[0]} up to the end of run 1, {compiles[1] - compiles[0]} in run 2"
    )
    equal = runs[0] == runs[1]
    for number, total in enumerate(seconds, start=1):
        print(f"run {number}: {total / len(DEMO_PROMPTS):.2f} s per image")
    print(f"run 2 equals run 1 byte for byte: {'yes' if equal else 'NO'}")
    print(f"pictures: {args.out}")
    return 0 if equal else 1


def _generate(args: argparse.Namespace, quiet: bool) -> int:
    import torch

    from ovtensor.pipelines import Backend, sdxl_pipeline

    def backend(kind: str, argument: str) -> Backend:
        known = Backend.of(kind, argument)
        device = args.device if known.kind == "openvino" else "CPU"
        return Backend(known.kind, device, args.precision)

    width, height = args.size or (None, None)
    with sdxl_pipeline(
        args.model if args.model is not None else ovtensor.tiny_sdxl_path(),
        unet=backend(args.unet, "--unet"),
        vae=backend(args.vae, "--vae"),
        cache=args.cache,
        progress=not quiet,
    ) as pipe:
        image = pipe(
            args.prompt,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            width=width,
            height=height,
            generator=torch.Generator().manual_seed(args.seed),
        ).images[0]
    _save(image, args.out)
    print(args.out)
    return 0


def _grid(images: list[Image.Image]) -> Image.Image:
    """Four pictures, two by two."""
    from PIL import Image

    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % 2 * width, index // 2 * height))
    return sheet


def _save(image: Image.Image, target: Path) -> None:
    """Write beside, then rename: there is a whole picture or none."""
    part = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        image.save(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _check_target(target: Path) -> None:
    """Refuse before the work, not after it, what could not be written."""
    if target.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp", ".bmp"}:
        raise InputError(f"--out {str(target)!r} should end in .png, .jpg, .webp or .bmp")
    if target.is_dir():
        raise InputError(f"--out {str(target)!r} is a folder; give a file name")
    if not target.parent.is_dir():
        raise InputError(f"the folder of --out {str(target)!r} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"the folder of --out {str(target)!r} cannot be written to")


@contextlib.contextmanager
def _library_noise(quiet: bool) -> Iterator[None]:
    """Keep the loading bars and notes of diffusers and transformers off a quiet terminal."""
    try:
        import diffusers.utils.logging as diffusers_logging
        import transformers.utils.logging as transformers_logging
    except ModuleNotFoundError:  # said properly when the pipeline is asked for
        yield
        return
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    for library in libraries:
        library.set_verbosity_error()
        if quiet:
            library.disable_progress_bar()
    yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    try:
        size = int(width), int(height or width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1024x768") from None
    for side in size:
        if side < 8 or side % 8:
            raise argparse.ArgumentTypeError(
                f"width and height are multiples of 8 pixels, which {side} is not"
            )
    return size
