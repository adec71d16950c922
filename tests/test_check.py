"""The proof: whatever goes wrong between planning and writing, nothing wrong is left behind.

Each test spoils one step of the fold's own arithmetic or writing, and not the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from click.testing import CliRunner
from support.nets import Net

from caffe_fold import CheckError, caffe_pb2, cli, convert, fold, weights_files
from caffe_fold.layers import affine, linear
from caffe_fold.planning import conditions
from caffe_fold.writing import arithmetic, entries, folded_values, rewrite_prototxt, write

Patch = pytest.MonkeyPatch


def small_net() -> Net:
    """Every way that a fold goes: behind (grouped, transposed) and before a layer, and a merge."""
    net = Net("small")
    net.input("data", (1, 4, 6, 6))
    net.conv("conv", "data", 4, 6, 3, group=2, bias=False)
    net.batch_norm("bn", "conv", 6, params="eps: 0.01")
    net.scale("scale", "conv", 6)
    net.relu("relu", "conv")
    net.deconv("deconv", "conv", 6, 4, 2, group=2, stride=2)
    net.batch_norm("bn2", "deconv", 4)
    net.relu("relu2", "deconv")
    net.batch_norm("bn3", "deconv", 4, top="bn3")
    net.conv("conv3", "bn3", 4, 5, 1)
    net.relu("relu3", "conv3")
    net.batch_norm("bn4", "conv3", 5, top="bn4")
    net.scale("scale4", "bn4", 5, top="last")
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


INPUTS = {"net.prototxt", "net.caffemodel"}


def test_what_is_right_passes(folder: Path) -> None:
    report = fold(folder / "net.prototxt", folder / "net.caffemodel")
    assert report.checked is not None
    assert report.checked.layers == 4
    assert 0 < report.checked.worst <= 1
    assert [f.layer for f in report.folded] == ["conv", "deconv", "conv3"]
    assert [m.layer for m in report.merged] == ["scale4"]


# ---- Ways to spoil a fold ----


def one_wrong_weight(patch: Patch) -> None:
    right = arithmetic.Folding.weights

    def wrong(self: Any, block: Any, row: int, col: int) -> Any:
        found = right(self, block, row, col).copy()
        found[-1, -1] *= 1.01
        return found

    patch.setattr(arithmetic.Folding, "weights", wrong)


def a_wrong_bias(patch: Patch) -> None:
    right = arithmetic.Folding.bias

    def wrong(self: Any, bias: Any, sums: Any) -> Any:
        found = np.array(right(self, bias, sums))
        found[-1] += 1e-4
        return found

    patch.setattr(arithmetic.Folding, "bias", wrong)


def no_old_bias(patch: Patch) -> None:
    right = arithmetic.Folding.bias
    patch.setattr(arithmetic.Folding, "bias", lambda self, bias, sums: right(self, None, sums))


def no_shift_sums(patch: Patch) -> None:
    patch.setattr(arithmetic.Folding, "add_shift_sums", lambda *_: None)


def another_read(kind: str, change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Read an affine type's map from changed constants; its forward stays right."""

    def spoil(patch: Patch) -> None:
        right = affine.AFFINE[kind]
        wrong = right._replace(read=lambda constants: right.read(change(constants)))
        patch.setitem(affine.AFFINE, kind, wrong)

    return spoil


def other_eps(constants: Any) -> Any:
    message = type(constants.message)()
    message.CopyFrom(constants.message)
    message.eps *= 1.1
    return constants._replace(message=message)


def no_factor(constants: Any) -> Any:
    return constants._replace(blobs=constants.blobs[:2])


def no_eps(constants: Any) -> Any:
    message = type(constants.message)()
    message.eps = 0
    return constants._replace(message=message)


def turned_blobs(constants: Any) -> Any:
    return constants._replace(blobs=tuple(b[::-1] for b in constants.blobs))


def other_outputs(patch: Patch) -> None:
    """A grouped Deconvolution's rows belong to outputs as an ungrouped one's would."""
    right = linear.Layout.output_of

    def wrong(self: Any, rows: Any) -> Any:
        return rows % self.outputs if self.kind == "deconvolution" else right(self, rows)

    patch.setattr(linear.Layout, "output_of", wrong)


def turned_outputs(patch: Patch) -> None:
    right = linear.Layout.output_of
    patch.setattr(linear.Layout, "output_of", lambda self, rows: right(self, rows)[::-1])


