"""The simulated benchmark tasks of Meta SAC-Lag (Section 5.1, Appendix C), registered with Gymnasium.

    import gymnasium as gym
    env = gym.make("benchmark_envs:EggManipulate", render_mode="rgb_array")

Every task speaks Gymnasium's five-tuple and puts the paper's constraint indicator c into `info`: `info["cost"]`
is 0.0 or 1.0 at every step, the maximum of one `info["cost_<kind>"]` per kind of violation. Constraints are hard
(Section 5.1): the violating step returns `terminated=True`. Success never terminates; where the task has a goal
`info["is_success"]` tells it.

Safety-Gymnasium's own tasks are here too, by their own ids ("benchmark_envs:SafetyPointGoal1-v0"): five values, and
the cost in `info`. They end as Safety-Gymnasium ends them, not on a violation.
"""

import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
import types
import warnings
import weakref

# Without a display MuJoCo's default renderer (GLFW) fails; EGL needs none. Gymnasium reads this at the first frame, and
# takes an empty value for a renderer's name.
if not os.environ.get("MUJOCO_GL"):
    os.environ.pop("MUJOCO_GL", None)
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ["MUJOCO_GL"] = "egl"

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium_robotics.envs.fetch.push import MujocoFetchPushEnv
from gymnasium_robotics.envs.shadow_dexterous_hand.manipulate_egg import MujocoHandEggEnv


def import_safety_gymnasium():
    """Imports safety_gymnasium 1.0.0 on Python 3.11 and returns the module; ImportError where it is not installed.

    Its dataclasses have arrays as defaults, which Python 3.11 refuses ("mutable default"). While it is imported, such
    a default becomes a `default_factory` that returns the same array, which is what Python 3.10 did with it.

    It registers its tasks, whose step() returns six values, with Gymnasium, by ids that are `SafetyGymnasium`'s below.
    For `gym.make` they stay so, while `safety_gymnasium.make` makes its own.
    """
    original, registry = dataclasses.dataclass, gym.registry
    ours = {name: spec for name, spec in registry.items() if spec.entry_point == "benchmark_envs:SafetyGymnasium"}
    for name in ours:
        del registry[name]  # else Gymnasium warns of each

    def dataclass_with_array_defaults(cls=None, **options):
        if cls is None:
            return lambda decorated: dataclass_with_array_defaults(decorated, **options)
        for name, default in list(vars(cls).items()):
            if name in cls.__dict__.get("__annotations__", {}) and isinstance(default, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=lambda array=default: array))
        return original(cls, **options)

    dataclasses.dataclass = dataclass_with_array_defaults
    try:
        import safety_gymnasium
        from safety_gymnasium.utils import registration

        if registration._find_spec is gym.envs.registration._find_spec:  # the first time
            theirs, find = {name: registry.pop(name) for name in registration.safe_registry}, registration._find_spec
            registration._find_spec = lambda name: theirs.get(name) or find(name)
    except ImportError as error:
        what = "Safety-Gymnasium's tasks need requirements.txt and pip install --no-deps safety-gymnasium==1.0.0"
        raise ImportError(f"{what} ({error})") from None
    finally:
        dataclasses.dataclass = original
        registry.update(ours)
    return safety_gymnasium


@functools.cache
def glfw_works():
    """Whether GLFW can draw: the display that DISPLAY names may be gone (ssh -X, tmux, Docker), or lack OpenGL.

    Another process tries: this one is not to wait for a host that is off, nor to share with its forks what it opened.
    """
    window = "glfw.create_window(9, 9, '', None, None)"
    code = f"import glfw; glfw.init(); glfw.window_hint(glfw.VISIBLE, 0); raise SystemExit(0 if {window} else 1)"
    try:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def check_render_mode(env, render_mode, displays=("DISPLAY", "WAYLAND_DISPLAY")):
    """ValueError for a mode that the environment lacks; RuntimeError where its window would have no display.

    Frames that GLFW could not draw are left to EGL, unless MUJOCO_GL says otherwise.
    """
    if render_mode not in (None, *env.metadata["render_modes"]):
        raise ValueError(f"render_mode has to be None, human or rgb_array, but it is {render_mode!r}")
    if render_mode == "human" and sys.platform == "linux" and not any(map(os.environ.get, displays)):
        raise RuntimeError("there is no display for render_mode human (the program would be ended by the renderer)")
    if render_mode == "rgb_array" and sys.platform == "linux" and "MUJOCO_GL" not in os.environ and not glfw_works():
        os.environ["MUJOCO_GL"] = "egl"


def clipped(env, action):
    """The action within the environment's box; ValueError where it has another shape, or is not finite."""
    box, action = env.action_space, np.asarray(action)
    if action.shape != box.shape or not np.isfinite(action).all():
        raise ValueError(f"an action is {box.shape[0]} finite numbers, but this is {action.tolist()}")
    return np.clip(action, box.low, box.high)


