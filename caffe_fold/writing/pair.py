"""Two files as one: written beside their final places, then renamed, the prototxt last.

After a kill there is the old pair, the new pair, or weights without a prototxt; never a prototxt
beside weights that are not its own. Two runs onto one output would break that, so each holds the
locks of its outputs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from caffe_fold.errors import OutputError, show, writing
from caffe_fold.interrupts import record_done, uninterrupted
from caffe_fold.named import NamedTuple
from caffe_fold.writing.beside import Place, taken
from caffe_fold.writing.outputs import Outputs, written

__all__ = ["TemporaryPair", "temporary_pair"]


class TemporaryPair(NamedTuple):
    """The two files while they are written and checked; ``commit`` renames them."""

    outputs: Outputs
    places: tuple[Place, Place]

    @property
    def model(self) -> str:
        """The new prototxt's path until then."""
        return self.places[0].temporary

    @property
    def weights(self) -> str:
        """The new weights' path until then."""
        return self.places[1].temporary

    @property
    def scratch(self) -> str:
        """A folder on the file system of the weights, for files that are of use meanwhile."""
        folder = self.places[1].scratch
        with writing(self.outputs.weights):
            os.makedirs(folder, 0o700, exist_ok=True)
        return folder

    def commit(self, page: Place | None = None) -> None:
        """Put both in place, and with them a page.

        :raises OutputError: if the system does not let one; what was there before is there
            again.
        """
        with writing(self.outputs.weights):
            _keep(self.places[1])
        with uninterrupted():
            try:
                self._put_in_place(page)
            except BaseException as error:
                self._restore(error)
                raise
            else:
                record_done(written(*self.outputs))
            finally:
                self._drop_old()

    def _put_in_place(self, page: Place | None) -> None:
        """First the old prototxt goes, and last the new one comes: a kill in between leaves
        weights alone. The old weights stay in place until the new ones take it."""
        model, weights = self.places
        with writing(model.path), contextlib.suppress(FileNotFoundError):
            os.replace(model.path, model.aside)
        for place in (weights, model, *([page] if page else [])):
            with writing(place.path):
                os.replace(place.temporary, place.path)

    def _restore(self, error: BaseException) -> None:
        """Back to what was there, the other way round; a temporary file that is there was not
        renamed.

        :raises OutputError: if that cannot be done, either; it names what is kept of it.
        """
        model, weights = self.places
        try:
            if not os.path.lexists(model.temporary):
                os.unlink(model.path)
            if not os.path.lexists(weights.temporary):
                if os.path.lexists(weights.aside):
                    os.replace(weights.aside, weights.path)
                else:
                    os.unlink(weights.path)
            with contextlib.suppress(FileNotFoundError):
                os.replace(model.aside, model.path)
        except OSError:
            kept = [show(p.aside, 1000) for p in self.places if _is_gone(p.path, p.aside)]
            if kept:
                told = f"{error}; what was there is kept as {' and '.join(kept)}"
                raise OutputError(told) from error

    def _drop_old(self) -> None:
        """Remove what was there before, once it stands under its name or is replaced."""
        for place in self.places:
            if not _is_gone(place.path, place.aside):
                with contextlib.suppress(OSError):
                    os.unlink(place.aside)


def _is_gone(path: str, aside: str) -> bool:
    """Whether what was there before is kept and stands nowhere else."""
    return os.path.lexists(aside) and not os.path.lexists(path)


def _keep(weights: Place) -> None:
    """Have the old weights, if there are any, under a second name, too."""
    try:
        os.link(weights.path, weights.aside, follow_symlinks=False)
    except (FileNotFoundError, FileExistsError):
        if os.path.lexists(weights.aside):  # another's, which could not be removed
            raise
    except (OSError, NotImplementedError):
        # No hard links here, or none to a file of another user (fs.protected_hardlinks).
        import shutil

        shutil.copy2(weights.path, weights.aside, follow_symlinks=False)


@contextlib.contextmanager
def temporary_pair(outputs: Outputs) -> Iterator[TemporaryPair]:
    """Two new empty files beside the outputs, gone at the end if they are still there.

    :raises OutputError: for whatever the system says against it.
    """
    pair = None
    try:
        with contextlib.ExitStack() as stack:
            # In one order for all runs, or two of them could refuse each other.
            places = {path: stack.enter_context(taken(path)) for path in sorted(outputs)}
            pair = TemporaryPair(outputs, (places[outputs.model], places[outputs.weights]))
            yield pair
    except OSError as error:
        where, other = outputs.weights, error.filename
        for place in pair.places if pair else ():
            if error.filename in (place.path, place.temporary, place.aside, place.scratch):
                where, other = place.path, None
        reason = (
            f"{show(other, 1000)}: {error.strerror}" if isinstance(other, str) else error.strerror
        )
        raise OutputError(f"{show(where, 1000)} cannot be written: {reason}") from error
