"""Pour Coffee: a Kinova Gen3 carries a mug of coffee to a cup and pours, spilling nothing and touching nothing.

The testbench of Meta SAC-Lag (Honari et al., 2024, Section 5.3 and Appendix D), as a PyBullet environment that needs no
other file:  gym.make("pour_coffee_env:PourCoffee"). The paper gives state, action, reward and settings; every number
that it leaves open is in `Specification`, or a constant below, and ours where no source is named.

    python pour_coffee_env.py                 # a scripted pour: its numbers, and a GIF
    python pour_coffee_env.py --gui           # the same in PyBullet's window
    python pour_coffee_env.py --random        # a uniformly random policy
"""

import dataclasses
import functools
import math
import os
import sys
import tempfile
import time
import types
import weakref

import gymnasium as gym
import numpy as np


# Mug, cup and coffee (m, kg). The mug is filled to the brim: the upper spheres' centres lie 1 to 3 mm above its rim.
# With their centres below it, motion within the specification hardly spills any, and only tilt would (measured).
MUG_RADIUS, MUG_WALL, MUG_DEPTH, MUG_FOOT = 0.035, 0.006, 0.025, 0.028  # inner radius; the solid part below the coffee
# A cup so wide and so low that what is poured anywhere Eq. 17 pays, within d_thresh of the goal, lands in it. Scripted
# pours at 0.3 to 0.8 rad/s: 327 of 327 up to 4.5 cm from the goal, 51 of 52 at 5 cm. At its rim's height the coffee
# arrives within 5.3 cm of the mug's centre along x and 2 to 9.3 cm from it along -y (measured). Gripper and mug,
# rolled, reach 6.3 cm below that centre (computed).
CUP_RADIUS, CUP_WALL, CUP_HEIGHT = 0.10, 0.005, 0.09
CUP_RIM = np.array([0.0, -0.06, -0.12])  # the centre of the cup's rim, from the goal
STAND = 0.12  # half the width of the block on which the cup stands
SPHERES, SPHERE_RADIUS, SPHERE_MASS, FRICTION = 14, 0.01, 0.004, 0.1
SUBSTEP, TICK = 1 / 240, 6  # s; substeps between two readings of the joints (25 ms, the robot's own command period)


@dataclasses.dataclass(frozen=True)
class Specification:
    """What the simulated and the real task share, so that both saturate and observe alike. All numbers in SI units.

    Positions are those of the mug's centre in the frame of the robot's base (x forward, y left, z up). ValueError where
    one is none that the task can be played with.
    """

    control_period: float = 0.1  # s: 10 Hz; a multiple of 25 ms
    speed_max: float = 0.25  # m/s, the commanded norm: half of the Gen3's limit for twist commands, the mug being open
    acceleration_max: float = 2.0  # m/s^2, the norm
    roll_rate_max: float = 0.8  # rad/s
    roll_max: float = 2.6  # rad, to either side
    latency: float = 0.0  # s, from the observation to the motion that answers it, at most a period; simulated in 25 ms
    workspace_low: tuple = (0.40, -0.40, 0.20)  # m
    workspace_high: tuple = (0.70, 0.20, 0.55)  # m
    elbow: tuple = (0.287, 0.0, 0.285)  # m; nearer to this than elbow_radius the elbow's end lets no level mug come
    elbow_radius: float = 0.26  # m: 0.24 (computed) and a margin
    home: tuple = (0.0, 15.0, 180.0, -130.0, 0.0, 55.0, 90.0)  # degrees, the robot's built-in Home
    goal: tuple = (0.55, -0.25, 0.30)  # m, where the mug has to be to pour; the cup stands beside and below it
    goal_roll: float = 2.2  # rad
    r_distance: float = -2.0  # Eq. 17's r1, 1/m
    r_acceleration: float = -0.05  # r2, s^2/m
    r_spill: float = -1.0  # r3
    goal_reward: float = 10.0
    d_thresh: float = 0.05  # m
    episode_steps: int = 100  # for those who register the environment; gym.make(..., max_episode_steps=) overrides it

    def __post_init__(self):
        low, goal, high = (np.array(corner) for corner in (self.workspace_low, self.goal, self.workspace_high))
        ticks, floor = self.control_period / (TICK * SUBSTEP), CUP_HEIGHT - CUP_RIM[2]
        for holds, rule in (
            (ticks > 0.5 and abs(ticks - round(ticks)) < 1e-6, "control_period has to be a multiple of 0.025 s"),
            (0 <= self.latency <= self.control_period, "latency has to be between 0 and control_period"),
            (min(self.speed_max, self.acceleration_max, self.roll_rate_max) > 0, "the bounds have to be above 0"),
            ((low < goal).all() and (goal < high).all(), "the goal has to lie in the workspace"),
            (np.linalg.norm(goal - self.elbow) > self.elbow_radius, "the goal has to be out of the elbow's way"),
            (goal[2] > floor, f"the goal has to be over {floor:.2f} m above the table, for the cup to stand below it"),
        ):
            if not holds:
                raise ValueError(f"{rule}, but this is {self}")

    def limit(self, action, position, velocity, roll, last):
        """What is done of an action, (4,) in m/s and rad/s, given the mug's state (SI units) and what was done last.

        In this order: each component, the velocity's norm, its change, the workspace (a box less the `elbow`'s ball).
        Towards a wall the mug goes no faster than lets it stop before it, at `acceleration_max`, from where and how
        fast it will be when the action takes effect, `latency` later, and again after that period. That comes before
        the bound on the change.
        """
        dt, a_max = self.control_period, self.acceleration_max
        highest = np.array([self.speed_max] * 3 + [self.roll_rate_max])
        action = np.clip(action, -highest, highest)
        wanted = action[:3] * min(1.0, self.speed_max / max(np.linalg.norm(action[:3]), 1e-9))
        change = wanted - last[:3]
        wanted = last[:3] + change * min(1.0, a_max * dt / max(np.linalg.norm(change), 1e-9))
        stop = max(dt, 2 * self.speed_max / a_max) / 2  # s; times a speed: the way to its end, while others turn

        def bound(distance, *speeds):  # towards a wall: from the distance, and the speeds of mug and last action
            speed = np.maximum(0, np.maximum(*speeds))
            room = distance - self.latency * speed
            return np.maximum(0, np.minimum((room - stop * speed) / dt, room / (dt + stop)))

        away = (position - self.elbow) / max(np.linalg.norm(position - self.elbow), 1e-9)
        nearer = bound(np.linalg.norm(position - self.elbow) - self.elbow_radius, -away @ velocity, -away @ last[:3])
        wanted = wanted + away * max(0.0, -away @ wanted - nearer)
        wanted = np.clip(
            wanted,
            -bound(position - self.workspace_low, -velocity, -last[:3]),
            bound(self.workspace_high - position, velocity, last[:3]),
        )
        if -away @ wanted > nearer:  # where the box has cut what leads away
            wanted = wanted * (nearer / (-away @ wanted))
        roll = roll + self.latency * last[3]
        turn = np.clip(action[3], (-self.roll_max - roll) / dt, (self.roll_max - roll) / dt)
        return np.append(wanted, turn)

    def observe(self, position, angles, velocity, goal):
        """SI units -> the observation, (15,) of order one: see PourCoffee's table."""
        centre = np.add(self.workspace_low, self.workspace_high) / 2
        mug = 10 * (position - centre), angles, velocity / self.speed_max
        return np.concatenate([*mug, 10 * (goal - centre), (0.0, 0.0, self.goal_roll)]).astype(np.float32)

    def measures(self, observation):
        """The inverse of `observe`: position, angles, velocity and goal in SI units, (3,) each."""
        position, angles, velocity, goal, _ = np.split(np.asarray(observation, float), 5)
        centre = np.add(self.workspace_low, self.workspace_high) / 2
        return centre + position / 10, angles, velocity * self.speed_max, centre + goal / 10

    def reward(self, distance, roll, acceleration=0.0, spilled=False):
        """Eq. 17: distance to the goal (m), roll (rad); acceleration (m/s^2) and spill where the setting has them."""
        if distance > self.d_thresh:
            return self.r_distance * distance + self.r_acceleration * acceleration + self.r_spill * spilled
        return self.goal_reward - abs(roll - self.goal_roll)


