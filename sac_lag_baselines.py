# The three baselines of Meta SAC-Lag: SACv2-Lag, RCPO-SACv2 and RCPO-MetaSAC, line for line beside meta_sac_lag.py.
# Honari, Ghafarian Tamizi, Soufi Enayati and Najjaran (2024), arXiv:2408.07962, Section 5.1.
#
#   python sac_lag_baselines.py --algo sacv2-lag --env-id EggManipulate --seed 1
#   tensorboard --logdir runs
#   python sac_lag_baselines.py --resume runs/FOLDER
#   python sac_lag_baselines.py --evaluate runs/FOLDER --capture-video
#
# main() is the paper's Algorithm 1 with a fixed threshold epsilon, so without lines 17 and 18; docs/decisions.md has
# what the paper leaves open. An environment gives Gymnasium's five-tuple, and info["cost"], > 0 for a violation.
import contextlib
import json
import math
import os
import random
import re
import signal
import sys
import time
import traceback
import warnings
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

TABLE_2 = ("Sim1", "Sim2", "Sim3", "Sim4")  # its rows: Pour Coffee's settings
# id after --env-id -> the module, epsilon, nu's start in SACv2-Lag and RCPO (Table 1's or more: docs/decisions.md), and
# ours: a factor on rewards (0.01 a step drowns in the entropy of alpha = 1), a constant added to each before it (where
# steps cost, a violation pays: it ends them), and arguments in training: where its episodes start
ENVIRONMENTS = {
    "HumanoidVelocity": ("benchmark_envs", 0.4, 10.0, 10.0, 1.0, 0.0, {}),
    "FrankaDrawerClose": ("benchmark_envs", 0.6, 500.0, 500.0, 5.0, 2.5, {"start": "close"}),
    "CarCircle2": ("benchmark_envs", 0.5, 500.0, 5.0, 100.0, 0.0, {}),
    "PushTopple": ("benchmark_envs", 0.5, 1000.0, 10.0, 20.0, 3.6, {}),
    "EggManipulate": ("benchmark_envs", 0.5, 1000.0, 10.0, 10.0, 3.2, {}),
    **{f"PourCoffee{n}": ("pour_coffee_env", 0.5, 50.0, 50.0, 5.0, 0.0, {"start": "pour"}) for n in ("", *TABLE_2)},
    "PourCoffeeTwin": ("kinova_real", 0.5, 50.0, 50.0, 5.0, 0.0, {"start": "pour"}),
}  # epsilon and nu for PourCoffee and for any other environment are ours, untuned


@dataclass
class Args:
    algo: Literal["sacv2-lag", "rcpo-sacv2", "rcpo-metasac"] = "sacv2-lag"  # the algorithm
    exp_name: str | None = None  # the name of this experiment, part of the run folder's name; None: the algorithm
    env_id: str = "EggManipulate"  # a task of this project, any id that Gymnasium knows, or my_module:MyEnv-v0
    seed: int = 1  # seed of the environment's episodes, the networks, the exploration and the batches
    cuda: bool = True  # whether to train on the GPU where there is one
    cuda_graph: bool = True  # whether an update is one CUDA graph there; no effect on a CPU
    track: bool = False  # whether to log to Weights & Biases too (pip install wandb); no videos
    capture_video: bool = False  # whether to record videos, of some training episodes and of every evaluation
    checkpoint_every: int = 10_000  # steps between two checkpoints, written at the next episode end; 0: only at the end
    resume: str | None = None  # a run folder: goes on from its last checkpoint, with its arguments
    evaluate: str | None = None  # a run folder (its last policy) or a policy_*.pt: no training, a table and a JSON file
    episodes: int = 10  # episodes of an evaluation
    eval_every: int = 0  # steps between two evaluations while training, at the next episode end; 0: none
    real_robot: bool = False  # whether Pour Coffee is a Kinova Gen3's: read docs/real_arm.md first
    robot_ip: str = "192.168.1.10"  # the robot's address; fake: a rehearsal on a simulated arm

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
    reward_scale: float | None = None  # factor on rewards, but not on logged returns; None: the task's, else 1
    reward_shift: float | None = None  # added to rewards before the scale, but not to logged returns; None: the task's
    nu_init: float | None = None  # initial Lagrange multiplier; None: the task's, 10 for other environments
    nu_lr: float = 3e-4  # beta_nu (RMSProp)
    epsilon_init: float | None = None  # the fixed safety threshold; None: Table 1's, 0.5 for other environments
    alpha_init: float = 1.0  # initial exploration temperature
    alpha_lr: float = 3e-4  # beta_alpha (Adam on log alpha)
    store_violations_in_d: bool = True  # whether D keeps violations too (Appendix B); off: Alg. 1's printed else
    initial_states: int = 256  # resets made before training to fill D_0


class Actor(nn.Module):
    """pi_phi: a Gaussian squashed by tanh. Actions lie in [-1, 1]; they are scaled to the environment's box outside."""

    def __init__(self, obs_dim, action_dim, hidden_size, rng=None):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(obs_dim, hidden_size), nn.ReLU(inplace=True),
            nn.Linear(hidden_size, hidden_size), nn.ReLU(inplace=True),
            nn.Linear(hidden_size, 2 * action_dim),
        )  # fmt: skip
        self.rng = rng

    def forward(self, obs, log_pi=True):
        """obs (batch, obs_dim) -> a ~ pi (batch, action_dim), log pi(a|s) (batch,), pi_det (batch, action_dim)"""
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        log_std = -5 + 3.5 * (torch.tanh(log_std) + 1)  # in [-5, 2], as in CleanRL
        noise = torch.empty_like(mean).normal_(generator=self.rng)
        u = mean + log_std.exp() * noise
        if log_pi:
            log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
            log_dtanh = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), without overflow
            log_pi = (log_normal - log_dtanh).sum(-1)
        return torch.tanh(u), log_pi, torch.tanh(mean)


