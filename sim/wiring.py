"""Does an MJCF fit a robot file? Joints and actuators are found by name; what disagrees is named with both values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from robot_rl.spec import IMU, ODOMETRY, POSE, Joint, RobotSpec, SpecError

TOLERANCE = 1e-3  # rad, m, N·m: how far rounded limits may lie apart


@dataclass(frozen=True)
class Wiring:
    """Where a robot's joints and actuators stand in a model, in the order of its robot file."""

    position: np.ndarray
    """(J,) int, in qpos."""
    dof: np.ndarray
    """(J,) int, in qvel."""
    actuator: np.ndarray
    """(C,) int, in ctrl, of the commanded joints."""
    scale: np.ndarray
    """(C,) what a command is multiplied by to become a ctrl."""
    objects: tuple[tuple[int, int], ...]
    """Where each loose object's free joint starts, in qpos and in qvel."""


def compile_model(file: Path) -> mujoco.MjModel:
    """The model of an MJCF. Raises SpecError with MuJoCo's own words."""
    try:
        return mujoco.MjModel.from_xml_path(str(file))
    except ValueError as error:
        raise SpecError(f"{file}: {error}") from error


def wire(robot: RobotSpec, model: mujoco.MjModel, file: Path) -> Wiring:
    """Match a robot to a model, and turn bare motors into the servos that the robot's interface asks for.

    Raises SpecError listing everything that does not fit.
    """
    faults: list[str] = []
    for joint in robot.joints:
        faults += _joint_faults(joint, model)
    for camera in robot.cameras:
        view = camera.view or camera.name
        if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, view) < 0:
            faults.append(f"camera '{view}': the MJCF has {_names(model, mujoco.mjtObj.mjOBJ_CAMERA)}")
    for sensor in robot.sensors:
        if sensor.type == POSE:
            faults += _sensor_faults(sensor.name, sensor.site, sensor.frame, model)
        elif sensor.type in (IMU, ODOMETRY):
            faults += _sensor_faults(sensor.name, sensor.site, None, model)
    for placed in robot.objects:
        if _free_joint(model, placed.object) is None:
            faults.append(f"object '{placed.object}': the MJCF has no body of that name with a free joint, but "
                          f"{_names(model, mujoco.mjtObj.mjOBJ_BODY)}")
    actuators = []
    if not faults:  # actuators are looked up by joint
        for joint in robot.actuated:
            found = _actuator(joint, robot.command.interface, model)
            if isinstance(found, str):
                faults.append(found)
            else:
                actuators.append(found)
                faults += _servo_faults(joint, robot.command.interface, model, found)
    if faults:
        raise SpecError(f"{file} does not fit robot '{robot.robot}':\n  " + "\n  ".join(faults))
    for joint, actuator in zip(robot.actuated, actuators, strict=True):
        _prepare(joint, robot.command.interface, model, actuator)
    joints = [model.joint(joint.name) for joint in robot.joints]
    objects = tuple(adr for placed in robot.objects if (adr := _free_joint(model, placed.object)) is not None)
    index = np.array(actuators, dtype=np.intp)
    gear = model.actuator_gear[index, 0]
    effort = robot.command.interface == "effort"
    return Wiring(np.array([j.qposadr[0] for j in joints]), np.array([j.dofadr[0] for j in joints]), index,
                  1.0 / (gear * model.actuator_gainprm[index, 0]) if effort else gear, objects)


def _free_joint(model: mujoco.MjModel, body: str) -> tuple[int, int] | None:
    """Where the free joint of a body starts in qpos and in qvel, if it has one."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body)
    joint = -1 if index < 0 else int(model.body_jntadr[index])
    if joint < 0 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE.value:
        return None
    return int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])


def _joint_faults(joint: Joint, model: mujoco.MjModel) -> list[str]:
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, joint.name)
    if index < 0:
        return [f"joint '{joint.name}': the MJCF has {_names(model, mujoco.mjtObj.mjOBJ_JOINT)}"]
    if model.jnt_type[index] not in (mujoco.mjtJoint.mjJNT_HINGE.value, mujoco.mjtJoint.mjJNT_SLIDE.value):
        return [f"joint '{joint.name}': the MJCF's is neither a hinge nor a slide"]
    if not model.jnt_limited[index]:
        return []
    lower, upper = model.jnt_range[index]
    if joint.lower is None or joint.upper is None:
        return [f"joint '{joint.name}' lower, upper: the robot file gives none, the MJCF {lower:g}, {upper:g}"]
    faults = []
    # a robot file may keep a margin inside the mechanical range, never reach beyond it
    if joint.lower < lower - TOLERANCE:
        faults.append(f"joint '{joint.name}' lower: the robot file says {joint.lower}, the MJCF {lower:g}")
    if joint.upper > upper + TOLERANCE:
        faults.append(f"joint '{joint.name}' upper: the robot file says {joint.upper}, the MJCF {upper:g}")
    return faults


def _sensor_faults(name: str, site: str | None, frame: str | None, model: mujoco.MjModel) -> list[str]:
    faults = []
    if site is None or mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site) < 0:
        faults.append(f"sensor '{name}' site: the robot file says {site}, "
                      f"the MJCF has {_names(model, mujoco.mjtObj.mjOBJ_SITE)}")
    if frame is not None and mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, frame) < 0:
        faults.append(f"sensor '{name}' frame: the robot file says {frame}, "
                      f"the MJCF has the bodies {_names(model, mujoco.mjtObj.mjOBJ_BODY)}")
    return faults


def _actuator(joint: Joint, interface: str, model: mujoco.MjModel) -> int | str:
    """The actuator that drives a joint through an interface, else what is wrong."""
    drives = (model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT.value) & (
        model.actuator_trnid[:, 0] == model.joint(joint.name).id)
    kinds = {_kind(model, i): int(i) for i in np.flatnonzero(drives)[::-1]}  # the first of a kind wins
    wanted = {"effort": ["motor"]}.get(interface, [interface, "motor"])
    for kind in wanted:
        if kind in kinds:
            return kinds[kind]
    return (f"joint '{joint.name}': command.interface={interface} needs a {' or '.join(wanted)} actuator, "
            f"the MJCF has {' and '.join(sorted(kinds)) or 'none'}")


def _kind(model: mujoco.MjModel, actuator: int) -> str:
    """motor, position or velocity as in the MJCF's elements, else other."""
    bias = model.actuator_biasprm[actuator]
    if model.actuator_gaintype[actuator] != mujoco.mjtGain.mjGAIN_FIXED.value:
        return "other"
    if model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_NONE.value:
        return "motor"
    if model.actuator_biastype[actuator] != mujoco.mjtBias.mjBIAS_AFFINE.value:
        return "other"
    integrates = model.actuator_dyntype[actuator] == mujoco.mjtDyn.mjDYN_INTEGRATOR.value
    return "other" if integrates else "position" if bias[1] else "velocity"