SPECIFICATION = Specification()


@dataclasses.dataclass(frozen=True)
class Randomization:
    """What may differ on the real arm, drawn anew each episode, uniform in (low, high), or Gaussian noise at each step.

    Reward, cost and info are those of the true state. An action that is delayed beyond the specification's latency is
    bounded as if it were not, so the mug may leave the workspace by up to its speed times that delay. Ours, untuned.
    """

    position_noise: float = 0.002  # m, standard deviation, of the observed mug
    angle_noise: float = 0.01  # rad
    velocity_noise: float = 0.01  # m/s
    action_delay: tuple = (0.0, 0.1)  # s, beside the specification's latency, in steps of 25 ms
    friction: tuple = (0.05, 0.2)  # of mug and coffee, each
    fill: tuple = (0.7, 1.0)  # share of the coffee; the uppermost spheres are left out

    def __post_init__(self):
        for name, least, most in (("action_delay", 0, 10), ("friction", 0, 10), ("fill", 1 / SPHERES, 1)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} has to be (low, high) within [{least:.2g}, {most}], but it is {(low, high)}")
        for name in ("position_noise", "angle_noise", "velocity_noise"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name}, a standard deviation, has to be at least 0, but it is {getattr(self, name)}")


# The Gen3 with seven joints, as Kinova publishes it (kortex_description, GEN3-7DOF-NOVISION V12)
JOINTS = (  # origin in the parent link's frame (m), its rotation about x (rad); each turns about its own z
    ((0, 0, 0.15643), math.pi),
    ((0, 0.005375, -0.12838), math.pi / 2),
    ((0, -0.21038, -0.006375), -math.pi / 2),
    ((0, 0.006375, -0.21038), math.pi / 2),
    ((0, -0.20843, -0.006375), -math.pi / 2),
    ((0, 0.00017505, -0.10593), math.pi / 2),
    ((0, -0.10593, -0.00017505), -math.pi / 2),
)
JOINT_LIMIT = np.array([np.inf, 2.24, np.inf, 2.57, np.inf, 2.09, np.inf])  # rad, to either side
JOINT_SPEED = np.array([1.3963] * 4 + [1.2218] * 3)  # rad/s
JOINT_EFFORT = [39.0] * 4 + [9.0] * 3  # N m
FLANGE = 0.061525  # m, from the last joint to the flange, along the tool's z
TOOL = 0.12  # m, from the flange to the mug's centre: the tool centre of a Robotiq 2F-85
# name (Kinova's mesh is {name}_link.STL), mass (kg), centre of mass (m), principal inertias (kg m^2), and a cylinder as
# wide and long as the mesh: centre (m), whether it lies along y (else z), radius and length (m)
LINKS = (
    ("base", 1.697, (-0.0006, -0.0002, 0.0845), (4.622e-3, 4.495e-3, 2.079e-3), (0, 0, 0.0855), 0, 0.046, 0.171),
    ("shoulder", 1.3773, (0, -0.0104, -0.0734), (4.57e-3, 4.831e-3, 1.409e-3), (0, 0, -0.088), 0, 0.046, 0.172),
    ("half_arm_1", 1.1636, (0, -0.0996, -0.0133), (1.1088e-2, 1.072e-3, 1.1255e-2), (0, -0.09, -0.008), 1, 0.046, 0.27),
    ("half_arm_2", 1.1636, (0, -0.0066, -0.1179), (1.0932e-2, 1.1127e-2, 1.043e-3), (0, 0, -0.129), 0, 0.046, 0.254),
    ("forearm", 0.9302, (0, -0.0755, -0.015), (8.147e-3, 6.31e-4, 8.316e-3), (0, -0.0875, -0.0135), 1, 0.043, 0.267),
    ("spherical_wrist_1", 0.6781, (0, -0.0094, -0.0639), (1.6e-3, 1.61e-3, 4e-4), (0, 0, -0.0715), 0, 0.035, 0.139),
    ("spherical_wrist_2", 0.6781, (0, -0.0455, -0.01), (1.64e-3, 4e-4, 1.64e-3), (0, -0.0415, -0.009), 1, 0.035, 0.153),
    ("bracelet_no_vision", 0.364, (0, 0, -0.0229), (2.14e-4, 2.23e-4, 2.4e-4), (0, 0, -0.032), 0, 0.038, 0.064),
)


