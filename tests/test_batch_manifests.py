"""What a manifest gives: its pairs, outputs and options, and one line where it is bad."""

from __future__ import annotations

import json
import os
from pathlib import Path

import batching
import pytest
from batching import files, folded, write_manifest, write_pairs
from support.command import Call


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    batching.fold_in_threads(monkeypatch)


POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_names_pairs_outputs_and_options(kind: str, tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path / "in", 3)
    rows = [{"model": f"in/net{i}.prototxt", "weights": f"in/net{i}.caffemodel"} for i in range(3)]
    rows[1] |= {"output_weights": "x/one.caffemodel", "keep": "conv"}
    rows[2] |= {"output-model": "two.txt", "output-weights": "two.bin", "no_check": "true"}
    head = ["model", "weights", "output_model", "output_weights", "keep", "no-check"]
    if kind == "csv":
        cells = [
            [row.get(name, row.get(name.replace("_", "-"), "")) for name in head[:-1]]
            + [row.get("no_check", "")]
            for row in rows
        ]
        text = "\ufeff" + "\r\n".join(",".join(line) for line in [head, *cells])
    else:
        text = "\n\n".join(map(json.dumps, rows))
    manifest = write_manifest(tmp_path, text, f"pairs.{kind}")
    report = tmp_path / "report.jsonl"
    done = call("batch", manifest, "--output-dir", tmp_path / "out", "--report", report)
    assert done.code == 0, done.err
    own = {"x/one.caffemodel", "x/one.prototxt", "two.txt", "two.bin"}
    assert files(tmp_path / "out") == {f"in/{name}" for name in folded("net0")} | own
    reports = {line["output"]: line["report"] for line in batching.lines(report)}
    first, kept, unchecked = (
        reports[n] for n in ("in/net0_inference.caffemodel", "x/one.caffemodel", "two.bin")
    )
    assert (len(first["folded"]), len(kept["folded"])) == (1, 0)
    assert first["checked"] is not None
    assert unchecked["checked"] is None


def test_a_manifest_that_is_no_file(tmp_path: Path, call: Call) -> None:
    pipe, folder = tmp_path / "pipe.csv", tmp_path / "folder.csv"
    os.mkfifo(pipe)
    folder.mkdir()
    done = call("batch", pipe, "--output-dir", tmp_path / "out")
    assert (done.code, done.err) == (2, f"error: {pipe} is a pipe or device; expected a file\n")
    done = call("batch", folder, "--output-dir", tmp_path / "out")
    assert (done.code, done.err) == (2, f"error: {folder}: there is no caffemodel in it\n")


def test_a_manifest_without_end_is_not_read_whole(tmp_path: Path, call: Call) -> None:
    with open(tmp_path / "m.csv", "wb") as file:
        file.truncate(1 << 40)
    done = call("batch", tmp_path / "m.csv", "--output-dir", tmp_path / "out")
    assert done.code == 2
    assert done.err.endswith("m.csv has over 256 MiB, which no manifest has\n")


def test_a_manifest_without_rows(tmp_path: Path, call: Call) -> None:
    manifest = write_manifest(tmp_path, "model,weights\n")
    done = call("batch", manifest, "--output-dir", tmp_path / "out")
    assert (done.code, done.err) == (2, f"error: {manifest}: it has no rows\n")


def test_blanks_around_cells_are_none_of_theirs(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 1)
    manifest = write_manifest(tmp_path, "model, weights\nnet0.prototxt, net0.caffemodel \n")
    assert call("batch", manifest, "--output-dir", tmp_path / "out").code == 0
    assert files(tmp_path / "out") == folded("net0")


def test_a_row_goes_before_the_command(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 2)
    rows = [
        {"model": "net0.prototxt", "weights": "net0.caffemodel", "keep": []},
        {"model": "net1.prototxt", "weights": "net1.caffemodel", "no-check": False},
    ]
    manifest = write_manifest(tmp_path, "\n".join(map(json.dumps, rows)), "m.jsonl")
    report = tmp_path / "report.jsonl"
    arguments = ("--keep", "nothing", "--no-check", "--report", report)
    done = call("batch", manifest, "--output-dir", tmp_path / "out", *arguments)
    assert done.code == 1
    by_status = {line["status"]: line for line in batching.lines(report)}
    assert by_status["done"]["output"] == "net0_inference.caffemodel"
    assert by_status["done"]["report"]["checked"] is None
    assert "no blob is named 'nothing'" in by_status["failed"]["error"]


