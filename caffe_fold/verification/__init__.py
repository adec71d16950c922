"""Proves a folded net on engines that this package did not write.

``run`` has the public function, ``verify``, and ``hook`` is it for a fold whose files have no
name yet. In the order of the work: ``sides`` opens both nets, ``match`` finds what stands for
what, ``inputs`` makes what goes in, ``shapes``, ``cut`` and ``run_parts`` take apart a net that
no engine runs whole, ``standard``, ``text`` and ``weights`` write what an engine is to run,
``opencv`` and ``pycaffe`` have it run by ``opencv_forward`` and ``pycaffe_forward`` in processes of
their own, ``session`` hands it to them, ``compare`` and ``detections``
judge the values, ``structure`` what no engine tells, ``result`` says it.
"""

from __future__ import annotations

from caffe_fold.verification.run import verify

__all__ = ["verify"]
