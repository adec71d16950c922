"""What a folder gives: pairs, and what is skipped, in sentences; and outputs that stay inside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import batching
import pytest
from batching import files, folded, training, write_manifest, write_pairs
from support.command import Call

from caffe_fold.batch import ledger
from caffe_fold.batch.folders import Pair, Skipped, pairs_in
from caffe_fold.errors import InputError


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    batching.fold_in_threads(monkeypatch)


POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


def found(folder: Path, output: str = "/nowhere") -> tuple[dict[str, str], dict[str, str]]:
    """The pairs of a folder and what is skipped, by their weights' names below it."""
    items = list(pairs_in(str(folder), output))

    def name(path: str) -> str:
        return Path(path).relative_to(folder).as_posix()

    pairs = {name(i.weights): name(i.model) for i in items if isinstance(i, Pair)}
    return pairs, {name(i.path): i.reason for i in items if isinstance(i, Skipped)}


# ---- Folders ----


def test_every_folder_is_searched_and_told_apart(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", 1)
    write_pairs(tmp_path / "a/b c", 1)
    pairs, skipped = found(tmp_path)
    assert pairs == {
        "a/net0.caffemodel": "a/net0.prototxt",
        "a/b c/net0.caffemodel": "a/b c/net0.prototxt",
    }
    assert skipped == {}
    places = [item.place for item in pairs_in(str(tmp_path), "") if isinstance(item, Pair)]
    assert places == ["a", "a/b c"]


def test_a_training_as_it_lies_on_the_disk(tmp_path: Path) -> None:
    model, weights = batching.tiny().write(tmp_path)
    model.rename(tmp_path / "deploy.prototxt")
    for number in (1000, 2000):
        (tmp_path / f"net_iter_{number}.caffemodel").write_bytes(weights.read_bytes())
        (tmp_path / f"net_iter_{number}.solverstate").write_bytes(b"\x08\x01")
    weights.unlink()
    (tmp_path / "train.prototxt").write_text(training().prototxt())
    (tmp_path / "solver.prototxt").write_text('net: "train.prototxt"\nbase_lr: 0.1\n')
    (tmp_path / "labelmap.prototxt").write_text('item { name: "cat" label: 1 }\n')
    pairs, skipped = found(tmp_path)
    assert pairs == {
        "net_iter_1000.caffemodel": "deploy.prototxt",
        "net_iter_2000.caffemodel": "deploy.prototxt",
    }
    assert skipped == {}


def test_hidden_files_and_folders_are_no_sources(tmp_path: Path) -> None:
    write_pairs(tmp_path / ".ipynb_checkpoints", 1)
    write_pairs(tmp_path, 1)
    (tmp_path / "._net0.caffemodel").write_bytes(b"a Mac's")
    assert found(tmp_path) == ({"net0.caffemodel": "net0.prototxt"}, {})


def test_folded_nets_are_no_sources(tmp_path: Path) -> None:
    write_pairs(tmp_path, 1)
    batching.tiny().write(tmp_path, "net0_inference")
    assert found(tmp_path) == ({"net0.caffemodel": "net0.prototxt"}, {})
    batching.tiny().write(tmp_path, "segnet_inference")
    pairs, skipped = found(tmp_path)
    assert set(pairs) == {"net0.caffemodel"}
    assert "as that of a folded net" in skipped["segnet_inference.caffemodel"]


@pytest.mark.parametrize("weights", ["segnet", "segnet_iter_10", "pascal"])
def test_a_deploy_net_may_have_the_name_of_a_folded_one(weights: str, tmp_path: Path) -> None:
    model, values = batching.tiny().write(tmp_path)
    model.rename(tmp_path / "segnet_inference.prototxt")
    values.rename(tmp_path / f"{weights}.caffemodel")
    (tmp_path / "segnet_train.prototxt").write_text(training().prototxt())
    expected = {f"{weights}.caffemodel": "segnet_inference.prototxt"}
    assert found(tmp_path) == (expected, {})


def test_a_folded_net_without_its_source_gets_no_other_weights(tmp_path: Path) -> None:
    batching.tiny().write(tmp_path, "a_inference")
    batching.tiny().write(tmp_path, "b_inference")[1].rename(tmp_path / "c_inference.caffemodel")
    batching.tiny().write(tmp_path, "other")[0].unlink()
    pairs, skipped = found(tmp_path)
    assert pairs == {}
    assert "and other weights are there" in skipped["other.caffemodel"]


def test_the_output_folder_is_no_source(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 1)
    write_pairs(tmp_path / "out/odd", 1)
    pairs, skipped = found(tmp_path, str(tmp_path / "out"))
    assert (set(pairs), skipped) == ({"net0.caffemodel"}, {})


def test_what_another_ledger_has_as_its_outputs_is_no_source(tmp_path: Path) -> None:
    write_pairs(tmp_path / "zoo", 1)
    batching.tiny().write(tmp_path / "zoo", "named")
    entry = batching.entry("named.caffemodel", "named.prototxt")
    (tmp_path / "zoo" / batching.LEDGER).write_text(json.dumps(entry) + "\n")
    assert set(found(tmp_path)[0]) == {"zoo/net0.caffemodel"}


@POSIX
def test_odd_files_are_told(tmp_path: Path) -> None:
    write_pairs(tmp_path / "real", 1)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.caffemodel").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.prototxt")
    (tmp_path / "folder.caffemodel").mkdir()
    pairs, skipped = found(tmp_path)
    assert set(pairs) == {"real/net0.caffemodel"}
    assert skipped == {
        "loop": "it is a link to a folder; name its target as a source",
        "gone.caffemodel": "it is a link that leads to nothing",
        "pipe.prototxt": "it is no regular file",
    }


