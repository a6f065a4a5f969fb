# Meta SAC-Lag: safe reinforcement learning that tunes its own safety threshold epsilon and exploration temperature
# alpha by metagradients. Honari, Ghafarian Tamizi, Soufi Enayati and Najjaran (2024), arXiv:2408.07962.
#
#   python meta_sac_lag.py --env-id EggManipulate --seed 1
#   tensorboard --logdir runs
#   python meta_sac_lag.py --resume runs/FOLDER
#   python meta_sac_lag.py --evaluate runs/FOLDER --capture-video
#
# The loop at the bottom is the paper's Algorithm 1; every step names its line and equation. What the paper leaves open
# is decided in README.md, "Paper / ours / why". The environment contract: Gymnasium's five-tuple, and info["cost"] at
# every step (a violation is cost > 0).
import atexit
import importlib
import itertools
import json
import math
import os
import random
import re
import shlex
import signal
import sys
import time
import zipfile
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.func import functional_call
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# id after --env-id -> the module that registers it, nu's initial value (Table 1), and the factor on its rewards, which
# is ours: CarCircle2's 0.01 a step would drown in the entropy of alpha = 1
ENVIRONMENTS = {
    "HumanoidVelocity": ("benchmark_envs", 10.0, 1.0),
    "FrankaDrawerClose": ("benchmark_envs", 10.0, 1.0),
    "CarCircle2": ("benchmark_envs", 100.0, 20.0),
    "PushTopple": ("benchmark_envs", 1000.0, 1.0),
    "EggManipulate": ("benchmark_envs", 100.0, 1.0),
    # Table 2's settings; nu is ours, untuned
    **{f"PourCoffee{row}": ("pour_coffee_env", 10.0, 1.0) for row in ("", "Sim1", "Sim2", "Sim3", "Sim4")},
}
OTHER = ("", 10.0, 1.0)  # for any other environment: ours, untuned
FORMAT = "meta_sac_lag 2"  # of the files that `save` writes; another number where an old file would be misread


@dataclass
class Args:
    exp_name: str = "meta_sac_lag"  # the name of this experiment, part of the run folder's name
    env_id: str = "EggManipulate"  # a task of this project, any id that Gymnasium knows, or my_module:MyEnv-v0
    seed: int = 1  # seed of the environment's episodes, the networks, the exploration and the batches
    torch_deterministic: bool = True  # whether cuDNN is held to deterministic algorithms
    cuda: bool = True  # whether to train on the GPU where there is one
    track: bool = False  # whether to log to Weights & Biases too (pip install wandb); no videos
    wandb_project_name: str = "meta-sac-lag"  # the Weights & Biases project
    wandb_entity: str | None = None  # the Weights & Biases entity (team)
    capture_video: bool = False  # whether to record videos, of some training episodes and of every evaluation
    checkpoint_every: int = 10_000  # steps between two checkpoints, written at the next episode end; 0: only at the end
    resume: str | None = None  # a run folder: goes on from its last checkpoint, with its arguments
    evaluate: str | None = None  # a run folder (its last policy) or a policy_*.pt: no training, a table and a JSON file
    episodes: int = 10  # episodes of an evaluation
    eval_every: int = 0  # steps between two evaluations while training, at the next episode end; 0: none
    real_robot: bool = False  # whether Pour Coffee is a Kinova Gen3's: read "On the real arm" in README.md first
    robot_ip: str = "192.168.1.10"  # the robot's address; fake: a rehearsal on a simulated arm
    spill_scale: str | None = None  # a serial port with a scale under the robot's tray, beside the operator's key

    # Algorithm specific arguments
    total_timesteps: int = 1_000_000  # environment steps of the run
    learning_starts: int = 5000  # steps with uniformly random actions before the first update
    buffer_size: int = 1_000_000  # capacity of the replay buffers D and D_s
    batch_size: int = 256  # transitions in each of B, B' and the safety critic's batch, and initial states in alpha's
    hidden_size: int = 256  # units in each of the two hidden layers of every network
    gamma_r: float = 0.99  # discount factor of the reward critic
    gamma_c: float = 0.99  # discount factor of the safety critic
    tau: float = 0.005  # Polyak rate of the target critics
    policy_lr: float = 3e-4  # beta_phi, the policy's learning rate (RMSProp)
    q_lr: float = 1e-3  # learning rate of both critics (Adam)
    rmsprop_decay: float = 0.99  # decay of RMSProp's running mean of squared gradients
    reward_scale: float | None = None  # factor on rewards, but not on logged returns; None: 20 for CarCircle2, else 1
    nu_init: float | None = None  # initial Lagrange multiplier; None: Table 1's, 10 for other environments
    nu_lr: float = 3e-4  # beta_nu (RMSProp)
    epsilon_init: float = 1.0  # initial safety threshold
    epsilon_lr: float = 3e-4  # beta_epsilon (RMSProp)
    alpha_init: float = 1.0  # initial exploration temperature
    alpha_lr: float = 3e-4  # beta_alpha (Adam on log alpha)
    epsilon_objective: Literal["linear", "nonlinear"] = "linear"  # J_epsilon: linear is Eq. 14, nonlinear is Eq. 16
    epsilon_step: Literal["ascent", "descent"] = "ascent"  # the sign of epsilon's step; Eq. 13 prints ascent
    alpha_through_epsilon: bool = True  # whether alpha's metagradient includes its path through epsilon' (Eq. 15)
    store_violations_in_d: bool = True  # whether D keeps violations too (Appendix B); off: Alg. 1's printed else
    initial_states: int = 256  # resets made before training to fill D_0


class Actor(nn.Module):
    """pi_phi: a Gaussian squashed by tanh. Actions lie in [-1, 1]; they are scaled to the environment's box outside."""

    def __init__(self, obs_dim, action_dim, hidden_size):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(obs_dim, hidden_size), nn.ReLU(inplace=True),
            nn.Linear(hidden_size, hidden_size), nn.ReLU(inplace=True),
            nn.Linear(hidden_size, 2 * action_dim),
        )  # fmt: skip

    def forward(self, obs, log_pi=True):
        """obs (batch, obs_dim) -> a ~ pi (batch, action_dim), log pi(a|s) (batch,), pi_det (batch, action_dim)

        log_pi=False leaves log pi out, for the time that it takes.
        """
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        log_std = -5 + 3.5 * (torch.tanh(log_std) + 1)  # in [-5, 2], as in CleanRL
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        if not log_pi:
            return torch.tanh(u), None, torch.tanh(mean)
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_dtanh = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), without overflow
        return torch.tanh(u), (log_normal - log_dtanh).sum(-1), torch.tanh(mean)


