"""Routes: found by type, registered, and brought by other packages."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import ovtensor
from ovtensor.errors import ConversionError, InputError
from ovtensor.tensors import registry
from ovtensor.tensors.host import HostArray, Memory, TensorInfo

EXAMPLE = Path(__file__).parent / "plugin_example"
SOURCE = Path(ovtensor.__file__).parent.parent


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])
    registry.forget_types()
    yield
    registry.forget_types()


class Box:
    def __init__(self, inner):
        self.inner = inner


class SmallBox(Box):
    pass


def test_a_function_is_a_route():
    with pytest.raises(ConversionError, match="Box is no tensor"):
        ovtensor.to_numpy(Box(1))
    ovtensor.register_route(Box, lambda box: box.inner)
    np.testing.assert_array_equal(ovtensor.to_numpy(Box([1, 2])), [1, 2])
    np.testing.assert_array_equal(ovtensor.to_torch(SmallBox(np.ones(2))), [1, 1])
    assert ovtensor.describe(Box(1)).has_data


def test_what_a_function_gives_may_be_shared_or_not():
    source = np.zeros(2)
    ovtensor.register_route(Box, lambda box: box.inner)
    ovtensor.to_numpy(Box(source), copy=True)[0] = 1
    assert source[0] == 0
    with pytest.raises(ConversionError, match=r"copy=False.*not known to be shared"):
        ovtensor.to_numpy(Box(source), copy=False)


class BoxRoute:
    def read(self, x):
        return x.inner

    def describe(self, x):
        return TensorInfo("tests", "Box", x.inner.shape, route="box", has_data=True)


def test_a_route_object_can_promise_shared_memory():
    ovtensor.register_route(Box, BoxRoute())
    source = np.zeros(2)
    ovtensor.to_numpy(Box(source), copy=False)[0] = 1
    assert source[0] == 1
    assert ovtensor.describe(Box(source)).route == "box"


def test_nearest_base_class_then_latest_registration():
    ovtensor.register_route(Box, lambda box: 1)
    ovtensor.register_route(SmallBox, lambda box: 2)
    ovtensor.register_route(Box, lambda box: 3)
    assert ovtensor.to_numpy(Box(0)) == 3
    assert ovtensor.to_numpy(SmallBox(0)) == 2


def test_own_types_can_be_taught_anew():
    class Loud(np.ndarray):
        pass

    assert ovtensor.to_numpy(np.zeros(1).view(Loud)) == 0
    ovtensor.register_route(Loud, lambda x: np.asarray(x) + 1)
    assert ovtensor.to_numpy(np.zeros(1).view(Loud)) == 1
    assert ovtensor.to_numpy(np.zeros(1)) == 0


def test_fast_paths_are_forgotten_too():
    torch = pytest.importorskip("torch")
    x = torch.zeros(2)
    assert [ovtensor.to_numpy(x).tolist() for _ in range(2)] == [[0, 0]] * 2
    ovtensor.register_route(torch.Tensor, lambda x: [5])
    assert ovtensor.to_numpy(x).tolist() == [5]


def test_a_name_is_a_type_that_may_not_be_imported_yet(monkeypatch):
    import types

    ovtensor.register_route("later.Thing", lambda x: 5)
    module = types.ModuleType("later")
    module.Thing = type("Thing", (), {"__module__": "later"})
    monkeypatch.setitem(sys.modules, "later", module)
    assert ovtensor.to_numpy(module.Thing()) == 5


def test_a_route_that_goes_in_circles():
    ovtensor.register_route(Box, lambda box: box)
    with pytest.raises(ConversionError, match="Box gave the same type back"):
        ovtensor.to_numpy(Box(1))


@pytest.mark.parametrize(("name", "route"), [("nomodule", len), (Box, 3), (Box, None), (5, len)])
def test_what_is_no_route(name, route):
    with pytest.raises(InputError, match=r"is no route|names no module|neither a type"):
        ovtensor.register_route(name, route)


def test_registering_while_others_convert():
    stop = threading.Event()
    wrong = []

    def convert():
        while not stop.is_set():
            if ovtensor.to_numpy(np.float32(2)) != 2:
                wrong.append(1)

    threads = [threading.Thread(target=convert) for _ in range(3)]
    for thread in threads:
        thread.start()
    for value in range(200):
        ovtensor.register_route(Box, lambda box, value=value: value)
        assert ovtensor.to_numpy(Box(0)) == value
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_found_arrays_pass():
    found = HostArray(np.ones(2), ovtensor.tensors.dtypes.BY_NAME["float64"], Memory.CALLER)
    np.testing.assert_array_equal(ovtensor.to_numpy(found), [1, 1])
    assert ovtensor.describe(found).shape == (2,)


def run(code, *paths):
    command = f"import sys; sys.path[:0] = {[str(p) for p in paths]}\n{textwrap.dedent(code)}"
    return subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def installed(tmp_path):
    """Lay the example package out as an installer does."""
    import configparser
    import re

    text = (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    key, value = re.search(r'^"(thermometer\.Celsius)" = "(.*)"$', text, re.MULTILINE).groups()
    info = tmp_path / "thermometer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thermometer\nVersion: 1.0\n")
    entry_points = configparser.ConfigParser()
    entry_points.optionxform = str
    entry_points["ovtensor.routes"] = {key: value}
    with (info / "entry_points.txt").open("w") as file:
        entry_points.write(file)
    return tmp_path


def test_a_plug_in_is_loaded_when_its_type_is_met(installed):
    done = run(
        """
        import numpy as np, ovtensor
        assert ovtensor.to_numpy(np.float32(1)) == 1
        assert not any(name.startswith("thermometer") for name in sys.modules)
        import thermometer
        assert "thermometer.ovtensor_route" not in sys.modules
        x = thermometer.Celsius([20.5, 21.0])
        assert ovtensor.to_numpy(x).tolist() == [20.5, 21.0]
        assert ovtensor.to_numpy([x, x]).shape == (2, 2)
        assert ovtensor.describe(x).route == "ROUTE"
        """,
        SOURCE,
        EXAMPLE / "src",
        installed,
    )
    assert done.returncode == 0, done.stderr


def test_no_framework_is_imported_for_what_is_none_of_theirs():
    done = run(
        """
        import numpy as np, ovtensor
        heavy = {"torch", "openvino", "diffusers", "transformers", "PIL", "ml_dtypes", "scipy"}
        ovtensor.to_numpy(np.ones(2)); ovtensor.to_numpy([1, 2]); ovtensor.describe(object())
        ovtensor.tree_to_numpy({"a": [np.ones(2), 1]})
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """,
        SOURCE,
    )
    assert done.returncode == 0, done.stderr