def turned_inputs(patch: Patch) -> None:
    right = linear.Layout.spread
    patch.setattr(linear.Layout, "spread", lambda self, channels: right(self, channels[::-1]))


def another_composition(patch: Patch) -> None:
    def wrong(self: Any, later: Any) -> Any:
        return affine.AffineMap(
            later.scale * self.scale, self.shift + later.shift, self.channels or later.channels
        )

    patch.setattr(affine.AffineMap, "then", wrong)


def values_in_float16(patch: Patch) -> None:
    right = folded_values._rounded

    def wrong(values: Any, *rest: Any) -> Any:
        return right(values.astype(np.float16), *rest)

    patch.setattr(folded_values, "_rounded", wrong)


def chunks_the_other_way_round(patch: Patch) -> None:
    right = folded_values.FoldedValues.weights

    def wrong(self: Any) -> Iterator[Any]:
        for chunk in right(self):
            yield np.ascontiguousarray(chunk[::-1])

    patch.setattr(folded_values.FoldedValues, "weights", wrong)


def nan_values(patch: Patch) -> None:
    patch.setattr(folded_values, "_rounded", lambda values, *_: (values * np.nan).astype("<f4"))


def after_writing(change: Callable[[Path], None]) -> Callable[[Patch], None]:
    """Change the written caffemodel before it is proven."""

    def spoil(patch: Patch) -> None:
        right = write.write_parts

        def wrong(model: Any, parts: Any, path: str | None, threads: int | None) -> None:
            right(model, parts, path, threads)
            if path is not None:
                change(Path(path))

        patch.setattr(weights_files, "write_parts", wrong)

    return spoil


