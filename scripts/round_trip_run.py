"""Runs two converted nets on the same random input; for the interpreter of a toolchain.

    python round_trip_run.py mnn|openvino A B OUT.npz

OUT.npz gets their outputs as "a/NAME" and "b/NAME". It needs numpy and the toolchain alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np


def pixels(shape: tuple[int, ...]) -> Any:
    """Random input of a shape, the same each time."""
    rng = np.random.default_rng(7)
    return (rng.integers(0, 256, shape) - 127.5).astype(np.float32)


def by_mnn(model: str) -> dict[str, Any]:
    import MNN

    net = MNN.Interpreter(model)
    session = net.createSession({"backend": "CPU", "precision": "high"})
    kind, order = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
    for tensor in net.getSessionInputAll(session).values():
        shape = tuple(tensor.getShape())
        tensor.copyFrom(MNN.Tensor(shape, kind, pixels(shape), order))
    net.runSession(session)
    found = {}
    for name, tensor in net.getSessionOutputAll(session).items():
        shape = tuple(tensor.getShape())
        host = MNN.Tensor(shape, kind, np.zeros(shape, np.float32), order)
        tensor.copyToHostTensor(host)
        found[name] = np.array(host.getNumpyData()).reshape(shape)
    return found


def by_openvino(model: str) -> dict[str, Any]:
    from openvino.runtime import Core

    core = Core()
    # Otherwise it computes in bfloat16 where the CPU can.
    core.set_property("CPU", {"ENFORCE_BF16": "NO"})
    net = core.compile_model(core.read_model(model), "CPU")
    given = [pixels(tuple(port.shape)) for port in net.inputs]
    results = net.infer_new_request(given)
    return {port.node.input_value(0).node.friendly_name: results[port] for port in net.outputs}


def main() -> None:
    engines = {"mnn": by_mnn, "openvino": by_openvino}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=engines)
    for name in ("a", "b", "output"):
        parser.add_argument(name)
    given = parser.parse_args()
    nets = {"a": given.a, "b": given.b}
    run = engines[given.engine]
    found = {f"{side}/{name}": v for side, net in nets.items() for name, v in run(net).items()}
    np.savez(given.output, **found)


if __name__ == "__main__":
    main()
