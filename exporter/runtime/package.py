"""A package on disk: opened, checked, played."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from exporter import backends
from exporter.backends.contract import SessionOptions
from exporter.drawing import text
from exporter.drawing.loop import ENCODERS, Player, Session, nothing
from exporter.errors import CheckFailed, InputError
from exporter.package import preview
from exporter.package.check import check_file, check_size
from exporter.package.manifest import GraphEntry, Manifest, read_manifest
from exporter.runtime.ahead import OpenedAhead

DEFAULT = SessionOptions()
WEIGHTS = (".bin", ".data")  # suffixes of files that hold nothing but weights
ON_DEMAND = ("vae_encoder",)  # of a package's graphs, those that few pictures need


@dataclass(frozen=True)
class Package:
    """A folder that ``fourstep build`` wrote."""

    folder: Path
    manifest: Manifest

    def graph(self, name: str) -> GraphEntry:
        """A graph of the package; raises InputError when it has none of that name."""
        graph = self.manifest.graph(name)
        if graph is None:
            hint = "; build with image_to_image = true in [image]" if name == "vae_encoder" else ""
            raise InputError(f"{self.folder}: the package has no graph '{name}'{hint}")
        return graph

    def session(self, name: str, options: SessionOptions = DEFAULT) -> Session:
        """Open a graph and check its files' digests; raises CheckFailed.

        Files of weights, which hold nothing but numbers, are read for their digests while the
        graph is opened; all else, and the size of every file, before.

        Raises InputError for options that the package's backend does not take.
        """
        graph = self.graph(name)
        backends.check_session(self.manifest.backend, options)
        backend = backends.load_to_run(self.manifest.backend)
        weights = [f for f in graph.files if Path(f.path).suffix in WEIGHTS]
        for file in graph.files:
            check_size(self.folder, file)
            if file not in weights:
                check_file(self.folder, file)
        with ThreadPoolExecutor(1) as beside:
            checks = [beside.submit(check_file, self.folder, file) for file in weights]
            try:
                session = backend.open_graph(self.folder / graph.entry, graph.session, options)
            finally:
                for check in checks:  # damage explains a failure to open: it is raised first
                    check.result()
        return session

    def player(self, options: SessionOptions = DEFAULT, keep: bool = False) -> Player:
        """What the loop needs; checks every file but the graphs, which are checked when opened.

        Args:
            keep: graphs are opened while the ones before them run, and stay open for the next call
                of the loop, until the player is closed: faster, in the memory of all of them.

        Raises InputError for a device or a cache that the package's backend does not take.
        """
        backends.check_session(self.manifest.backend, options)
        for file in self.manifest.files:
            check_file(self.folder, file)
        entry = self.manifest
        encoders = {n: entry.tokenizers[n] for n in ENCODERS if n in entry.tokenizers}
        opened = functools.partial(self.session, options=options)
        names = [graph.name for graph in entry.graphs if graph.name not in ON_DEMAND]
        ahead = OpenedAhead(opened, names) if keep else None
        return Player(
            entry.schedule,
            (
                1,
                entry.latent_channels,
                entry.height_px // entry.latent_scale_px,
                entry.width_px // entry.latent_scale_px,
            ),
            {n: text.load_tokenizer(self.folder, t, n) for n, t in encoders.items()},
            ahead or opened,
            preview.read(self.folder / entry.preview) if entry.preview else None,
            {name: [part.name for part in entry.parts(name)] for name in entry.names},
            ahead.close if ahead else nothing,
        )


def open_package(folder: Path) -> Package:
    """Open a package folder; raises InputError when it is none, CheckFailed when it is damaged."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a package that fourstep build wrote")
    if not (folder / "manifest.json").is_file():
        nested = sorted(p.parent.name for p in folder.glob("*/manifest.json"))
        hint = f"; packages in it: {', '.join(nested)}" if nested else ""
        raise InputError(f"{folder}: not a package (no manifest.json){hint}")
    manifest = read_manifest(folder)
    for file in (*manifest.files, *(f for g in manifest.graphs for f in g.files)):
        if not _inside(folder, file.path):
            raise CheckFailed(f"{folder / 'manifest.json'}: '{file.path}' lies outside the package")
    return Package(folder, manifest)


def _inside(folder: Path, path: str) -> bool:
    return (folder / path).resolve().is_relative_to(folder.resolve())
