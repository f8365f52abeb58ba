"""What a session opens: a torch pipeline, and where the weights of each component come from."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from ovtensor.engine.backend import resolve
from ovtensor.engine.devices import torch_dtype
from ovtensor.errors import DatalessTensorError, InputError
from ovtensor.pipelines.families import family_of, task_class
from ovtensor.pipelines.folders import model_folder
from ovtensor.pipelines.kinds import convertible, graph_spec, kind_called, kind_of
from ovtensor.pipelines.proxies import is_proxy
from ovtensor.pipelines.sources import LoadedSource, folder_sources
from ovtensor.tensors.convert import describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ovtensor.engine.backend import Backend
    from ovtensor.engine.events import Events
    from ovtensor.engine.graph import GraphSpec
    from ovtensor.engine.opening import Opener
    from ovtensor.pipelines.families import Family
    from ovtensor.pipelines.kinds import Kind
    from ovtensor.pipelines.lora import Given, Lora
    from ovtensor.pipelines.sources import ComponentSource

S = TypeVar("S", bound="ComponentSource")


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A pipeline before components are attached.

    Attributes
    ----------
    pipe : DiffusionPipeline
        The caller's, or one of the session's own with meta modules of what will be compiled.
    owned : bool
        Whether it is the session's own.
    family : Family
        What it is of.
    backends : mapping
        By component, with nothing left open.
    sources : mapping
        The weights of each component.
    """

    pipe: Any
    owned: bool
    family: Family
    backends: Mapping[str, Backend]
    sources: Mapping[str, ComponentSource]


def prepare(
    model: Any,
    asked: Mapping[str, Backend],
    task: str | type | None,
    loras: Sequence[Given],
    opener: Opener,
    events: Events,
) -> Prepared:
    """Load a model's folder or take a pipeline, and begin to open what is cached of it.

    Raises
    ------
    ModelError, InputError, ComponentError
        If it is no model of a known family, or something in it cannot run where it is asked to;
        nothing is converted before that.
    """
    if isinstance(model, str | os.PathLike):
        return _from_folder(model, asked, task, loras, opener, events)
    return _from_pipeline(model, asked, task, loras, opener)


def _from_folder(
    model: str | os.PathLike[str],
    asked: Mapping[str, Backend],
    task: str | type | None,
    given_loras: Sequence[Given],
    opener: Opener,
    events: Events,
) -> Prepared:
    """A pipeline from a folder, with meta modules of what will be compiled."""
    folder, family = model_folder(model)
    on_disk = folder_sources(folder, family.components)
    kinds = {name: kind_called(one.class_name) for name, one in on_disk.items()}
    backends = _settled(asked, family, kinds)
    compiled = _on_openvino(on_disk, backends)
    early = not given_loras  # which can be told apart when layers are known
    if early:
        # While diffusers and transformers are imported, which takes seconds; if that has
        # been done, the first one is opened here meanwhile.
        imported = "diffusers" in sys.modules
        opener.look_ahead(_specs(compiled, backends, kinds)[imported:])
    from ovtensor.pipelines import loading

    _demand_convertible(family, compiled)
    with events.stage("load", "pipeline"):
        given = {
            name: source.meta_module
            if name in compiled
            else source.load(torch_dtype(backends[name].precision))
            for name, source in on_disk.items()
        }
        pipe = loading.load_pipeline(folder, task_class(task, family), given)
        del given
    modules = _modules(pipe, family)
    kinds = {name: kind_of(module) for name, module in modules.items()}
    backends = _settled(asked, family, kinds)
    sources: Mapping[str, ComponentSource] = {
        name: compiled.get(name) or LoadedSource(module, owned=True, folder=on_disk.get(name))
        for name, module in modules.items()
    }
    sources = _adapted(family, sources, given_loras)
    if not early:
        opener.look_ahead(_specs(sources, backends, kinds)[1:])
    return Prepared(pipe, True, family, backends, sources)


