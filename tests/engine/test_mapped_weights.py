"""Weights of linear layers stay in their file where OpenVINO would keep wide copies of them."""

from __future__ import annotations

import concurrent.futures
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.activations import GEGLU

import ovtensor
from child import needs_proc, numbers
from engine_graphs import EVERY_STEP, plan_of
from ovtensor import Backend
from ovtensor.engine import MemoryPolicy, compiled
from ovtensor.engine.graph import NO_TRAITS
from ovtensor.engine.passes import mapped_weights
from ovtensor.engine.passes.mapped_weights import MappedWeights
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

MAPS = Path("/proc/self/maps")
F32 = Backend("openvino", precision="f32")
ALL = {"unet": F32, "vae": F32, "text_encoders": F32, "progress": False}


def mapped_files():
    return sum("/linear-" in line for line in MAPS.read_text().splitlines())


@pytest.fixture
def scarce(monkeypatch):
    """Little enough memory for the embedded UNet to be a large one."""
    monkeypatch.setenv("OVTENSOR_MEMORY_LIMIT", "1")


@pytest.mark.parametrize(
    ("backend", "stay"),
    [
        (F32, True),
        (Backend("openvino", precision="bf16"), True),
        (Backend("openvino", precision="f16"), False),
        (Backend("openvino", precision="f32", weights="int8"), False),
        (Backend("openvino", precision="bf16", weights="int8"), False),
        (Backend("openvino", "GPU", precision="f32"), False),
        (Backend("openvino", "AUTO:CPU", precision="f32"), False),
    ],
)
def test_where_they_stay(backend, stay):
    weights = 1000
    size = {"f32": 4}.get(backend.precision, 2) * weights

    def mapped(traits, limit=None):
        plan = plan_of(backend, traits, size=weights, memory=MemoryPolicy(limit))
        return "mapped_weights" in plan.passes

    assert mapped(NO_TRAITS) is stay
    assert mapped(EVERY_STEP, 100 * size) is False
    assert mapped(EVERY_STEP, 100 * size - 100) is stay


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_pictures_are_those_of_constants(static, monkeypatch):
    backend = Backend("openvino", precision="f32", static_shapes=static)
    pictures = []
    for limit in (1, sys.maxsize):
        monkeypatch.setenv("OVTENSOR_MEMORY_LIMIT", str(limit))
        with ovtensor.split_backends(load(), unet=backend, vae=F32, text_encoders=F32) as pipe:
            pictures.append(draw(pipe, SCENES[0], num_inference_steps=4))
    # No byte was seen to differ; but sums in another order can tip a value on the edge.
    difference = np.abs(pictures[0].astype(int) - pictures[1].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.usefixtures("scarce")
def test_all_linear_layers_are_taken_out(tmp_path):
    pipe = load()
    layers = [part for part in pipe.unet.modules() if isinstance(part, torch.nn.Linear)]
    kinds = {"unet": F32, "vae": "torch", "text_encoders": "torch", "progress": False}
    with ovtensor.split_backends(pipe, cache=tmp_path, **kinds) as lent:
        row = lent.ovtensor.report().to_dict()["unet"]
    gated = [part for part in pipe.unet.modules() if isinstance(part, GEGLU)]
    (folder,) = (path.parent for path in tmp_path.rglob(compiled.MODEL))
    weights = mapped_weights.tensors(folder)
    assert len(weights) == len(layers) + len(gated)  # whose halves are layers of their own
    assert sum(weight.byte_size for weight in weights.values()) == sum(
        layer.weight.nbytes for layer in layers
    )
    files = [folder / compiled.WEIGHTS, *mapped_weights.files(folder)]
    assert row["weight_bytes"] == sum(path.stat().st_size for path in files)


@pytest.mark.usefixtures("scarce")
@pytest.mark.parametrize("unknown", ["in the graph", "in the file"])
def test_a_layer_that_only_one_of_both_has(unknown, monkeypatch):
    on_module, on_model = MappedWeights.on_module, MappedWeights.on_model

    def write_all_but_one(self, module, folder):
        linear = [part for part in module.modules() if type(part) is torch.nn.Linear]
        on_module(self, torch.nn.ModuleList(linear[1:]), folder)

    def take_all_but_one(self, model):
        self._places = dict(list(self._places.items())[1:])
        on_model(self, model)

    pictures = []
    for changed in (False, True):
        if changed and unknown == "in the graph":
            monkeypatch.setattr(MappedWeights, "on_module", write_all_but_one)
        elif changed:
            monkeypatch.setattr(MappedWeights, "on_model", take_all_but_one)
        with ovtensor.split_backends(load(), **ALL) as pipe:
            pictures.append(draw(pipe, SCENES[0], num_inference_steps=2))
    difference = np.abs(pictures[0].astype(int) - pictures[1].astype(int))
    assert difference.max() <= 1  # as between constants and mapped weights


def test_layers_that_share_their_weights(tmp_path):
    one, tied, alike, part = (torch.nn.Linear(6, 8, bias=False).half() for _ in range(4))
    tied.weight = one.weight
    alike.weight = torch.nn.Parameter(one.weight.detach(), requires_grad=False)
    part.weight = torch.nn.Parameter(one.weight[:4].detach(), requires_grad=False)
    expected = one.weight.detach().bfloat16()
    MappedWeights("bf16").on_module(torch.nn.ModuleList([one, tied, alike, part]), tmp_path)
    assert one.weight is tied.weight
    assert one.weight.data_ptr() == alike.weight.data_ptr()
    for layer, weight in ((one, expected), (alike, expected), (part, expected[:4])):
        assert torch.equal(layer.weight, weight)
    sizes = {name: list(tensor.shape) for name, tensor in mapped_weights.tensors(tmp_path).items()}
    assert sizes == {"weight.0": [8, 6], "weight.1": [4, 6]}


@needs_proc
def test_casting_takes_the_memory_of_one_file():
    script = """
        import ctypes, sys, tempfile, torch
        from pathlib import Path
        from safetensors.torch import load_file, save_file
        from ovtensor.engine.passes import mapped_weights as mapped

        M_MMAP_THRESHOLD = -3  # glibc would keep some of what is freed, now more and now less
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
        held = []

        def watched(*args):
            held.append(anonymous())
            save_file(*args)

        mapped._FILE_BYTES, mapped.save_file = 2**24, watched
        precision, dtype = sys.argv[1], getattr(torch, sys.argv[2])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "checkpoint.safetensors")
            save_file({str(n): torch.randn(1024, 4096).half() for n in range(24)}, path)
            layers = [torch.nn.Linear(4096, 1024, bias=False, device="meta") for _ in range(24)]
            for layer, weight in zip(layers, load_file(path).values()):
                layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            before = anonymous()
            mapping = mapped.MappedWeights(precision)
            mapping.on_module(torch.nn.ModuleList(layers), Path(folder))
            print(max(*held, anonymous()) - before)
            stored = load_file(path).values()
            same = [layer.weight.equal(one.to(dtype)) for layer, one in zip(layers, stored)]
            print(int(all(same)), len(mapped.files(Path(folder))))
    """
    grown, same, files = numbers(script, 3, "bf16", "bfloat16")
    assert (same, files) == (1, 12)
    assert 16 << 20 <= grown < 20 << 20  # one file of twelve


@pytest.mark.usefixtures("scarce")
def test_size_and_run_change_as_with_constants(tmp_path):
    """Cold and warm, at other sizes and batches in between, in threads: the same bytes."""

    def drawn(pipe):
        first = draw(pipe, SCENES[0], num_inference_steps=2)
        draw(pipe, SCENES[1], num_inference_steps=1, height=96, width=64)
        draw(pipe, SCENES[1], num_inference_steps=1, guidance_scale=1.0)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            others = [pool.submit(draw, pipe, SCENES[0], num_inference_steps=2) for _ in range(3)]
        return [first, *(other.result() for other in others)]

    pictures = []
    for state in ("miss", "hit"):
        with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), cache=tmp_path, **ALL) as pipe:
            pictures += drawn(pipe)
            assert {row.cache for row in pipe.ovtensor.report()} == {state}
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


