"""An independent learner on our tasks: what does Stable-Baselines3's SAC, which knows of no constraint, learn of them?

    pip install stable-baselines3==2.3.2 "numpy<2" "pandas<3"
    python experiments/witness.py --env-id PushTopple --seed 1 --total-timesteps 100000

Its hyperparameters are its own. A violation ends the episode; with the task's reward shift, as in meta_sac_lag.py's
table, that does not pay. Training starts as it does there, the evaluation by the environment's default. The CSV, under
results/witness/ unless --output names it, has a row for each hundredth of the run: means over the episodes that ended
in it, returns without the shift. Its last row is the policy without noise, over 40 episodes. The policy lies beside.
"""

import csv
import os
import shlex
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
COLUMNS = ("return", "violation", "success", "length")


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
            success = info.get("is_success", np.nan) * (1 - violation)
            info = {**info, "ended": (sum(self.rewards), violation, success, len(self.rewards))}
        return obs, reward + self.shift, terminated, truncated, info


class Log(BaseCallback):
    def __init__(self, writer, file, every):
        super().__init__()
        self.writer, self.file, self.every, self.ended = writer, file, every, []

    def _on_step(self):
        self.ended += [info["ended"] for info in self.locals["infos"] if "ended" in info]
        if self.num_timesteps % self.every == 0:
            row(self.writer, self.num_timesteps, self.ended)
            self.file.flush()
            self.ended = []
        return True


def row(writer, step, ended):
    means = np.mean(ended, axis=0) if ended else [np.nan] * len(COLUMNS)
    writer.writerow([step, len(ended), *(f"{mean:.4g}" for mean in means)])


def main(
    env_id: str = "PushTopple",
    seed: int = 1,
    total_timesteps: int = 100_000,
    reward_shift: float | None = None,  # None: the table's
    output: Path | None = None,
):
    if env_id not in ENVIRONMENTS:
        sys.exit(f"error: --env-id {env_id}: known are {', '.join(ENVIRONMENTS)}")
    torch.set_num_threads(1)
    module, _, _, table_shift, training = ENVIRONMENTS[env_id]
    shift = table_shift if reward_shift is None else reward_shift
    path = output or Path(__file__).parent / "results" / "witness" / f"{env_id}__{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    model = SAC("MlpPolicy", Shifted(gym.make(f"{module}:{env_id}", **training), shift), seed=seed, device="cpu")
    with open(path, "w", newline="") as file:
        file.write(f"# {shlex.join(['python', *sys.argv])}\n# commit {sweep.commit()}\n# reward shift {shift:g}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "episodes", *COLUMNS])
        model.learn(total_timesteps, callback=Log(writer, file, max(1, total_timesteps // 100)))
        model.save(path.with_suffix(".zip"))
        env, ended = Shifted(gym.make(f"{module}:{env_id}"), shift), []
        for episode in range(40):
            obs, done = env.reset(seed=10_000 + episode)[0], False
            while not done:
                obs, _, terminated, truncated, info = env.step(model.predict(obs, deterministic=True)[0])
                done = terminated or truncated
            ended.append(info["ended"])
        row(writer, "evaluation", ended)
    print(f"{env_id}: {dict(zip(COLUMNS, np.mean(ended, axis=0).round(3)))}, in {path}")


if __name__ == "__main__":
    tyro.cli(main)
