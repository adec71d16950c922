"""Where the page goes: found fit before any work begins, written beside, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caffe_fold.errors import ExtraMissing, OutputError, Path, show
from caffe_fold.writing.lock import locked
from caffe_fold.writing.outputs import require_apart, require_place, temporary_file

if TYPE_CHECKING:
    from caffe_fold.page.page import Page

__all__ = ["PageTarget", "page_target"]


@dataclass(frozen=True)
class PageTarget:
    """The page's place, and the temporary file that ``commit`` renames to it."""

    path: str
    temporary: str

    def write(self, page: Page) -> None:
        """Write the page, not yet under its name.

        :raises OutputError: for whatever the system says against it.
        """
        from caffe_fold.page.render import rendered

        with _told(self.path):
            data = rendered(page).encode("utf-8")
            with open(self.temporary, "wb") as file:
                file.write(data)

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
    path = os.fspath(html)
    with contextlib.ExitStack() as stack:
        with _told(path):
            _require_other(path, others)
            require_place(path)
            require_apart(path, others)
            for other in others:
                if other is not None:
                    require_apart(os.fspath(other), (path,))
            is_locked = stack.enter_context(locked(path))
            temporary = stack.enter_context(temporary_file(path, is_locked))
        yield PageTarget(path, temporary)


def _require_other(path: str, others: Sequence[Path | None]) -> None:
    if any(other is not None and _is_same(path, other) for other in others):
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


def _is_same(path: str, other: Path) -> bool:
    if os.path.normcase(os.path.realpath(path)) == os.path.normcase(os.path.realpath(other)):
        return True
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{show(path, 1000)} cannot be written: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise OutputError(f"{show(path, 1000)} cannot be written: {error}") from error
