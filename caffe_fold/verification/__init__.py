"""Proves a folded net on engines that this package did not write.

In the order of the work: ``sides`` opens both nets, ``match`` finds what stands for
what, ``inputs`` makes what goes in, ``shapes`` and ``cut`` take apart a net that no
engine runs whole, ``text`` and ``weights`` write what an engine is to run, ``opencv``
and ``pycaffe`` run it, ``compare`` and ``detections`` judge the values, ``result`` says
it. ``verify`` is the public function.
"""

from __future__ import annotations

from caffe_fold.verification.run import verify

__all__ = ["verify"]
