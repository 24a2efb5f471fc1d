"""Off-screen pictures. OpenGL is touched when the first picture is asked for, so state-only work needs none."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from ctypes.util import find_library
from typing import Any

import mujoco
import numpy as np

from robot_rl.spec import SpecError

INSTALL = "on Debian or Ubuntu: apt-get install libegl1 libgl1 (or, software only: libosmesa6)"
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_open: weakref.WeakSet[Offscreen] = weakref.WeakSet()
_making = threading.Lock()


class RenderError(SpecError):
    """No picture can be drawn here; the message names the library and the packages that bring it."""


class Offscreen:
    """Draws one model into (H, W, 3) uint8 rgb arrays, for any thread, one at a time. Raises RenderError.

    `fine` adds shadows and smooth edges, which cost eight times the work where no GPU draws.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int, fine: bool = False) -> None:
        self._model, self._pixels = model, np.empty((height, width, 3), np.uint8)
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._scene, self._option = mujoco.MjvScene(model, 1000), mujoco.MjvOption()
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW.value] = fine
        self._camera, self._drawing = mujoco.MjvCamera(), None
        self._backend, self._busy = backend(), threading.Lock()
        with _making:  # MuJoCo reads a picture's size from the model, which others may be drawing too
            model.vis.global_.offwidth, model.vis.global_.offheight = width, height
            model.vis.quality.offsamples = 4 if fine else 0
            self._gl = _context(self._backend, width, height)
            self._gl.make_current()
            self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
            _let_go(self._backend)
            atexit.unregister(_close_all)
            atexit.register(_close_all)  # after the backend registered its own end, hence run before it
            _open.add(self)

    def render(self, data: mujoco.MjData, camera: int) -> np.ndarray:
        """(H, W, 3) uint8 rgb of what a camera (its index in the model; -1 is the free one) sees."""
        if camera < 0:
            mujoco.mjv_defaultFreeCamera(self._model, self._camera)
        else:
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        with self._busy:
            if self._drawing is None:
                raise RenderError("this picture is closed")
            self._gl.make_current()
            mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera,
                                   mujoco.mjtCatBit.mjCAT_ALL.value, self._scene)
            mujoco.mjr_render(self._viewport, self._scene, self._drawing)
            mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._drawing)
            _let_go(self._backend)
            return self._pixels[::-1].copy()  # OpenGL's rows run upwards

    def close(self) -> None:
        """Free what OpenGL holds, once nobody draws."""
        with self._busy:
            if self._drawing is not None:
                self._gl.make_current()
                self._drawing.free()
                self._gl.free()
                self._drawing = None


def backend() -> str:
    """egl, osmesa or another that MUJOCO_GL names; without it, the first whose library is installed."""
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in ("disable", "disabled", "off", "false", "0"):
        raise RenderError(f"pictures are asked for, but MUJOCO_GL={asked} turns off-screen OpenGL off")
    if asked not in ("", "enable", "enabled", "on", "true", "1"):
        return asked
    if sys.platform != "linux":
        return "native"
    for name, library in _LIBRARIES.items():
        if find_library(library):
            return name
    raise RenderError(f"pictures need off-screen OpenGL: neither libEGL nor libOSMesa is installed; {INSTALL}")


def _context(name: str, width: int, height: int) -> Any:
    if name in _LIBRARIES and not find_library(_LIBRARIES[name]):
        raise RenderError(f"pictures need lib{_LIBRARIES[name]} (MUJOCO_GL={name}), which is not installed; {INSTALL}")
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        elif name == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco import GLContext
        return GLContext(width, height)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise RenderError(f"pictures need off-screen OpenGL, but the {name} backend does not start: {error}; "
                          f"{INSTALL}, or choose another by MUJOCO_GL") from error


def _let_go(name: str) -> None:
    """Leave this thread without a current context, so that another can draw with it or close it."""
    if name == "egl":
        from mujoco import egl
        egl.EGL.eglMakeCurrent(egl.EGL_DISPLAY, egl.EGL.EGL_NO_SURFACE, egl.EGL.EGL_NO_SURFACE, egl.EGL.EGL_NO_CONTEXT)
    elif name == "osmesa":
        from mujoco import osmesa
        osmesa.osmesa.OSMesaMakeCurrent(None, None, osmesa.GL.GL_FLOAT, 0, 0)


def _close_all() -> None:
    for picture in list(_open):
        picture.close()