class TwinCritic(nn.Module):
    """Two Q networks. Q_c ends in a sigmoid: it is the probability of a violation to come (Section 3.1).

    Both are evaluated at once: weights are (2, inputs, outputs). The first layer takes obs and action apart: the policy
    is improved through the action alone, and a gradient of obs would be computed in vain.
    """

    def __init__(self, obs_dim, action_dim, hidden_size, probability):
        super().__init__()

        def uniform(fan_in, *shape):  # nn.Linear's initial values
            return nn.Parameter(torch.empty(2, *shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))

        n, h = obs_dim + action_dim, hidden_size
        self.weight_obs, self.weight_action = uniform(n, obs_dim, h), uniform(n, action_dim, h)
        self.weight_2, self.weight_3 = uniform(h, h, h), uniform(h, h, 1)
        self.bias_1, self.bias_2, self.bias_3 = uniform(n, 1, h), uniform(h, 1, h), uniform(h, 1, 1)
        self.activation, self.probability = nn.ReLU(inplace=True), probability

    def forward(self, obs, action, logits=False):
        """obs (batch, obs_dim), action (batch, action_dim) in [-1, 1] -> both values (2, batch), logits: unsquashed"""
        x = torch.baddbmm(self.bias_1, obs.expand(2, -1, -1), self.weight_obs)
        x = self.activation(torch.baddbmm(x, action.expand(2, -1, -1), self.weight_action))
        x = self.activation(torch.baddbmm(self.bias_2, x, self.weight_2))
        q = torch.baddbmm(self.bias_3, x, self.weight_3).squeeze(-1)
        return q.sigmoid() if self.probability and not logits else q

    def tangent(self, obs, action):
        """-> the worse twin's value (batch,), max of Q_c or min of Q_r, for second derivatives by the action.

        ReLU makes Q piecewise linear, up to the sigmoid. So its tangent in the action has the same derivatives, of all
        orders, and a Hessian need not pass through the networks again. With another activation it would be wrong.
        """
        at = action.detach().requires_grad_()
        q = self(obs, at, logits=True)
        q = q.amax(0) if self.probability else q.amin(0)
        (dq_da,) = torch.autograd.grad(q.sum(), at)
        q = q.detach() + (dq_da * (action - at.detach())).sum(-1)
        return q.sigmoid() if self.probability else q


class ReplayBuffer:
    """A ring of float32 rows, one array per named field. The arrays take memory only as they fill."""

    def __init__(self, capacity, rng, device, **shapes):
        self.rows = {field: np.zeros((capacity, *shape), np.float32) for field, shape in shapes.items()}
        self.capacity, self.rng, self.device, self.added = capacity, rng, device, 0

    def __len__(self):
        return min(self.added, self.capacity)

    def add(self, **row):
        for field, value in row.items():
            self.rows[field][self.added % self.capacity] = value
        self.added += 1

    def sample(self, batch_size, other=None):
        """Rows drawn uniformly, with replacement, from this buffer, or from it and the other as one, as tensors."""
        index = self.rng.integers(len(self) + (len(other) if other else 0), size=batch_size)
        batch = {field: rows.take(index, axis=0, mode="clip") for field, rows in self.rows.items()}
        if other:
            theirs = index >= len(self)
            for field, rows in batch.items():
                rows[theirs] = other.rows[field][index[theirs] - len(self)]
        return SimpleNamespace(**{field: torch.as_tensor(rows, device=self.device) for field, rows in batch.items()})

    def state_dict(self):
        return {"added": self.added, **{f: torch.from_numpy(rows[: len(self)]) for f, rows in self.rows.items()}}

    def load_state_dict(self, state):
        self.added = state["added"]
        for field, rows in self.rows.items():
            rows[: len(self)] = state[field].numpy()


def rmsprop(theta, gradient, square_avg, learning_rate, decay, constant):
    """One step of RMSProp *up* the gradient: theta' = theta + beta g / sqrt(v' + constant), and v'.

    A pure function of tensors of one shape, which autograd could differentiate. Here its derivatives are written out,
    below: that is faster (README). The constant stands inside the root because the derivative of the root at 0 is
    infinite, and a dead ReLU's gradient is exactly 0 (Appendix B has RMSProp for nu, phi and epsilon).
    """
    square_avg = decay * square_avg + (1 - decay) * gradient.square()
    return theta + learning_rate * gradient / (square_avg + constant).sqrt(), square_avg


