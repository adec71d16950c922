"""The parts of the verification that need no engine."""

from __future__ import annotations

import ast
import io
import json
import math
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.nets import Net

import caffe_fold
from caffe_fold.choices import Choices
from caffe_fold.errors import InputError
from caffe_fold.verification.compare import SQUASHING, Difference, differ, worst
from caffe_fold.verification.cut import folds_alone, parts
from caffe_fold.verification.detections import differ_in_rows, is_detections
from caffe_fold.verification.inputs import Wanted, input_shapes, make_inputs
from caffe_fold.verification.match import Matching, match
from caffe_fold.verification.pycaffe import SCRIPT as PYCAFFE_FORWARD
from caffe_fold.verification.result import BlobResult, Coverage, Skipped, Timing, Verification
from caffe_fold.verification.shapes import infer
from caffe_fold.verification.sides import Files, Side, open_side

# ---- Two values ----


def test_a_difference_is_judged_by_the_largest_value() -> None:
    found = differ(np.array([1.0, -8.0]), np.array([1.5, -8.0]))
    assert (found.shape, found.absolute, found.largest) == ((2,), 0.5, 8.0)
    assert found.relative == 0.0625


def test_values_that_appear_from_nowhere_differ_wholly() -> None:
    assert differ(np.zeros(3), np.full(3, 1e-3)).relative == 1.0


def test_another_shape_is_infinitely_far() -> None:
    found = differ(np.zeros((1, 2)), np.zeros((2, 1)))
    assert found.relative == math.inf
    assert "(2, 1)" in found.problem


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_must_be_in_both(bad: float) -> None:
    a, b = np.array([bad, 2.0]), np.array([1.0, 2.0])
    assert differ(a, b).relative == math.inf
    assert differ(b, a).relative == math.inf
    assert differ(a, a).relative == 0.0


def test_a_softmax_is_judged_by_what_it_reads() -> None:
    assert "Softmax" in SQUASHING
    assert Difference((2,), 1e-3, 1.0, reference=100.0).relative == 1e-5


def result(blob: str, relative: float, passed: bool = True, problem: str = "") -> BlobResult:
    numbers = (relative, relative, 1.0)
    return BlobResult(blob, blob, "Convolution", (), "net", (1,), *numbers, passed, problem)


def test_of_several_samples_the_worst_counts_and_failures_come_first() -> None:
    found = worst([result("a", 0.1), result("a", 0.3), result("b", 0.2, False), result("a", 0.2)])
    assert [(r.blob, r.relative) for r in found] == [("b", 0.2), ("a", 0.3)]


# ---- Detections ----

ROWS = np.array(
    [
        [0, 1, 0.9, 0.1, 0.1, 0.5, 0.5],
        [0, 1, 0.8, 0.2, 0.2, 0.6, 0.6],
        [0, 2, 0.3, 0.0, 0.0, 0.1, 0.1],
    ]
)


def test_rows_that_change_places_are_equal() -> None:
    found = differ_in_rows(ROWS[None, None], ROWS[[1, 0, 2]][None, None], 1e-4)
    assert (found.absolute, found.problem) == (0.0, "")


def test_a_moved_box_is_a_difference() -> None:
    moved = ROWS.copy()
    moved[1, 4] += 0.01
    assert differ_in_rows(ROWS, moved, 1e-4).absolute == pytest.approx(0.01)


def test_another_label_is_a_missing_row() -> None:
    other = ROWS.copy()
    other[0, 1] = 3
    found = differ_in_rows(ROWS, other, 1e-4)
    assert found.relative == math.inf
    assert "2 detections are in one net alone" in found.problem


def test_a_row_at_the_threshold_may_be_missing() -> None:
    assert differ_in_rows(ROWS, ROWS[:2], 1e-4).problem == ""
    assert differ_in_rows(ROWS, ROWS[1:], 1e-4).problem != ""


def test_rows_at_the_threshold_may_be_others() -> None:
    other = ROWS.copy()
    other[2, 3:] = 0.9
    assert differ_in_rows(ROWS, other, 1e-4).relative == 0
    other = ROWS.copy()
    other[1, 3:] = 0.9
    assert differ_in_rows(ROWS, other, 1e-4).absolute == pytest.approx(0.7)


