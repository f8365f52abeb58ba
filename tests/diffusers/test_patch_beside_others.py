"""The patch beside patches of others, in every order, and interrupted at every point."""

from __future__ import annotations

import contextlib
import itertools
import linecache
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
from diffusers import image_processor as stock
from diffusers.utils import pil_utils
from diffusers.video_processor import VideoProcessor

import ovtensor
from ovtensor import is_patched, nonfinite, patch_diffusers
from ovtensor.errors import PatchConflictError

CLASSES = (
    stock.VaeImageProcessor,
    stock.VaeImageProcessorLDM3D,
    stock.IPAdapterMaskProcessor,
    stock.PixArtImageProcessor,
    stock.InpaintProcessor,
    VideoProcessor,
)
FUNCTIONS = (pil_utils.numpy_to_pil, pil_utils.pt_to_pil)


def state():
    """Everything that the patch could change; who puts a static method back may wrap it anew."""
    entries = {
        (owner, name): getattr(entry, "__func__", entry)
        for owner in CLASSES
        for name, entry in vars(owner).items()
    }
    return entries | {function: function.__code__ for function in FUNCTIONS}


UNPATCHED = state()
with patch_diffusers():
    PATCHED = state()
CHANGED = [key for key in UNPATCHED if UNPATCHED[key] is not PATCHED[key]]


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.delenv(nonfinite.ENVIRONMENT, raising=False)
    assert state() == UNPATCHED
    yield
    assert not is_patched()
    assert state() == UNPATCHED
    assert nonfinite.policy_in_force() == "raise"


# Three ways in which others patch. Each is started when it is made, and stopped by its method.


class ByMock:
    def __init__(self, owner, name):
        self._patch = mock.patch.object(owner, name)
        self._patch.start()

    def stop(self):
        self._patch.stop()


class ByPytest:
    def __init__(self, owner, name):
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(owner, name, theirs)

    def stop(self):
        self._patch.undo()


class ByHand:
    def __init__(self, owner, name):
        self._owner, self._name = owner, name
        self._wrap = type(vars(owner)[name])
        if self._wrap not in (staticmethod, classmethod):
            self._wrap = lambda function: function
        self._original = getattr(owner, name)
        setattr(owner, name, self._wrap(theirs))

    def stop(self):
        setattr(self._owner, self._name, self._wrap(self._original))


class OfCode:
    def __init__(self, function, name):
        self._function, self._code = function, function.__code__
        function.__code__ = theirs.__code__

    def stop(self):
        self._function.__code__ = self._code


def theirs(*args, **kwargs):
    return "theirs"


ATTRIBUTES = [
    pytest.param(patcher, *key, id=f"{patcher.__name__}-{key[0].__name__}-{key[1]}")
    for key in [
        *(key for key in CHANGED if isinstance(key, tuple)),
        (stock.VaeImageProcessor, "resize"),  # which we leave alone
        (stock.VaeImageProcessor, "normalize"),
    ]
    for patcher in (ByMock, ByPytest, ByHand)
] + [
    pytest.param(OfCode, function, "__code__", id=function.__name__)
    for function in (*FUNCTIONS, pil_utils.make_image_grid)
]


@pytest.mark.parametrize("order", ["+-[]", "+[-]", "+[]-", "[]+-", "[+]-", "[+-]"])
@pytest.mark.parametrize(("patcher", "owner", "name"), ATTRIBUTES)
def test_two_patchers_in_every_order(patcher, owner, name, order):
    """Here ``[`` is our patch and ``]`` its undoing, ``+`` and ``-`` theirs."""
    conflict = False
    for event in order:
        if event == "+":
            their = patcher(owner, name)
        elif event == "-":
            their.stop()
        elif event == "[":
            handle = patch_diffusers()
        else:
            held = state()
            try:
                handle.undo()
            except PatchConflictError as error:
                assert f"{owner.__name__}.{name}" in str(error)  # noqa: PT017
                conflict = True
                assert is_patched()
                assert state() == held, "undone by half"
    ours_is_changed = (owner, name) in CHANGED or owner in CHANGED
    assert conflict == (order == "[+]-" and ours_is_changed)
    handle.undo()


def test_patches_that_nest_with_two_of_ours():
    first = patch_diffusers(nonfinite="warn")
    their = ByMock(stock.VaeImageProcessor, "postprocess")
    second = patch_diffusers()
    first.undo()  # the second keeps it in place
    with pytest.raises(PatchConflictError):
        second.undo()
    their.stop()
    second.undo()