def rmsprop_derivatives(gradient, square_avg, learning_rate, decay, constant):
    """dtheta'/dg and d2theta'/dg2 of that step, elementwise; square_avg is v, from before it."""
    kept = decay * square_avg + constant
    root2 = kept + (1 - decay) * gradient.square()
    first = learning_rate * kept / (root2 * root2.sqrt())
    return first, -3 * (1 - decay) * gradient * first / root2


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def unflat(vector, like):
    """The vector's pieces as {name: tensor}, in the shapes of `like`."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.view_as(tensor) for part, (name, tensor) in zip(parts, like.items())}


def episode_seed(seed, k, stream=0):
    """The seed of training episode k (the resets that fill D_0 come first); stream=1: of evaluation episode k."""
    return int(np.random.SeedSequence([seed, k, stream]).generate_state(1)[0])


# ---- From here to the main program: the environment's contract, evaluation and files; nothing of the method ----


def fail(message):
    tqdm.write(f"error: {message}", file=sys.stderr)  # print would tear the progress bar
    sys.exit(1)


class Contract(gym.Wrapper):
    """The environment contract, kept and checked at every step. What breaks it ends the program with one line.

    Actions arrive in [-1, 1] and are scaled to the environment's box only here. A violation terminates (constraints are
    hard, Section 5.1). An episode follows from its seed alone, so that no environment's generator has a history. Its
    last info has its statistics in info["episode"], unless the machine failed.
    """

    def __init__(self, env, env_id):
        super().__init__(env)
        self.env_id, self.box, self.noted, self.kinds = env_id, env.action_space, False, {}
        self.action_space = gym.spaces.Box(-1, 1, self.box.shape, np.float32)

    def reset(self, *, seed=None, options=None):
        random.seed(seed)  # this and the next for environments that use the global generators
        np.random.seed(seed)
        try:
            obs, info = self.env.reset(seed=seed, options=options)
        except gym.error.Error as error:  # a robot that cannot go on, or its operator
            fail(error)
        self.check_finite(observation=obs)
        self.statistics = {"episodic_return": 0.0, "episodic_length": 0}
        self.means = {"acceleration": [], "jerk": [], "delay": [], "overrun": []}
        return obs, info

    def step(self, action):
        """action (action_dim,) in [-1, 1] -> Gymnasium's five, info["cost"] being 0.0 or 1.0"""
        self.check_finite(action=action)
        low, high = self.box.low, self.box.high
        action = np.clip(low + (action + 1) / 2 * (high - low), low, high)
        obs, reward, terminated, truncated, info = self.env.step(action)
        if info.get("infra_failure", False):  # a lost robot link is neither the policy's doing nor its data
            return obs, reward, terminated, True, {**info, "cost": 0.0}
        try:
            cost = float(info["cost"])
        except (KeyError, TypeError, ValueError):
            cost = math.nan
        if math.isnan(cost):
            given = info.get("cost", "nothing")
            fail(f'{self.env_id} must give info["cost"], a number, at every step, but gave {given}')
        self.check_finite(observation=obs, reward=reward)
        info = {**info, "cost": float(cost > 0)}
        if cost > 0 and not terminated and not self.noted:
            tqdm.write(f"note: {self.env_id} did not terminate on a violation; its episodes end there all the same")
            self.noted = True
        terminated = bool(terminated or cost > 0)

        self.statistics["episodic_return"] += float(reward)
        self.statistics["episodic_length"] += 1
        for key, values in self.means.items():
            values.extend([self.number(info, key)] if key in info else [])
        if terminated or truncated:
            self.statistics["violation"] = info["cost"]
            kinds = {key: float(self.number(info, key) > 0) for key in info if key.startswith("cost_")}
            if "is_success" in info:  # at the last step, and no step violated
                kinds["success"] = self.number(info, "is_success") * (1 - info["cost"])
            self.statistics |= self.kinds | kinds
            self.kinds |= dict.fromkeys(kinds, 0.0)  # for an environment that tells only what happened
            self.statistics |= {key: float(np.mean(values)) for key, values in self.means.items() if values}
            info["episode"] = self.statistics
        return obs, reward, terminated, truncated, info

    def number(self, info, key):
        try:
            return float(info[key])
        except (TypeError, ValueError):
            fail(f'where {self.env_id} gives info["{key}"], that must be a number, not {info[key]}')

    def check_finite(self, **given):
        for name, numbers in given.items():
            if not (np.abs(numbers) < 3.4e38).all():  # float32's range, and not NaN
                fail(f"in {self.env_id} the {name} is not finite: {np.asarray(numbers).tolist()}")