def last_float_off(path: Path) -> None:
    """The last bias of the merged Scale, which stands before its shape's six bytes."""
    data = bytearray(path.read_bytes())
    (place,) = (at for at in [data.rfind(b"\x3a\x03\x0a\x01\x05")] if at > 0)
    data[place - 1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x08\x01")


def emptied(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def in_prototxt(change: Callable[[bytes], bytes]) -> Callable[[Patch], None]:
    """Change the prototxt that is to be written."""

    def spoil(patch: Patch) -> None:
        right = rewrite_prototxt.rewrite_prototxt

        def wrong(*arguments: Any, **options: Any) -> bytes:
            old = right(*arguments, **options)
            new = change(old)
            assert new != old
            return new

        patch.setattr(convert, "rewrite_prototxt", wrong)

    return spoil


def swapped(old: bytes, new: bytes, count: int = -1) -> Callable[[Patch], None]:
    return in_prototxt(lambda text: text.replace(old, new, count))


SPOILED: dict[str, Callable[[Patch], None]] = {
    "one wrong weight": one_wrong_weight,
    "a wrong bias": a_wrong_bias,
    "the old bias left out": no_old_bias,
    "the shift before a layer left out": no_shift_sums,
    "another eps": another_read("BatchNorm", other_eps),
    "no eps": another_read("BatchNorm", no_eps),
    "a dropped factor": another_read("BatchNorm", no_factor),
    "channels of a BatchNorm turned": another_read("BatchNorm", turned_blobs),
    "channels of a Scale turned": another_read("Scale", turned_blobs),
    "outputs of a grouped Deconvolution": other_outputs,
    "outputs turned": turned_outputs,
    "inputs turned": turned_inputs,
    "maps composed wrongly": another_composition,
    "too few digits": values_in_float16,
    "rows turned": chunks_the_other_way_round,
    "not a number": nan_values,
    "a bit of the merged Scale": after_writing(last_float_off),
    "a truncated caffemodel": after_writing(cut),
    "a caffemodel with more in it": after_writing(longer),
    "a caffemodel of zeros": after_writing(emptied),
    "a wrong top": swapped(b'top: "last"', b'top: "lost"'),
    "a wrong bottom": swapped(b'bottom: "deconv"', b'bottom: "data"', 1),
    "a layer's type": swapped(b'"ReLU"', b'"AbsVal"', 1),
    "a layer's name": swapped(b'"relu"', b'"other"'),
    "no bias term": swapped(b"bias_term: true", b"bias_term: false", 1),
    "another group": swapped(b"group: 2", b"group: 1", 1),
    "a layer left out": in_prototxt(lambda text: text[: text.rindex(b"layer {")]),
    "a text without its end": in_prototxt(lambda text: text[:-3]),
    "an empty text": in_prototxt(lambda text: b""),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_fold_is_caught_and_leaves_nothing(
    spoil: Callable[[Patch], None], folder: Path, monkeypatch: Patch
) -> None:
    spoil(monkeypatch)
    with pytest.raises(CheckError) as caught:
        fold(folder / "net.prototxt", folder / "net.caffemodel")
    assert "\n" not in str(caught.value)
    assert names(folder) == INPUTS


@pytest.mark.parametrize("name", ["one wrong weight", "a wrong top", "a truncated caffemodel"])
def test_a_spoiled_fold_leaves_older_outputs_as_they_were(
    name: str, folder: Path, monkeypatch: Patch
) -> None:
    SPOILED[name](monkeypatch)
    old = {"net_inference.prototxt": b"old text", "net_inference.caffemodel": b"old weights"}
    for file, data in old.items():
        (folder / file).write_bytes(data)
    with pytest.raises(CheckError):
        fold(folder / "net.prototxt", folder / "net.caffemodel")
    assert names(folder) == INPUTS | set(old)
    assert all((folder / file).read_bytes() == data for file, data in old.items())


def test_without_the_proof_a_spoiled_fold_goes_through(folder: Path, monkeypatch: Patch) -> None:
    """So it was the proof that caught it."""
    one_wrong_weight(monkeypatch)
    report = fold(folder / "net.prototxt", folder / "net.caffemodel", check=False)
    assert report.checked is None
    assert names(folder) > INPUTS


def test_on_the_command_line_a_failed_proof_is_exit_1(
    folder: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_wrong_weight(monkeypatch)
    monkeypatch.setattr(
        "sys.argv",
        [
            "caffe-fold",
            "--model",
            f"{folder}/net.prototxt",
            "--weights",
            f"{folder}/net.caffemodel",
        ],
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: the written layer 'conv' is wrong: it gives ")
    assert err.count("\n") == 1
    assert names(folder) == INPUTS


def test_a_shift_before_a_padded_layer_is_caught_at_the_border(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """In the middle of its input the folded layer would be right."""
    net = Net("padded")
    net.input("data", (1, 4, 6, 6))
    net.batch_norm("bn", "data", 4, top="bn")
    net.conv("conv", "bn", 4, 5, 3, pad=1)
    net.write(tmp_path)
    monkeypatch.setattr(conditions.Conditions, "_require_exact_before", lambda *_: None)
    with pytest.raises(CheckError, match="the written layer 'conv' is wrong"):
        fold(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    assert names(tmp_path) == INPUTS


def test_a_merge_under_a_wrong_number_type_is_caught(folder: Path, monkeypatch: Patch) -> None:
    right = entries._constant
    monkeypatch.setattr(entries, "_constant", lambda n: right(n.astype("<f2").astype(n.dtype)))
    with pytest.raises(CheckError, match="'scale4'"):
        fold(folder / "net.prototxt", folder / "net.caffemodel")


def test_the_runner_is_quiet_about_a_proof_that_holds(folder: Path) -> None:
    result = CliRunner().invoke(
        cli.cli,
        ["--model", f"{folder}/net.prototxt", "--weights", f"{folder}/net.caffemodel"],
    )
    assert result.exit_code == 0, result.output
    assert "checked: 4 changed layers re-read and compared" in result.output


def test_a_run_that_changes_nothing_but_by_rounding_goes(tmp_path: Path) -> None:
    net = Net("opposites")
    net.input("data", (1, 4, 3, 3))
    net.relu("relu", "data", top="relu")
    net.scale("up", "relu", 4, top="up", bias=False)
    net.scale("down", "up", 4, top="down", bias=False)
    net.relu("last", "down", top="last")
    model, weights = net.write(tmp_path)
    message = caffe_pb2.NetParameter.FromString(weights.read_bytes())
    for layer, value in (("up", 5.0), ("down", 0.2)):
        (blob,) = next(found.blobs for found in message.layer if found.name == layer)
        blob.ClearField("data")
        blob.double_data.extend([value] * 4)
    weights.write_bytes(message.SerializeToString())
    report = fold(model, weights)
    assert report.removed == ("up", "down")