class TwinCritic(nn.Module):
    """Two Q networks as one: weights are (2, inputs, outputs). Q_c, a probability (Section 3.1), ends in a sigmoid.
    Layer normalisation (ours) bounds what is promised where nobody has been: without it policies go there."""

    def __init__(self, obs_dim, action_dim, hidden_size, probability):
        super().__init__()

        def uniform(fan_in, *shape):  # nn.Linear's initial values
            return nn.Parameter(torch.empty(2, *shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))

        n, h = obs_dim + action_dim, hidden_size
        self.weight_obs, self.weight_action = uniform(n, obs_dim, h), uniform(n, action_dim, h)
        self.weight_2, self.weight_3 = uniform(h, h, h), uniform(h, h, 1)
        self.bias_1, self.bias_2, self.bias_3 = uniform(n, 1, h), uniform(h, 1, h), uniform(h, 1, 1)
        if probability:
            nn.init.constant_(self.bias_3, -3.0)  # Q_c = 0.05: a violation is rare until it is seen
        self.probability = probability

    def forward(self, obs, action):
        """obs (batch, obs_dim), action (batch, action_dim) in [-1, 1] -> both values (2, batch)"""
        x = torch.baddbmm(self.bias_1, obs.expand(2, -1, -1), self.weight_obs)
        x = torch.baddbmm(x, action.expand(2, -1, -1), self.weight_action)
        x = torch.baddbmm(self.bias_2, F.layer_norm(x, x.shape[-1:]).relu_(), self.weight_2)
        q = torch.baddbmm(self.bias_3, F.layer_norm(x, x.shape[-1:]).relu_(), self.weight_3).squeeze(-1)
        return q.sigmoid() if self.probability else 10 * q  # or Q_r would grow slowly: Adam steps are q_lr long


class ReplayBuffer:
    """A ring of float32 rows on the device, a tensor per field. On a CPU they take memory as they fill."""

    def __init__(self, capacity, rng, device, **shapes):
        f32 = dict(dtype=torch.float32, device=device)
        self.rows = {field: torch.empty(capacity, *shape, **f32) for field, shape in shapes.items()}
        self.size = torch.zeros((), dtype=torch.float64, device=device)  # len(self), where indices are drawn
        self.capacity, self.rng, self.added = capacity, rng, 0

    def __len__(self):
        return min(self.added, self.capacity)

    def add(self, **row):
        for field, value in row.items():
            self.rows[field][self.added % self.capacity] = torch.as_tensor(value)
        self.added += 1
        self.size.fill_(len(self))

    def sample(self, batch_size, other=None):
        """Rows drawn uniformly, with replacement, from this buffer, or from it and the other as one: B.obs and so on"""
        uniform = torch.rand(batch_size, generator=self.rng, dtype=torch.float64, device=self.size.device)
        index = (uniform * (self.size if other is None else self.size + other.size)).long()
        batch = {field: rows.index_select(0, index % self.capacity) for field, rows in self.rows.items()}
        if other is not None:  # not by its length: a CUDA graph cannot branch on data
            theirs = index - self.size.long()
            for field, rows in other.rows.items():
                mask = (theirs >= 0).view(-1, *[1] * (rows.dim() - 1))
                batch[field] = torch.where(mask, rows.index_select(0, theirs.clamp(min=0)), batch[field])
        return SimpleNamespace(**batch)

    def state_dict(self):  # through NumPy, or torch would save the rows that are not there yet, too
        rows = {field: torch.from_numpy(rows[: len(self)].cpu().numpy()) for field, rows in self.rows.items()}
        return {"added": self.added, **rows}

    def load_state_dict(self, state):
        self.added = state["added"]
        self.size.fill_(len(self))
        for field, rows in self.rows.items():
            rows[: len(self)] = state[field].to(rows.device)


def rmsprop(theta, gradient, square_avg, learning_rate, constant, decay=0.99):
    """One step of RMSProp *up* the gradient: theta' = theta + beta g / sqrt(v' + constant), and v' (Appendix B). A
    pure function of tensors of one shape, for autograd to differentiate. The constant stands inside the root, whose
    derivative is infinite at 0: a dead ReLU's gradient is exactly 0."""
    square_avg = decay * square_avg + (1 - decay) * gradient.square()
    return theta + learning_rate * gradient / (square_avg + constant).sqrt(), square_avg


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def unflat(vector, net):
    pieces = vector.split([parameter.numel() for parameter in net.parameters()])
    return {name: piece.view_as(old) for piece, (name, old) in zip(pieces, net.named_parameters())}