class HumanoidVelocity(gym.Env):
    """
    ## Description
    A humanoid (42 kg, torso 1.4 m above the ground) walks forward, along x, and violates when "the velocity is higher
    than a certain threshold or the robot is falling to the ground" (Appendix C). Built on Safety-Gymnasium's
    `SafetyHumanoidVelocity-v1`; one step is 0.015 s (5 substeps of 3 ms).

    ## Action Space
    `Box(-0.4, 0.4, (17,), float32)`: torques at the joints, the value times the gear (N m). Values outside are clipped.

    | index | joint | gear (N m) |
    |---|---|---|
    | 0, 1, 2 | abdomen y, z, x | 100 |
    | 3, 4, 5, 6 | right hip x, z, y, right knee | 100, 100, 300, 200 |
    | 7, 8, 9, 10 | left hip x, z, y, left knee | 100, 100, 300, 200 |
    | 11, 12, 13 | right shoulder 1, 2, right elbow | 25 |
    | 14, 15, 16 | left shoulder 1, 2, left elbow | 25 |

    ## Observation Space
    `Box(-10, 10, (376,), float32)`: Gymnasium's `Humanoid-v4` in these units, clipped to that. Under random actions it
    is never clipped; contact forces, of standard deviation 0.8 at most, spike to 8.7 (4000 steps). The bodies are the
    world (its entries are 0) and the 13 of the humanoid, which weighs 413 N.

    | index | content | unit |
    |---|---|---|
    | 0 | torso height | m |
    | 1-4 | torso orientation, unit quaternion (w, x, y, z) | |
    | 5-21 | joint angles | rad |
    | 22-24 | torso linear velocity | m/s |
    | 25-27 | torso angular velocity | rad/s |
    | 28-44 | joint velocities | 10 rad/s |
    | 45-184 | per body: inertia (6), mass times offset (3), mass (1), about the centre of mass | kg m^2, kg m, kg |
    | 185-268 | per body: angular (3) and linear (3) velocity | 5 rad/s, 5 m/s |
    | 269-291 | actuator forces; the free joint's first six are 0 | 100 N m |
    | 292-375 | per body: external torque (3) and force (3) | 413 N m, 413 N |

    ## Rewards
    `1.25 x_velocity - 0.1 |action|^2`, the velocity (m/s) being the centre of mass's over the step. There is no bonus
    for being alive: "safety-related reward shaping is removed". 1000 steps at the speed limit return 1770 at most.

    ## Cost
    | info key | 1.0 when |
    |---|---|
    | `cost_velocity` | the centre of mass's horizontal speed over the step exceeds `max_speed`, in any direction |
    | `cost_fall` | the torso's height is not between 1 m and 2 m after the step |
    | `cost` | either of them |

    Also in `info`: `speed` (m/s). There is no `is_success`: the task has no goal to reach.

    ## Starting State
    Gymnasium's: upright, with uniform noise of +-0.01 on every position and velocity.

    ## Episode End
    Terminates on a violation. Truncates after 1000 steps (15 s).

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `render_mode` | None | "rgb_array" or "human" |
    | `max_speed` | 1.4149 | m/s, Safety-Gymnasium's: half the speed that PPO reaches without a limit |

    ## Differences from the original
    * No alive bonus (the original pays 5.0 a step).
    * A fall is a cost, and exceeding the speed ends the episode; the original's cost is the speed alone.
    * Actions are clipped before their cost is taken; the original takes it from the unclipped ones.
    * Observations are in units of their own size; the original's are in m, s, N.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 67}
    UNITS = np.repeat([1.0, 10.0, 1.0, 5.0, 100.0, 413.0], [28, 17, 140, 84, 23, 84])

    def __init__(self, render_mode=None, max_speed=1.4149):
        check_render_mode(self, render_mode)
        make = import_safety_gymnasium().make
        self.humanoid = make("SafetyHumanoidVelocity-v1", healthy_reward=0.0, render_mode=render_mode).unwrapped
        self.humanoid._velocity_threshold = max_speed  # colours the ball that frames show above the head
        self.render_mode, self.max_speed = render_mode, max_speed
        self.action_space = gym.spaces.Box(-0.4, 0.4, (17,), np.float32)
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (376,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.humanoid.np_random = self.np_random
        if self.humanoid.mujoco_renderer.viewer:
            self.humanoid.mujoco_renderer.viewer._markers.clear()  # that ball, where the last episode left it
        observation, _ = self.humanoid.reset()
        return self._in_units(observation), self._info(speed=0.0)

    def step(self, action):
        observation, reward, _, _, _, original = self.humanoid.step(clipped(self, action))
        info = self._info(float(np.hypot(original["x_velocity"], original["y_velocity"])))
        return self._in_units(observation), float(reward), info["cost"] > 0.0, False, info

    def render(self):
        for viewer in self.humanoid.mujoco_renderer._viewers.values():
            viewer.make_context_current()  # another environment may have rendered in between
        return self.humanoid.render()

    def close(self):
        self.humanoid.close()
        self.humanoid.mujoco_renderer._viewers.clear()

    def _in_units(self, observation):
        return np.clip(observation / self.UNITS, -10.0, 10.0).astype(np.float32)

    def _info(self, speed):
        cost_velocity, cost_fall = float(speed > self.max_speed), float(not self.humanoid.is_healthy)
        return {
            "cost": max(cost_velocity, cost_fall),
            "cost_velocity": cost_velocity,
            "cost_fall": cost_fall,
            "speed": speed,
        }


class CarCircle2(gym.Env):
    """
    ## Description
    A car on two driven wheels and a ball caster runs counter-clockwise around a circle and must not cross the walls.
    The circle's radius is 1.5 m, the walls stand at x, y = +-1.125 m: most of the circle is out of bounds. Nothing
    stops the car at a wall. Built on Safety-Gymnasium's `SafetyCarCircle2-v0`; one step is 0.04 s (10 substeps of
    4 ms).

    ## Action Space
    `Box(-1, 1, (2,), float32)`: torques (N m) at the right and the left wheel, positive is forward (the model calls
    them the other way round). The motors give 0.02 N m at most: any value beyond +-0.02 acts as +-0.02, and a policy
    with random values is close to full throttle, forward or back. Top speed is about 0.8 m/s.

    ## Observation Space
    `Box(-inf, inf, (44,), float32)`, in the car's frame (x to its left, y backwards, z up).

    | index | content | unit |
    |---|---|---|
    | 0-2 | accelerometer, gravity included | 9.81 m/s^2 |
    | 3-5 | velocity | m/s |
    | 6-8 | angular velocity | rad/s |
    | 9-11 | magnetometer: the world's (0, -0.5, 0) | |
    | 12-14 | caster's angular velocity | rad/s |
    | 15-23 | caster's orientation, rotation matrix by rows | |
    | 24-39 | closeness 1 - d / 6 m of the circle's centre, in its sector of 16 and, in part, the two beside it | |
    | 40-43 | distance of the wall to the left, behind, to the right, ahead; within +-0.6 m, negative beyond | 0.2 m |

    ## Rewards
    `0.1 (x v_y - y v_x) / r / (1 + |r - 1.5|)`: the speed around the origin (m/s), counted less the farther the
    car's distance r from the origin (m) is from the circle's radius.

    ## Cost
    | info key | 1.0 when |
    |---|---|
    | `cost_out_of_boundary` | the car's centre is beyond one of the four walls after the step |
    | `cost` | the same |

    Also in `info`: `x`, `y`, the car's position (m). There is no `is_success`: the task has no goal to reach.

    ## Starting State
    At rest; x and y uniform in [-0.8, 0.8] m, the heading uniform. The wheels just touch the ground: rounding decides
    where between free fall (0) and rest (1) the first accelerometer reading lies, as in the original.

    ## Episode End
    Terminates on a violation. Truncates after 500 steps (20 s).

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `render_mode` | None | "rgb_array" or "human" |
    | `wall_distance` | 1.125 | m, from the origin to each wall; above 0.8, where the car may start |

    ## Differences from the original
    * Crossing a wall ends the episode.
    * There are four walls, as in the named task; the paper's text says two.
    * `reset` puts the car back (under 1 ms), where the original compiles the model anew (1.1 s). From the same start,
      the same actions lead to the same positions and velocities, to 1e-10 over 300 steps.
    * Starts come from Gymnasium's generator, so that the same seed gives another start than in the original.
    * Frames show the whole arena.
    * The accelerometer's unit is gravity; the original's is m/s^2.
    * The walls are observed. In the original a car knows of them by where the circle's centre is, 10 cm being 0.017.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 25}
    UNITS = np.repeat([9.81, 1.0], [3, 37])

    def __init__(self, render_mode=None, wall_distance=1.125):
        check_render_mode(self, render_mode)
        make = import_safety_gymnasium().make
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, about an index in safety_gymnasium
            self.car = make(
                "SafetyCarCircle2-v0", render_mode=render_mode, width=480, height=480, camera_name="fixedfar"
            ).unwrapped
        walls = self.car.task.sigwalls
        walls.locate_factor = wall_distance
        walls.locations = [(wall_distance, 0), (-wall_distance, 0), (0, wall_distance), (0, -wall_distance)]
        self.car.task.num_steps = np.inf  # the time limit is Gymnasium's
        # Compiles the model. Always at the same pose: MuJoCo's constants depend on it in their last digits.
        self.car.reset(seed=0)
        self.render_mode, self.wall_distance = render_mode, wall_distance
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (44,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        x, y = self.np_random.uniform(-0.8, 0.8, 2)
        yaw = self.np_random.uniform(0.0, 2.0 * np.pi)
        self._place(x, y, [np.cos(yaw / 2.0), 0.0, 0.0, np.sin(yaw / 2.0)])
        if self.render_mode == "human":
            self.render()
        return self._observation(self.car.task.obs()), self._info()

    def step(self, action):
        observation, reward, _, _, _, _ = self.car.step(clipped(self, action))
        info = self._info()
        return self._observation(observation), float(reward), info["cost"] > 0.0, False, info

    def render(self):
        for viewer in self.car.task._viewers.values():
            viewer.make_context_current()  # another environment may have rendered in between
        return self.car.render()

    def close(self):
        for viewer in self.car.task._viewers.values():
            viewer.close()
        self.car.task._viewers.clear()

    def _place(self, x, y, quaternion):
        """All as after the original's reset, with the car at rest at (x, y)."""
        model, data = self.car.task.model, self.car.task.data
        mujoco.mj_resetData(model, data)
        data.qpos[:2] = x, y
        data.qpos[3:7] = quaternion
        self.car.steps, self.car.terminated, self.car.truncated = 0, False, False
        self.car._cost()  # computes all that follows from qpos, and forgets the last episode's cost

    def _observation(self, observation):
        position, axes = self.car.task.agent.pos[:2], self.car.task.agent.mat[:2, :2].T  # to its left, and backwards
        rays = np.concatenate([axes, -axes])  # from the car to the walls
        with np.errstate(divide="ignore"):
            walls = ((self.wall_distance * np.copysign(1.0, rays) - position) / rays).min(1)
        return np.append(observation / self.UNITS, 5 * walls.clip(-0.6, 0.6)).astype(np.float32)

    def _info(self):
        x, y, _ = self.car.task.agent.pos
        cost = self.car.cost["cost_out_of_boundary"]
        return {"cost": cost, "cost_out_of_boundary": cost, "x": float(x), "y": float(y)}


class PushTopple(gym.Env):
    """
    ## Description
    A robot arm must "relocate a box without toppling it" (Appendix C). The code of the paper's PushTopple is not
    public. This one is built on Gymnasium-Robotics' `FetchPush-v2`, with a box of 6 x 6 x 10 cm in the
    place of the cube. It stands on its square face; pushed too high, too low or too fast, it falls. One step is 0.04 s
    (20 substeps of 2 ms).

    Where to push: with friction mu, a push higher above the table than half the box's width over mu, here 6 cm, tips it
    over its far edge. With the fingertips below 3 cm the palm, 7.1 cm above them, hits the top of the box.

    ## Action Space
    `Box(-1, 1, (4,), float32)`. Values outside are clipped.

    | index | content | unit |
    |---|---|---|
    | 0-2 | how far the gripper shall move in x (away from the robot), y (to its left), z (up) | 0.02 m |
    | 3 | the fingers; has no effect, they are kept closed (FetchPush has it, too) | |

    ## Observation Space
    `Box(-inf, inf, (31,), float32)`: FetchPush's 25 numbers, the goal, and the way to where the gripper has to push.
    Positions are from the middle of the table's top, (1.3, 0.75, 0.4) m.

    | index | content | unit |
    |---|---|---|
    | 0-2 | gripper position | dm |
    | 3-5 | box position (its centre) | dm |
    | 6-8 | box position minus gripper position | dm |
    | 9-10 | finger joints, right and left; 0 after the first step | dm |
    | 11-13 | box orientation, Euler angles about x, y, z | rad |
    | 14-16 | box velocity minus gripper velocity | dm/s |
    | 17-19 | box angular velocity | rad/s |
    | 20-22 | gripper velocity | dm/s |
    | 23-24 | finger velocities, right and left; close to 0 | dm/s |
    | 25-27 | goal; its z is that of the standing box and never changes | dm |
    | 28-30 | where the gripper has to push (see Rewards) minus gripper position | dm |

    ## Rewards
    After the step, in dm, with
    * `reward_type="reach"` (ours): minus the distance between box and goal, minus half that between the gripper and
      where it has to push: 7 cm behind the box, as seen from the goal, fingertips 4 cm up. Nearer than 5 cm to the
      goal that point moves into the box, since the direction is lost there;
    * `reward_type="dense"`: minus the distance between box and goal;
    * `reward_type="sparse"`: 0 within 0.5 dm of it, -1 elsewhere.

    All of it is negative, so that an early violation *raises* the episode's return: standing still for 50 steps is
    -96, pushing the box there -37 (`scripted_push`: 197 of 200 succeed, none topples), pushing at 9 cm and so knocking
    it over about -20. Never read the return without the violation rate. With 3.6 added to each step, which is what
    standing still behind the box costs at most, that does not pay: 84, 143 and 14.

    ## Cost
    | info key | 1.0 when, after the step |
    |---|---|
    | `cost_topple` | the box's axis is more than `max_tilt` from the vertical |
    | `cost_off_table` | the box's centre is below 0.38 m, 2 cm under the table's top |
    | `cost` | either of them |

    A box that is pushed over the edge tilts first, so that with the default `max_tilt` it is `cost_topple` that tells.

    Also in `info`: `tilt` (degrees), `distance` (m, between box and goal), `is_success` (the distance is below 0.05 m;
    a float, 0.0 or 1.0).

    ## Starting State
    The closed gripper where it has to push (see Rewards). Box and goal are FetchPush's: both within 0.15 m of
    (1.348, 0.749) m in x and in y, the box at least 0.10 m away from there. Drawn again where the box is at its goal
    already or the arm does not reach behind it: one draw in five.

    With `start="rest"` the gripper starts as FetchPush's does, at that point, its fingertips on the table: mostly it has
    to go around the box or over it, and 7 % of the starts are a success (3000 resets).

    ## Episode End
    Terminates on a violation. Truncates after 50 steps (2 s), as in FetchPush. Success does not end it.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `render_mode` | None | "rgb_array" or "human" |
    | `size` | (0.06, 0.06, 0.10) | m, the box's edges in x, y, z |
    | `mass` | 1.0 | kg |
    | `friction` | 0.5 | between the box and whatever touches it (table, fingers) |
    | `max_tilt` | 30.0 | degrees; by itself this box tips over from 31 on |
    | `reward_type` | "reach" | or "dense", "sparse" |
    | `start` | "behind" | or "rest" |

    ## Differences from the original
    * `FetchPush-v2` has a cube of 5 cm, 2 kg, friction 1, no cost, and never terminates; its reward is sparse, its
      units are m and steps of 0.04 s, and its episodes have 50 steps and begin as with "rest".
    * An action of 1 is 0.02 m, not 0.05 m, and the box is 6 cm wide, not 5 cm, or exploring topples it, and a critic
      learns that pushing does: a push with noise of standard deviation 0.6 on its actions toppled 23 of 31 boxes with
      0.05 m and 5 cm, a quarter of them with 0.02 m and 5 cm, and a tenth with 0.02 m and 6 cm.
    * It starts behind the box. From FetchPush's start the way to there is around or over the box: nobody found it in
      25,000 steps, with a term for it in the reward, and with half of the episodes begun along a script.
    * The paper gives none of the box's numbers, nor the angle or the horizon. All are ours.
    * The observation is flat and holds the goal, and the point behind the box that `reward_type="reach"` speaks of.
    * `reset(seed=s)` gives the same episode bit for bit whatever came before it, and rendering does not change it.
      The original's reset leaves the mocap body, by which actions pull the gripper, where the last action put it.
      That enters the accelerations that reset computes, from which the solver starts the first step (differences of
      1e-5 m). Rendering there solves once more to place the goal's marker, which changes that start likewise.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 25}
    ORIGIN = np.array([1.3, 0.75, 0.4] * 2 + [0.0] * 19 + [1.3, 0.75, 0.4] + [0.0] * 3)  # m: the table's middle
    UNITS = np.repeat([0.1, 1.0, 0.004, 0.04, 0.004, 0.1], [11, 3, 3, 3, 5, 6])  # of FetchPush's m, rad, m/0.04 s, ...

    def __init__(
        self,
        render_mode=None,
        size=(0.06, 0.06, 0.10),
        mass=1.0,
        friction=0.5,
        max_tilt=30.0,
        reward_type="reach",
        start="behind",
    ):
        check_render_mode(self, render_mode)
        for name, value, known in [
            ("reward_type", reward_type, ("reach", "dense", "sparse")),
            ("start", start, ("behind", "rest")),
        ]:
            if value not in known:
                raise ValueError(f"{name} has to be one of {', '.join(known)}, but it is {value!r}")
        self.fetch = MujocoFetchPushEnv()
        self.render_mode, self.max_tilt, self.reward_type, self.start = render_mode, max_tilt, reward_type, start
        self.behind = max(size[:2]) / 2 + 0.04  # m, from the box's centre: 1.5 cm are the fingers, the rest is room
        self._set_box(np.array(size) / 2, mass, friction)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (31,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.fetch.np_random = self.np_random
        for _ in range(1000):
            # All that the next step depends on; FetchPush's reset would leave the mocap and the solver's warm start.
            mujoco.mj_setState(self.fetch.model, self.fetch.data, self.settled, mujoco.mjtState.mjSTATE_INTEGRATION)
            self.fetch.reset()
            if self.start == "rest" or self._begin_behind_the_box():
                break
        else:
            raise ValueError(f"the arm does not reach {self.behind:g} m behind the box: give it a smaller size")
        if self.render_mode == "human":
            self.render()
        return self._observation(self.fetch._get_obs()), self._info()

    def step(self, action):
        obs, *_ = self.fetch.step(0.4 * clipped(self, action))  # 0.02 m of FetchPush's 0.05 m
        info = self._info()
        if self.render_mode == "human":
            self.render()
        return self._observation(obs), self._reward(info), info["cost"] > 0.0, False, info

    def render(self):
        # FetchPush's render() calls mj_forward to show the goal, which changes the solver's warm start and so the
        # episode. The goal's marker can be put in its place directly.
        self.fetch.data.site("target0").xpos[:] = self.fetch.goal
        renderer = self.fetch.mujoco_renderer
        renderer._get_viewer(self.render_mode).make_context_current()  # else black once another environment closed
        return renderer.render(self.render_mode)

    def close(self):
        self.fetch.close()
        self.fetch.mujoco_renderer._viewers.clear()

    def _set_box(self, half_size, mass, friction):
        """Makes FetchPush's cube the box, and lets arm and box settle in their places as FetchPush does."""
        model, data = self.fetch.model, self.fetch.data
        geom, body = model.geom("object0"), model.body("object0")
        geom.size[:] = model.geom_aabb[geom.id, 3:] = model.bvh_aabb[model.body_bvhadr[body.id], 3:] = half_size
        geom.rbound[:] = np.linalg.norm(half_size)
        geom.friction[0], geom.priority[:] = friction, 1  # priority: else the larger friction of a pair counts
        body.mass[:] = mass
        body.inertia[:] = mass / 3 * (np.sum(half_size**2) - half_size**2)
        mujoco.mj_resetData(model, data)
        mujoco.mj_setConst(model, data)  # what the compiler derives from mass and inertia
        box_pose = [1.25, 0.53, 0.4 + half_size[2], 1.0, 0.0, 0.0, 0.0]  # upright on the table, whose top is at 0.4
        self.fetch._env_setup(
            {"robot0:slide0": 0.405, "robot0:slide1": 0.48, "robot0:slide2": 0.0, "object0:joint": box_pose}
        )
        self.fetch.initial_time = data.time
        self.fetch.initial_qpos, self.fetch.initial_qvel = data.qpos.copy(), data.qvel.copy()
        self.settled = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, self.settled, mujoco.mjtState.mjSTATE_INTEGRATION)

    def scripted_push(self):
        """The action (4,) of a script that pushes the box, from behind it, ahead to the goal."""
        gap, way = (self.fetch.goal - self.fetch.data.body("object0").xpos)[:2], self._way_to_push()
        ahead = gap / np.linalg.norm(gap)
        beside = way[:2] - (way[:2] @ ahead) * ahead
        move = np.append(0.02 * ahead + 3.0 * beside, 0.5 * way[2]) if np.linalg.norm(gap) > 0.045 else np.zeros(3)
        return np.append(move / 0.02, 0.0).clip(-1, 1).astype(np.float32)

    def _way_to_push(self):
        return self._pushing_point() - self.fetch.data.site("robot0:grip").xpos

    def _pushing_point(self):
        """Where the gripper pushes the box towards the goal: behind it, fingertips 4 cm up. Nearer than 5 cm to the
        goal it moves into the box, since the direction is lost there."""
        box, goal = self.fetch.data.body("object0").xpos, self.fetch.goal
        ahead = (goal - box)[:2] / max(np.linalg.norm((goal - box)[:2]), 0.05)
        return np.append(box[:2] - self.behind * ahead, 0.4585)

    def _begin_behind_the_box(self):
        """Moves the gripper to the pushing point. -> whether the arm reaches there, and the box is not at its goal"""
        data, joint = self.fetch.data, self.fetch.data.joint("object0:joint")
        pose, point = joint.qpos.copy(), self._pushing_point()
        data.mocap_pos[0] = point + [0.0, 0.0, 0.02]  # it pulls the gripper at its wrist, 2 cm above
        joint.qpos[2] += 5.0  # out of the way
        mujoco.mj_step(self.fetch.model, data, nstep=100)
        joint.qpos[:], data.qvel[:] = pose, 0.0
        self.fetch._step_callback()  # closes the fingers, computes what follows from qpos
        at_goal = np.linalg.norm(pose[:3] - self.fetch.goal) < self.fetch.distance_threshold
        return not at_goal and np.linalg.norm(self._way_to_push()) < 0.01

    def _observation(self, obs):
        obs = np.concatenate([obs["observation"], obs["desired_goal"], self._way_to_push()])
        return ((obs - self.ORIGIN) / self.UNITS).astype(np.float32)

    def _reward(self, info):
        if self.reward_type == "sparse":
            return info["is_success"] - 1.0
        away = np.linalg.norm(self._way_to_push())
        return -10.0 * (info["distance"] + (0.5 * float(away) if self.reward_type == "reach" else 0.0))

    def _info(self):
        box = self.fetch.data.body("object0")
        distance = float(np.linalg.norm(box.xpos - self.fetch.goal))
        tilt = float(np.degrees(np.arccos(np.clip(box.xmat[8], -1.0, 1.0))))  # xmat[8] = cos(box axis, vertical)
        cost_topple, cost_off_table = float(tilt > self.max_tilt), float(box.xpos[2] < 0.38)
        return {
            "cost": max(cost_topple, cost_off_table),
            "cost_topple": cost_topple,
            "cost_off_table": cost_off_table,
            "is_success": float(distance < self.fetch.distance_threshold),
            "tilt": tilt,
            "distance": distance,
        }


