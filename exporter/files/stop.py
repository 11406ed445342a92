"""A wish to stop, by Ctrl-C or SIGTERM, that no library swallows.

A signal's exception is raised wherever Python happens to be. safetensors, which looks at Python
objects while it reads a tensor, takes it for an error of its own and raises another one, and what
was begun would be thrown away as damaged. So the wish is remembered, and told in place of whatever
came of it.
"""

from __future__ import annotations

from typing import NoReturn

_wishes: list[BaseException] = []


def stop(wish: BaseException) -> NoReturn:
    """Raise what a signal means, and remember it."""
    _wishes.append(wish)
    raise wish


def tell_wish() -> None:
    """Raise what a signal meant, if one came."""
    if _wishes:
        raise _wishes[0]


def forget() -> None:
    """Begin anew, as a command line does."""
    _wishes.clear()
