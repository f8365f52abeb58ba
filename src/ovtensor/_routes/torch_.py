"""PyTorch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ovtensor._dtypes import BY_NAME, BY_TORCH
from ovtensor._host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor.errors import ConversionError, DatalessTensorError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ROUTE"]

_ELEMENT = {getattr(torch, name): row for name, row in BY_TORCH.items() if hasattr(torch, name)}
_CARRIER = {torch.bfloat16: torch.uint16}

_FAKE = (
    "it is a FakeTensor: a shape and a dtype that stand in for values. A model gives such results "
    "when its weights were replaced by fake ones after compiling; free that memory with "
    "ovtensor.release_weights, which keeps the values within reach"
)


class TorchRoute:
    """Values of a tensor, whatever stands between it and its memory."""

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        self._demand_data(x)
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            return _host(self._plain(x), x)

    def describe(self, x: Any, /) -> TensorInfo:
        return TensorInfo(
            library=type(x).__module__.partition(".")[0],
            type=qualified_name(type(x)),
            shape=tuple(x.shape),
            dtype=str(x.dtype),
            device=str(x.device),
            has_data=not x.is_meta,
            route="torch",
        )

    def _demand_data(self, x: torch.Tensor) -> None:
        from torch._subclasses.fake_tensor import is_fake

        reason = None
        if is_fake(x):
            reason = _FAKE
        elif x.is_meta:
            reason = "it lives on the meta device, which keeps shapes and no values"
        elif torch._is_functional_tensor(x):  # noqa: SLF001
            reason = "it is a functional tensor of a trace"
        if reason is not None:
            raise DatalessTensorError(f"{self.describe(x)} has no values: {reason}")

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        """Unwrap a subclass that dispatches; anything else is plain already."""
        if not torch._C._dispatch_keys(x).has(torch._C.DispatchKey.Python):  # noqa: SLF001
            return x
        for way_out in ("full_tensor", "dequantize", "wait", "to_dense"):
            method = getattr(x, way_out, None)
            if callable(method) and not hasattr(torch.Tensor, way_out):
                return method()  # type: ignore[no-any-return]
        out = torch.ops.aten.clone.default(x)
        if torch._C._dispatch_keys(out).has(torch._C.DispatchKey.Python):  # noqa: SLF001
            raise ConversionError(
                f"{self.describe(x)} has no known way to a plain tensor; register one with "
                "ovtensor.register_route"
            )
        return out  # type: ignore[no-any-return]


def _host(plain: torch.Tensor, source: torch.Tensor) -> np.ndarray[Any, Any] | HostArray:
    dense = plain.detach()
    if dense.is_quantized:
        dense = dense.dequantize()
    elif dense.layout is not torch.strided:
        dense = dense.to_dense()
    dense = dense.cpu().resolve_conj().resolve_neg()
    if dense.dtype is torch.complex32:
        dense = dense.to(torch.complex64)
    element = _ELEMENT[dense.dtype]
    if not element.in_numpy:
        dense = dense.view(getattr(torch, element.carrier.name))
    ours = dense.untyped_storage()._cdata != source.untyped_storage()._cdata  # noqa: SLF001
    memory = Memory.FRESH if ours else Memory.CALLER
    array = dense.numpy()
    if element.in_numpy and memory is Memory.CALLER:
        return array
    return HostArray(array, BY_NAME[element.name], memory)


ROUTE = TorchRoute()
