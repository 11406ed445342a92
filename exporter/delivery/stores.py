"""Where packs go: how a store wants them laid out, and how much it takes.

The limits are those that the stores document: 1.5 GB for an AI pack as it is downloaded, 4 GB for
all of an app on Google Play; 200 GB of Background Assets that Apple hosts. For one of Apple's asset
packs no limit was found; 2 GB is ours, so that a download that fails does not begin far back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from exporter.delivery.index import Index
from exporter.errors import InputError, known

SMALLER = "build with a scheme of fewer bits, such as int4"
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9]+")

PACK_MODULE = """// Written by fourstep pack. {bytes:,} bytes.
plugins {{
    id 'com.android.ai-pack'
}}

aiPack {{
    packName = "{pack}"
    dynamicDelivery {{
        deliveryType = "fast-follow" // or on-demand: files on the disk, where they can be read
    }}
}}
"""
SETTINGS = """// Written by fourstep pack. In the settings.gradle of your project:
//     apply from: 'path/to/this/settings.gradle'
{includes}
"""
INCLUDE = """include ':{pack}'
project(':{pack}').projectDir = new File(buildscript.sourceFile.parentFile, '{pack}')"""
APP = """// Written by fourstep pack. In the build.gradle of your app:
//     apply from: 'path/to/this/packs.gradle'
android {{
    assetPacks += [{packs}]
}}
"""


@dataclass(frozen=True)
class Store:
    """What a store wants.

    Attributes:
        name: the word of ``--for``.
        title: for people.
        separator: between the words of a pack's name.
        pack_bytes: of a pack as it is downloaded, at most.
        whole_bytes: of all packs, at most.
        inside: where a pack's files lie in the folder of its name; ``{label}`` is the package's.
        extra: files beside the chunks, by path.
        in_one: whether all is one file.
    """

    name: str
    title: str
    separator: str
    pack_bytes: int
    whole_bytes: int
    inside: str
    extra: Callable[[Index], Mapping[str, str]]
    in_one: bool = False

    def label(self, *words: str) -> str:
        """A name of letters and digits, begun by a letter, as every store takes it."""
        parts = [NOT_IN_NAMES.sub(self.separator, word).strip(self.separator) for word in words]
        whole = self.separator.join(part for part in parts if part)
        return whole if whole[:1].isalpha() else self.separator.join(("package", whole))

    def folder(self, pack: str, words: Sequence[str]) -> str:
        """The folder that a pack's index and chunks lie in; ``words`` name the package."""
        return f"{pack}{self.inside.format(label=self.label(*words))}"


def _modules(index: Index) -> Mapping[str, str]:
    """Of Google Play: a Gradle module for each pack, and what makes a project take them."""
    includes = "\n".join(INCLUDE.format(pack=pack) for pack in index.packs)
    names = ", ".join(f"':{pack}'" for pack in index.packs)
    modules = {
        f"{pack}/build.gradle": PACK_MODULE.format(pack=pack, bytes=stored_in(index, i))
        for i, pack in enumerate(index.packs)
    }
    return {
        "settings.gradle": SETTINGS.format(includes=includes),
        "packs.gradle": APP.format(packs=names),
        **modules,
    }


def _manifests(index: Index) -> Mapping[str, str]:
    """Of Apple: the manifest of each asset pack, as ``xcrun ba-package`` reads it."""
    return {
        f"{pack}.json": json.dumps(
            {
                "assetPackID": pack,
                "downloadPolicy": {
                    "prefetch": {
                        "installationEventTypes": ["firstInstallation", "subsequentUpdate"]
                    }
                },
                "fileSelectors": [{"directory": pack}],
                "platforms": ["iOS", "macOS"],
            },
            indent=2,
        )
        + "\n"
        for pack in index.packs
    }


def stored_in(index: Index, pack: int) -> int:
    """Bytes of a pack's chunks as they are stored."""
    return sum(chunk.stored_bytes for chunk in index.chunks if chunk.pack == pack)


PLAY: Final = Store(
    name="play",
    title="AI packs of Google Play",
    separator="_",
    pack_bytes=1_500_000_000,
    whole_bytes=4_000_000_000,
    inside="/src/main/assets/{label}",
    extra=_modules,
)
APPSTORE: Final = Store(
    name="appstore",
    title="Background Assets of Apple",
    separator="-",
    pack_bytes=2_000_000_000,
    whole_bytes=200_000_000_000,
    inside="",
    extra=_manifests,
)
OTA: Final = Store(
    name="ota",
    title="an archive",
    separator="-",
    pack_bytes=1 << 62,
    whole_bytes=1 << 62,
    inside="",
    extra=lambda index: {},
    in_one=True,
)
STORES: Final = {store.name: store for store in (PLAY, APPSTORE, OTA)}


def load_store(name: str) -> Store:
    """The store of that name; raises InputError that lists those known."""
    if name not in STORES:
        raise InputError(known("store", name, STORES), field="target")
    return STORES[name]