@pytest.mark.slow
def test_our_first_import_while_others_have_patched():
    """Then too the patch knows what is diffusers' own, and computes with it."""
    code = """
import inspect
from unittest import mock
import torch
from diffusers import image_processor as stock
from diffusers.utils import pil_utils
from diffusers.video_processor import VideoProcessor

CLASSES = (stock.VaeImageProcessor, stock.VaeImageProcessorLDM3D, stock.IPAdapterMaskProcessor,
           VideoProcessor)

def results():
    image = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    grad = image.clone().requires_grad_()
    processor, depth = stock.VaeImageProcessor(), stock.VaeImageProcessorLDM3D()
    class Own(stock.VaeImageProcessor):
        def _denormalize_conditionally(self, images, do_denormalize=None):
            return super()._denormalize_conditionally(-images, do_denormalize)
    yield processor.postprocess(grad, "pt").detach().numpy()
    yield processor.postprocess(image, "np")
    yield Own().postprocess(image, "np")
    yield processor.preprocess(image / 2 + 0.5).numpy()
    yield processor.denormalize(grad).detach().numpy()
    yield stock.VaeImageProcessor.numpy_to_pil(torch.ones(8, 8, 3).numpy())[0].tobytes()
    yield depth.postprocess(torch.cat([image, image[:, :1]], 1), "np")[1]
    yield depth.preprocess(*[[im] for im in processor.postprocess(image)])[0].numpy()
    yield VideoProcessor().postprocess_video(image.transpose(0, 1)[None], "np")
    yield VideoProcessor().preprocess_video(image[:, None] / 2 + 0.5).numpy()
    yield stock.IPAdapterMaskProcessor.downsample(image[:, 0].abs(), 1, 16, 4).numpy()
    yield pil_utils.pt_to_pil(image)[1].tobytes()
    yield pil_utils.numpy_to_pil(image.permute(0, 2, 3, 1).abs().numpy())[0].tobytes()

def raw():
    return [r if isinstance(r, bytes) else r.tobytes() for r in results()]

expected = raw()
mocks = [
    mock.patch.object(cls, name)
    for cls in CLASSES
    for name, entry in vars(cls).items()
    if callable(getattr(cls, name)) and not name.startswith("__")
]
before = [dict(vars(cls)) for cls in CLASSES]
for one in mocks:
    one.start()
import ovtensor
handle = ovtensor.patch_diffusers()
for one in mocks:
    one.stop()
assert raw() == expected
handle.undo()
assert not ovtensor.is_patched()
assert [dict(vars(cls)) for cls in CLASSES] == before
with ovtensor.patch_diffusers():
    assert raw() == expected
print("right")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "right\n", done.stderr


def test_threads_beside_somebody_elses_patch():
    stop = threading.Event()

    def others():
        while not stop.is_set():
            for name in ("resize", "blur"):
                their = ByPytest(stock.VaeImageProcessor, name)
                their.stop()

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(200):
            with patch_diffusers():
                assert is_patched()
    finally:
        stop.set()
        thread.join()


SOURCES = str(Path(ovtensor.__file__).parent)


@contextlib.contextmanager
def interrupted(*at):
    """Raise KeyboardInterrupt at points ``at`` of our code, counted from 1; yield what is left.

    Points are the lines, the starts of functions and the returns of built-in functions. A line that
    leaves a ``with`` block is none: CPython looks for signals there only when the lock is free.
    """
    left = list(itertools.accumulate(at))
    count = itertools.count(1)
    entered = set()

    def point():
        if left and next(count) == left[0]:
            del left[0]
            install()  # CPython takes away a function that raises
            raise KeyboardInterrupt

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
            text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            if text.startswith("with "):
                key = (id(frame), frame.f_lineno)
                if key in entered:
                    entered.remove(key)
                    return trace
                entered.add(key)
        if event in ("line", "call"):
            point()
        return trace

    def profile(frame, event, arg):
        if event == "c_return" and frame.f_code.co_filename.startswith(SOURCES):
            point()

    def install():
        sys.settrace(trace)
        sys.setprofile(profile)

    before = sys.gettrace(), sys.getprofile()
    install()
    try:
        yield left
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])


def lock_is_free():
    thread = threading.Thread(target=lambda: patch_diffusers().undo())
    thread.start()
    thread.join(30)
    return not thread.is_alive()


@pytest.mark.parametrize("outer", [None, "warn"])
def test_patching_interrupted_at_any_point(outer):
    with contextlib.nullcontext() if outer is None else patch_diffusers(nonfinite=outer):
        before, word = state(), nonfinite.policy_in_force()
        for point in itertools.count(1):
            try:
                with interrupted(point) as left:
                    handle = patch_diffusers(nonfinite="ignore")
            except KeyboardInterrupt:
                assert state() == before, point
                assert is_patched() == (outer is not None), point
                assert nonfinite.policy_in_force() == word, point
                with patch_diffusers(nonfinite="ignore"):
                    assert state() == PATCHED
                    assert nonfinite.policy_in_force() == "ignore"
                continue
            handle.undo()
            assert left, "interrupted, and nobody was told"
            break
        assert point > (10 if outer else 50)
        assert lock_is_free()


@pytest.mark.parametrize("outer", [None, "warn"])
def test_undoing_interrupted_at_any_point(outer):
    with contextlib.nullcontext() if outer is None else patch_diffusers(nonfinite=outer):
        word = nonfinite.policy_in_force()
        undone = state()
        for point in itertools.count(1):
            handle = patch_diffusers(nonfinite="ignore")
            try:
                with interrupted(point) as left:
                    handle.undo()
            except KeyboardInterrupt:
                now = (state(), nonfinite.policy_in_force())
                assert now in ((PATCHED, "ignore"), (undone, word)), point
                handle.undo()
            assert state() == undone, point
            assert nonfinite.policy_in_force() == word, point
            assert is_patched() == (outer is not None), point
            if left:
                break
        assert point > (10 if outer else 50)
        assert lock_is_free()


@pytest.mark.parametrize("second", [1, 2, 5, 17, 60])
def test_interrupted_again_while_cleaning_up(second):
    """Then something may be left, until the next call."""
    for first in range(1, 400, 3):
        handle = patch_diffusers(nonfinite="ignore")
        with contextlib.suppress(KeyboardInterrupt), interrupted(first, second) as left:
            handle.undo()
        with patch_diffusers(nonfinite="warn"):
            assert state() == PATCHED
            assert nonfinite.policy_in_force() == "warn"
        handle.undo()
        assert state() == UNPATCHED
        if left:
            break