@POSIX
def test_links_to_files_are_files(tmp_path: Path) -> None:
    write_pairs(tmp_path / "store", 1)
    (tmp_path / "zoo").mkdir()
    for end in ("prototxt", "caffemodel"):
        (tmp_path / f"zoo/a.{end}").symlink_to(tmp_path / f"store/net0.{end}")
    assert found(tmp_path / "zoo") == ({"a.caffemodel": "a.prototxt"}, {})


def test_real_nets_are_found(tmp_path: Path) -> None:
    models = Path(__file__).resolve().parents[2] / "shared" / "models"
    if not models.is_dir():
        pytest.skip(f"no real nets at {models}")
    pairs, skipped = found(models)
    assert skipped == {}
    assert {Path(weights).parent for weights in pairs} == {
        path.parent.relative_to(models) for path in models.rglob("*.caffemodel")
    }
    lite = "yolov3_lite_tusimple/mobilenet_yolov3_lite_deploy"
    assert pairs[f"{lite}_iter_50000.caffemodel"] == f"{lite}.prototxt"


def test_what_is_ambiguous_is_listed_and_the_rest_is_folded(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path / "zoo/a", 1)
    write_pairs(tmp_path / "zoo/b", 1)
    (tmp_path / "zoo/b/net0.caffemodel").rename(tmp_path / "zoo/b/other.caffemodel")
    batching.tiny().write(tmp_path / "zoo/b", "third")[1].unlink()
    report = tmp_path / "report.jsonl"
    done = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out", "--report", report)
    assert done.code == 0
    assert files(tmp_path / "out") == {f"a/{name}" for name in folded("net0")}
    expected = "its name fits none of 'net0.prototxt' and 'third.prototxt'"
    assert f"other.caffemodel: {expected}; name the pair in a manifest" in done.err
    assert [line["status"] for line in batching.lines(report)] == ["skipped", "done"]


def test_strict_is_no_success_where_nothing_is_folded(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path / "zoo", 1)
    (tmp_path / "zoo/net0.caffemodel").rename(tmp_path / "zoo/other.caffemodel")
    batching.tiny().write(tmp_path / "zoo", "third")[1].unlink()
    command = ["batch", str(tmp_path / "zoo"), "--output-dir", str(tmp_path / "out")]
    assert call(*command).code == 0
    done = call(*command, "--strict")
    assert done.code == 1
    assert done.err.endswith("error: --strict: nothing was folded; 1 file skipped\n")


def test_rows_for_one_file_are_told_by_their_lines(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 1)
    row = json.dumps({"model": "net0.prototxt", "weights": "net0.caffemodel"})
    manifest = write_manifest(tmp_path, f"{row}\n\n{row}", "m.jsonl")
    done = call("batch", manifest, "--output-dir", tmp_path / "out")
    assert done.code == 2
    for line in (1, 3):
        assert f"net0.caffemodel (of {manifest}:{line})" in done.err


