"""A package on disk: opened, checked, played."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from exporter import backends
from exporter.backends.contract import Backend, ForNpu, SessionOptions
from exporter.drawing import text
from exporter.drawing.kept import KeptPrompts
from exporter.drawing.loop import Player, Session, nothing
from exporter.errors import CheckFailed, InputError, known
from exporter.package.check import (
    Identity,
    changed,
    check_file,
    check_size,
    identity_of,
    read_file,
)
from exporter.package.layout import is_layout, refuse_layout
from exporter.package.manifest import FileEntry, GraphEntry, Manifest, NpuEntry, Stage
from exporter.package.paths import confined
from exporter.package.read import MANIFEST, package_digest, read_manifest
from exporter.package.remembered import Remembered, remembered
from exporter.package.sizes import (
    PictureSize,
    Sized,
    compiled_graph,
    context_files,
    known_size,
    manifest_at,
    size_of,
    sized_files,
    sizes_of,
)
from exporter.runtime.ahead import OpenedAhead
from exporter.runtime.refuse import is_weights, refuse_foreign
from exporter.runtime.watch import Watched
from exporter.trust.check import Trust, check_trust

DEFAULT = SessionOptions()
Checks = Literal["once", "always"]
MOST_TOKENIZER_BYTES = 24 << 20  # those of T5 have 2.4 MB


@dataclass(frozen=True)
class Package:
    """A folder that ``fourstep build`` wrote.

    Attributes:
        inode: of the folder whose manifest was read: another one may take its place.
        known: what was checked of it before, or None: every file is read for its digest.
    """

    folder: Path
    manifest: Manifest
    inode: tuple[int, int]
    known: Remembered | None = None

    @property
    def sha256(self) -> str:
        """Of its manifest, which holds the digest of every other file."""
        with unreplaced(self.folder, self.inode):
            return package_digest(self.folder)

    def graph(self, name: str) -> GraphEntry:
        """A graph of the package; raises InputError when it has none of that name."""
        graph = self.manifest.graph(name)
        if graph is None:
            raise InputError(f"{self.folder}: the package has no graph '{name}'")
        return graph

    @property
    def sizes(self) -> tuple[PictureSize, ...]:
        """Of pictures; the first is drawn unless another is asked for."""
        return sizes_of(self.manifest)

    def at(self, size: Sized) -> Package:
        """The package as if it were of this size alone; raises InputError that lists its sizes."""
        found = known_size(size, self.sizes)
        return replace(self, manifest=manifest_at(self.manifest, found))

    def session(self, name: str, options: SessionOptions = DEFAULT) -> Session:
        """Open a graph and check its files' digests; raises CheckFailed.

        Files of weights, which hold nothing but numbers, are read for their digests while the
        graph is opened; all else, and the size of every file, before. What is known to have had
        its digest, and to be as it was then, is not read.

        Raises InputError for options that the package's backend does not take.
        """
        graph = self.graph(name)
        backends.check_session(self.manifest.backend, options)
        refuse_device(self.manifest, options)
        backend = backends.load_to_run(self.manifest.backend)
        if options.device in backends.npu_devices(backend):
            graph, options = self._on_npu(graph, options, backend)
        elif graph.npu is not None and graph.npu.alone:
            raise InputError(_only_compiled(self.folder, graph.npu), field="device")
        weights = [f for f in graph.files if is_weights(f)]
        with unreplaced(self.folder, self.inode), ThreadPoolExecutor(1) as beside:
            entry = confined(self.folder, graph.entry)
            read = [(f, self._known_or_checked(f)) for f in graph.files if not is_weights(f)]
            for file in weights:
                check_size(self.folder, file)
            checks = [beside.submit(self._known_or_checked, file) for file in weights]
            try:
                session = backend.open_graph(entry, graph.session, options)
            finally:
                for file, check in zip(weights, checks, strict=True):
                    read.append((file, check.result()))  # damage explains it: raised first
        self._remember()
        return Watched(session, [(self.folder / f.path, identity) for f, identity in read])

    def _on_npu(
        self, graph: GraphEntry, options: SessionOptions, backend: Backend
    ) -> tuple[GraphEntry, SessionOptions]:
        """What is opened on an NPU, and where: what is not for it stays on the processor."""
        assert isinstance(backend, ForNpu) and options.device is not None
        if graph.npu is None:
            return graph, replace(options, device=None)
        context = backend.fitting(graph.npu, options.device)
        return compiled_graph(self.manifest, graph, context) if context else graph, options

    def read(self, path: str) -> bytes:
        """What is in a file beside the graphs, as its digest says; raises CheckFailed."""
        entry = next(f for f in self.manifest.files if f.path == path)
        with unreplaced(self.folder, self.inode):
            return read_file(self.folder, entry)

    def _tokenizer(self, path: str) -> bytes:
        size = next(f.bytes for f in self.manifest.files if f.path == path)
        if size > MOST_TOKENIZER_BYTES:
            raise CheckFailed(
                f"{self.folder / path}: not a tokenizer: more than {MOST_TOKENIZER_BYTES >> 20} MiB"
            )
        return self.read(path)

    def check(self, entry: FileEntry) -> Identity:
        """Compare a file with its size and digest, whatever is known; raises CheckFailed."""
        with unreplaced(self.folder, self.inode):
            return check_file(self.folder, entry)

    def forgetful(self) -> Package:
        """The package as if nothing were known of it."""
        return replace(self, known=None)

    def _known_or_checked(self, entry: FileEntry) -> Identity:
        with unreplaced(self.folder, self.inode):
            return check_file(self.folder, entry, self.known)

    def _remember(self) -> None:
        if self.known is not None:
            self.known.save()

    def player(
        self, options: SessionOptions = DEFAULT, keep: bool = False, size: Sized | None = None
    ) -> Player:
        """What the loop needs; checks every file but the graphs, which are checked when opened.

        Args:
            keep: graphs are opened while the ones before them run, and stay open for the next call
                of the loop, until the player is closed: faster, in the memory of all of them. What
                was made of the last prompts is kept too: drawn again, they are not encoded anew.
            size: of the pictures of requests that name none; None: the package's first.

        Raises InputError for a device or a cache that the package's backend does not take, and for
        a size that is not the package's.
        """
        backends.check_session(self.manifest.backend, options)
        refuse_device(self.manifest, options)
        first = self.sizes[0] if size is None else known_size(size, self.sizes)
        tokenizers = self._tokenizers()
        views = {found: self.at(found) for found in (first, *self.sizes)}
        asked = (s for s in self.manifest.stages if not _at_need(s))
        names = [part for stage in asked for part in stage.parts]
        opened = functools.partial(_opened, self, views, options)
        turns = [_key(self.manifest, first, name) for name in names]
        ahead = OpenedAhead(opened, turns) if keep else None
        close = ahead.close if ahead else nothing
        kept = KeptPrompts() if keep else None
        made = functools.partial(
            _player_of, self.manifest, tokenizers, ahead or opened, close, kept
        )
        players = {found: made(view.manifest, found) for found, view in views.items()}
        return replace(players[first], sizes=players)

    def _tokenizers(self) -> dict[str, text.Encode]:
        """Those of the text encoders; checks every file but the graphs of any size."""
        entry = self.manifest
        own = {t.path: self._tokenizer(t.path) for t in entry.text.tokenizers.values()}
        left = sized_files(entry) | context_files(entry) | {*own}
        for file in entry.files:
            if file.path not in left:
                self._known_or_checked(file)
        self._remember()
        return {
            name: text.load_tokenizer(self.folder / t.path, own[t.path], t, name)
            for name, t in entry.text.tokenizers.items()
        }


def _only_compiled(folder: Path, npu: NpuEntry) -> str:
    """Why the processor cannot run a graph."""
    chips = ", ".join(context.soc for context in npu.contexts)
    return (
        f"{folder.name} has contexts in place of its graphs and draws on an NPU alone ({chips}): "
        'say --device HTP, or build it with contexts = "beside" in [onnx]'
    )


def refuse_device(manifest: Manifest, options: SessionOptions) -> None:
    """Raise InputError for an NPU that takes none of a package's graphs."""
    device = options.device
    able = any(graph.npu for graph in manifest.graphs)
    if not able and device in backends.npu_devices(backends.load(manifest.backend)):
        raise InputError(
            f"{manifest.backend}-{manifest.scheme} has no graph for {device}; build it with target "
            f'= "qnn" in [{manifest.backend}] and scheme w8a16 or w4a16',
            field="device",
        )


