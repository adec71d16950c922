"""Which prototxt goes with which weights in one folder, by their names and kinds.

Nothing is guessed: where a name does not tell, only a folder's one prototxt with its one
weights file, or with the snapshots of one training, is a pair.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caffe_fold.errors import show

__all__ = ["FOLDED", "Paired", "is_prototxt", "is_weights", "pair_up", "stem"]

# OpenCV's face detector, and what was copied from it, has deploy.prototxt.txt.
_PROTOTXT = (".prototxt", ".prototxt.txt")
_WEIGHTS = (".caffemodel", ".caffemodel.h5")
_SNAPSHOT = re.compile(r"_iter_(\d+)\Z", re.IGNORECASE)
# What stands in only one of two names that belong together: deploy_resnet50 and resnet50,
# ResNet-50-deploy and ResNet-50-model, mobilenet_deploy and mobilenet_iter_73000.
_WORDS = re.compile(r"\A(deploy|model)(?![a-z])[-_.]?|[-_.]?(?<![a-z])(deploy|model|inference)\Z")
_TRAINING = re.compile(r"[-_.]?(?<![a-z])(train|trainval|test|val|solver)(?![a-z])[-_.]?")

FOLDED = "_inference"
"""What ends the stem of a folded file."""

Kind = str
"""Of a prototxt: "deploy", "training", "unreadable", or "other", which is no net."""


@dataclass(frozen=True)
class Paired:
    """What became of a weights file: the prototxt's name, or the sentence why there is none."""

    weights: str
    model: str | None
    reason: str = ""


def is_prototxt(name: str) -> bool:
    """Whether a file is a prototxt by its name."""
    return name.lower().endswith(_PROTOTXT)


def is_weights(name: str) -> bool:
    """Whether a file holds weights by its name."""
    return name.lower().endswith(_WEIGHTS)


def stem(name: str) -> str:
    """A file's name without what makes it a prototxt or weights."""
    for suffix in sorted((*_PROTOTXT, *_WEIGHTS), key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def pair_up(
    models: Sequence[str],
    weights: Sequence[str],
    kind_of: Callable[[str], Kind],
    apart: int = 0,
) -> list[Paired]:
    """Pair the files of one folder.

    :param kind_of: tells a prototxt's kind; it reads the file, and is asked only where the
        names do not tell.
    :param apart: how many weights files there are beside these, which may have a prototxt here.
    """
    return _Folder(models, weights, kind_of, apart).pairs()


class _Folder:
    """One folder's names, and what they say of each other."""

    def __init__(
        self,
        models: Sequence[str],
        weights: Sequence[str],
        kind_of: Callable[[str], Kind],
        apart: int,
    ) -> None:
        self.apart = apart
        self.models, self.weights = models, weights
        self.kind = functools.lru_cache(maxsize=None)(kind_of)
        self.with_stem = Counter(map(stem, weights))
        # Where each prototxt has weights of its name, there is nothing to choose from, and
        # none has to be read.
        self.is_plain = all(stem(name) in self.with_stem for name in models)
        nets = models if self.is_plain else [n for n in models if self.kind(n) != "other"]
        self.nets = nets
        self.by_stem = _grouped(nets, stem)
        self.by_key = {} if self.is_plain else _grouped(nets, _key)

    def pairs(self) -> list[Paired]:
        single = [name for name in self.weights if self.with_stem[stem(name)] == 1]
        named = {name: self.by_name(name) for name in single}
        taken = {found[0] for found in named.values() if len(found) == 1}
        free = self.preferred([name for name in self.nets if name not in taken])
        rest = [name for name in single if not named[name]]
        alone = self.reason_for_none(free, rest) if rest else ""
        paired = []
        for name in self.weights:
            if name not in named:
                reason = f"'{show(stem(name))}' has two weights files"
                paired.append(Paired(name, None, reason))
            elif len(named[name]) == 1:
                paired.append(Paired(name, named[name][0]))
            elif named[name]:
                paired.append(Paired(name, None, f"{_list(named[name])} fit its name"))
            else:
                paired.append(Paired(name, None if alone else free[0], alone))
        return paired

    def by_name(self, weights: str) -> list[str]:
        """The prototxts that a weights file's name fits; those of training only where the
        folder has no other net."""
        found = self.by_stem.get(stem(weights), [])
        if self.is_plain:
            return found
        if not found and _key(weights):
            found = self.by_key.get(_key(weights), [])
        found = self.preferred(found)
        is_training = all(self.kind(name) == "training" for name in found)
        return [] if is_training and self.has_other else found

    @functools.cached_property
    def has_other(self) -> bool:
        """Whether there is a net that is not for training."""
        return any(self.kind(name) != "training" for name in self.nets)

    def preferred(self, models: list[str]) -> list[str]:
        """The deploy nets and what may be one, or else those of training."""
        if len(models) < 2 or self.is_plain:
            return models
        return [name for name in models if self.kind(name) != "training"] or models

    def reason_for_none(self, free: list[str], rest: list[str]) -> str:
        """Why weights whose names fit no prototxt are no pairs with the one that is left; ""
        where they are: one file, or snapshots of one training."""
        if not self.models:
            return "there is no prototxt in its folder"
        if not free:
            return "no prototxt in its folder is left for it that holds a net"
        if len(free) > 1:
            return f"its name fits none of {_list(free)}"
        if len(rest) < len(self.weights) or self.apart:
            return f"its name does not fit '{show(free[0])}', and other weights are there"
        named = self.training_of(rest)
        if named and _key(free[0]) and free[0] not in named:
            return f"its name fits {_list(named)}, which is for training, not '{show(free[0])}'"
        trainings = {_SNAPSHOT.sub("", stem(name)) for name in rest}
        if len(rest) == 1 or (len(trainings) == 1 and all(map(_is_snapshot, rest))):
            return ""
        return (
            f"{_list(rest)} are there for '{show(free[0])}', and are not snapshots of one training"
        )

    def training_of(self, weights: list[str]) -> list[str]:
        """The nets of training that have the name of some weights."""
        keys = set(filter(None, map(_training_key, weights)))
        return [
            name
            for name in self.nets
            if _training_key(name) in keys and self.kind(name) == "training"
        ]


def _grouped(names: Sequence[str], by: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(by(name), []).append(name)
    return groups


def _is_snapshot(weights: str) -> bool:
    return _SNAPSHOT.search(stem(weights)) is not None


def _key(name: str) -> str:
    """What of a name two files have in common that belong together."""
    return _WORDS.sub("", _SNAPSHOT.sub("", stem(name)).lower())


def _training_key(name: str) -> str:
    """The same without what tells nets of training apart."""
    return _TRAINING.sub("", _key(name))


def _list(names: Sequence[str], most: int = 3) -> str:
    shown = [f"'{show(name)}'" for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