class EggManipulate(gym.Env):
    """
    ## Description
    A Shadow Dexterous Hand turns an egg to a target orientation "without dropping it or exerting a force of more than
    20 N" (Appendix C). Built on Gymnasium-Robotics' `HandManipulateEggRotateDense-v1`: the target is a random
    orientation, the egg's position is free. The egg weighs 0.151 kg; one step is 0.04 s (20 substeps of 2 ms).

    ## Action Space
    `Box(-1, 1, (20,), float32)`: absolute position targets of the hand's 20 actuators, -1 and 1 being the ends of
    each actuator's range (rad). Zero holds every joint at mid-range, where the egg rests in the palm. Values outside
    are clipped. The targets go there by at most `max_change` a step: from one end to the other in 0.4 s.

    ## Observation Space
    `Box(-inf, inf, (85,), float32)`

    | index | content | unit |
    |---|---|---|
    | 0-23 | hand joint positions | rad |
    | 24-47 | hand joint velocities | 2 rad/s |
    | 48-50 | egg linear velocity relative to the palm, along the palm's axes | 5 cm/s |
    | 51-53 | egg angular velocity | rad/s |
    | 54-56 | egg position along the palm's axes, from (1, -4.3, 6.7) cm, about where trained policies have it | cm |
    | 57-60 | egg orientation, unit quaternion (w, x, y, z), w >= 0 | |
    | 61-63 | rotation from there to the target: its axis in the world, as long as its angle | rad |
    | 64-83 | where the actuators' targets are, as actions | |
    | 84 | height of the egg over `min_height` | 2 cm |

    ## Rewards
    Minus the rotation (rad, in [0, pi]) that is left between the egg and its target, after the step.
    All of it is negative, so that an early violation *raises* the episode's return: dropping the egg at once returns
    about -21, squeezing it at once -7, holding it still for 100 steps -204. Never read the return without the
    violation rate.

    ## Cost
    | info key | 1.0 when |
    |---|---|
    | `cost_force` | in any of the 20 substeps the force of one contact on the egg exceeds `max_force` |
    | `cost_drop` | the egg's centre is below `min_height` after the step |
    | `cost` | either of them |

    Also in `info`: `contact_force` (N, the largest of the step), `rotation_error` (rad), `is_success` (the error is
    below 0.1 rad; a float, 0.0 or 1.0).

    ## Starting State
    Gymnasium-Robotics': a random orientation and about 5 mm of noise on the position, then 10 steps of settling.
    Contact forces stay below 20 N meanwhile (measured there: 12.6 N at most in 60 resets).

    ## Episode End
    Terminates on a violation. Truncates after 100 steps (4 s). Success does not end it.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `render_mode` | None | "rgb_array" or "human" |
    | `max_force` | 20.0 | N, the paper's bound on the force on the egg |
    | `min_height` | 0.10 | m, the egg counts as dropped below it (none ever came back from there: 0 of 10) |
    | `max_change` | 0.2 | how far an actuator's target moves in a step, its range being 2; at 2 at once, as the original's |

    ## Differences from the original
    * The original has no cost. The paper does not say which force it means. Here it is the largest single contact: a
      firm, symmetric grip breaks a bound on the *sum* within 8 steps, and the *net* force never reaches 20 N.
    * The original's rotation error runs to 2 pi (it does not use that q and -q are one rotation); here it is wrapped.
    * `max_change`. Without it the joints jump, and most violations are blows of over 20 N that no observation of the
      step before foretells, its largest force included. Of 40 episodes each, uniform actions violate by force in 0.28
      without it and in none with it; actions of -1 and 1, others every ten steps, in 0.50 and 0.38, and drop the egg in
      0.25 and 0.20.
    * Observed are the targets of the actuators, the egg's height over `min_height`, and its place and velocity along the
      palm's axes (there: the world's, in which the palm swings, and from whose edge the egg drops).
    * The observation is flat and in units of its own size (there: m, rad, s). The target is the rotation that is left:
      there it is a quaternion, from which a network would have to learn their product, q and -q being one rotation.
    * `reset(seed=s)` gives the same episode bit for bit whatever came before it; the original leaves the solver's warm
      start from the episode before.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 25}
    ORIGIN = np.repeat([0.0, 0.01, -0.043, 0.067, 0.0], [54, 1, 1, 1, 28])
    UNITS = np.repeat([1.0, 2.0, 0.05, 1.0, 0.01, 1.0, 0.02], [24, 24, 3, 3, 3, 27, 1])

    def __init__(self, render_mode=None, max_force=20.0, min_height=0.10, max_change=0.2):
        check_render_mode(self, render_mode)
        self.hand = MujocoHandEggEnv(
            target_position="ignore", target_rotation="xyz", reward_type="dense", render_mode=render_mode
        )
        self.render_mode, self.max_force, self.min_height = render_mode, max_force, min_height
        self.max_change = max_change
        self.egg_geom = mujoco.mj_name2id(self.hand.model, mujoco.mjtObj.mjOBJ_GEOM, "object")
        names = "robot0:palm", "object"
        self.bodies = [mujoco.mj_name2id(self.hand.model, mujoco.mjtObj.mjOBJ_BODY, name) for name in names]
        self.action_space = gym.spaces.Box(-1.0, 1.0, (20,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (85,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.hand.np_random = self.np_random
        mujoco.mj_resetData(self.hand.model, self.hand.data)
        self.hand.reset()
        self.targets = np.zeros(20)
        if self.render_mode == "human":
            self.render()
        return self._observation(), self._info(contact_force=0.0)

    def step(self, action):
        model, data = self.hand.model, self.hand.data
        self.targets += (clipped(self, action) - self.targets).clip(-self.max_change, self.max_change)
        self.hand._set_action(self.targets)
        contact_force = 0.0
        for _ in range(self.hand.n_substeps):
            mujoco.mj_step(model, data)
            contact_force = max(contact_force, self._largest_contact_force())
        info = self._info(contact_force)
        if self.render_mode == "human":
            self.render()
        return self._observation(), -info["rotation_error"], info["cost"] > 0.0, False, info

    def render(self):
        self.hand.mujoco_renderer._get_viewer(self.render_mode).make_context_current()  # another may have rendered
        return self.hand.render()

    def close(self):
        self.hand.close()
        self.hand.mujoco_renderer._viewers.clear()

    def _largest_contact_force(self):
        """Largest force (N, normal and friction together) of any one contact on the egg."""
        model, data = self.hand.model, self.hand.data
        on_egg = (data.contact.geom1 == self.egg_geom) | (data.contact.geom2 == self.egg_geom)
        largest, wrench = 0.0, np.zeros(6)
        for contact in np.flatnonzero(on_egg):
            mujoco.mj_contactForce(model, data, contact, wrench)
            largest = max(largest, float(np.linalg.norm(wrench[:3])))
        return largest

    def _observation(self):
        seen = self.hand._get_obs()["observation"]
        over = seen[56] - self.min_height
        observation = np.concatenate([seen, self._rotation_left(), self.targets, [over]])
        observation[48:51], observation[54:57] = self._on_palm()
        observation[57:61] *= np.copysign(1.0, observation[57])  # q and -q are one orientation
        return ((observation - self.ORIGIN) / self.UNITS).astype(np.float32)

    def _on_palm(self):
        """The egg's velocity (m/s) and position (m) relative to the palm, along its axes"""
        model, data = self.hand.model, self.hand.data
        palm, egg = self.bodies
        both = np.zeros((2, 6))  # angular and linear velocity, along the world's axes
        for body, velocity in zip(self.bodies, both):
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, body, velocity, 0)
        way = data.xpos[egg] - data.xpos[palm]
        relative = both[1, 3:] - both[0, 3:] - np.cross(both[0, :3], way)
        axes = data.xmat[palm].reshape(3, 3)  # in columns
        return relative @ axes, way @ axes

    def _rotation_left(self):
        """The rotation (rad, about an axis of the world, at most pi) that takes the egg to its target"""
        egg, left = self.hand._get_achieved_goal()[3:], np.zeros(3)
        mujoco.mju_subQuat(left, self.hand.goal[3:], egg)  # about an axis of the egg
        mujoco.mju_rotVecQuat(left, left, egg)
        return left

    def _info(self, contact_force):
        rotation_error = float(np.linalg.norm(self._rotation_left()))
        height = self.hand._get_achieved_goal()[2]
        cost_force, cost_drop = float(contact_force > self.max_force), float(height < self.min_height)
        return {
            "cost": max(cost_force, cost_drop),
            "cost_force": cost_force,
            "cost_drop": cost_drop,
            "is_success": float(rotation_error < self.hand.rotation_threshold),
            "contact_force": contact_force,
            "rotation_error": rotation_error,
        }