def _at_need(stage: Stage) -> bool:
    """Whether a graph is opened for some requests alone."""
    return stage.image_to_image_only or stage.runs == "for previews"


Key = tuple[PictureSize | None, str]  # a graph, or one that stands in for it at a size


def _key(manifest: Manifest, size: PictureSize, name: str) -> Key:
    """What a graph is opened by: one that serves all sizes is one of them for all."""
    entry = next((entry for entry in manifest.sizes if size_of(entry) == size), None)
    own = entry is not None and any(graph.name == name for graph in entry.graphs)
    return (size if own else None, name)


def _opened(
    package: Package, views: Mapping[PictureSize, Package], options: SessionOptions, key: Key
) -> Session:
    size, name = key
    return (package if size is None else views[size]).session(name, options)


def _player_of(
    whole: Manifest,
    tokenizers: Mapping[str, text.Encode],
    opened: Callable[[Key], Session],
    close: Callable[[], None],
    kept: KeptPrompts | None,
    view: Manifest,
    size: PictureSize,
) -> Player:
    """The player of one size; those of all sizes share the prompts that are kept."""
    return Player(
        view.schedule,
        view.picture,
        tokenizers,
        view.stages,
        lambda name: opened(_key(whole, size, name)),
        close,
        view.filter,
        kept=kept,
    )


