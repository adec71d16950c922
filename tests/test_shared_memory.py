"""Layers that do not copy: their tops are their bottom's memory, in which a layer may write.

The evaluator gives each value an array of its own, so real Caffe judges here, where it
is. What must not be moved, and what still must, is told without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folding import Folded, absorbed, fold_net, outputs
from support.compare import differ
from support.engines import EngineError, Job, Unavailable, caffe_forward_many
from support.nets import Net

C = 4
ONES, SQUARE = np.ones(C), "power_param { power: 2 }"
FLAT = "reshape_param { shape { dim: 0 dim: -1 } }"
Build = Callable[[Net], None]


def start(spatial: int = 3, seed: int = 0) -> Net:
    """A net whose first layer writes ``a``, in which no run goes back into it."""
    net = Net(seed=seed)
    net.input("data", (2, C, spatial, spatial))
    net.layer("first", "TanH", "data", "a")
    return net


def built(build: Build, spatial: int = 3) -> Net:
    net = start(spatial)
    build(net)
    return net


def squared(net: Net, bottom: str, top: str = "other") -> None:
    """A second reader, which sees what others write into its bottom's memory."""
    net.layer(f"square_{top}", "Power", bottom, top, SQUARE)


def identity(net: Net, bottom: str, top: str) -> None:
    net.layer("same", "Scale", bottom, top, "", [ONES])


def ends(net: Net, blob: str) -> None:
    """A layer that works in place."""
    net.layer("ends", "Sigmoid", blob, blob)


# ---- An identity that keeps two memories apart ----


def one_that_does_not_copy(net: Net, kind: str, bottom: str, top: str) -> None:
    params = {
        "Reshape": "reshape_param { shape { dim: 0 dim: 0 dim: 0 dim: -1 } }",
        "Permute": "permute_param { order: 0 order: 1 order: 2 order: 3 }",
        "Flatten": "flatten_param { axis: 2 }",
    }
    net.layer("alias", kind, bottom, top, params.get(kind, ""))


ALIASES = ["Split", "Flatten", "Reshape", "Permute", "Concat", "Slice"]


def identity_behind(kind: str) -> Build:
    """a -> alias -> identity -> in place, while another reads a."""

    def build(net: Net) -> None:
        one_that_does_not_copy(net, kind, "a", "v")
        identity(net, "v", "w")
        ends(net, "w")
        squared(net, "a")

    return build


def identity_before(kind: str) -> Build:
    """a -> identity -> alias -> in place, while another reads a."""

    def build(net: Net) -> None:
        identity(net, "a", "v")
        one_that_does_not_copy(net, kind, "v", "w")
        ends(net, "w")
        squared(net, "a")

    return build


KEPT_APART: dict[str, Build] = {
    **{f"behind {kind}": identity_behind(kind) for kind in ALIASES},
    **{f"before {kind}": identity_before(kind) for kind in ALIASES},
}


@pytest.mark.parametrize("case", KEPT_APART)
def test_an_identity_beside_a_layer_that_does_not_copy_stays(case: str, tmp_path: Path) -> None:
    done = fold_net(built(KEPT_APART[case]), tmp_path)
    assert done.is_unchanged
    assert done.stayed("same").code == "shared-memory"
    assert "'alias'" in done.stayed("same").reason


# ---- In place behind a branch of one memory ----


def in_place(kind: str) -> Build:
    """A run that works in place in memory that another layer reads under another name."""

    def build(net: Net) -> None:
        one_that_does_not_copy(net, kind, "a", "f")
        net.batch_norm("bn", "f", C)
        net.scale("scale", "f", C)
        ends(net, "f")
        squared(net, "a")

    return build


def in_place_before_an_inner_product(net: Net) -> None:
    net.layer("flat", "Flatten", "a", "f")
    net.scale("scale", "f", C)
    net.inner_product("ip", "f", C, 3)
    squared(net, "a")


def in_place_behind_a_convolution(net: Net) -> None:
    net.conv("conv", "a", C, C, 1)
    net.layer("split", "Split", "conv", ["s", "t"])
    net.batch_norm("bn", "s", C)
    squared(net, "t")


def a_fork_of_splits(net: Net) -> None:
    net.layer("split", "Split", "a", ["s", "t"])
    net.layer("flat", "Reshape", "s", "f", FLAT)
    net.layer("relu", "ReLU", "f", "f")
    net.scale("scale", "t", C, "u")
    net.inner_product("ip", "u", C, 3)


def a_run_out_of_place_whose_memory_others_change(net: Net) -> None:
    net.layer("flat", "Flatten", "a", "f")
    net.scale("scale", "f", C, "u")
    net.layer("relu", "ReLU", "f", "g")
    net.layer("alias", "Concat", "f", "v")
    ends(net, "v")
    net.inner_product("ip", "u", C, 3)


TANGLED: dict[str, tuple[Build, int, str]] = {
    **{f"in place behind {kind}": (in_place(kind), 3, "bn") for kind in ALIASES},
    "before an InnerProduct": (in_place_before_an_inner_product, 1, "scale"),
    "behind a Convolution": (in_place_behind_a_convolution, 3, "bn"),
    "a fork of splits": (a_fork_of_splits, 1, "scale"),
    "out of place": (a_run_out_of_place_whose_memory_others_change, 1, "scale"),
}


@pytest.mark.parametrize("case", TANGLED)
def test_nothing_moves_where_a_layer_writes_behind_a_branch(case: str, tmp_path: Path) -> None:
    build, spatial, layer = TANGLED[case]
    done = fold_net(built(build, spatial), tmp_path)
    assert done.is_unchanged
    assert done.stayed(layer).code == "shared-memory"
    assert "shares its memory" in done.stayed(layer).reason


