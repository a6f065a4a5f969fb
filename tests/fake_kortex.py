"""A stand-in for Kinova's `kortex_api` with a simulated Gen3 (7 joints) behind it: for tests, and to rehearse a run.

    world = fake_kortex.install(clock=fake_kortex.VirtualClock())  # from here on `import kortex_api...` finds the fake
    world = fake_kortex.install(address=fake_kortex.serve(path).address)  # the arm in a process of its own
    python fake_kortex.py /tmp/arm.sock  # the same, started by hand

Modelled: kinematics, the 25 ms command period, a twist that lasts until something ends it, frames and units, soft and
hard limits, ramps, joint limits, keep-out zones, faults, sessions and their keep-alive, control ownership, actions and
their notifications, what each RPC costs, and failures of all these on demand (FakeArm's methods and attributes).

Not modelled: dynamics, contacts, torques, self-collision, waypoints, admittance, sequences, PauseAction, and the rest
of the API; reach_pose moves in joint space. `process` being "killed" or "frozen" silences the keep-alive only: what the
test itself sends still arrives. A socket that closes does not stop the arm.

Guesses, where Kinova documents nothing: the accelerations of the ramps, and that Stop, faults and inactivity use them
too; limits bound norms; the velocity changes evenly within a tick; a command takes effect half-way through its RPC;
redundancy (least squares); a twist slows at a joint limit and lasts, at a zone it is dropped; the tool's twist is
reported in the base's frame; the arm's state while it moves (`busy_state`); abort codes; a twist that is not finite,
and UDP for anything but feedback, are refused; any session may Stop; a silent connection stops the arm
(`inactivity_stops`), CloseSession does not (`close_stops`) but gives up control; the soft limits at first; what
silences the keep-alive for good.
"""

import argparse
import builtins
import collections
import concurrent.futures
import errno
import functools
import heapq
import itertools
import json
import math
import multiprocessing.connection
import numbers
import os
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

import numpy as np

try:
    import pour_coffee_env as pour
except ImportError:  # started by hand, or imported from elsewhere
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import pour_coffee_env as pour

TICK = 0.025  # s, the arm's command period
HARD = {"twist_linear": 0.5, "twist_angular": 100.0}  # m/s, deg/s
JOINT_HARD = np.round(np.degrees(pour.JOINT_SPEED))  # deg/s
JOINT_ACCELERATION = np.degrees([4.94] * 4 + [9.5] * 3)  # deg/s^2
JOINT_SOFT, JOINT_SOFT_ACCELERATION = np.full(7, math.degrees(0.41)), np.degrees([0.84] * 4 + [8.6] * 3)
POSES = {  # deg
    "Home": pour.SPECIFICATION.home,
    "Retract": (0, -20, 180, -146, 0, -50, 90),
    "Packaging": (0, 120, 180, -140, 0, 50, 90),  # only its name is known
    "Zero": (0,) * 7,
}
E_STOP = 0x800000
TimeoutError_ = concurrent.futures.TimeoutError


