"""``python -m caffe_fold``."""

from caffe_fold.cli import main

if __name__ == "__main__":
    main()
