"""Batches from and to a store of objects: a real server on this machine, over S3's protocol."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batching
import pytest
from batching import lines, write_pairs
from support.command import HANGS, Call

import caffe_fold
from caffe_fold.batch import ledger, storage
from caffe_fold.batch.store_ledger import StoreLedger
from caffe_fold.errors import InputError, OutputError

# ---- Without a server ----


def test_a_url_is_no_path() -> None:
    assert [storage.is_url(a) for a in ("s3://b/x", "C:\\x", "a:/b", "x//y", "gs://b")] == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_the_name_behind_a_url() -> None:
    url = "https://host/a/net.caffemodel?token=a/b#c"
    assert storage.basename(url) == "net.caffemodel"
    assert storage.folder_of(url) == "https://host/a"


def test_an_object_may_have_any_name() -> None:
    url = "s3://zoo/a?b/net#1.caffemodel"
    assert storage.basename(url) == "net#1.caffemodel"
    assert storage.folder_of(url) == "s3://zoo/a?b"


def test_without_fsspec_one_line_says_what_to_install(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "fsspec":
            raise ImportError(f"No module named '{name}'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    done = call("batch", "s3://zoo/nets", "--output-dir", tmp_path / "out")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "pip install 'caffe-fold[remote]'" in done.err


# ---- With one ----

BUCKET = "s3://zoo"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="the remote extra is not installed")
    told = tmp_path_factory.mktemp("moto") / "log"
    with told.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + HANGS
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", told.read_text())):
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.1)
        yield found[0]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and the environment that leads to it."""
    import fsspec

    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir("zoo")
    yield system
    system.rm("zoo", recursive=True)


def put_pairs(store: Any, tmp_path: Path, count: int = 2) -> Path:
    """Pairs in the bucket's folder ``nets/a``; gives the folder here that they come from."""
    folder = tmp_path / "here"
    write_pairs(folder, count)
    for path in folder.iterdir():
        store.put_file(str(path), f"zoo/nets/a/{path.name}")
    return folder


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    batching.fold_in_threads(monkeypatch)


def folded_here(folder: Path, name: str) -> tuple[bytes, bytes]:
    """What a single fold of files here makes."""
    model, weights = folder / "single.prototxt", folder / "single.caffemodel"
    caffe_fold.fold(folder / f"{name}.prototxt", folder / f"{name}.caffemodel", model, weights)
    return model.read_bytes(), weights.read_bytes()


@pytest.mark.slow
def test_from_objects_to_objects_with_processes(store: Any, tmp_path: Path, call: Call) -> None:
    here = put_pairs(store, tmp_path)
    report = tmp_path / "report.jsonl"
    arguments = (f"{BUCKET}/nets", "--output-dir", f"{BUCKET}/out", "--report", report)
    done = call("batch", *arguments)
    assert done.code == 0, done.err
    assert "2 done, 0 unchanged" in done.out
    for name in ("net0", "net1"):
        made = f"zoo/out/a/{name}_inference"
        pair = (store.cat_file(f"{made}.prototxt"), store.cat_file(f"{made}.caffemodel"))
        assert pair == folded_here(here, name)
    names = {path[len("zoo/out/") :] for path in store.find("zoo/out")}
    assert names == {batching.LEDGER, *(f"a/{n}" for n in batching.folded("net0", "net1"))}
    reports = {line["output"]: line["report"] for line in lines(report)}
    first = reports["a/net0_inference.caffemodel"]
    assert first["model"] == f"{BUCKET}/nets/a/net0.prototxt"
    assert first["output_weights"] == f"{BUCKET}/out/a/net0_inference.caffemodel"
    assert "0 done, 2 unchanged" in call("batch", *arguments).out


def test_a_changed_object_is_done_again(
    store: Any, tmp_path: Path, call: Call, threads: None
) -> None:
    here = put_pairs(store, tmp_path)
    arguments = (f"{BUCKET}/nets", "--output-dir", f"{BUCKET}/nets")  # in one folder, too
    assert "2 done, 0 unchanged" in call("batch", *arguments).out
    batching.tiny(5).write(here, "net0")
    store.put_file(str(here / "net0.caffemodel"), "zoo/nets/a/net0.caffemodel")
    assert "1 done, 1 unchanged" in call("batch", *arguments).out
    store.rm_file("zoo/nets/a/net1_inference.prototxt")
    assert "1 done, 1 unchanged" in call("batch", *arguments).out
    assert "2 done, 0 unchanged" in call("batch", *arguments, "--checksum").out
    assert "0 done, 2 unchanged" in call("batch", *arguments, "--checksum").out