def rotation_x(angle):
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


ORIGINS = [(np.array(xyz, float), rotation_x(tilt)) for xyz, tilt in JOINTS]
# The mug's axes in the tool's frame: forward, left, up at Home. The tool's own Euler angles are singular in the pour.
MUG_IN_TOOL = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def kinematics(q):
    """Joint angles (7,) in rad -> mug's centre (3,) in m, its rotation (3, 3), Jacobian (6, 7) of velocity and spin."""
    p, R = np.zeros(3), np.eye(3)
    points, axes = np.empty((7, 3)), np.empty((7, 3))
    for i, ((xyz, tilt), angle) in enumerate(zip(ORIGINS, q)):
        p = p + R @ xyz
        R = R @ tilt
        points[i], axes[i] = p, R[:, 2]
        c, s = math.cos(angle), math.sin(angle)
        R = np.column_stack([c * R[:, 0] + s * R[:, 1], c * R[:, 1] - s * R[:, 0], R[:, 2]])
    mug = p - (FLANGE + TOOL) * R[:, 2]
    return mug, R @ rotation_x(math.pi) @ MUG_IN_TOOL, np.vstack([np.cross(axes, mug - points).T, axes.T])


def damped_inverse(J, damping):
    """J (6, 7) -> J^T (J J^T + damping)^-1 (7, 6), damped least squares.

    By singular values: NumPy's inv and solve wake BLAS's threads even for 6 x 6, and wait for them, milliseconds each
    while PyTorch trains beside them (measured: 9 ms of a 20 ms step).
    """
    U, s, V = np.linalg.svd(J, full_matrices=False)
    return V.T * (s / (s**2 + damping)) @ U.T


def tait_bryan(R):
    """Rotation (3, 3) -> (psi, theta, phi) in rad, intrinsic z-y'-x'' (Appendix D)."""
    return np.array([
        math.atan2(R[1, 0], R[0, 0]), math.asin(max(-1.0, min(1.0, -R[2, 0]))), math.atan2(R[2, 1], R[2, 2])
    ])  # fmt: skip


def shape(geometry, xyz, rpy, colour, seen=None):
    """URDF of a solid; `seen`, a file with a mesh in the link's frame, is shown in its place."""
    placed = '<origin xyz="{:.6f} {:.6f} {:.6f}" rpy="{:.6f} {:.6f} {:.6f}"/>'.format(*xyz, *rpy)  # it reads no 1e-18
    solid = f"{placed}<geometry>{geometry}</geometry>"
    shown = f'<geometry><mesh filename="{seen}"/></geometry>' if seen else solid
    paint = f'<material name="{colour}"><color rgba="{colour}"/></material>'
    return f"<visual>{shown}{paint}</visual><collision>{solid}</collision>"


def box(size, xyz, colour, yaw=0.0):
    return shape('<box size="{:.6f} {:.6f} {:.6f}"/>'.format(*size), xyz, (0, 0, yaw), colour)


def cylinder(radius, length, xyz, colour, along_y=False, seen=None):
    geometry = f'<cylinder radius="{radius:.6f}" length="{length:.6f}"/>'
    return shape(geometry, xyz, (math.pi / 2 if along_y else 0, 0, 0), colour, seen)


def vessel(radius, wall, floor, low, high, walls, colour):
    """A ring of boxes around z from low to high, closed up to `floor`; heights in m."""
    width, r = 2 * (radius + wall) * math.tan(math.pi / walls), radius + wall / 2
    xml = cylinder(radius + wall / 2, floor - low, (0, 0, (floor + low) / 2), colour)
    for angle in 2 * math.pi * (np.arange(walls) + 0.5) / walls:
        xyz = (r * math.cos(angle), r * math.sin(angle), (low + high) / 2)
        xml += box((wall, width, high - low), xyz, colour, angle)
    return xml