def _servo_faults(joint: Joint, interface: str, model: mujoco.MjModel, actuator: int) -> list[str]:
    """Gains and force limits that disagree."""
    faults, gear = [], model.actuator_gear[actuator, 0]
    kind = _kind(model, actuator)
    if kind == "motor" and interface != "effort":
        key = {"position": "kp", "velocity": "kd"}[interface]
        if getattr(joint, key) <= 0:
            faults.append(f"joint '{joint.name}' {key}: the robot file says {getattr(joint, key)}, but the MJCF has a "
                          f"bare motor, which command.interface={interface} drives with that gain")
    gains = {"position": {"kp": 1, "kd": 2}, "velocity": {"kd": 2}}.get(kind, {})
    for key, column in gains.items():
        ours, theirs = getattr(joint, key), -model.actuator_biasprm[actuator, column] * gear**2
        if ours and abs(ours - theirs) > TOLERANCE * max(1.0, abs(theirs)):
            faults.append(f"joint '{joint.name}' {key}: the robot file says {ours}, the MJCF {theirs:g}")
    strongest = _strongest(model, actuator)
    if joint.effort > strongest + TOLERANCE * min(1.0, strongest):
        faults.append(f"joint '{joint.name}' effort: the robot file says {joint.effort}, the MJCF {strongest:g}")
    return faults


def _strongest(model: mujoco.MjModel, actuator: int) -> float:
    """The largest effort that an actuator can put on its joint, N·m; infinite without limits."""
    limits = [np.inf]
    if model.actuator_forcelimited[actuator]:
        limits.append(np.min(np.abs(model.actuator_forcerange[actuator])))
    if model.actuator_ctrllimited[actuator] and _kind(model, actuator) == "motor":
        limits.append(np.min(np.abs(model.actuator_ctrlrange[actuator])) * abs(model.actuator_gainprm[actuator, 0]))
    return float(min(limits) * abs(model.actuator_gear[actuator, 0]))


def _prepare(joint: Joint, interface: str, model: mujoco.MjModel, i: int) -> None:
    """Give a bare motor the loop that the robot's own servo closes, and a limitless actuator the robot's limit."""
    if _kind(model, i) == "motor" and interface != "effort":
        model.actuator_gear[i, 0], model.actuator_gainprm[i, 0] = 1.0, joint.kp if interface == "position" else joint.kd
        model.actuator_biastype[i] = mujoco.mjtBias.mjBIAS_AFFINE.value
        model.actuator_biasprm[i, :3] = 0.0, -joint.kp if interface == "position" else 0.0, -joint.kd
        model.actuator_ctrllimited[i], model.actuator_forcelimited[i] = False, False
    if not model.actuator_forcelimited[i]:
        model.actuator_forcelimited[i] = True
        model.actuator_forcerange[i] = np.array([-1.0, 1.0]) * joint.effort / abs(model.actuator_gear[i, 0])


def _names(model: mujoco.MjModel, kind: mujoco.mjtObj) -> str:
    count = {mujoco.mjtObj.mjOBJ_JOINT: model.njnt, mujoco.mjtObj.mjOBJ_CAMERA: model.ncam,
             mujoco.mjtObj.mjOBJ_SITE: model.nsite, mujoco.mjtObj.mjOBJ_BODY: model.nbody}[kind]
    return ", ".join(mujoco.mj_id2name(model, kind, i) or "(unnamed)" for i in range(count)) or "none"