def test_a_manifest_in_a_store_with_outputs_here(
    store: Any, tmp_path: Path, call: Call, threads: None
) -> None:
    here = put_pairs(store, tmp_path)
    local = here / "net0.caffemodel"
    rows = [
        {"model": "a/net0.prototxt", "weights": "a/net0.caffemodel"},
        {"model": "x/../a/net1.prototxt", "weights": f"{BUCKET}/nets/a/net1.caffemodel"},
    ]
    store.pipe_file("zoo/nets/m.jsonl", "\n".join(map(json.dumps, rows)).encode())
    out = tmp_path / "out"
    done = call("batch", f"{BUCKET}/nets/m.jsonl", "--output-dir", out)
    assert done.code == 0, done.err
    expected = {f"a/{n}" for n in batching.folded("net0")} | batching.folded("net1")
    assert batching.files(out) == expected
    rows = [{"model": "a/net0.prototxt", "weights": str(local)}]
    store.pipe_file("zoo/nets/m.jsonl", json.dumps(rows[0]).encode())
    done = call("batch", f"{BUCKET}/nets/m.jsonl", "--output-dir", out)
    assert done.code == 2
    assert "column 'weights': a path of this machine in a manifest from elsewhere" in done.err


def test_a_bad_object_is_named_by_its_url(
    store: Any, tmp_path: Path, call: Call, threads: None
) -> None:
    here = put_pairs(store, tmp_path)
    store.pipe_file("zoo/nets/a/net0.prototxt", b"layer {")
    done = call("batch", f"{BUCKET}/nets", "--output-dir", f"{BUCKET}/out")
    assert done.code == 1
    assert f"failed  a/net0_inference.caffemodel: {BUCKET}/nets/a/net0.prototxt:1:" in done.err
    assert here.name not in done.err
    assert store.exists("zoo/out/a/net1_inference.prototxt")
    assert not store.exists("zoo/out/a/net0_inference.caffemodel")