def _from_pipeline(
    pipe: Any,
    asked: Mapping[str, Backend],
    task: str | type | None,
    given_loras: Sequence[Given],
    opener: Opener,
) -> Prepared:
    """The caller's pipeline."""
    family = family_of(pipe)
    if getattr(pipe, "ovtensor", None) is not None:
        raise InputError(
            "this pipeline is that of an open session; make another one of it with its "
            "clone(), or pass the pipeline that the session was made from"
        )
    kind = task_class(task, family)
    if kind is not None and not isinstance(pipe, kind):
        raise InputError(
            f"the pipeline is a {type(pipe).__qualname__} already; make another one with "
            f"{kind.__qualname__}.from_pipe(pipe), or pass the model's folder"
        )
    modules = _modules(pipe, family)
    kinds = {name: kind_of(module) for name, module in modules.items()}
    backends = _settled(asked, family, kinds)
    for name, module in modules.items():
        if is_proxy(module):
            raise InputError(
                f"the pipeline's {name} is of another session; make more pipelines of that "
                f"one with its clone(), or pass the model's folder"
            )
        if backends[name].kind == "openvino":
            _demand_values(name, module)
    sources: Mapping[str, ComponentSource] = {
        name: LoadedSource(module, owned=False) for name, module in modules.items()
    }
    _demand_convertible(family, _on_openvino(sources, backends))
    sources = _adapted(family, sources, given_loras)
    opener.look_ahead(_specs(sources, backends, kinds)[1:])
    return Prepared(pipe, False, family, backends, sources)


def _settled(
    asked: Mapping[str, Backend], family: Family, kinds: Mapping[str, Kind | None]
) -> dict[str, Backend]:
    """The backend of each component; its own name counts before its group's.

    Raises
    ------
    InputError
        If something was asked of a component that the family does not have.
    """
    known = {*family.components, *family.components.values()}
    if unknown := set(asked) - known:
        raise InputError(
            f"backends names {', '.join(map(repr, sorted(unknown)))}; {family.name} has "
            f"{', '.join(map(repr, sorted(known)))}"
        )
    return {
        name: resolve(
            asked.get(name) or asked[family.components[name]],
            prefer_f32=kind is not None and kind.f32_by_default,
        )
        for name, kind in kinds.items()
    }


def _demand_convertible(family: Family, sources: Mapping[str, ComponentSource]) -> None:
    """Refuse what cannot be converted before anything is."""
    for name, source in sources.items():
        convertible(name, family.components[name], source.meta_module)


def _on_openvino(sources: Mapping[str, S], backends: Mapping[str, Backend]) -> dict[str, S]:
    """Those that OpenVINO runs, the largest one first."""
    return {name: one for name, one in sources.items() if backends[name].kind == "openvino"}


def _specs(
    sources: Mapping[str, ComponentSource],
    backends: Mapping[str, Backend],
    kinds: Mapping[str, Kind | None],
) -> list[tuple[GraphSpec, Backend]]:
    """The graph of each component on OpenVINO that is opened first."""
    found = []
    for name, source in _on_openvino(sources, backends).items():
        if (kind := kinds[name]) is not None and kind.graphs:
            found.append((graph_spec(name, kind.graphs[0], source), backends[name]))
    return found


def _adapted(
    family: Family, sources: Mapping[str, ComponentSource], given: Sequence[Given]
) -> Mapping[str, ComponentSource]:
    """The sources, with LoRAs added where these change something."""
    if not given:
        return sources
    from ovtensor.pipelines import lora

    modules = {name: sources[name].meta_module for name in family.adapted if name in sources}
    loras = lora.read(given, modules, family.loader)

    def of(name: str) -> list[Lora]:
        return [one for one in loras if name in one.tensors]

    return {
        name: lora.AdaptedSource(source, name, of(name)) if of(name) else source
        for name, source in sources.items()
    }


def _modules(pipe: Any, family: Family) -> dict[str, Any]:
    modules = {name: getattr(pipe, name, None) for name in family.components}
    return {name: module for name, module in modules.items() if module is not None}


def _demand_values(name: str, module: torch.nn.Module) -> None:
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not (info := describe(tensor)).has_data:
            offloaded = "; the pipeline's remove_all_hooks() brings back what is offloaded"
            raise DatalessTensorError(
                f"the {name}'s {key}, {info}, has no values to convert: {info.reason}"
                + offloaded * tensor.is_meta,
                component=name,
                tensor=info,
            )
