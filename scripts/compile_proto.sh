#!/usr/bin/env bash
# Compiles proto/caffe.proto to caffe_fold/caffe_pb2.py and its type stub.
#
# grpcio-tools 1.60.0 carries protoc 25.0, which matches protobuf 4.25.0, the
# oldest release that the package supports: newer releases load the code of an
# older protoc, but not the other way round. Needs Python 3.9 to 3.12 as PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet 'grpcio-tools==1.60.0' 'protobuf==4.25.0' 'setuptools<80'
"$venv/bin/python" -m grpc_tools.protoc \
  --proto_path=caffe_fold=proto --python_out=. --pyi_out=. caffe_fold/caffe.proto