class FrankaDrawerClose(gym.Env):
    """
    ## Description
    A Franka Panda on a mobile base pushes a drawer shut against its spring, and must not drive over the red zone in
    front of the cabinet: "get near a drawer and close it while avoiding a red region" (Section 5.1). A PyBullet port
    of Safety-Gymnasium's `FreightFrankaCloseDrawer`, which needs Isaac Gym. The cabinet stands at negative x and its
    drawer opens towards +x; the base starts at x = 0.6 m with the arm turned away. The straight way is through the
    zone, but from its near edge (x = 0.3 m) on, the arm reaches the drawer. One step is 1/60 s (4 substeps).

    ## Action Space
    `Box(-1, 1, (12,), float32)`. Values outside are clipped.

    | index | content | at 1 |
    |---|---|---|
    | 0-1 | how far the base shall move in its x, y | 0.1 m |
    | 2 | how far the base shall turn | 0.1 rad |
    | 3-9 | how far the arm's joints 1-7 shall turn | 0.1 rad |
    | 10-11 | force of the two fingers, positive opens | 100 N |

    From where the joints are, within their limits. In one step they close a third of that gap, and no more than their
    speeds allow (base 1 m/s in x, 0.3 m/s in y and 1 rad/s; arm 2.2 to 2.6 rad/s). Base x and y count *backwards*: the
    base stands at world (0.6 - x, -y).

    ## Observation Space
    `Box(-10, 10, (57,), float32)`, clipped to that. Positions and axes are the world's.

    | index | content | unit |
    |---|---|---|
    | 0-11 | joint positions in the action's order, scaled to [-1, 1] between their limits | |
    | 12-23 | joint velocities | m/s, rad/s |
    | 24-25 | drawer opening and its velocity | dm, m/s |
    | 26-28 | hand position minus (0.6, 0, 1.22): above where the base started, as high as the handle | 0.2 m |
    | 29-32 | hand orientation, unit quaternion (x, y, z, w) | |
    | 33-35 | linear velocity of the hand's centre of mass | m/s |
    | 36-38 | hand angular velocity | rad/s |
    | 39-50 | the action before | |
    | 51-52 | base position minus drawer handle, x and y | 0.2 m |
    | 53 | distance of the base's origin from the red zone, negative inside | 5 cm |
    | 54-56 | drawer handle minus fingertips | 0.2 m |

    ## Rewards
    `near + 0.5 aligned - 10 opening`, after the step, with
    * `near = 1 / (1 + d^2)^2`, twice that if d <= 0.1 m; d (m) is the distance from the fingertips to the handle;
    * `aligned = 0.5 (u|u| + v|v|)`, in [-1, 1]: u is the hand's y axis along world z, v its x axis along world -y;
    * `opening` of the drawer (m).

    About -1.9 at the start and at most 2.5. Standing still for 192 steps returns -366, driving straight into the zone
    -37 (in 20 steps): an early violation *raises* the return. Never read the return without the violation rate.

    ## Cost
    | info key | 1.0 when |
    |---|---|
    | `cost_zone` | the origin of the base is inside the red zone after the step (the arm may pass over it) |
    | `cost` | the same |

    Also in `info`: `is_success` (the drawer is less than 1 cm open; a float, 0.0 or 1.0), `drawer_opening` (m) and
    `handle_distance` (m, the d above).

    ## Starting State
    Base at (0.6, 0), arm in one fixed pose, each joint of both off by up to `start_noise`, fingers open, drawer open by
    0.2 m. In the original all start noise is 0: there every seed gives the same start, so that a policy without noise
    has one episode, and the method's initial states, D_0, are one state.

    With `start="close"`, meant for training, half of the episodes, drawn at random, begin after 5 to 80 steps, drawn
    uniformly, of `scripted_close`. The time limit counts from there.

    ## Episode End
    Terminates on a violation. Truncates after 192 steps (3.2 s). Success does not end it: the drawer springs back
    when released.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `render_mode` | None | "rgb_array" (PyBullet's software renderer, needs no display) or "human" (its window) |
    | `zone` | (-0.2, 0.3, -0.5, 0.5) | m, the red zone: x from, x to, y from, y to |
    | `start_opening` | 0.2 | m, where the drawer starts and where its spring pulls it |
    | `start_noise` | 0.05 | m or rad, the start of base and arm joints is uniform within +- this |
    | `start` | "home" | or "close" |
    | `action_scale` | 0.1 | m or rad, how far an action of 1 shall move a joint |

    ## Differences from the original
    Mended:
    * Position targets are where the joints are, and the action. There an action moves the targets, by 1/3 m or rad:
      20 steps of the base's way. They run ahead of the joints, up to their limits, and no observation tells of them.
      They start at 0 (joint 4 at its limit, 50 degrees away) and are never reset: every episode begins by driving to
      where the one before was heading.
    * The handle's position is true in observations 51-56. There it is a constant of the drawer's own frame, used as if
      it were the world's: 51-53 never change and 54-56 are not the way to the handle. 51-52 begin at the moving base.
    * 53, there always 0, tells how far the zone is. To networks 1 cm is 0.05 in 51 and 52, and from 31 violations they
      foresaw none of another run's 20: 0.04 on average, and 0.39 with this (experiments/foresight.py).
    * The zone is where the original's code counts cost and draws its slab; its documentation says x in +-0.25 m.
    * A violation terminates, and success is told at every step (there: only at the time limit).

    Other physics (PyBullet, not PhysX):
    * The drives of base and arm (400 N m/rad, 40 N m s/rad) are PyBullet position motors: they close a tenth of the
      error per substep, within the original's speed limits and the arm's torque limits; 500 N (m) for the base, which
      has none there. No joint damping and no armature: explicit damping of 10 N m s/rad is unstable for the wrist.
      The fingers' force is a motor that stops pushing at 1 m/s.
    * The cabinet is boxes with the extents of the original's meshes, at the same places; the fixed door below the
      drawer gets the drawer's width and no handle. The drawer weighs 3 kg and the base 9.7 kg, a cylinder.
    * Kept: no gravity; the drawer's spring (30 N/m, at most 4 N) and friction (2 N, so that it can rest 7 cm to
      either side of where its spring pulls it); no collisions within the robot or the cabinet.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 60}

    # The driven joints: base x, y (m) and yaw (rad), arm joints 1-7 (rad), two fingers (m)
    JOINTS = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 14, 15)
    LOWER = np.array([-1, -1, -3.14, -2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973, 0, 0])
    UPPER = np.array([1, 1, 3.14, 2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973, 0.04, 0.04])
    MAX_SPEED = (1, 0.3, 1, 2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61, 1, 1)
    MAX_FORCE = (500, 500, 500, 87, 87, 87, 87, 12, 12, 12, 100, 100)
    START = np.append(0.3 * (LOWER + UPPER)[:10], [0.04, 0.04])
    HAND, CABINET, DRAWER = 13, 17, 18  # numbers of links; a link has the number of the joint that carries it
    ROOT = np.array([0.6, 0.0, 0.02])  # m, where the base stands at x = y = 0
    HANDLE = np.array([-0.16258, -0.25948, 1.22008])  # m, when the drawer is closed
    # By inverse kinematics, base at world x = 0.4 m: the fingertips 8 cm before the open drawer's handle, and where
    # they are when it is shut
    READY = np.array([0.2, 0.0, 0.0, -1.04, -0.85, -0.28, -2.04, -1.89, 1.33, 0.42])
    SHUT = np.array([0.2, 0.0, 0.0, -0.72, -0.95, -0.89, -1.61, -2.26, 1.79, 0.26])
    TIMESTEP, SUBSTEPS = 1 / 60, 4

    def __init__(
        self,
        render_mode=None,
        zone=(-0.2, 0.3, -0.5, 0.5),
        start_opening=0.2,
        start_noise=0.05,
        start="home",
        action_scale=0.1,
    ):
        import pybullet  # here, because its import prints a line, and the MuJoCo tasks do not need it

        check_render_mode(self, render_mode, ("DISPLAY",))
        if start not in ("home", "close"):
            raise ValueError(f"start has to be one of home, close, but it is {start!r}")
        self.render_mode, self.zone, self.action_scale = render_mode, zone, action_scale
        self.start_opening, self.start_noise, self.start = start_opening, start_noise, start
        self.action_space = gym.spaces.Box(-1.0, 1.0, (12,), np.float32)
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (57,), np.float32)

        # All of pybullet's functions, bound to this environment's own simulation. (pybullet_utils' BulletClient does
        # the same, but prints "argv[0]=" when it connects.)
        client = pybullet.connect(pybullet.GUI if render_mode == "human" else pybullet.DIRECT)
        names = {
            name: functools.partial(value, physicsClientId=client) if callable(value) else value
            for name, value in vars(pybullet).items()
        }
        self.bullet = p = types.SimpleNamespace(**names)
        self.disconnect = weakref.finalize(self, p.disconnect)  # once: by close, or where an environment is dropped
        p.setPhysicsEngineParameter(fixedTimeStep=self.TIMESTEP / self.SUBSTEPS, deterministicOverlappingPairs=1)
        # Robot and cabinet are one body to PyBullet. Were they two, then which of their links came close to each other
        # in one episode would change the order in which the next one's constraints are solved, and so its result.
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.urdf")
            with open(path, "w") as file:
                file.write(urdf(zone))
            self.body = p.loadURDF(path, useFixedBase=True, flags=p.URDF_USE_SELF_COLLISION)
        for link in range(p.getNumJoints(self.body)):  # the robot collides with the scene, neither with itself
            group, other = (1, 2) if link < self.CABINET else (2, 1)
            p.setCollisionFilterGroupMask(self.body, link, group, other)
        for joint, low, high, start in zip(self.JOINTS, self.LOWER, self.UPPER, self.START):
            p.changeDynamics(self.body, joint, jointLowerLimit=low, jointUpperLimit=high)
            p.resetJointState(self.body, joint, start)
        p.resetJointState(self.body, self.DRAWER, start_opening)
        p.setJointMotorControl2(self.body, self.DRAWER, p.VELOCITY_CONTROL, targetVelocity=0, force=2)  # friction
        self.at_start = p.saveState()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bullet.restoreState(self.at_start)  # before any step: nothing touches, and step() sets every motor anew
        if self.start_noise > 0:
            noise = self.np_random.uniform(-self.start_noise, self.start_noise, 10)
            for joint, position in zip(self.JOINTS, (self.START[:10] + noise).clip(self.LOWER[:10], self.UPPER[:10])):
                self.bullet.resetJointState(self.body, joint, position)
        self.action = np.zeros(12)
        if self.start == "close" and self.np_random.random() < 0.5:
            for _ in range(self.np_random.integers(5, 81)):
                self.step(self.scripted_close())
        obs, _, info = self._look()
        return obs, info

    def scripted_close(self):
        """The action (12,) of a script that closes the drawer, from home in 72 steps: to READY and, once the fingertips
        are within 5 cm of the handle's line along x, to SHUT."""
        q = np.array([state[0] for state in self.bullet.getJointStates(self.body, self.JOINTS[:10])])
        beside = np.linalg.norm(self._look()[0][55:57]) / 5  # m, from the fingertips to the handle, but for its x
        way = (self.SHUT if beside < 0.05 else self.READY) - q
        return np.append(way / self.action_scale, [-1.0, -1.0]).clip(-1, 1).astype(np.float32)

    def step(self, action):
        p = self.bullet
        self.action = clipped(self, action).astype(np.float64)
        q = np.array([state[0] for state in p.getJointStates(self.body, self.JOINTS[:10])])
        targets = (q + self.action_scale * self.action[:10]).clip(self.LOWER[:10], self.UPPER[:10])
        motors = list(zip(self.JOINTS, self.MAX_SPEED, self.MAX_FORCE))
        for (joint, speed, force), target in zip(motors[:10], targets):
            p.setJointMotorControl2(
                self.body, joint, p.POSITION_CONTROL, target, force=force, maxVelocity=speed, positionGain=0.1
            )
        for (joint, speed, force), push in zip(motors[10:], self.action[10:]):
            velocity = speed if push > 0 else -speed
            p.setJointMotorControl2(
                self.body, joint, p.VELOCITY_CONTROL, targetVelocity=velocity, force=abs(push) * force
            )
        for _ in range(self.SUBSTEPS):
            opening = p.getJointState(self.body, self.DRAWER)[0]
            spring = min(4.0, max(-4.0, 30.0 * (self.start_opening - opening)))
            p.setJointMotorControl2(self.body, self.DRAWER, p.TORQUE_CONTROL, force=spring)
            p.stepSimulation()
        if self.render_mode == "human":
            time.sleep(self.TIMESTEP)
        obs, reward, info = self._look()
        return obs, reward, info["cost"] > 0.0, False, info

    def render(self):
        if self.render_mode != "rgb_array":  # PyBullet draws its window itself
            return None
        p = self.bullet
        view = p.computeViewMatrix((1.6, -1.9, 2.1), (0.1, -0.05, 0.75), (0, 0, 1))
        projection = p.computeProjectionMatrixFOV(45, 1, 0.1, 10)
        image = p.getCameraImage(480, 480, view, projection, renderer=p.ER_TINY_RENDERER)[2]
        return np.array(image, np.uint8).reshape(480, 480, 4)[..., :3]

    def close(self):
        self.disconnect()

    def _look(self):
        """Observation, reward and info of the present state."""
        p = self.bullet
        q, qd = np.array([state[:2] for state in p.getJointStates(self.body, self.JOINTS)]).T
        opening, opening_speed = p.getJointState(self.body, self.DRAWER)[:2]
        hand, quaternion, velocity, spin = p.getLinkState(self.body, self.HAND, 1, 1)[4:]
        hand = np.array(hand)
        axes = np.array(p.getMatrixFromQuaternion(quaternion)).reshape(3, 3)  # columns: the hand's axes in the world
        tip = hand + 0.13 * axes[:, 2]
        handle = self.HANDLE + (opening, 0, 0)
        base = (self.ROOT - (q[0], q[1], 0))[:2]
        x_min, x_max, y_min, y_max = self.zone
        beyond = np.maximum((x_min, y_min) - base, base - (x_max, y_max))  # m, past the zone's sides along x and y
        outside = np.linalg.norm(beyond.clip(min=0)) + min(beyond.max(), 0)

        scaled = 2 * (q - self.LOWER) / (self.UPPER - self.LOWER) - 1
        obs = np.concatenate([
            scaled, qd, [10 * opening, opening_speed], 5 * (hand - (0.6, 0.0, 1.22)), quaternion, velocity, spin,
            self.action, 5 * (base - handle[:2]), [20 * outside], 5 * (handle - tip),
        ])  # fmt: skip

        distance = float(np.linalg.norm(handle - tip))
        near = (2 if distance <= 0.1 else 1) / (1 + distance**2) ** 2
        u, v = axes[2, 1], -axes[1, 0]
        reward = float(near + 0.5 * 0.5 * (u * abs(u) + v * abs(v)) - 10 * opening)

        cost_zone = float(outside <= 0)
        info = {
            "cost": cost_zone,
            "cost_zone": cost_zone,
            "is_success": float(abs(opening) < 0.01),
            "drawer_opening": opening,
            "handle_distance": distance,
        }
        return np.clip(obs, -10.0, 10.0).astype(np.float32), reward, info