def test_an_upload_that_fails_leaves_no_prototxt(
    store: Any, tmp_path: Path, call: Call, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_pairs(store, tmp_path, 1)
    arguments = (f"{BUCKET}/nets", "--output-dir", f"{BUCKET}/out")
    assert call("batch", *arguments).code == 0
    store.pipe_file("zoo/nets/a/net0.caffemodel", batching.tiny(4).caffemodel())
    real = storage.upload

    def upload(path: str, address: str) -> None:
        if address.endswith(".prototxt"):
            raise InputError("the line is cut")
        real(path, address)

    monkeypatch.setattr(storage, "upload", upload)
    assert call("batch", *arguments).code == 1
    assert not store.exists("zoo/out/a/net0_inference.prototxt")
    monkeypatch.setattr(storage, "upload", real)
    assert "1 done, 0 unchanged" in call("batch", *arguments).out


def test_hdf5_weights_come_out_as_hdf5(
    store: Any, tmp_path: Path, call: Call, threads: None
) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    net = batching.tiny()
    with h5py.File(tmp_path / "net.caffemodel.h5", "w") as file:
        for layer in net.layers:
            for index, blob in enumerate(layer.blobs):
                file[f"data/{layer.name}/{index}"] = blob.astype("<f4")
    store.pipe_file("zoo/nets/net.prototxt", net.prototxt().encode())
    store.put_file(str(tmp_path / "net.caffemodel.h5"), "zoo/nets/net.caffemodel.h5")
    done = call("batch", f"{BUCKET}/nets", "--output-dir", f"{BUCKET}/out")
    assert done.code == 0, done.err
    store.get_file("zoo/out/net_inference.caffemodel.h5", str(tmp_path / "folded.h5"))
    with h5py.File(tmp_path / "folded.h5") as file:
        assert sorted(file["data"]["conv"]) == ["0", "1"]


def test_a_report_of_verify_names_the_objects(
    store: Any, tmp_path: Path, call: Call, threads: None
) -> None:
    pytest.importorskip("cv2", reason="the verify extra is not installed")
    put_pairs(store, tmp_path, 1)
    report = tmp_path / "report.jsonl"
    arguments = (f"{BUCKET}/nets", "--output-dir", f"{BUCKET}/out", "--verify", "--report", report)
    for status in ("done", "unchanged"):
        assert call("batch", *arguments).code == 0
        (line,) = lines(report)
        assert line["status"] == status
        verified = line["report"]["verified"]
        assert verified["weights"] == f"{BUCKET}/nets/a/net0.caffemodel"
        assert verified["folded_model"] == f"{BUCKET}/out/a/net0_inference.prototxt"
        assert "caffe-fold-" not in json.dumps(line)


def test_a_bad_input_of_verify_is_named_by_its_url(
    store: Any, tmp_path: Path, call: Call, threads: None
) -> None:
    pytest.importorskip("cv2", reason="the verify extra is not installed")
    put_pairs(store, tmp_path, 1)
    image = f"{BUCKET}/image.jpg"
    store.pipe_file(image, b"not one")
    arguments = ("--output-dir", f"{BUCKET}/out", "--verify", "--verify-input", image)
    done = call("batch", f"{BUCKET}/nets", *arguments)
    assert done.code == 1
    assert f"failed  a/net0_inference.caffemodel: {image} is " in done.err


def test_what_another_ledger_has_as_its_outputs_is_no_source(
    store: Any, tmp_path: Path, call: Call, threads: None
) -> None:
    put_pairs(store, tmp_path, 1)
    row = {
        "model": "a/net0.prototxt",
        "weights": "a/net0.caffemodel",
        "output_weights": "best.caffemodel",
    }
    store.pipe_file("zoo/nets/m.jsonl", json.dumps(row).encode())
    assert call("batch", f"{BUCKET}/nets/m.jsonl", "--output-dir", f"{BUCKET}/nets/out").code == 0
    assert store.exists("zoo/nets/out/best.caffemodel")
    done = call("batch", f"{BUCKET}/nets", "--output-dir", f"{BUCKET}/other", "--dry-run")
    assert done.err == ""
    assert "1 to fold, 0 unchanged, 0 skipped" in done.out


def test_a_batch_ends_where_another_writes_the_ledger(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_fold.batch.store_ledger._SECONDS", 0)
    first, other = StoreLedger(f"{BUCKET}/out"), StoreLedger(f"{BUCKET}/out")
    first.done(batching.entry("a"))
    with pytest.raises(OutputError, match=r"was written by another run meanwhile; let one batch"):
        other.done(batching.entry("b"))
    first.done(batching.entry("c"))
    assert list(ledger.read(f"{BUCKET}/out")) == ["a", "c"]


def test_a_store_that_is_away_for_a_moment_ends_no_batch(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_fold.batch.store_ledger._SECONDS", 0)
    book = StoreLedger(f"{BUCKET}/out")

    real = storage.replace_text

    def replace_text(address: str, text: str) -> None:
        real(address, text)
        raise InputError("the answer is lost")

    with monkeypatch.context() as cut:
        cut.setattr(storage, "replace_text", replace_text)
        book.done(batching.entry("a"))
        with pytest.raises(InputError):
            book.close()
    book.close()
    assert list(ledger.read(f"{BUCKET}/out")) == ["a"]


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("s3://nothing", "out", "s3://nothing"),
        ("s3://zoo/empty", "out", "there is no caffemodel in it"),
        ("s3://zoo/m.csv", "out", "s3://zoo/m.csv cannot be read: it is not there"),
        ("here", "s3://nothing/out", "cannot be written: "),
        ("odd://x", "out", "odd://x cannot be opened: "),
    ],
)
def test_what_is_not_there_is_one_line(
    source: str,
    output: str,
    message: str,
    store: Any,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_pairs(tmp_path / "here", 1)
    monkeypatch.chdir(tmp_path)
    done = call("batch", source, "--output-dir", output)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
