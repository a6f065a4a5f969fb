"""python kill_at.py CALL N SIGNAL script.py flags...: runs the script and sends the process SIGNAL at the N-th call of
`write` to a checkpoint's temporary file (parts of it), `fsync` (all of a temporary file), or `replace` (renaming)."""

import builtins
import io
import os
import runpy
import signal
import sys

call, countdown, signum = sys.argv[1], int(sys.argv[2]), getattr(signal, sys.argv[3])
sys.argv = sys.argv[4:]
sys.path[0] = os.path.dirname(sys.argv[0])  # as if the script had been started itself


def count():
    global countdown
    countdown -= 1
    if countdown == 0:
        os.kill(os.getpid(), signum)


def counted(function):
    def wrapper(*args, **kwargs):
        count()
        return function(*args, **kwargs)

    return wrapper


class CountedFile(io.FileIO):
    def write(self, data):
        count()
        return super().write(data)


if call == "write":
    original = open
    builtins.open = lambda path, mode="r", *rest, **options: (
        CountedFile(path, mode) if str(path).endswith("checkpoint.pt.tmp") else original(path, mode, *rest, **options)
    )
else:
    setattr(os, call, counted(getattr(os, call)))
runpy.run_path(sys.argv[0], run_name="__main__")
