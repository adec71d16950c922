"""The exceptions of this package, each with the exit code of the command line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import ClassVar, Union

Path = Union[str, "os.PathLike[str]"]


# Room for two paths of the longest kind and a sentence.
_LONGEST = 10_000


class CaffeFoldError(Exception):
    """Base of all errors that this package raises on purpose.

    ``str(error)`` is one line for the user: the file, the place, what was
    found, what was expected and what to do.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        # What a file holds may get into any message, and a file may hold anything.
        super().__init__(show(message[: _LONGEST + 1], _LONGEST))

    def __reduce__(self) -> tuple[object, ...]:
        # As they are: an __init__ takes other arguments, and errors go from process to process.
        return _remade, (type(self), self.args, self.__dict__)


def _remade(
    kind: type[CaffeFoldError], arguments: tuple[object, ...], attributes: dict[str, object]
) -> CaffeFoldError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


class InputError(CaffeFoldError):
    """An input file or argument is not what it has to be."""


class PrototxtError(InputError):
    """A prototxt is not in protobuf's text format, or not a net's."""

    def __init__(self, path: Path, line: int, column: int, message: str) -> None:
        super().__init__(f"{show(os.fspath(path))}:{line}:{column}: {message}")
        self.line = line
        self.column = column


class CaffemodelError(InputError):
    """A caffemodel is not a serialized NetParameter, or is damaged."""


class OutputError(CaffeFoldError):
    """The outputs cannot be written where they were asked for."""


class CheckError(CaffeFoldError):
    """What was written is not what was planned; nothing was left behind."""

    exit_code: ClassVar[int] = 1


class StrictError(CaffeFoldError):
    """``--strict``: so many BatchNorm layers are left; both files are written, but for a dry
    run."""

    exit_code: ClassVar[int] = 3

    def __init__(self, left: int) -> None:
        layers = "1 BatchNorm layer is" if left == 1 else f"{left} BatchNorm layers are"
        super().__init__(f"--strict: {layers} left")


class ReportError(CaffeFoldError):
    """Both files are written, but what there is to say of it could not be printed."""

    exit_code: ClassVar[int] = 4


class Interrupted(CaffeFoldError):
    """A run was interrupted; its text says what is done."""

    exit_code: ClassVar[int] = 130


class VerifyError(CaffeFoldError):
    """The folded net does not compute what the original does; nothing was written."""

    exit_code: ClassVar[int] = 1


class EngineMissing(CaffeFoldError):
    """No engine is there that could run the nets; the message says what to install."""


class ExtraMissing(CaffeFoldError):
    """A library of one of the extras is not there; the message says what to install."""


def show(name: str, limit: int = 200) -> str:
    """A name from a file, safe in a one-line message: printable and not too long.

    Names in Caffe files are bytes in any encoding; they are kept as text with
    surrogates for what is not UTF-8, which no terminal and no JSON may get.
    """
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character of UTF-16, as JSON and Python's text may have
        data = name.encode("utf-8", "backslashreplace")
    text = data.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


class reading:
    """Tell what the system says against a file that is read.

    A class, since it stands around each of many small reads, and costs a third of what a
    generator does.

    :raises InputError: for whatever it says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            shown = show(os.fspath(self.path), 1000)
            raise InputError(f"{shown} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Tell what the system says against a file that is written.

    :raises OutputError: for whatever it says.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{show(path, 1000)} cannot be written: {error.strerror}") from error
