# Meta SAC-Lag: safe reinforcement learning that tunes its own safety threshold epsilon and exploration temperature
# alpha by metagradients. Honari, Ghafarian Tamizi, Soufi Enayati and Najjaran (2024), arXiv:2408.07962.
#
#   python meta_sac_lag.py --env-id EggManipulate --seed 1
#   tensorboard --logdir runs
#
# The loop at the bottom is the paper's Algorithm 1; every step names its line and equation. What the paper leaves open
# is decided in README.md, "Paper / ours / why". The environment contract: Gymnasium's five-tuple, and info["cost"] at
# every step (a violation is cost > 0).
import math
import os
import random
import sys
import time
from collections import deque
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

# id after --env-id -> the module that registers it, and nu's initial value (Table 1)
ENVIRONMENTS = {"EggManipulate": ("benchmark_envs", 100.0)}
OTHER_NU_INIT = 10.0  # for any other environment: ours, untuned


@dataclass
class Args:
    exp_name: str = "meta_sac_lag"
    """the name of this experiment, part of the run folder's name"""
    env_id: str = "EggManipulate"
    """a task of this project (EggManipulate), any id that Gymnasium knows, or `my_module:MyEnv-v0`"""
    seed: int = 1
    """seed of the environment's episodes, the networks, the exploration and the batches"""
    torch_deterministic: bool = True
    """whether cuDNN is held to deterministic algorithms"""
    cuda: bool = True
    """whether to train on the GPU where there is one"""
    track: bool = False
    """whether to log to Weights & Biases too (pip install wandb)"""
    wandb_project_name: str = "meta-sac-lag"
    """the Weights & Biases project"""
    wandb_entity: str | None = None
    """the Weights & Biases entity (team)"""

    # Algorithm specific arguments
    total_timesteps: int = 1_000_000
    """environment steps of the run"""
    learning_starts: int = 5000
    """steps with uniformly random actions before the first update"""
    buffer_size: int = 1_000_000
    """capacity of the replay buffers D and D_s"""
    batch_size: int = 256
    """transitions in each of B, B' and the safety critic's batch, and initial states in alpha's"""
    hidden_size: int = 256
    """units in each of the two hidden layers of every network"""
    gamma_r: float = 0.99
    """discount factor of the reward critic"""
    gamma_c: float = 0.99
    """discount factor of the safety critic"""
    tau: float = 0.005
    """Polyak rate of the target critics"""
    policy_lr: float = 3e-4
    """beta_phi, the policy's learning rate (RMSProp)"""
    q_lr: float = 1e-3
    """learning rate of both critics (Adam)"""
    rmsprop_decay: float = 0.99
    """decay of RMSProp's running mean of squared gradients"""
    reward_scale: float = 1.0
    """factor on the rewards that the critic learns from; logged returns are unscaled"""
    nu_init: float | None = None
    """initial Lagrange multiplier (default: Table 1's value for the environment, 10 for any other)"""
    nu_lr: float = 3e-4
    """beta_nu (RMSProp)"""
    epsilon_init: float = 1.0
    """initial safety threshold"""
    epsilon_lr: float = 3e-4
    """beta_epsilon (RMSProp)"""
    alpha_init: float = 1.0
    """initial exploration temperature"""
    alpha_lr: float = 3e-4
    """beta_alpha (Adam on log alpha)"""
    epsilon_objective: Literal["linear", "nonlinear"] = "linear"
    """J_epsilon: linear is Eq. 14, nonlinear is Eq. 16"""
    epsilon_step: Literal["ascent", "descent"] = "ascent"
    """the sign of epsilon's step: ascent as Eq. 13 prints it, or descent"""
    alpha_through_epsilon: bool = True
    """whether alpha's metagradient includes its path through epsilon' (third order, as Eq. 15 prints it)"""
    store_violations_in_d: bool = True
    """whether D also keeps the violating transitions (Appendix B); off: Algorithm 1's printed `else`"""
    initial_states: int = 256
    """resets made before training to fill D_0"""


class Actor(nn.Module):
    """pi_phi: a Gaussian squashed by tanh. Actions lie in [-1, 1]; they are scaled to the environment's box outside."""

    def __init__(self, obs_dim, action_dim, hidden_size):
        super().__init__()
        self.net = mlp(obs_dim, hidden_size, 2 * action_dim)

    def forward(self, obs):
        """obs (batch, obs_dim) -> a ~ pi (batch, action_dim), log pi(a|s) (batch,), pi_det (batch, action_dim)"""
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        log_std = -5 + 3.5 * (torch.tanh(log_std) + 1)  # in [-5, 2], as in CleanRL
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_dtanh = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), without overflow
        return torch.tanh(u), (log_normal - log_dtanh).sum(-1), torch.tanh(mean)


