"""A session with a cache: what a warm start leaves out, its key, and how it heals."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file

import ovtensor
from child import numbers
from ovtensor import Backend
from ovtensor.engine import blobs, compiled
from ovtensor.engine.identity import versions
from ovtensor.errors import CacheWarning, ModelError, ParityError, SessionClosedError
from ovtensor.pipelines import sources
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
ALL = {"unet": F32, "vae": F32, "text_encoders": F32, "progress": False}


def states(pipe) -> dict[str, str]:
    return {row.component: row.cache for row in pipe.ovtensor.report()}


def drawn(**options) -> bytes:
    """A picture, in a session whose VAE has encoded one too."""
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **ALL, **options) as pipe:
        pipe.vae.encode(torch.zeros(1, 3, 64, 64))
        return draw(pipe, SCENES[0], num_inference_steps=4).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def without_cache():
    return drawn()


def test_a_warm_start_neither_converts_nor_loads_weights(folder, without_cache, monkeypatch):
    drawn(cache=folder)

    def refuse(*_args, **_kwargs):
        raise AssertionError("a warm start has no use for this")

    monkeypatch.setattr(sources.FolderSource, "load", refuse)
    monkeypatch.setattr(sources.ModuleSource, "load", refuse)
    monkeypatch.setattr("openvino.frontend.FrontEnd.convert", refuse)
    monkeypatch.setattr("openvino.Core.compile_model", refuse)
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **ALL, cache=folder) as pipe:
        assert draw(pipe, SCENES[0], num_inference_steps=4).tobytes() == without_cache


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(ovtensor.tiny_sdxl_path(), tmp_path / "model")


def opened(model, folder, **options) -> dict[str, str]:
    with ovtensor.sdxl_pipeline(model, **{**ALL, **options}, cache=folder) as pipe:
        return states(pipe)


HIT = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "unet"), "hit")


def test_a_copy_of_the_model_is_the_same_model(model, folder):
    drawn(cache=folder)
    assert opened(model, folder) == HIT


@pytest.mark.parametrize(
    ("component", "file"),
    [
        ("unet", "unet/diffusion_pytorch_model.safetensors"),
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
        ("text_encoder_2", "text_encoder_2/model.safetensors"),
    ],
)
def test_a_weight_changed_in_one_element_is_another_entry(component, file, model, folder):
    drawn(cache=folder)
    path = model / file
    status = path.stat()
    state = load_file(path)
    name = min(state)
    state[name].view(-1)[0] += 1e-4
    save_file(state, path, metadata={"format": "pt"})
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # behind the same time and size
    assert opened(model, folder) == {**HIT, component: "miss"}


def test_weights_that_change_while_they_are_loaded_are_not_kept(model, tmp_path, monkeypatch):
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    other = load_file(weights)
    other["conv_in.bias"] += 1
    load_folder = sources.FolderSource.load

    def overwritten_meanwhile(self, *args):
        loaded = load_folder(self, *args)
        save_file(other, weights, metadata={"format": "pt"})
        return loaded

    monkeypatch.setattr(sources.FolderSource, "load", overwritten_meanwhile)
    with pytest.raises(ModelError, match="weights of unet changed while they were converted"):
        opened(model, tmp_path / "cache")
    assert ovtensor.ModelCache(tmp_path / "cache").entries() == []


def test_a_config_changed_in_one_number_is_another_entry(model, folder):
    drawn(cache=folder)
    path = model / "unet" / "config.json"
    text = path.read_text()
    assert '"norm_eps": 1e-05' in text
    path.write_text(text.replace('"norm_eps": 1e-05', '"norm_eps": 1e-06'))
    assert opened(model, folder) == {**HIT, "unet": "miss"}


def test_device_options_compile_anew_from_the_same_model(folder, monkeypatch):
    drawn(cache=folder)
    compiles = []
    compile_model = "openvino.Core.compile_model"
    import openvino as ov

    works = ov.Core.compile_model
    monkeypatch.setattr(compile_model, lambda *args: compiles.append(args[3]) or works(*args))
    one_thread = Backend("openvino", precision="f32", properties={"INFERENCE_NUM_THREADS": 1})
    assert opened(ovtensor.tiny_sdxl_path(), folder, unet=one_thread) == HIT
    assert [given["INFERENCE_NUM_THREADS"] for given in compiles] == [1]
    assert opened(ovtensor.tiny_sdxl_path(), folder, unet=one_thread) == HIT
    assert len(compiles) == 1


def test_another_driver_compiles_anew(folder, monkeypatch):
    drawn(cache=folder)
    fields = blobs._device_fields("CPU")
    # If this fails OpenVINO has another name for what it compares; a GPU's driver is in it.
    assert fields["COMPILED_MODEL_RUNTIME_PROPERTIES"].startswith("{OV_VERSION:")
    names = []
    works = blobs._compiled
    monkeypatch.setattr(
        blobs, "_compiled", lambda plan, *given: names.append(plan.graph) or works(plan, *given)
    )
    assert opened(ovtensor.tiny_sdxl_path(), folder) == HIT
    assert not names
    monkeypatch.setattr(blobs, "_device_fields", lambda _: fields | {"DRIVER_VERSION": "another"})
    assert opened(ovtensor.tiny_sdxl_path(), folder) == HIT
    assert set(names) >= {"unet", "vae_decoder", "text_encoder", "text_encoder_2"}


def unet_state(pipe, folder) -> str:
    with ovtensor.split_backends(pipe, unet=F32, cache=folder) as split:
        return states(split)["unet"]


def test_modules_in_memory_are_told_apart_by_all_that_computes(tmp_path):
    own = load()
    assert unet_state(own, tmp_path) == "miss"
    assert unet_state(own, tmp_path) == "hit"
    assert unet_state(load(), tmp_path) == "hit"

    with torch.no_grad():
        next(own.unet.parameters()).view(-1)[0] += 1e-4
    assert unet_state(own, tmp_path) == "miss"

    tuned = load()
    tuned.unet.mid_block.resnets[0].output_scale_factor = 1.01
    assert unet_state(tuned, tmp_path) == "miss"
    assert unet_state(tuned, tmp_path) == "hit"
    tuned.unet.set_attn_processor(AttnProcessor())  # the same sums in another order
    assert unet_state(tuned, tmp_path) == "miss"

    hooked = load()
    hooked.unet.conv_out.register_forward_hook(lambda _module, _given, output: output * 2)
    replaced = load()
    forward = replaced.unet.conv_out.forward
    replaced.unet.conv_out.forward = lambda x: forward(x) * 2
    for altered in (hooked, replaced):  # nobody can tell what either does
        with pytest.warns(CacheWarning, match="conv_out: it has a hook, or a forward of its own"):
            assert unet_state(altered, tmp_path) == "off"


@pytest.mark.parametrize("name", ["compiled.blob", "model.bin", "model.xml", "manifest.json"])
def test_damaged_entries_are_made_anew(name, tmp_path, eager_pictures):
    with ovtensor.split_backends(load(), unet=F32, cache=tmp_path) as pipe:
        expected = draw(pipe, SCENES[0])
    for path in tmp_path.glob(f"entries/*/{name}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.chmod(0o600)
        path.write_bytes(content)
    session = ovtensor.split_backends(load(), unet=F32, cache=tmp_path)
    with pytest.warns(CacheWarning, match="is to be made anew"):
        pipe = session.__enter__()
    with contextlib.closing(session):
        np.testing.assert_array_equal(draw(pipe, SCENES[0]), expected)
    with ovtensor.split_backends(load(), unet=F32, cache=tmp_path) as pipe:
        assert states(pipe)["unet"] == "hit"
        np.testing.assert_array_equal(draw(pipe, SCENES[0]), expected)


def test_a_blob_that_openvino_refuses_is_rejected(tmp_path, monkeypatch):
    with ovtensor.split_backends(load(), unet=F32, cache=tmp_path) as pipe:
        expected = draw(pipe, SCENES[0], num_inference_steps=2)

    def refuse(*_args):
        raise RuntimeError("not for this processor")

    monkeypatch.setattr("openvino.Core.import_model", refuse)
    session = ovtensor.split_backends(load(), unet=F32, cache=tmp_path)
    with pytest.warns(CacheWarning, match=r"does not take the compiled unet.*not for this"):
        pipe = session.__enter__()
    with contextlib.closing(session):
        np.testing.assert_array_equal(draw(pipe, SCENES[0], num_inference_steps=2), expected)


def test_a_cache_that_cannot_be_used_is_done_without(tmp_path):
    (tmp_path / "file").write_text("no folder")
    session = ovtensor.split_backends(load(), unet=F32, cache=tmp_path / "file")
    with pytest.warns(CacheWarning, match="work goes on without it"):
        pipe = session.__enter__()
    with contextlib.closing(session):
        assert states(pipe)["unet"] == "off"
        draw(pipe, SCENES[0], num_inference_steps=1)


def test_what_is_cached_is_opened_while_the_first_component_is(folder, without_cache, monkeypatch):
    drawn(cache=folder)
    threads = {}
    importing = blobs._imported

    def watched(plan, *rest):
        threads[plan.graph] = threading.current_thread()
        return importing(plan, *rest)

    monkeypatch.setattr(blobs, "_imported", watched)
    events = []
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), **ALL, cache=folder, on_event=events.append
    ) as pipe:
        opening = list(events)
        assert {row.compiles for row in pipe.ovtensor.report()} == {1}
        assert draw(pipe, SCENES[0], num_inference_steps=4).tobytes() == without_cache
    main = threading.current_thread()
    assert threads.pop("unet") is main
    assert len(threads) == 3
    assert main not in threads.values()
    # The callback is told in the thread that opens the session, and in order.
    graphs = ("unet", "text_encoder_2", "text_encoder", "vae_decoder")
    told = [event for event in opening if event.stage == "compile"]
    assert [event.component for event in told[::2]] == list(graphs)
    assert [event.state for event in told] == ["started", "finished"] * 4
    assert all(event.seconds > 0 for event in told[1::2])


# A warm start: which graphs come out of the cache in other threads, and before diffusers' pipelines
# are there.
_WARM = """
    import sys
    import threading
    import ovtensor
    from ovtensor import Backend
    from ovtensor.engine import blobs

    early = []
    importing = blobs._imported

    def watched(name, *rest):
        if threading.current_thread() is not threading.main_thread():
            early.append("transformers.models.clip.modeling_clip" not in sys.modules)
        return importing(name, *rest)

    blobs._imported = watched
    f32 = Backend("openvino", precision="f32")
    kinds = dict(unet=f32, vae=f32, text_encoders=f32, progress=False, cache=sys.argv[1])
    light = not {"diffusers", "transformers"} & set(sys.modules)
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **kinds) as pipe:
        hits = [row.cache for row in pipe.ovtensor.report()].count("hit")
    print(int(light), len(early), int(early[0]), hits)
