"""python kill_at.py CALL N SIGNAL script.py flags...: runs the script and sends the process SIGNAL at the N-th call of
`write` (a checkpoint's temporary file, half of which is written by then), `fsync` (all of a temporary file), `replace`
(renaming one), `make` (an environment: the training's, then each evaluation's), `open` (an evaluation's file, its
scalars being logged) or `dump` (its contents)."""

import builtins
import io
import json
import os
import runpy
import signal
import sys

import gymnasium as gym
import torch

call, countdown, signum = sys.argv[1], int(sys.argv[2]), getattr(signal, sys.argv[3])
sys.argv = sys.argv[4:]
sys.path[0] = os.path.dirname(sys.argv[0])  # as if the script had been started itself


def count(module, name, counts=lambda *_: True, before=lambda *_: None):
    function = getattr(module, name)

    def counted(*args, **kwargs):
        global countdown
        countdown -= (now := counts(*args))
        if now and countdown == 0:
            before(function, *args)
            os.kill(os.getpid(), signum)
        return function(*args, **kwargs)

    setattr(module, name, counted)


def write_half(torch_save, state, path):
    torch_save(state, whole := io.BytesIO())
    with open(path, "wb") as file:
        file.write(whole.getvalue()[: whole.tell() // 2])


if call == "write":
    count(torch, "save", lambda _, path: path.endswith("checkpoint.pt.tmp"), write_half)
elif call == "open":
    count(builtins, "open", lambda path, *_: "/eval_" in str(path))
else:
    count({"fsync": os, "replace": os, "make": gym, "dump": json}[call], call)
runpy.run_path(sys.argv[0], run_name="__main__")
