"""The errors that a user can mend, and the one place that words them.

FourstepError          shown as one line; the exit code says whose turn it is
|-- InputError    (2)  the user's input: a path, a flag, a recipe, a checkpoint, a full disk
`-- CheckFailed   (1)  a check did not pass: damaged package, parity out of tolerance
"""

from __future__ import annotations


class FourstepError(Exception):
    """A failure whose message is complete: what is wrong, where, and what to do next."""

    exit_code = 1


class InputError(FourstepError):
    """The input is at fault; nothing was written."""

    exit_code = 2


class CheckFailed(FourstepError):
    """Something that was checked is not as it should be."""

    exit_code = 1


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
