"""The page as a file: where it goes, what is in it, and what cannot get out of a name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Call, Outcome
from support.nets import Net
from support.weights import read_weights

import caffe_fold
from caffe_fold import convert
from caffe_fold.page import picture, render, target

Patch = pytest.MonkeyPatch

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;<!--"


def small_net(conv: str = "conv") -> Net:
    net = Net("small")
    net.input("data", (1, 3, 6, 6))
    net.conv(conv, "data", 3, 4, top="conv")
    net.batch_norm("bn", "conv", 4)
    net.scale("scale", "conv", 4)
    net.relu("relu", "conv")
    net.scale("late", "conv", 4, top="late")
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return ["--model", str(folder / "net.prototxt"), "--weights", str(folder / "net.caffemodel")]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


INPUTS = {"net.prototxt", "net.caffemodel"}
OUTPUTS = {"net_inference.prototxt", "net_inference.caffemodel"}


class _Text(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: list[str] = []
        self.raw: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1][0] if self.tags else ""
        if tag in ("script", "style"):
            self.raw.append((tag, data))
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(path: Path) -> _Text:
    return _Text(path.read_text("utf-8"))


# ---- Where it goes ----


def test_inspect_writes_a_page_and_nothing_else(folder: Path, call: Call) -> None:
    done = call("inspect", *files(folder), "--html", folder / "page.html")
    assert (done.code, done.err) == (0, "")
    assert names(folder) == INPUTS | {"page.html"}
    page = read(folder / "page.html")
    assert "What folding does to net.prototxt" in page.text
    assert "takes bn + scale" in page.text
    assert "Ready for int8?" in page.text


def test_the_prototxt_alone_has_a_page(folder: Path, call: Call) -> None:
    assert call("inspect", *files(folder)[:2], "--html", folder / "page.html").code == 0
    text = read(folder / "page.html").text
    assert "As far as the prototxt tells" in text
    assert "This needs the weights" in text


def test_fold_writes_a_page_beside_the_pair(folder: Path, call: Call) -> None:
    done = call(*files(folder), "--html", folder / "page.html")
    assert done.code == 0
    assert names(folder) == INPUTS | OUTPUTS | {"page.html"}
    text = read(folder / "page.html").text
    assert str(folder / "net_inference.prototxt") in text
    assert "layers re-read and compared" in text


def test_a_dry_run_writes_the_page_alone(folder: Path, call: Call) -> None:
    assert call(*files(folder), "--dry-run", "--html", folder / "page.html").code == 0
    assert names(folder) == INPUTS | {"page.html"}
    assert "nothing: a dry run" in read(folder / "page.html").text


def test_verify_writes_a_page_with_its_table(folder: Path, call: Call) -> None:
    pytest.importorskip("cv2")
    call(*files(folder))
    pair = ["--folded-model", folder / "net_inference.prototxt"]
    pair += ["--folded-weights", folder / "net_inference.caffemodel"]
    done = call("verify", *files(folder), *map(str, pair), "--html", folder / "page.html")
    assert done.code == 0, done.err
    text = read(folder / "page.html").text
    assert "Pass : " in text
    assert "The folded net has other layers" not in text
    done = call(
        "verify", *files(folder), "--folded-model", files(folder)[1], "--folded-weights",
        files(folder)[3], "--html", folder / "page.html",
    )  # fmt: skip
    assert "The folded net has other layers" in read(folder / "page.html").text


def test_fold_with_verify_has_the_table_in_its_page(folder: Path, call: Call) -> None:
    pytest.importorskip("cv2")
    assert call(*files(folder), "--verify", "--html", folder / "page.html").code == 0
    assert "Stands for" in read(folder / "page.html").text


def test_a_page_replaces_an_older_one_and_has_the_mode_of_any_file(folder: Path) -> None:
    page = folder / "page.html"
    page.write_text("old")
    caffe_fold.inspect(folder / "net.prototxt", html=page)
    assert page.read_text("utf-8") != "old"
    other = folder / "other"
    other.touch()
    assert stat.S_IMODE(page.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


@pytest.mark.parametrize("command", [["inspect"], ["fold"], ["fold", "--dry-run"]], ids=" ".join)
@pytest.mark.parametrize(
    ("place", "says"),
    [
        (".", "is a folder"),
        ("no/page.html", "there is no folder"),
        ("x" * 300, "cannot be written: File name too long"),
        ("net.prototxt", "is another file of this run"),
        ("net.caffemodel", "is another file of this run"),
    ],
)
def test_a_bad_place_is_found_before_anything_is_done(
    command: list[str], place: str, says: str, folder: Path, call: Call, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(convert, "Planner", None)
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    done = call(*command, *files(folder), "--html", folder / place)
    assert_refused(done, says)
    assert {path: path.read_bytes() for path in folder.iterdir()} == contents


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_an_output_is_no_place_for_the_page(output: str, folder: Path, call: Call) -> None:
    assert_refused(call(*files(folder), "--html", folder / output), "another file of this run")
    assert names(folder) == INPUTS
    (folder / "link.html").symlink_to(folder / "net.prototxt")
    done = call("inspect", *files(folder)[:2], "--html", folder / "link.html")
    assert_refused(done, "another file of this run")


def assert_refused(done: Outcome, says: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert says in done.err


@pytest.mark.parametrize("command", ["inspect", "fold", "verify"])
def test_a_missing_library_is_found_before_anything_is_done(
    command: str, folder: Path, call: Call, monkeypatch: Patch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    more = ["--folded-model", files(folder)[1], "--folded-weights", files(folder)[3]]
    more = more if command == "verify" else []
    done = call(command, *files(folder), *more, "--html", folder / "page.html")
    assert_refused(done, "pip install 'caffe-fold[report]'")
    assert names(folder) == INPUTS


def test_a_fold_that_fails_leaves_no_page(folder: Path, call: Call, monkeypatch: Patch) -> None:
    def fails(*_: object) -> None:
        raise caffe_fold.CheckError("no")

    monkeypatch.setattr(convert, "check_values", fails)
    assert call(*files(folder), "--html", folder / "page.html").code == 1
    assert names(folder) == INPUTS


def test_a_page_that_cannot_be_written_keeps_the_pair_from_its_name(
    folder: Path, call: Call, monkeypatch: Patch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target, "open", full, raising=False)
    done = call(*files(folder), "--html", folder / "page.html")
    assert_refused(done, "page.html cannot be written: No space left on device")
    assert names(folder) == INPUTS


def test_an_interrupt_leaves_nothing(folder: Path, call: Call, monkeypatch: Patch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "rendered", interrupted)
    for command in ("inspect", "fold"):
        assert call(command, *files(folder), "--html", folder / "page.html").code == 130
        assert names(folder) == INPUTS


# ---- What is in it ----


def test_it_needs_no_other_file_and_allows_no_request(folder: Path) -> None:
    caffe_fold.inspect(folder / "net.prototxt", folder / "net.caffemodel", html=folder / "p.html")
    text = (folder / "p.html").read_text("utf-8")
    page = _Text(text)
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert "sourceMappingURL" not in text
    assert not re.search(
        r"@import|url\((?!#)", next(raw for tag, raw in page.raw if tag == "style")
    )
    assert "Permission is hereby granted" in page.text
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    blocks = re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL)
    assert [tag for tag, _ in blocks] == ["style", "script", "script", "script"]
    for _, block in blocks:
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def data_of(page: Path) -> Any:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8")
    )
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (HOSTILE, HOSTILE),
        ("{{ 7 * 7 }}", "{{ 7 * 7 }}"),
        ("it's {% if %} ü", "it's {% if %} ü"),
        ("line\u2028end", "line\\u2028end"),
        ("\u202etxet", "\\u202etxet"),
        ("x" * 10_000, "x" * 200 + "... (10000 characters)"),
    ],
    ids=range(6),
)
def test_names_of_anybody_are_text(name: str, text: str, tmp_path: Path) -> None:
    small_net(name).write(tmp_path)
    page = tmp_path / "page.html"
    caffe_fold.inspect(tmp_path / "net.prototxt", html=page)
    assert data_of(page)["layers"][1]["name"] == text
    parsed = read(page)
    assert text in parsed.text
    assert not [tag for tag, _ in parsed.tags if tag == "img"]
    assert not {"\u2028", "\u202e"}.intersection(page.read_text("utf-8"))


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    model, _ = small_net("ODD").write(tmp_path)
    model.write_bytes(model.read_bytes().replace(b"ODD", b"caf\\351"))
    caffe_fold.inspect(model, html=tmp_path / "page.html")
    assert data_of(tmp_path / "page.html")["layers"][1]["name"] == "caf\\xe9"


def test_the_layers_that_int8_hurts_come_with_their_reason(tmp_path: Path) -> None:
    net = small_net()
    net.layers[3].blobs[0][:] = [1, 1e-3, 1, 30]
    net.write(tmp_path)
    page = tmp_path / "page.html"
    caffe_fold.inspect(tmp_path / "net.prototxt", tmp_path / "net.caffemodel", html=page)
    parsed = read(page)
    assert "Hurt most, worst first" in parsed.text
    assert "by its gain of" in parsed.text
    curves = [a["class"] for tag, a in parsed.tags if tag == "path" and "class" in a]
    assert curves.count("curve before") == curves.count("curve after") == 2


def test_a_refusal_is_on_the_page(folder: Path) -> None:
    caffe_fold.inspect(folder / "net.prototxt", html=folder / "page.html")
    assert "What stays, and why" in read(folder / "page.html").text
    late = data_of(folder / "page.html")["layers"][5]
    assert late["kind"] == "stays"
    assert "which is not linear" in late["says"]


# ---- The picture ----


def pictures(net: Net, folder: Path) -> dict[str, Any]:
    page = folder / "page.html"
    caffe_fold.inspect(net.write(folder)[0], html=page)
    data: dict[str, Any] = data_of(page)
    for which in ("before", "after"):
        shown = [at for box in data[which]["boxes"] for at in box]
        assert all(box for box in data[which]["boxes"])
        assert all(a != b for a, b in data[which]["arrows"])
        layers = [at for at in shown if at < len(data["layers"])]
        there = [
            at
            for at, layer in enumerate(data["layers"])
            if which == "before" or layer["kind"] not in ("folds", "merges", "removed")
        ]
        assert sorted(set(layers)) == there
    return data


def boxes(data: dict[str, Any], which: str) -> list[list[str]]:
    layers = data["layers"]
    return [
        [layers[at]["name"] if at < len(layers) else "input" for at in box]
        for box in data[which]["boxes"]
    ]


def test_a_residual_block(tmp_path: Path) -> None:
    net = Net("residual")
    net.input("data", (1, 4, 6, 6), net_level="input_dim")
    net.conv("first", "data", 4, 4, pad=1)
    for layer in ("a", "b"):
        net.conv(layer, "first" if layer == "a" else "a", 4, 4, pad=1, top=layer)
        net.batch_norm(f"{layer}/bn", layer, 4)
        net.scale(f"{layer}/scale", layer, 4)
        net.relu(f"{layer}/relu", layer)
    net.layer("sum", "Eltwise", ["first", "b"], "sum")
    net.relu("sum/relu", "sum")
    data = pictures(net, tmp_path)
    assert boxes(data, "before") == [
        ["input"],
        ["first"],
        ["a", "a/bn", "a/scale", "a/relu"],
        ["b", "b/bn", "b/scale", "b/relu"],
        ["sum", "sum/relu"],
    ]
    assert data["before"]["arrows"] == [[0, 1], [1, 2], [2, 3], [1, 4], [3, 4]]
    assert data["before"]["chains"] == [[2, 3]]
    assert boxes(data, "after")[2:4] == [["a", "a/relu"], ["b", "b/relu"]]


def test_what_is_made_ready_for_a_convolution_stands_with_it(tmp_path: Path) -> None:
    net = Net("dense")
    net.input("data", (1, 4, 6, 6))
    net.layer("pool", "Pooling", "data", "pool", "pooling_param { kernel_size: 2 }")
    net.batch_norm("bn", "pool", 4, top="bn")
    net.scale("scale", "bn", 4)
    net.relu("relu", "bn")
    net.conv("conv", "bn", 4, 4)
    net.layer("cat", "Concat", ["pool", "conv"], "cat")
    data = pictures(net, tmp_path)
    assert boxes(data, "before") == [["data"], ["pool"], ["bn", "scale", "relu", "conv"], ["cat"]]


def test_an_input_that_is_read_far_below_is_drawn_again(tmp_path: Path) -> None:
    net = Net("far")
    net.input("data", (1, 4, 6, 6))
    bottom = "data"
    for index in range(picture._FAR + 2):
        net.layer(f"pool{index}", "Pooling", bottom, f"p{index}", "pooling_param { }")
        bottom = f"p{index}"
    net.layer("prior", "PriorBox", [bottom, "data"], "prior")
    data = pictures(net, tmp_path)
    assert boxes(data, "before").count(["data"]) == 2
    last = len(data["before"]["boxes"]) - 1
    assert [arrow for arrow in data["before"]["arrows"] if arrow[1] == last] == [
        [last - 2, last],
        [last - 1, last],
    ]


# ---- Equalised ----


def chain() -> Net:
    """A fold whose layer is equalised with the next, and one channel that int8 hurts."""
    net = Net("chain")
    net.input("data", (1, 3, 12, 12))
    net.conv("one", "data", 3, 4)
    net.batch_norm("bn", "one", 4).blobs[1][:] = 1
    net.scale("scale", "one", 4).blobs[0][:] = [1, 1e-3, 1, 1]
    net.relu("relu", "one")
    net.conv("two", "one", 4, 4)
    net.relu("relu2", "two")
    net.conv("three", "two", 4, 2)
    return net


@pytest.mark.parametrize("kind", ["binary", "hdf5"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_int8_is_told_of_the_equalised_weights(kind: str, dry_run: bool, tmp_path: Path) -> None:
    model, weights = chain().write(tmp_path)
    if kind == "hdf5":
        weights = hdf5_of(weights)
    page = tmp_path / "page.html"
    caffe_fold.fold(model, weights, dry_run=dry_run, html=page)
    plain = read(page)
    assert "1 of 1 layers int8 hurts" in plain.text
    assert "or equalising, helps" in plain.text
    report = caffe_fold.fold(model, weights, equalize=True, dry_run=dry_run, html=page)
    assert report.equalized is not None
    parsed = read(page)
    assert [pair[:2] for pair in report.equalized.pairs] == [("one", "two"), ("two", "three")]
    assert "0 of 3 layers int8 hurts, once equalised" in parsed.text
    assert "equalising, helps" not in parsed.text
    assert ("as they were written" in parsed.text) != dry_run
    curves = [a["class"] for tag, a in parsed.tags if tag == "path" and "class" in a]
    assert curves.count("curve equalized") == curves.count("curve after") == 3
    assert "Blobs of another scale: " + ", ".join(report.equalized.blobs) in parsed.text
    assert all(left.reason in parsed.text for left in report.equalized.left)
    for pair in report.equalized.pairs:
        assert f"{pair.first} {pair.second} {pair.smallest:.3g} to" in parsed.text
    if not dry_run and kind == "binary":
        states = data_of(page)["layers"][1]["facts"][-1]
        assert states[0] == "int8 SQNR"
        assert states[1].endswith(f" → {sqnr(tmp_path / 'net_inference.caffemodel', 'one')} dB")


def hdf5_of(weights: Path) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    target = weights.with_suffix(".caffemodel.h5")
    with h5py.File(target, "w") as file:
        for entry in read_weights(weights.read_bytes()):
            for index, blob in enumerate(entry.blobs):
                values = np.asarray(blob.values, np.float32).reshape(blob.shape)
                file[f"data/{entry.name}/{index}"] = values
    return target


def sqnr(weights: Path, layer: str) -> str:
    (found,) = [entry for entry in read_weights(weights.read_bytes()) if entry.name == layer]
    rows = np.asarray(found.blobs[0].values, np.float64).reshape(found.blobs[0].shape[0], -1)
    step = np.abs(rows).max() / 127
    errors = rows - np.rint(rows / step) * step
    return f"{-10 * np.log10(((errors**2).sum(axis=1) / (rows**2).sum(axis=1)).mean()):.1f}"


def test_equalised_layers_are_on_the_page_where_nothing_folds(tmp_path: Path) -> None:
    net = chain()
    del net.layers[2:4]
    net.layers[1].blobs[0][1] *= 1e-3
    page = tmp_path / "page.html"
    caffe_fold.fold(*net.write(tmp_path), equalize=True, html=page)
    text = read(page).text
    assert "layers int8 hurts, once equalised" in text
    assert "changes a layer's weights" not in text


def test_a_page_on_which_equalising_found_nothing(folder: Path) -> None:
    page = folder / "page.html"
    net = folder / "net.prototxt", folder / "net.caffemodel"
    caffe_fold.fold(*net, equalize=True, html=page)
    text = read(page).text
    assert "No pair of layers was equalised" in text
    assert "once equalised" not in text