def test_no_rows_at_all_are_equal() -> None:
    assert differ_in_rows(np.zeros((1, 1, 0, 7)), np.zeros((1, 1, 0, 7)), 1e-4).relative == 0


def test_rows_end_where_no_image_is_named() -> None:
    end = np.array([[-1, 0, 0, 0, 0, 0, 0], [0, 1, 0.5, 9, 9, 9, 9]])
    assert differ_in_rows(ROWS, np.concatenate([ROWS, end]), 1e-4).relative == 0


def test_a_type_tells_detections() -> None:
    assert is_detections("DetectionOutput", (1, 1, 3, 7))
    assert not is_detections("DetectionOutput", (1, 1, 3, 5))
    assert not is_detections("Convolution", (1, 1, 3, 7))


# ---- Inputs ----

SHAPE = (1, 3, 4, 5)


def test_random_input_is_pixels_about_their_middle_and_the_same_each_time() -> None:
    first, again = (make_inputs({"data": SHAPE}, [], Wanted(), 0)["data"] for _ in range(2))
    assert first.shape == SHAPE
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert first.min() < -64
    assert first.max() > 64
    assert np.abs(first).max() <= 127.5
    for other in (Wanted(seed=1), Wanted(samples=2)):
        values = make_inputs({"data": SHAPE}, [], other, other.samples - 1)["data"]
        assert not np.array_equal(first, values)


def test_mean_and_scale_make_the_numbers() -> None:
    wanted = Wanted(mean=(0.0,), scale=1 / 255)
    values = make_inputs({"data": SHAPE}, [], wanted, 0)["data"]
    assert 0 <= values.min() < 0.2
    assert 0.8 < values.max() <= 1


def test_labels_are_zeros_and_other_inputs_no_pixels() -> None:
    values = make_inputs({"label": (2,), "info": (1, 40)}, ["label"], Wanted(), 0)
    assert not values["label"].any()
    assert 0 < np.abs(values["info"]).max() < 6


def test_an_array_is_taken_with_mean_and_scale(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(SHAPE)
    np.save(tmp_path / "in.npy", array[0])
    wanted = Wanted(tmp_path / "in.npy", mean=(1.0, 2.0, 3.0), scale=0.5)
    values = make_inputs({"data": SHAPE}, [], wanted, 0)["data"]
    assert np.array_equal(values, (array - np.array([1, 2, 3]).reshape(1, 3, 1, 1)) / 2)


def test_arrays_go_by_blob(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", info=np.ones((1, 4)))
    values = make_inputs({"data": SHAPE, "info": (1, 4)}, [], Wanted(tmp_path / "in.npz"), 0)
    assert (values["info"] == 1).all()
    assert values["data"].any()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"dat": np.ones(SHAPE)}, "no input 'dat'; the closest is 'data'"),
        ({"data": np.ones((1, 4, 4, 5))}, "(1, 4, 4, 5); the net's input has (1, 3, 4, 5)"),
        ({"data": np.array(["a"])}, "not numbers"),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(InputError) as error:
        make_inputs({"data": SHAPE}, [], Wanted(tmp_path / "in.npz"), 0)
    assert says in str(error.value)
    assert "in.npz" in str(error.value)


def test_a_file_that_is_no_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"in\.npy cannot be read"):
        make_inputs({"data": SHAPE}, [], Wanted(tmp_path / "in.npy"), 0)
    with pytest.raises(InputError, match="no such file"):
        make_inputs({"data": SHAPE}, [], Wanted(tmp_path / "none.npy"), 0)


def npy(header: str, version: bytes = b"\x01\x00") -> bytes:
    """An .npy of no values with any header."""
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode()


