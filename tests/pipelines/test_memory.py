"""What a block takes from the system it gives back, every time."""

from __future__ import annotations

import pytest

from child import needs_proc, numbers
from ovtensor import MemoryPolicy
from ovtensor.engine.graph import NO_TRAITS
from ovtensor.engine.runners import ActivationMemory
from ovtensor.pipelines.kinds.autoencoder_kl import AutoencoderKL
from ovtensor.pipelines.kinds.unet2d import UNet2D

MEGABYTE = 2**20

# A UNet of 130 MB, so that weights which stay behind show beside what libraries do by themselves.
_SESSIONS = """
    import sys, torch, ovtensor
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from ovtensor import Backend

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    own = StableDiffusionXLPipeline.from_pretrained(ovtensor.tiny_sdxl_path())
    config = {**own.unet.config, "block_out_channels": (160, 320, 320), "attention_head_dim": 20}
    own.unet = UNet2DConditionModel.from_config(config).eval()
    size = sum(parameter.nbytes for parameter in own.unet.parameters())
    own.save_pretrained(sys.argv[1])
    f32 = Backend("openvino", precision="f32")

    def session():
        with ovtensor.sdxl_pipeline(
            sys.argv[1], unet=f32, vae=f32, text_encoders=f32, cache=sys.argv[2], progress=False
        ) as pipe:
            pipe("a small red circle", num_inference_steps=1)
            return resident()

    session()  # loads what every session needs: OpenVINO's plugins, transformers' models
    del own
    before = resident()
    inside, after = [], []
    for _ in range(10):
        inside.append(session())
        after.append(resident())
    print(size, before, *inside, *after)
"""


@needs_proc
def test_ten_sessions_leave_nothing_behind(tmp_path):
    size, before, *rest = numbers(_SESSIONS, 22, tmp_path / "model", tmp_path / "cache")
    inside, after = rest[:10], rest[10:]
    assert size > 100 * MEGABYTE
    assert min(inside) > before + 0.8 * size  # it was there
    assert max(after) < before + max(0.1 * before, 100 * MEGABYTE)
    assert after[-1] < after[1] + 20 * MEGABYTE


# Anonymous memory after the UNet has run, before the decoder runs, after it, and after the picture.
_ACTIVATIONS = """
    import sys
    import ovtensor
    from ovtensor import Backend, MemoryPolicy
    from ovtensor.engine import compiled

    memory = MemoryPolicy(limit=int(sys.argv[1]))
    f32 = Backend("openvino", precision="f32")
    kinds = dict(unet=f32, vae=f32, text_encoders=f32, progress=False, memory=memory)
    seen = []
    infer = compiled._Requests.infer

    def watched(requests, arrays):
        before = anonymous()
        results = infer(requests, arrays)
        seen.append((before, anonymous()))
        return results

    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **kinds) as pipe:
        compiled._Requests.infer = watched
        pipe("a circle", height=1024, width=1024, num_inference_steps=1)
        print(seen[-2][1], *seen[-1], anonymous())
"""


@needs_proc
def test_components_compute_in_turns_where_memory_is_scarce():
    denoised, rested, decoded, drawn = numbers(_ACTIVATIONS, 4, 2**30)
    assert denoised - rested > 100 * MEGABYTE  # what the UNet computes in, 140
    assert decoded - drawn > 250 * MEGABYTE  # what the decoder computes in


@needs_proc
def test_components_keep_what_they_compute_in_where_there_is_memory():
    denoised, rested, decoded, drawn = numbers(_ACTIVATIONS, 4, 2**40)
    assert denoised - rested < 50 * MEGABYTE  # what was freed anyway, 15 to 25
    assert decoded - drawn < 10 * MEGABYTE


def test_what_was_kept_after_a_picture_goes_when_memory_gets_scarce(monkeypatch):
    class Watched:
        freed = 0

        def free_activations(self):
            self.freed += 1

    decoder, encoder, activations = Watched(), Watched(), ActivationMemory()
    monkeypatch.setattr(MemoryPolicy, "is_scarce", lambda _: False)
    activations.take(decoder, NO_TRAITS)
    activations.end()
    monkeypatch.setattr(MemoryPolicy, "is_scarce", lambda _: True)
    activations.take(encoder, NO_TRAITS)
    assert (decoder.freed, encoder.freed) == (1, 0)
    activations.end()
    activations.end()
    assert (decoder.freed, encoder.freed) == (1, 1)


# Anonymous memory before and after a component's turn, with freed blocks in the allocator's heap
# that a component on torch may have left there.
_LEFT_BY_TORCH = """
    import sys
    from ovtensor import MemoryPolicy
    from ovtensor.engine.graph import GraphTraits
    from ovtensor.engine.runners import ActivationMemory

    traits = GraphTraits(needs_most_memory=bool(int(sys.argv[1])))
    activations = ActivationMemory(MemoryPolicy(limit=int(sys.argv[2])))
    blocks = [bytearray(100_000) for _ in range(2000)]
    last = bytearray(100_000)  # so that the heap does not shrink by itself
    del blocks
    before = anonymous()
    activations.take(object(), traits)
    print(before - anonymous())
"""


@needs_proc
@pytest.mark.parametrize(
    ("needs_most", "limit", "given_back"),
    [(False, 2**20, True), (True, 2**40, True), (False, 2**40, False)],
)
def test_what_torch_has_freed_goes_where_memory_is_scarce_or_much_is_taken(
    needs_most, limit, given_back
):
    (difference,) = numbers(_LEFT_BY_TORCH, 1, int(needs_most), limit)
    assert difference > 150 * MEGABYTE if given_back else difference < 3 * MEGABYTE


def test_the_decoder_is_what_takes_the_most():
    traits = {kind.suffix: kind.traits for kind in AutoencoderKL.graphs} | {
        "": UNet2D.graphs[0].traits
    }
    assert [name for name, one in traits.items() if one.needs_most_memory] == ["_decoder"]


_OPENED = """
    import sys, ovtensor
    from ovtensor.engine.memory import give_back

    kinds = dict(unet="openvino", vae="openvino", text_encoders="openvino", cache=sys.argv[1])
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **kinds, progress=False):
        opened = anonymous()
        give_back(collect=False)
        print(opened - anonymous())
"""


@needs_proc
def test_what_a_warm_start_has_freed_is_given_back(tmp_path):
    numbers(_OPENED, 1, tmp_path)  # which gives back before each compilation
    (kept,) = numbers(_OPENED, 1, tmp_path)
    assert kept < 4 * MEGABYTE  # 12 without
