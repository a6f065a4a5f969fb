"""The figures of README's table of environments, its pictures, and somebody else's algorithm on each of the tasks.

    OMP_NUM_THREADS=1 python experiments/environments.py speed     # steps/s and reset, beside the base environments
    python experiments/environments.py random                      # what a random policy does in 100 episodes
    python experiments/environments.py pour                        # scripted policies on PourCoffee, 100 episodes each
    python experiments/environments.py frames                      # experiments/images/*.png
    python experiments/environments.py sac                         # Stable-Baselines3's SAC, 2000 steps on each
                                                                   # (pip install stable-baselines3==2.3.2)
"""

import csv
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
    """Prints a table, and writes random.csv, which experiments/figures.py shows beside the trained policies."""
    print("| id | violating episodes | first violation, median step | kinds | return | length |\n" + "|---" * 6 + "|")
    rows = []
    for env_id in IDS:
        env, first, kinds, returns, lengths, successes = make(env_id), [], {}, [], [], 0
        env.action_space.seed(0)
        for k in range(episodes):
            env.reset(seed=k)
            total = 0.0
            for step in range(1, 10**6):
                _, reward, terminated, truncated, info = env.step(env.action_space.sample())
                total += reward
                if terminated or truncated:
                    break
            returns.append(total)
            lengths.append(step)
            if info["cost"]:
                first.append(step)
            successes += bool(info.get("is_success", 0)) and not info["cost"]
            for key in info:
                if key.startswith("cost_"):
                    kinds[key] = kinds.get(key, 0) + int(info[key])
        print(f"| {env_id} | {len(first) / episodes:.2f} | {np.median(first):.0f} | {kinds} | {np.mean(returns):.3g} "
              f"| {np.mean(lengths):.3g} |")  # fmt: skip
        for key, value in (("violation", len(first) / episodes), ("episodic_return", np.mean(returns)),
                           ("episodic_length", np.mean(lengths)), ("success", successes / episodes)):  # fmt: skip
            rows.append(("fig2", env_id, "random", 0, 0, f"eval/{key}", f"{value:.5g}"))
        env.close()
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "fig2_reduced", "random.csv")
    with open(path, "w", newline="") as file:
        file.write(f"# command: python experiments/environments.py random\n# episodes: {episodes}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("suite", "env", "algo", "seed", "step", "metric", "value"), *rows])


def bang_bang():
    """Each component of the velocity at its bound, towards the goal, which it overshoots back and forth; no roll."""
    return lambda observation: np.append(0.5 * np.sign(observation[9:12] - observation[:3]), 0.0)


def early_tilt():
    return lambda observation: np.array([0.0, 0.0, 0.0, 0.8])


def pour(episodes=100):
    print("| policy | success | violation | first at step (median) | kinds | return | acceleration | jerk |")
    print("|---|---|---|---|---|---|---|---|")
    env = make("PourCoffee")
    env.action_space.seed(0)
    policies = {
        "scripted, smooth": pour_coffee_env.scripted_pour, "scripted, bang-bang": bang_bang,
        "scripted, tilted at once": early_tilt, "random": lambda: lambda observation: env.action_space.sample(),
    }  # fmt: skip
    for name, make_policy in policies.items():
        successes, first, kinds, returns, motion = 0, [], {}, [], []
        for k in range(episodes):
            observation, _ = env.reset(seed=k)
            policy, total, moved = make_policy(), 0.0, []
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


def sac(steps=2000):
    from stable_baselines3 import SAC

    for env_id in IDS:
        model = SAC("MlpPolicy", make(env_id), learning_starts=500, seed=1, device="cpu")
        start = time.time()
        model.learn(steps)
        episodes = [episode["r"] for episode in model.ep_info_buffer]
        print(f"{env_id}: {steps} steps in {time.time() - start:.0f} s, {len(episodes)} episodes, return "
              f"{np.mean(episodes):.1f}")  # fmt: skip


if __name__ == "__main__":
    commands = dict(speed=speed, random=random, pour=pour, frames=frames, sac=sac)
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]]()