"""


def test_what_is_cached_is_opened_while_diffusers_is_imported(folder):
    drawn(cache=folder)
    assert numbers(_WARM, 4, folder) == [1, 4, 1, 4]


def test_what_is_opened_ahead_is_told_as_if_it_were_not(folder):
    told = []
    for events in ([], told):
        with ovtensor.sdxl_pipeline(
            ovtensor.tiny_sdxl_path(), **ALL, verify=True, cache=folder, on_event=events.append
        ):
            pass
    stages = [(event.stage, event.state) for event in told if event.component == "text_encoder"]
    states = ("started", "finished")
    assert stages == [(stage, state) for stage in ("compile", "warm-up") for state in states]
    assert all(event.seconds > 0 for event in told if event.state == "finished")


def test_what_is_found_wrong_ahead_is_found_wrong_again(folder, monkeypatch):
    """In the thread that opens the session, where it can be told."""
    options = {"unet": "torch", "text_encoders": F32, "vae": F32, "verify": True, "cache": folder}
    with ovtensor.split_backends(load(), progress=False, **options):
        pass
    threads = []

    def refuse(plan, *_):
        if plan.graph == "text_encoder":
            threads.append(threading.current_thread() is threading.main_thread())
            raise ParityError("not as torch does, in this test")

    monkeypatch.setattr(compiled, "demand_parity", refuse)
    closed = []
    close = compiled.Compiled.close
    monkeypatch.setattr(
        compiled.Compiled, "close", lambda self: closed.append(self.name) or close(self)
    )
    with pytest.raises(ParityError, match="in this test"):
        ovtensor.split_backends(load(), progress=False, **options).__enter__()
    assert threads == [False, True]
    assert closed.count("text_encoder") == 2
    assert not list(ovtensor.ModelCache(folder).path.glob("leases/*"))


def test_weights_in_memory_are_hashed_once_if_they_are_not_cached(tmp_path, monkeypatch):
    hashed = []
    fingerprint = ovtensor.ModelCache.fingerprint_tensors

    def watched(cache, tensors):
        hashed.append(len(hashed))
        return fingerprint(cache, tensors)

    monkeypatch.setattr(ovtensor.ModelCache, "fingerprint_tensors", watched)
    options = {"unet": "torch", "text_encoders": F32, "vae": F32, "cache": tmp_path}
    with ovtensor.split_backends(load(), progress=False, **options):
        # To look them up, and after a conversion once more: they have to be what was looked up.
        assert len(hashed) == 2 * 3


def test_what_was_opened_ahead_is_closed_when_the_first_component_fails(folder, monkeypatch):
    drawn(cache=folder)
    made = []
    begin = compiled.Compiled.__init__

    def watched(model, *rest):
        begin(model, *rest)
        made.append(model)

    def fail(event):
        if event.component == "unet":
            for _ in range(1000):  # until the others are there
                if len(made) == 3:
                    raise InterruptedError
                time.sleep(0.01)

    monkeypatch.setattr(compiled.Compiled, "__init__", watched)
    with pytest.raises(InterruptedError):
        ovtensor.sdxl_pipeline(
            ovtensor.tiny_sdxl_path(), **ALL, cache=folder, on_event=fail
        ).__enter__()
    assert len(made) == 3
    for model in made:
        with pytest.raises(SessionClosedError):
            model.infer([np.zeros((1, 4, 16, 16), np.float32)])
    assert not list(ovtensor.ModelCache(folder).path.glob("leases/*"))


@pytest.mark.parametrize("action", ["always", "error"])
def test_a_damaged_entry_that_is_opened_ahead_is_told_of_once(action, tmp_path, without_cache):
    drawn(cache=tmp_path)
    (manifest,) = (
        path
        for path in tmp_path.glob("entries/*/manifest.json")
        if '"text_encoder in f32"' in path.read_text()
    )
    path = manifest.with_name("model.bin")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with warnings.catch_warnings(record=action == "always") as told:
        warnings.simplefilter(action, CacheWarning)
        if action == "error":
            with pytest.raises(CacheWarning, match="is to be made anew"):
                drawn(cache=tmp_path)
            return
        assert drawn(cache=tmp_path) == without_cache
    assert len([one for one in told if one.category is CacheWarning]) == 1


def test_versions_of_packages_that_were_bundled_without_metadata(request):
    told = versions()
    request.getfixturevalue("no_metadata")
    bare = versions()
    assert bare.keys() == told.keys()
    assert bare["ovtensor"] == ovtensor.__version__
    assert bare["torch"] == torch.__version__