def npz(data: bytes, *changes: tuple[bytes, int, int]) -> bytes:
    """An .npz of one member, in which bytes behind a signature are changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", data)
    found = bytearray(target.getvalue())
    for signature, behind, value in changes:
        found[found.index(signature) + behind] = value
    return bytes(found)


_LOCAL, _CENTRAL = b"PK\x03\x04", b"PK\x01\x02"  # of zip's appnote.txt, 4.3.7 and 4.3.12


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("shape.npy", npy(f"{{'descr':'<f4','fortran_order':False,'shape':({1 << 70},)}}\n")),
        ("open.npy", npy("((((\n")),
        ("unhashable.npy", npy("{[]:1}\n")),
        ("text.npz", npz(b"hello")),
        ("encrypted.npz", npz(b"hello", (_LOCAL, 6, 1), (_CENTRAL, 8, 1))),
        ("method.npz", npz(b"hello", (_LOCAL, 8, 99), (_CENTRAL, 10, 99))),
        ("deflated.npz", npz(bytes(1000), (_LOCAL, 38, 0xFF), (_LOCAL, 39, 0xFF))),
    ],
)
def test_a_damaged_array_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} cannot be read: ."):
        make_inputs({"data": SHAPE}, [], Wanted(tmp_path / name), 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{"mean": (1e39,)}, {"scale": 1e39}])
def test_a_mean_or_scale_beyond_float32_is_told(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not finite in float32"):
        make_inputs({"data": SHAPE}, [], Wanted(**options), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"channel_order": "gbr"},
        {"samples": 0},
        {"source": "x.npy", "samples": 2},
        {"seed": -1},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Wanted(**options)  # type: ignore[arg-type]


# ---- Images ----


def image(folder: Path) -> Path:
    cv2 = pytest.importorskip("cv2", reason="OpenCV writes the image")
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[...] = (10, 20, 30)  # blue, green, red
    cv2.imwrite(str(folder / "in.png"), pixels)
    return folder / "in.png"


@pytest.mark.parametrize(("order", "means"), [("bgr", [10, 20, 30]), ("rgb", [30, 20, 10])])
def test_an_image_gets_the_size_of_the_input(tmp_path: Path, order: str, means: list[int]) -> None:
    wanted = Wanted(image(tmp_path), mean=(1.0,), channel_order=order)
    values = make_inputs({"data": SHAPE}, [], wanted, 0)["data"]
    assert values.shape == SHAPE
    assert values.mean(axis=(0, 2, 3)).tolist() == [mean - 1 for mean in means]


def test_an_image_for_one_channel_is_grey(tmp_path: Path) -> None:
    values = make_inputs({"data": (1, 1, 4, 5)}, [], Wanted(image(tmp_path)), 0)["data"]
    assert values.shape == (1, 1, 4, 5)
    assert 10 < values.mean() < 30


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV reads images")
    for text in (b"no image", b"P6\n99999 99999\n255\n"):  # OpenCV takes 2 ** 30 pixels at most
        (tmp_path / "in.jpg").write_bytes(text)
        with pytest.raises(InputError, match=r"in\.jpg is no image"):
            make_inputs({"data": SHAPE}, [], Wanted(tmp_path / "in.jpg"), 0)


# ---- Matching and cutting ----


def sides(net: Net, folder: Path) -> tuple[Side, Side, Matching]:
    """A net and its fold, opened, with what stands for what."""
    files = net.write(folder)
    other = (folder / "f.prototxt", folder / "f.caffemodel")
    caffe_fold.fold(*files, *other)
    opened = []
    for pair in (Files(*files), Files(*other)):
        with open_side(pair, (), None, Choices(), folder) as side:
            opened.append(side)
    return opened[0], opened[1], match(*opened)


def branches() -> Net:
    """Runs behind, before, in place and not, and a type that nobody knows."""
    net = Net()
    net.input("data", (1, 3, 16, 16))
    net.conv("conv1", "data", 3, 4)
    net.batch_norm("bn1", "conv1", 4, top="norm1")
    net.scale("scale1", "norm1", 4)
    net.layer("odd", "Odd", "norm1", "odd")
    net.relu("relu", "norm1", top="relu")
    net.batch_norm("bn2", "relu", 4)
    net.conv("conv2", "relu", 4, 2)
    net.conv("conv3", "odd", 4, 2)
    return net


def test_each_layer_stands_for_what_it_took_in(tmp_path: Path) -> None:
    a, _, matching = sides(branches(), tmp_path)
    names = [layer.name for layer in a.graph.layers]
    found = {
        pair.layer: ([names[at] for at in pair.before], [names[at] for at in pair.behind])
        for pair in matching.pairs
    }
    assert found == {
        "conv1": ([], ["bn1", "scale1"]),
        "odd": ([], []),
        "relu": ([], []),
        "conv2": (["bn2"], []),
        "conv3": ([], []),
    }
    assert [name.blob for name in matching.incomparable] == ["relu"]


def test_the_runnable_part_ends_where_a_shape_is_not_known(tmp_path: Path) -> None:
    a, b, matching = sides(branches(), tmp_path)
    shapes = input_shapes(a, {})
    section = parts(
        a, b, matching, shapes, frozenset(("Convolution", "BatchNorm", "Scale", "ReLU"))
    )
    names = [
        [side.graph.layers[at].name for at in d.layers]
        for side, d in ((a, section.original), (b, section.folded))
    ]
    assert names[0] == ["conv1", "bn1", "scale1", "relu", "bn2", "conv2"]
    assert names[1] == ["conv1", "relu", "conv2"]
    assert [a.graph.layers[at].name for at in section.cut] == ["odd", "conv3"]


def test_what_went_into_an_unknown_layer_is_cut_with_it(tmp_path: Path) -> None:
    """The folded net has no value between them that the rest could begin with."""
    net = Net()
    net.input("data", (1, 3, 16, 16))
    net.conv("first", "data", 3, 4, type="Deconvolution")
    net.batch_norm("bn", "first", 4, top="norm")
    net.conv("last", "norm", 4, 2)
    a, b, matching = sides(net, tmp_path)
    section = parts(a, b, matching, input_shapes(a, {}), frozenset(("Convolution", "BatchNorm")))
    assert [a.graph.layers[at].name for at in section.cut] == ["first", "bn"]
    for side, draft in ((a, section.original), (b, section.folded)):
        (last,) = draft.layers
        assert draft.inputs[side.graph.bottoms[last][0]] in section.shapes


def test_a_fold_alone_has_an_input_of_its_own(tmp_path: Path) -> None:
    a, b, matching = sides(branches(), tmp_path)
    folds = [pair for pair in matching.pairs if pair.is_fold]
    section = folds_alone(a, b, folds, input_shapes(a, {}), frozenset())
    assert sorted(shape[1] for shape in section.shapes.values()) == [3, 4]
    assert len(section.original.layers) == 5
    assert len(section.folded.layers) == 2


def test_a_net_that_is_no_fold_of_the_other_is_refused(tmp_path: Path) -> None:
    net = branches()
    a, _, _ = sides(net, tmp_path)
    net.layers = [layer for layer in net.layers if layer.name != "relu"]
    net.layers[-2].bottoms = ["norm1"]
    folder = tmp_path / "other"
    folder.mkdir()
    prototxt, caffemodel = net.write(folder)
    prototxt.write_text(prototxt.read_text().replace('"relu"', '"norm1"'))
    with open_side(Files(prototxt, caffemodel), (), None, Choices(), folder) as other:
        with pytest.raises(InputError, match=r"lacks layer 'relu' \(ReLU\)"):
            match(a, other)
        with pytest.raises(InputError, match=r"'relu' .* is not in"):
            match(other, a)


def test_shapes_follow_from_text_and_weights(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, 3, 17, 12))
    net.conv("conv", "data", 3, 4, pad=1, stride=2)
    net.layer("pool", "Pooling", "conv", "pool", "pooling_param { kernel_size: 2 stride: 2 }")
    net.deconv("up", "pool", 4, 4, kernel=2, stride=2)
    net.layer("cat", "Concat", ["pool", "pool"], "cat")
    net.layer("big", "Upsample", "cat", "big", "upsample_param { scale: 2 }")
    net.layer("perm", "Permute", "big", "perm", "permute_param { order: 0 order: 2 order: 3 }")
    net.layer("flat", "Flatten", "perm", "flat", "flatten_param { axis: 2 }")
    net.layer("re", "Reshape", "flat", "re", "reshape_param { shape { dim: 0 dim: -1 dim: 4 } }")
    net.layer("cut", "Slice", "re", ["left", "right"], "slice_param { axis: 2 slice_point: 1 }")
    net.layer("odd", "Odd", "cut", "odd")
    files = net.write(tmp_path)
    with open_side(Files(*files), (), None, Choices(), tmp_path) as side:
        found = infer(side.graph, {})
        shapes = {side.graph.values[value].blob: shape for value, shape in found.items()}
    assert shapes == {
        "data": (2, 3, 17, 12),
        "conv": (2, 4, 9, 6),
        "pool": (2, 4, 5, 3),
        "up": (2, 4, 10, 6),
        "cat": (2, 8, 5, 3),
        "big": (2, 8, 10, 6),
        "perm": (2, 10, 6, 8),
        "flat": (2, 10, 48),
        "re": (2, 120, 4),
        "left": (2, 120, 1),
        "right": (2, 120, 3),
    }


def test_an_input_without_a_shape_is_asked_for(tmp_path: Path) -> None:
    net = Net()
    net.layer("d", "Data", [], ["data", "label"], "data_param { batch_size: 4 }")
    net.conv("conv", "data", 3, 4)
    files = net.write(tmp_path)
    with open_side(Files(*files), (), None, Choices(), tmp_path) as side:
        with pytest.raises(InputError, match="--input-shape data=1,3,224,224"):
            input_shapes(side, {})
        with pytest.raises(InputError, match="no blob is named 'dat'; the closest is 'data'"):
            input_shapes(side, {"dat": (1, 3, 8, 8)})
        found = input_shapes(side, {"data": (2, 3, 8, 8)})
    assert sorted(found.values()) == [(2,), (2, 3, 8, 8)]


# ---- The result ----


def verification(**changes: object) -> Verification:
    values: dict[str, object] = {
        "model": "a.prototxt",
        "weights": "a.caffemodel",
        "folded_model": "b.prototxt",
        "folded_weights": "b.caffemodel",
        "engine": "OpenCV 4",
        "how": "parts",
        "tolerance": 1e-4,
        "samples": 1,
        "passed": False,
        "differences": (),
        "blobs": (
            result("bad", math.inf, False, "its shape is (1, 2) in the folded net"),
            result("good", 1e-6),
        ),
        "incomparable": (Skipped("data", "it went elsewhere"),),
        "coverage": Coverage(5, 4, 2, 1, 3, {"Odd": 1}, {"PReLU": 2, "Convolution": 1}),
        "timing": Timing(15, 0.176, 0.162, 229, 123),
        "notes": ("one note",),
    }
    return Verification(**{**values, **changes})  # type: ignore[arg-type]


def test_the_text_shows_the_worst_first() -> None:
    lines = verification().to_text().splitlines()
    assert [line[:4] for line in lines[1:3]] == ["FAIL", "PASS"]
    assert "bad 1: its shape is (1, 2)" in lines[1]
    assert lines[3] == "not comparable: data: it went elsewhere"
    assert "covered 4 of 5 layers of the folded net: 1 of 2 folds alone, 3 layers in parts" in lines
    assert "not run: 1 Odd" in lines
    assert "not compared, since their blobs are skipped: 2 PReLU, 1 Convolution" in lines
    assert "time 176.0 -> 162.0 ms (1.09x), median of 15; layers 229 -> 123" in lines
    assert lines[-1].startswith("FAIL: 1 of 2 blobs fail, bad: its shape is (1, 2)")


def test_the_text_shows_all_that_fail() -> None:
    blobs = tuple(result(f"b{i}", 1.0, False) for i in range(30))
    shown = verification(blobs=blobs).to_text(rows=2)
    assert shown.count("FAIL  ") == 30


def test_the_json_has_no_numbers_that_json_lacks() -> None:
    data = json.loads(json.dumps(verification().to_dict(), allow_nan=False))
    assert data["schema"] == 1
    assert data["blobs"][0]["absolute"] is None
    assert data["timing"]["ratio"] == pytest.approx(0.176 / 0.162)
    assert data["coverage"]["not_run"] == {"Odd": 1}


# ---- The script for the other interpreter ----


def test_the_script_is_of_the_syntax_of_old_pythons() -> None:
    source = PYCAFFE_FORWARD.read_text()
    ast.parse(source, feature_version=(3, 6))
    assert source.isascii()
    python2 = shutil.which("python2.7")
    if python2 is None or subprocess.run([python2, "-V"], capture_output=True).returncode:
        pytest.skip("There is no Python 2.7 to try the script's syntax on.")
    code = "import sys; compile(open(sys.argv[1]).read(), 'script', 'exec')"
    done = subprocess.run([python2, "-c", code, str(PYCAFFE_FORWARD)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
