"""A net to try the tool on."""

from caffe_fold.demo.write import write_demo

__all__ = ["write_demo"]
