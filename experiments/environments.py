"""The figures of the tables of environments, and their pictures.

    OMP_NUM_THREADS=1 python experiments/environments.py speed     # steps/s and reset, beside the base environments
    python experiments/environments.py random                      # 100 episodes of random actions, none, a script
    python experiments/environments.py pour                        # scripted policies on PourCoffee, 100 episodes each
    python experiments/environments.py frames                      # experiments/images/*.png
"""

import csv
import itertools
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import gymnasium as gym
import gymnasium_robotics  # noqa: F401 (registers the base environments)
import imageio
import numpy as np

import benchmark_envs
import pour_coffee_env

IDS = ("HumanoidVelocity", "FrankaDrawerClose", "CarCircle2", "PushTopple", "EggManipulate", "PourCoffee")
# The environment that each is built on. FrankaDrawerClose's needs Isaac Gym and a GPU, PourCoffee has none.
BASES = {
    "HumanoidVelocity": lambda: benchmark_envs.import_safety_gymnasium().make("SafetyHumanoidVelocity-v1"),
    "CarCircle2": lambda: benchmark_envs.import_safety_gymnasium().make("SafetyCarCircle2-v0"),
    "PushTopple": lambda: gym.make("FetchPush-v2"),
    "EggManipulate": lambda: gym.make("HandManipulateEggRotateDense-v1"),
}


def make(env_id, **kwargs):
    return gym.make(f"{'pour_coffee_env' if env_id == 'PourCoffee' else 'benchmark_envs'}:{env_id}", **kwargs)


def measure(env, steps=300):
    """Random steps per second of CPU time, without the resets, and CPU milliseconds per reset."""
    env.action_space.seed(0)
    env.reset(seed=0)
    stepping = resetting = resets = 0
    for _ in range(steps):
        action = env.action_space.sample()
        start = time.process_time()
        result = env.step(action)
        stepping += time.process_time() - start
        if result[-3] or result[-2]:
            start = time.process_time()
            env.reset()
            resetting, resets = resetting + time.process_time() - start, resets + 1
    while resets < 3:
        start = time.process_time()
        env.reset()
        resetting, resets = resetting + time.process_time() - start, resets + 1
    return steps / stepping, 1000 * resetting / resets


def speed(rounds=5):
    print("| id | steps/s | base | ratio | reset, ms | base |\n|---|---|---|---|---|---|")
    for env_id in IDS:
        ours, base = make(env_id), BASES.get(env_id, lambda: None)()
        turns = [(measure(ours), measure(base) if base else (np.nan, np.nan)) for _ in range(rounds)]  # alternating
        (rate, reset), (base_rate, base_reset) = np.median(turns, axis=0)
        print(f"| {env_id} | {rate:.0f} | {base_rate:.0f} | {rate / base_rate:.2f} | {reset:.2f} | {base_reset:.2f} |")