PAIR = "net.prototxt,net.caffemodel"

BAD = {
    "unknown column": ("model,weights,kep\n", ":1: unknown column 'kep'; the closest is 'keep'"),
    "a column twice": ("model,weights,bn-layout,bn_layout\n", ":1: the column 'bn-layout' is"),
    "no weights": ("model\nnet.prototxt\n", ":2: column 'weights': it is missing"),
    "a cell too few": (
        "model,weights\n\nnet.prototxt\n",
        ":3: expected as many cells as the head has, 2; found 1",
    ),
    "not a choice": (
        f"model,weights,bn-layout\n{PAIR},caffe\n",
        ":2: column 'bn-layout': 'caffe' is not one of",
    ),
    "not a number": (f"model,weights,level\n{PAIR},x\n", ":2: column 'level': 'x' is not a valid"),
    "not a shape": (
        f"model,weights,input-shape\n{PAIR},3\n",
        ":2: column 'input-shape': '3': expected BLOB=N,C,H,W",
    ),
    "not a truth": (f"model,weights,deploy\n{PAIR},maybe\n", ":2: column 'deploy': 'maybe' is not"),
    "no verify": (
        f"model,weights,verify-tolerance\n{PAIR},1\n",
        ":2: 'verify-tolerance' needs 'verify'",
    ),
    "an open quote": ('model,weights\n"net', ":2: unexpected end of data"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_manifest_is_one_line(text: str, message: str, tmp_path: Path, call: Call) -> None:
    manifest = write_manifest(tmp_path, text)
    done = call("batch", manifest, "--output-dir", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {manifest}{message}")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


BAD_JSON = {
    "no JSON": ('{"model": }', ":1:11: Expecting value; expected a JSON object"),
    "no object": ("[1]", ":1: expected a JSON object a line"),
    "a key twice": ('{"model": "a", "model": "b"}', ":1: 'model' is there twice"),
    "unknown key": ('{"weight": "a"}', ":1: unknown column 'weight'; the closest is 'weights'"),
    "no path": ('{"model": 3, "weights": "a"}', ":1: column 'model': expected a path"),
    "no value": (
        '{"model": "a", "weights": "b", "keep": {}}',
        ":1: column 'keep': expected text or a number, or a list of them",
    ),
    "too many": ('{"model": "a", "weights": "b", "level": [1, 2]}', ":1: column 'level': expected"),
    "a list for a truth": (
        '{"model": "a", "weights": "b", "verify": [true]}',
        ":1: column 'verify': ",
    ),
    "a number for a truth": ('{"model": "a", "weights": "b", "verify": 2}', ":1: column 'verify':"),
    "half a truth": (
        '{"model": "a", "weights": "b", "no-check": 0.5}',
        ":1: column 'no-check': expected true or false",
    ),
    "no number": (
        '{"model": "a", "weights": "b", "verify": true, "verify-tolerance": NaN}',
        ":1: column 'verify-tolerance': expected a finite number",
    ),
    "text that is none": (
        '{"model": "a", "weights": "b", "keep": "\\ud800"}',
        ":1: column 'keep': ",
    ),
    "no file name": (
        '{"model": "a", "weights": "b", "output_weights": "\\ud800.caffemodel"}',
        ":1: column 'output-weights': '\\ud800.caffemodel' cannot be a file's name",
    ),
    "no file name to read": (
        '{"model": "a\\udfff", "weights": "b"}',
        ":1: column 'model': 'a\\udfff' cannot be a file's name",
    ),
    "not UTF-8": ("\n\ud8ff", ":2: expected UTF-8"),
}


@pytest.mark.parametrize(("text", "message"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json_lines_are_one_line(text: str, message: str, tmp_path: Path, call: Call) -> None:
    manifest = tmp_path / "pairs.jsonl"
    manifest.write_bytes(text.encode("utf-8", "surrogatepass"))
    done = call("batch", manifest, "--output-dir", tmp_path / "out")
    assert done.code == 2
    assert done.err.startswith(f"error: {manifest}{message}")
    assert done.err.count("\n") == 1
