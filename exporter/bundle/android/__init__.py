"""The loop in Java and Kotlin, as a Gradle project for Android whose weights are asset packs.

A store takes packs of a limited size, and onnxruntime opens a graph and its weights from one
folder: so each graph lies whole in one pack, and all that is not a graph in a pack of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from exporter.bundle.target import FileLimit, Target
from exporter.errors import InputError
from exporter.package.manifest import Manifest

PACK_BYTES = 1_500_000_000  # of Google Play, and of all packs that are not there at installation:
PACKS_BYTES = 4_000_000_000
ASSETS = "src/main/assets/package"  # in the folder of a pack
STRINGS = "app/src/main/res/values/strings.xml"
FIRST = "fourstep_package"  # the pack of all that is not a graph
REMEDY = "build with a scheme of fewer bits, or cut: most_file_bytes, denoiser_parts in [build]"
PACK = """plugins {
    id("com.android.asset-pack")
}

assetPack {
    packName = "%s"
    dynamicDelivery {
        deliveryType = "fast-follow" // files on the disk, where an engine can map them
    }
}
"""


def packs_of(manifest: Manifest) -> dict[str, str]:
    """The pack of each graph, in the order of the manifest: the first that has room for it.

    Raises InputError for a graph that no pack takes, or for more than a store delivers.
    """
    found: dict[str, str] = {}
    held: list[int] = []
    for graph, size_bytes in _bytes(manifest).items():
        if size_bytes > PACK_BYTES:
            raise InputError(
                f"graph '{graph}': {size_bytes / 1e6:,.1f} MB in one folder, and an asset "
                f"pack of Google Play takes {PACK_BYTES / 1e6:,.1f} MB; {REMEDY}"
            )
        fits = (i for i, size in enumerate(held) if size + size_bytes <= PACK_BYTES)
        place = next(fits, len(held))
        if place == len(held):
            held.append(0)
        held[place] += size_bytes
        found[graph] = f"fourstep_graphs{place + 1}"
    whole = sum(held)
    if whole > PACKS_BYTES:
        raise InputError(
            f"graphs of {whole / 1e6:,.1f} MB, and Google Play delivers {PACKS_BYTES / 1e6:,.1f} "
            f"MB of asset packs; {REMEDY}"
        )
    return found


def _bytes(manifest: Manifest) -> dict[str, int]:
    """Of each graph's files, those of further sizes too."""
    beside = {file.path: file.bytes for file in manifest.files}
    found = {graph.name: graph.bytes for graph in manifest.graphs}
    for own in (graph for size in manifest.sizes for graph in size.graphs):
        found[own.name] += sum(beside.get(path, 0) for path in own.files)
    return found


def moved(manifest: Manifest) -> Mapping[str, str]:
    """Where the graphs' files lie: in the assets of their packs, as in the package.

    Those of further sizes beside those of the first, whose weights they use.
    """
    packs = packs_of(manifest)
    further = [graph for size in manifest.sizes for graph in size.graphs]
    paths = [(graph.name, file.path) for graph in manifest.graphs for file in graph.files]
    paths += [(graph.name, path) for graph in further for path in graph.files]
    return {path: f"{packs[name]}/{ASSETS}/{path}" for name, path in paths}


def extra(manifest: Manifest) -> Mapping[str, str]:
    """The modules of the packs, and the list of them that Gradle reads."""
    names = [FIRST, *dict.fromkeys(packs_of(manifest).values())]
    modules = {f"{name}/build.gradle.kts": PACK % name for name in names}
    return {"packs.txt": "\n".join(names) + "\n", **modules}


TARGET: Final = Target(
    name="android",
    title="Android, in Java and Kotlin",
    backends=("onnx",),
    place=f"{FIRST}/{ASSETS}",
    filled=("README.md", STRINGS),
    shared={"unicode.bin": "fourstep/src/main/resources/dev/fourstep/unicode.bin"},
    limit=FileLimit(PACK_BYTES, "an asset pack of Google Play", REMEDY),
    moved=moved,
    extra=extra,
)
