"""The errors that a user can mend, and the one place that words them.

FourstepError              shown as one line; the exit code says whose turn it is
|-- InputError        (2)  the user's input: a path, a flag, a recipe, a checkpoint, a full disk
|-- CheckFailed       (1)  a check did not pass: damaged package, parity out of tolerance
`-- PicturesRejected  (3)  all is well, and a package's filter held pictures back
"""

from __future__ import annotations

import errno
import re

MOST_CHARACTERS = 2000  # of a message: a file may hold a name of any length
# What a terminal acts on (control characters, changes of direction) or cannot write (surrogates).
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


# What libraries say where they get no memory, each in words of its own, and the system's loader
# where there is none to load a library into.
NO_MEMORY = (
    *("allocate memory", "bad_alloc", "bad allocation", "failed to allocate"),
    *("failed to map segment from shared object", "cannot map zero-fill pages"),
    *("cannot create shared object descriptor", "can't start new thread"),
)
NOT_ALLOWED = "not permitted"  # as the loader goes on in a folder that nothing may be run from


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever type, says that there was no memory."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = str(error).lower()
    if isinstance(error, FourstepError) or NOT_ALLOWED in said:
        return False
    return any(words in said for words in NO_MEMORY)


def tell_memory(error: Exception) -> None:
    """Raise MemoryError for what a library says so; whatever else is the caller's to word."""
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from None


def printable(text: str) -> str:
    """Text from a file or a flag as it may be shown: on one line, its control characters escaped.

    A terminal acts on such characters: a name in a package could clear the screen or set its title.
    """
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], decoded(text))


def decoded(text: str) -> str:
    """Text whose bytes of UTF-8 are text where Python took them for none, as in an ASCII locale."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text


class Remark(UserWarning):
    """What a user should know and what stops nothing; the command line shows it in a line."""


class FourstepError(Exception):
    """A failure whose message is complete: what is wrong, where, and what to do next.

    The message is made printable, and shortened where a file made it long.

    Args:
        field: which argument or option of the library it is about; the command line puts its own
            flag there.
        given: what the field was given, where that helps.
    """

    exit_code = 1

    def __init__(self, message: str, *, field: str = "", given: object = "") -> None:
        self.field, self.given, self.problem = field, str(given), message
        super().__init__(self.worded(field))

    def worded(self, name: str) -> str:
        """The message with another name for the field."""
        place = " ".join(part for part in (name, self.given) if part)
        whole = f"{place}: {self.problem}" if place else self.problem
        line = printable(" ".join(whole.splitlines()))
        return f"{line[:MOST_CHARACTERS]}..." if len(line) > MOST_CHARACTERS else line


class InputError(FourstepError):
    """The input is at fault; nothing was written."""

    exit_code = 2


class CheckFailed(FourstepError):
    """Something that was checked is not as it should be."""

    exit_code = 1


class PicturesRejected(FourstepError):
    """A package's filter rejected pictures; the others are written."""

    exit_code = 3


def known(kind: str, name: object, names: object) -> str:
    """Word an unknown name: ``unknown scheme 'int5'; known: fp16, fp32, int4, int8``."""
    listed = ", ".join(str(n) for n in sorted(names, key=str))  # type: ignore[call-overload]
    return f"unknown {kind} {str(name)!r}; known: {listed}"


def needs_extra(extra: str, missing: str) -> InputError:
    """Say which extra of fourstep brings a missing library."""
    return not_installed(missing, f"fourstep[{extra}]")


def not_installed(missing: str, requirement: str) -> InputError:
    """Say which ``pip install`` brings a missing library."""
    return InputError(f"{missing} is not installed: pip install '{requirement}'")
