"""Runs nets in real Caffe. A script of its own, for the interpreter that has pycaffe.

    python pycaffe_forward.py REQUEST.json

It needs numpy and caffe alone, and runs on Python 2.7 and from 3.6 on, with any pycaffe.
REQUEST.json says what to do:

    {"do": "about", "answer": ANSWER.json}
    {"do": "run", "nets": [NET, ...]}
    {"do": "time", "nets": [NET, ...], "rounds": N, "answer": ANSWER.json}

NET is {"model", "weights", "inputs": {blob: .npy}, "outputs": [[layer, blob], ...],
"folder"}. Each output is left in the folder as ``N.npy``, as it was right after its layer
ran, and ``done`` behind them. A net that Caffe refuses ends the process, as Caffe does.
"""

# Python 2.7 knows no annotations.
# mypy: ignore-errors

from __future__ import print_function

import sys

# The folder of this script has modules of names that others have, too.
del sys.path[0]

import json
import os
import time

os.environ.setdefault("GLOG_minloglevel", "1")

import caffe
import numpy


def text(name):
    """A name of Caffe's as JSON has it."""
    return name.decode("utf-8") if isinstance(name, bytes) else name


def about(request):
    types = list(caffe.layer_type_list()) if hasattr(caffe, "layer_type_list") else []
    version = getattr(caffe, "__version__", "")
    answer({"types": [text(name) for name in types], "version": text(version)}, request)


def answer(what, request):
    with open(request["answer"], "w") as target:
        json.dump(what, target)


def load(net):
    """The net with its inputs in place."""
    made = caffe.Net(str(net["model"]), str(net["weights"]), caffe.TEST)
    given = dict((name, numpy.load(path)) for name, path in net["inputs"].items())
    blobs = dict((text(name), blob) for name, blob in made.blobs.items())
    for name, value in given.items():
        blobs[name].reshape(*value.shape)
    made.reshape()
    for name, value in given.items():
        blobs[name].data[...] = value
    return made, blobs


def run(net):
    made, blobs = load(net)
    wanted = {}
    for index, (layer, blob) in enumerate(net["outputs"]):
        wanted.setdefault(layer, []).append((index, blob))
    for place, name in enumerate(made._layer_names):
        made._forward(place, place)
        for index, blob in wanted.get(text(name), ()):
            if blob in blobs:
                path = os.path.join(net["folder"], "%d.npy" % index)
                numpy.save(path, numpy.array(blobs[blob].data))
    open(os.path.join(net["folder"], "done"), "w").close()


def measure(request):
    nets = [load(net)[0] for net in request["nets"]]
    seconds = [[] for _ in nets]
    for turn in range(request["rounds"] + 1):
        for net, taken in zip(nets, seconds):
            start = time.time()
            net._forward(0, len(net._layer_names) - 1)
            if turn:
                taken.append(time.time() - start)
    answer(seconds, request)


def main():
    with open(sys.argv[1]) as source:
        request = json.load(source)
    caffe.set_mode_cpu()
    if request["do"] == "about":
        about(request)
    elif request["do"] == "time":
        measure(request)
    else:
        for net in request["nets"]:
            run(net)


if __name__ == "__main__":
    main()