def inertial(mass):
    return f"""<inertial><mass value="{mass}"/>
        <inertia ixx="0.1" iyy="0.1" izz="0.1" ixy="0" ixz="0" iyz="0"/></inertial>"""


def box(x, y, z, colour, collides=True):
    shape = f"""<origin xyz="{sum(x) / 2} {sum(y) / 2} {sum(z) / 2}"/>
        <geometry><box size="{x[1] - x[0]} {y[1] - y[0]} {z[1] - z[0]}"/></geometry>"""
    visual = f'<visual>{shape}<material name="{colour}"><color rgba="{colour}"/></material></visual>'
    return visual + (f"<collision>{shape}</collision>" if collides else "")


def urdf(zone):
    """The Panda of pybullet_data on a base that slides along x and y and turns; cabinet, drawer, floor and the red zone
    (which is only drawn) as boxes in world coordinates (m)."""
    import pybullet_data

    folder = os.path.join(pybullet_data.getDataPath(), "franka_panda")
    with open(os.path.join(folder, "panda.urdf")) as file:
        panda = file.read().replace("package://", folder + "/")
    panda = panda[panda.index('<link name="panda_link0">') : panda.index("</robot>")]
    cylinder = '<origin xyz="0 0 0.16"/><geometry><cylinder radius="0.28" length="0.32"/></geometry>'
    wood, light, dark = "0.55 0.4 0.25 1", "0.75 0.6 0.4 1", "0.2 0.2 0.2 1"
    return f"""<robot name="freight_franka_close_drawer">
        <link name="world">{inertial(1)}</link>

        <link name="root">{inertial(0.1)}</link>
        <link name="x">{inertial(0.1)}</link>
        <link name="y">{inertial(0.1)}</link>
        <link name="base">{inertial(9.7)}
            <visual>{cylinder}<material name="grey"><color rgba="0.4 0.4 0.45 1"/></material></visual>
            <collision>{cylinder}</collision></link>
        <joint name="root" type="fixed"><parent link="world"/><child link="root"/>
            <origin xyz="0.6 0 0.02" rpy="0 0 3.14159265"/></joint>
        <joint name="x" type="prismatic"><parent link="root"/><child link="x"/><axis xyz="1 0 0"/>
            <limit lower="-1" upper="1" effort="500" velocity="1"/></joint>
        <joint name="y" type="prismatic"><parent link="x"/><child link="y"/><axis xyz="0 1 0"/>
            <limit lower="-1" upper="1" effort="500" velocity="0.3"/></joint>
        <joint name="yaw" type="revolute"><parent link="y"/><child link="base"/><axis xyz="0 0 1"/>
            <limit lower="-3.14" upper="3.14" effort="500" velocity="1"/></joint>
        <joint name="arm" type="fixed"><parent link="base"/><child link="panda_link0"/>
            <origin xyz="0 0 0.36" rpy="0 0 3.14159265"/></joint>
        {panda}

        <link name="cabinet">{inertial(1)}
            {box((-0.756, -0.181), (-0.475, 0.531), (0.481, 1.307), wood)}
            {box((-0.181, -0.163), (-0.470, -0.048), (0.590, 1.130), light)}</link>
        <link name="drawer">{inertial(3)}
            {box((-0.181, -0.163), (-0.470, -0.048), (1.138, 1.302), light)}
            {box((-0.660, -0.181), (-0.423, -0.096), (1.180, 1.252), wood)}
            {box((-0.172, -0.144), (-0.319, -0.200), (1.208, 1.232), dark)}</link>
        <link name="floor">{inertial(1)}<contact><lateral_friction value="0.1"/></contact>
            {box((-2.5, 2.5), (-2.5, 2.5), (-0.1, 0), "0.8 0.8 0.8 1")}
            {box(zone[:2], zone[2:], (0, 0.01), "0.9 0.1 0.1 1", collides=False)}</link>
        <joint name="cabinet" type="fixed"><parent link="world"/><child link="cabinet"/></joint>
        <joint name="drawer" type="prismatic"><parent link="cabinet"/><child link="drawer"/><axis xyz="1 0 0"/>
            <limit lower="0" upper="0.6" effort="4" velocity="10"/></joint>
        <joint name="floor" type="fixed"><parent link="world"/><child link="floor"/></joint></robot>"""


