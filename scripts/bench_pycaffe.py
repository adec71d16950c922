"""The classic way to fold, which bench.py compares with; for an interpreter that has pycaffe.

    python bench_pycaffe.py MODEL WEIGHTS FOLDED_MODEL OUTPUT

As the merge scripts of the day do it: Caffe loads both nets, the parameters of one are folded
into those of the other, and Caffe saves that. It is right for the nets of bench.py, which have
each BatchNorm and its Scale right behind their Convolution, and the default eps. It needs numpy
and caffe alone, and runs on Python 2.7 and from 3.6 on, with any pycaffe.
"""

# Python 2.7 knows no annotations.
# mypy: ignore-errors

import argparse
import os

import numpy

EPS = 1e-5


def affine(net, index):
    """What follows the linear layer, as one gain and shift of its channels; how far it goes."""
    names = list(net._layer_names)
    gain, shift = 1.0, 0.0
    while index < len(names) and net.layers[index].type in ("BatchNorm", "Scale"):
        blobs = [numpy.array(blob.data) for blob in net.params[names[index]]]
        if net.layers[index].type == "BatchNorm":
            mean, variance, factor = blobs
            more = 1 / numpy.sqrt(variance / factor + EPS)
            gain, shift = gain * more, (shift - mean / factor) * more
        else:
            gain, shift = gain * blobs[0], shift * blobs[0] + blobs[1]
        index += 1
    return gain, shift


def copy(net, folded):
    for index, name in enumerate(net._layer_names):
        if name not in folded.params:
            continue
        old, new = net.params[name], folded.params[name]
        if net.layers[index].type != "Convolution":
            for source, target in zip(old, new):
                target.data[...] = source.data
            continue
        gain, shift = affine(net, index + 1)
        bias = old[1].data if len(old) > 1 else 0.0
        each = numpy.reshape(gain, (-1, 1, 1, 1))
        new[0].data[...] = old[0].data * each
        if len(new) > 1:
            new[1].data[...] = bias * gain + shift


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "weights", "folded_model", "output"):
        parser.add_argument(name)
    given = parser.parse_args()
    os.environ.setdefault("GLOG_minloglevel", "2")
    import caffe

    caffe.set_mode_cpu()
    net = caffe.Net(given.model, given.weights, caffe.TEST)
    folded = caffe.Net(given.folded_model, caffe.TEST)
    copy(net, folded)
    folded.save(given.output)


if __name__ == "__main__":
    main()