class TwinCritic(nn.Module):
    """Two Q networks. Q_c ends in a sigmoid: it is the probability of a violation to come (Section 3.1)."""

    def __init__(self, obs_dim, action_dim, hidden_size, probability):
        super().__init__()
        self.twins = nn.ModuleList(mlp(obs_dim + action_dim, hidden_size, 1) for _ in range(2))
        self.probability = probability

    def forward(self, obs, action):
        """obs (batch, obs_dim), action (batch, action_dim) in [-1, 1] -> both values (2, batch)"""
        x = torch.cat([obs, action], dim=-1)
        q = torch.stack([net(x).squeeze(-1) for net in self.twins])
        return q.sigmoid() if self.probability else q


def mlp(inputs, hidden_size, outputs):
    return nn.Sequential(
        nn.Linear(inputs, hidden_size),
        nn.ReLU(),
        nn.Linear(hidden_size, hidden_size),
        nn.ReLU(),
        nn.Linear(hidden_size, outputs),
    )


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

    def sample(self, batch_size, *others):
        """Rows drawn uniformly, with replacement, from this buffer and the others put together, as tensors."""
        pool = (self, *others)
        index = self.rng.integers(sum(len(buffer) for buffer in pool), size=batch_size)
        batch = {field: [] for field in self.rows}
        for buffer in pool:
            own = index[(index >= 0) & (index < len(buffer))]
            index = index - len(buffer)
            for field, parts in batch.items():
                parts.append(buffer.rows[field][own])
        return SimpleNamespace(**{f: torch.as_tensor(np.concatenate(p), device=self.device) for f, p in batch.items()})


def rmsprop(theta, gradient, square_avg, learning_rate, decay, constant):
    """One step of RMSProp *up* the gradient, theta' = theta + beta g / sqrt(v' + constant), and v'.

    A pure function of tensors of one shape, so theta' can be differentiated with respect to whatever the gradient
    depends on: this is how metagradients pass through nu', phi' and epsilon' (Appendix B). The constant stands inside
    the root because the derivative of the root at 0 is infinite, and a dead ReLU's gradient is exactly 0.
    """
    square_avg = decay * square_avg + (1 - decay) * gradient.square()
    return theta + learning_rate * gradient / (square_avg + constant).sqrt(), square_avg