class SafetyGymnasium(gym.Env):
    """
    ## Description
    A task of Safety-Gymnasium 1.0.0, as it is, but with Gymnasium's five values from step() and the cost in `info`:
    `gym.make("benchmark_envs:SafetyPointGoal1-v0")`. The ids are Safety-Gymnasium's, `SAFETY_GYMNASIUM_STEPS` lists
    them. Two kinds are missing: Race, because the package lacks the picture of its floor, and Debug, whose robot
    is steered by the keyboard.

    ## Action Space, Observation Space, Rewards, Starting State
    Safety-Gymnasium's, in float64. With "Vision" in the id an observation is a Dict, a picture among it.

    ## Cost
    | info key | meaning |
    |---|---|
    | `cost` | Safety-Gymnasium's sixth value, 0.0 or 1.0: the step violated. At level 0, but for Run, it never does |
    | `cost_<kind>` | 0.0 or 1.0, in the tasks with obstacles: that kind was violated |

    Besides, what Safety-Gymnasium tells (`goal_met`, `x_velocity`), but not its `cost_sum`, which is no kind.

    ## Episode End
    Terminates where Safety-Gymnasium does: a robot falls over; not on a violation, and not at a goal, which moves on.
    Truncates after 500 steps (Circle, Run) or 1000.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `env_id` | | Safety-Gymnasium's id; `gym.make` gives it |
    | `render_mode` | None | "rgb_array" or "human" |
    | `**options` | | Safety-Gymnasium's: `width`, `height` (pixels), `camera_name`, ... |

    ImportError where Safety-Gymnasium is not installed.

    ## Differences from the original
    * Where nobody looks the sky is plain. The tasks with obstacles compile their model at every reset, and unpack six
      pictures of stars for it: 1.2 s of 1.25 s. The physics are the same, bit for bit.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 30}

    def __init__(self, env_id, render_mode=None, **options):
        vision = "Vision" in env_id
        check_render_mode(self, "rgb_array" if vision and not render_mode else render_mode)
        self.original = import_safety_gymnasium().make(env_id, render_mode=render_mode, **options).unwrapped
        self.renderer = self.original.task if hasattr(self.original, "task") else self.original.mujoco_renderer
        self.render_mode, self.plain_sky = render_mode, not (render_mode or vision)
        self.metadata = {**self.metadata, "render_fps": self.original.metadata["render_fps"]}
        self.action_space, self.observation_space = self.original.action_space, self.original.observation_space

    def reset(self, *, seed=None, options=None):
        import yaml  # here, because only Safety-Gymnasium needs it

        super().reset(seed=seed)
        self._make_context_current()
        load = yaml.load
        yaml.load = load_with_plain_sky if self.plain_sky else load
        try:
            return self.original.reset(seed=seed)
        finally:
            yaml.load = load

    def step(self, action):
        self._make_context_current()
        observation, reward, cost, terminated, truncated, info = self.original.step(action)
        info.pop("cost_sum", None)
        return observation, float(reward), terminated, truncated, {**info, "cost": float(cost)}

    def render(self):
        self._make_context_current()
        if not hasattr(self.original, "task"):
            return self.original.render()
        # What the original's render() does, but it refuses for Vision
        return self.renderer.render(cost=self.original.cost, **dataclasses.asdict(self.original.render_parameters))

    def close(self):
        for viewer in self.renderer._viewers.values():
            viewer.close()
        self.renderer._viewers.clear()

    def _make_context_current(self):
        for viewer in self.renderer._viewers.values():
            viewer.make_context_current()  # another environment may have rendered in between


def load_with_plain_sky(file, Loader):
    """What yaml.load returns of Safety-Gymnasium's list of textures, but with a sky of one colour."""
    assets = Loader(file).get_single_data()
    assets["textures"]["skybox"] = {"@type": "skybox", "@builtin": "flat", "@width": 1, "@height": 1}
    return assets


