"""Where the page goes: found fit before any work begins, written beside, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caffe_fold.errors import ExtraMissing, OutputError, Path, show, writing
from caffe_fold.interrupts import record_done, uninterrupted
from caffe_fold.writing.beside import Place, taken
from caffe_fold.writing.outputs import is_same, require_apart, require_place

if TYPE_CHECKING:
    from caffe_fold.page.page import Page

__all__ = ["PageTarget", "page_target"]


@dataclass(frozen=True)
class PageTarget:
    """The page's place, and the temporary file that ``commit`` renames to it."""

    place: Place

    def write(self, page: Page) -> None:
        """Write the page, not yet under its name.

        :raises OutputError: for whatever the system says against it.
        """
        from caffe_fold.page.render import rendered

        with writing(self.place.path):
            data = rendered(page).encode("utf-8")
            with open(self.place.temporary, "wb") as file:
                file.write(data)

    def commit(self) -> None:
        """Give the page its name."""
        with uninterrupted(), writing(self.place.path):
            os.replace(self.place.temporary, self.place.path)
            record_done(f"{show(self.place.path, 1000)} is written")


@contextlib.contextmanager
def page_target(html: Path, others: Sequence[Path | None]) -> Iterator[PageTarget]:
    """A page's place; ``others`` are the files of the same run, which it must not replace.

    :raises OutputError: if it cannot be written there.
    :raises ExtraMissing: if jinja2 is not installed.
    """
    _require_jinja()
    path = os.fspath(html)
    require_place(path)
    _require_other(path, others)
    require_apart(path, others)
    for other in others:
        if other is not None:
            require_apart(os.fspath(other), (path,))
    with taken(path) as place:
        yield PageTarget(place)


def _require_other(path: str, others: Sequence[Path | None]) -> None:
    if any(other is not None and is_same(path, other) for other in others):
        raise OutputError(
            f"{show(path, 1000)} is another file of this run; give another path for the page"
        )


def _require_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ExtraMissing(
            "a page needs jinja2, which is not installed: run pip install 'caffe-fold[report]'"
        ) from None
