"""Giving back the memory of weights, and keeping their values.

A frontend that has compiled a model would like its torch weights out of memory. Replacing them by
fake tensors does that, and the next eager forward computes with nothing. Here they move to a file
instead, from which the operating system brings back what is read.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import tempfile
import weakref
from pathlib import Path

import torch

from ovtensor._disk import temporary_folder
from ovtensor.engine.memory import give_back
from ovtensor.errors import DatalessTensorError, InputError
from ovtensor.tensors.convert import describe

__all__ = ["release_weights"]

# Every tensor starts at a multiple of this, in bytes: a cache line, and any element type's own.
_ALIGNMENT = 64
_MAPPINGS: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


@dataclasses.dataclass(slots=True)
class _Block:
    """The memory of one storage, and all tensors that are views of it."""

    name: str
    storage: torch.UntypedStorage
    tensors: list[torch.Tensor]
    start: int = 0


def release_weights(
    module: torch.nn.Module, *, folder: str | os.PathLike[str] | None = None
) -> int:
    """Move a module's weights from memory to a file, and leave every value readable.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters and buffers on the CPU are written once, as safetensors, and then backed by
        that file. The module, its parameters and buffers stay the same objects; tied ones stay
        tied. Tensors on other devices, of other layouts than strided and in memory that processes
        share are left alone.
    folder : path, optional
        Where the file goes; it needs as much room as the weights. By default ``/var/tmp``, or the
        system's temporary folder where there is no such thing. A folder in memory (tmpfs) frees
        nothing.

    Returns
    -------
    int
        Bytes that moved; 0 if the weights are in a file already.

    Raises
    ------
    DatalessTensorError
        If a weight is fake or meta: what it held is gone.
    InputError
        If `module` is no module or `folder` no folder.
    OSError
        If the file cannot be written. The module is unchanged then, and nothing is left behind.

    Notes
    -----
    The mapping is private: an in-place write such as ``load_state_dict`` goes to memory and not to
    the file. The file is unlinked at once where the system allows that, and on Windows when the
    last tensor that it backs is gone; so it is nobody else's to read.

    The module must not be run or changed by another thread during the call.

    Examples
    --------
    >>> import torch, ovtensor
    >>> linear = torch.nn.Linear(64, 64, bias=False)
    >>> ovtensor.release_weights(linear)
    16384
    >>> ovtensor.release_weights(linear)
    0
    """
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"release_weights takes a torch.nn.Module, not a {type(module).__name__}")
    blocks = _blocks(module)
    if not blocks:
        return 0
    header = _lay_out(blocks)
    path = _write(blocks, header, _folder(folder))
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except BaseException:
        path.unlink()
        raise
    try:
        path.unlink()
    except PermissionError:  # Windows: not while it is mapped, and the mapping goes before this
        weakref.finalize(mapping, path.unlink, missing_ok=True)
    _MAPPINGS.add(mapping)
    with torch.no_grad():
        for block in blocks:
            _back(block, mapping, len(header))
    released = sum(block.storage.nbytes() for block in blocks)
    del block, blocks  # the last that hold the memory
    give_back()
    return released


def _blocks(module: torch.nn.Module) -> list[_Block]:
    """The storages behind the module's weights that are in memory, each with its tensors."""
    mapped = [_address_range(mapping) for mapping in _MAPPINGS]
    blocks: dict[int, _Block] = {}
    seen: set[int] = set()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not (info := describe(tensor)).has_data:
            raise DatalessTensorError(f"{name}, {info}, has no values to keep: {info.reason}")
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        strided = tensor.layout is torch.strided and not tensor.is_quantized
        if id(tensor) in seen or not plain or not strided or tensor.device.type != "cpu":
            continue
        seen.add(id(tensor))
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if storage.nbytes() == 0 or storage.is_shared():
            continue
        if any(start <= address < end for start, end in mapped):
            continue
        blocks.setdefault(address, _Block(name, storage, [])).tensors.append(tensor)
    return list(blocks.values())


def _address_range(mapping: mmap.mmap) -> tuple[int, int]:
    start = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
    return start, start + len(mapping)


def _lay_out(blocks: list[_Block]) -> bytes:
    """Give each block its start after the header, which is returned: that of safetensors."""
    entries, end = {}, 0
    for block in blocks:
        block.start, size = end, block.storage.nbytes()
        entries[block.name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
        if padding := -end % _ALIGNMENT:  # the format allows no holes
            offsets = [end, end + padding]
            entries[f"{block.name}.padding"] = {
                "dtype": "U8",
                "shape": [padding],
                "data_offsets": offsets,
            }
            end += padding
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(blocks: list[_Block], header: bytes, folder: Path) -> Path:
    descriptor, name = tempfile.mkstemp(".safetensors", "ovtensor-weights-", folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            for block in blocks:
                content = torch.empty(0, dtype=torch.uint8).set_(block.storage)
                content.numpy().tofile(file)
                file.write(bytes(-block.storage.nbytes() % _ALIGNMENT))
    except BaseException:
        path.unlink()
        raise
    return path


def _back(block: _Block, mapping: mmap.mmap, begin: int) -> None:
    """Put the tensors of one storage onto the file; each storage stays one of its own."""
    size = block.storage.nbytes()
    content = torch.frombuffer(mapping, dtype=torch.uint8, count=size, offset=begin + block.start)
    storage = content.untyped_storage()
    for tensor in block.tensors:
        view = torch.empty(0, dtype=tensor.dtype)
        view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.is_neg():
            view = torch._neg_view(view)  # noqa: SLF001  what .imag of a conjugate is; none public
        tensor.data = view.conj() if tensor.is_conj() else view


def _folder(folder: str | os.PathLike[str] | None) -> Path:
    if folder is None:
        return temporary_folder()
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"the folder {str(path)!r} does not exist; make it first")
    return path
