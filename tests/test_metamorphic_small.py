"""Random small nets: what folding must keep, and what must make no difference to it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from folding import fold_net
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import RandomNet, nets, renamed
from support.nets import Net

import caffe_fold

pytestmark = pytest.mark.any_version

QUICK = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _folded(net: Net, text: str | None = None) -> tuple[bytes, bytes, caffe_fold.Report]:
    """Both folded files and the report."""
    with tempfile.TemporaryDirectory() as folder:
        model, weights = net.write(Path(folder))
        if text is not None:
            model.write_bytes(text.encode())
        new_model, new_weights = Path(folder, "new.prototxt"), Path(folder, "new.caffemodel")
        report = caffe_fold.fold(model, weights, new_model, new_weights)
        return new_model.read_bytes(), new_weights.read_bytes(), report


@settings(QUICK, max_examples=100)
@given(nets(), st.data())
def test_every_value_is_kept(made: RandomNet, data: st.DataObject) -> None:
    """In float64, where rounding hides nothing. ``fold_net`` judges."""
    keep = data.draw(st.lists(st.sampled_from(made.blobs), max_size=2, unique=True))
    with tempfile.TemporaryDirectory() as folder:
        done = fold_net(made.net, Path(folder), tolerance=1e-9, keep=keep)
        for blob in keep:
            difference = abs(done.before.blobs[blob] - done.after.blobs[blob]).max()
            assert difference <= 1e-9 * abs(done.before.blobs[blob]).max()
    report = done.report
    counted = {
        layer: report.after.by_type.get(layer, 0) for layer in ("BatchNorm", "Scale", "Bias")
    }
    assert sum(counted.values()) == len(report.stayed), "what stays has a reason, and only that"
    assert all(stay.layer in done.layers for stay in report.stayed)


@settings(QUICK, max_examples=80)
@given(nets(reuse=True))
def test_every_value_is_kept_where_names_are_used_again(made: RandomNet) -> None:
    """A bottom is what was written last under its name, also where Caffe would abort."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("support.evaluate.check_graph", lambda *_: None)
        fold_net(made.net, Path(folder), tolerance=1e-9, any_names=True)


@settings(QUICK, max_examples=25)
@given(nets("data"))
def test_every_value_is_kept_in_float32(made: RandomNet) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fold_net(made.net, Path(folder), tolerance=1e-4)


@settings(QUICK, max_examples=25)
@given(nets(), st.randoms(use_true_random=False))
def test_names_of_blobs_make_no_difference(made: RandomNet, random: object) -> None:
    blobs = sorted({name for layer in made.net.layers for name in layer.tops})
    others = [f"name{at:02}" for at in range(len(blobs))]
    random.shuffle(others)  # type: ignore[attr-defined]
    names = dict(zip(blobs, others))
    text, weights, _ = _folded(made.net)
    renamed(made.net, names)
    other_text, other_weights, _ = _folded(made.net)
    assert _with_names(text, names) == other_text
    assert _with_names(weights, names) == other_weights


def _with_names(data: bytes, names: dict[str, str]) -> bytes:
    """Change names of blobs; all of them are six bytes, which no weights are by chance."""
    return re.sub(
        rb"blob(?:\d\d|in)", lambda m: names.get(m[0].decode(), m[0].decode()).encode(), data
    )


@settings(QUICK, max_examples=20)
@given(nets())
def test_check_makes_no_difference(made: RandomNet) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, weights = made.net.write(Path(folder))
        files = [
            Path(folder, f"{name}.{end}") for name in "ab" for end in ("prototxt", "caffemodel")
        ]
        caffe_fold.fold(model, weights, *files[:2])
        caffe_fold.fold(model, weights, *files[2:], check=False)
        assert files[0].read_bytes() == files[2].read_bytes()
        assert files[1].read_bytes() == files[3].read_bytes()


# ---- Styles of the text: to fold and to change the style are to commute ----


def _tabs(text: str) -> str:
    return re.sub(r"^  ", "\t", text, flags=re.MULTILINE)


def _comments(text: str) -> str:
    text = re.sub(
        r"^layer", "\n# above: one of the net's {layers}\nlayer", text, flags=re.MULTILINE
    )
    return re.sub(r"(?<=[{}\"])\n", " # 'note' }\n", text)


def _plain(text: str) -> str:
    """A text without comments and blank lines."""
    return "".join(
        line for line in re.sub(r" *#[^\n]*", "", text).splitlines(keepends=True) if line.strip()
    )


STYLES: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "crlf": (lambda text: text.replace("\n", "\r\n"), lambda text: text.replace("\r", "")),
    "tabs": (_tabs, lambda text: text.replace("\t", "  ")),
    "no-end": (lambda text: text.rstrip("\n"), lambda text: text.rstrip("\n") + "\n"),
    "comments": (_comments, _plain),
    "quotes": (lambda text: text.replace('"', "'"), lambda text: text.replace("'", '"')),
    "separators": (lambda text: re.sub(r'"\n', '";\n', text), lambda text: text.replace(";", "")),
}


@pytest.mark.parametrize("style", STYLES)
@settings(QUICK, max_examples=12)
@given(nets())
def test_style_of_the_text_survives(style: str, made: RandomNet) -> None:
    change, normal = STYLES[style]
    text, weights, _ = _folded(made.net)
    styled, styled_weights, _ = _folded(made.net, change(made.net.prototxt()))
    if style in ("crlf", "tabs"):
        assert styled.decode() == change(text.decode())
    assert normal(styled.decode()) == normal(text.decode())
    assert styled_weights == weights


@settings(QUICK, max_examples=25)
@given(nets())
def test_comments_of_layers_that_stay_are_all_there(made: RandomNet) -> None:
    """Each layer has a comment line of its own above it and one inside."""
    parts = [made.net.header]
    for layer in made.net.layers:
        text = layer.text.replace("{\n", f"{{ # inside {layer.name}\n", 1)
        parts.append(f"\n# above {layer.name}\n{text}")
    folded, _, report = _folded(made.net, "".join(parts))
    staying = re.findall(r'name: "(layer\d\d)"', folded.decode())
    for place in ("above", "inside"):
        assert re.findall(rf"# {place} (layer\d\d)", folded.decode()) == staying
    assert report.after.layers == len(staying) + 1