def random(episodes=100):
    """Random actions, none, and a script where the task has one: a table, and untrained.csv for figures.py."""
    print("| id | policy | violating episodes | first, median step | kinds | return | length | success |")
    print("|---" * 8 + "|")
    rows = []
    for env_id, algo in itertools.product(IDS, ("random", "nothing", "script")):
        env, first, kinds, ended = make(env_id), [], {}, []
        act = {
            "random": lambda policy, obs: env.action_space.sample(),
            "nothing": lambda policy, obs: 0 * env.action_space.sample(),
            "script": {
                "PourCoffee": lambda policy, obs: policy(obs).astype(np.float32),
                "FrankaDrawerClose": lambda policy, obs: env.unwrapped.scripted_close(),
                "PushTopple": lambda policy, obs: env.unwrapped.scripted_push(),
            }.get(env_id),
        }[algo]
        if act is None:
            continue
        env.action_space.seed(0)
        for k in range(episodes):
            obs, _ = env.reset(seed=k)
            total, policy = 0.0, pour_coffee_env.scripted_pour()
            for step in range(1, 10**6):
                obs, reward, terminated, truncated, info = env.step(act(policy, obs))
                total += reward
                if terminated or truncated:
                    break
            violation = float(info["cost"] > 0)
            ended.append((violation, total, step, info.get("is_success", np.nan) * (1 - violation)))
            if violation:
                first.append(step)
            for key in info:
                if key.startswith("cost_"):
                    kinds[key] = kinds.get(key, 0) + int(info[key])
        violation, total, length, success = np.mean(ended, axis=0)
        at = f"{np.median(first):.0f}" if first else ""
        print(f"| {env_id} | {algo} | {violation:.2f} | {at} | {kinds} | {total:.3g} | {length:.3g} | {success:.2f} |")
        found = dict(violation=violation, episodic_return=total, episodic_length=length, success=success)
        found = {key: value for key, value in found.items() if np.isfinite(value)}  # some have no goal to reach
        rows += [("fig2", env_id, algo, 0, 0, f"eval/{key}", f"{value:.5g}") for key, value in found.items()]
        env.close()
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "fig2_reduced", "untrained.csv")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        file.write(f"# command: python experiments/environments.py random\n# episodes: {episodes}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("suite", "env", "algo", "seed", "step", "metric", "value"), *rows])


def bang_bang(seed):
    """Velocity and roll at their bounds, the signs drawn anew every fifth step."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (20, 4))
    high = np.array([pour_coffee_env.SPECIFICATION.speed_max] * 3 + [pour_coffee_env.SPECIFICATION.roll_rate_max])
    steps = itertools.count()
    return lambda observation: high * signs[next(steps) // 5]


def early_tilt(seed):
    return lambda observation: np.array([0.0, 0.0, 0.0, 0.8])


def pour(episodes=100):
    print("| policy | success | violation | first at step (median) | kinds | return | acceleration | jerk |")
    print("|---|---|---|---|---|---|---|---|")
    env = make("PourCoffee")
    env.action_space.seed(0)
    policies = {
        "scripted, smooth": lambda seed: pour_coffee_env.scripted_pour(), "scripted, bang-bang": bang_bang,
        "scripted, tilted at once": early_tilt, "random": lambda seed: lambda observation: env.action_space.sample(),
    }  # fmt: skip
    for name, make_policy in policies.items():
        successes, first, kinds, returns, motion = 0, [], {}, [], []
        for k in range(episodes):
            observation, _ = env.reset(seed=k)
            policy, total, moved = make_policy(k), 0.0, []
            for step in range(1, 101):
                observation, reward, terminated, truncated, info = env.step(policy(observation).astype(np.float32))
                total += reward
                moved.append((info["acceleration"], info["jerk"]))
                if terminated or truncated:
                    break
            successes += info["is_success"] > 0 and not info["cost"]
            returns.append(total)
            motion.append(np.mean(moved, 0))
            if info["cost"]:
                first.append(step)
            for key in info:
                if key.startswith("cost_") and info[key]:
                    kinds[key] = kinds.get(key, 0) + 1
        median = np.median(first) if first else np.nan
        print(f"| {name} | {successes / episodes:.2f} | {len(first) / episodes:.2f} | {median:.0f} | {kinds} "
              f"| {np.mean(returns):.0f} | {np.mean(motion, 0)[0]:.2f} | {np.mean(motion, 0)[1]:.1f} |")  # fmt: skip


def frames():
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "images")
    os.makedirs(folder, exist_ok=True)
    for env_id in IDS:
        env = make(env_id, render_mode="rgb_array")
        env.reset(seed=1)
        for _ in range(5):
            env.step(np.zeros(env.action_space.shape, np.float32))
        frame = env.render()
        stride = max(1, frame.shape[0] // 240)
        imageio.imwrite(os.path.join(folder, f"{env_id}.png"), frame[::stride, ::stride])
        print(env_id, frame.shape)
        env.close()


if __name__ == "__main__":
    commands = dict(speed=speed, random=random, pour=pour, frames=frames)
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]]()
