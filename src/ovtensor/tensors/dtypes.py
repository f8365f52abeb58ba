"""The one table of element types: a row a type, every other lookup is derived from it.

NumPy has no bfloat16, no float8 and nothing narrower than a byte. Values of such types travel as
*carriers*: unsigned integers that hold the same bits, one element a value. That keeps every
passage between libraries exact, and needs neither ``ml_dtypes`` nor a framework.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np

from ovtensor.errors import ConversionError

__all__ = [
    "BY_NAME",
    "BY_NATIVE",
    "BY_NUMPY",
    "BY_OPENVINO",
    "BY_TORCH",
    "TABLE",
    "ElementType",
    "element_of",
    "installed",
    "native_dtype",
]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ElementType:
    """What is known about one element type; the rows of :data:`TABLE` are all there are.

    Attributes
    ----------
    name : str
        Name of the type, as NumPy or ``ml_dtypes`` spells it where one of them has it.
    bits : int
        Width of one element in bits, where elements are packed; 0 where it varies (text).
    numpy : str or None
        NumPy's own type; None where NumPy has none.
    torch : str or None
        Attribute of ``torch``.
    openvino : str or None
        Attribute of ``openvino.Type``.
    native : str or None
        Attribute of ``ml_dtypes``.
    default : str
        The NumPy type that holds every value of this type exactly, and that ``to_numpy`` gives.
    integral : bool
        Whether the values are integers, so that the carrier holds the value itself.
    layout : tuple or None
        Of a float that NumPy lacks: bits of the exponent and of the mantissa, bias of the exponent,
        and what the topmost codes mean: ``"ieee"`` infinity and NaN, ``"fn"`` one NaN of each
        sign, ``"fnuz"`` nothing but NaN in place of negative zero, ``"finite"`` numbers.
    """

    name: str
    bits: int
    numpy: str | None = None
    torch: str | None = None
    openvino: str | None = None
    native: str | None = None
    default: str = "float32"
    integral: bool = False
    layout: tuple[int, int, int, str] | None = None

    @property
    def carrier(self) -> np.dtype[Any]:
        """The NumPy type that elements of this type travel in, one element a value."""
        if self.numpy is not None:
            return np.dtype(self.numpy)
        if self.integral:
            return np.dtype(self.default)
        return np.dtype(np.uint16 if self.bits > 8 else np.uint8)

    @property
    def packed(self) -> bool:
        """Whether several elements share a byte where the owning library stores them."""
        return 0 < self.bits < 8

    @property
    def in_numpy(self) -> bool:
        """Whether NumPy itself has the type, so that the carrier already is the value."""
        return self.numpy is not None


def _same(name: str, bits: int, openvino: str | None, torch: str | None = None) -> ElementType:
    """Build the row of a type that NumPy has."""
    own = name if torch is None else torch or None
    return ElementType(name, bits, name, own, openvino, None, name, np.dtype(name).kind in "biu")


def _narrow(
    name: str,
    bits: int,
    torch: str | None,
    openvino: str | None,
    layout: tuple[int, int, int, str] | None = None,
) -> ElementType:
    """Build the row of a float that ``ml_dtypes`` has and NumPy lacks."""
    return ElementType(name, bits, None, torch, openvino, name, layout=layout)


TABLE: tuple[ElementType, ...] = (
    # First, because it is float64 by another name on some platforms: the later row wins there.
    _same("longdouble", 128, None, ""),
    _same("clongdouble", 256, None, ""),
    _same("bool", 8, "boolean"),
    _same("int8", 8, "i8"),
    _same("int16", 16, "i16"),
    _same("int32", 32, "i32"),
    _same("int64", 64, "i64"),
    _same("uint8", 8, "u8"),
    _same("uint16", 16, "u16"),
    _same("uint32", 32, "u32"),
    _same("uint64", 64, "u64"),
    _same("float16", 16, "f16"),
    _same("float32", 32, "f32"),
    _same("float64", 64, "f64"),
    _same("complex64", 64, None),
    _same("complex128", 128, None),
    _narrow("bfloat16", 16, "bfloat16", "bf16", (8, 7, 127, "ieee")),
    _narrow("float8_e3m4", 8, None, None, (3, 4, 3, "ieee")),
    _narrow("float8_e4m3", 8, None, None, (4, 3, 7, "ieee")),
    _narrow("float8_e4m3fn", 8, "float8_e4m3fn", "f8e4m3", (4, 3, 7, "fn")),
    _narrow("float8_e5m2", 8, "float8_e5m2", "f8e5m2", (5, 2, 15, "ieee")),
    _narrow("float8_e4m3b11fnuz", 8, None, None, (4, 3, 11, "fnuz")),
    _narrow("float8_e4m3fnuz", 8, "float8_e4m3fnuz", None, (4, 3, 8, "fnuz")),
    _narrow("float8_e5m2fnuz", 8, "float8_e5m2fnuz", None, (5, 2, 16, "fnuz")),
    _narrow("float8_e8m0fnu", 8, "float8_e8m0fnu", "f8e8m0"),
    _narrow("float6_e2m3fn", 6, None, None, (2, 3, 1, "finite")),
    _narrow("float6_e3m2fn", 6, None, None, (3, 2, 3, "finite")),
    _narrow("float4_e2m1fn", 4, None, "f4e2m1", (2, 1, 1, "finite")),
    ElementType("nf4", 4, None, None, "nf4", None),
    ElementType("uint1", 1, None, None, "u1", "uint1", "uint8", True),
    ElementType("uint2", 2, None, None, "u2", "uint2", "uint8", True),
    ElementType("uint3", 3, None, None, "u3", None, "uint8", True),
    ElementType("uint4", 4, None, None, "u4", "uint4", "uint8", True),
    ElementType("uint6", 6, None, None, "u6", None, "uint8", True),
    ElementType("int1", 1, None, None, None, "int1", "int8", True),
    ElementType("int2", 2, None, None, None, "int2", "int8", True),
    ElementType("int4", 4, None, None, "i4", "int4", "int8", True),
    ElementType("str", 0, "str", None, "string", None, "str"),  # NumPy widens it as needed
)

BY_NAME = {row.name: row for row in TABLE}
BY_TORCH = {row.torch: row for row in TABLE if row.torch is not None}
BY_OPENVINO = {row.openvino: row for row in TABLE if row.openvino is not None}
# Keyed by the dtype itself: NumPy's aliases ("l", "q") compare and hash alike.
BY_NUMPY = {np.dtype(row.numpy): row for row in TABLE if row.numpy is not None and row.bits}

BY_NATIVE = {row.native: row for row in TABLE if row.native is not None}


def element_of(dtype: Any) -> ElementType:
    """Find the row of a dtype in any of the libraries' words, or by its name.

    A word that OpenVINO has means what OpenVINO means by it: ``"u8"`` has eight bits. What NumPy
    calls so is ``"uint64"``, or ``"=u8"`` with a byte order.

    Raises
    ------
    ConversionError
        If no row answers to it.
    """
    row: ElementType | None = None
    if hasattr(dtype, "get_type_name"):  # openvino.Type
        row = BY_OPENVINO.get(dtype.get_type_name())
    elif isinstance(dtype, str):
        row = BY_OPENVINO.get(dtype, BY_NAME.get(dtype))
    if row is None:
        library, _, name = str(dtype).rpartition(".")
        if library == "torch":
            row = BY_TORCH.get(name)
        else:  # TensorFlow's types have a name, those of the array API are written with a module
            row = _numpy_element(dtype) or BY_NAME.get(str(getattr(dtype, "name", name)))
    if row is None:
        raise ConversionError(
            f"dtype={dtype!r} is no element type that is known here; give one of "
            + ", ".join(BY_NAME)
        )
    return row


def _numpy_element(dtype: Any) -> ElementType | None:
    try:
        wanted = np.dtype(dtype).newbyteorder("=")
    except Exception:  # noqa: BLE001  of what is no type at all NumPy raises various errors
        return None
    return (
        BY_NAME["str"] if wanted.kind == "U" else BY_NUMPY.get(wanted, BY_NATIVE.get(wanted.name))
    )


def native_dtype(element: ElementType) -> np.dtype[Any]:
    """Return the NumPy type that has the same bits as `element`, from ``ml_dtypes`` if need be.

    Raises
    ------
    ConversionError
        If neither NumPy nor an installed ``ml_dtypes`` has it.
    """
    if element.numpy is not None:
        return np.dtype(element.numpy)
    if element.native is None:
        raise ConversionError(
            f"NumPy has no type for {element.name}; leave dtype out to get {element.default}"
        )
    try:
        found = installed(importlib.import_module("ml_dtypes"), element.native, type)
    except ModuleNotFoundError:
        found = None
    native: np.dtype[Any] = np.dtype(found)
    if native.name != element.native:  # nothing, or something else than a type of elements
        raise ConversionError(
            f"NumPy's type for {element.name} comes with ml_dtypes, which is not installed or too "
            f"old; install its newest release, or leave dtype out to get {element.default}"
        )
    return native


def installed(library: Any, name: str | None, kind: type) -> Any:
    """Return a library's own type by its name in the table; None where this release lacks it."""
    found = getattr(library, name, None) if name is not None else None
    return found if isinstance(found, kind) else None
