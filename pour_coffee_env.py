"""Pour Coffee: a Kinova Gen3 carries a mug of coffee to a cup and pours, spilling nothing and touching nothing.

The testbench of Meta SAC-Lag (Honari et al., 2024, Section 5.3 and Appendix D), as a PyBullet environment that needs no
other file:  gym.make("pour_coffee_env:PourCoffee"). The paper gives state, action, reward and settings; every number
that it leaves open is in `Specification`, or a constant below, and ours where no source is named.
"""

import dataclasses
import functools
import math
import os
import tempfile
import time
import types

import gymnasium as gym
import numpy as np


@dataclasses.dataclass(frozen=True)
class Specification:
    """What the simulated and the real task share, so that both saturate alike. Lengths in m, angles in rad, SI units.

    Positions are those of the mug's centre in the frame of the robot's base (x forward, y left, z up).
    """

    control_period: float = 0.1  # s: 10 Hz
    speed_max: float = 0.5  # m/s, the norm: the Gen3's own limit for twist commands
    acceleration_max: float = 5.0  # m/s^2, the norm
    roll_rate_max: float = 0.8  # rad/s
    roll_max: float = 2.6  # rad, to either side
    workspace_low: tuple = (0.40, -0.40, 0.20)  # m
    workspace_high: tuple = (0.70, 0.20, 0.55)  # m
    home: tuple = (0.0, 15.0, 180.0, -130.0, 0.0, 55.0, 90.0)  # degrees, the robot's built-in Home
    goal: tuple = (0.55, -0.25, 0.30)  # m, where the mug has to be to pour; the cup stands beside and below it
    goal_roll: float = 2.2  # rad
    r_distance: float = -2.0  # Eq. 17's r1, 1/m
    r_acceleration: float = -0.05  # r2, s^2/m
    r_spill: float = -1.0  # r3
    goal_reward: float = 10.0
    d_thresh: float = 0.05  # m
    episode_steps: int = 100

    def limit(self, action, position, roll, last):
        """What is done of an action: (4,) velocities (m/s, m/s, m/s, rad/s), given mug and what was done last.

        In this order: each component, the norm of the velocity, its change, and the workspace. Near a wall the velocity
        towards it is what can be stopped before it, at the predicted next position at the latest; that comes before the bound on its change.
        """
        dt, a_max = self.control_period, self.acceleration_max
        action = np.clip(action, [-self.speed_max] * 3 + [-self.roll_rate_max], [self.speed_max] * 3 + [self.roll_rate_max])
        velocity = action[:3] * min(1.0, self.speed_max / max(np.linalg.norm(action[:3]), 1e-9))
        change = velocity - last[:3]
        velocity = last[:3] + change * min(1.0, a_max * dt / max(np.linalg.norm(change), 1e-9))
        below = np.maximum(np.subtract(position, self.workspace_low), 0)
        above = np.maximum(np.subtract(self.workspace_high, position), 0)
        velocity = np.clip(
            velocity,
            -np.minimum(below / dt, np.sqrt(2 * a_max * below)),
            np.minimum(above / dt, np.sqrt(2 * a_max * above)),
        )
        return np.append(velocity, np.clip(action[3], (-self.roll_max - roll) / dt, (self.roll_max - roll) / dt))


SPECIFICATION = Specification()

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
# name, mass (kg), centre of mass (m), principal inertias (kg m^2), and a cylinder as wide and long as the link's mesh:
# centre (m), whether it lies along y (else z), radius and length (m)
LINKS = (
    ("base_link", 1.697, (-0.0006, -0.0002, 0.0845), (0.004622, 0.004495, 0.002079), (0, 0, 0.0855), 0, 0.046, 0.171),
    ("shoulder", 1.3773, (0, -0.0104, -0.0734), (0.00457, 0.004831, 0.001409), (0, 0, -0.088), 0, 0.046, 0.172),
    ("half_arm_1", 1.1636, (0, -0.0996, -0.0133), (0.011088, 0.001072, 0.011255), (0, -0.09, -0.008), 1, 0.046, 0.27),
    ("half_arm_2", 1.1636, (0, -0.0066, -0.1179), (0.010932, 0.011127, 0.001043), (0, 0, -0.129), 0, 0.046, 0.254),
    ("forearm", 0.9302, (0, -0.0755, -0.0150), (0.008147, 0.000631, 0.008316), (0, -0.0875, -0.0135), 1, 0.043, 0.267),
    ("wrist_1", 0.6781, (0, -0.0094, -0.0639), (0.001596, 0.001607, 0.000399), (0, 0, -0.0715), 0, 0.035, 0.139),
    ("wrist_2", 0.6781, (0, -0.0455, -0.0097), (0.001641, 0.00041, 0.001641), (0, -0.0415, -0.009), 1, 0.035, 0.153),
    ("bracelet", 0.364, (0, 0, -0.0229), (0.000214, 0.000223, 0.00024), (0, 0, -0.032), 0, 0.038, 0.064),
)