def test_options_of_verify_are_for_a_row_that_asks_for_it(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 1)
    row = {"model": "net0.prototxt", "weights": "net0.caffemodel"}
    command = ["--output-dir", str(tmp_path / "out"), "--verify-tolerance", "0.5", "--dry-run"]
    manifest = write_manifest(tmp_path, json.dumps({**row, "verify": True}), "m.jsonl")
    done = call("batch", manifest, *command)
    assert done.code == 0, done.err
    manifest = write_manifest(tmp_path, json.dumps(row), "m.jsonl")
    done = call("batch", manifest, *command)
    assert (done.code, "--verify-tolerance needs --verify" in done.err) == (2, True)


# ---- Names ----


@POSIX
def test_names_of_all_kinds(tmp_path: Path, call: Call) -> None:
    names = ["a b", "new\nline", "-dash", "ü", "[bold]", os.fsdecode(b"\xff")]
    (tmp_path / "zoo").mkdir()
    try:
        for name in names:
            batching.tiny().write(tmp_path / "zoo", name)
    except OSError as error:
        pytest.skip(f"this file system does not take every name: {error}")
    report = tmp_path / "report.jsonl"
    done = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out", "--report", report)
    assert done.code == 0, done.err
    assert files(tmp_path / "out") == folded(*names)
    assert len(done.out.splitlines()) == len(batching.lines(report)) + 1 == len(names) + 1
    again = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out")
    assert f"{len(names)} unchanged" in again.out


# ---- Outputs stay inside, and are different files ----


@pytest.mark.parametrize(
    "name",
    ["../x.caffemodel", "a/../../x", "/tmp/x", "a/", ".", "C:\\x", "s3://b/x", "a/..", "//x"],
)
def test_an_output_outside_is_refused(name: str, tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 1)
    row = {"model": "net0.prototxt", "weights": "net0.caffemodel", "output_weights": name}
    manifest = write_manifest(tmp_path, json.dumps(row), "m.jsonl")
    done = call("batch", manifest, "--output-dir", tmp_path / "out")
    assert done.code == 2
    assert f"{manifest}:1: the output '" in done.err
    assert "is not below the output folder" in done.err
    assert not (tmp_path / "out").exists()


