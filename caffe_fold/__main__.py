"""The entry of ``caffe-fold`` and ``python -m caffe_fold``, which can be interrupted from its
first line on: so it imports nothing else before that is taken care of."""

import os

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; ends in SystemExit, or at once."""
    try:
        import gc

        # A start makes no garbage, and to look for some takes a twentieth of a small fold.
        gc.disable()
        from caffe_fold import interrupts

        interrupts.handle()
    except KeyboardInterrupt:
        try:
            os.write(2, b"error: interrupted; nothing was written\n")
        finally:
            os._exit(_INTERRUPTED)
    from caffe_fold import cli

    try:
        cli.main()
    except SystemExit as end:
        # Taking Python apart would take as long as planning. Whoever has it on again had more
        # to do than one fold, and may have more to leave.
        if not gc.isenabled() and isinstance(end.code, int) and _is_flushed():
            os._exit(end.code)
        if end.code == _INTERRUPTED:
            # Python would end by the signal, if it came while a module was being imported.
            os._exit(_INTERRUPTED)
        raise


def _is_flushed() -> bool:
    import sys

    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # which Python says at its end
        return False
    return True


if __name__ == "__main__":
    main()
