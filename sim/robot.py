"""A simulated robot behind a robot's own interfaces: commands in, sensor readings out, nothing else looked at."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from hardware.messages import wxyz, xyzw
from robot_rl.spec import IMU, JOINT_STATE, ODOMETRY, POSE, Camera, RobotSpec, Sensor, Vision
from sim.offscreen import Offscreen
from sim.randomize import NO_LAGS, Gap, History, Lags
from sim.wiring import compile_model, wire

VELOCITY_WINDOW_S = 0.05  # servos difference their encoder over about this time, so noise reaches the speed too
Values = dict[str, np.ndarray]
State = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # position, velocity, effort, acceleration
Order = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # target, seconds until there, kp, kd; (C,) each


class SimRobot:
    """MuJoCo as the robot of a RobotSpec, with an optional reality gap.

    Of its cameras only those of `vision` are in `readings`, at the size that is seen, each as of its newest period;
    the gap loses no images. OpenGL is needed from the first of them on. Delays are the gap's and, drawn anew for every
    message, image and command, those of `lags`.
    Joint arrays are (J,) in the spec's order, commands (C,) in the order of its actuated joints; rad, rad/s, N·m, m, s.
    The MJCF needs the joints and an actuator for each commanded one; what does not fit raises SpecError here.
    """

    def __init__(self, spec: RobotSpec, mjcf: str | Path, gap: Gap | None = None, vision: Vision | None = None,
                 lags: Lags = NO_LAGS) -> None:
        self.spec, self.gap, self.mjcf = spec, gap or Gap(), Path(mjcf)
        self.model = compile_model(self.mjcf)
        self._wiring = wire(spec, self.model, self.mjcf)
        self.gap.apply(self.model)
        self.data = mujoco.MjData(self.model)
        self._seen = mujoco.MjData(self.model)  # the state that sensors look at, when it is not the newest
        self._bias = self.gap.biases(len(spec.joints))
        self._noise = np.random.default_rng(self.gap.seed)
        self._gains = self.model.actuator_gainprm[:, 0].copy(), self.model.actuator_biasprm[:, :3].copy()
        self._kp, self._kd = (np.array([getattr(j, key) for j in spec.actuated]) for key in ("kp", "kd"))
        self._seconds = np.array([next(to.time_from_start_s for to in spec.command_topics if j.name in to.joints)
                                  for j in spec.actuated])
        self._cameras = {c.name: c for c in spec.cameras}
        self._lags, self._draws = lags, bool(lags.inputs)
        self._late = max(self.gap.sensor_delay + lags.most(s.name for s in spec.sensors),
                         self.gap.camera_delay + lags.most(self._cameras))
        """How far back sensors and cameras look at most, s."""
        self._waits = self.gap.command_delay > 0 or bool(lags.command.any())
        self.lags: dict[str, float] = {}
        """How old that was which each sensor and camera told last, s."""
        self._pictures: dict[str, tuple[mujoco.MjData, Offscreen | None]] = {}
        self._vision = vision
        self._eye: tuple[mujoco.MjData, Offscreen] | None = None  # one for all cameras in use
        self._filmed: dict[str, tuple[float, float, Values]] = {}  # when it came, when it was taken, what was seen
        self._goal = _mocap(self.model, "goal")
        self._driven = spec.actuated_index
        self._sites = {s.name: self.model.site(s.site).id for s in spec.sensors if s.site is not None}
        self._frames = {s.name: self.model.body(s.frame).id for s in spec.sensors if s.type == POSE}
        self.reset()

    @property
    def actuators(self) -> np.ndarray:
        """(C,) int: where the actuators of the commanded joints stand in the model."""
        return self._wiring.actuator

    @property
    def time(self) -> float:
        """Seconds of physics since the last reset."""
        return float(self.data.time)

    def reset(self, rng: np.random.Generator | None = None, joint_noise: float = 0.0) -> None:
        """Teleport to the default pose, at rest; `joint_noise` (rad) shifts every joint by up to that much.

        The command becomes the default pose (position interface) or zero; loose objects are placed (see `place`). With
        `rng`, it alone determines what follows.
        """
        pose = np.array([j.default for j in self.spec.joints])
        if joint_noise:
            if rng is None:
                raise ValueError(f"joint_noise={joint_noise} needs rng, the generator that draws it")
            pose += rng.uniform(-joint_noise, joint_noise, len(pose))
        if rng is not None:
            self._noise = np.random.default_rng(rng.integers(2**63))
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._wiring.position] = np.clip(pose, *self._limits())
        default = [j.default if self.spec.command.interface == "position" else 0.0 for j in self.spec.actuated]
        self._order: Order = np.array(default), np.zeros(len(default)), self._kp, self._kd
        self._commands = History(self._order)
        self._start, self._since, self._ramps = np.array(default), 0.0, False
        self._regulate(self._order)
        self._drive(self._order)
        filtered = self.model.actuator_actadr >= 0
        self.data.act[self.model.actuator_actadr[filtered]] = self.data.ctrl[filtered]
        self.place(rng)
        mujoco.mj_forward(self.model, self.data)
        self._states = History(self._state())
        self.lags, self._told = {}, dict[str, float]()
        self._owed = 0.0
        self._filmed.clear()
        self._delivered = {s.name: self._measure(s) for s in self.spec.sensors}

    def place(self, rng: np.random.Generator | None = None) -> None:
        """Put every loose object, at rest, where the spec lets an episode start; without `rng`, where the MJCF has it.

        Sensors see it from the next step on.
        """
        for placed, (position, dof) in zip(self.spec.objects, self._wiring.objects, strict=True):
            pose = self.model.qpos0[position:position + 7]
            if rng is not None:
                where, turn = placed.sample(rng)
                pose = np.concatenate([where, wxyz(turn)])
            self.data.qpos[position:position + 7], self.data.qvel[dof:dof + 6] = pose, 0.0

    def apply(self, command: np.ndarray, seconds: np.ndarray | None = None, kp: np.ndarray | None = None,
              kd: np.ndarray | None = None) -> None:
        """Obey a command (C,): rad, rad/s or N·m, by the spec's interface. Raises ValueError if it makes no sense.

        seconds: (C,) until each joint is to be there, on a straight line from where it is, as a trajectory controller
        moves it; 0 is at once. kp, kd: (C,) gains of the servos. What is not given is as the spec has it.
        """
        order = tuple(np.array(own if given is None else given, dtype=np.float64) for given, own in (
            (command, None), (seconds, self._seconds), (kp, self._kp), (kd, self._kd)))
        for name, part in zip(("command", "seconds", "kp", "kd"), order, strict=True):
            if part.shape != self._wiring.actuator.shape:
                raise ValueError(f"{name} has shape {part.shape}; {self.spec.robot} takes "
                                 f"{self._wiring.actuator.shape}")
            if not np.isfinite(part).all():
                raise ValueError(f"{name} {part} is not finite")
        wanted: Order = order  # type: ignore[assignment]  # four of them
        self._ramps = bool(order[1].any())
        if self._waits:
            self._commands.push(self.time + self.gap.command_delay + self._draw(self._lags.command), wanted)
        else:
            self._commands = History(wanted)
            self._drive(wanted)

    def step(self, seconds: float) -> None:
        """Let physics pass; a rest shorter than its time step is kept for the next call."""
        self._owed += seconds
        steps = int(self._owed / self.model.opt.timestep + 1e-6)
        self._owed -= steps * self.model.opt.timestep
        if not (self._waits or self._late or self._ramps):
            mujoco.mj_step(self.model, self.data, steps)
        else:
            for _ in range(steps):
                if self._waits or self._ramps:
                    self._drive(self._commands.at(self.time))
                mujoco.mj_step(self.model, self.data)
                if self._late:
                    self._states.push(self.time, self._state())
            self._commands.forget(self.time)
            self._states.forget(self.time - self._late)
        mujoco.mj_kinematics(self.model, self.data)  # mj_step leaves the poses one step behind

    def measure(self, sensor: str) -> Values | None:
        """One message of a sensor, as it arrives now through the gap; None when it is lost. Keys as in `readings`."""
        if self.gap.dropout and self._noise.random() < self.gap.dropout:
            return None
        return self._measure(next(s for s in self.spec.sensors if s.name == sensor))

    def readings(self) -> Values:
        """The newest message of every sensor; where one is lost, the one before it.

        `<joint sensor>.position|velocity|effort` (J,), `<pose sensor>.position` (3,) and `.orientation` (4,) xyzw in
        the sensor's frame, `<imu>.orientation` in the world, `.angular_velocity` (3,) rad/s and `.linear_acceleration`
        (3,) m/s² in its own frame, `<odometry>.position` and `.orientation` in the world, `.linear_velocity` (3,) m/s
        and `.angular_velocity` in its own frame. `<camera>.image` (H, W, 3) uint8 rgb of the cameras in use. Raises
        RenderError.
        """
        for sensor in self.spec.sensors:
            seen = self.measure(sensor.name)
            if seen is not None:
                self._delivered[sensor.name] = seen
        self._film()
        messages = [*self._delivered.values(), *(image for *_, image in self._filmed.values())]
        return {key: value for seen in messages for key, value in seen.items()}

    def ages(self) -> dict[str, float]:
        """Seconds since each camera in use took its image in `readings`."""
        return {name: self.time - taken for name, (_, taken, _) in self._filmed.items()}

    def truth(self) -> Values:
        """What `readings` would say with perfect sensors; never for a policy to see."""
        return {key: value for sensor in self.spec.sensors
                for key, value in self._look(sensor, self.data, self._state()).items()}

    def show_goal(self, position: np.ndarray | None) -> None:
        """Draw a goal at a position (3,), m in the world; None hides it. Without a mocap body `goal`, nothing."""
        if self._goal is not None:
            self.data.mocap_pos[self._goal] = (0.0, 0.0, -10.0) if position is None else position

    def render(self, camera: str) -> np.ndarray:
        """(H, W, 3) uint8 rgb of a camera of the spec, in its size. Raises RenderError where OpenGL is missing."""
        self.snapshot(camera)
        return self.render_snapshot(camera)

    def portrait(self, camera: str, width: int, height: int) -> np.ndarray:
        """(H, W, 3) uint8 rgb for people: any size, with shadows and smooth edges. Raises RenderError."""
        picture = Offscreen(self.model, width, height, fine=True)
        try:
            return picture.render(self.data, self._view(camera))
        finally:
            picture.close()

    def snapshot(self, camera: str) -> None:
        """Keep what a camera would deliver now, so that `render_snapshot` can draw it while physics goes on."""
        if camera not in self._pictures:
            self._pictures[camera] = mujoco.MjData(self.model), None
        self._keep(self._pictures[camera][0], camera)

    def render_snapshot(self, camera: str) -> np.ndarray:
        """(H, W, 3) uint8 rgb of the state kept by `snapshot`; one thread at a time for each camera."""
        kept, picture = self._pictures[camera]
        if picture is None:
            size = self._cameras[camera]
            picture = Offscreen(self.model, size.width, size.height)
            self._pictures[camera] = kept, picture
        self._pose(kept)
        return picture.render(kept, self._view(camera))

    def fovy(self, camera: str) -> float:
        """Vertical field of view of a camera, rad."""
        return float(np.deg2rad(self.model.cam_fovy[self._view(camera)]))

    def close(self) -> None:
        """Free what the cameras hold."""
        for _, picture in self._pictures.values():
            if picture is not None:
                picture.close()
        self._pictures.clear()
        if self._eye is not None:
            self._eye[1].close()
            self._eye = None

    def _film(self) -> None:
        """Take an image through each camera in use whose next period has begun."""
        if self._vision is None:
            return
        due = [name for name in self._vision.cameras if self._due(self._cameras[name])]
        if not due:
            return
        if self._eye is None:
            self._eye = mujoco.MjData(self.model), Offscreen(self.model, self._vision.width, self._vision.height)
        kept, picture = self._eye
        for i, name in enumerate(due):
            if i == 0 or self._late:
                self._keep(kept, name)
                self._pose(kept)
            taken = self.time - self.lags.get(name, 0.0)
            self._filmed[name] = self.time, taken, {f"{name}.image": picture.render(kept, self._view(name))}

    def _due(self, camera: Camera) -> bool:
        if camera.name not in self._filmed:
            return True
        now, then = (int(t * camera.rate_hz + 1e-6) for t in (self.time, self._filmed[camera.name][0]))
        return now > then

    def _keep(self, kept: mujoco.MjData, camera: str) -> None:
        """Copy what an image shows that a camera delivers now."""
        state = self._past(camera, self.gap.camera_delay)
        kept.qpos[:] = self.data.qpos if state is None else state[0]
        kept.mocap_pos[:], kept.mocap_quat[:] = self.data.mocap_pos, self.data.mocap_quat

    def _draw(self, lags: np.ndarray) -> float:
        return float(lags[self._noise.integers(len(lags))]) if self._draws else 0.0

    def _past(self, name: str, delay: float) -> State | None:
        """The state that what a sensor or a camera delivers now was measured in; None: the present one.

        It is never from before what the same one delivered earlier.
        """
        if name in self._lags.inputs:
            delay += self._draw(self._lags.inputs[name])
        if delay == 0:
            return None
        then = max(self.time - delay, self._told.get(name, -np.inf))
        self._told[name], self.lags[name] = then, self.time - then
        return self._states.at(then)

    def _pose(self, kept: mujoco.MjData) -> None:
        """Put bodies, cameras and lights where a kept state has them."""
        mujoco.mj_kinematics(self.model, kept)
        mujoco.mj_comPos(self.model, kept)
        mujoco.mj_camlight(self.model, kept)

    def _view(self, camera: str) -> int:
        """The MJCF's index of a camera of the spec."""
        return int(self.model.camera(self._cameras[camera].view or camera).id)

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        lower = np.array([-np.inf if j.lower is None else j.lower for j in self.spec.joints])
        upper = np.array([np.inf if j.upper is None else j.upper for j in self.spec.joints])
        return lower, upper

    def _drive(self, order: Order) -> None:
        """Put an order on the actuators; a position servo closes its loop on the biased encoder."""
        if order is not self._order:
            if not (np.array_equal(order[2], self._order[2]) and np.array_equal(order[3], self._order[3])):
                self._regulate(order)
            self._order, self._since = order, self.time
            self._start = (self.data.qpos[self._wiring.position] + self._bias)[self._driven]
        command, seconds = order[:2]
        if seconds.any():
            passed = (self.time - self._since) / np.maximum(seconds, 1e-9)
            command = np.where(passed < 1.0, self._start + passed * (command - self._start), command)
        if self.spec.command.interface == "position":
            command = command - self._bias[self._driven]
        self.data.ctrl[self._wiring.actuator] = self._wiring.scale * command

    def _regulate(self, order: Order) -> None:
        """Set the servos' gains to an order's, the spec's being those of the model."""
        index = self._wiring.actuator
        share = [np.divide(now, own, out=np.ones_like(own), where=own > 0)
                 for now, own in zip(order[2:], (self._kp, self._kd), strict=True)]
        gain, bias = self._gains
        if self.spec.command.interface == "position":
            self.model.actuator_gainprm[index, 0] = gain[index] * share[0]
            self.model.actuator_biasprm[index, 1] = bias[index, 1] * share[0]
            self.model.actuator_biasprm[index, 2] = bias[index, 2] * share[1]

    def _state(self) -> State:
        data = self.data
        return data.qpos.copy(), data.qvel.copy(), data.qfrc_actuator.copy(), data.qacc.copy()

    def _measure(self, sensor: Sensor) -> Values:
        """A message of a sensor: late and noisy, but not lost."""
        state = self._past(sensor.name, self.gap.sensor_delay)
        if state is not None:
            self._seen.qpos[:], self._seen.qvel[:], self._seen.qacc[:] = state[0], state[1], state[3]
            mujoco.mj_kinematics(self.model, self._seen)
            values = self._look(sensor, self._seen, state)
        else:
            values = self._look(sensor, self.data, self._state())
        if sensor.type == JOINT_STATE:
            self._add(values, f"{sensor.name}.position", self.gap.noise)
            if sensor.velocity == "derived":
                del values[f"{sensor.name}.velocity"]
            else:
                self._add(values, f"{sensor.name}.velocity", self.gap.noise / VELOCITY_WINDOW_S)
            values[f"{sensor.name}.position"] += self._bias
        elif sensor.type == IMU:
            self._add(values, f"{sensor.name}.angular_velocity", self.gap.imu_noise)
        elif sensor.type == ODOMETRY:
            self._add(values, f"{sensor.name}.linear_velocity", self.gap.odometry_noise)
        else:
            self._add(values, f"{sensor.name}.position", self.gap.pose_noise)
        return values

    def _add(self, values: Values, key: str, deviation: float) -> None:
        if deviation:
            values[key] += self._noise.normal(0.0, deviation, values[key].shape)

    def _look(self, sensor: Sensor, data: mujoco.MjData, state: State) -> Values:
        """Perfect values of a sensor in a state; `data` holds the poses of that state."""
        if sensor.type == JOINT_STATE:
            position, velocity, effort, _ = state
            return {f"{sensor.name}.position": position[self._wiring.position],
                    f"{sensor.name}.velocity": velocity[self._wiring.dof],
                    f"{sensor.name}.effort": effort[self._wiring.dof]}
        site = self._sites[sensor.name]
        if sensor.type in (IMU, ODOMETRY):
            motion = self._sense_motion(site, data, sensor.type == IMU)
            return {f"{sensor.name}.{field}": value for field, value in motion.items()}
        frame = self._frames[sensor.name]
        axes = data.xmat[frame].reshape(3, 3).T
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, (axes @ data.site_xmat[site].reshape(3, 3)).ravel())
        return {f"{sensor.name}.position": axes @ (data.site_xpos[site] - data.xpos[frame]),
                f"{sensor.name}.orientation": xyzw(quaternion)}

    def _sense_motion(self, site: int, data: mujoco.MjData, inertial: bool) -> Values:
        """What an IMU at a site says, or an odometry of it; see `readings`."""
        mujoco.mj_comPos(self.model, data)
        mujoco.mj_comVel(self.model, data)
        motion, change, quaternion = np.empty(6), np.empty(6), np.empty(4)
        kind = mujoco.mjtObj.mjOBJ_SITE
        mujoco.mj_objectVelocity(self.model, data, kind, site, motion, 1)
        mujoco.mju_mat2Quat(quaternion, data.site_xmat[site])
        both = {"orientation": xyzw(quaternion), "angular_velocity": motion[:3]}
        if not inertial:
            return both | {"position": data.site_xpos[site].copy(), "linear_velocity": motion[3:]}
        mujoco.mj_rnePostConstraint(self.model, data)  # accelerations of bodies, gravity included
        mujoco.mj_objectAcceleration(self.model, data, kind, site, change, 1)
        return both | {"linear_acceleration": change[3:]}


def _mocap(model: mujoco.MjModel, body: str) -> int | None:
    """Where a mocap body stands among the mocap bodies, if there is one."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body)
    return None if index < 0 or model.body_mocapid[index] < 0 else int(model.body_mocapid[index])