# Messages: module, name, fields. A field is a float unless it says otherwise; * repeats it; _@ stands for _x _y _z
MESSAGES = """
Session_pb2 CreateSessionInfo username:str password:str \
session_inactivity_timeout:uint connection_inactivity_timeout:uint
Common_pb2 Empty
Common_pb2 NotificationHandle identifier:uint
Common_pb2 NotificationOptions type:int rate_m_sec:uint threshold_value
DeviceConfig_pb2 FirmwareVersion firmware_version:uint
Base_pb2 ServoingModeInformation servoing_mode:int
Base_pb2 Twist linear_@ angular_@
Base_pb2 TwistCommand reference_frame:int twist:Twist
Base_pb2 JointSpeed joint_identifier:uint value duration:uint
Base_pb2 JointSpeeds joint_speeds:JointSpeed* duration:uint
Base_pb2 JointAngle joint_identifier:uint value
Base_pb2 JointAngles joint_angles:JointAngle*
Base_pb2 JointTrajectoryConstraint type:int value
Base_pb2 ConstrainedJointAngles joint_angles:JointAngles constraint:JointTrajectoryConstraint
Base_pb2 Pose x y z theta_@
Base_pb2 ConstrainedPose target_pose:Pose
Base_pb2 ActionHandle identifier:uint action_type:int permission:uint
Base_pb2 Action handle:ActionHandle name:str application_data:str \
reach_pose:ConstrainedPose reach_joint_angles:ConstrainedJointAngles
Base_pb2 ActionList action_list:Action*
Base_pb2 RequestedActionType action_type:int
Base_pb2 ActionNotification action_event:int handle:ActionHandle abort_details:int
Base_pb2 ArmStateInformation active_state:int
Base_pb2 ArmStateNotification active_state:int
Base_pb2 ActuatorInformation count:uint
Base_pb2 OperatingModeInformation operating_mode:int
Base_pb2 Finger finger_identifier:uint value
Base_pb2 Gripper finger:Finger*
Base_pb2 GripperCommand mode:int gripper:Gripper duration:uint
Base_pb2 GripperRequest mode:int
Base_pb2 Point x y z
Base_pb2 RotationMatrixRow column1 column2 column3
Base_pb2 RotationMatrix row1:RotationMatrixRow row2:RotationMatrixRow row3:RotationMatrixRow
Base_pb2 ZoneShape shape_type:int origin:Point orientation:RotationMatrix dimensions:float* envelope_thickness
Base_pb2 ProtectionZoneHandle identifier:uint permission:uint
Base_pb2 ProtectionZone handle:ProtectionZoneHandle name:str application_data:str is_enabled:bool shape:ZoneShape
Base_pb2 ProtectionZoneList protection_zones:ProtectionZone*
Base_pb2 CompleteProductConfiguration kin:str model:int model_year:str degree_of_freedom:int end_effector_type:int
BaseCyclic_pb2 MotorFeedback motor_id:uint position velocity current_motor voltage temperature_motor
BaseCyclic_pb2 GripperFeedback status_flags:uint fault_bank_a:uint fault_bank_b:uint motor:MotorFeedback*
BaseCyclic_pb2 InterconnectFeedback status_flags:uint imu_acceleration_@ imu_angular_velocity_@ voltage \
fault_bank_a:uint fault_bank_b:uint gripper_feedback:GripperFeedback
BaseCyclic_pb2 ActuatorFeedback command_id:uint status_flags:uint jitter_comm:uint position velocity torque \
current_motor voltage temperature_motor temperature_core fault_bank_a:uint fault_bank_b:uint \
warning_bank_a:uint warning_bank_b:uint
BaseCyclic_pb2 BaseFeedback active_state_connection_identifier:uint active_state:int arm_voltage arm_current \
temperature_cpu temperature_ambient imu_acceleration_@ imu_angular_velocity_@ tool_pose_@ tool_pose_theta_@ \
tool_twist_linear_@ tool_twist_angular_@ tool_external_wrench_force_@ tool_external_wrench_torque_@ \
fault_bank_a:uint fault_bank_b:uint warning_bank_a:uint warning_bank_b:uint \
commanded_tool_pose_@ commanded_tool_pose_theta_@
BaseCyclic_pb2 Feedback frame_id:uint base:BaseFeedback actuators:ActuatorFeedback* interconnect:InterconnectFeedback
ControlConfig_pb2 ControlModeInformation control_mode:int
ControlConfig_pb2 KinematicLimits control_mode:int twist_linear twist_angular joint_speed_limits:float* \
joint_acceleration_limits:float*
ControlConfig_pb2 KinematicLimitsList kinematic_limits_list:KinematicLimits*
ControlConfig_pb2 TwistLinearSoftLimit control_mode:int twist_linear_soft_limit
ControlConfig_pb2 TwistAngularSoftLimit control_mode:int twist_angular_soft_limit
ControlConfig_pb2 JointSpeedSoftLimits control_mode:int joint_speed_soft_limits:float*
ControlConfig_pb2 CartesianTransform x y z theta_@
ControlConfig_pb2 Position x y z
ControlConfig_pb2 ToolConfiguration tool_transform:CartesianTransform tool_mass tool_mass_center:Position
"""
ENUMS = """
Common_pb2 CartesianReferenceFrame CARTESIAN_REFERENCE_FRAME_UNSPECIFIED=0 CARTESIAN_REFERENCE_FRAME_MIXED=1 \
CARTESIAN_REFERENCE_FRAME_TOOL=2 CARTESIAN_REFERENCE_FRAME_BASE=3
Common_pb2 ArmState ARMSTATE_UNSPECIFIED=0 ARMSTATE_BASE_INITIALIZATION=1 ARMSTATE_IDLE=2 ARMSTATE_INITIALIZATION=3 \
ARMSTATE_IN_FAULT=4 ARMSTATE_MAINTENANCE=5 ARMSTATE_SERVOING_LOW_LEVEL=6 ARMSTATE_SERVOING_READY=7 \
ARMSTATE_SERVOING_PLAYING_SEQUENCE=8 ARMSTATE_SERVOING_MANUALLY_CONTROLLED=9 ARMSTATE_BRAKE_RELEASING=10
Base_pb2 ServoingMode UNSPECIFIED_SERVOING_MODE=0 SINGLE_LEVEL_SERVOING=2 LOW_LEVEL_SERVOING=3 BYPASS_SERVOING=4
Base_pb2 OperatingMode UNSPECIFIED_OPERATING_MODE=0 MAINTENANCE_MODE=1 UPDATE_MODE=2 UPDATE_COMPLETED_MODE=3 \
UPDATE_FAILED_MODE=4 SHUTTING_DOWN_MODE=5 RUN_MODE=6 UPDATING_DEVICE_MODE=7
Base_pb2 ActionType UNSPECIFIED_ACTION=0 REACH_POSE=6 REACH_JOINT_ANGLES=7
Base_pb2 ActionEvent UNSPECIFIED_ACTION_EVENT=0 ACTION_END=1 ACTION_ABORT=2 ACTION_PAUSE=3 ACTION_START=4 \
ACTION_PREPROCESS_START=5 ACTION_PREPROCESS_ABORT=6 ACTION_PREPROCESS_END=7 ACTION_POSTPROCESS_START=8 \
ACTION_POSTPROCESS_ABORT=9 ACTION_POSTPROCESS_END=10 ACTION_FEEDBACK=11
Base_pb2 GripperMode UNSPECIFIED_GRIPPER_MODE=0 GRIPPER_FORCE=1 GRIPPER_SPEED=2 GRIPPER_POSITION=3
Base_pb2 ShapeType UNSPECIFIED_SHAPE=0 CYLINDER=1 SPHERE=2 RECTANGULAR_PRISM=3
Base_pb2 SafetyIdentifier JOINT_FAULT=16 UNABLE_TO_REACH_POSE=1024 MAXIMUM_CURRENT=8192 \
EMERGENCY_STOP_ACTIVATED=8388608 EMERGENCY_LINE_ACTIVATED=16777216 ARM_INTO_ILLEGAL_POSITION=1073741824
ControlConfig_pb2 ControlMode UNSPECIFIED_CONTROL_MODE=0 ANGULAR_JOYSTICK=1 CARTESIAN_JOYSTICK=2 ANGULAR_TRAJECTORY=4 \
CARTESIAN_TRAJECTORY=5 CARTESIAN_ADMITTANCE=6 JOINT_ADMITTANCE=7 NULL_SPACE_ADMITTANCE=8 FORCE_CONTROL=10 \
FORCE_CONTROL_MOTION_RESTRICTED=11 CARTESIAN_WAYPOINT_TRAJECTORY=12 IDLE=13
Errors_pb2 ErrorCodes ERROR_NONE=0 ERROR_PROTOCOL_SERVER=1 ERROR_PROTOCOL_CLIENT=2 ERROR_DEVICE=3 ERROR_INTERNAL=4
Errors_pb2 SubErrorCodes SUB_ERROR_NONE=0 METHOD_FAILED=1 UNIMPLEMENTED=2 INVALID_PARAM=3 UNSUPPORTED_SERVICE=4 \
UNSUPPORTED_METHOD=5 INVALID_SESSION=12 INVALID_PASSWORD=15 USER_NOT_FOUND=16 ENTITY_NOT_FOUND=17 \
ROBOT_MOVEMENT_IN_PROGRESS=18 ROBOT_NOT_MOVING=19 ROBOT_NOT_READY=21 ROBOT_IN_FAULT=22 ROBOT_IN_MAINTENANCE=23 \
ROBOT_IN_EMERGENCY_STOP=25 DEVICE_NOT_READY=51 INVALID_USER_SESSION_ACCESS=54 CONTROL_MANUAL_STOP=55 \
CONTROL_OUTSIDE_WORKSPACE=56 CONTROL_JOINT_POSITION_LIMIT=65 WRONG_SERVOING_MODE=75 SESSION_NOT_IN_CONTROL=130 \
METHOD_TIMEOUT=131
"""
# Client, method, what it takes, what it returns; ! moves the arm
RPCS = """
Base SetServoingMode ServoingModeInformation Empty
Base GetServoingMode Empty ServoingModeInformation
Base GetArmState Empty ArmStateInformation
Base GetOperatingMode Empty OperatingModeInformation
Base GetActuatorCount Empty ActuatorInformation
Base GetProductConfiguration Empty CompleteProductConfiguration
Base GetMeasuredCartesianPose Empty Pose
Base GetMeasuredJointAngles Empty JointAngles
Base ComputeForwardKinematics JointAngles Pose
Base ReadAllActions RequestedActionType ActionList
Base ExecuteActionFromReference! ActionHandle Empty
Base ExecuteAction! Action Empty
Base SendTwistCommand! TwistCommand Empty
Base SendJointSpeedsCommand! JointSpeeds Empty
Base SendGripperCommand! GripperCommand Empty
Base GetMeasuredGripperMovement GripperRequest Gripper
Base StopAction Empty Empty
Base Stop Empty Empty
Base ApplyEmergencyStop Empty Empty
Base ClearFaults Empty Empty
Base CreateProtectionZone ProtectionZone ProtectionZoneHandle
Base ReadAllProtectionZones Empty ProtectionZoneList
Base DeleteProtectionZone ProtectionZoneHandle Empty
Base OnNotificationActionTopic NotificationOptions NotificationHandle
Base OnNotificationArmStateTopic NotificationOptions NotificationHandle
Base Unsubscribe NotificationHandle Empty
BaseCyclic RefreshFeedback Empty Feedback
ControlConfig GetKinematicHardLimits Empty KinematicLimits
ControlConfig GetKinematicSoftLimits ControlModeInformation KinematicLimits
ControlConfig GetAllKinematicSoftLimits Empty KinematicLimitsList
ControlConfig SetTwistLinearSoftLimit TwistLinearSoftLimit Empty
ControlConfig SetTwistAngularSoftLimit TwistAngularSoftLimit Empty
ControlConfig SetJointSpeedSoftLimits JointSpeedSoftLimits Empty
ControlConfig ResetTwistLinearSoftLimit ControlModeInformation TwistLinearSoftLimit
ControlConfig ResetTwistAngularSoftLimit ControlModeInformation TwistAngularSoftLimit
ControlConfig ResetJointSpeedSoftLimits ControlModeInformation JointSpeedSoftLimits
ControlConfig GetToolConfiguration Empty ToolConfiguration
ControlConfig SetToolConfiguration ToolConfiguration Empty
DeviceConfig GetFirmwareVersion Empty FirmwareVersion
"""
TYPES, CONSTANTS, SIGNATURES = {}, {}, {}  # filled below
Call = collections.namedtuple("Call", "time method payload timeout_ms thread")
Sample = collections.namedtuple("Sample", "time position velocity joints")  # s, m, m/s, rad


def checked(kind, value):
    """A scalar as protobuf would store it, or its error."""
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a string")
        return value
    if not isinstance(value, numbers.Real if kind == "float" else numbers.Integral):
        raise TypeError(f"{value!r} is not {'a number' if kind == 'float' else 'an integer'}")
    if kind == "bool":
        return bool(value)
    if kind == "float":
        try:
            return struct.unpack("f", struct.pack("f", value))[0]
        except OverflowError:
            return math.copysign(math.inf, value)
    if not (0 if kind == "uint" else -(2**31)) <= value < 2 ** (32 if kind == "uint" else 31):
        raise ValueError(f"{value} is out of range for {kind}32")
    return int(value)


