"""onnxruntime's own model package, schema 1.0: native packages as the variants of one folder.

A component is a graph, a variant is a scheme. The graph lies in the variant's folder; the weights
are a shared asset, a folder that is called by its own digest, so that variants of the same weights
share them. onnxruntime chooses a variant by execution provider and device, and of several that fit
takes the first. No torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.errors import CheckFailed, InputError
from exporter.files.read import file_digest, read_json
from exporter.package.manifest import GraphEntry, Manifest
from exporter.package.paths import confined, is_relative
from exporter.quantize.formats import STORAGE

MANIFEST, ASSETS, SCHEMA = "manifest.json", "shared_assets", "1.0"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
ACCURACY = "session.qdq_matmulnbits_accuracy_level"
WIDENED = "session.disable_quant_qdq"
URI = re.compile(r"sha256:[0-9a-f]{64}")
# The keys that onnxruntime's reader knows; it refuses others.
KEYS = {
    "package": (
        "schema_version", "package_name", "package_version", "description", "layout",
        "components", "shared_assets", "additional_metadata",
    ),
    "component": ("component_name", "variants", "additional_metadata"),
    "variant": (
        "variant_directory", "ep", "device", "compatibility_string", "executor_info",
        "additional_metadata",
    ),
    "ort": ("model_file", "session_options", "provider_options"),
}  # fmt: skip
TOLD = (
    "schedule",
    "picture",
    "noise",
    "text",
    "stages",
    "mark",
)  # of a manifest: what a loop needs


@dataclass(frozen=True)
class Provider:
    """Where a variant runs.

    Attributes:
        suffix: of the variant's name, after its scheme.
        name: of the execution provider.
        device: of onnxruntime's kinds; empty: any. 1.31's reader finds no device for its own CPU.
        inputs: the widths, in bits, of rounded inputs that it has kernels for; None: of inputs
            that are not rounded.
    """

    suffix: str
    name: str
    device: str
    inputs: tuple[int | None, ...] = (None, 8, 16)


CPU = Provider("", "CPUExecutionProvider", "")
WEB_GPU = Provider("-webgpu", "WebGpuExecutionProvider", "gpu", inputs=(None,))
QNN = Provider("-qnn", "QNNExecutionProvider", "npu", inputs=(16,))
PROVIDERS: Mapping[str, tuple[Provider, ...]] = {
    "native": (CPU, QNN),
    "web": (CPU, WEB_GPU),
    "qnn": (CPU, QNN),
}


@dataclass(frozen=True)
class NativePackage:
    """A native package that becomes variants. ``target``: of its graphs, as the recipe says."""

    folder: Path
    manifest: Manifest
    target: str


def write_graphs(sources: Sequence[NativePackage], folder: Path) -> dict[str, Any]:
    """Copy the graphs of native packages into a folder; returns what ``manifest.json`` says.

    Raises InputError where two of them have other ports: variants have to be alike.
    """
    first = sources[0].manifest
    components: dict[str, Any] = {}
    for graph in first.graphs:
        variants: dict[str, Any] = {}
        for source in sources:
            own = _same_ports(source, graph)
            variants |= _variants(source, own, folder)
        components[graph.name] = {"variants": variants}
    told = asdict(first)
    return {
        "schema_version": SCHEMA,
        "package_name": first.name,
        "description": f"{first.name}, made by fourstep; additional_metadata says how it draws",
        "layout": "portable",
        "components": components,
        "additional_metadata": {"fourstep": {key: told[key] for key in TOLD}},
    }


def _inputs(source: NativePackage) -> int | None:
    """To how many bits a package rounds inputs of layers, if it does."""
    names = {name.partition("-")[0] for graph in source.manifest.graphs for name in graph.formats}
    return max((STORAGE[name].inputs or 0 for name in names), default=0) or None


def _same_ports(source: NativePackage, graph: GraphEntry) -> GraphEntry:
    """A package's graph of that name."""
    own = next((g for g in source.manifest.graphs if g.name == graph.name), None)
    if own is None or (own.inputs, own.outputs) != (graph.inputs, graph.outputs):
        raise InputError(
            f"{source.folder}: {graph.name} has not the ports that it has in the other schemes; "
            "build them from one recipe"
        )
    return own


