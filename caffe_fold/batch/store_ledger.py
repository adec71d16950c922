"""The ledger in a store of objects, where no line can be appended and nothing can be locked.

It is written whole, every few seconds. Where another run has written it meanwhile, this one
ends, since the two replace each other's entries, and maybe files.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from caffe_fold.batch import storage
from caffe_fold.batch.ledger import LEDGER, Entry, line_of, read
from caffe_fold.errors import InputError, OutputError, show

if TYPE_CHECKING:
    from caffe_fold.batch.tasks import Task

__all__ = ["StoreLedger"]

_SECONDS = 5.0
"""How often it is written."""


class StoreLedger:
    """What ``ledger.Ledger`` is in a folder."""

    def __init__(self, folder: str) -> None:
        self.address = storage.join(folder, LEDGER)
        self._tag: str | None = self._stored_tag()
        self.entries = read(folder)
        self._write()  # where nothing can be written, this is the time to know

    def start(self, task: Task) -> None:
        """Note nothing: objects appear whole, and a kill leaves none beside them."""

    def done(self, entry: Entry) -> None:
        """Note that a fold is done."""
        self.entries[entry["name"]] = entry
        if time.monotonic() > self._tried + _SECONDS:
            with contextlib.suppress(InputError):  # a store that is away may come back
                self._write()

    def close(self) -> None:
        """Write what is not written yet."""
        self._write()

    def _write(self) -> None:
        """Write all entries.

        :raises InputError: if the store refuses.
        :raises OutputError: if another run wrote its own since this one last read or wrote them.
        """
        self._tried = time.monotonic()
        if self._tag is not None and self._stored_tag() != self._tag:
            raise OutputError(
                f"{show(self.address, 1000)} was written by another run meanwhile; let one batch "
                "at a time write to a folder"
            )
        self._tag = None  # not known where it is written, and the answer is lost
        storage.replace_text(self.address, "".join(map(line_of, self.entries.values())))
        self._tag = self._stored_tag()

    def _stored_tag(self) -> str:
        """What changes when anyone writes it; "" where it is not there."""
        return storage.stamp(self.address).tag if storage.exists(self.address) else ""
