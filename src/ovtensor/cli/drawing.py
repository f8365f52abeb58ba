"""The commands that draw: ``ovtensor demo`` and ``ovtensor generate``."""

from __future__ import annotations

import contextlib
import gc
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovtensor.cli.arguments import model, number, path, size, text
from ovtensor.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from PIL import Image


DEMO_PROMPTS = (
    "a large red circle on a blue background",
    "a small yellow triangle on a black background",
    "a large green square on a white background",
    "a small purple circle on a yellow background",
)
DEMO_STEPS = 20
DEMO_GUIDANCE = 2.0  # draws the embedded model's cleanest shapes

_steps = number(int, 1, 1000, "a positive number up to 1000")
_guidance = number(float, -1000, 1000, "a number from -1000 to 1000")
_seed = number(int, -(2**63), 2**64 - 1, "a whole number from -2**63 to 2**64 - 1")


def add_commands(commands: Any) -> None:
    """Add ``demo`` and ``generate`` to a parser's sub-commands."""
    demo = commands.add_parser(
        "demo",
        help="draw four pictures with the embedded model, twice",
        description="Draw four pictures with the embedded model, UNet on OpenVINO and VAE on "
        "torch, then draw them again and compare every byte.",
    )
    _add_common(demo, "ovtensor-demo.png", _demo)

    generate = commands.add_parser(
        "generate",
        help="draw one picture with any model of a known family, such as SDXL",
        description="Draw one picture with any model of a known family, such as SDXL.",
    )
    generate.add_argument("prompt", type=text, metavar="PROMPT")
    generate.add_argument(
        "--model", type=model, help="a model's folder or hub id (default: the embedded one)"
    )
    generate.add_argument("--steps", type=_steps, default=30, help="(default: 30)")
    generate.add_argument("--guidance", type=_guidance, default=5.0, help="scale (default: 5.0)")
    generate.add_argument("--seed", type=_seed, default=0, help="(default: 0)")
    generate.add_argument(
        "--size", type=size, metavar="WIDTHxHEIGHT", help="pixels (default: the model's own)"
    )
    for name, default in (("unet", "openvino"), ("vae", "torch")):
        generate.add_argument(
            f"--{name}", type=text, default=default, metavar="BACKEND", help=f"(default: {default})"
        )
    generate.add_argument("--precision", type=text, default="auto", help="auto, f32, bf16 or f16")
    generate.add_argument(
        "--cache", action="store_true", help="keep converted models for the next time"
    )
    _add_common(generate, "ovtensor.png", _generate)


def _add_common(
    command: argparse.ArgumentParser, out: str, draw: Callable[[argparse.Namespace, bool], int]
) -> None:
    def run(args: argparse.Namespace) -> int:
        _check_target(args.out)
        return draw(args, args.quiet or sys.stdout is None or not sys.stdout.isatty())

    command.add_argument(
        "--device", type=text, default="CPU", help="OpenVINO device (default: CPU)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.add_argument("--out", type=path, default=Path(out), help=f"(default: {out})")
    command.set_defaults(run=run)


def _demo(args: argparse.Namespace, quiet: bool) -> int:
    runs: list[list[bytes]] = []
    seconds: list[float] = []
    compiles: list[int] = []
    with _opened({"unet": "openvino"}, args.device, quiet=quiet) as pipe:
        import torch

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
    for run, total in enumerate(seconds, start=1):
        print(f"run {run}: {total / len(DEMO_PROMPTS):.2f} s per image")
    print(f"run 2 equals run 1 byte for byte: {'yes' if equal else 'NO'}")
    print(f"pictures: {args.out}")
    return 0 if equal else 1


def _generate(args: argparse.Namespace, quiet: bool) -> int:
    kinds = {"unet": args.unet, "vae": args.vae}
    given = {"precision": args.precision, "model": args.model, "cache": args.cache}
    width, height = args.size or (None, None)
    with _opened(kinds, args.device, **given, quiet=quiet) as pipe:
        import torch

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


@contextlib.contextmanager
def _opened(
    kinds: dict[str, str],
    device: str,
    *,
    quiet: bool,
    precision: Any = "auto",
    model: str | None = None,
    cache: bool = False,
) -> Iterator[Any]:
    """The pipeline of a model, with a component on each of these kinds of backend."""
    with contextlib.ExitStack() as stack:
        with _uncollected():
            import ovtensor

            backends = {
                name: ovtensor.Backend(
                    ovtensor.Backend.of(kind, f"--{name}").kind,
                    device if kind == "openvino" else "CPU",
                    precision,
                )
                for name, kind in kinds.items()
            }
            session = ovtensor.pipeline(
                model or ovtensor.tiny_sdxl_path(),
                backends=backends,
                cache=cache,
                progress=not quiet,
            )
            _quieten_libraries(quiet)
            pipe = stack.enter_context(session)
        yield pipe


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage meanwhile, where very many objects are made that stay.

    Looking through those of torch and diffusers again and again took 0.4 of 4.6 seconds while they
    were imported. Afterwards they count as old, or the next collection would go through them all.
    The process is ours here; the library leaves its user's collector alone.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # else there are some that their owner keeps frozen
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        gc.enable()


def _quieten_libraries(quiet: bool) -> None:
    """Keep the loading bars and notes of diffusers and transformers off a quiet terminal."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    for library in libraries:
        library.set_verbosity_error()
        if quiet:
            library.disable_progress_bar()


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
    part = _beside(target)
    try:
        image.save(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{os.urandom(8).hex()}.part{target.suffix}")


def _check_target(target: Path) -> None:
    """Refuse before the work, not after it, what could not be written."""
    if target.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp", ".bmp"}:
        raise InputError(f"--out {str(target)!r} should end in .png, .jpg, .webp or .bmp")
    part = _beside(target)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(target.stat().st_mode):
                raise InputError(f"--out {str(target)!r} is a folder; give a file name")
        try:
            part.touch(exist_ok=False)
        finally:
            part.unlink(missing_ok=True)
    except FileNotFoundError:
        raise InputError(f"the folder of --out {str(target)!r} does not exist") from None
    except OSError as error:
        raise InputError(f"--out {str(target)!r} cannot be written: {error.strerror}") from None
