"""Can a violation be foreseen from what is observed? Where it cannot, no safety critic will.

    python experiments/foresight.py --train runs/ONE --test runs/OTHER                  # two runs of one task
    python experiments/foresight.py --train runs/ONE --test runs/OTHER --leave-out 53   # without that number
    python experiments/foresight.py --train runs/ONE --test runs/OTHER --ahead 5        # and those up to five before one

A classifier with Q_c's own network learns from one run's buffer D which transitions violate, and is asked about the
other's. What it gives to those that do, and to those that do not, is printed as it learns. Violations that a network
only knows by heart are foreseen in its own run and not in the other. docs/tasks.md has what this found.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from meta_sac_lag import TwinCritic


def transitions(run_dir, leave_out, ahead):
    """obs, action and whether it violates, or one at most `ahead` steps later does, of the last checkpoint's D"""
    path = run_dir / "checkpoint.pt"
    if not path.exists():
        sys.exit(f"error: there is no checkpoint.pt in {run_dir}; a sweep deletes them, --resume needs them too")
    D = torch.load(path, map_location="cpu", weights_only=True)["parts"]["D"]
    obs = D["obs"].clone()
    obs[:, list(leave_out)] = 0.0
    if not 0 < D["cost"].sum() < len(obs):
        sys.exit(f"error: all transitions of {run_dir} are of one kind: {int(D['cost'].sum())} of {len(obs)} violate")
    violates = D["cost"] > 0
    if ahead:
        goes_on = (D["next_obs"][:-1] == D["obs"][1:]).all(1)  # the next row is of the same episode
        for _ in range(ahead):
            violates[:-1] |= violates[1:] & goes_on
    return obs, D["action"], violates


def main(
    train: Path,
    test: Path,
    leave_out: tuple[int, ...] = (),
    ahead: int = 0,
    steps: int = 8000,
    width: int = 128,
    seed: int = 0,
):
    """Prints a Markdown table.

    Args:
        train: a run folder with a checkpoint, to learn from
        test: another run of the same task
        leave_out: indices of the observation that are set to 0
        ahead: how many steps before a violation count as one
        steps: of Adam, at 1e-3, on batches of 128, as Q_c's
        width: units of both hidden layers
        seed: of the network and the batches
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    obs, action, violates = transitions(train, leave_out, ahead)
    other_obs, other_action, other_violates = transitions(test, leave_out, ahead)
    critic = TwinCritic(obs.shape[1], action.shape[1], width, probability=True)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    print(f"{int(violates.sum())} of {len(obs)} transitions violate; in the other run {int(other_violates.sum())} of "
          f"{len(other_obs)}\n\n| step | violating, own run | violating, other run: mean, median | others, other run |\n"
          "|---|---|---|---|")  # fmt: skip
    for step in range(1, steps + 1):
        i = torch.randint(len(obs), (128,))
        q = critic(obs[i], action[i]).clamp(1e-7, 1 - 1e-7)
        optimizer.zero_grad()
        F.binary_cross_entropy(q, violates[i].float().expand(2, -1)).backward()
        optimizer.step()
        if step % max(1, steps // 4) == 0:
            with torch.no_grad():
                own = critic(obs[violates], action[violates]).amax(0)
                found = critic(other_obs[other_violates], other_action[other_violates]).amax(0)
                rest = critic(other_obs[~other_violates], other_action[~other_violates]).amax(0)
            print(f"| {step} | {own.mean():.2f} | {found.mean():.2f}, {found.median():.3f} | {rest.mean():.4f} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