def link(name, mass, centre, inertia, shapes):
    return f"""<link name="{name}"><inertial><mass value="{mass}"/>
        <origin xyz="{centre[0]} {centre[1]} {centre[2]}"/>
        <inertia ixx="{inertia[0]}" iyy="{inertia[1]}" izz="{inertia[2]}" ixy="0" ixz="0" iyz="0"/></inertial>
        {shapes}</link>"""


def joint(name, kind, parent, child, xyz, rpy, limit=""):
    return f"""<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>
        <origin xyz="{xyz[0]} {xyz[1]} {xyz[2]}" rpy="{rpy[0]} {rpy[1]} {rpy[2]}"/><axis xyz="0 0 1"/>{limit}</joint>"""


def arm_urdf(rim, mesh_dir=None):
    """The arm, a gripper and the mug in it, whose wall ends at the height `rim` (m) above its centre."""
    light, grey, dark, blue = "0.85 0.85 0.87 1", "0.6 0.6 0.63 1", "0.25 0.25 0.28 1", "0.2 0.45 0.75 1"
    xml = ""
    for i, (name, mass, centre, inertia, xyz, along_y, radius, length) in enumerate(LINKS):
        seen = mesh_dir and os.path.join(os.path.abspath(mesh_dir), f"{name}_link.STL")
        if seen and not os.path.isfile(seen):
            raise FileNotFoundError(f"mesh_dir has to hold kortex_description's meshes, but there is no {seen}")
        xml += link(name, mass, centre, inertia, cylinder(radius, length, xyz, (light, grey)[i % 2], along_y, seen))
    for i, (xyz, tilt) in enumerate(JOINTS):
        kind, limit = "continuous", f'<limit effort="{JOINT_EFFORT[i]}" velocity="{JOINT_SPEED[i]}"/>'
        if np.isfinite(JOINT_LIMIT[i]):
            kind, limit = "revolute", limit.replace("/>", f' lower="{-JOINT_LIMIT[i]}" upper="{JOINT_LIMIT[i]}"/>')
        xml += joint(f"joint_{i + 1}", kind, LINKS[i][0], LINKS[i + 1][0], xyz, (tilt, 0, 0), limit)
    side = MUG_RADIUS + MUG_WALL + 0.006
    gripper = cylinder(0.035, 0.07, (0, 0, 0.035), dark)
    gripper += box((2 * side + 0.01, 0.02, 0.012), (0, -0.025, 0.068), dark)
    for x in (-side, side):
        gripper += box((0.01, 0.02, 0.08), (x, -0.025, 0.10), dark)  # below the rim, out of the coffee's way
    xml += link("gripper", 0.9, (0, 0, 0.05), (0.001, 0.001, 0.001), gripper)
    xml += joint("gripper", "fixed", LINKS[-1][0], "gripper", (0, 0, -FLANGE), (math.pi, 0, 0))
    mug = vessel(MUG_RADIUS, MUG_WALL, -MUG_DEPTH / 2, -MUG_DEPTH / 2 - MUG_FOOT, rim, 8, blue)
    xml += link("mug", 0.3, (0, 0, 0), (0.0003, 0.0003, 0.0003), mug)
    xml += joint("mug", "fixed", "gripper", "mug", (0, 0, TOOL), (-math.pi / 2, -math.pi / 2, 0))
    return f'<robot name="gen3">{xml}</robot>'


def cup_urdf():
    cup = vessel(CUP_RADIUS, CUP_WALL, 0.006, 0.0, CUP_HEIGHT, 12, "0.95 0.95 0.95 1")
    return f'<robot name="cup">{link("cup", 0, (0, 0, 0), (0, 0, 0), cup)}</robot>'