def episode_seed(seed, k):
    """The seed of episode k (the resets that fill D_0 come first), so that no environment's generator has a history."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0])


if __name__ == "__main__":
    args = tyro.cli(Args)
    args.env_id = args.env_id.removeprefix("benchmark_envs:")  # either spelling gets Table 1's nu
    module, table_nu_init = ENVIRONMENTS.get(args.env_id, ("", OTHER_NU_INIT))
    args.nu_init = table_nu_init if args.nu_init is None else args.nu_init
    for rule, holds, names in (
        ("at least 1", lambda x: x >= 1, "total_timesteps buffer_size batch_size hidden_size initial_states"),
        ("at least 0", lambda x: x >= 0, "learning_starts"),
        ("in [0, 2^32)", lambda x: 0 <= x < 2**32, "seed"),
        ("finite and at least 0", lambda x: 0 <= x < np.inf, "policy_lr q_lr nu_lr epsilon_lr alpha_lr nu_init"),
        ("finite and above 0", lambda x: 0 < x < np.inf, "reward_scale"),
        ("in [0, 1)", lambda x: 0 <= x < 1, "gamma_r gamma_c rmsprop_decay"),
        ("in [0, 1]", lambda x: 0 <= x <= 1, "epsilon_init"),
        ("in (0, 1]", lambda x: 0 < x <= 1, "alpha_init tau"),
    ):
        for name in names.split():
            if not holds(getattr(args, name)):
                sys.exit(f"error: --{name.replace('_', '-')} must be {rule}, not {getattr(args, name)}")

    if args.learning_starts >= args.total_timesteps:
        print("note: no update will be made, --learning-starts is not below --total-timesteps")

    # The environment comes before the run folder, so that an unusable id leaves none behind.
    sys.path.append(os.getcwd())  # `--env-id my_module:MyEnv-v0` finds my_module.py in the current folder
    try:
        prefix, colon, _ = args.env_id.rpartition(":")
        if colon and not all(part.isidentifier() for part in prefix.split(".")):
            raise gym.error.Error(f"{prefix!r} cannot be a module's name")
        env = gym.make(f"{module}:{args.env_id}" if module else args.env_id)
    except (gym.error.Error, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        known = f"Known: {', '.join(ENVIRONMENTS)}; besides, every id of Gymnasium, and my_module:MyEnv-v0"
        sys.exit(f"error: cannot make --env-id {args.env_id}: {reason}. {known}")
    box = env.action_space
    if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1 or not np.isfinite([box.low, box.high]).all():
        sys.exit(f"error: actions must be a bounded, one-dimensional Box (continuous), but {args.env_id} has {box}")
    if not env.observation_space.is_np_flattenable:
        sys.exit(f"error: observations must fit a flat vector, but {args.env_id} has {env.observation_space}")
    env = gym.wrappers.FlattenObservation(env)
    obs_dim, action_dim = env.observation_space.shape[0], box.shape[0]

    if args.track:
        try:
            import wandb
        except ImportError:
            sys.exit("error: --track needs Weights & Biases: pip install wandb")

    # The run folder, never one that exists
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}".replace(":", "_").replace("/", "_")
    run_dir, attempt = os.path.join("runs", run_name), 1
    while True:
        try:
            os.makedirs(run_dir)
            break
        except FileExistsError:
            attempt += 1
            run_dir = os.path.join("runs", f"{run_name}-{attempt}")
        except OSError as error:
            sys.exit(f"error: cannot make the run folder {run_dir}: {error.strerror}")
    if args.track:
        wandb.init(
            project=args.wandb_project_name, entity=args.wandb_entity, name=os.path.basename(run_dir),
            config=vars(args), sync_tensorboard=True, save_code=True,
        )
    writer = SummaryWriter(run_dir)
    table = "\n".join(f"|{key}|{value}|" for key, value in vars(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")

    random.seed(args.seed)  # this and the next for environments that use them
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    why = " (CUDA is not available)" if args.cuda and device.type == "cpu" else ""
    print(f"{args.env_id}: observation {obs_dim}, action {action_dim}. Training on {device}{why}, logging to {run_dir}")

    # Require: the policy phi, the critics omega_r and omega_c, the Lagrange multiplier nu, epsilon and alpha
    actor = Actor(obs_dim, action_dim, args.hidden_size).to(device)
    phi = dict(actor.named_parameters())
    qr, qr_target = (TwinCritic(obs_dim, action_dim, args.hidden_size, probability=False).to(device) for _ in range(2))
    qc, qc_target = (TwinCritic(obs_dim, action_dim, args.hidden_size, probability=True).to(device) for _ in range(2))
    qr_target.load_state_dict(qr.state_dict())
    qc_target.load_state_dict(qc.state_dict())
    qr_optimizer = torch.optim.Adam(qr.parameters(), lr=args.q_lr)
    qc_optimizer = torch.optim.Adam(qc.parameters(), lr=args.q_lr)
    nu = torch.tensor(args.nu_init, device=device)
    epsilon = torch.tensor(args.epsilon_init, device=device, requires_grad=True)
    log_alpha = torch.tensor(math.log(args.alpha_init), device=device, requires_grad=True)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=args.alpha_lr)
    # RMSProp's running means of squared gradients
    nu_square, epsilon_square = torch.zeros_like(nu), torch.zeros_like(epsilon)
    phi_square = {name: torch.zeros_like(parameter) for name, parameter in phi.items()}

    # Alg. 1, line 1: the buffers. D_s keeps the reward too, though only the safety critic reads it.
    fields = dict(obs=(obs_dim,), action=(action_dim,), reward=(), cost=(), next_obs=(obs_dim,), terminated=())
    capacity = min(args.buffer_size, args.total_timesteps)
    D, D_s = (ReplayBuffer(capacity, rng, device, **fields) for _ in range(2))
    D_0 = ReplayBuffer(max(10_000, args.initial_states), rng, device, obs=(obs_dim,))
    # Alg. 1, line 2: D_0 approximates rho_0; each episode adds its first state to these.
    episode = 0
    for _ in range(args.initial_states):
        obs, _ = env.reset(seed=episode_seed(args.seed, episode))
        episode += 1
        D_0.add(obs=obs)

    global_step, violations_total, warned = 0, 0, False
    recent_violations, recent_successes = deque(maxlen=100), deque(maxlen=100)
    start_time = time.time()
    bar = tqdm(total=args.total_timesteps, unit="step", delay=1, mininterval=0.5 if sys.stderr.isatty() else 30)
    while global_step < args.total_timesteps:  # Alg. 1, line 3
        obs, _ = env.reset(seed=episode_seed(args.seed, episode))  # Alg. 1, line 4
        episode += 1
        D_0.add(obs=obs)
        episodic_return, episodic_length, effort, done = 0.0, 0, {"acceleration": [], "jerk": []}, False
        while not done and global_step < args.total_timesteps:  # Alg. 1, line 5
            # Alg. 1, line 6: a_t ~ pi_phi; uniform before learning starts
            if global_step < args.learning_starts:
                action = rng.uniform(-1, 1, action_dim).astype(np.float32)
            else:
                with torch.no_grad():
                    action = actor(torch.as_tensor(obs, dtype=torch.float32, device=device)[None])[0][0].cpu().numpy()

            # Alg. 1, line 7. Only here do actions leave [-1, 1] for the environment's box.
            env_action = np.clip(box.low + (action + 1) / 2 * (box.high - box.low), box.low, box.high)
            next_obs, reward, terminated, truncated, info = env.step(env_action)
            global_step += 1
            bar.update()
            if info.get("infra_failure", False):  # a lost robot link is neither the policy's doing nor its data
                break
            try:
                cost = float(info["cost"])
            except (KeyError, TypeError, ValueError):
                cost = math.nan
            if math.isnan(cost):
                given = info.get("cost", "nothing")
                sys.exit(f'error: {args.env_id} must give info["cost"], a number, at every step, but gave {given}')
            cost = float(cost > 0)
            if cost and not terminated and not warned:
                bar.write(f"note: {args.env_id} did not terminate on a violation; its episodes end there all the same")
                warned = True
            terminated = bool(terminated or cost)  # hard constraints (Section 5.1)
            done = terminated or truncated
            episodic_return, episodic_length = episodic_return + float(reward), episodic_length + 1
            for key, values in effort.items():
                if key in info:
                    values.append(info[key])

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
                    next_action, _, _ = actor(B_c.next_obs)
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
                J_h = log_pi.mean()
                J_c = qc(B.obs, action_pi).amax(0).mean()

                # Alg. 1, line 15 (Eqs. 11-12): nu' = nu - beta_nu dL/dnu, a function of epsilon. J_c is detached: in
                # line 16 nu' is an argument of L, and phi's gradient does not run through it.
                nu_new, nu_square_new = rmsprop(
                    nu, J_c.detach() - epsilon, nu_square, args.nu_lr, args.rmsprop_decay, 1e-20
                )

                # Alg. 1, line 16 (Eqs. 11-12): phi' = phi + beta_phi dL/dphi at nu'. That is linear in alpha and nu',
                # so its three gradients can be taken as constants: phi' is the same function of alpha and epsilon as if
                # the whole graph were kept, and no second derivative of the networks on B is needed.
                phi_new, phi_square_new = {}, {}
                g_r, g_h, g_c = (torch.autograd.grad(J, phi.values(), retain_graph=True) for J in (J_r, J_h, J_c))
                for name, g_r_i, g_h_i, g_c_i in zip(phi, g_r, g_h, g_c):
                    dL_dphi = g_r_i - alpha * g_h_i - nu_new * g_c_i
                    phi_new[name], phi_square_new[name] = rmsprop(
                        phi[name].detach(), dL_dphi, phi_square[name], args.policy_lr, args.rmsprop_decay, 1e-12
                    )

                # Alg. 1, line 17: B', because on B, which phi' was fitted to, the metagradients are biased (Appendix B)
                B_new = D.sample(args.batch_size)

                # Alg. 1, line 18 (Eqs. 13-14, or 16): epsilon' = epsilon + beta_epsilon dJ_epsilon/depsilon, through
                # phi' and nu'; nu'_copy is detached (Section 4.3). epsilon' is a function of alpha, because phi' is.
                # Eq. 13 prints ascent; whether it is meant is open (README).
                action_new, _, _ = functional_call(actor, phi_new, (B_new.obs,))
                q_r, q_c = qr(B_new.obs, action_new).amin(0), qc(B_new.obs, action_new).amax(0)
                if args.epsilon_objective == "linear":
                    nu_copy = nu_new.detach()
                    J_epsilon = (nu_copy * q_c - q_r).mean()
                else:
                    J_epsilon = torch.where(q_r < 0, q_r * q_c, q_r * (1 - q_c)).mean()
                (grad_epsilon,) = torch.autograd.grad(
                    J_epsilon, epsilon, retain_graph=True, create_graph=args.alpha_through_epsilon
                )
                sign = 1 if args.epsilon_step == "ascent" else -1
                epsilon_new, epsilon_square_new = rmsprop(
                    epsilon.detach(), sign * grad_epsilon, epsilon_square, args.epsilon_lr, args.rmsprop_decay, 1e-20
                )

                # Alg. 1, line 19 (Eqs. 13, 15): alpha' ascends J_alpha: L without the entropy, at initial states and
                # deterministic actions. Its gradient comes through phi', and through epsilon' (dJ_alpha/depsilon' is
                # nu'). Adam steps log alpha, whose gradient is alpha times alpha's; the minus because it descends.
                S_0 = D_0.sample(args.batch_size)
                _, _, action_det = functional_call(actor, phi_new, (S_0.obs,))
                q_r_0, q_c_0 = qr(S_0.obs, action_det).amin(0), qc(S_0.obs, action_det).amax(0)
                J_alpha = (q_r_0 - nu_new * (q_c_0 - epsilon_new.detach())).mean()
                (grad_alpha_direct,) = torch.autograd.grad(J_alpha, alpha, retain_graph=True)
                grad_alpha_via_epsilon = torch.zeros_like(grad_alpha_direct)
                if args.alpha_through_epsilon:
                    (grad_alpha_via_epsilon,) = torch.autograd.grad(nu_new.detach() * epsilon_new, alpha)
                grad_alpha = grad_alpha_direct + grad_alpha_via_epsilon
                log_alpha.grad = -alpha.detach() * grad_alpha
                alpha_optimizer.step()

                # Alg. 1, line 20: commit nu', phi' and epsilon' (Adam has stepped alpha). Only here are the bounds
                # kept, never inside the graph: nu >= 0, 0 <= epsilon <= 1, 0 < alpha <= 1.
                with torch.no_grad():
                    nu.copy_(nu_new.clamp(min=0))
                    for name in phi:
                        phi[name].copy_(phi_new[name])
                        phi_square[name] = phi_square_new[name].detach()
                    epsilon.copy_(epsilon_new.clamp(0, 1))
                    log_alpha.clamp_(max=0)
                    nu_square, epsilon_square = nu_square_new.detach(), epsilon_square_new.detach()
                # <<< Algorithm 1, lines 12 to 20

                if global_step % 100 == 0:
                    L = J_r - alpha * J_h - nu_new * (J_c - epsilon)
                    for tag, value in {
                        "meta/epsilon": epsilon, "meta/alpha": log_alpha.exp(), "meta/nu": nu,
                        "meta/grad_epsilon": grad_epsilon, "meta/grad_alpha": grad_alpha,
                        "meta/grad_alpha_direct": grad_alpha_direct,
                        "meta/grad_alpha_via_epsilon": grad_alpha_via_epsilon,
                        "losses/qr": loss_qr, "losses/qc": loss_qc, "losses/policy": -L, "losses/entropy": -J_h,
                        "values/qr": J_r, "values/qc": J_c,
                        "charts/SPS": global_step / (time.time() - start_time),
                    }.items():
                        writer.add_scalar(tag, value, global_step)

            # Alg. 1, line 21: a violation ends the episode; so does the environment
            if done:
                recent_violations.append(cost)
                violations_total += int(cost)
                charts = {
                    "episodic_return": episodic_return, "episodic_length": episodic_length, "violation": cost,
                    "violation_rate": np.mean(recent_violations), "violations_total": violations_total,
                }
                if "is_success" in info:  # at the last step, and no step violated
                    recent_successes.append(float(info["is_success"]) * (1 - cost))
                    charts["success_rate"] = np.mean(recent_successes)
                charts.update({key: np.mean(values) for key, values in effort.items() if values})
                for key, value in charts.items():
                    writer.add_scalar(f"charts/{key}", value, global_step)
                bar.set_postfix_str(
                    f"return {episodic_return:.1f}, violation rate {charts['violation_rate']:.2f}, "
                    f"epsilon {epsilon.item():.2f}, alpha {log_alpha.exp().item():.3f}, nu {nu.item():.2f}",
                    refresh=False,
                )
    bar.close()

    path = os.path.join(run_dir, f"policy_{global_step}.pt")
    sizes = dict(obs_dim=obs_dim, action_dim=action_dim, hidden_size=args.hidden_size)
    low, high = torch.as_tensor(box.low), torch.as_tensor(box.high)
    torch.save(dict(actor=actor.state_dict(), sizes=sizes, action_low=low, action_high=high, env_id=args.env_id), path)
    env.close()
    writer.close()
    print(f"{global_step} steps, {violations_total} violations; the policy is in {path}")
