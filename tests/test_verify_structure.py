"""What no engine tells: a folded net that is another beside its folds does not pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.nets import Net

from caffe_fold import InputError, caffe_pb2, fold, verify

pytest.importorskip("cv2", reason="OpenCV is not installed")

Pair = tuple[Path, Path]
Four = tuple[Path, Path, Path, Path]


@pytest.fixture
def four(tmp_path: Path) -> Four:
    """A net, and what it folds to."""
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    net.relu("relu", "conv", "r")
    net.layer("prelu", "PReLU", "r", "p", "", [[0.1, 0.2, 0.3, 0.4]])
    net.layer("odd", "Odd", "p", "q", "odd_param { size: 2 }")
    net.eltwise("sum", ["p", "conv"], "sum")
    net.inner_product("ip", "sum", 64, 5)
    model, weights = net.write(tmp_path)
    out = tmp_path / "f.prototxt", tmp_path / "f.caffemodel"
    fold(model, weights, *out)
    return model, weights, *out


def failures(four: Four) -> str:
    """What is not the same, after the result was seen to fail."""
    found = verify(*four)
    assert not found.passed
    assert "FAIL" in found.to_text()
    return " | ".join(found.differences)


def test_the_right_net_passes(four: Four) -> None:
    found = verify(*four)
    assert found.passed, found.to_text()
    assert found.differences == ()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('bottom: "p"\n  bottom: "conv"', 'bottom: "p"\n  bottom: "nope"', "'sum' reads"),
        ('bottom: "p"\n  bottom: "conv"', 'bottom: "p"', "'sum' reads"),
        ('type: "PReLU"', 'type: "Foo"', "'prelu' is a PReLU and a Foo"),
        ('type: "InnerProduct"', 'type: "TanH"', "'ip' is a InnerProduct and a TanH"),
        ("dim: 6 dim: 6", "dim: 8 dim: 8", "the input 'data' has the shape"),
        ("size: 2", "size: 7", "'odd' has other parameters"),
        ('type: "Odd"\n  bottom: "p"', 'type: "Odd"\n  bottom: "data"', "'odd' reads"),
        ('top: "ip"', 'top: "zzz"', "the output 'ip' is not in the folded net"),
    ],
)
def test_another_text_fails(four: Four, old: str, new: str, says: str) -> None:
    text = four[2].read_text()
    assert old in text
    four[2].write_text(text.replace(old, new))
    assert says in failures(four)


def test_an_output_that_is_gone_fails(four: Four) -> None:
    text = four[2].read_text()
    start = text.rindex("layer {")
    four[2].write_text(text[:start])
    assert "the output 'ip' is not in the folded net" in failures(four)


@pytest.mark.parametrize("count", [0, 1])
def test_other_blobs_of_a_layer_that_took_in_nothing_fail(four: Four, count: int) -> None:
    net = caffe_pb2.NetParameter.FromString(four[3].read_bytes())
    (layer,) = [layer for layer in net.layer if layer.name == "prelu"]
    if count:
        layer.blobs[0].data[0] += 1e-6
    else:
        del layer.blobs[:]
    four[3].write_bytes(net.SerializeToString())
    assert "'prelu' took in no layer and has other blobs" in failures(four)


@pytest.mark.parametrize("option", [{"tolerance": float("inf")}, {"scale": float("nan")}])
def test_numbers_that_prove_nothing_are_refused(four: Four, option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"finite|number of 0 or more"):
        verify(*four, **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["relu", ""])
@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_layers_of_one_name_are_told_by_their_order(
    name: str, is_right: bool, tmp_path: Path
) -> None:
    """Caffe takes such a net, where they have no weights."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = Net()
    net.input("data", (1, 3, 6, 6))
    for top, bottom, channels in (("first", "data", 3), ("second", "first", 4)):
        net.conv(top, bottom, channels, 4)
        net.batch_norm(f"bn-{top}", top, 4)
        net.layer(name, "ReLU", top, top)
    net.inner_product("ip", "second", 16, 3)
    model, weights = net.write(tmp_path)
    out = tmp_path / "f.prototxt", tmp_path / "f.caffemodel"
    assert len(fold(model, weights, *out).folded) == 2
    if not is_right:
        before, relu, after = out[0].read_text().rpartition('type: "ReLU"')
        out[0].write_text(f"{before}{relu} relu_param {{ negative_slope: 1 }}{after}")
        assert "other parameters" in failures((model, weights, *out))
    else:
        found = verify(model, weights, *out)
        assert found.passed, found.to_text()
