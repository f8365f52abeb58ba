"""What a block takes from the system it gives back, every time."""

from __future__ import annotations

from child import needs_proc, numbers

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


# How far anonymous memory rises above an open session's, when a picture is decoded and after it,
# with and without turns.
_TURNS = """
    import ovtensor
    from ovtensor import Backend
    from ovtensor.sdxl.runners import OpenVINORunner

    f32 = Backend("openvino", precision="f32")
    kinds = dict(unet=f32, vae=f32, text_encoders=f32, progress=False)
    decoded = []
    for keeps in (False, True):
        if keeps:
            OpenVINORunner.rest = lambda _runner: None
        with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **kinds) as pipe:
            infer = pipe.vae.decoder.forward

            def watched(*args, infer=infer, **kwargs):
                pixels = infer(*args, **kwargs)
                decoded.append(anonymous())
                return pixels

            pipe.vae.decoder.forward = watched
            before = anonymous()
            pipe("a circle", height=512, width=512, num_inference_steps=1)
            print(decoded.pop() - before, anonymous() - before)
"""


@needs_proc
def test_components_compute_in_turns():
    in_turns, after, together, kept = numbers(_TURNS, 4)
    assert together - in_turns > 10 * MEGABYTE  # what the UNet computes in
    assert kept - after > 100 * MEGABYTE  # what the decoder computes in
