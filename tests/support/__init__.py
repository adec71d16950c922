"""Support for the tests: small nets, an evaluator of its own, real engines, made weights.

Nothing in here uses the code under test, save for the compiled schema of the
weights file (``caffe_fold.caffe_pb2``): a judge that shares a parser or a
formula with what it judges shares its mistakes too.
"""