@needs_proc
@pytest.mark.usefixtures("scarce")
def test_nothing_is_mapped_after_the_block():
    before = mapped_files()
    with ovtensor.split_backends(load(), **ALL) as pipe:
        picture = draw(pipe, SCENES[0], num_inference_steps=1)
        assert mapped_files() >= before + 4
    assert mapped_files() == before
    assert picture.std() > 0


# What a picture takes with a UNet that has 100 MB in linear layers.
_MEMORY = """
    import os, sys, torch, ovtensor
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from ovtensor import Backend
    from ovtensor.engine import MemoryPolicy

    MemoryPolicy.is_scarce = lambda self: True  # so that what was computed in does not blur it
    own = StableDiffusionXLPipeline.from_pretrained(ovtensor.tiny_sdxl_path())
    config = {
        **own.unet.config,
        "block_out_channels": (32, 64, 256),
        "attention_head_dim": 16,
        "norm_num_groups": 16,
        "transformer_layers_per_block": (1, 1, 5),
        "layers_per_block": 1,
    }
    own.unet = UNet2DConditionModel.from_config(config).eval()
    linear = [part.weight for part in own.unet.modules() if isinstance(part, torch.nn.Linear)]
    print(sum(weight.nbytes for weight in linear))
    own.to(torch.float16).save_pretrained(sys.argv[1])
    del own, linear
    kinds = dict(unet=Backend("openvino", precision="f32"), vae="torch", text_encoders="torch")
    for limit in (1, sys.maxsize):
        os.environ["OVTENSOR_MEMORY_LIMIT"] = str(limit)
        with ovtensor.sdxl_pipeline(sys.argv[1], **kinds, progress=False) as pipe:
            pipe("a small red circle", num_inference_steps=1)
            drawn = anonymous()
        print(drawn - anonymous())
"""


@needs_proc
def test_they_take_no_memory_that_cannot_be_dropped(tmp_path):
    linear, inputs, constants = numbers(_MEMORY, 3, tmp_path)
    assert linear > 90 * 2**20
    assert constants - inputs > 0.8 * linear
