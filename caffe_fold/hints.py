"""Names that a user may have meant."""

from __future__ import annotations

from collections.abc import Iterable

from caffe_fold.errors import show

__all__ = ["closest"]


def closest(name: str, names: Iterable[str], words: str = "; the closest is") -> str:
    """The closest of some names as the end of a sentence, or nothing. It takes a while
    for each name, so it is for a few only."""
    import difflib  # not needed where all is well

    found = difflib.get_close_matches(name, names, 1)
    return f"{words} '{show(found[0])}'" if found else ""