def main(at_end):
    args, saved, run_dir, arm = read_args()
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.evaluate is not None:
        for key, values in evaluate(saved, run_dir, args, device, arm).items():
            print(f"{key:20} mean {np.mean(values):10.3f}  std {np.std(values):10.3f}")
        return
    env = make_env(args.env_id, args, saved, **ENVIRONMENTS.get(args.env_id, [{}])[-1])
    at_end.callback(lambda: env.close())
    if args.track:
        with one_line("--track needs `pip install wandb` and `wandb login`", Exception):
            import wandb

            name = os.path.basename(os.path.abspath(run_dir))
            wandb.init(id=name, name=name, config=vars(args), sync_tensorboard=True, resume="allow")
    goes_on = run_dir == args.resume  # what was logged after the checkpoint will be logged again
    with one_line(f"cannot log to {run_dir}", OSError):
        writer = SummaryWriter(run_dir, purge_step=saved["step"] + 1 if goes_on else None)
    table = ["|param|value|", "|-|-|", *(f"|{key}|{value}|" for key, value in vars(args).items())]
    writer.add_text("hyperparameters", "\n".join(table))
    obs_dim, action_dim, spaces = env.observation_space.shape[0], env.action_space.shape[0], env.spaces

    # Require: the policy phi, the critics omega_r and omega_c, the Lagrange multiplier nu, epsilon and alpha. In RCPO
    # qr is the critic of Q_hat = Q_r - nu Q_c. All chance but the environment's comes from rng.
    torch.manual_seed(args.seed)  # the networks' first values
    rng = torch.Generator(device).manual_seed(args.seed)
    f32 = dict(dtype=torch.float32, device=device)  # whatever default an environment has set
    sizes = dict(obs_dim=obs_dim, action_dim=action_dim, hidden_size=args.hidden_size)
    actor = Actor(**sizes, rng=rng).to(**f32)
    phi = flat(actor.parameters()).detach()
    nn.utils.vector_to_parameters(phi, actor.parameters())  # which from here on are views of phi
    qr, qr_target = (TwinCritic(**sizes, probability=False).to(**f32) for _ in range(2))
    qc, qc_target = (TwinCritic(**sizes, probability=True).to(**f32) for _ in range(2))
    qr_target.load_state_dict(qr.state_dict())
    qc_target.load_state_dict(qc.state_dict())
    nu = torch.tensor(args.nu_init, **f32)
    epsilon = torch.tensor(args.epsilon_init, **f32)
    log_alpha = torch.tensor(math.log(args.alpha_init), **f32, requires_grad=True)
    adam = dict(fused=True, capturable=device.type == "cuda")
    qr_optimizer, qc_optimizer = (torch.optim.Adam(q.parameters(), lr=args.q_lr, **adam) for q in (qr, qc))
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=args.alpha_lr, **adam)
    nu_square, phi_square = torch.zeros_like(nu), torch.zeros_like(phi)  # of RMSProp

    # Alg. 1, line 1: the buffers. D_s keeps the reward too, though only the safety critic reads it.
    fields = dict(obs=(obs_dim,), action=(action_dim,), reward=(), cost=(), next_obs=(obs_dim,), terminated=())
    rows = min(args.buffer_size, args.total_timesteps)
    with one_line("--buffer-size and --total-timesteps are too large", RuntimeError):
        D, D_s = (ReplayBuffer(rows, rng, device, **fields) for _ in range(2))
    D_0 = ReplayBuffer(max(10_000, args.initial_states), rng, device, obs=(obs_dim,))
    gigabytes = sum(field.nbytes for buffer in (D, D_s) for field in buffer.rows.values()) / 1e9
    shown = f"observation {obs_dim}, action {action_dim}, buffers up to {gigabytes:.2g} GB"
    print(f"{args.env_id}{arm}: {shown}. Training on {device}, logging to {run_dir}")

    # What a run consists of, for its checkpoints
    parts = dict(actor=actor, qr=qr, qc=qc, qr_target=qr_target, qc_target=qc_target, D=D, D_s=D_s, D_0=D_0)
    parts |= dict(qr_optimizer=qr_optimizer, qc_optimizer=qc_optimizer, alpha_optimizer=alpha_optimizer)
    tensors = dict(nu=nu, log_alpha=log_alpha, nu_square=nu_square, phi_square=phi_square)
    global_step, episode, violations_total, recent, saved_step = 0, 0, 0, [], None
    if saved:
        global_step, episode, violations_total, recent = saved["counters"]
        saved_step = global_step
        if not goes_on:  # from its twin the arm inherits no violations
            violations_total, recent, saved_step = 0, [], None
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        for optimizer in (qr_optimizer, qc_optimizer, alpha_optimizer):
            optimizer.param_groups[0].update(adam)  # which it had of the device that it comes from
        for name, tensor in tensors.items():
            tensor.data.copy_(saved["tensors"][name])
        if saved["device"] == device.type:  # a GPU's generator has another state than a CPU's
            rng.set_state(saved["rng"])
        torch.set_num_threads(saved["threads"])  # with another number sums round differently
        saved = None  # D may be large

    @one_line("cannot log", OSError, ends=False)
    def log(scalars):
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, global_step)
        writer.flush()  # a checkpoint's log is on the disk before it

    def stop_if_not_finite(found):
        kept = [x for optimizer in (qr_optimizer, qc_optimizer) for s in optimizer.state.values() for x in s.values()]
        found = found | tensors | dict(phi=phi, critics=flat([*qr.parameters(), *qc.parameters(), *kept]))
        if bad := [name for name, x in found.items() if not x.isfinite().all()]:
            sys.exit(f"error: not finite at step {global_step}: {', '.join(bad)}")

    @at_end.callback
    def farewell():  # however the program ends
        bar.close()
        if global_step < args.total_timesteps:
            again = f"python {sys.argv[0]} --resume {run_dir} --total-timesteps {args.total_timesteps}"
            how = "there is no checkpoint yet" if saved_step is None else f"to go on from step {saved_step}: {again}"
            print(f"stopped at step {global_step}; {how}", file=sys.stderr)

    bar = tqdm(total=args.total_timesteps, initial=global_step, mininterval=0.5 if sys.stderr.isatty() else 30)
    bar.bar_format = "{desc}{n}/{total} [{elapsed}<{remaining}]"

    # Alg. 1, line 2: D_0 approximates rho_0; each episode adds its first state to these.
    while episode < args.initial_states:
        D_0.add(obs=env.reset(seed=episode_seed(args.seed, episode))[0])
        episode += 1
    if args.capture_video:  # the same names and choice of episodes after a resume; Gymnasium 1.x counts first
        env = gym.wrappers.RecordVideo(env, f"{run_dir}/videos", name_prefix="train", disable_logger=True)
        env.episode_id = episode - args.initial_states - (gym.__version__ >= "1")

    def write_checkpoint():
        run = dict(args=vars(args), counters=(global_step, episode, violations_total, recent))
        run |= dict(parts={name: part.state_dict() for name, part in parts.items()}, tensors=tensors)
        run |= dict(rng=rng.get_state(), device=device.type, threads=torch.get_num_threads())
        return global_step if save(policy | run, f"{run_dir}/checkpoint.pt") else saved_step

    first_step, start_time, episode_start = global_step, time.time(), global_step
    graph = CudaGraph(rng if args.cuda_graph and device.type == "cuda" else None)
    while True:  # Alg. 1, line 3
        # Between episodes: evaluation, checkpoint. Of the environment nothing has to be kept (Contract.reset).
        finished, periods = global_step >= args.total_timesteps, (args.checkpoint_every or 10**12, args.eval_every)
        save_due, eval_due = (n > 0 and (finished or global_step // n > episode_start // n) for n in periods)
        if save_due or eval_due:
            stop_if_not_finite({})
            policy = dict(env_id=args.env_id, arm=arm, sizes=sizes, spaces=spaces, step=global_step)
            policy["actor"] = actor.state_dict()
            save(policy, f"{run_dir}/policy_{global_step}.pt")
        if finished:  # before the evaluation, lest it be lost with it; others after it, so that no resume repeats it
            saved_step = write_checkpoint()
        if eval_due:
            bar.set_description_str("evaluation ")
            with one_line(f"the evaluation at step {global_step} failed", Exception, ends=False):
                evaluate(policy, run_dir, args, device, log=log)
        if finished:
            break
        if save_due:
            saved_step = write_checkpoint()

        obs, _ = env.reset(seed=episode_seed(args.seed, episode))  # Alg. 1, line 4
        D_0.add(obs=obs)
        episode, episode_start, done = episode + 1, global_step, False
        while not done and global_step < args.total_timesteps:  # Alg. 1, line 5
            # Alg. 1, line 6: a_t ~ pi_phi; uniform before learning starts
            if global_step < args.learning_starts:
                action = torch.rand(action_dim, generator=rng, **f32) * 2 - 1
            else:
                with torch.no_grad():
                    action = actor(torch.from_numpy(obs).to(device)[None], log_pi=False)[0][0]
            action = action.cpu().numpy()
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

            learns = global_step > args.learning_starts and len(D) > 0
            if learns and not graph.replay():  # on CUDA this text is captured once, as a graph, and then replayed
                with graph.capture():
                    # >>> Algorithm 1, lines 12 to 20
                    # Alg. 1, line 12 (Eqs. 2, 4): train omega_c on D u D_s. D keeps violations too: they count twice.
                    # The transition's cost stands for Eq. 2's c(s). A violation ends the future: targets are in [0, 1].
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
                    alpha = log_alpha.exp()
                    with torch.no_grad():
                        next_action, next_log_pi, _ = actor(B.next_obs)
                        next_v = qr_target(B.next_obs, next_action).amin(0) - alpha * next_log_pi
                        r = args.reward_scale * (B.reward + args.reward_shift)
                        target_r = r + (1 - B.terminated) * args.gamma_r * next_v
                        if args.algo != "sacv2-lag":  # RCPO: the penalty is part of the reward, r - nu Q_c(s, a)
                            target_r -= nu * qc(B.obs, B.action).amax(0)
                    loss_qr = 0.5 * (qr(B.obs, B.action) - target_r).square().mean(1).sum()
                    qr_optimizer.zero_grad()
                    loss_qr.backward()
                    qr_optimizer.step()
                    # Appendix B: omega_bar = tau omega + (1 - tau) omega_bar
                    with torch.no_grad():
                        for net, target in ((qr, qr_target), (qc, qc_target)):
                            for omega, omega_bar in zip(net.parameters(), target.parameters()):
                                omega_bar.lerp_(omega, args.tau)

                    # Eq. 11, term by term: L = J_r - alpha J_h - nu (J_c - epsilon); Eq. 10's J_r is J_r - alpha J_h
                    action_pi, log_pi, _ = actor(B.obs)
                    J_r = qr(B.obs, action_pi).amin(0).mean()
                    J_h = log_pi.mean()  # minus the entropy
                    J_c = qc(B.obs, action_pi).amax(0).mean()
                    weights = tuple(actor.parameters())
                    g_r, g_h, g_c = (flat(torch.autograd.grad(J, weights, retain_graph=True)) for J in (J_r, J_h, J_c))

                    # Alg. 1, line 15 (Eqs. 11-12): nu' = nu - beta_nu dL/dnu
                    nu_new, nu_square_new = rmsprop(nu, J_c.detach() - epsilon, nu_square, args.nu_lr, 1e-20)

                    # Alg. 1, line 16 (Eqs. 11-12): phi' = phi + beta_phi dL/dphi at nu', a function of alpha. In RCPO
                    # nu Q_c stands in Q_hat already.
                    nu_in_L = nu_new if args.algo == "sacv2-lag" else 0.0
                    g = g_r - alpha * g_h - nu_in_L * g_c
                    phi_new, phi_square_new = rmsprop(phi, g, phi_square, args.policy_lr, 1e-12)

                    # Alg. 1, line 19: alpha'. RCPO-MetaSAC ascends the metagradient of Wang & Ni (2020), Q_hat at
                    # initial states and deterministic actions, through phi'. The others: SACv2's constraint, entropy
                    # >= -dim(A). Adam steps log alpha, whose gradient is alpha times alpha's; the minus because it
                    # descends.
                    if args.algo == "rcpo-metasac":
                        S_0 = D_0.sample(args.batch_size)
                        _, _, action_det = functional_call(actor, unflat(phi_new, actor), S_0.obs, {"log_pi": False})
                        J_alpha = qr(S_0.obs, action_det).amin(0).mean()
                        (grad_alpha,) = torch.autograd.grad(J_alpha, alpha)
                    else:
                        grad_alpha = J_h.detach() - action_dim
                    log_alpha.grad = -(alpha * grad_alpha).detach()
                    alpha_optimizer.step()

                    # Alg. 1, line 20: commit nu' and phi' (Adam has stepped alpha). Only here are the bounds kept:
                    # nu >= 0, and 0 < alpha <= 1 for the metagradient, as in Eq. 15.
                    with torch.no_grad():
                        nu.copy_(nu_new).clamp_(min=0)
                        phi.copy_(phi_new)
                        if args.algo == "rcpo-metasac":
                            log_alpha.clamp_(max=0)
                        nu_square.copy_(nu_square_new)
                        phi_square.copy_(phi_square_new)
                    # <<< Algorithm 1, lines 12 to 20

            if learns and global_step % 100 == 0:
                P_g_c = g_c * (phi_square + 1e-12).rsqrt()  # P: dphi'/dg, but for this g's share in v'
                metrics = {
                    "meta/epsilon": epsilon, "meta/nu": nu,
                    "meta/nu_star": (g_r @ P_g_c) / (g_c @ P_g_c).clamp(min=1e-30),  # see docs/threshold.md
                    "meta/alpha": log_alpha.exp(), "meta/grad_alpha": grad_alpha,
                    "losses/entropy": -J_h, "losses/qr": loss_qr, "losses/qc": loss_qc,
                    "losses/policy": -(J_r - alpha * J_h - nu_in_L * (J_c - epsilon)), "values/qr": J_r,
                    "values/qc": J_c, "gradients/reward": g_r.norm(), "gradients/entropy": alpha * g_h.norm(),
                    "gradients/safety": (nu_in_L * g_c).norm(),
                    "gradients/cosine": F.cosine_similarity(g_r, g_c, dim=0),
                }  # fmt: skip
                stop_if_not_finite(metrics)
                log(metrics | {"charts/SPS": (global_step - first_step) / (time.time() - start_time)})

            # Alg. 1, line 21: a violation ends the episode; so does the environment
            if done:
                violations_total += int(cost)
                recent = [*recent, info["episode"]][-100:]
                told = {"violation", "success"} & {key for one in recent for key in one}
                charts = {f"{key}_rate": np.mean([one.get(key, 0.0) for one in recent]) for key in told}
                charts |= info["episode"] | {"violations_total": violations_total}
                log({f"charts/{key}": value for key, value in charts.items() if key != "success"})
                shown = charts["violation_rate"], epsilon.item(), log_alpha.exp().item(), nu.item()
                shown = "violations %.2f, epsilon %.2f, alpha %.3f, nu %.1f" % shown
                bar.desc = f"return {charts['episodic_return']:.1f}, {shown} | "

    if saved_step != global_step:
        sys.exit(f"error: the last checkpoint could not be written to {run_dir}")
    bar.close()
    learned = "the policy" if len(D) else "nothing was learned, for D is empty; the first policy"
    print(f"{global_step} steps, {violations_total} violations; {learned} is in {run_dir}/policy_{global_step}.pt")


# ---- From here on nothing of the method: flags, the environment's contract, evaluation, files ----
MAY_CHANGE = "total_timesteps checkpoint_every eval_every episodes real_robot robot_ip capture_video track cuda_graph"
RANGES = {  # least and largest
    (1, 10**12): "total_timesteps buffer_size batch_size hidden_size initial_states episodes",
    (0, 10**12): "learning_starts checkpoint_every eval_every policy_lr q_lr nu_lr alpha_lr nu_init",
    (0, 0.999999): "gamma_r gamma_c", (0, 1): "epsilon_init", (1e-9, 1): "alpha_init tau",
    (1e-9, 1e9): "reward_scale", (-1e9, 1e9): "reward_shift", (0, 2**32 - 1): "seed",
}  # fmt: skip


class CudaGraph:
    """On CUDA the first five updates run as they are, the sixth is captured, and from then on `replay` launches its
    thousand small kernels as one. With rng None, as on a CPU, nothing is captured or replayed."""

    def __init__(self, rng):
        self.rng, self.updates, self.graph = rng, 0, None

    def replay(self):
        """-> whether there was a graph to replay"""
        if self.graph:
            self.graph.replay()
        return self.graph is not None

    @contextlib.contextmanager
    def capture(self):
        self.updates += 1
        if self.rng is None:
            yield
        elif self.updates <= 5:
            torch.cuda.synchronize()
            with torch.cuda.stream(torch.cuda.Stream()):  # one of their own, as PyTorch asks
                yield
            torch.cuda.synchronize()
        else:
            with one_line("the update cannot be captured; --no-cuda-graph goes on without", RuntimeError):
                graph = torch.cuda.CUDAGraph()
                graph.register_generator_state(self.rng)  # or each replay would draw the same
                with torch.cuda.graph(graph):
                    yield
            self.graph = graph
            graph.replay()  # for capturing computes nothing


def read_args():
    """The flags, checked; what --resume or --evaluate loads; the run's folder; a robot's mark: _fake or its IP"""
    args, saved = tyro.cli(Args), None
    if args.resume is not None:  # the run's own flags win over all but MAY_CHANGE
        run_dir = os.path.normpath(args.resume)
        saved = load(f"{run_dir}/checkpoint.pt", f"{run_dir}/checkpoint.prev.pt")
        with one_line(f"{run_dir} is of another script, or of another version of this one", (KeyError, TypeError)):
            typed = tyro.cli(Args, default=Args(**saved["args"]))  # what was not typed is as it was
        args = Args(**saved["args"] | {name: getattr(typed, name) for name in MAY_CHANGE.split()} | {"resume": run_dir})
        if ignored := [name for name in vars(args) if getattr(args, name) != getattr(typed, name) and name != "resume"]:
            print(f"note: the run keeps its own {', '.join(ignored)}")
        if args.total_timesteps <= saved["step"]:
            sys.exit(f"error: {run_dir} has {saved['step']} steps; a larger --total-timesteps takes it further")
    # Every spelling gets Table 1's nu
    args.env_id = re.sub(r"^(\./)?((benchmark_envs|pour_coffee_env|kinova_real):)?", "", args.env_id)
    _, epsilon, nu_lag, nu_rcpo, *ours, _ = ENVIRONMENTS.get(args.env_id, ("", 0.5, 10.0, 10.0, 1.0, 0.0, {}))
    defaults = args.algo, epsilon, nu_lag if args.algo == "sacv2-lag" else nu_rcpo, *ours
    for name, default in zip(("exp_name", "epsilon_init", "nu_init", "reward_scale", "reward_shift"), defaults):
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
    for name, least, largest in ((name, *limits) for limits, names in RANGES.items() for name in names.split()):
        if not least <= (value := getattr(args, name)) <= largest:
            sys.exit(f"error: --{name.replace('_', '-')} must be from {least} to {largest}, not {value}")
    arm = f"_{args.robot_ip.partition(':')[0]}" if args.real_robot else ""
    if args.evaluate is not None:
        names = os.listdir(args.evaluate) if os.path.isdir(args.evaluate) else []
        steps = [int(match[1]) for name in names if (match := re.fullmatch(r"policy_(\d+)\.pt", name))]
        path = f"{args.evaluate}/policy_{max(steps)}.pt" if steps else args.evaluate
        saved = load(path)
        if args.real_robot and ("PourCoffee" not in saved["env_id"] or args.capture_video):
            sys.exit(f"error: --real-robot is for PourCoffee without --capture-video, but this is {saved['env_id']}")
        print(f"{args.episodes} episodes of {saved['env_id']}, with the policy of step {saved['step']}")
        return args, saved, os.path.dirname(path) or ".", arm
    if args.real_robot:  # each reset is a person's work, and what is lost there cannot be done again
        pours = args.env_id in ("PourCoffee", "PourCoffeeSim1", "PourCoffeeTwin")  # Table 2's row Real
        if not pours or args.capture_video or args.eval_every:
            sys.exit("error: --real-robot is for --env-id PourCoffee, without --capture-video and --eval-every")
        args.initial_states, args.learning_starts = args.initial_states if saved else 1, min(args.learning_starts, 500)
        args.checkpoint_every = min(args.checkpoint_every or 100, 100)
    if args.learning_starts >= args.total_timesteps:
        print(f"note: no update in {args.total_timesteps} steps: --learning-starts is {args.learning_starts}")
    if not saved or arm != saved["arm"]:  # a robot's run, its twin's and a rehearsal stay apart
        name = f"{args.env_id}{arm}__{args.exp_name}__{args.seed}__{int(time.time())}"
        run_dir = "runs/" + re.sub(r"[^\w.@=+-]", "_", name)
        while os.path.exists(run_dir):
            run_dir += "-2"
    return args, saved, run_dir, arm


@contextlib.contextmanager
def one_line(message, kinds=(gym.error.Error, ImportError), ends=True):
    """Makes one line of errors of these kinds, and the end (or a warning). If it ends, also of what Gymnasium finds by
    itself; errors from inside an environment, or by a slip in this file, keep their traceback."""
    try:
        yield
    except Exception as error:
        by = [frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not isinstance(error, kinds) and not (ends and by[-1] == "gymnasium" and {*by} == {by[-1], __name__}):
            raise
        if ends:
            raise gym.error.Error(f"{message}: {error}") from None
        tqdm.write(f"warning: {message}: {str(error).partition(chr(10))[0]}; going on", file=sys.stderr)


class Contract(gym.Wrapper):
    """The environment contract, checked at every step; what breaks it ends the program with one line. Actions arrive in
    [-1, 1]. A violation terminates (hard constraints, Section 5.1). The last info has the episode's statistics."""

    def __init__(self, env, env_id):
        super().__init__(env)
        self.env_id, self.box, self.seen = env_id, env.action_space, env.observation_space
        self.spaces = f"observations {self.seen} and actions {self.box}"
        floats = isinstance(self.box, gym.spaces.Box) and len(self.box.shape) == 1 and self.box.dtype.kind == "f"
        fits = floats and ((0 <= (gap := self.box.high - self.box.low)) & (gap < np.inf)).all()
        if not (fits and isinstance(self.seen, gym.Space) and self.seen.is_np_flattenable):
            wanted = "gymnasium.spaces: actions must be a bounded Box (n,) of floats, observations a vector"
            raise gym.error.Error(f"{wanted}, not {self.spaces}")
        while isinstance(env, gym.Wrapper):
            if {"obs_rms", "return_rms"} & vars(env).keys():
                name, why = type(env).__name__, "no policy or checkpoint has its running statistics"
                raise gym.error.Error(f"{name} means another thing in every evaluation: {why}; normalise by constants")
            env = env.env
        self.action_space = gym.spaces.Box(-1, 1, self.box.shape, np.float32)
        self.observation_space = gym.spaces.flatten_space(self.seen)

    def numbers(self, what, given, shape=()):
        """given as finite numbers in float32's range: an array of that shape, or a float"""
        with contextlib.suppress(Exception), np.errstate(all="ignore"):  # whatever text, None, vectors, tensors raise
            found = np.asarray(given, np.float64).reshape(shape)
            if (np.abs(found) < 3.4e38).all():
                return found.astype(np.float32) if shape else float(found)
        raise gym.error.Error(f"{what} must be finite numbers of shape {shape}, not {given}")

    def vector(self, obs):  # flatten alone would make 0 of 0.7 where a Box says integers, and somebody has normalised
        with one_line(f"observations must be of {self.seen}", Exception):
            flat = obs if isinstance(self.seen, gym.spaces.Box) else gym.spaces.flatten(self.seen, obs)
        return self.numbers("observations", flat, self.observation_space.shape)

    def reset(self, *, seed=None, options=None):
        for seed_library in (random.seed, np.random.seed, torch.manual_seed):  # an episode follows from its seed alone
            seed_library(seed)
        self.told = []
        with one_line(f"{self.env_id}: reset(seed=...) must give an observation and info"):
            given = self.env.reset(seed=seed, options=options)
            with one_line("it does not", (TypeError, ValueError)):
                obs, info = given
            return self.vector(obs), info

    def step(self, action):
        """action (action_dim,) in [-1, 1] -> Gymnasium's five, info["cost"] being 0.0 or 1.0"""
        low, high, means = self.box.low, self.box.high, ("acceleration", "jerk", "delay", "overrun")
        with one_line(f"{self.env_id}: step() must give observation, reward, terminated, truncated and info"):
            action = low + (self.numbers("the policy's action", action, low.shape) + 1) / 2 * (high - low)
            given = self.env.step(action.astype(low.dtype).clip(low, high))
            with one_line("it does not", Exception):  # vectors of NumPy and torch as ends have errors of their own
                obs, reward, terminated, truncated, info = given
                terminated, truncated, info = bool(terminated), bool(truncated), {**info}
            if "final_observation" in info or "final_obs" in info:
                raise gym.error.Error("it resets itself (final_observation in info), which hides how episodes end")
            if self.numbers('info["infra_failure"]', info.get("infra_failure", False)):  # not the policy's doing
                return obs, 0.0, False, True, {**info, "cost": 0.0}
            obs = self.vector(obs)
            kinds = [key for key in info if str(key).startswith("cost_") and key != "cost_sum"]  # Safety-Gymnasium's
            told = {key: info[key] for key in (*kinds, *means, "is_success") if key in info}
            told["cost"] = info.get("cost")
            told = {key: self.numbers(f'info["{key}"]', value) for key, value in told.items()}
            told["reward"] = self.numbers("the reward", reward)
            cost = float(told["cost"] > 0)
        if cost and not terminated:  # said once
            warnings.warn(f"{self.env_id} does not terminate on a violation; its episodes end there all the same")
        self.told.append(told)
        info["cost"] = cost
        if terminated or truncated or cost:
            info["episode"] = dict(episodic_return=sum(step["reward"] for step in self.told))
            info["episode"] |= dict(episodic_length=len(self.told), violation=cost)
            info["episode"] |= {key: float(told[key] > 0) for key in kinds}
            for key in means:
                if values := [step[key] for step in self.told if key in step]:
                    info["episode"][key] = float(np.mean(values))
            if "is_success" in told:  # at the last step, and no step violated
                info["episode"]["success"] = told["is_success"] * (1 - cost)
        return obs, told["reward"], terminated or cost > 0, truncated, info


def make_env(env_id, args, policy=None, **kwargs):
    """gym.make, or the arm, and the contract; a policy must fit it"""
    full_id, kwargs = env_id, kwargs | ({"render_mode": "rgb_array"} if args.capture_video else {})
    if env_id in ENVIRONMENTS or re.match(r"Safety\w+-v\d$", env_id):  # ours, and Safety-Gymnasium's
        full_id = f"{ENVIRONMENTS.get(env_id, ['benchmark_envs'])[0]}:{env_id}"
    if args.real_robot:
        full_id, kwargs = "kinova_real:KinovaPourCoffee", {"robot_ip": args.robot_ip}
        learned_on = policy and (policy.get("arm") or policy["env_id"])  # _fake has no coffee, the others no latency
        rehearsal, known = args.robot_ip.partition(":")[0] == "fake", "PourCoffeeTwin$|_(?!fake$)"
        if learned_on and not rehearsal and not re.match(known, learned_on):
            raise gym.error.Error("learned neither in the twin nor on an arm: train one with --env-id PourCoffeeTwin")
    if args.capture_video:
        with one_line("--capture-video needs `pip install moviepy`"):
            import moviepy  # noqa: F401
    sys.path.append(os.getcwd())  # where `--env-id my_module:MyEnv-v0` finds my_module.py
    with one_line(f"cannot make --env-id {env_id} (known: {', '.join(ENVIRONMENTS)}; Gymnasium's; my_module:MyEnv-v0)"):
        with contextlib.chdir("."), torch.enable_grad():  # afterwards both are as they were
            env = Contract(gym.make(full_id, disable_env_checker=True, **kwargs), env_id)
        if policy and policy["spaces"] != env.spaces:
            raise gym.error.Error(f"the policy was made for {policy['spaces']}, not {env.spaces}")
        if args.capture_video and env.render_mode != "rgb_array":
            raise gym.error.Error(f'for --capture-video its render_mode must be "rgb_array", not {env.render_mode}')
    for signum in (signal.SIGINT, signal.SIGTERM):  # only now: some environments (ROS) take Ctrl-C for themselves
        signal.signal(signum, lambda signum, _: sys.exit(128 + signum))
    return env


def episode_seed(seed, k, stream=0):
    """The seed of training episode k (the resets that fill D_0 come first); stream=1: of evaluation episode k."""
    return int(np.random.SeedSequence([seed, k, stream]).generate_state(1)[0])


def evaluate(policy, folder, args, device, arm="", log=lambda scalars: None):
    """Whole episodes of pi_det, on an environment of their own -> {metric: one number per episode}, and a JSON file"""
    env, episodes, name = make_env(policy["env_id"], args, policy), [], f"eval_{policy['step']}{arm}"
    if args.capture_video:
        env = gym.wrappers.RecordVideo(env, f"{folder}/videos", lambda _: True, name_prefix=name, disable_logger=True)
    actor = Actor(**policy["sizes"]).to(device, torch.float32).requires_grad_(False)
    actor.load_state_dict(policy["actor"])
    with contextlib.closing(env):
        for k in range(args.episodes):
            (obs, _), terminated, truncated = env.reset(seed=episode_seed(args.seed, k, stream=1)), False, False
            while not (terminated or truncated):
                action = actor(torch.from_numpy(obs).to(device)[None], log_pi=False)[2][0].cpu().numpy()
                obs, _, terminated, truncated, info = env.step(action)
            episodes += [] if info.get("infra_failure", False) else [info["episode"]]
    results = {key: [episode.get(key, 0.0) for episode in episodes] for one in episodes for key in one}
    mean, std = ({key: float(f(values)) for key, values in results.items()} for f in (np.mean, np.std))
    log({f"eval/{key}": value for key, value in mean.items()})  # before the file, which says that it was done
    facts = dict(env_id=policy["env_id"], step=policy["step"], seed=args.seed, mean=mean, std=std, episodes=results)
    with one_line("cannot write", OSError, ends=False), open(f"{folder}/{name}.json", "w") as file:
        json.dump(facts, file, indent=1)
    return results


def save(state, path):
    """What is found under path, or as *.prev.pt, is whole, whatever happens meanwhile. -> whether it was written"""
    with one_line(f"cannot write {path}", (OSError, RuntimeError), ends=False):  # torch has its own for a full disk
        torch.save(state, path + ".tmp")
        with open(path + ".tmp", "rb") as file:
            os.fsync(file.fileno())
        if path.endswith("checkpoint.pt") and os.path.exists(path):
            os.replace(path, path[:-3] + ".prev.pt")
        os.replace(path + ".tmp", path)
        return True
    with contextlib.suppress(OSError):  # half a file would keep a full disk full
        os.remove(path + ".tmp")


def load(path, previous=None):
    """What `save` wrote, on the CPU; no code in it can run. Where it cannot be read, the one before is."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        assert "spaces" in saved, "it is no policy or checkpoint of this script"
        return saved
    except Exception as error:  # zipfile, pickle and torch have a dozen for this
        problem = f"cannot read {path}: {str(error).partition(chr(10))[0]}"
        if not previous or not os.path.exists(previous) or isinstance(error, (PermissionError, MemoryError)):
            sys.exit(f"error: {problem}")
    print(f"note: {problem}; going back to {previous}")
    if os.path.exists(path):
        os.replace(path, path + ".damaged")  # or the next checkpoint would push the good one out
    return load(previous)


if __name__ == "__main__":
    try:
        with contextlib.ExitStack() as at_end:  # atexit comes too late: EGL, and a last video with it, would be gone
            main(at_end)
    except gym.error.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
