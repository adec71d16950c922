"""What callers from Python give and the command line cannot, and errors between processes."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from support.nets import Net

import caffe_fold
from caffe_fold.errors import InputError, OutputError, PrototxtError, StrictError
from caffe_fold.writing.outputs import require_place


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    return net.write(tmp_path)


class BytesPath:
    """What os.fspath takes and no report can hold."""

    def __fspath__(self) -> bytes:
        return b"net.prototxt"


@pytest.mark.parametrize("path", [None, 3, b"net.prototxt", BytesPath(), ["net.prototxt"]])
def test_a_path_of_another_type_is_refused(files: tuple[Path, Path], path: Any) -> None:
    with pytest.raises(InputError, match=r"model is .*; expected a path"):
        caffe_fold.fold(path, files[1])
    with pytest.raises(InputError, match="model is "):
        caffe_fold.inspect(path)
    with pytest.raises(InputError, match="folded_weights is "):
        caffe_fold.verify(*files, files[0], path)
    for name in ("output_model", "output_weights", "html") if path is not None else ():
        with pytest.raises(InputError, match=f"^{name} is "):
            caffe_fold.fold(*files, **{name: path})


@pytest.mark.parametrize(
    "path", ["", "a\0b", "\ud800", "sub/\udfff.prototxt"], ids=["empty", "zero", "half", "other"]
)
def test_a_path_that_no_file_has_is_refused(files: tuple[Path, Path], path: str) -> None:
    for arguments in ((path, files[1]), (files[0], path)):
        with pytest.raises(InputError):
            caffe_fold.fold(*arguments)
    for outputs in ((path, None), (None, path)):
        with pytest.raises(OutputError):
            caffe_fold.fold(*files, *outputs)
    with pytest.raises(OutputError):
        caffe_fold.fold(*files, html=path)


@pytest.mark.parametrize("names", ["ab", b"ab", None, 5, [b"ab"], [5]])
def test_names_that_are_no_list_are_refused(files: tuple[Path, Path], names: Any) -> None:
    # A stage "ab" would be the stages "a" and "b", and another net.
    for parameter in ("stages", "keep"):
        with pytest.raises(InputError, match=f"^{parameter} is .*; expected a list of names$"):
            caffe_fold.fold(*files, **{parameter: names})
        with pytest.raises(InputError, match=f"^{parameter} is "):
            caffe_fold.inspect(files[0], **{parameter: names})
    with pytest.raises(InputError, match="skip is "):
        caffe_fold.verify(*files, *files, skip=names)


@pytest.mark.parametrize(
    "shapes",
    [
        "data",
        [("data", (1, 3))],
        *({"data": shape} for shape in ((), None, (1, 2.5), (1, 0), "13")),
        {5: (1, 3)},
    ],
)
def test_shapes_that_are_none_are_refused(files: tuple[Path, Path], shapes: Any) -> None:
    with pytest.raises(InputError, match="expected "):
        caffe_fold.fold(*files, deploy=True, input_shapes=shapes)
    with pytest.raises(InputError, match="expected "):
        caffe_fold.verify(*files, *files, input_shapes=shapes)


def test_the_options_of_verify_are_given_by_name(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=r"verify is True; expected its options by name, as \{\}$"):
        caffe_fold.fold(*files, verify=True)  # type: ignore[arg-type]


def test_numbers_below_zero_are_refused(files: tuple[Path, Path]) -> None:
    for name in ("rounds", "seed"):
        with pytest.raises(InputError, match=f"^{name} is -1; expected 0 or more$"):
            caffe_fold.verify(*files, *files, **{name: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [InputError("a"), PrototxtError("net.prototxt", 3, 7, "b"), StrictError(2)]
)
def test_an_error_goes_from_process_to_process(error: caffe_fold.CaffeFoldError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert (str(other), vars(other)) == (str(error), vars(error))


def test_half_a_character_can_be_shown() -> None:
    assert str(InputError("layer 'a\ud800'")) == "layer 'a\\ud800'"


@pytest.mark.skipif(os.name != "posix", reason="other systems keep no devices in a folder")
def test_a_name_among_the_devices_is_no_output() -> None:
    # /dev/stdout is a link, and what it leads to may be a file.
    for name in ("stdout", "caffe-fold.prototxt"):
        with pytest.raises(OutputError, match="is among the system's devices; give another path"):
            require_place(os.path.join(os.path.dirname(os.devnull), name))
