"""What a UNet computes from the text alone is computed once for a text."""

from __future__ import annotations

import concurrent.futures
import dataclasses

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13

import ovtensor
from ovtensor import Backend, to_numpy
from ovtensor.cache import ScratchStore
from ovtensor.sdxl import compiled, graphs, hoisted, ir, runners
from ovtensor.sdxl.compiled import Compiled
from ovtensor.sdxl.events import Events
from sdxl_scenes import SCENES, draw, load

F32 = Backend("openvino", precision="f32")


@pytest.fixture(scope="module")
def graph():
    return graphs.unet_graph(load().unet)


def opened(graph, backend=F32) -> Compiled:
    store = ScratchStore()
    options = {"refer": False, "halves": False, "map_parts": ()}
    entry = store.open({}, lambda folder: ir.write(graph, backend, folder, **options))
    return Compiled(graph.name, entry, store, backend, Events(None))


@pytest.fixture
def computed(monkeypatch):
    """The texts for which it was computed."""
    texts = []
    tensors = compiled._Requests.tensors

    def watched(requests, arrays):
        texts.append(arrays[0].copy())
        return tensors(requests, arrays)

    monkeypatch.setattr(compiled._Requests, "tensors", watched)
    return texts


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_no_number_changes(graph, computed, static):
    backend = dataclasses.replace(F32, static_shapes=static)
    apart, whole = opened(graph, backend), opened(dataclasses.replace(graph, steady=None), backend)
    given = [to_numpy(value) for value in graph.probe()]
    other = [given[0], given[1], given[2][:, :40] + 1, given[3]]
    for arrays in (given, other, given):
        (one,), (two,) = apart.infer(arrays), whole.infer(arrays)
        np.testing.assert_array_equal(one, two)
    # With static shapes each shape has a request of its own, which has kept its text.
    assert len(computed) == (2 if static else 3)
    layers = [part for part in graph.module.modules() if getattr(part, "is_cross_attention", None)]
    assert len(apart._parts) == 2
    assert len(apart._requests[next(iter(apart._requests))]._results) == 2 * len(layers) > 0
    apart.close()
    whole.close()


def test_it_is_computed_once_for_a_text(computed):
    with ovtensor.split_backends(load(), unet=F32) as pipe:
        first = draw(pipe, SCENES[0], num_inference_steps=4)
        assert len(computed) == 1
        np.testing.assert_array_equal(draw(pipe, SCENES[0], num_inference_steps=4), first)
        assert len(computed) == 1
        draw(pipe, SCENES[1], num_inference_steps=4)
        draw(pipe, SCENES[1], num_inference_steps=4, guidance_scale=1.0)
        assert [len(text) for text in computed] == [2, 2, 1]


def test_a_text_that_is_changed_in_place_is_another_one(graph, computed):
    model = opened(graph)
    given = [to_numpy(value).copy() for value in graph.probe()]
    model.infer(given)
    given[2] += 1
    (changed,) = model.infer(given)
    assert len(computed) == 2
    model.close()
    again = opened(graph)
    np.testing.assert_array_equal(again.infer(given)[0], changed)
    again.close()


def test_threads_with_texts_of_their_own(graph):
    model = opened(graph)
    given = [to_numpy(value) for value in graph.probe()]
    texts = [given[2] + scale for scale in range(4)]
    expected = [model.infer([given[0], given[1], text, given[3]])[0] for text in texts]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = pool.map(
                lambda text: model.infer([given[0], given[1], text, given[3]])[0], texts
            )
            for one, two in zip(results, expected, strict=True):
                np.testing.assert_array_equal(one, two)
    model.close()


def test_it_goes_when_it_is_another_components_turn(computed, monkeypatch):
    monkeypatch.setattr(runners, "memory_is_scarce", lambda: True)
    with ovtensor.split_backends(load(), unet=F32, vae=F32) as pipe:
        for count in (1, 2):
            draw(pipe, SCENES[0], num_inference_steps=2)
            assert len(computed) == count


def test_what_reads_something_else_too_stays():
    text, other = (opset13.parameter([-1, -1, 4], np.float32, name) for name in ("text", "other"))
    weights = opset13.constant(np.ones((4, 4), np.float32))
    for name, node in (("text", text), ("other", other)):
        node.output(0).get_tensor().set_names({name})
    both = opset13.matmul(text, other, False, True)
    none = ov.Model([both], [text, other], "none")
    assert hoisted.take_out(none, "text") is None
    one = ov.Model([both, opset13.matmul(text, weights, False, True)], [text, other], "one")
    once = hoisted.take_out(one, "text")
    assert len(once.outputs) == 1
    assert hoisted.results_among(one.inputs)[0] == 0
    assert len(one.inputs) == 3


def test_what_is_not_a_number_is_equal_to_nothing(graph, computed):
    model = opened(graph)
    given = [to_numpy(value).copy() for value in graph.probe()]
    given[2][0, 0, 0] = np.nan
    for _ in range(2):
        model.infer(given)
    assert len(computed) == 2
    model.close()
    assert torch.isnan(torch.from_numpy(given[2])).any()