def make_env(env_id, render, **robot):
    """gym.make, a flat observation and the contract; an unusable id, or robot, ends the program with one line."""
    if robot:
        try:
            return Contract(gym.make("kinova_real:KinovaPourCoffee", **robot), env_id)
        except (gym.error.Error, ImportError) as error:
            fail(error)
    module, *_ = ENVIRONMENTS.get(env_id, OTHER)
    try:
        prefix, colon, _ = env_id.rpartition(":")
        if colon and not all(part.isidentifier() for part in prefix.split(".")):
            raise gym.error.Error(f"{prefix!r} cannot be a module's name")
        full_id = f"{module}:{env_id}" if module else env_id
        env = gym.make(full_id)
        if render:
            env.close()
            if "rgb_array" not in env.metadata.get("render_modes", []):
                raise gym.error.Error("it has no render mode rgb_array for --capture-video")
            env = gym.make(full_id, render_mode="rgb_array")
    except (gym.error.Error, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        known = f"Known: {', '.join(ENVIRONMENTS)}; besides, every id of Gymnasium, and my_module:MyEnv-v0"
        fail(f"cannot make --env-id {env_id}: {reason}. {known}")
    box = env.action_space
    continuous = isinstance(box, gym.spaces.Box) and np.issubdtype(box.dtype, np.floating)
    if not continuous or len(box.shape) != 1 or not np.isfinite([box.low, box.high]).all():
        fail(f"actions must be a bounded, one-dimensional Box (continuous), but {env_id} has {box}")
    if not env.observation_space.is_np_flattenable:
        fail(f"observations must fit a flat vector, but {env_id} has {env.observation_space}")
    return Contract(gym.wrappers.FlattenObservation(env), env_id)


def check_fit(saved, path, env, hidden_size):
    """Ends the program with one line if a policy was made for other sizes or another box of actions."""
    here = dict(obs_dim=env.observation_space.shape[0], action_dim=len(env.box.low), hidden_size=hidden_size)
    here.update(action_low=env.box.low.tolist(), action_high=env.box.high.tolist())
    there = {**saved["sizes"], "action_low": saved["action_low"].tolist(), "action_high": saved["action_high"].tolist()}
    for name in here:
        if here[name] != there[name]:
            fail(f"{path} was made with {name} {there[name]}, but here it is {here[name]}")


def load_states(parts, states, path):
    try:
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except (RuntimeError, KeyError) as error:
        fail(f"{path} does not fit this script: {' '.join(str(error).split())}")


def evaluate(policy, folder, seed, episodes, device, video, **robot):
    """Whole episodes of pi_det, on an environment of their own -> {metric: one number per episode}.

    Writes them to eval_{step}.json (_real or _fake: on a robot), with mean and standard deviation. The training's
    generators are not touched.
    """
    results, name = {}, f"eval_{policy['step']}{which_arm(**robot)}"
    env = make_env(policy["env_id"], video, **robot)
    check_fit(policy, folder, env, policy["sizes"]["hidden_size"])
    if video:
        env = gym.wrappers.RecordVideo(env, f"{folder}/videos", lambda _: True, name_prefix=name, disable_logger=True)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        actor = Actor(**policy["sizes"]).to(device)
        load_states({"actor": actor}, policy, folder)
        for k in range(episodes):
            (obs, _), done = env.reset(seed=episode_seed(seed, k, stream=1)), False
            while not done:
                action = actor(torch.as_tensor(obs, dtype=torch.float32, device=device)[None])[2][0].cpu().numpy()
                obs, _, terminated, truncated, info = env.step(action)
                done = terminated or truncated
            before = len(results.get("violation", []))
            for key, value in info.get("episode", {}).items():
                untold = [0.0] * before if key.startswith(("cost_", "success")) else []
                results.setdefault(key, untold).append(value)
    env.close()
    mean, std = ({key: float(f(values)) for key, values in results.items()} for f in (np.mean, np.std))
    facts = dict(env_id=policy["env_id"], step=policy["step"], seed=seed) | robot
    try:
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(facts | dict(mean=mean, std=std, episodes=results), file, indent=1)
    except OSError as error:
        tqdm.write(f"warning: cannot write {folder}/{name}.json: {error.strerror}", file=sys.stderr)
    return results


def which_arm(robot_ip=None, **_):
    """What a robot's folders and files have in their names."""
    return "" if robot_ip is None else "_fake" if robot_ip.startswith("fake") else "_real"


def save(state, path, previous=None):
    """A file that is found under path or previous is whole, whatever happens meanwhile. May raise OSError."""
    try:
        with open(path + ".tmp", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if previous and os.path.exists(path):
            os.replace(path, previous)
        os.replace(path + ".tmp", path)
    except BaseException as error:
        if os.path.isfile(path + ".tmp"):
            os.remove(path + ".tmp")
        # torch.save hides what went wrong, be it a full disk or a signal's SystemExit
        while error.__context__ and not isinstance(error, (OSError, SystemExit)):
            error = error.__context__
        raise error from None


def load(path, fallback=None):
    """What `save` wrote, on the CPU; no code in it can run. A damaged file is put aside where there is a fallback."""
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # torch.load compares no checksums
                raise ValueError(f"{damaged} is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch have a dozen for this
        problem = f"cannot read {path}: {getattr(error, 'strerror', None) or str(error).partition(chr(10))[0]}"
        unread = isinstance(error, (PermissionError, MemoryError)) or "can't allocate memory" in problem
        if unread or not fallback or not os.path.exists(fallback):
            fail(problem)
        print(f"note: {problem}; going back to {fallback}")
        if os.path.exists(path):  # or the next checkpoint would push the good one out
            os.replace(path, path + ".damaged")
        return load(fallback)
    found = saved.get("format") if isinstance(saved, dict) else None
    if found != FORMAT:
        fail(f"{path} has the format {found!r}, but this script reads {FORMAT!r}")
    return saved


def lock(run_dir):
    """Two processes in one folder would ruin each other's checkpoints. The lock ends with the process."""
    if not os.access(run_dir, os.W_OK):
        fail(f"cannot write to the folder {run_dir}")
    try:
        import fcntl

        fcntl.flock(os.open(run_dir, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another process is training in {run_dir}")
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass


def interrupt(signum, _):
    signal.signal(signum, signal.SIG_DFL)  # a second one ends the program at once
    sys.exit(128 + signum)


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    args, checkpoint = tyro.cli(Args), None
    if args.resume is not None and args.evaluate is not None:
        fail("--resume goes on with the training and --evaluate does not train: give one of them")
    if args.resume is not None:
        run_dir = args.resume.rstrip("/")
        if not os.path.isdir(run_dir):
            fail(f"there is no run folder {run_dir!r}")
        lock(run_dir)
        checkpoint = load(f"{run_dir}/checkpoint.pt", fallback=f"{run_dir}/checkpoint.prev.pt")
        args = tyro.cli(Args, default=Args(**{**checkpoint["args"], "resume": None}))
        if args.total_timesteps <= checkpoint["step"]:
            fail(f"{run_dir} has {checkpoint['step']} steps; a larger --total-timesteps takes it further")
        may_change = {"total_timesteps", "checkpoint_every", "eval_every", "episodes", "hidden_size", "resume"}
        may_change |= {"real_robot", "robot_ip", "spill_scale", "capture_video", "track"}  # hidden_size: see check_fit
        for name in checkpoint["args"].keys() - may_change:
            if getattr(args, name) != checkpoint["args"][name]:
                flag = f"--{name.replace('_', '-')}"
                print(f"note: {flag} {getattr(args, name)} is not taken, the run keeps its {checkpoint['args'][name]}")
                setattr(args, name, checkpoint["args"][name])
    args.env_id = args.env_id.removeprefix("benchmark_envs:")  # either spelling gets Table 1's nu
    _, table_nu_init, table_reward_scale = ENVIRONMENTS.get(args.env_id, OTHER)
    args.nu_init = table_nu_init if args.nu_init is None else args.nu_init
    args.reward_scale = table_reward_scale if args.reward_scale is None else args.reward_scale
    for rule, holds, names in (
        ("at least 1", lambda x: x >= 1, "total_timesteps buffer_size batch_size hidden_size initial_states episodes"),
        ("at least 0", lambda x: x >= 0, "learning_starts checkpoint_every eval_every"),
        ("in [0, 2^32)", lambda x: 0 <= x < 2**32, "seed"),
        ("finite and at least 0", lambda x: 0 <= x < np.inf, "policy_lr q_lr nu_lr epsilon_lr alpha_lr nu_init"),
        ("finite and above 0", lambda x: 0 < x < np.inf, "reward_scale"),
        ("in [0, 1)", lambda x: 0 <= x < 1, "gamma_r gamma_c rmsprop_decay"),
        ("in [0, 1]", lambda x: 0 <= x <= 1, "epsilon_init"),
        ("in (0, 1]", lambda x: 0 < x <= 1, "alpha_init tau"),
    ):
        for name in names.split():
            if not holds(getattr(args, name)):
                fail(f"--{name.replace('_', '-')} must be {rule}, not {getattr(args, name)}")

    for flag, package in (("track", "wandb"), ("capture_video", "moviepy")):
        try:
            if getattr(args, flag):
                importlib.import_module(package)
        except ImportError:
            fail(f"--{flag.replace('_', '-')} needs {package}: pip install {package}")
    if not args.real_robot and (args.robot_ip != Args.robot_ip or args.spill_scale):
        print("note: --robot-ip and --spill-scale do nothing without --real-robot")
    robot = dict(robot_ip=args.robot_ip, scale=args.spill_scale) if args.real_robot else {}
    if robot and (args.capture_video or args.eval_every):
        fail("--real-robot takes --no-capture-video and --eval-every 0 alone; --evaluate runs a policy on the arm")
    arm, parent = which_arm(**robot), None
    if checkpoint and arm != checkpoint.get("arm", ""):  # a robot's run and its twin's, or a rehearsal's, stay apart
        parent = run_dir

    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    sys.path.append(os.getcwd())  # `--env-id my_module:MyEnv-v0` finds my_module.py in the current folder

    if args.evaluate is not None:
        path = args.evaluate
        if os.path.isdir(path):
            steps = [int(match[1]) for name in os.listdir(path) if (match := re.fullmatch(r"policy_(\d+)\.pt", name))]
            if not steps:
                fail(f"there is no policy_*.pt in {path}")
            path = os.path.join(path, f"policy_{max(steps)}.pt")
        policy, folder = load(path), os.path.dirname(path) or "."
        if args.env_id not in (Args.env_id, policy["env_id"]):
            print(f"note: --env-id {args.env_id} is not taken, the policy is evaluated on its own")
        if robot and "PourCoffee" not in policy["env_id"]:
            fail(f"--real-robot is for Pour Coffee's policies, but {path} is of {policy['env_id']}")
        results = evaluate(policy, folder, args.seed, args.episodes, device, args.capture_video, **robot)
        done = len(results.get("violation", []))  # fewer where the machine failed
        print(f"{path} on {policy['env_id']}{arm}: {done} episodes, deterministic policy, seed {args.seed}")
        print(f"{'':20}{'mean':>12}{'std':>12}")
        for key, values in results.items():
            print(f"{key:20}{np.mean(values):12.3f}{np.std(values):12.3f}")
        sys.exit()

    if robot:
        if args.env_id not in ("PourCoffee", "PourCoffeeSim1", "kinova_real:PourCoffeeTwin"):
            fail(f"--real-robot trains Table 2's row Real, as --env-id PourCoffee does, but this is {args.env_id}")
        # Each reset is a person's work, and what is lost there cannot be done again
        args.initial_states = args.initial_states if checkpoint else 1
        args.learning_starts = min(args.learning_starts, 500)
        args.checkpoint_every = min(args.checkpoint_every or 100, 100)
        facts = f"--learning-starts {args.learning_starts}, --checkpoint-every {args.checkpoint_every}"
        print(f"note: on the arm --initial-states is {args.initial_states}, {facts}")
    if args.learning_starts >= args.total_timesteps:
        print("note: no update will be made, --learning-starts is not below --total-timesteps")
    # The environment comes before the run folder, so that an unusable id leaves none behind.
    env = make_env(args.env_id, args.capture_video, **robot)
    kinds = env.kinds  # of violation, and success, where the environment has told of them: known after a resume too
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    if checkpoint:
        check_fit(checkpoint, run_dir, env, args.hidden_size)
    sizes = dict(obs_dim=obs_dim, action_dim=action_dim, hidden_size=args.hidden_size)
    action_low, action_high = torch.as_tensor(env.box.low), torch.as_tensor(env.box.high)

    if not checkpoint or parent:  # the run folder, never one that exists
        run_name = f"{args.env_id}{arm}__{args.exp_name}__{args.seed}__{int(time.time())}"
        base = run_dir = os.path.join("runs", run_name.replace(":", "_").replace("/", "_"))
        for attempt in itertools.count(2):
            try:
                os.makedirs(run_dir)
                break
            except FileExistsError:
                run_dir = f"{base}-{attempt}"
            except OSError as error:
                fail(f"cannot make the run folder {run_dir}: {error.strerror}")
        lock(run_dir)
    if args.track:
        import wandb

        wandb.init(
            project=args.wandb_project_name, entity=args.wandb_entity, name=os.path.basename(run_dir),
            config=vars(args), sync_tensorboard=True, save_code=True, id=os.path.basename(run_dir), resume="allow",
        )
    if checkpoint and not parent:  # what was logged after the checkpoint will be logged again
        writer = SummaryWriter(run_dir, purge_step=checkpoint["step"] + 1)
    else:
        writer = SummaryWriter(run_dir)
        table = "\n".join(f"|{key}|{value}|" for key, value in vars(args).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
    if parent:
        writer.add_text("parent", parent)
        print(f"goes on from step {checkpoint['step']} of {parent}, in a folder of its own")

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    why = " (CUDA is not available)" if args.cuda and device.type == "cpu" else ""
    env_name = args.env_id + arm
    print(f"{env_name}: observation {obs_dim}, action {action_dim}. Training on {device}{why}, logging to {run_dir}")

    # Require: the policy phi, the critics omega_r and omega_c, the Lagrange multiplier nu, epsilon and alpha
    actor = Actor(obs_dim, action_dim, args.hidden_size).to(device)
    phi = dict(actor.named_parameters())
    qr, qr_target = (TwinCritic(obs_dim, action_dim, args.hidden_size, probability=False).to(device) for _ in range(2))
    qc, qc_target = (TwinCritic(obs_dim, action_dim, args.hidden_size, probability=True).to(device) for _ in range(2))
    qr_target.load_state_dict(qr.state_dict())
    qc_target.load_state_dict(qc.state_dict())
    qr_optimizer = torch.optim.Adam(qr.parameters(), lr=args.q_lr, fused=True)
    qc_optimizer = torch.optim.Adam(qc.parameters(), lr=args.q_lr, fused=True)
    nu = torch.tensor(args.nu_init, device=device)
    epsilon = torch.tensor(args.epsilon_init, device=device)
    log_alpha = torch.tensor(math.log(args.alpha_init), device=device, requires_grad=True)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=args.alpha_lr, fused=True)
    # RMSProp's running means of squared gradients
    nu_square, epsilon_square = torch.zeros_like(nu), torch.zeros_like(epsilon)
    phi_square = torch.zeros_like(flat(phi.values()))

    # Alg. 1, line 1: the buffers. D_s keeps the reward too, though only the safety critic reads it.
    fields = dict(obs=(obs_dim,), action=(action_dim,), reward=(), cost=(), next_obs=(obs_dim,), terminated=())
    capacity = min(args.buffer_size, args.total_timesteps)
    try:
        D, D_s = (ReplayBuffer(capacity, rng, device, **fields) for _ in range(2))
    except MemoryError:
        fail(f"the memory has no room for --buffer-size {args.buffer_size}")
    D_0 = ReplayBuffer(max(10_000, args.initial_states), rng, device, obs=(obs_dim,))

    global_step, checkpoint_step, episode, violations_total = 0, None, 0, 0
    recent_violations, recent_successes, metrics = [], [], {}
    first_not_finite = torch.zeros(1, dtype=torch.int64, device=device)  # for each of `metrics`, the step

    # What a run consists of, for its checkpoints
    parts = dict(
        actor=actor, qr=qr, qc=qc, qr_target=qr_target, qc_target=qc_target, qr_optimizer=qr_optimizer,
        qc_optimizer=qc_optimizer, alpha_optimizer=alpha_optimizer, D=D, D_s=D_s, D_0=D_0,
    )

    def tensors():
        squares = dict(nu_square=nu_square, epsilon_square=epsilon_square, phi_square=phi_square)
        return dict(nu=nu, epsilon=epsilon, log_alpha=log_alpha) | squares

    if checkpoint:
        load_states(parts, checkpoint["parts"], run_dir)
        with torch.no_grad():
            for name, tensor in tensors().items():
                tensor.copy_(checkpoint["tensors"][name])
        global_step, episode, violations_total, recent_violations, recent_successes = checkpoint["counters"]
        kinds |= checkpoint.get("kinds", {})
        if parent:  # the arm's own
            violations_total, recent_violations, recent_successes = 0, [], []
        rng.bit_generator.state, torch_rng, cuda_rng = checkpoint["generators"]
        torch.set_rng_state(torch_rng)
        if device.type == "cuda" and cuda_rng is not None:
            torch.cuda.set_rng_state(cuda_rng, device)
        torch.set_num_threads(checkpoint["threads"])  # with another number sums round differently
        checkpoint, checkpoint_step = None, None if parent else global_step

    def log(metrics, flush=False):
        # A full disk ends TensorBoard's writer for good, but not the training: the next flush opens another.
        global writer
        try:
            if flush and writer is None:
                writer = SummaryWriter(run_dir)
            for tag, value in metrics.items() if writer else ():
                writer.add_scalar(tag, value, global_step)
            if flush:
                writer.flush()
        except OSError as error:
            writer = None
            bar.write(f"warning: cannot log to {run_dir} ({error.strerror}); the training goes on", file=sys.stderr)

    def stop_if_not_finite():
        bad = {tag: step for tag, step in zip(metrics, first_not_finite.tolist()) if step}
        if bad:
            first = min(bad.values())
            fail(f"not finite at step {first}: {', '.join(tag for tag in bad if bad[tag] == first)}")

    # However the program ends from here on, it says how the run can go on.
    def farewell():
        bar.close()
        if checkpoint_step is None:
            print(f"stopped at step {global_step}; the first checkpoint was not reached", file=sys.stderr)
        elif checkpoint_step < args.total_timesteps:
            again = ["--resume", run_dir]
            if args.resume and not parent:  # with the flags that were changed: no checkpoint may have them yet
                again = sys.argv[1:]
            command = shlex.join(["python", sys.argv[0], *again])
            print(
                f"stopped at step {global_step}; the last good checkpoint in {run_dir} is of step {checkpoint_step}. "
                f"To go on from it, {global_step - checkpoint_step} steps again: {command}", file=sys.stderr,
            )
        log({}, flush=True)
        env.close()

    bar_every = 0.5 if sys.stderr.isatty() else 30
    bar = tqdm(total=args.total_timesteps, initial=global_step, unit="step", mininterval=bar_every)
    atexit.register(farewell)

    # Alg. 1, line 2: D_0 approximates rho_0; each episode adds its first state to these.
    while episode < args.initial_states:
        obs, _ = env.reset(seed=episode_seed(args.seed, episode))
        episode += 1
        D_0.add(obs=obs)
    if args.capture_video:
        env = gym.wrappers.RecordVideo(env, os.path.join(run_dir, "videos"), name_prefix="train", disable_logger=True)

    first_step, start_time = global_step, time.time()
    while global_step < args.total_timesteps:  # Alg. 1, line 3
        if args.capture_video:
            # The same names and choice of episodes after a resume. Gymnasium 1.x counts before it names.
            env.episode_id = episode - args.initial_states - (gym.__version__ >= "1")
        obs, _ = env.reset(seed=episode_seed(args.seed, episode))  # Alg. 1, line 4
        episode += 1
        D_0.add(obs=obs)
        episode_start, done = global_step, False
        while not done and global_step < args.total_timesteps:  # Alg. 1, line 5
            # Alg. 1, line 6: a_t ~ pi_phi; uniform before learning starts
            if global_step < args.learning_starts:
                action = rng.uniform(-1, 1, action_dim).astype(np.float32)
            else:
                with torch.no_grad():
                    action = actor(torch.as_tensor(obs, dtype=torch.float32, device=device)[None])[0][0].cpu().numpy()
                if not np.isfinite(action).all():  # the contract refuses it too, but cannot name the cause
                    stop_if_not_finite()

            global_step += 1
            bar.update()
            next_obs, reward, terminated, truncated, info = env.step(action)  # Alg. 1, line 7
            if info.get("infra_failure", False):  # stored nowhere, and no statistic
                break
            cost, done = info["cost"], terminated or truncated

            # Alg. 1, lines 8-11: D stores all transitions and D_s those that violate (Appendix B). The printed `else`
            # keeps violations out of D, so that the reward critic never sees the end that they are.
            row = dict(obs=obs, action=action, reward=reward, cost=cost, next_obs=next_obs, terminated=terminated)
            if cost:
                D_s.add(**row)
            if not cost or args.store_violations_in_d:
                D.add(**row)
            obs = next_obs

            if global_step > args.learning_starts and len(D) > 0:
                # >>> Algorithm 1, lines 12 to 20
                # Alg. 1, line 12 (Eqs. 2, 4): train omega_c on D u D_s. D keeps violations too, so they count twice.
                # The transition's cost stands for Eq. 2's c(s). A violation ends the future: targets stay in [0, 1].
                B_c = D.sample(args.batch_size, D_s)
                with torch.no_grad():
                    next_action, _, _ = actor(B_c.next_obs, log_pi=False)
                    next_qc = qc_target(B_c.next_obs, next_action).amax(0)
                    target_c = B_c.cost + (1 - B_c.cost) * (1 - B_c.terminated) * args.gamma_c * next_qc
                loss_qc = 0.5 * (qc(B_c.obs, B_c.action) - target_c).square().mean(1).sum()
                qc_optimizer.zero_grad()
                loss_qc.backward()
                qc_optimizer.step()

                # Alg. 1, line 13: one batch B for the reward critic and for both inner parameters
                B = D.sample(args.batch_size)

                # Alg. 1, line 14 (Eqs. 4-5): train omega_r. Termination ends the return, truncation does not.
                alpha = log_alpha.detach().exp()
                with torch.no_grad():
                    next_action, next_log_pi, _ = actor(B.next_obs)
                    next_v = qr_target(B.next_obs, next_action).amin(0) - alpha * next_log_pi
                    target_r = args.reward_scale * B.reward + (1 - B.terminated) * args.gamma_r * next_v
                loss_qr = 0.5 * (qr(B.obs, B.action) - target_r).square().mean(1).sum()
                qr_optimizer.zero_grad()
                loss_qr.backward()
                qr_optimizer.step()
                # Appendix B: omega_bar = tau omega + (1 - tau) omega_bar
                with torch.no_grad():
                    for net, target in ((qr, qr_target), (qc, qc_target)):
                        for omega, omega_bar in zip(net.parameters(), target.parameters()):
                            omega_bar.lerp_(omega, args.tau)

                # Eq. 11, term by term: L = J_r - alpha J_h - nu (J_c - epsilon); Eq. 10's J_r is J_r - alpha J_h here
                action_pi, log_pi, _ = actor(B.obs)
                J_r = qr(B.obs, action_pi).amin(0).mean()
                J_h = log_pi.mean()  # minus the entropy
                J_c = qc(B.obs, action_pi).amax(0).mean()

                # Alg. 1, line 15 (Eqs. 11-12): nu' = nu - beta_nu dL/dnu, a function of epsilon. For line 16 it is a
                # constant: phi's gradient does not run through its J_c.
                of_nu = args.nu_lr, args.rmsprop_decay, 1e-20  # RMSProp's rate, decay and constant
                excess = J_c.detach() - epsilon  # -dL/dnu
                nu_new, nu_square_new = rmsprop(nu, excess, nu_square, *of_nu)
                dnu_depsilon = -rmsprop_derivatives(excess, nu_square, *of_nu)[0]

                # Alg. 1, line 16 (Eqs. 11-12): phi' = phi + beta_phi dL/dphi at nu'. dL/dphi is linear in alpha and in
                # nu', and RMSProp acts on each element alone, so phi' has simple derivatives by the two.
                of_phi = args.policy_lr, args.rmsprop_decay, 1e-12
                g_r, g_h, g_c = (
                    flat(torch.autograd.grad(J, phi.values(), retain_graph=True)) for J in (J_r, J_h, J_c)
                )
                dL_dphi = g_r - alpha * g_h - nu_new * g_c
                phi_new, phi_square_new = rmsprop(flat(phi.values()).detach(), dL_dphi, phi_square, *of_phi)
                dphi_dg, d2phi_dg2 = rmsprop_derivatives(dL_dphi, phi_square, *of_phi)
                dphi_dalpha, dphi_dnu = -dphi_dg * g_h, -dphi_dg * g_c

                # Alg. 1, line 17: B', because on B, which phi' was fitted to, the metagradients are biased (Appendix B)
                B_new = D.sample(args.batch_size)

                # Alg. 1, line 18 (Eqs. 13-14, or 16): epsilon' = epsilon + beta_epsilon dJ_epsilon/depsilon, through
                # phi' and nu'. J_epsilon's own nu' is a detached copy (Section 4.3): nu_new carries no graph, and
                # dnu'/depsilon enters by hand. Eq. 13 prints ascent; whether it is meant is open (README). The critics
                # by their tangents: line 19's Hessian then has the policy alone.
                of_epsilon = args.epsilon_lr, args.rmsprop_decay, 1e-20
                phi_new.requires_grad_()
                action_new, _, _ = functional_call(actor, unflat(phi_new, phi), B_new.obs, {"log_pi": False})
                q_r, q_c = qr.tangent(B_new.obs, action_new), qc.tangent(B_new.obs, action_new)
                if args.epsilon_objective == "linear":
                    J_epsilon = (nu_new * q_c - q_r).mean()
                else:
                    J_epsilon = torch.where(q_r < 0, q_r * q_c, q_r * (1 - q_c)).mean()
                (dJ_dphi,) = torch.autograd.grad(J_epsilon, phi_new, create_graph=args.alpha_through_epsilon)
                grad_epsilon = dnu_depsilon * (dJ_dphi.detach() @ dphi_dnu)
                sign = 1 if args.epsilon_step == "ascent" else -1
                epsilon_new, epsilon_square_new = rmsprop(epsilon, sign * grad_epsilon, epsilon_square, *of_epsilon)

                # Alg. 1, line 19 (Eqs. 13, 15): alpha' ascends J_alpha: L without the entropy, at initial states and
                # deterministic actions. Its gradient comes through phi'; and through epsilon', a function of alpha as
                # phi' is (dJ_alpha/depsilon' is nu').
                S_0 = D_0.sample(args.batch_size)
                _, _, action_det = functional_call(actor, unflat(phi_new, phi), S_0.obs, {"log_pi": False})
                q_r_0, q_c_0 = qr(S_0.obs, action_det).amin(0), qc(S_0.obs, action_det).amax(0)
                J_alpha = (q_r_0 - nu_new * (q_c_0 - epsilon_new)).mean()
                (dJ_alpha_dphi,) = torch.autograd.grad(J_alpha, phi_new)
                grad_alpha_direct = dJ_alpha_dphi @ dphi_dalpha
                grad_alpha_via_epsilon = torch.zeros_like(grad_alpha_direct)
                if args.alpha_through_epsilon:
                    # The derivative of grad_epsilon by alpha. Two of its factors depend on it: dJ_epsilon/dphi',
                    # through phi' (so the Hessian H), and dphi'/dnu', by RMSProp's second derivative.
                    (H_dphi_dnu,) = torch.autograd.grad(dJ_dphi, phi_new, dphi_dnu)
                    d2J = dnu_depsilon * (H_dphi_dnu @ dphi_dalpha + dJ_dphi.detach() @ (d2phi_dg2 * g_h * g_c))
                    depsilon_dg, _ = rmsprop_derivatives(sign * grad_epsilon, epsilon_square, *of_epsilon)
                    grad_alpha_via_epsilon = nu_new * depsilon_dg * sign * d2J
                grad_alpha = grad_alpha_direct + grad_alpha_via_epsilon
                # Adam steps log alpha, whose gradient is alpha times alpha's; the minus because it descends.
                log_alpha.grad = -alpha * grad_alpha
                alpha_optimizer.step()

                # Alg. 1, line 20: commit nu', phi' and epsilon' (Adam has stepped alpha). Only here are the bounds
                # kept, never inside the graph: nu >= 0, 0 <= epsilon <= 1, 0 < alpha <= 1.
                with torch.no_grad():
                    nu.copy_(nu_new.clamp(min=0))
                    for name, new in unflat(phi_new, phi).items():
                        phi[name].copy_(new)
                    epsilon.copy_(epsilon_new.clamp(0, 1))
                    log_alpha.clamp_(max=0)
                    nu_square, phi_square, epsilon_square = nu_square_new, phi_square_new, epsilon_square_new
                # <<< Algorithm 1, lines 12 to 20

                with torch.no_grad():
                    metrics = {
                        "meta/epsilon": epsilon, "meta/alpha": log_alpha.exp(), "meta/nu": nu,
                        "meta/grad_epsilon": grad_epsilon, "meta/grad_alpha": grad_alpha,
                        "meta/grad_alpha_direct": grad_alpha_direct,
                        "meta/grad_alpha_via_epsilon": grad_alpha_via_epsilon, "losses/qr": loss_qr,
                        "losses/qc": loss_qc, "losses/policy": -(J_r - alpha * J_h - nu_new * (J_c - epsilon)),
                        "losses/entropy": -J_h, "values/qr": J_r, "values/qc": J_c,
                    }
                    news = ~torch.stack(list(metrics.values())).isfinite() & (first_not_finite == 0)
                    first_not_finite = first_not_finite + news * global_step  # stays on the device until asked for
                if global_step % 100 == 0:
                    stop_if_not_finite()
                    # The three terms of dL/dphi; and nu*, where dJ_epsilon/depsilon changes its sign (README), on B and
                    # at phi, P being 1 / sqrt(v') but for this very gradient's share in v'
                    with torch.no_grad():
                        P_g_c = g_c * (phi_square + 1e-12).rsqrt()
                        metrics |= {
                            "gradients/reward": g_r.norm(), "gradients/entropy": alpha * g_h.norm(),
                            "gradients/safety": (nu_new * g_c).norm(),
                            "gradients/cosine": F.cosine_similarity(g_r, g_c, dim=0),
                            "meta/nu_star": (g_r @ P_g_c) / (g_c @ P_g_c).clamp(min=1e-30),
                        }
                    log({**metrics, "charts/SPS": (global_step - first_step) / (time.time() - start_time)})

            # Alg. 1, line 21: a violation ends the episode; so does the environment
            if done:
                violations_total += int(cost)
                recent_violations = [*recent_violations, cost][-100:]
                charts = {"violation_rate": np.mean(recent_violations), "violations_total": violations_total}
                charts |= info["episode"]
                if "success" in charts:
                    untold = [0.0] * (len(recent_violations) - 1)  # before an environment's first word of it
                    recent_successes = [*(recent_successes or untold), charts.pop("success")][-100:]
                    charts["success_rate"] = np.mean(recent_successes)
                log({f"charts/{key}": value for key, value in charts.items()})
                bar.set_postfix_str(
                    f"return {charts['episodic_return']:.1f}, violation rate {charts['violation_rate']:.2f}, "
                    f"epsilon {epsilon.item():.2f}, alpha {log_alpha.exp().item():.3f}, nu {nu.item():.2f}",
                    refresh=False,
                )

        # Between episodes: evaluation and checkpoint. Of the environment nothing has to be kept.
        finished = global_step >= args.total_timesteps
        evaluation_due, checkpoint_due = (
            every > 0 and (finished or global_step // every > episode_start // every)
            for every in (args.eval_every, args.checkpoint_every)
        )
        if evaluation_due or checkpoint_due or finished:
            stop_if_not_finite()
            policy = dict(
                format=FORMAT, env_id=args.env_id, step=global_step, actor=actor.state_dict(), sizes=sizes,
                action_low=action_low, action_high=action_high,
            )
            if evaluation_due:
                results = evaluate(policy, run_dir, args.seed, args.episodes, device, args.capture_video)
                log({f"eval/{key}": np.mean(values) for key, values in results.items()})
            try:
                save(policy, f"{run_dir}/policy_{global_step}.pt")
                if checkpoint_due or finished:
                    log({}, flush=True)
                    counters = (global_step, episode, violations_total, recent_violations, recent_successes)
                    cuda_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
                    state = policy | dict(
                        args=vars(args), arm=arm, parts={name: part.state_dict() for name, part in parts.items()},
                        tensors=tensors(), counters=counters, kinds=kinds, threads=torch.get_num_threads(),
                        generators=(rng.bit_generator.state, torch.get_rng_state(), cuda_rng),
                    )
                    save(state, f"{run_dir}/checkpoint.pt", previous=f"{run_dir}/checkpoint.prev.pt")
                    checkpoint_step = global_step
            except OSError as error:
                bar.write(f"warning: cannot write {error.filename or run_dir}: {error.strerror}", file=sys.stderr)

    bar.close()
    if checkpoint_step != global_step:
        fail(f"the last policy and checkpoint could not be written to {run_dir}")
    print(f"{global_step} steps, {violations_total} violations; the policy is in {run_dir}/policy_{global_step}.pt")