class Message:
    """As strict as protobuf's; `FIELDS` is name -> (kind, whether repeated)."""

    __slots__ = ("_values", "_parent", "_present")
    FIELDS = {}

    def __init__(self, **values):
        for slot, value in (("_values", {}), ("_parent", None), ("_present", False)):
            object.__setattr__(self, slot, value)
        for name, value in values.items():
            kind, repeated = self._field(name)
            if repeated:
                getattr(self, name).extend(value)
            elif kind in TYPES:
                getattr(self, name).MergeFrom(value if isinstance(value, Message) else TYPES[kind](**value))
            else:
                setattr(self, name, value)

    def _field(self, name):
        if name not in self.FIELDS:
            raise AttributeError(f"{type(self).__name__} has no field {name}")
        return self.FIELDS[name]

    def _touch(self):
        object.__setattr__(self, "_present", True)
        if self._parent is not None:
            self._parent._touch()

    def __getattr__(self, name):
        kind, repeated = self._field(name)
        if name not in self._values:
            if not repeated and kind not in TYPES:
                return {"str": "", "bool": False, "float": 0.0}.get(kind, 0)
            child = Repeated(kind) if repeated else TYPES[kind]()
            object.__setattr__(child, "_parent", self)
            self._values[name] = child
        return self._values[name]

    def __setattr__(self, name, value):
        kind, repeated = self._field(name)
        if repeated or kind in TYPES:
            raise AttributeError(f"{type(self).__name__}.{name} cannot be assigned to")
        self._values[name] = checked(kind, value)
        self._touch()

    def HasField(self, name):
        if name not in self.FIELDS or self.FIELDS[name][1] or self.FIELDS[name][0] not in TYPES:
            raise ValueError(f"{type(self).__name__}.{name} is no message")
        return name in self._values and self._values[name]._present

    def Clear(self):
        self._values.clear()
        self._touch()

    def MergeFrom(self, other):
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} is not {type(other).__name__}")
        for name, value in other._values.items():
            kind, repeated = self.FIELDS[name]
            if repeated:
                getattr(self, name).extend(value)
            elif kind in TYPES:
                if value._present:
                    getattr(self, name).MergeFrom(value)
            elif value:
                self._values[name] = value
        self._touch()

    def CopyFrom(self, other):
        if other is not self:
            self._values.clear()
            self.MergeFrom(other)

    def plain(self):
        """As a dict: all its scalars and lists, and the messages in it that were set."""
        out = {}
        for name, (kind, repeated) in self.FIELDS.items():
            if repeated:
                out[name] = [item.plain() if kind in TYPES else item for item in getattr(self, name)]
            elif kind not in TYPES:
                out[name] = getattr(self, name)
            elif self.HasField(name):
                out[name] = getattr(self, name).plain()
        return out

    def __eq__(self, other):
        return type(other) is type(self) and self.plain() == other.plain()

    __hash__ = None

    def __repr__(self):
        return f"{type(self).__name__}({self.plain()})"


class Repeated(collections.abc.MutableSequence):
    def __init__(self, kind):
        self.kind, self.items, self._parent = kind, [], None

    def _made(self, value):
        if self.kind not in TYPES:
            return checked(self.kind, value)
        made = TYPES[self.kind](**value) if isinstance(value, dict) else TYPES[self.kind]()
        if not isinstance(value, dict):
            made.CopyFrom(value)
        object.__setattr__(made, "_parent", self)
        return made

    def _touch(self):
        if self._parent is not None:
            self._parent._touch()

    def add(self, **values):
        if self.kind not in TYPES:
            raise AttributeError("add")
        self.append(values)
        return self.items[-1]

    def insert(self, index, value):
        self.items.insert(index, self._made(value))
        self._touch()

    def __setitem__(self, index, value):
        if self.kind in TYPES:
            raise TypeError("a repeated message cannot be assigned to")
        self.items[index] = [self._made(v) for v in value] if isinstance(index, slice) else self._made(value)
        self._touch()

    def __getitem__(self, index):
        return self.items[index]

    def __delitem__(self, index):
        del self.items[index]
        self._touch()

    def __len__(self):
        return len(self.items)

    def __eq__(self, other):
        return list(self) == list(other)

    def __repr__(self):
        return repr(self.items)


class Enum:
    def __init__(self, name, numbers):
        self.name, self.numbers = name, numbers

    def Name(self, number):
        for name, value in self.numbers.items():
            if value == number:
                return name
        raise ValueError(f"{self.name} has no {number}")

    def Value(self, name):
        if name not in self.numbers:
            raise ValueError(f"{self.name} has no {name}")
        return self.numbers[name]

    def keys(self):
        return list(self.numbers)

    def values(self):
        return list(self.numbers.values())

    def items(self):
        return list(self.numbers.items())


def lines(table):
    return [line.split() for line in table.strip().splitlines()]


NAMES = collections.defaultdict(dict)  # module -> what is in it
for module, name, *fields in lines(MESSAGES):
    columns = {}
    for field in fields:
        field, _, kind = field.partition(":")
        for axis in ("x", "y", "z") if field.endswith("@") else ("",):
            columns[field.replace("@", axis)] = (kind.rstrip("*") or "float", kind.endswith("*"))
    TYPES[name] = NAMES[module][name] = type(name, (Message,), {"FIELDS": columns, "__slots__": ()})
for module, name, *members in lines(ENUMS):
    numbered = {key: int(number) for key, number in (member.split("=") for member in members)}
    NAMES[module].update(numbered, **{name: Enum(name, numbered)})
    CONSTANTS.update(numbered)
NAMES["Base_pb2"].update(NAMES["Common_pb2"])
for client, name, takes, gives in lines(RPCS):
    SIGNATURES[name.rstrip("!")] = client, takes, gives, name.endswith("!")


class KException(Exception):
    def __init__(self, error_sub_code=0, error_code=None, message=""):
        if error_code is None:
            error_code = 1 if error_sub_code <= 16 else 3
        self.error = types.SimpleNamespace(error_code=error_code, error_sub_code=error_sub_code)
        code, sub = NAMES["Errors_pb2"]["ErrorCodes"].numbers, NAMES["Errors_pb2"]["SubErrorCodes"].numbers
        code, sub = ({v: k for k, v in n.items()} for n in (code, sub))
        who = "Client" if isinstance(self, KClientException) else "Server"
        super().__init__(f"{who} error name={code.get(error_code)}, sub name={sub.get(error_sub_code)} => {message}")


class KServerException(KException):
    def get_error_code(self):
        return self.error.error_code

    def get_error_sub_code(self):
        return self.error.error_sub_code


class KClientException(KException):
    pass


class RealClock:
    now = staticmethod(time.monotonic)  # the same in all processes of a machine
    sleep = advance = staticmethod(time.sleep)


class VirtualClock:
    """Time that passes only in `advance` (or `sleep`), in whichever thread calls it, and there runs what is due.

    A thread that loops over `sleep` would run off with it: its work belongs in `every`.
    """

    def __init__(self, start=0.0):
        self.time, self.queue, self.lock, self.count = start, [], threading.RLock(), itertools.count()

    def now(self):
        return self.time

    def every(self, period, function):
        """Calls function() each period (s), from within `advance`, until it returns False."""
        self._push(self.time, 1, period, function)

    def _push(self, start, k, period, function):
        heapq.heappush(self.queue, (start + k * period, next(self.count), start, k, period, function))

    def advance(self, seconds):
        with self.lock:
            end = self.time + max(0.0, seconds)
            while self.queue and self.queue[0][0] <= end + 1e-9:
                due, _, start, k, period, function = heapq.heappop(self.queue)
                self.time = max(self.time, due)
                if function() is not False:
                    self._push(start, k + 1, period, function)
            self.time = max(self.time, end)

    sleep = advance


def bounded(vector, most):
    return vector * min(1.0, most / max(np.linalg.norm(vector), 1e-12))


def euler(R):
    """Degrees about the fixed x, y, z."""
    return np.degrees(pour.tait_bryan(R))[::-1]


def rotation(x, y, z):
    """From degrees about the fixed x, y, z."""
    x, y, z = np.radians([x, y, z])
    Ry = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    Rz = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return Rz @ Ry @ pour.rotation_x(x)


def wrapped(angle):
    return (angle + math.pi) % (2 * math.pi) - math.pi


