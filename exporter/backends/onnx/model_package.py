"""Opens a model package with onnxruntime's own reader, by its C interface.

onnxruntime has a reader since 1.28, and in its stable interface since 1.31; its Python module has
none. The tables of functions only ever grow at their ends, so a place in them keeps its meaning.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import CheckFailed

API_VERSION = 31  # the first that has ``GetModelPackageApi``
# Places in OrtApi.
ERROR_MESSAGE, CREATE_ENV, CREATE_SESSION_OPTIONS, INPUT_COUNT = 2, 3, 10, 30
DISABLE_TELEMETRY, RELEASE_ENV, RELEASE_STATUS, RELEASE_SESSION = 6, 92, 93, 95
RELEASE_SESSION_OPTIONS, CHOOSE_BY_POLICY, MODEL_PACKAGE_API = 100, 305, 427
# Places in OrtModelPackageApi.
CREATE_OPTIONS, RELEASE_OPTIONS, CREATE_CONTEXT, RELEASE_CONTEXT = 0, 1, 2, 3
COMPONENT_NAMES, VARIANT_NAMES, VARIANT_PROVIDER, RESOLVE = 6, 8, 9, 10
SELECT, RELEASE_COMPONENT, SELECTED_NAME, CREATE_SESSION = 11, 12, 13, 15
ERRORS_ALONE = 3  # of what onnxruntime says
PREFER_CPU = 1  # a policy: of several providers the CPU's
LIBRARIES = ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll")
Table = ctypes.POINTER(ctypes.c_void_p)
Handle = ctypes.c_void_p


@dataclass(frozen=True)
class Component:
    """A component as onnxruntime reads it.

    Attributes:
        providers: of each variant, the execution provider that it is for.
        chosen: the variant that onnxruntime takes on the CPU; it opened its graph.
        inputs: how many that graph has.
    """

    providers: Mapping[str, str]
    chosen: str
    inputs: int


def read_model_package(folder: Path) -> dict[str, Component] | None:
    """A model package by component, each opened on the CPU; None without a reader.

    Raises CheckFailed with onnxruntime's own words.
    """
    api = _api()
    if api is None:
        return None
    table = ctypes.CFUNCTYPE(Table)(api.table[MODEL_PACKAGE_API])()
    package = _Functions(table, api.table, folder)
    with ExitStack() as stack:
        core = api.at(folder)
        env = stack.enter_context(core.made(CREATE_ENV, RELEASE_ENV, ERRORS_ALONE, b"fourstep"))
        core.call(DISABLE_TELEMETRY, env)
        wishes = stack.enter_context(core.made(CREATE_SESSION_OPTIONS, RELEASE_SESSION_OPTIONS))
        core.call(CHOOSE_BY_POLICY, wishes, PREFER_CPU)
        options = stack.enter_context(package.made(CREATE_OPTIONS, RELEASE_OPTIONS, env, wishes))
        place: object = os.fspath(folder) if os.name == "nt" else os.fsencode(folder)
        context = stack.enter_context(package.made(CREATE_CONTEXT, RELEASE_CONTEXT, place))
        return {
            name: _component(package, core, env, context, options, name)
            for name in package.names(COMPONENT_NAMES, context)
        }


def _component(
    package: _Functions, api: _Functions, env: Handle, context: Handle, options: Handle, name: str
) -> Component:
    """Every variant's provider, and the session of the one that onnxruntime chooses."""
    encoded, providers = name.encode(), {}
    for variant in package.names(VARIANT_NAMES, context, encoded):
        provider = ctypes.c_char_p()
        package.call(VARIANT_PROVIDER, context, encoded, variant.encode(), ctypes.byref(provider))
        providers[variant] = (provider.value or b"").decode()
    with ExitStack() as stack:
        chosen = stack.enter_context(
            package.made(SELECT, RELEASE_COMPONENT, context, encoded, options)
        )
        selected = ctypes.c_char_p()
        package.call(SELECTED_NAME, chosen, ctypes.byref(selected))
        session = Handle()
        package.call(CREATE_SESSION, env, chosen, Handle(), ctypes.byref(session))
        stack.callback(api.release, RELEASE_SESSION, session)
        count = ctypes.c_size_t()
        api.call(INPUT_COUNT, session, ctypes.byref(count))
        return Component(providers, (selected.value or b"").decode(), count.value)


@dataclass(frozen=True, eq=False)
class _Functions:
    """A table of onnxruntime's functions.

    Attributes:
        core: the one that words errors.
        folder: that is read, to be named in errors.
    """

    table: ctypes._Pointer[ctypes.c_void_p]
    core: ctypes._Pointer[ctypes.c_void_p]
    folder: Path

    def at(self, folder: Path) -> _Functions:
        return _Functions(self.table, self.core, folder)

    def call(self, place: int, *given: object) -> None:
        """Call a function that returns a status; raises CheckFailed for what it says."""
        types = [_type_of(one) for one in given]
        status = ctypes.CFUNCTYPE(Handle, *types)(self.table[place])(*given)
        if status:
            message = ctypes.CFUNCTYPE(ctypes.c_char_p, Handle)(self.core[ERROR_MESSAGE])(status)
            reason = " ".join(message.decode(errors="replace").split())
            ctypes.CFUNCTYPE(None, Handle)(self.core[RELEASE_STATUS])(status)
            raise CheckFailed(f"{self.folder}: onnxruntime's reader: {reason}")

    def release(self, place: int, handle: Handle) -> None:
        ctypes.CFUNCTYPE(None, Handle)(self.table[place])(handle)

    @contextmanager
    def made(self, create: int, release: int, *given: object) -> Iterator[Handle]:
        """An object of onnxruntime's for as long as a block takes."""
        handle = Handle()
        self.call(create, *given, ctypes.byref(handle))
        try:
            yield handle
        finally:
            self.release(release, handle)

    def names(self, place: int, *given: object) -> list[str]:
        """A list of names that a function gives."""
        found, count = ctypes.POINTER(ctypes.c_char_p)(), ctypes.c_size_t()
        self.call(place, *given, ctypes.byref(found), ctypes.byref(count))
        return [(found[i] or b"").decode() for i in range(count.value)]


def _type_of(value: object) -> type:
    if isinstance(value, int):
        return ctypes.c_int
    if isinstance(value, bytes):
        return ctypes.c_char_p
    return ctypes.c_wchar_p if isinstance(value, str) else Handle


@functools.cache
def _library() -> ctypes.CDLL:
    """The library that onnxruntime's wheel has for C; raises StopIteration without one."""
    import onnxruntime

    place = Path(onnxruntime.__file__).parent / "capi"
    file = next(file for pattern in LIBRARIES for file in sorted(place.glob(pattern)))
    library = ctypes.CDLL(os.fspath(file))
    library.OrtGetApiBase.restype = Table
    return library


def _api() -> _Functions | None:
    """onnxruntime's functions, if its wheel has a library of an interface that is new enough."""
    try:
        base = _library().OrtGetApiBase()
    except (StopIteration, OSError, ImportError):
        return None
    version = ctypes.CFUNCTYPE(ctypes.c_char_p)(base[1])().decode()
    if int(version.split(".")[1]) < API_VERSION:  # 1.31 has interface 31; asking would print
        return None
    table = ctypes.CFUNCTYPE(Table, ctypes.c_uint32)(base[0])(API_VERSION)
    return _Functions(table, table, Path())