def open_package(
    folder: Path, trust: Trust | Path | str | None = None, checks: Checks = "once"
) -> Package:
    """Open a package folder; raises InputError when it is none, CheckFailed when it is damaged.

    Args:
        trust: whose signature it has to have: a PEM file of public keys or certificates, or a
            ``Trust`` with an identity. Until it is known to hold for every file, nothing but the
            signature is parsed.
        checks: ``once``: a file that had its digest, and is as it was then by what the kernel says,
            is not read for it again. ``always``: it is; so it is with ``trust``.
    """
    if checks not in get_args(Checks):
        raise InputError(known("choice", checks, get_args(Checks)), field="checks")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a package that fourstep build wrote")
    if not (folder / MANIFEST).is_file() or is_layout(folder):
        refuse_layout(folder)
        nested = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}"))
        hint = f"; packages in it: {', '.join(nested)}" if nested else ""
        raise InputError(f"{folder}: not a package (no {MANIFEST}){hint}")
    inode = _inode(folder)
    with unreplaced(folder, inode):
        if trust is None:
            manifest, before = _read_remembered(folder, checks)
        else:
            signed = check_trust(folder, trust if isinstance(trust, Trust) else Trust(Path(trust)))
            manifest, before = _read_signed(folder, signed.digests), None
        for file in manifest.all_files:
            confined(folder, file.path)
        refuse_foreign(folder, manifest)
    return Package(folder, manifest, inode, before)


def _read_remembered(folder: Path, checks: Checks) -> tuple[Manifest, Remembered | None]:
    """The manifest, and what is known of the package that has it."""
    if checks == "always":
        return read_manifest(folder), None
    sha256 = package_digest(folder)
    return read_manifest(folder, sha256), remembered(folder, sha256)


def _read_signed(folder: Path, digests: Mapping[str, str]) -> Manifest:
    """The manifest that was signed; raises CheckFailed for one that lists what was not."""
    manifest = read_manifest(folder, digests[MANIFEST])
    for file in manifest.all_files:
        if digests.get(file.path) != file.sha256:
            raise CheckFailed(f"{folder / MANIFEST}: lists another {file.path} than was signed")
    return manifest


@contextmanager
def unreplaced(folder: Path, inode: tuple[int, int]) -> Iterator[None]:
    """Raise CheckFailed if, after what is done inside, another folder is in a package's place.

    That explains whatever failed inside. A folder that is gone is between two renames.
    """
    try:
        yield
    except CheckFailed:
        _refuse_replaced(folder, inode)
        raise
    _refuse_replaced(folder, inode)


def _refuse_replaced(folder: Path, inode: tuple[int, int]) -> None:
    try:
        found = _inode(folder)
    except CheckFailed:
        raise changed(folder) from None
    if found != inode:
        raise changed(folder)


def _inode(folder: Path) -> tuple[int, int]:
    identity = identity_of(folder)
    return identity.device, identity.inode