def joints_at(position):
    """Joint angles (deg) with the mug upright at a position (m), from Home."""
    q = np.radians(POSES["Home"])
    for _ in range(100):
        p, R, J = pour.kinematics(q)
        q = q + np.linalg.pinv(J) @ np.concatenate([np.subtract(position, p), 0.5 * np.cross(R.T, np.eye(3)).sum(0)])
    return np.degrees(q).tolist()


class FakeArm:
    """The arm and its base. Tests read `calls`, `motion`, `position`, `speed`..., and set what is below "on demand"."""

    def __init__(
        self,
        clock=None,
        acceleration=5.0,  # m/s^2, of the twist's linear part
        spin_acceleration=10.0,  # rad/s^2
        latency=0.025,  # s, an RPC over TCP
        udp_latency=0.002,  # s, feedback over UDP
        joints=POSES["Home"],  # deg
        inactivity_stops=True,  # whether connection_inactivity_timeout does anything
        close_stops=False,  # whether CloseSession ends the session's motion
        control_timeout=7.5,  # s until another session may take control
        history=200_000,  # samples of motion, and calls
        password="admin",
    ):
        self.clock = clock or RealClock()
        self.acceleration, self.spin_acceleration = acceleration, spin_acceleration
        self.latency, self.udp_latency = latency, udp_latency
        self.inactivity_stops, self.close_stops, self.control_timeout = inactivity_stops, close_stops, control_timeout
        self.password, self.lock = password, threading.RLock()
        self.calls, self.motion = collections.deque(maxlen=history), collections.deque(maxlen=history)
        self.keep_alives, self.sessions, self.owner, self.owned_at = 0, {}, None, -math.inf
        self.changer = 0  # active_state_connection_identifier: the last connection whose command set the arm moving
        # on demand
        self.link = "up"  # "cable out": no reply arrives; "down": the connection is reset
        self.process = "alive"  # "killed", "frozen": no keep-alive is heard
        self.feedback = "live"  # "frozen": what was last reported; "nan"
        self.jump = (0.0, 0.0, 0.0)  # m, added to the reported position
        self.wrench = (0.0,) * 6  # N, N m, reported
        self.busy_state = CONSTANTS["ARMSTATE_SERVOING_READY"]  # reported while the arm moves
        self.operating_mode = CONSTANTS["RUN_MODE"]
        self.sticky_faults = 0  # bits that ClearFaults does not clear
        self.actuator_faults = 0  # bits that joint 4 reports, and nothing else does
        self.stop_refused_at_rest = False  # Stop raises ROBOT_NOT_MOVING
        self.faults, self.failures, self.agenda, self.subscriptions = 0, [], [], {}
        self.ids = itertools.count(1)
        # robot
        self.servoing = CONSTANTS["SINGLE_LEVEL_SERVOING"]
        self.tool = TYPES["ToolConfiguration"](tool_transform=dict(z=pour.TOOL))
        self.soft = {mode: self._limits(mode) for mode in (1, 2, 4, 5)}
        self.actions = [
            TYPES["Action"](
                handle=dict(identifier=i, action_type=7),
                name=name,
                reach_joint_angles=dict(joint_angles=self._angles(angles)),
            )
            for i, (name, angles) in enumerate(POSES.items(), 1)
        ]
        self.zones, self.gripper, self.gripper_goal, self.gripper_rate = [], 0.0, 0.0, 0.7
        self.start, self.ticks, self.reported, self.state = self.clock.now(), 0, None, None
        self.place(joints)
        if hasattr(self.clock, "every"):
            self.clock.every(TICK, self.look)

    # What a test uses beside the attributes

    def place(self, joints):
        """Puts the arm at these joint angles (deg), at rest."""
        with self.lock:
            self.q, self.qd = np.radians(joints).astype(float), np.zeros(7)
            self.q[1::2] = wrapped(self.q[1::2])
            self.mode, self.going, self.action, self.mover = "rest", np.zeros(6), None, None
            self.pose = self._kinematics(self.q)
            self.twist = self.accelerated = np.zeros(6)

    def fail(self, method, error=None, times=1, after=0, latency=None, executed=False):
        """The next `times` calls of `method` ("*": any RPC), after the first `after`, go wrong.

        error: "hang" (no reply within the timeout), an exception or its class, a sub-code for KServerException, or
        None, with `latency` (s); a latency beyond the timeout raises as well, and the command still arrives, late.
        executed: whether the robot did what it was asked, and only the answer is lost. Beside the RPCs, `method` may be
        connect, disconnect, CreateSession, CloseSession, KeepAlive or Notification (that is then lost).
        """
        with self.lock:
            error = "lost" if method == "Notification" else error
            self.failures.append(dict(method=method, error=error, times=times, after=after, latency=latency))
            self.failures[-1]["executed"] = executed

    def fault(self, bits=0x10):
        """A fault of the robot: it stops and refuses to move until ClearFaults."""
        with self.lock:
            self.faults |= bits
            self._halt(CONSTANTS["ROBOT_IN_EMERGENCY_STOP" if bits & E_STOP else "ROBOT_IN_FAULT"])

    def take_control(self):
        """Another session (the web application, say) sends a control command."""
        self.owner, self.owned_at, self.changer = "another", self.clock.now(), 999

    def set(self, name, value):
        setattr(self, name, value)

    def at(self, delay, name, *arguments):
        """In `delay` seconds calls one of these methods: world.at(0.5, "fault", 0x10), at(1, "set", "link", "down")."""
        with self.lock:
            self.agenda.append((self.clock.now() + delay, name, arguments))

    def samples(self, since=-math.inf):
        """The motion after a time, as a list."""
        self.look()
        with self.lock:
            newer = itertools.takewhile(lambda sample: sample.time > since, reversed(self.motion))
            return list(newer)[::-1]

    def look(self):
        """Brings the arm up to now."""
        with self.lock:
            now = self.clock.now()
            while self.start + (self.ticks + 1) * TICK <= now + 1e-9:
                self.ticks += 1
                self._tick(self.start + self.ticks * TICK)

    def _now(read):
        def value(self):
            self.look()
            with self.lock:
                return read(self)

        return property(value)

    position = _now(lambda self: self.pose[0].copy())  # m
    rotation = _now(lambda self: self.pose[1].copy())
    velocity = _now(lambda self: self.twist[:3].copy())  # m/s
    speed = _now(lambda self: float(np.linalg.norm(self.twist[:3])))
    joints = _now(lambda self: np.degrees(self.q))  # deg, not wrapped
    arm_state = _now(lambda self: self._arm_state())

    # The way in: every RPC of every client, in this process or another

    def call(self, session, method, payload=None, timeout_ms=10000, thread="", udp=False):
        """One RPC from a connection -> its reply as a dict; `session` names the connection."""
        timeout = timeout_ms / 1000
        with self.lock:
            self.look()
            self.calls.append(Call(self.clock.now(), method, payload or {}, timeout_ms, thread))
            failure = self._failure(method) or {}
        if method == "disconnect":
            if self.link != "up":
                raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
            if failure:
                raise failure["error"]
            return {}
        if self.link == "down":
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        error, latency = failure.get("error"), failure.get("latency")
        if latency is None:
            latency = self.udp_latency if udp else self.latency
        if method == "connect":
            latency = 0.0
        do = functools.partial(self._do, session, method, payload or {}, udp)
        if error is not None and failure["executed"]:
            do()
        if self.link == "cable out" or error == "hang" or latency > timeout:
            if latency > timeout and error is None and self.link == "up":
                self.at(latency / 2, "_late", do)
            self.clock.sleep(timeout)
            raise TimeoutError_()
        self.clock.sleep(latency / 2)
        if error is not None:
            raise error
        reply = do()
        self.clock.sleep(latency / 2)
        if self.link == "down":
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return reply

    def keep_alive(self, session):
        with self.lock:
            self.look()
            failure = self._failure("KeepAlive")
            if self.link == "down":
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            if self.link == "cable out" or failure and failure["error"] == "hang":
                raise TimeoutError_()
            if failure:
                raise failure["error"]
            if self.process == "alive" and session in self.sessions:
                self.keep_alives += 1
                self.sessions[session].heard = self.clock.now()

    def poll(self, session):
        """The notifications that wait for a connection: (subscription, message's type, dict)."""
        with self.lock:
            self.look()
            if self.link != "up" or session not in self.sessions:
                return []
            waiting, self.sessions[session].waiting = self.sessions[session].waiting, []
            return waiting

    def _failure(self, method):
        for failure in self.failures:
            named = failure["method"] == method or failure["method"] == "*" and method in SIGNATURES
            if named and failure["times"] > 0:
                if failure["after"] > 0:
                    failure["after"] -= 1
                    continue
                failure["times"] -= 1
                error = failure["error"]
                if isinstance(error, int):
                    error = KServerException(error)
                elif isinstance(error, type):
                    error = error()
                return {**failure, "error": error}

    def _late(self, do):
        try:
            do()
        except KException:
            pass  # nobody waits for it any more

    def _do(self, session, method, payload, udp):
        """What the robot does of an RPC, its reply as a dict; raises KServerException."""
        with self.lock:
            self.look()
            now, refuse = self.clock.now(), KServerException
            if method == "connect":
                return {}
            if method == "CreateSession":
                if payload["username"] != "admin" or payload["password"] != self.password:
                    raise refuse(CONSTANTS["INVALID_PASSWORD"])
                self.sessions[session] = types.SimpleNamespace(
                    heard=now, open=True, waiting=[], number=len(self.sessions) + 1, **payload
                )
                return {}
            known = self.sessions.get(session)
            if known is None or not known.open:
                raise refuse(CONSTANTS["INVALID_SESSION"])
            known.heard = now
            if method == "CloseSession":
                known.open = False
                self.owner = None if self.owner == session else self.owner
                if self.close_stops and self.mover == session:
                    self._halt()
                return {}
            client, takes, gives, moves = SIGNATURES[method]
            if udp and client != "BaseCyclic":
                raise refuse(CONSTANTS["UNSUPPORTED_SERVICE"])
            message = TYPES[takes](**payload)
            if moves:
                if self.faults:
                    raise refuse(CONSTANTS["ROBOT_IN_FAULT"])
                if self.servoing != CONSTANTS["SINGLE_LEVEL_SERVOING"]:
                    raise refuse(CONSTANTS["WRONG_SERVOING_MODE"])
                if self.owner not in (None, session) and now - self.owned_at < self.control_timeout:
                    raise refuse(CONSTANTS["SESSION_NOT_IN_CONTROL"])
                if self.action and method != "SendGripperCommand":
                    raise refuse(CONSTANTS["ROBOT_MOVEMENT_IN_PROGRESS"])
                self.owner, self.owned_at = session, now
                self.changer = known.number
                if method != "SendGripperCommand":
                    self.mover = session
            if method.startswith("OnNotification"):
                number = next(self.ids)
                self.subscriptions[number] = session, method
                return {"identifier": number}
            reply = SIMPLE[method](self, message) if method in SIMPLE else getattr(self, f"_{method}")(message)
            return {} if reply is None else reply if isinstance(reply, dict) else reply.plain()

    # Motion

    def _kinematics(self, q):
        """The tool's position, rotation and Jacobian."""
        p, R, J = pour.kinematics(q)
        R, t = R @ pour.MUG_IN_TOOL.T, self.tool.tool_transform
        arm = R @ (t.x, t.y, t.z - pour.TOOL)
        J[:3] += np.cross(J[3:].T, arm).T
        return p + arm, R @ rotation(t.theta_x, t.theta_y, t.theta_z), J

    def _solve(self, J, twist):
        """Joint speeds for a twist: the last joint rolls, the others' least squares, damped near singularities."""
        roll = J[3:, 6] @ twist[3:]
        U, s, Vt = np.linalg.svd(J, full_matrices=False)
        qd = Vt.T @ (s / (s * s + max(0.0, 0.05**2 - s[-1] ** 2)) * (U.T @ (twist - roll * J[:, 6])))
        qd[6] += roll
        return qd

    def _tick(self, now):
        due = [event for event in self.agenda if event[0] <= now + 1e-9]
        self.agenda = [event for event in self.agenda if event[0] > now + 1e-9]
        for _, name, arguments in due:
            getattr(self, name)(*arguments)
        for name, session in self.sessions.items():
            silent = 1000 * (now - session.heard)
            if self.inactivity_stops and self.mover == name and silent > session.connection_inactivity_timeout:
                self._halt()
                self.mover = None
            if session.open and silent > session.session_inactivity_timeout:
                session.open = False
        before = self.twist
        mode = self.mode
        getattr(self, f"_{mode}")()
        if mode != "rest":
            self.pose = self._kinematics(self.q)
        if mode != "twisting":
            self.twist = self.pose[2] @ self.qd
        self.accelerated = (self.twist - before) / TICK
        step = self.gripper_rate * TICK
        self.gripper += min(step, max(-step, self.gripper_goal - self.gripper))
        p, v, q = self.pose[0].tolist(), self.twist[:3].tolist(), self.q.tolist()
        self.motion.append(Sample(now, tuple(p), tuple(v), tuple(q)))
        state = self._arm_state()
        if state != self.state:
            self.state = state
            self._notify("OnNotificationArmStateTopic", TYPES["ArmStateNotification"](active_state=state))

    def _rest(self):
        self.qd = np.zeros(7)

    def _twisting(self):
        (p, R, J), wanted, before = self.pose, self.wanted.copy(), self.going[:3].copy()
        if self.frame == CONSTANTS["CARTESIAN_REFERENCE_FRAME_TOOL"]:
            wanted[:3] = R @ wanted[:3]
        if self.frame != CONSTANTS["CARTESIAN_REFERENCE_FRAME_BASE"]:
            wanted[3:] = R @ wanted[3:]
        way = self.going[:3] * (TICK + np.linalg.norm(self.going[:3]) / (2 * self.acceleration))
        if any(self._inside(zone, p + way) and not self._inside(zone, p) for zone in self.zones):
            self.wanted = wanted = np.zeros(6)
        self.going[:3] += bounded(wanted[:3] - self.going[:3], self.acceleration * TICK)
        self.going[3:] += bounded(wanted[3:] - self.going[3:], self.spin_acceleration * TICK)
        if not self.going.any() and not self.wanted.any():
            self.mode = "rest"
        mean = np.append((before + self.going[:3]) / 2, self.going[3:])  # the velocity changes evenly within the tick
        J = self._kinematics(self.q + self._solve(J, mean) * TICK / 2)[2]
        qd, end = self._solve(J, mean), self._solve(J, self.going)
        scale = min(1.0, *(min(1.0, (self._room(x) / np.maximum(np.abs(x), 1e-12)).min()) for x in (qd, end)))
        self.going *= scale
        self.q = self.q + scale * qd * TICK
        self.qd = scale * end
        self.twist = J @ self.qd

    def _room(self, qd):
        """rad/s that each joint may turn in its direction: no faster than lets it end at its limit."""
        return np.minimum(pour.JOINT_SPEED, np.maximum(0, pour.JOINT_LIMIT - np.sign(qd) * self.q) / (4 * TICK))

    def _turning(self):
        change, most = self.joint_wanted - self.qd, np.radians(JOINT_ACCELERATION) * TICK
        qd = self.qd + change * min(1.0, (most / np.maximum(np.abs(change), 1e-12)).min())
        self.qd = np.clip(qd, -self._room(qd), self._room(qd))
        self.q = self.q + self.qd * TICK
        if not self.qd.any() and not self.joint_wanted.any():
            self.mode = "reaching" if self.action else "rest"

    def _reaching(self):
        rest = self.goal - self.q
        most = np.abs(rest).max()
        direction = np.abs(rest) / max(most, 1e-12)
        speed, rate = (
            (np.radians(limit) / np.maximum(direction, 1e-12)).min()
            for limit in (np.minimum(self.soft[4].joint_speed_limits, JOINT_HARD), JOINT_SOFT_ACCELERATION)
        )
        brake = math.sqrt(rate * rate * TICK * TICK / 4 + 2 * rate * most) - rate * TICK / 2
        speed = min(speed, self.pace + rate * TICK, brake)
        if most < 1e-6 or speed * TICK >= most or most < rate * TICK * TICK:
            self.q, self.qd, self.mode = self.goal.copy(), np.zeros(7), "rest"
            self._finish("ACTION_END")
            return
        self.pace, self.qd = speed, rest / most * speed
        self.q = self.q + self.qd * TICK

    def _halt(self, code=None):
        """Ramps down whatever moves."""
        if self.action:
            self._finish("ACTION_ABORT", CONSTANTS["CONTROL_MANUAL_STOP"] if code is None else code)
        if self.mode == "twisting":
            self.wanted = np.zeros(6)
        elif self.mode != "rest":
            self.mode, self.joint_wanted = "turning", np.zeros(7)

    def _finish(self, event, code=0):
        action, self.action = self.action, None
        self._action_event(action, event, code)

    def _action_event(self, action, event, code=0):
        message = dict(action_event=CONSTANTS[event], abort_details=code, handle=action.handle)
        self._notify("OnNotificationActionTopic", TYPES["ActionNotification"](**message))

    def _notify(self, topic, message):
        for number, (session, subject) in self.subscriptions.items():
            if subject == topic and self.sessions[session].open and not self._failure("Notification"):
                self.sessions[session].waiting.append((number, type(message).__name__, message.plain()))

    def _inside(self, zone, point):
        shape = zone.shape
        rows = [getattr(shape.orientation, f"row{i}") for i in (1, 2, 3)]
        R, size = np.array([[row.column1, row.column2, row.column3] for row in rows]), list(shape.dimensions)
        x, y, z = (R if R.any() else np.eye(3)).T @ (point - (shape.origin.x, shape.origin.y, shape.origin.z))
        if not zone.is_enabled or not size:
            return False
        if shape.shape_type == CONSTANTS["RECTANGULAR_PRISM"]:
            return bool((np.abs([x, y, z]) < np.array(size) / 2).all())
        if shape.shape_type == CONSTANTS["SPHERE"]:
            return math.hypot(x, y, z) < size[0]
        return math.hypot(x, y) < size[0] and abs(z) < size[1] / 2

    def _arm_state(self):
        if self.faults:
            return CONSTANTS["ARMSTATE_IN_FAULT"]
        if self.servoing == CONSTANTS["LOW_LEVEL_SERVOING"]:
            return CONSTANTS["ARMSTATE_SERVOING_LOW_LEVEL"]
        return CONSTANTS["ARMSTATE_SERVOING_READY"] if self.mode == "rest" else self.busy_state

    # What each RPC does; the lock is held

    def _SetServoingMode(self, m):
        self._halt()
        self.servoing = m.servoing_mode

    def _pose_message(self, p, R):
        return TYPES["Pose"](**dict(zip(("x", "y", "z", "theta_x", "theta_y", "theta_z"), (*p, *euler(R)))))

    def _angles(self, degrees):
        return {"joint_angles": [dict(joint_identifier=i, value=float(a) % 360) for i, a in enumerate(degrees)]}

    def _report(self):
        """What the sensors say: position, rotation, twist, acceleration, joints, their speeds, time in ms."""
        if self.feedback != "frozen" or self.reported is None:
            p, R, _ = self.pose
            stamp = round(1000 * (self.clock.now() - self.start))
            self.reported = p + self.jump, R, self.twist, self.accelerated, self.q, self.qd, stamp
        if self.feedback == "nan":
            return (*(value * math.nan for value in self.reported[:-1]), self.reported[-1])
        return self.reported

    def _joint_list(self, items):
        """Seven values of (joint_identifier, value) in degrees -> radians, or INVALID_PARAM."""
        values = {item.joint_identifier: item.value for item in items}
        if sorted(values) != list(range(7)) or not np.isfinite(list(values.values())).all():
            raise KServerException(CONSTANTS["INVALID_PARAM"])
        return np.radians([values[i] for i in range(7)])

    def _RefreshFeedback(self, m):
        p, R, twist, acceleration, q, qd, stamp = self._report()
        angles = euler(R) if np.isfinite(R).all() else np.full(3, math.nan)
        fb = TYPES["Feedback"](frame_id=stamp % 65536)
        groups = {
            "tool_pose_": p,
            "tool_pose_theta_": angles,
            "tool_twist_linear_": twist[:3],
            "tool_twist_angular_": np.degrees(twist[3:]),
            "commanded_tool_pose_": p,
            "commanded_tool_pose_theta_": angles,
            "tool_external_wrench_force_": self.wrench[:3],
            "tool_external_wrench_torque_": self.wrench[3:],
            "imu_acceleration_": (0, 0, 9.81),
        }
        for prefix, values in groups.items():
            for axis, value in zip("xyz", values):
                setattr(fb.base, prefix + axis, float(value))
        fb.base.active_state, fb.base.fault_bank_a = self._arm_state(), self.faults
        fb.base.active_state_connection_identifier = self.changer
        fb.base.arm_voltage, fb.base.arm_current = 24.0, 1.0
        for i in range(7):
            fb.actuators.add(position=float(np.degrees(q[i])) % 360, velocity=float(np.degrees(qd[i])), voltage=24.0)
        fb.actuators[3].fault_bank_a = self.actuator_faults
        for axis, value, turn in zip("xyz", R.T @ (acceleration[:3] + (0, 0, 9.81)), R.T @ np.degrees(twist[3:])):
            setattr(fb.interconnect, f"imu_acceleration_{axis}", float(value))
            setattr(fb.interconnect, f"imu_angular_velocity_{axis}", float(turn))
        fb.interconnect.gripper_feedback.motor.add(motor_id=1, position=100 * self.gripper)
        return fb

    def _SendTwistCommand(self, m):
        t, soft = m.twist, self.soft[CONSTANTS["CARTESIAN_JOYSTICK"]]
        linear = np.array([t.linear_x, t.linear_y, t.linear_z])
        angular = np.array([t.angular_x, t.angular_y, t.angular_z])
        if not np.isfinite([linear, angular]).all() or m.reference_frame not in (1, 2, 3):
            raise KServerException(CONSTANTS["INVALID_PARAM"])
        if self.mode != "twisting":
            self.going = self.twist.copy()
        self.mode, self.frame = "twisting", m.reference_frame
        linear = bounded(bounded(linear, soft.twist_linear), HARD["twist_linear"])
        angular = bounded(bounded(angular, soft.twist_angular), HARD["twist_angular"])
        self.wanted = np.concatenate([linear, np.radians(angular)])

    def _SendJointSpeedsCommand(self, m):
        wanted, most = self._joint_list(m.joint_speeds), np.minimum(self.soft[1].joint_speed_limits, JOINT_HARD)
        self.mode, self.joint_wanted = "turning", np.clip(wanted, -np.radians(most), np.radians(most))

    def _ReadAllActions(self, m):
        if m.action_type not in (0, CONSTANTS["REACH_JOINT_ANGLES"]):
            return TYPES["ActionList"]()
        return TYPES["ActionList"](action_list=self.actions)

    def _ExecuteActionFromReference(self, m):
        for action in self.actions:
            if action.handle.identifier == m.identifier:
                return self._ExecuteAction(action)
        raise KServerException(CONSTANTS["ENTITY_NOT_FOUND"])

    def _ExecuteAction(self, m):
        if m.HasField("reach_joint_angles"):
            goal, known = self._joint_list(m.reach_joint_angles.joint_angles.joint_angles), True
        elif m.HasField("reach_pose"):
            goal, known = self._inverse(m.reach_pose.target_pose)
        else:
            raise KServerException(CONSTANTS["INVALID_PARAM"])
        limited = np.isfinite(pour.JOINT_LIMIT)
        self.goal = np.where(limited, wrapped(goal), self.q + wrapped(goal - self.q))
        self.action = TYPES["Action"]()
        self.action.CopyFrom(m)
        self._action_event(self.action, "ACTION_START")
        if not known or (np.abs(self.goal[limited]) > pour.JOINT_LIMIT[limited]).any():
            return self._halt(CONSTANTS["CONTROL_JOINT_POSITION_LIMIT" if known else "CONTROL_OUTSIDE_WORKSPACE"])
        self.mode, self.pace = "reaching" if self.mode == "rest" else "turning", 0.0
        self.joint_wanted = np.zeros(7)  # it stops first

    def _inverse(self, target):
        q, R_goal = self.q.copy(), rotation(target.theta_x, target.theta_y, target.theta_z)
        for _ in range(200):
            p, R, J = self._kinematics(q)
            turn = 0.5 * np.cross(R.T, R_goal.T).sum(0)
            error = np.concatenate([(target.x, target.y, target.z) - p, turn])
            if np.linalg.norm(error) < 1e-6:
                return q, True
            q = q + np.clip(self._solve(J, error), -0.2, 0.2)
        return q, False

    def _Stop(self, m):
        if self.stop_refused_at_rest and self.mode == "rest":
            raise KServerException(CONSTANTS["ROBOT_NOT_MOVING"])
        self._halt()

    _StopAction = _Stop

    def _SendGripperCommand(self, m):
        value = m.gripper.finger[0].value if len(m.gripper.finger) else 0.0
        if m.mode == CONSTANTS["GRIPPER_POSITION"]:
            self.gripper_goal, self.gripper_rate = min(1.0, max(0.0, value)), 0.7
        elif m.mode == CONSTANTS["GRIPPER_SPEED"]:
            self.gripper_goal, self.gripper_rate = float(value < 0), abs(value)
        else:
            raise KServerException(CONSTANTS["INVALID_PARAM"])

    def _GetMeasuredGripperMovement(self, m):
        moving = self.gripper_rate * (self.gripper != self.gripper_goal)
        value = self.gripper if m.mode == CONSTANTS["GRIPPER_POSITION"] else moving
        return {"finger": [dict(finger_identifier=1, value=value)]}

    def _CreateProtectionZone(self, m):
        m.handle.identifier = next(self.ids)
        self.zones.append(m)
        return m.handle

    def _DeleteProtectionZone(self, m):
        if all(zone.handle.identifier != m.identifier for zone in self.zones):
            raise KServerException(CONSTANTS["ENTITY_NOT_FOUND"])
        self.zones = [zone for zone in self.zones if zone.handle.identifier != m.identifier]

    def _limits(self, mode, soft=True):
        speed, rate = (JOINT_SOFT, JOINT_SOFT_ACCELERATION) if soft and mode == 4 else (JOINT_HARD, JOINT_ACCELERATION)
        lists = dict(joint_speed_limits=speed.tolist(), joint_acceleration_limits=rate.tolist())
        return TYPES["KinematicLimits"](control_mode=mode, **HARD, **lists)

    def _soft(self, m):
        if m.control_mode not in self.soft:
            raise KServerException(CONSTANTS["INVALID_PARAM"])
        return self.soft[m.control_mode]

    def _set_limit(self, name, m):
        value, most = getattr(m, f"{name}_soft_limit"), HARD[name]
        if not 0 <= value <= most * (1 + 1e-6):
            raise KServerException(CONSTANTS["INVALID_PARAM"])
        setattr(self._soft(m), name, value)

    def _reset_limit(self, name, m):
        setattr(self._soft(m), name, HARD[name])
        return {"control_mode": m.control_mode, f"{name}_soft_limit": HARD[name]}

    _SetTwistLinearSoftLimit = functools.partialmethod(_set_limit, "twist_linear")
    _SetTwistAngularSoftLimit = functools.partialmethod(_set_limit, "twist_angular")
    _ResetTwistLinearSoftLimit = functools.partialmethod(_reset_limit, "twist_linear")
    _ResetTwistAngularSoftLimit = functools.partialmethod(_reset_limit, "twist_angular")

    def _SetJointSpeedSoftLimits(self, m):
        values = np.array(m.joint_speed_soft_limits)
        if values.shape != (7,) or not ((0 <= values) & (values <= JOINT_HARD * (1 + 1e-6))).all():
            raise KServerException(CONSTANTS["INVALID_PARAM"])
        self._soft(m).joint_speed_limits[:] = values.tolist()

    def _ResetJointSpeedSoftLimits(self, m):
        values = list(self._limits(m.control_mode).joint_speed_limits)
        self._soft(m).joint_speed_limits[:] = values
        return dict(control_mode=m.control_mode, joint_speed_soft_limits=values)

    def _SetToolConfiguration(self, m):
        self.tool = m
        self.pose = self._kinematics(self.q)