def _variants(source: NativePackage, graph: GraphEntry, folder: Path) -> dict[str, Any]:
    """A scheme's variants of a graph, their files copied: of each provider that has kernels for it,
    and behind them of each chip that it was compiled for.

    Of several for one provider onnxruntime takes the first: what runs on any chip comes first.
    """
    scheme = source.manifest.scheme
    place = f"{graph.name}/{scheme}"
    _copy(source, (graph.entry,), folder / place)
    options = {WEIGHTS_FOLDER: _add_asset(source, graph, folder)}
    if "accuracy_level" in graph.session:
        options[ACCURACY] = graph.session["accuracy_level"]
    if "widened" in graph.session:
        options[WIDENED] = "1"
    told = f"fourstep;scheme={scheme};target={source.target}"
    ort = {"model_file": Path(graph.entry).name, "session_options": options}
    variants = {
        scheme + provider.suffix: _variant(provider, place, told, ort)
        for provider in PROVIDERS[source.target]
        if _inputs(source) in provider.inputs
    }
    for context in graph.npu.contexts if graph.npu else ():
        place = f"{graph.name}/{scheme}-{context.soc}"
        _copy(source, context.files, folder / place)
        chip = f";soc={context.soc};soc_model={context.soc_model};htp_arch={context.htp_arch}"
        variants[f"{scheme}-{context.soc}"] = _variant(
            QNN, place, f"{told}{chip};qairt={context.qairt}",
            {"model_file": Path(context.entry).name},
        )  # fmt: skip
    return variants


def _copy(source: NativePackage, paths: Sequence[str], place: Path) -> None:
    """Copy files beside each other, as those of a graph lie that name each other."""
    place.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(source.folder / path, place / Path(path).name)


def _variant(
    provider: Provider, place: str, compatibility: str, ort: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "variant_directory": place,
        "ep": provider.name,
        **({"device": provider.device} if provider.device else {}),
        "compatibility_string": compatibility,
        "executor_info": {"ort": ort},
    }


def _add_asset(source: NativePackage, graph: GraphEntry, folder: Path) -> str:
    """The weights of a graph as a shared asset, once; returns its URI."""
    files = {Path(f.path).name: f for f in graph.files if f.path != graph.entry}
    uri = asset_uri({name: entry.sha256 for name, entry in files.items()})
    place = asset_folder(folder, uri)
    if not place.exists():
        place.mkdir(parents=True)
        for name, entry in files.items():
            shutil.copyfile(source.folder / entry.path, place / name)
    return uri


def asset_uri(digests: Mapping[str, str]) -> str:
    """``sha256:<hex>`` of a folder: SHA-256 of its files' digests and paths, a line for each."""
    lines = "".join(f"{digests[path]}  {path}\n" for path in sorted(digests))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def asset_folder(folder: Path, uri: str) -> Path:
    """Where a package has a shared asset."""
    return folder / ASSETS / uri.replace(":", "-")


def check_package(folder: Path) -> None:
    """Check a package by the schema and its assets by their digests; raises CheckFailed."""
    try:
        found = read_json(folder / MANIFEST)
        reason = next(_faults(folder, found), None)
    except (InputError, OSError) as error:
        reason = str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{MANIFEST} is not as the schema has it ({type(error).__name__}: {error})"
    if reason:
        raise CheckFailed(f"{folder}: {reason}; build it again")


def _faults(folder: Path, found: Mapping[str, Any]) -> Iterator[str]:
    """What a package has against the schema, in words."""
    yield from _unknown(MANIFEST, found, "package")
    if str(found["schema_version"]).partition(".")[0] != SCHEMA.partition(".")[0]:
        yield f"{MANIFEST}: of schema {found['schema_version']}"
    if found.get("layout", "portable") != "portable":
        yield f"{MANIFEST}: its layout is not portable"
    for name, component in found["components"].items():
        yield from _unknown(name, component, "component")
        for variant, body in component["variants"].items():
            yield from _faults_of_variant(folder, f"{name}/{variant}", body)
    for place in sorted((folder / ASSETS).iterdir()):
        files = [file for file in place.rglob("*") if file.is_file()]
        digests = {file.relative_to(place).as_posix(): file_digest(file) for file in files}
        if asset_uri(digests).replace(":", "-") != place.name:
            yield f"{ASSETS}/{place.name}: has not the content that it is called by"


def _faults_of_variant(folder: Path, name: str, body: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown(name, body, "variant")
    ort = body["executor_info"]["ort"]
    yield from _unknown(name, ort, "ort")
    if not all(is_relative(path) for path in (body["variant_directory"], ort["model_file"])):
        yield f"{name}: has a path that leads out of the package"
    place = confined(folder, body["variant_directory"])
    if not confined(place, ort["model_file"]).is_file():
        yield f"{name}: has no {ort['model_file']}"
    options = ort.get("session_options", {})
    if not all(isinstance(text, str) for text in (*options, *options.values())):
        yield f"{name}: session_options are not text"
    uri = options.get(WEIGHTS_FOLDER, "")
    if uri and not (URI.fullmatch(uri) and asset_folder(folder, uri).is_dir()):
        yield f"{name}: {uri} is no shared asset of it"


def _unknown(name: str, body: Mapping[str, Any], kind: str) -> Iterator[str]:
    for key in body:
        if key not in KEYS[kind]:
            yield f"{name}: the schema has no {key!r}"


def manifest_text(found: Mapping[str, Any]) -> str:
    """``manifest.json``."""
    return json.dumps(found, indent=1) + "\n"
