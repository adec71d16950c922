"""Where the page goes: found fit before any work begins, written beside, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from caffe_fold.errors import ExtraMissing, OutputError, Path, show
from caffe_fold.writing.outputs import require_place, temporary_file

if TYPE_CHECKING:
    from caffe_fold.page.page import Page

__all__ = ["PageTarget", "page_target"]


@dataclass(frozen=True)
class PageTarget:
    """The page's place, and the temporary file that ``commit`` renames to it."""

    path: FilePath
    temporary: FilePath

    def write(self, page: Page) -> None:
        """Write the page, not yet under its name.

        :raises OutputError: for whatever the system says against it.
        """
        from caffe_fold.page.render import rendered

        with _told(self.path):
            self.temporary.write_bytes(rendered(page).encode("utf-8"))

    def commit(self) -> None:
        """Give the page its name."""
        with _told(self.path):
            os.replace(self.temporary, self.path)


@contextlib.contextmanager
def page_target(html: Path, others: Sequence[Path | None]) -> Iterator[PageTarget]:
    """A page's place; ``others`` are the files of the same run, which it must not replace.

    :raises OutputError: if it cannot be written there.
    :raises ExtraMissing: if jinja2 is not installed.
    """
    _require_jinja()
    path = FilePath(html)
    with _told(path):
        if any(other is not None and _is_same(path, other) for other in others):
            raise OutputError(
                f"{show(str(path), 1000)} is another file of this run; give another path for the "
                "page"
            )
        require_place(path)
        temporary = temporary_file(path)
    try:
        yield PageTarget(path, temporary)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _require_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ExtraMissing(
            "a page needs jinja2, which is not installed: run pip install 'caffe-fold[report]'"
        ) from None


def _is_same(path: FilePath, other: Path) -> bool:
    if os.path.normcase(os.path.realpath(path)) == os.path.normcase(os.path.realpath(other)):
        return True
    return path.exists() and os.path.exists(other) and os.path.samefile(path, other)


@contextlib.contextmanager
def _told(path: FilePath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{show(str(path), 1000)} cannot be written: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise OutputError(f"{show(str(path), 1000)} cannot be written: {error}") from error