# Mug, cup and coffee (m, kg). The mug is filled to the brim: the upper spheres' centres lie 1 to 3 mm above its rim.
# With their centres below it, motion within the specification hardly spills any, and only tilt would (measured).
MUG_RADIUS, MUG_WALL, MUG_DEPTH, MUG_FOOT = 0.035, 0.006, 0.025, 0.028  # inner radius; the solid part below the coffee
CUP_RADIUS, CUP_WALL, CUP_HEIGHT = 0.05, 0.005, 0.09
CUP_RIM = np.array([0.0, -0.06, -0.08])  # the centre of the cup's rim, from the goal
STAND = 0.08  # half the width of the block on which the cup stands
SPHERES, SPHERE_RADIUS, SPHERE_MASS, FRICTION = 14, 0.01, 0.004, 0.1
SUBSTEP, TICK = 1 / 240, 6  # s; substeps between two readings of the joints (25 ms, the robot's own command period)


def rotation_x(angle):
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


ORIGINS = [(np.array(xyz, float), rotation_x(tilt)) for xyz, tilt in JOINTS]
# The mug's axes in the tool's frame: forward, left and up at Home. The tool's own Euler angles are singular in the pour.
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


def tait_bryan(R):
    """Rotation (3, 3) -> (psi, theta, phi) in rad, intrinsic z-y'-x'' (Appendix D)."""
    return np.array([
        math.atan2(R[1, 0], R[0, 0]), math.asin(max(-1.0, min(1.0, -R[2, 0]))), math.atan2(R[2, 1], R[2, 2])
    ])  # fmt: skip


def shape(geometry, xyz, rpy, colour):
    placed = '<origin xyz="{:.6f} {:.6f} {:.6f}" rpy="{:.6f} {:.6f} {:.6f}"/>'.format(*xyz, *rpy)  # it reads no 1e-18
    both = f"{placed}<geometry>{geometry}</geometry>"
    paint = f'<material name="{colour}"><color rgba="{colour}"/></material>'
    return f"<visual>{both}{paint}</visual><collision>{both}</collision>"


def box(size, xyz, colour, yaw=0.0):
    return shape('<box size="{:.6f} {:.6f} {:.6f}"/>'.format(*size), xyz, (0, 0, yaw), colour)


def cylinder(radius, length, xyz, colour, along_y=False):
    geometry = f'<cylinder radius="{radius:.6f}" length="{length:.6f}"/>'
    return shape(geometry, xyz, (math.pi / 2 if along_y else 0, 0, 0), colour)


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