SIMPLE = {  # RPCs that one expression does: (world, message) -> reply
    "GetServoingMode": lambda w, m: dict(servoing_mode=w.servoing),
    "GetArmState": lambda w, m: dict(active_state=w._arm_state()),
    "GetOperatingMode": lambda w, m: dict(operating_mode=w.operating_mode),
    "GetActuatorCount": lambda w, m: dict(count=7),
    "GetProductConfiguration": lambda w, m: TYPES["CompleteProductConfiguration"](kin="fake", degree_of_freedom=7),
    "GetFirmwareVersion": lambda w, m: dict(firmware_version=0x02080000),
    "GetMeasuredCartesianPose": lambda w, m: w._pose_message(*w._report()[:2]),
    "GetMeasuredJointAngles": lambda w, m: w._angles(np.degrees(w._report()[4])),
    "ComputeForwardKinematics": lambda w, m: w._pose_message(*w._kinematics(w._joint_list(m.joint_angles))[:2]),
    "ApplyEmergencyStop": lambda w, m: w.fault(E_STOP),
    "ClearFaults": lambda w, m: w.set("faults", w.faults & w.sticky_faults),
    "ReadAllProtectionZones": lambda w, m: TYPES["ProtectionZoneList"](protection_zones=w.zones),
    "Unsubscribe": lambda w, m: w.subscriptions.pop(m.identifier, None) and None,
    "GetKinematicHardLimits": lambda w, m: w._limits(0, soft=False),
    "GetKinematicSoftLimits": lambda w, m: w._soft(m),
    "GetAllKinematicSoftLimits": lambda w, m: TYPES["KinematicLimitsList"](kinematic_limits_list=w.soft.values()),
    "GetToolConfiguration": lambda w, m: w.tool,
}