class PourCoffee(gym.Env):
    """
    ## Description
    A Kinova Gen3 moves a brim-full mug from its home position to a goal beside a cup and pours the coffee into it
    (paper, Section 5.3). The coffee is 14 spheres of 1 cm, simulated. 10 control steps a second, of 24 substeps each.

    ## Action Space
    `Box((4,), float32)`: velocity of the mug x, y, z, +-0.25 m/s, and rate of its roll phi, +-0.8 rad/s. Values outside
    are clipped; one that is not finite, or another shape, raises ValueError. `Specification.limit` then bounds the
    norms of velocity (0.25 m/s) and acceleration (2 m/s^2) and keeps the mug in the workspace. Damped least squares and
    joint speed limits turn that into joint velocities, slower where a joint cannot follow; the mug's pitch and yaw are
    held at 0.

    ## Observation Space
    `Box((15,), float32)` (Appendix D), along the axes of the robot's base, of order one, by `Specification.observe`
    (`Specification.measures` gives SI units back). Positions are from the workspace's centre, (0.55, -0.10, 0.375) m:

    | index | content | unit |
    |---|---|---|
    | 0-2 | X_cup, the mug's centre | 0.1 m |
    | 3-5 | O_cup = (psi, theta, phi), its Tait-Bryan angles, intrinsic z-y'-x'': yaw, pitch, roll | rad |
    | 6-8 | the mug's velocity | speed_max, 0.25 m/s |
    | 9-11 | X_goal, where the mug has to be to pour | 0.1 m |
    | 12-14 | O_goal = (0, 0, 2.2) | rad |

    ## Rewards (Eq. 17)
    With d = |X_cup - X_goal|: `10 - |phi - phi_goal|` where d <= 5 cm, else `-2 d`, and by setting
    `- 0.05 |acceleration|` and `-1` on a step with coffee spilled.

    ## Cost
    | info key | 1.0 when |
    |---|---|
    | `cost_spill` | at the end of the step a sphere lies outside mug and cup, or on arm or gripper (not: in flight) |
    | `cost_self_collision` | two links of arm, gripper and mug touch that are at least three apart |
    | `cost_collision_table`, `_stand`, `_cup` | arm, gripper or mug touches it |
    | `cost` | the maximum of these |

    0 where the setting does not make it a violation.

    Also in `info`: `is_success` (nine tenths of the coffee are in the cup), `spilled` and `poured` (numbers of
    spheres), `acceleration` (m/s^2) and `jerk` (m/s^3), norms of the differences between control steps. `is_success`
    does not ask for the last tenth: where a spill is no violation, one sphere may lie beside the cup.

    ## Starting State
    The arm at the robot's Home, the mug at (0.577, 0.001, 0.434) m, upright and full. Goal, stand and cup lie within
    +- `goal_range` of (0.55, -0.25) m, in x and y. With `start="pour"` half of the episodes begin after 5 to 50 steps
    of `scripted_pour`, drawn uniformly (at home where those were a violation, as randomization may make them); the time
    limit counts from there. The world is built anew at every reset, so the same seed gives the same episode bit for
    bit, whatever came before.

    ## Episode End
    Terminates on a violation. Truncates after 100 steps (10 s). Success does not end it.

    ## Arguments
    * `acceleration_reward`, `spill_penalty`, `spill_violates`: Table 2, below.
    * `collision_violates`: whether a collision is a violation, as in all of Table 2's rows.
    * `goal_range` (m) and `start` ("home" or "pour"): see Starting State. `specification`: a `Specification`.
    * `randomization`: None, or a `Randomization` for sim-to-real. `Randomization()` has its defaults.
    * `mesh_dir`: a folder with Kinova's own meshes of the arm (kortex_description, arms/gen3/7dof/meshes), to be shown.
      FileNotFoundError where one is missing. They change the picture alone.

    ## Settings (Table 2)
    | id | acceleration in the reward | spill penalty | a spill is a violation |
    |---|---|---|---|
    | `PourCoffee`, `PourCoffeeSim1` (and "Real") | | | yes |
    | `PourCoffeeSim2` | yes | | |
    | `PourCoffeeSim3` | yes | | yes |
    | `PourCoffeeSim4` | yes | yes | yes |

    A collision is a violation in all of them.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 10}

    def __init__(
        self,
        render_mode=None,
        acceleration_reward=False,
        spill_penalty=False,
        spill_violates=True,
        collision_violates=True,
        goal_range=0.05,
        start="home",
        specification=SPECIFICATION,
        randomization=None,
        mesh_dir=None,
    ):
        import pybullet  # here, because its import prints a line

        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode has to be None, human or rgb_array, but it is {render_mode!r}")
        if render_mode == "human" and sys.platform == "linux" and not os.environ.get("DISPLAY"):
            raise RuntimeError("there is no display for render_mode human (PyBullet would end the program)")
        if start not in ("home", "pour"):
            raise ValueError(f"start has to be home or pour, but it is {start!r}")
        if not isinstance(randomization, Randomization | None):
            raise ValueError(f"randomization has to be None or a Randomization, but it is {randomization!r}")
        reach = np.array([goal_range, goal_range, 0.0])
        goal, low, high = specification.goal, specification.workspace_low, specification.workspace_high
        nearest = np.clip(specification.elbow, goal - reach, goal + reach)  # of all goals, to the elbow
        free = np.linalg.norm(nearest - specification.elbow) > specification.elbow_radius
        if not (goal_range >= 0 and (goal - reach > low).all() and (goal + reach < high).all() and free):
            raise ValueError(
                "goal_range has to be >= 0 and keep the goal in the workspace and out of the elbow's way, but around "
                f"{goal} m it is {goal_range} m"
            )
        # PyBullet remembers a file by its path, so the two mugs have one each
        models = {"tall": arm_urdf(0.08), "arm": arm_urdf(MUG_DEPTH / 2, mesh_dir), "cup": cup_urdf()}

        self.render_mode, self.goal_range, self.start = render_mode, goal_range, start
        self.acceleration_reward, self.spill_penalty = acceleration_reward, spill_penalty
        self.spill_violates, self.collision_violates = spill_violates, collision_violates
        self.specification, self.randomization = specification, randomization
        self.metadata = self.metadata | {"render_fps": round(1 / specification.control_period)}
        high = np.array([specification.speed_max] * 3 + [specification.roll_rate_max], np.float32)
        self.action_space = gym.spaces.Box(-high, high)
        high = np.repeat([20, 4, 4 / specification.speed_max, 20, 4], 3).astype(np.float32)  # 2 m, 4 rad, 4 m/s
        self.observation_space = gym.spaces.Box(-high, high)

        client = pybullet.connect(pybullet.GUI if render_mode == "human" else pybullet.DIRECT)
        names = {
            name: functools.partial(value, physicsClientId=client) if callable(value) else value
            for name, value in vars(pybullet).items()
        }
        self.bullet = types.SimpleNamespace(**names)
        self.disconnect = weakref.finalize(self, self.bullet.disconnect)  # once: by close, or where this is dropped
        self.folder = tempfile.TemporaryDirectory()
        for name, xml in models.items():
            with open(os.path.join(self.folder.name, f"{name}.urdf"), "w") as file:
                file.write(xml)

        # To the brim: the coffee settles in a mug with a higher wall, and again when that is gone.
        mug, _, _ = kinematics(np.radians(specification.home))
        pile = []
        for i in range(SPHERES):
            layer, k = divmod(i, 7)
            angle, radius = k * math.pi / 3 + layer / 2, 0.0 if k == 6 else 2.05 * SPHERE_RADIUS
            height = SPHERE_RADIUS * (1.1 + 2.05 * layer) - MUG_DEPTH / 2
            pile.append(mug + (radius * math.cos(angle), radius * math.sin(angle), height))
        for model in ("tall", "arm"):
            self._build(model, specification.goal, pile)
            for _ in range(480):
                self.bullet.stepSimulation()
            pile = self._coffee()
        self.brimful = pile[np.argsort(pile[:, 2])]  # the uppermost last

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        offset = self.np_random.uniform(-self.goal_range, self.goal_range, 2)
        self.goal = np.array(self.specification.goal) + (*offset, 0.0)
        delay, friction, fill = self.specification.latency, FRICTION, 1.0
        if self.randomization:
            delay += self.np_random.uniform(*self.randomization.action_delay)
            friction = self.np_random.uniform(*self.randomization.friction)
            fill = self.np_random.uniform(*self.randomization.fill)
        self.delay = round(delay / (TICK * SUBSTEP))
        coffee = self.brimful[: max(1, round(fill * SPHERES))]
        observation, info = self._begin(coffee, friction)
        if self.start == "pour" and self.np_random.random() < 0.5:
            policy = scripted_pour(specification=self.specification)
            for _ in range(self.np_random.integers(5, 51)):
                observation, *_, info = self.step(policy(observation))
                if info["spilled"] or self.touched:
                    return self._begin(coffee, friction)
        return observation, info

    def _begin(self, coffee, friction):
        """The world with the arm at home and the coffee in the mug, at rest -> observation and info."""
        self._build("arm", self.goal, coffee, friction)
        for _ in range(12):
            self.bullet.stepSimulation()
        self._look()
        self.commands, self.going = [np.zeros(4)], np.zeros(4)  # each step's, and what the ramp has come to
        self.reference, self.roll_reference = self.position, 0.0
        self.last_velocity, self.last_acceleration, self.touched = np.zeros(3), np.zeros(3), set()
        return self._observation(), self._info(0.0, 0.0)

    def step(self, action):
        action = np.asarray(action, float)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"an action is four finite numbers, but this is {action.tolist()}")
        spec = self.specification
        self.commands.append(spec.limit(action, self.position, self.velocity, self.angles[2], self.commands[-1]))
        ticks = round(spec.control_period / SUBSTEP / TICK)
        for tick in range((len(self.commands) - 1) * ticks, len(self.commands) * ticks):
            self._drive(self.commands[max(0, tick - self.delay) // ticks])
            self._touch()
        acceleration = (self.velocity - self.last_velocity) / spec.control_period
        jerk = float(np.linalg.norm(acceleration - self.last_acceleration) / spec.control_period)
        self.last_velocity, self.last_acceleration = self.velocity, acceleration
        info = self._info(float(np.linalg.norm(acceleration)), jerk)

        distance = float(np.linalg.norm(self.position - self.goal))
        spilled = self.spill_penalty and info["spilled"] > 0
        reward = spec.reward(distance, self.angles[2], info["acceleration"] * self.acceleration_reward, spilled)
        if self.render_mode == "human":
            time.sleep(spec.control_period)
        return self._observation(), float(reward), info["cost"] > 0, False, info

    def render(self):
        if self.render_mode != "rgb_array":  # PyBullet draws its window itself
            return None
        p = self.bullet
        view = p.computeViewMatrix((1.15, -0.8, 0.8), (0.42, -0.15, 0.27), (0, 0, 1))
        projection = p.computeProjectionMatrixFOV(45, 1, 0.1, 10)
        image = p.getCameraImage(480, 480, view, projection, renderer=p.ER_TINY_RENDERER)[2]
        return np.array(image, np.uint8).reshape(480, 480, 4)[..., :3]

    def close(self):
        self.disconnect()
        self.folder.cleanup()

    def _build(self, model, goal, coffee, friction=FRICTION):
        """The whole world, anew: PyBullet's restoreState is not exact once there have been contacts."""
        p, home = self.bullet, np.radians(self.specification.home)
        p.resetSimulation()
        p.setPhysicsEngineParameter(fixedTimeStep=SUBSTEP, numSolverIterations=20, deterministicOverlappingPairs=1)
        p.setGravity(0, 0, -9.81)
        path = os.path.join(self.folder.name, f"{model}.urdf")
        self.arm = p.loadURDF(path, useFixedBase=True, flags=p.URDF_USE_SELF_COLLISION)
        links = p.getNumJoints(self.arm)
        self.mug = links - 1
        for a in range(-1, links):  # neighbours, and their neighbours, overlap
            for b in range(a + 1, min(a + 3, links)):
                p.setCollisionFilterPair(self.arm, self.arm, a, b, 0)
        for i, angle in enumerate(home):
            p.resetJointState(self.arm, i, angle)
        p.setJointMotorControlArray(
            self.arm, range(7), p.VELOCITY_CONTROL, targetVelocities=[0.0] * 7, forces=JOINT_EFFORT
        )
        p.changeDynamics(self.arm, self.mug, lateralFriction=friction)

        def block(size, centre, colour):
            half = np.array(size) / 2
            collision = p.createCollisionShape(p.GEOM_BOX, halfExtents=half)
            visual = p.createVisualShape(p.GEOM_BOX, halfExtents=half, rgbaColor=colour)
            return p.createMultiBody(0, collision, visual, centre)

        rim = np.add(goal, CUP_RIM)
        self.cup_foot = rim - (0, 0, CUP_HEIGHT)
        x, y, z = self.cup_foot
        table = block((1.4, 1.4, 0.05), (0.3, 0, -0.025), (0.72, 0.55, 0.38, 1))
        stand = block((2 * STAND, 2 * STAND, z), (x, y, z / 2), (0.35, 0.35, 0.38, 1))
        cup = p.loadURDF(os.path.join(self.folder.name, "cup.urdf"), self.cup_foot.tolist(), useFixedBase=True)
        p.setCollisionFilterPair(self.arm, table, -1, -1, 0)  # the robot's base stands on it
        self.obstacles = {table: "collision_table", stand: "collision_stand", cup: "collision_cup"}

        collision = p.createCollisionShape(p.GEOM_SPHERE, radius=SPHERE_RADIUS)
        visual = p.createVisualShape(p.GEOM_SPHERE, radius=SPHERE_RADIUS, rgbaColor=(0.25, 0.13, 0.05, 1))
        self.spheres = [p.createMultiBody(SPHERE_MASS, collision, visual, list(centre)) for centre in coffee]
        for sphere in self.spheres:
            p.changeDynamics(sphere, -1, lateralFriction=friction, linearDamping=0.05, angularDamping=0.3)

    def _coffee(self):
        return np.array([self.bullet.getBasePositionAndOrientation(sphere)[0] for sphere in self.spheres])

    def _drive(self, command):
        """25 ms of motion: ramp towards the command, damped least squares, joint speeds, physics."""
        p, spec = self.bullet, self.specification
        q, position, R, J = self.q, self.position, self.R, self.J
        inverse = damped_inverse(J, 1e-4)
        homewards = (np.radians(spec.home) - q + math.pi) % (2 * math.pi) - math.pi
        rest = (np.eye(7) - inverse @ J) @ (0.5 * homewards)  # the one freedom that seven joints leave
        tilt = 0.5 * np.cross(R.T, rotation_x(self.roll_reference).T).sum(0)
        for _ in range(TICK):
            change = command[:3] - self.going[:3]
            self.going[:3] += change * min(1.0, spec.acceleration_max * SUBSTEP / max(np.linalg.norm(change), 1e-9))
            self.going[3] = command[3]
            twist = np.concatenate([20 * (self.reference - position), 20 * tilt])
            twist[:4] += self.going
            speed = inverse @ twist + rest
            ended = np.zeros(7, bool)
            for _ in range(2):  # a joint at its end stays there, and the others do what it would have done
                ended |= (np.abs(q) > JOINT_LIMIT - 0.02) & (speed * q > 0)
                if ended.any():
                    speed = damped_inverse(J * ~ended, 1e-3) @ twist
            slower = min(1.0, (JOINT_SPEED / np.maximum(np.abs(speed), 1e-9)).min())
            self.reference = self.reference + slower * SUBSTEP * self.going[:3]
            position = position + slower * SUBSTEP * self.going[:3]
            self.roll_reference += slower * SUBSTEP * self.going[3]
            p.setJointMotorControlArray(
                self.arm, range(7), p.VELOCITY_CONTROL, targetVelocities=slower * speed, forces=JOINT_EFFORT
            )
            p.stepSimulation()
        # Where the arm cannot follow (a joint's end, an obstacle) the reference waits for it, 1 cm and 0.05 rad ahead
        self._look()
        lead, turn = self.reference - self.position, self.roll_reference - self.angles[2]
        self.reference = self.position + lead * min(1.0, 0.01 / max(np.linalg.norm(lead), 1e-9))
        self.roll_reference = self.angles[2] + max(-0.05, min(0.05, turn))

    def _touch(self):
        for contact in self.bullet.getContactPoints(self.arm):
            if contact[8] <= 0:  # the distance
                if contact[2] in self.obstacles:
                    self.touched.add(self.obstacles[contact[2]])
                elif contact[2] == self.arm:
                    self.touched.add("self_collision")

    def _look(self):
        self.q, qd = np.array([state[:2] for state in self.bullet.getJointStates(self.arm, range(7))]).T
        self.position, self.R, self.J = kinematics(self.q)
        self.angles, self.velocity = tait_bryan(self.R), (self.J @ qd)[:3]

    def _observation(self):
        mug = np.array([self.position, self.angles, self.velocity])
        if r := self.randomization:
            mug += np.diag([r.position_noise, r.angle_noise, r.velocity_noise]) @ self.np_random.normal(size=(3, 3))
        return self.specification.observe(*mug, self.goal)

    def _info(self, acceleration, jerk):
        coffee = self._coffee()
        from_mug, from_cup = (coffee - self.position) @ self.R, coffee - self.cup_foot
        in_mug = (np.hypot(*from_mug.T[:2]) < MUG_RADIUS + MUG_WALL) & (from_mug[:, 2] > -MUG_DEPTH / 2)
        in_mug &= from_mug[:, 2] < MUG_DEPTH / 2 + 3 * SPHERE_RADIUS
        in_cup = (np.hypot(*from_cup.T[:2]) < CUP_RADIUS + CUP_WALL) & (from_cup[:, 2] > 0)
        in_cup &= from_cup[:, 2] < CUP_HEIGHT + SPHERE_RADIUS
        on_stand = (np.abs(from_cup[:, :2]).max(1) < STAND + SPHERE_RADIUS) & (from_cup[:, 2] < SPHERE_RADIUS + 0.003)
        lies = on_stand | (coffee[:, 2] < SPHERE_RADIUS + 0.003)
        for contact in self.bullet.getContactPoints(self.arm):
            if contact[2] in self.spheres and contact[3] != self.mug:  # on the arm or the gripper
                lies[self.spheres.index(contact[2])] = True
        spilled, poured = int((lies & ~in_mug & ~in_cup).sum()), int(in_cup.sum())
        names = ("self_collision", *self.obstacles.values())
        costs = {f"cost_{name}": float(name in self.touched and self.collision_violates) for name in names}
        costs["cost_spill"] = float(spilled > 0 and self.spill_violates)
        return {
            "cost": max(costs.values()),
            **costs,
            "is_success": float(poured >= 0.9 * len(self.spheres)),
            "spilled": spilled,
            "poured": poured,
            "acceleration": acceleration,
            "jerk": jerk,
        }