def arm_urdf(rim):
    """The arm, a gripper and the mug in it, whose wall ends at the height `rim` (m) above its centre."""
    light, grey, dark, blue = "0.85 0.85 0.87 1", "0.6 0.6 0.63 1", "0.25 0.25 0.28 1", "0.2 0.45 0.75 1"
    xml = ""
    for i, (name, mass, centre, inertia, xyz, along_y, radius, length) in enumerate(LINKS):
        xml += link(name, mass, centre, inertia, cylinder(radius, length, xyz, (light, grey)[i % 2], along_y))
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
    xml += joint("gripper", "fixed", "bracelet", "gripper", (0, 0, -FLANGE), (math.pi, 0, 0))
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
    A Kinova Gen3 moves a brim-full mug from its home position to a goal beside a cup and pours the coffee into it (paper,
    Section 5.3). The coffee is 14 spheres of 1 cm, simulated. 10 control steps a second, of 24 substeps each.

    ## Action Space
    `Box((4,), float32)`: velocity of the mug x, y, z, +-0.5 m/s, and rate of its roll phi, +-0.8 rad/s. Values outside
    are clipped; one that is not finite, or another shape, raises ValueError. `Specification.limit` then bounds the norms
    of velocity and acceleration and keeps the mug in the workspace. Damped least squares and joint speed limits turn
    that into joint velocities; the mug's pitch and yaw are held at 0.

    ## Observation Space
    `Box((15,), float32)` (Appendix D), in the frame of the robot's base:

    | index | content | unit |
    |---|---|---|
    | 0-2 | X_cup, the mug's centre | m |
    | 3-5 | O_cup = (psi, theta, phi), its Tait-Bryan angles, intrinsic z-y'-x'': yaw, pitch, roll | rad |
    | 6-8 | the mug's velocity | m/s |
    | 9-11 | X_goal, where the mug has to be to pour | m |
    | 12-14 | O_goal = (0, 0, 2.2) | rad |

    ## Rewards (Eq. 17)
    With d = |X_cup - X_goal|: `10 - |phi - phi_goal|` where d <= 5 cm, else `-2 d`, and by setting `- 0.05 |acceleration|`
    and `-1` on a step with coffee spilled.

    ## Cost
    | info key | 1.0 when |
    |---|---|
    | `cost_spill` | a sphere lies outside mug and cup, or touches arm or gripper (not: in flight); 0 where it is no violation |
    | `cost_self_collision` | two links of arm, gripper and mug touch that are not neighbours |
    | `cost_collision_table`, `_stand`, `_cup` | arm, gripper or mug touches it |
    | `cost` | the maximum of these |

    Also in `info`: `is_success` (nine tenths of the coffee are in the cup), `spilled` and `poured` (numbers of spheres),
    `acceleration` (m/s^2) and `jerk` (m/s^3), norms of the differences between control steps.

    ## Starting State
    The arm at the robot's Home, the mug at (0.577, 0.001, 0.434) m, upright and full. Goal, stand and cup lie within
    +- `goal_range` of (0.55, -0.25) m, in x and y. The world is built anew at every reset, so the same seed gives the
    same episode bit for bit, whatever came before.

    ## Episode End
    Terminates on a violation. Truncates after 100 steps (10 s). Success does not end it.

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
        goal_range=0.05,
        specification=SPECIFICATION,
    ):
        import pybullet  # here, because its import prints a line

        self.render_mode, self.goal_range, self.specification = render_mode, goal_range, specification
        self.acceleration_reward, self.spill_penalty = acceleration_reward, spill_penalty
        self.spill_violates = spill_violates
        high = np.array([specification.speed_max] * 3 + [specification.roll_rate_max], np.float32)
        self.action_space = gym.spaces.Box(-high, high)
        high = np.array([2, 2, 2, 4, 4, 4, 4, 4, 4, 2, 2, 2, 4, 4, 4], np.float32)
        self.observation_space = gym.spaces.Box(-high, high)

        client = pybullet.connect(pybullet.GUI if render_mode == "human" else pybullet.DIRECT)
        names = {
            name: functools.partial(value, physicsClientId=client) if callable(value) else value
            for name, value in vars(pybullet).items()
        }
        self.bullet = types.SimpleNamespace(**names)
        self.folder = tempfile.TemporaryDirectory()
        # PyBullet remembers a file by its path, so the two mugs have one each
        models = {"tall": arm_urdf(0.08), "arm": arm_urdf(MUG_DEPTH / 2), "cup": cup_urdf()}
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
        self.brimful = pile

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        offset = self.np_random.uniform(-self.goal_range, self.goal_range, 2)
        self.goal = np.array(self.specification.goal) + (*offset, 0.0)
        self._build("arm", self.goal, self.brimful)
        for _ in range(12):
            self.bullet.stepSimulation()
        self._look()
        self.command, self.going = np.zeros(4), np.zeros(4)  # commanded, and what the ramp has come to
        self.reference, self.roll_reference = self.position, 0.0
        self.last_velocity, self.last_acceleration, self.touched = np.zeros(3), np.zeros(3), set()
        return self._observation(), self._info(0.0, 0.0)

    def step(self, action):
        action = np.asarray(action, float)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"an action is four finite numbers, but this is {action.tolist()}")
        spec = self.specification
        self.command = spec.limit(action, self.position, self.angles[2], self.command)
        for _ in range(round(spec.control_period / SUBSTEP / TICK)):
            self._drive()
            self._touch()
        self._look()
        acceleration = (self.velocity - self.last_velocity) / spec.control_period
        jerk = float(np.linalg.norm(acceleration - self.last_acceleration) / spec.control_period)
        self.last_velocity, self.last_acceleration = self.velocity, acceleration
        info = self._info(float(np.linalg.norm(acceleration)), jerk)

        # Eq. 17
        distance = float(np.linalg.norm(self.position - self.goal))
        if distance > spec.d_thresh:
            reward = spec.r_distance * distance
            reward += spec.r_acceleration * info["acceleration"] * self.acceleration_reward
            reward += spec.r_spill * (info["spilled"] > 0) * self.spill_penalty
        else:
            reward = spec.goal_reward - abs(self.angles[2] - spec.goal_roll)
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
        if self.bullet is not None:
            self.bullet.disconnect()
            self.folder.cleanup()
            self.bullet = None

    def _build(self, model, goal, coffee):
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
        p.changeDynamics(self.arm, self.mug, lateralFriction=FRICTION)

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
            p.changeDynamics(sphere, -1, lateralFriction=FRICTION, linearDamping=0.05, angularDamping=0.3)

    def _joints(self):
        return np.array([state[:2] for state in self.bullet.getJointStates(self.arm, range(7))]).T

    def _coffee(self):
        return np.array([self.bullet.getBasePositionAndOrientation(sphere)[0] for sphere in self.spheres])

    def _drive(self):
        """25 ms of motion: ramp towards the command, damped least squares, joint speeds, physics."""
        p, spec = self.bullet, self.specification
        q, _ = self._joints()
        position, R, J = kinematics(q)
        inverse = J.T @ np.linalg.inv(J @ J.T + 1e-4 * np.eye(6))
        homewards = (np.radians(spec.home) - q + math.pi) % (2 * math.pi) - math.pi
        rest = (np.eye(7) - inverse @ J) @ (0.5 * homewards)  # the one freedom that seven joints leave
        tilt = 0.5 * np.cross(R.T, rotation_x(self.roll_reference).T).sum(0)
        for _ in range(TICK):
            change = self.command[:3] - self.going[:3]
            self.going[:3] += change * min(1.0, spec.acceleration_max * SUBSTEP / max(np.linalg.norm(change), 1e-9))
            self.going[3] = self.command[3]
            twist = np.concatenate([20 * (self.reference - position), 20 * tilt])
            twist[:4] += self.going
            speed = inverse @ twist + rest
            speed[(np.abs(q) > JOINT_LIMIT - 0.02) & (speed * q > 0)] = 0.0
            slower = min(1.0, (JOINT_SPEED / np.maximum(np.abs(speed), 1e-9)).min())
            self.reference = self.reference + slower * SUBSTEP * self.going[:3]
            position = position + slower * SUBSTEP * self.going[:3]
            self.roll_reference += slower * SUBSTEP * self.going[3]
            p.setJointMotorControlArray(
                self.arm, range(7), p.VELOCITY_CONTROL, targetVelocities=slower * speed, forces=JOINT_EFFORT
            )
            p.stepSimulation()

    def _touch(self):
        for contact in self.bullet.getContactPoints(self.arm):
            if contact[8] <= 0:  # the distance
                if contact[2] in self.obstacles:
                    self.touched.add(self.obstacles[contact[2]])
                elif contact[2] == self.arm:
                    self.touched.add("self_collision")

    def _look(self):
        q, qd = self._joints()
        self.position, self.R, J = kinematics(q)
        self.angles, self.velocity = tait_bryan(self.R), (J @ qd)[:3]

    def _observation(self):
        goal = np.append(self.goal, (0.0, 0.0, self.specification.goal_roll))
        return np.concatenate([self.position, self.angles, self.velocity, goal]).astype(np.float32)

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
        costs = {f"cost_{name}": float(name in self.touched) for name in names}
        costs["cost_spill"] = float(spilled > 0 and self.spill_violates)
        return {
            "cost": max(costs.values()),
            **costs,
            "is_success": float(poured >= 0.9 * SPHERES),
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
