"""What several tests share: running the script as its users do and reading what it wrote; episodes of the tasks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "meta_sac_lag.py"
SHORT = "--total-timesteps 300 --learning-starts 100 --initial-states 4 --batch-size 32 --hidden-size 16".split()


def environ(changes):
    """This process's environment variables with these changed; None: without it"""
    return {key: value for key, value in {**os.environ, **changes}.items() if value is not None}


def run(folder, *flags, script=SCRIPT, **environment):
    return subprocess.run(
        [sys.executable, str(script), *map(str, flags)],
        cwd=folder,
        env=environ(environment),
        capture_output=True,
        text=True,
        timeout=600,
    )


def train(folder, *flags, script=SCRIPT, **environment):
    """Runs the script to its end and returns the new run folder."""
    before = set(folder.glob("runs/*"))
    result = run(folder, *flags, script=script, **environment)
    assert result.returncode == 0, result.stderr
    (run_dir,) = set(folder.glob("runs/*")) - before
    return run_dir


def start(folder, *flags, stderr=subprocess.DEVNULL, **environment):
    """The script in the background, from the moment when its run folder exists, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, flags)], cwd=folder, env=environ(environment),
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if ", logging to " in line:
            return process, folder / line.split(", logging to ")[1].strip()
    raise AssertionError("the run has ended before it began")


def wait_for(condition, seconds=120):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def scalars(run_dir):
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_one_line(result, *words):
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]


def rollout(env, seed, actions, render=False):
    """One episode: the first observation, then observation and reward of each step."""
    steps = [env.reset(seed=seed)[0]]
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        steps.append(np.append(obs, reward))
        if render:
            env.render()
        if terminated or truncated:
            break
    return steps


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


def random_policy(env_id, episodes):
    """Uniform actions: the rate of violating episodes, and the median step (from 1) at which these end (nan: none)."""
    env, rng, first = gym.make(f"benchmark_envs:{env_id}"), np.random.default_rng(0), []
    for episode in range(episodes):
        env.reset(seed=episode)
        done, step = False, 0
        while not done:
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            obs, reward, terminated, truncated, info = env.step(action)
            assert np.isfinite(obs).all() and np.isfinite(reward)
            done, step = terminated or truncated, step + 1
        if info["cost"]:
            first.append(step)
    env.close()
    return len(first) / episodes, np.median(first) if first else np.nan