@POSIX
def test_a_link_out_of_the_output_folder_is_not_followed(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path / "zoo/sub", 1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    done = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out")
    assert done.code == 2
    assert "is outside of the output folder, since a link leads to" in done.err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_two_pairs_for_one_file_are_refused_before_anything_is_written(
    tmp_path: Path, call: Call
) -> None:
    write_pairs(tmp_path / "a", 2)
    write_pairs(tmp_path / "b", 1)
    out = tmp_path / "out"
    done = call("batch", tmp_path / "a", tmp_path / "b", "--output-dir", out)
    assert done.code == 2
    for part in ("would be written by two", str(tmp_path / "a/net0.caffemodel"), "manifest"):
        assert part in done.err
    assert not out.exists()


def test_an_output_that_is_an_input_is_refused(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 2)
    row = {"model": "net0.prototxt", "weights": "net0.caffemodel", "output_model": "net0.prototxt"}
    manifest = write_manifest(tmp_path, json.dumps(row), "m.jsonl")
    before = (tmp_path / "net0.prototxt").read_bytes()
    done = call("batch", manifest, "--output-dir", tmp_path)
    assert done.code == 2
    assert "inputs are never changed" in done.err
    assert (tmp_path / "net0.prototxt").read_bytes() == before


@POSIX
@pytest.mark.parametrize("scheme", ["file", "local", "FILE"])
def test_a_url_of_a_local_file_is_the_file(scheme: str, tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 2)
    url = f"{scheme}://{tmp_path}"
    row = {"model": f"{url}/net0.prototxt", "weights": "net0.caffemodel"}
    manifest = write_manifest(
        tmp_path, json.dumps({**row, "output_model": "net1.prototxt"}), "m.jsonl"
    )
    held = (tmp_path / "net0.prototxt").read_bytes()
    taken = {**row, "output_model": "net0.prototxt"}
    write_manifest(tmp_path, json.dumps(taken), "n.jsonl")
    done = call("batch", f"{url}/n.jsonl", "--output-dir", url)
    assert (done.code, "inputs are never changed" in done.err) == (2, True)
    assert (tmp_path / "net0.prototxt").read_bytes() == held
    (tmp_path / "net1.prototxt").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    write_manifest(tmp_path, json.dumps({**row, "output_model": "sub/a.prototxt"}), "k.jsonl")
    done = call("batch", tmp_path / "k.jsonl", "--output-dir", f"{url}/out")
    assert (done.code, "since a link leads to" in done.err) == (2, True)
    with ledger.locked(str(tmp_path / "out")):
        done = call("batch", manifest, "--output-dir", f"{url}/out")
    assert (done.code, "is being written by another run" in done.err) == (2, True)
    assert call("batch", manifest, "--output-dir", f"{url}/out").code == 0
    assert files(tmp_path / "out") == {"net1.prototxt", "net1.caffemodel"}


def test_a_url_of_a_local_file_has_an_absolute_path(tmp_path: Path, call: Call) -> None:
    done = call("batch", "file://zoo", "--output-dir", tmp_path / "out")
    assert (done.code, "file://zoo has no absolute path" in done.err) == (2, True)


@pytest.mark.parametrize("name", ["m.jsonl", "input.npy", "other.prototxt", "zoo/b.caffemodel"])
def test_no_output_and_no_report_replaces_what_the_batch_reads(
    name: str, tmp_path: Path, call: Call
) -> None:
    """Of the folder zoo, ``b`` is skipped and ``other.prototxt`` is of no pair."""
    zoo = tmp_path / "zoo"
    write_pairs(zoo, 1)
    batching.tiny().write(zoo, "c")[1].rename(zoo / "b.caffemodel")
    batching.tiny().write(zoo, "d")[1].rename(zoo / "a.caffemodel")
    (tmp_path / "input.npy").write_bytes(b"some input")
    name = name.replace("other", "zoo/d")
    row = {"model": "zoo/net0.prototxt", "weights": "zoo/net0.caffemodel", "verify": True}
    row |= {"verify-input": "input.npy", "output_weights": name, "output_model": "new.prototxt"}
    manifest = write_manifest(tmp_path, json.dumps(row), "m.jsonl")
    before = (tmp_path / name).read_bytes()
    done = call("batch", manifest, zoo, "--output-dir", tmp_path)
    assert (done.code, "inputs are never changed" in done.err) == (2, True)
    linked = tmp_path / "linked"
    os.link(tmp_path / name, linked)
    for report in (tmp_path / name, linked):
        row["output_weights"] = "new.caffemodel"
        if name != "m.jsonl":
            write_manifest(tmp_path, json.dumps(row), "m.jsonl")
        out = tmp_path / "out"
        done = call("batch", manifest, zoo, "--output-dir", out, "--report", report)
        assert (done.code, "give another --report" in done.err) == (2, True), done.err
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", ["m.jsonl", "net0.prototxt", "out/net0_inference.prototxt"])
def test_a_report_that_is_a_file_of_the_batch_is_refused(
    name: str, tmp_path: Path, call: Call
) -> None:
    write_pairs(tmp_path, 1)
    row = {"model": "net0.prototxt", "weights": "net0.caffemodel"}
    manifest = write_manifest(tmp_path, json.dumps(row), "m.jsonl")
    report = tmp_path / name
    done = call("batch", manifest, "--output-dir", tmp_path / "out", "--report", report)
    assert done.code == 2
    assert "give another --report" in done.err
    assert json.loads(manifest.read_text()) == row


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "is not there"),
        ("empty", "there is no caffemodel in it"),
        ("net0.prototxt", "is no folder and no manifest"),
    ],
)
def test_a_source_that_is_none(name: str, message: str, tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    done = call("batch", tmp_path / name, "--output-dir", tmp_path / "out")
    assert done.code == 2
    assert f"{tmp_path / name}" in done.err
    assert message in done.err


@pytest.mark.parametrize("paths", [("", "out"), ("zoo", "")])
def test_an_empty_path_is_not_the_folder_one_is_in(
    paths: tuple[str, str], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "zoo", 1)
    monkeypatch.chdir(tmp_path)
    done = call("batch", paths[0], "--output-dir", paths[1])
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: an empty path is given")
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


def test_a_bad_option_is_refused_as_by_fold(tmp_path: Path, call: Call) -> None:
    write_pairs(tmp_path, 1)
    done = call("batch", tmp_path, "--output-dir", tmp_path / "o", "--verify-tolerance", "1")
    assert (done.code, "--verify-tolerance needs --verify" in done.err) == (2, True)


def test_pairs_raise_where_the_folder_cannot_be_read(tmp_path: Path) -> None:
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / "shut").mkdir(mode=0)
    with pytest.raises(InputError, match="cannot be read"):
        list(pairs_in(str(tmp_path / "shut"), ""))