# The client's side: what kortex_api itself does, in the process that imports it

WORLD = None  # the one that is installed


class RouterClientSendOptions:
    def __init__(self):
        self.andForget, self.delay_ms, self.timeout_ms = False, 0, 10000

    def getTimeoutInSecond(self):
        return self.timeout_ms / 1000


class TCPTransport:
    udp, port = False, 10000
    numbers = itertools.count(1)

    def __init__(self):
        self.world, self.connected, self.broken, self.callbacks, self.delivering = WORLD, False, False, {}, None
        self.name = f"{os.getpid()}-{next(self.numbers)}"

    def connect(self, ip, port):
        if port != self.port:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nothing listens on port {port}")
        if self.world.link != "up":
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        self.world.call(self.name, "connect", dict(ip=ip, port=port), thread=threading.current_thread().name)
        self.connected, self.sent, self.received = True, self.world.clock.now(), self.world.clock.now()
        repeatedly(self.world.clock, TICK, self._receive, "receive")

    def disconnect(self):
        lost, self.connected = self.broken or not self.connected, False
        if lost:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        self.world.call(self.name, "disconnect", thread=threading.current_thread().name)

    def registerOnFrameCallback(self, callback):
        self.on_frame = callback

    def request(self, method, payload, timeout_ms):
        """One RPC; on the thread that delivers notifications no reply is ever received."""
        if self.broken or not self.connected:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self.sent = self.world.clock.now()
        try:
            reply = self.world.call(
                self.name, method, payload, timeout_ms, threading.current_thread().name, udp=self.udp
            )
        except BrokenPipeError:
            self.broken = True
            raise
        if self.delivering == threading.get_ident():
            self.world.clock.sleep(timeout_ms / 1000)
            raise TimeoutError_()
        self.received = self.world.clock.now()
        return reply

    def _receive(self):
        if not self.connected or self.world is not WORLD:
            return False
        for number, kind, values in self.world.poll(self.name):
            self.delivering = threading.get_ident()
            try:
                if number in self.callbacks:
                    self.callbacks[number](TYPES[kind](**values))
            except Exception:
                traceback.print_exc()
            finally:
                self.delivering = None


