"""An independent learner on our tasks: what does Stable-Baselines3's SAC, which knows of no constraint, learn of them?

    pip install stable-baselines3==2.3.2 "numpy<2" "pandas<3"
    python experiments/witness.py --env-id PushTopple --seed 1 --total-timesteps 50000

Its hyperparameters are its own. A violation ends the episode; with the task's reward shift, as in meta_sac_lag.py's
table, that does not pay. Training starts as it does there, evaluations by the environment's default: ten episodes of
the policy without noise each 5,000 steps, 40 of the last one. The CSV, in results/fig2_reduced unless --folder names
another, is in sweep.py's format, of the algorithm "sb3-sac", returns without the shift.
"""

import csv
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import gymnasium as gym
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
import sweep

from meta_sac_lag import ENVIRONMENTS

try:
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError as error:
    sys.exit(f'error: witness.py needs pip install stable-baselines3==2.3.2 "numpy<2" "pandas<3" ({error})')


class Shifted(gym.Wrapper):
    """Adds a constant to each reward, ends the episode on a violation, and tells at its end how it was."""

    def __init__(self, env, shift):
        super().__init__(env)
        self.shift = shift

    def reset(self, **options):
        self.rewards = []
        return self.env.reset(**options)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(reward)
        terminated, violation = terminated or info["cost"] > 0, float(info["cost"] > 0)
        if terminated or truncated:
            ended = {"violation": violation, "episodic_return": sum(self.rewards), "episodic_length": len(self.rewards)}
            if "is_success" in info:
                ended["success"] = info["is_success"] * (1 - violation)
            info = {**info, "ended": ended}
        return obs, reward + self.shift, terminated, truncated, info


def evaluate(model, env, episodes):
    ended = []
    for episode in range(episodes):
        obs, done = env.reset(seed=10_000 + episode)[0], False
        while not done:
            obs, _, terminated, truncated, info = env.step(model.predict(obs, deterministic=True)[0])
            done = terminated or truncated
        ended.append(info["ended"])
    return means(ended, "eval")


def means(ended, group):
    return {f"{group}/{name}": np.mean([episode[name] for episode in ended]) for name in ended[0]} if ended else {}


class Log(BaseCallback):
    """Means over the episodes that ended in a hundredth of the run, and the evaluations."""

    def __init__(self, write, env, total):
        super().__init__()
        self.write, self.env, self.total, self.ended, self.violations = write, env, total, [], 0

    def _on_step(self):
        self.ended += [info["ended"] for info in self.locals["infos"] if "ended" in info]
        if self.num_timesteps % max(1, self.total // sweep.POINTS) == 0:
            self.violations += sum(episode["violation"] for episode in self.ended)
            counts = {"episodes": len(self.ended), "charts/violations_total": self.violations}
            self.write(self.num_timesteps, means(self.ended, "charts") | counts)
            self.ended = []
        if self.num_timesteps % 5000 == 0 and self.num_timesteps < self.total:
            self.write(self.num_timesteps, evaluate(self.model, self.env, 10))
        return True


def main(
    env_id: str = "PushTopple",
    seed: int = 1,
    total_timesteps: int = 50_000,
    reward_shift: float | None = None,  # None: the table's
    gamma: float = 0.99,  # Stable-Baselines3's, as tau
    tau: float = 0.005,
    folder: Path = Path(__file__).parent / "results" / "fig2_reduced",
):
    if env_id not in ENVIRONMENTS:
        sys.exit(f"error: --env-id {env_id}: known are {', '.join(ENVIRONMENTS)}")
    torch.set_num_threads(1)
    module, _, _, table_shift, training = ENVIRONMENTS[env_id]
    shift = table_shift if reward_shift is None else reward_shift
    path = folder / f"{env_id}__sb3-sac__{seed}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    env = Shifted(gym.make(f"{module}:{env_id}", **training), shift)
    model = SAC("MlpPolicy", env, gamma=gamma, tau=tau, seed=seed, device="cpu")
    env = Shifted(gym.make(f"{module}:{env_id}"), shift)
    with open(path, "w", newline="") as file:
        command = f"--env-id {env_id} --seed {seed} --total-timesteps {total_timesteps} --reward-shift {shift:g}"
        command += f" --gamma {gamma:g} --tau {tau:g}"
        file.write(f"# command: python experiments/witness.py {command}\n# commit: {sweep.commit()}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["suite", "env", "algo", "seed", "step", "metric", "value"])

        def write(step, found):
            writer.writerows(["fig2", env_id, "sb3-sac", seed, step, *item] for item in found.items())
            file.flush()

        model.learn(total_timesteps, callback=Log(write, env, total_timesteps))
        write(total_timesteps, found := evaluate(model, env, 40))
    print(", ".join(f"{name} {value:.3g}" for name, value in found.items()), "in", path)


if __name__ == "__main__":
    tyro.cli(main)
