"""Run nets in real Caffe. A script of its own, for an interpreter that has pycaffe.

    python pycaffe_forward.py JOBS.json

JOBS.json is a list of {"prototxt", "caffemodel", "inputs", "outputs", "stages",
"level"}: a net's two files, an .npz with its inputs and one to be written. The outputs are keyed by
blob name (final values) and by 'layer@top' (each top as it was right after its
layer ran). Each job runs in a process of its own, because Caffe aborts the
process on a bad net; what it said is then left in ``outputs + '.error'``.

It imports nothing of this package, and runs on the Python 3.9 that pycaffe needs.
"""

import json
import os
import sys
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")


def forward(job: dict[str, Any]) -> None:
    """Run one net and save its blobs."""
    import caffe
    import numpy as np

    caffe.set_mode_cpu()
    caffe.set_random_seed(1)
    given = np.load(job["inputs"])
    net = caffe.Net(
        job["prototxt"],
        caffe.TEST,
        weights=job["caffemodel"],
        level=job["level"],
        stages=job["stages"] or None,
    )
    for name in given.files:
        net.blobs[name].reshape(*given[name].shape)
    net.reshape()
    made = {}
    for index, layer in enumerate(net._layer_names):
        tops = net.top_names[layer]
        # A data layer would overwrite what is given, so it is not run at all.
        if not net.bottom_names[layer] and set(tops) <= set(given.files):
            for top in tops:
                net.blobs[top].data[...] = given[top]
        else:
            net._forward(index, index)
        for top in tops:
            made[f"{layer}@{top}"] = net.blobs[top].data.copy()
    for name in net.blobs:
        made[name] = net.blobs[name].data.copy()
    np.savez(job["outputs"], **made)


def run_apart(job: dict[str, Any]) -> None:
    """Run one job in a child process, keeping what it prints to stderr."""
    path = job["outputs"] + ".error"
    child = os.fork()
    if child == 0:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 2)
        try:
            forward(job)
        except Exception as error:
            os.write(2, (f"{type(error).__name__}: {error}\n").encode())
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        os.remove(path)


if __name__ == "__main__":
    # Imported once, before forking: it takes a second.
    import caffe as _caffe  # noqa: F401

    with open(sys.argv[1]) as jobs:
        for entry in json.load(jobs):
            run_apart(entry)