for name, setting in {
    "PourCoffee": {},
    "PourCoffeeSim1": {},
    "PourCoffeeSim2": dict(acceleration_reward=True, spill_violates=False),
    "PourCoffeeSim3": dict(acceleration_reward=True),
    "PourCoffeeSim4": dict(acceleration_reward=True, spill_penalty=True),
}.items():
    gym.register(
        name, entry_point="pour_coffee_env:PourCoffee", max_episode_steps=SPECIFICATION.episode_steps, kwargs=setting
    )


def scripted_pour(acceleration=1.0, speed=0.25, specification=SPECIFICATION):
    """policy(observation) -> action, for one episode: straight to the goal within these limits (m/s^2, m/s), roll.

    `specification`: the environment's.
    """
    velocity = np.zeros(3)

    def policy(observation):
        nonlocal velocity
        position, (_, _, roll), _, goal = specification.measures(observation)
        way = goal - position
        distance = np.linalg.norm(way)
        change = way * min(2.0, speed / max(distance, 1e-9)) - velocity
        step = acceleration * specification.control_period
        velocity = velocity + change * min(1.0, step / max(np.linalg.norm(change), 1e-9))
        pouring = distance < 0.01 or roll > 0.2
        highest = specification.roll_rate_max
        turn = np.clip(2 * (specification.goal_roll - roll), -highest, highest)
        return np.append(velocity, turn if pouring else 0.0)

    return policy


