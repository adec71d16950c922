"""What is done: a file of JSON lines in the output folder, which each run reads and extends.

A line is written before a fold starts and after it is done. A kill leaves at most one torn
line, the last, which is not read. The folder is locked while a run is on, so that two runs
do not write the same files. ``store_ledger`` has what is another way in a store of objects.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from caffe_fold.batch import storage
from caffe_fold.errors import CaffeFoldError, writing
from caffe_fold.writing import lock
from caffe_fold.writing.beside import clear
from caffe_fold.writing.lock import hidden

if TYPE_CHECKING:
    from caffe_fold.batch.tasks import Task

__all__ = [
    "LEDGER",
    "OWN_FILES",
    "Ledger",
    "entry_of",
    "input_addresses",
    "inputs_of",
    "is_done",
    "is_inside",
    "line_of",
    "locked",
    "outputs_of",
    "read",
    "replaced",
]

LEDGER = ".caffe-fold-batch.jsonl"
_LOCKED = "caffe-fold-batch"
OWN_FILES = (LEDGER, f"{LEDGER}.tmp", hidden(_LOCKED, "lock"))

Entry = dict[str, Any]


# ---- Reading ----


def read(folder: str) -> dict[str, Entry]:
    """The last entry of each task by its name; none where there is no ledger.

    :raises InputError: if it cannot be read.
    """
    return {entry["name"]: entry for entry in map(_entry, _lines(folder)) if entry}


def _lines(folder: str) -> list[bytes]:
    address = storage.join(folder, LEDGER)
    if not storage.exists(address):
        return []
    with storage.opened(address) as file:
        return file.read().split(b"\n")


def _entry(line: bytes) -> Entry | None:
    """An entry of a fold that has begun, or is done; None for a torn line, or anything else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    return entry if _is_started(entry) or _is_whole(entry) else None


def _is_started(entry: Entry) -> bool:
    names = entry.get("started")
    return isinstance(names, list) and all(map(_is_name, names)) and "report" not in entry


def _is_whole(entry: Entry) -> bool:
    """Whether an entry has all that one of a fold that is done has, each of its kind."""
    kinds = {"version": str, "asked": str, "inputs": list, "outputs": dict, "report": dict}
    if not all(isinstance(entry.get(name), kind) for name, kind in kinds.items()):
        return False
    stamps = [*entry["inputs"], *entry["outputs"].values()]
    return (
        all(isinstance(stamp, dict) and {"size", "tag"} <= stamp.keys() for stamp in stamps)
        and all("path" in known for known in entry["inputs"])
        and all(map(_is_name, entry["outputs"]))
        and {"warnings", "before", "after"} <= entry["report"].keys()
    )


def _is_name(name: object) -> bool:
    try:
        return isinstance(name, str) and bool(os.fsencode(name)) and "\0" not in name
    except UnicodeEncodeError:
        return False


def outputs_of(folder: str) -> list[str]:
    """The paths of what earlier runs wrote to an output folder."""
    with contextlib.suppress(CaffeFoldError):
        return [
            storage.join(folder, name)
            for entry in read(folder).values()
            for name in entry.get("outputs", {})
        ]
    return []


# ---- What makes a task done ----


def inputs_of(task: Task) -> list[dict[str, Any]]:
    """What tells a task's inputs from changed ones: address, size, time of change (or tag),
    and the SHA-256 where it is asked for.

    :raises InputError: if one is not there.
    """
    return [_known(address, task.checksum) for address in input_addresses(task)]


def _known(address: str, has_digest: bool) -> dict[str, Any]:
    known: dict[str, Any] = {"path": address, **asdict(storage.stamp(address))}
    if has_digest:
        known["sha256"] = storage.digest(address)
    return known


def _known_output(address: str, has_digest: bool) -> dict[str, Any]:
    """A store's tag is mostly of the content, and saves reading back what was sent."""
    known = _known(address, has_digest=False)
    if has_digest and not (storage.is_url(address) and known["tag"]):
        known["sha256"] = storage.digest(address)
    return known


def input_addresses(task: Task) -> list[str]:
    """The addresses of all that a task reads."""
    verify = task.options.get("verify") or {}
    return [task.model, task.weights, *filter(None, [verify.get("input")])]


def asked(task: Task) -> str:
    """What was asked for, as text: the options, and the outputs' names. What is read is told
    of elsewhere, by its stamp."""
    options = dict(task.options)
    if options.get("verify"):
        options["verify"] = {**options["verify"], "input": None}
    what = {
        "options": options,
        "strict": task.strict,
        "model": _below(task, task.output_model),
    }
    return json.dumps(what, sort_keys=True, default=str)


def entry_of(
    task: Task, inputs: list[dict[str, Any]], report: Mapping[str, Any], has_digests: bool
) -> Entry:
    """The entry of a task that is done.

    :param has_digests: whether the outputs are to be known by their content, too.
    """
    outputs = {
        _below(task, address): _known_output(address, has_digests or task.checksum)
        for address in (task.output_model, task.output_weights)
    }
    return {
        "name": task.name,
        "version": task.version,
        "asked": asked(task),
        "inputs": inputs,
        "outputs": outputs,
        "report": report,
    }


