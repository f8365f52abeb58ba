"""What the cache is for, with OpenVINO itself: an IR and a compiled model that goes with it."""

from __future__ import annotations

import io

import numpy as np
import openvino as ov
import openvino.opset16 as ops
import pytest

from ovtensor.cache import ModelCache
from ovtensor.errors import CacheWarning

PROPERTIES = {"CACHE_MODE": "OPTIMIZE_SIZE", "INFERENCE_PRECISION_HINT": "f32"}
WIDTH = 64


def network(seed: int) -> ov.Model:
    """Two layers with dynamic shapes and bf16 constants."""
    rng = np.random.default_rng(seed)
    x = parameter = ops.parameter([-1, WIDTH], np.float32)
    for _ in range(2):
        bits = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32).view(np.uint32) >> 16
        weights = ov.Tensor(ov.Type.bf16, ov.Shape([WIDTH, WIDTH]))
        weights.data.view(np.uint16)[:] = bits
        x = ops.tanh(ops.matmul(x, ops.convert(ops.constant(weights), "f32"), False, True))
    return ov.Model(x, [parameter])


class Session:
    """Uses a cache as a session does: fields, an IR, and a blob on top of it."""

    def __init__(self, cache: ModelCache, seed: int) -> None:
        self.core = ov.Core()
        self.seed = seed
        self.ir = cache.open({"kind": "ir", "weights": seed}, self.save)
        self.blob = cache.open({"kind": "blob", **PROPERTIES}, self.export, base=self.ir)
        blob = (self.blob.folder / "compiled.blob").read_bytes()
        weights = {"WEIGHTS_PATH": self.ir.folder / "model.bin"}
        self.compiled = self.core.import_model(blob, "CPU", {**PROPERTIES, **weights})

    def save(self, folder) -> None:
        ov.save_model(network(self.seed), folder / "model.xml", compress_to_fp16=False)

    def export(self, folder) -> None:
        model = self.core.read_model(self.ir.folder / "model.xml")
        self.core.compile_model(model, "CPU", PROPERTIES).export_model(stream := io.BytesIO())
        (folder / "compiled.blob").write_bytes(stream.getbuffer())

    def run(self, rows: int) -> np.ndarray:
        x = np.random.default_rng(7).standard_normal((rows, WIDTH)).astype(np.float32)
        return self.compiled(x)[0]

    @property
    def hits(self) -> tuple[bool, bool]:
        return self.ir.hit, self.blob.hit

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        del self.compiled
        self.blob.close()
        self.ir.close()


def fresh(seed: int, rows: int) -> np.ndarray:
    x = np.random.default_rng(7).standard_normal((rows, WIDTH)).astype(np.float32)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return ov.Core().compile_model(network(seed), "CPU", hint)(x)[0]


def test_cold_and_warm_are_equal_to_no_cache_at_all(cache):
    for hits in ((False, False), (True, True)):
        with Session(cache, 0) as session:
            assert session.hits == hits
            for rows in (2, 5, 2):
                np.testing.assert_array_equal(session.run(rows), fresh(0, rows))


def test_the_blob_takes_its_weights_from_the_ir(cache):
    with Session(cache, 0) as session:
        weights = (session.ir.folder / "model.bin").read_bytes()
        assert weights[1000:1500] not in (session.blob.folder / "compiled.blob").read_bytes()


def test_two_models_of_one_architecture_never_meet(cache):
    with Session(cache, 0) as one, Session(cache, 1) as other:
        assert other.hits == (False, False)
        np.testing.assert_array_equal(other.run(3), fresh(1, 3))
        np.testing.assert_array_equal(one.run(3), fresh(0, 3))


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "compiled.blob"])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_does_not_reach_the_result(cache, name, place):
    with Session(cache, 0) as session:
        entry = session.blob if name == "compiled.blob" else session.ir
    path = entry.folder / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x40
    path.write_bytes(content)
    with pytest.warns(CacheWarning, match=f"{name} is not what was written"):
        session = Session(ModelCache(cache.path), 0)
    with session:
        np.testing.assert_array_equal(session.run(4), fresh(0, 4))


def test_openvino_still_imports_what_is_not_what_was_exported(tmp_path):
    """Why every byte is compared: OpenVINO does not tell when weights are others."""
    with Session(ModelCache(tmp_path / "cache"), 0) as session:
        blob = (session.blob.folder / "compiled.blob").read_bytes()
    ov.save_model(network(1), tmp_path / "other.xml", compress_to_fp16=False)
    weights = {"WEIGHTS_PATH": tmp_path / "other.bin"}
    compiled = ov.Core().import_model(blob, "CPU", {**PROPERTIES, **weights})
    x = np.random.default_rng(7).standard_normal((4, WIDTH)).astype(np.float32)
    np.testing.assert_array_equal(compiled(x)[0], fresh(1, 4))