def main(
    gui: bool = False,
    random: bool = False,
    episodes: int = 1,
    seed: int = 1,
    gif: str = "pour_coffee.gif",
    mesh_dir: str | None = None,
):
    """A scripted pour: its numbers, and a GIF of its first episode.

    Args:
        gui: shows PyBullet's window, and makes no GIF
        random: uniformly random actions instead
        episodes: how many
        seed: of the first, the others follow
        gif: the file to write
        mesh_dir: a folder with Kinova's own meshes of the arm
    """
    writable = gif.lower().endswith(".gif") and os.access(os.path.dirname(gif) or ".", os.W_OK)
    if episodes < 1 or seed < 0 or not writable:
        sys.exit("episodes has to be at least 1, seed at least 0, and gif a .gif in a folder that can be written to")
    try:
        env = PourCoffee("human" if gui else "rgb_array", mesh_dir=mesh_dir)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(str(error))
    env = gym.wrappers.TimeLimit(env, SPECIFICATION.episode_steps)
    columns = "seed steps return success violation poured spilled acceleration jerk".split()
    print("acceleration and jerk: means over the episode, m/s^2 and m/s^3")
    print("  ".join(f"{name:>9}" for name in columns))
    for k in range(episodes):
        observation, info = env.reset(seed=seed + k)
        env.action_space.seed(seed + k)
        policy, ended, rewards, motion, frames = scripted_pour(), False, [], [], []
        while not ended:
            action = env.action_space.sample() if random else policy(observation)
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            rewards.append(reward)
            motion.append((info["acceleration"], info["jerk"]))
            if k == 0 and not gui:
                frames.append(env.render())
        kinds = [name.removeprefix("cost_") for name in info if name.startswith("cost_") and info[name]]
        success = bool(info["is_success"] and not info["cost"])
        row = seed + k, len(rewards), f"{sum(rewards):.1f}", success, ", ".join(kinds) or "none", info["poured"]
        row += info["spilled"], *(f"{mean:.2f}" for mean in np.mean(motion, 0))
        print("  ".join(f"{value!s:>9}" for value in row))
        if frames:
            from PIL import Image

            first, *others = (Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames)
            first.save(gif, save_all=True, append_images=others, duration=100, loop=0)
            print(f"written: {gif}")
    env.close()


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