# ---- What still folds ----


def explicit_splits(net: Net) -> None:
    """As Caffe writes them itself: a branch each, which works out of place or alone."""
    net.conv("conv", "a", C, C, 3, bias=False)
    net.batch_norm("bn", "conv", C)
    net.relu("relu", "conv")
    net.layer("split", "Split", "conv", ["s", "t"])
    for side in "st":
        net.conv(f"conv_{side}", side, C, C, 1, top=f"{side}1")
        net.batch_norm(f"bn_{side}", f"{side}1", C)
        net.relu(f"relu_{side}", f"{side}1")
    net.eltwise("sum", ["s1", "t1"])


def dense_block(net: Net) -> None:
    """DenseNet: a Concat of several copies, whose in-place run is its own."""
    bottom = "a"
    for index in range(2):
        width = C * (index + 1)
        net.layer(f"copy{index}", "Power", bottom, f"y{index}", SQUARE)
        net.batch_norm(f"bn{index}", f"y{index}", width)
        net.scale(f"scale{index}", f"y{index}", width)
        net.relu(f"relu{index}", f"y{index}")
        net.conv(f"conv{index}", f"y{index}", width, C, 1)
        net.layer(f"concat{index}", "Concat", [bottom, f"conv{index}"], f"c{index}")
        bottom = f"c{index}"
    net.batch_norm("bn", bottom, 3 * C)
    net.scale("scale", bottom, 3 * C)
    net.relu("relu", bottom)


def a_chain_of_flattens(net: Net) -> None:
    """Memory that does not branch is nobody else's."""
    net.layer("flat", "Flatten", "a", "f")
    net.batch_norm("bn", "f", C)
    net.layer("again", "Reshape", "f", "g", FLAT)
    net.scale("scale", "g", C)
    net.inner_product("ip", "g", C, 3)


def a_branch_that_no_layer_changes(net: Net) -> None:
    net.layer("flat", "Flatten", "a", "f")
    net.batch_norm("bn", "f", C, "y")
    net.inner_product("ip", "y", C, 3)
    squared(net, "a")


def in_place_before_the_branch(net: Net) -> None:
    net.conv("conv", "a", C, C, 1)
    net.batch_norm("bn", "conv", C)
    net.layer("split", "Split", "conv", ["s", "t"])
    net.layer("flat", "Flatten", "s", "f")
    squared(net, "t")


def pieces_of_a_slice(net: Net) -> None:
    """A Slice of several tops copies."""
    net.layer("slice", "Slice", "a", ["s", "t"], "slice_param { slice_point: 1 }")
    net.batch_norm("bn", "t", C - 1)
    net.conv("conv", "t", C - 1, 2, 1)
    squared(net, "s")


FOLDS: dict[str, tuple[Build, int, set[str], set[str]]] = {
    # Spatial size, what linear layers take, and what becomes a Scale.
    "explicit splits": (explicit_splits, 4, {"bn", "bn_s", "bn_t"}, set()),
    "a dense block": (dense_block, 3, set(), {"bn0", "bn1", "bn"}),
    "a chain of flattens": (a_chain_of_flattens, 1, {"scale"}, set()),
    "a branch that no layer changes": (a_branch_that_no_layer_changes, 1, {"bn"}, set()),
    "in place before the branch": (in_place_before_the_branch, 3, {"bn"}, set()),
    "pieces of a slice": (pieces_of_a_slice, 3, {"bn"}, set()),
}


@pytest.mark.parametrize("case", FOLDS)
def test_other_nets_with_such_layers_fold(case: str, tmp_path: Path) -> None:
    build, spatial, folded, merged = FOLDS[case]
    done = fold_net(built(build, spatial), tmp_path)
    gone = {name for names in absorbed(done.report).values() for name in names}
    assert gone == folded
    assert {merge.layers[0] for merge in done.report.merged} == merged
    assert {stay.code for stay in done.report.stayed} <= {"not-linear"}


# ---- Judged by real Caffe ----


def assert_same_in_caffe(done: list[Folded], nets: list[Net], folders: list[Path]) -> None:
    """The outputs of each folded net are the original's at the end of the pass, when all have
    written into their memory."""
    jobs = []
    for net, folder in zip(nets, folders):
        given = net.inputs()
        jobs.append(Job(folder / "net.prototxt", folder / "net.caffemodel", given))
        jobs.append(Job(folder / "folded.prototxt", folder / "folded.caffemodel", given))
    try:
        found = caffe_forward_many(jobs)
    except Unavailable as why:
        pytest.skip(str(why))
    for case, before, after in zip(done, found[::2], found[1::2]):
        assert not isinstance(before, EngineError), before
        assert not isinstance(after, EngineError), after
        for name in outputs(case.old_net):
            difference = differ(name, before[name], after[name])
            assert difference.relative <= 1e-4, difference


@pytest.mark.oracle
def test_outputs_in_real_caffe(tmp_path: Path) -> None:
    cases: dict[str, tuple[Build, int]] = {
        **{name: (build, 3) for name, build in KEPT_APART.items()},
        **{name: case[:2] for name, case in TANGLED.items()},
        **{name: case[:2] for name, case in FOLDS.items()},
    }
    nets, folders, done = [], [], []
    for number, (build, spatial) in enumerate(cases.values()):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        nets.append(built(build, spatial))
        done.append(fold_net(nets[-1], folders[-1]))
    assert_same_in_caffe(done, nets, folders)