class UDPTransport(TCPTransport):
    udp, port = True, 10001


def repeatedly(clock, period, function, name):
    """function() each period until it returns False: by the virtual clock, or in a thread of its own."""
    if hasattr(clock, "every"):
        return clock.every(period, function)

    def loop():
        try:
            while function() is not False:
                time.sleep(period)
        except (OSError, EOFError):
            pass  # the world has gone

    threading.Thread(target=loop, name=f"kortex-{name}", daemon=True).start()


class RouterClient:
    def __init__(self, transport, errorCallback=None):
        self.transport, self.errorCallback, self.active = transport, errorCallback, True

    @staticmethod
    def basicErrorCallback(exception):
        print(f"fake_kortex: {exception}", file=sys.stderr)

    def SetActivationStatus(self, active):
        self.active = active

    def request(self, method, message, gives, options):
        if not self.active:
            raise KClientException(CONSTANTS["METHOD_FAILED"], 2)
        return TYPES[gives](**self.transport.request(method, message.plain(), options.timeout_ms))


class SessionManager:
    """Keeps the session alive behind the caller's back, as the real one does, whatever the caller is busy with."""

    def __init__(self, router, connectionTimeoutCallback=None):
        self.router, self.callback, self.open, self.info = router, connectionTimeoutCallback, False, None

    def CreateSession(self, createSessionInfo, options=RouterClientSendOptions()):
        self.router.request("CreateSession", createSessionInfo, "Empty", options)
        self.info, self.open = createSessionInfo, True
        repeatedly(self.router.transport.world.clock, TICK, self._beat, "keep-alive")

    def CloseSession(self, options=RouterClientSendOptions()):
        self.open = False
        self.router.request("CloseSession", TYPES["Empty"](), "Empty", options)

    def _beat(self):
        transport = self.router.transport
        now = transport.world.clock.now()
        if not self.open or not transport.connected or transport.broken or transport.world is not WORLD:
            return False
        if 1000 * (now - transport.received) > self.info.session_inactivity_timeout:
            if self.callback:
                self.callback()
            return False
        if now - transport.sent < 0.15:
            return None
        transport.sent = now
        try:
            transport.world.keep_alive(transport.name)
            transport.received = now
        except TimeoutError_:
            pass
        except (OSError, KException) as error:  # and nobody is told
            transport.broken |= isinstance(error, BrokenPipeError)
            return False


