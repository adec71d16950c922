"""The test support itself: its evaluator against real Caffe, OpenCV and hand-made values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import compare, engines, prototext
from support.aborts import ABORTS
from support.cases import CASES, NOT_IN_OPENCV
from support.evaluate import evaluate
from support.netdef import NetError, input_shapes, read_net

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"

# ---- The reader of the text ----


def test_prototext_reads_every_spelling() -> None:
    text = (
        "\ufeffname: 'a' \"b\\x41\\n\\303\\251\" # note\r\n"
        "layer { p < k: 3, k: [4, 5]; > f: -1.5f g: .5 h: 1e-3 i: 0x10 j: 010 }\r\n"
        "layer: { pool: MAX on: true n: -inf e [] }"
    )
    root = prototext.parse(text.replace("e []", "e: []"))
    assert root.text("name") == "abA\né"
    first, second = root.messages("layer")
    assert first.message("p").integers("k") == [3, 4, 5]
    assert [first.real(k) for k in "fgh"] == [-1.5, 0.5, 1e-3]
    assert (first.integer("i"), first.integer("j")) == (16, 8)
    assert second.text("pool") == "MAX"
    assert isinstance(second.one("pool"), prototext.Ident)
    assert second.flag("on")
    assert second.real("n") == -np.inf
    assert not second.has("e")


@pytest.mark.parametrize("text", ["a {", "a: }", "a 3", "a: 'x", "a: [1", "a: [1 2]", "a: $"])
def test_prototext_refuses_broken_text(text: str) -> None:
    with pytest.raises(prototext.ProtoTextError):
        prototext.parse(text)


def test_prototext_refuses_a_scalar_given_twice() -> None:
    with pytest.raises(prototext.ProtoTextError, match="2 times"):
        prototext.parse("a: 1 a: 2").integer("a")


# ---- The evaluator against the engines ----

Written = dict[str, tuple[Path, Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Write every case's net; give its two files and its inputs."""
    folder = tmp_path_factory.mktemp("nets")
    found: Written = {}
    for name, build in CASES.items():
        net = build()
        prototxt, caffemodel = net.write(folder, name)
        found[name] = (prototxt, caffemodel, dict(net.inputs()))
    return found


@pytest.fixture(scope="module")
def caffe_results(written: Written) -> dict[str, Any]:
    """Run every case in real Caffe, in one call."""
    return dict(zip(written, run_caffe([engines.Job(*files) for files in written.values()])))


def run_caffe(jobs: list[engines.Job]) -> list[Any]:
    """Run real Caffe; skip the test where there is none."""
    try:
        return [*engines.caffe_forward_many(jobs)]
    except engines.Unavailable as reason:
        pytest.skip(str(reason))


def run_opencv(prototxt: Path, caffemodel: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run OpenCV; skip the test where there is none."""
    try:
        return {**engines.opencv_forward(prototxt, caffemodel, inputs)}
    except engines.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_evaluator_agrees_with_caffe(
    name: str, written: Written, caffe_results: dict[str, Any]
) -> None:
    theirs = caffe_results[name]
    assert not isinstance(theirs, engines.EngineError), theirs
    mine = evaluate(*written[name]).by_caffe_key()
    assert set(mine) <= set(theirs)
    compare.assert_engine(mine, theirs, 2e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_evaluator_agrees_with_opencv(name: str, written: Written) -> None:
    if name in NOT_IN_OPENCV:
        pytest.skip(f"OpenCV: {NOT_IN_OPENCV[name]}")
    theirs = run_opencv(*written[name])
    compare.assert_engine(evaluate(*written[name]).by_layer(), theirs, 2e-5)


@pytest.mark.parametrize("name", ABORTS)
def test_evaluator_raises_where_caffe_aborts(name: str, tmp_path: Path) -> None:
    net = ABORTS[name]()
    with pytest.raises((NetError, prototext.ProtoTextError)):
        evaluate(*net.write(tmp_path), net.inputs())


@pytest.mark.oracle
def test_caffe_aborts_where_the_evaluator_raises(tmp_path: Path) -> None:
    built = {name: build() for name, build in ABORTS.items()}
    results = run_caffe(
        [engines.Job(*net.write(tmp_path, name), net.inputs()) for name, net in built.items()]
    )
    passed = [n for n, got in zip(built, results) if not isinstance(got, engines.EngineError)]
    assert passed == []


# ---- Real nets ----

REAL = {
    "landmark106": ("landmark106.prototxt", "landmark106.caffemodel"),
    "open_nsfw_resnet50": ("deploy.prototxt", "resnet_50_1by2_nsfw.caffemodel"),
    "v1_cifar10_quick": ("cifar10_quick.prototxt", "cifar10_quick_iter_5000.caffemodel"),
}

REAL_IN_OPENCV = {
    **REAL,
    # Half-precision blobs, and layers for SSD, which real Caffe does not have.
    "hyperlpr_segfree_inception": (
        "SegmenationFree-Inception.prototxt",
        "SegmenationFree-Inception.caffemodel",
    ),
    "res10_ssd_fp32": ("deploy.prototxt", "res10_300x300_ssd_iter_140000.caffemodel"),
}


def real_net(name: str) -> tuple[Path, Path, dict[str, Any]]:
    """Return a real net's files and random inputs; skip where they are missing."""
    files = [MODELS / name / file for file in REAL_IN_OPENCV[name]]
    if not all(file.exists() for file in files):
        pytest.skip(f"{name} is not there: real nets are looked for in {MODELS}")
    rng = np.random.default_rng(0)
    first = read_net(files[0]).layers[0]
    (shape,) = input_shapes(first)
    return files[0], files[1], {first.tops[0]: rng.normal(0, 50, (1, *shape[1:]))}


@pytest.mark.oracle
@pytest.mark.parametrize("name", REAL)
def test_evaluator_agrees_with_caffe_on_real_nets(name: str) -> None:
    net = real_net(name)
    (theirs,) = run_caffe([engines.Job(*net)])
    compare.assert_engine(evaluate(*net).by_caffe_key(), theirs, 1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("name", REAL_IN_OPENCV)
def test_evaluator_agrees_with_opencv_on_real_nets(name: str) -> None:
    net = real_net(name)
    mine = evaluate(*net, lenient=True).by_layer()
    compare.assert_engine(mine, run_opencv(*net), 1e-4)