def _below(task: Task, address: str) -> str:
    if storage.is_url(task.output):
        return address[len(task.output.rstrip("/")) + 1 :]
    return os.path.relpath(address, task.output).replace(os.sep, "/")


def replaced(task: Task, entry: Entry | None) -> str:
    """The address of other weights that an output was made of by an earlier run; "" if there is
    none, or its outputs are gone."""
    if entry is None or len(entry.get("inputs", ())) < 2:
        return ""
    made_of, new = entry["inputs"][1], task.weights
    with contextlib.suppress(CaffeFoldError):
        is_same = made_of["path"] == new or (
            "sha256" in made_of
            and made_of["size"] == storage.stamp(new).size
            and made_of["sha256"] == storage.digest(new)
        )
        return "" if is_same or not storage.exists(task.output_weights) else made_of["path"]
    return ""


def is_done(task: Task, entry: Entry | None) -> bool:
    """Whether an entry is of this task, its inputs are the same, and its outputs are there as
    they were written."""
    if entry is None or "report" not in entry:
        return False
    if (entry["version"], entry["asked"]) != (task.version, asked(task)):
        return False
    try:
        for address in (task.output_model, task.output_weights):
            if not _is_as_written(entry["outputs"][_below(task, address)], address, task.checksum):
                return False
        inputs = inputs_of(task)
        is_as_many = len(inputs) == len(entry["inputs"])
        return is_as_many and all(map(_is_same, entry["inputs"], inputs))
    except (CaffeFoldError, KeyError):
        return False


def _is_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """With a checksum the content decides; else address, size and time. A store that tells
    neither time nor tag cannot say that nothing changed."""
    if "sha256" in new:
        return bool(old.get("sha256") == new["sha256"])
    return bool(new["tag"]) and all(old[key] == new[key] for key in ("path", "size", "tag"))


def _is_as_written(old: Mapping[str, Any], address: str, checksum: bool) -> bool:
    """As of an input, wherever it lies now; and another time does not matter where the content
    was recorded."""
    new = _known_output(address, checksum)
    is_other_time = new["size"] == old["size"] and new["tag"] != old["tag"]
    if is_other_time and "sha256" in old and "sha256" not in new:
        new = _known_output(address, has_digest=True)
    return _is_same({**old, "path": address}, new)


def is_inside(path: str, output: str) -> bool:
    """Whether a path's folder is really inside the output folder, whatever links there are."""
    root, folder = os.path.realpath(output), os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([root, folder]) == root


# ---- Writing ----


class Ledger:
    """The ledger of a run that has locked the output folder. ``entries`` are those of earlier
    runs."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.address = storage.join(folder, LEDGER)
        self.entries = read(folder)
        self._started: list[str] = []
        self._descriptor = self._begin()

    def start(self, task: Task) -> None:
        """Note that a fold begins, whose temporary files a kill may leave."""
        names = [_below(task, path) for path in (task.output_model, task.output_weights)]
        self._started += names
        self._append({"name": task.name, "started": names})

    def done(self, entry: Entry) -> None:
        """Note that a fold is done."""
        self._append(entry)

    def close(self) -> None:
        """Close the file, and clear what killed workers left."""
        os.close(self._descriptor)
        _clear(self.folder, self._started)

    def _begin(self) -> int:
        """Clear what a killed run left, write the entries anew, and open the file.

        :raises OutputError: for whatever the system says against it.
        """
        new = f"{self.address}.tmp"
        with writing(self.address):
            started = [name for entry in self.entries.values() for name in entry.get("started", ())]
            _clear(self.folder, started)
            self.entries = {n: entry for n, entry in self.entries.items() if "report" in entry}
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)  # of a run that was killed
                # Not to follow a link, which would lead to a file of someone else.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with os.fdopen(os.open(new, flags, 0o666), "w", encoding="utf-8") as file:
                    file.writelines(map(line_of, self.entries.values()))
                os.replace(new, self.address)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new)
                raise
            return os.open(self.address, os.O_WRONLY | os.O_APPEND)

    def _append(self, entry: Entry) -> None:
        """One line by one call, which no signal of ours can tear."""
        data = line_of(entry).encode("utf-8")
        with writing(self.address):
            size = os.fstat(self._descriptor).st_size
            if os.write(self._descriptor, data) < len(data):
                os.ftruncate(self._descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def line_of(entry: Entry) -> str:
    """An entry's line, with its end."""
    return json.dumps(entry, separators=(",", ":")) + "\n"


def _clear(output: str, names: Iterable[str]) -> None:
    """Remove what killed folds left beside outputs that they were to write."""
    for path in _inside(output, names):
        clear(path)


def _inside(output: str, names: Iterable[str]) -> list[str]:
    """The paths of names below the output folder, without those that lead out of it."""
    paths = [storage.join(output, name) for name in names]
    return [path for path in paths if is_inside(path, output)]


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Keep other runs out of an output folder, which is made if it is not there. A store has
    no locks: ``store_ledger`` finds out what this would have kept away.

    :raises OutputError: if one is in it, or it cannot be written to.
    """
    if storage.is_url(folder):
        yield
        return
    with contextlib.ExitStack() as stack:
        with writing(folder):
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(lock.locked(os.path.join(folder, _LOCKED), folder))
        yield