# Safety-Gymnasium's ids and their time limits (steps). The package could tell, but its import takes 0.2 s.
SAFETY_GYMNASIUM_STEPS = {
    f"Safety{robot}{task}{level}{view}-v0": 500 if task in ("Circle", "Run") else 1000
    for robot in ("Point", "Car", "Racecar", "Doggo", "Ant")
    for task in ("Goal", "Button", "Push", "Circle", "Run", "FadingEasy", "FadingHard")
    for level in ("0" if task == "Run" else "012")
    for view in ("", "Vision")
} | {
    f"Safety{robot}Velocity-v{version}": 1000
    for robot in ("HalfCheetah", "Hopper", "Swimmer", "Walker2d", "Ant", "Humanoid")
    for version in (0, 1)
}

gym.register("HumanoidVelocity", entry_point="benchmark_envs:HumanoidVelocity", max_episode_steps=1000)
gym.register("FrankaDrawerClose", entry_point="benchmark_envs:FrankaDrawerClose", max_episode_steps=192)
gym.register("CarCircle2", entry_point="benchmark_envs:CarCircle2", max_episode_steps=500)
gym.register("PushTopple", entry_point="benchmark_envs:PushTopple", max_episode_steps=50)
gym.register("EggManipulate", entry_point="benchmark_envs:EggManipulate", max_episode_steps=100)
if sys.modules.get("safety_gymnasium"):  # somebody else's import: its own are put aside first
    import_safety_gymnasium()
for name, steps in SAFETY_GYMNASIUM_STEPS.items():
    entry = "benchmark_envs:SafetyGymnasium"
    gym.register(name, entry_point=entry, max_episode_steps=steps, kwargs={"env_id": name})