class Client:
    def __init__(self, router):
        self.router = router


def rpc(name, takes, gives):
    default = RouterClientSendOptions()

    def checked_call(self, message, options):
        if type(message) is not TYPES[takes]:
            raise TypeError(f"{name} takes a {takes}, not {message!r}")
        return self.router.request(name, message, gives, options)

    def subscribe(self, callback, msg, deviceId=0, options=default):
        handle = checked_call(self, msg, options)
        self.router.transport.callbacks[handle.identifier] = callback
        return handle

    def with_input(self, msg, deviceId=0, options=default):
        return checked_call(self, msg, options)

    def without_input(self, deviceId=0, options=default):
        return checked_call(self, TYPES[takes](), options)

    if name.startswith("OnNotification"):
        return subscribe
    return without_input if takes == "Empty" else with_input


def modules():
    made = {}

    def add(path, **names):
        parts = f"kortex_api.{path}".split(".")
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            if name not in made:
                made[name] = types.ModuleType(name)
                made[name].__path__ = []
                if i > 1:
                    setattr(made[".".join(parts[: i - 1])], parts[i - 1], made[name])
        vars(made[".".join(parts)]).update(names)

    add("TCPTransport", TCPTransport=TCPTransport)
    add("UDPTransport", UDPTransport=UDPTransport)
    add("RouterClient", RouterClient=RouterClient, RouterClientSendOptions=RouterClientSendOptions)
    add("SessionManager", SessionManager=SessionManager)
    for error in (KException, KServerException, KClientException):
        add(f"Exceptions.{error.__name__}", **{error.__name__: error})
    for client in ("Base", "BaseCyclic", "ControlConfig", "DeviceConfig"):
        methods = {name: rpc(name, s[1], s[2]) for name, s in SIGNATURES.items() if s[0] == client}
        name = f"{client}Client"
        add(f"autogen.client_stubs.{name}Rpc", **{name: type(name, (Client,), methods)})
    for module, names in NAMES.items():
        add(f"autogen.messages.{module}", **names)
    return made


def install(world=None, clock=None, address=None, **settings):
    """Puts the fake into sys.modules; returns the world behind it: here, or the one that is served at an address."""
    global WORLD
    uninstall()
    WORLD = world or (RemoteArm(address) if address else FakeArm(clock, **settings))
    sys.modules.update(modules())
    return WORLD


def uninstall():
    """Takes it out; what is still connected falls silent."""
    global WORLD
    WORLD = None
    for name in [name for name in sys.modules if name.split(".")[0] == "kortex_api"]:
        del sys.modules[name]


# An arm in a process of its own, which lives on when its client is killed


def packed(error):
    if isinstance(error, type):
        error = error()
    if isinstance(error, KException):
        return type(error).__name__, (error.error.error_sub_code, error.error.error_code)
    return type(error).__name__, error.args


def unpacked(name, arguments):
    here = {"KServerException": KServerException, "KClientException": KClientException}
    return (here.get(name) or getattr(builtins, name, RuntimeError))(*arguments)


class RemoteArm:
    """A served FakeArm: the same attributes to read and to set, the same methods, each a request on a Unix socket."""

    def __init__(self, address):
        vars(self).update(_address=str(address), _sockets=[], clock=RealClock())

    def _ask(self, *request):
        free = self._sockets  # of this process; one that an exception or a signal interrupts is not used again
        try:
            while free and free[-1][0] != os.getpid():
                free.pop()
            try:
                socket = free.pop()[1]
            except IndexError:
                socket = multiprocessing.connection.Client(self._address, "AF_UNIX")
            socket.send(request)
            ok, reply = socket.recv()
            free.append((os.getpid(), socket))
        except (EOFError, ConnectionError, FileNotFoundError):
            raise BrokenPipeError(errno.EPIPE, "the arm's process has gone") from None
        if not ok:
            raise unpacked(*reply)
        kind = {"calls": Call, "motion": Sample, "samples": Sample}.get(request[1])
        return [kind(*row) for row in reply] if kind else reply

    def __getattr__(self, name):
        if callable(getattr(FakeArm, name, None)):
            return lambda *args, **kwargs: self._ask("do", name, args, kwargs)
        return self._ask("get", name)

    def __setattr__(self, name, value):
        self._ask("set", name, value)

    def fail(self, method, error=None, **how):
        if isinstance(error, (BaseException, type)):
            error = packed(error)
        self._ask("do", "fail", (method, error), how)


def answer(world, socket):
    while True:
        try:
            what, name, *rest = socket.recv()
        except (EOFError, OSError):
            return
        try:
            if what == "set":
                reply = setattr(world, name, rest[0])
            elif what == "get":
                world.look()
                with world.lock:
                    reply = getattr(world, name)
                    reply = list(reply) if isinstance(reply, collections.deque) else reply
            else:
                arguments, named = rest
                if name == "fail" and isinstance(arguments[1], tuple):
                    arguments = arguments[0], unpacked(*arguments[1])
                reply = getattr(world, name)(*arguments, **named)
            if name in ("calls", "motion", "samples") and what != "set":
                reply = [tuple(row) for row in reply]  # so that neither side needs the other's classes
            socket.send((True, reply))
        except Exception as error:
            try:
                socket.send((False, packed(error)))
            except (OSError, TypeError):
                return


def serve_forever(address, while_stdin_is_open=False, **settings):
    """Serves a FakeArm with the real clock at this address (a path), until the process ends."""
    world = FakeArm(**settings)
    if os.path.exists(address):
        os.unlink(address)
    with multiprocessing.connection.Listener(str(address), "AF_UNIX", backlog=16) as listener:

        def accept():
            while True:
                threading.Thread(target=answer, args=(world, listener.accept()), daemon=True).start()

        def watch():
            sys.stdin.buffer.read()
            os._exit(0)

        for function in (accept, watch)[: 1 + while_stdin_is_open]:
            threading.Thread(target=function, daemon=True).start()
        print("ready", flush=True)
        while True:
            world.look()
            time.sleep(TICK)


class Server:
    def __init__(self, address, process):
        self.address, self.process = str(address), process

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        if os.path.exists(self.address):
            os.unlink(self.address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(address, **settings):
    """Starts a process with a FakeArm in it, which ends with this one; install(address=...) then talks to it."""
    command = [sys.executable, os.path.abspath(__file__), str(address), "--child", "--settings", json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    if process.stdout.readline().strip() != b"ready":
        raise RuntimeError(f"the arm's process ended with {process.wait()}")
    return Server(address, process)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A simulated Gen3 that answers at a Unix socket.")
    parser.add_argument("address")
    parser.add_argument("--settings", type=json.loads, default={}, help="FakeArm's arguments, as JSON")
    parser.add_argument("--child", action="store_true", help="ends with its standard input")
    arguments = parser.parse_args()
    serve_forever(arguments.address, arguments.child, **arguments.settings)
