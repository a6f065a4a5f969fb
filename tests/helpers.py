"""What several tests share: running the script as its users do and reading what it wrote; episodes of the tasks."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "meta_sac_lag.py"
SHORT = "--total-timesteps 300 --learning-starts 100 --initial-states 4 --batch-size 32 --hidden-size 16".split()


def run(folder, *flags, script=SCRIPT, **environment):
    return subprocess.run(
        [sys.executable, str(script), *map(str, flags)],
        cwd=folder,
        env={**os.environ, **environment},
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
    """Uniform actions: the rate of violating episodes, and the median step (from 1) at which these end."""
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
    return len(first) / episodes, np.median(first)
