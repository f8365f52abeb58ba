"""What is converted: whose memory it is, who hears of it, and in which kernels it runs."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from devices import needs_bf16
from engine_graphs import opened, planned
from ovtensor import Backend, to_numpy
from ovtensor._core import core
from ovtensor.engine import convert
from ovtensor.engine.compiled import MODEL
from ovtensor.engine.copies import detached, with_dtype
from ovtensor.engine.passes import mapped_weights
from ovtensor.engine.passes.sixteen_bit import SixteenBitWeights, cast_the_rest
from ovtensor.engine.plan import compile_properties
from ovtensor.engine.runners import TorchRunner
from ovtensor.pipelines.kinds.autoencoder_kl import encoder_graph
from ovtensor.pipelines.kinds.clip_text import text_encoder_graph
from ovtensor.pipelines.kinds.unet2d import unet_graph
from sdxl_scenes import load


@pytest.fixture(scope="module")
def pipe():
    return load()


@needs_bf16
def test_in_bf16_every_linear_layer_of_mapped_weights_runs_in_a_fast_kernel(pipe, tmp_path):
    backend = Backend("openvino", precision="bf16")
    for name, module in [("unet", pipe.unet), ("text_encoder", pipe.text_encoder)]:
        narrow = with_dtype(module, torch.bfloat16)
        make = unet_graph if name == "unet" else text_encoder_graph
        graph = make(name, narrow)
        plan = planned(graph, precision="bf16", without=())
        assert "mapped_weights" in plan.passes
        folder = tmp_path / name
        folder.mkdir()
        convert.write(graph, plan, folder)
        counting = {**compile_properties(backend, plan.passes), "PERF_COUNT": True}
        compiled = core().compile_model(folder / MODEL, "CPU", counting)
        request = compiled.create_infer_request()
        weights = mapped_weights.tensors(folder)
        given = [to_numpy(value) for value in graph.probe()]
        request.infer({**dict(enumerate(given)), **weights})
        kernels = {info.exec_type for info in request.profiling_info if info.node_type == "MatMul"}
        assert kernels, name
        assert "jit_gemm_bf16" not in kernels, name


@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_a_conversion_holds_nothing_of_a_module(pipe, sixteen_bit, tmp_path):
    module = copy.deepcopy(pipe.text_encoder)
    if sixteen_bit:
        module = module.half()
        cast_the_rest(module, torch.float32)
    weights = [weakref.ref(parameter) for parameter in module.parameters()]
    module = detached(module)
    weights += [weakref.ref(parameter) for parameter in module.parameters()]
    if sixteen_bit:
        SixteenBitWeights("f32").on_module(module, tmp_path)
    gc.disable()  # weights shall not wait for it
    try:
        model = convert.convert(text_encoder_graph("text_encoder", module))
        del module, model
        assert not [weight for weight in weights if weight() is not None]
    finally:
        gc.enable()


def test_a_conversion_reports_to_nobody(pipe, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("something is reported")

    for name in ("send_event", "send_error", "send_stack_trace", "start_session"):
        monkeypatch.setattr(f"openvino_telemetry.Telemetry.{name}", refuse)
    convert.convert(encoder_graph("vae_encoder", pipe.vae))


def test_converted_weights_outlive_the_torch_module(pipe):
    narrow = with_dtype(pipe.text_encoder_2, torch.bfloat16)
    graph = text_encoder_graph("text_encoder_2", narrow)
    ids = graph.inputs[0].example
    expected = TorchRunner(graph)(ids)
    sizes = [parameter.numel() for parameter in narrow.parameters()]
    runner = opened(graph)
    del narrow, graph
    gc.collect()
    rubbish = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in sizes]
    for output, value in zip(runner(ids), expected, strict=True):
        torch.testing.assert_close(output, value, rtol=0, atol=0.1)
    assert len(rubbish) == len(sizes)
