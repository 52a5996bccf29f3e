"""Films of episodes: `dpg-eval RUN_DIR video=FILE.mp4`."""

import contextlib
import errno
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
import numpy as np

from dpg_cli.cli.signals import finish, held
from dpg_cli.environments.state import Env
from dpg_cli.errors import SimulatorError, UserError, one_line, to_install
from dpg_cli.storage.atomic import explaining

RENDER_FPS = 30  # of environments that name no rate


def has_display() -> bool:
    """Whether there is a display that can be opened. MuJoCo's viewer would end the process without one."""
    if sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    import glfw  # of mujoco

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its errors
        return bool(glfw.init())


def render_without_display() -> None:
    """Let MuJoCo render without a display. It must be called before mujoco is imported."""
    if sys.platform == "linux" and not has_display():
        os.environ.setdefault("MUJOCO_GL", "egl")


def require_imageio() -> None:
    """Check that the extra is installed.

    Raises:
        UserError: it is not.
    """
    try:
        import imageio  # noqa: F401
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise UserError(f"video= needs imageio ({error}); {to_install('video')}") from error


class Film:
    """A film of one or more episodes. It appears under its name when it is complete.

    Args:
        path: of the file, whose ending says the format.
        seconds: the longest that it can be; later frames are not rendered.

    Attributes:
        frames: their number.
        full: whether it takes no more.
    """

    def __init__(self, path: Path, seconds: float = math.inf):
        self.frames, self.full = 0, False
        self._seconds = seconds
        self._path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._writer: Any = None

    def __enter__(self) -> Self:
        """Start a film."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the film its name; after an error, remove it."""
        if self._writer is None:
            return
        try:
            with explaining(self._path):
                self._writer.close()
                if error is None:
                    self._check()
            if error is None:
                finish()
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _check(self) -> None:
        """Read the film back: a program of its own wrote it, perhaps to a full disk.

        Raises:
            OSError: it lacks frames.
        """
        import imageio_ffmpeg

        if self._path.suffix == ".mp4":
            try:
                frames, _ = imageio_ffmpeg.count_frames_and_secs(self._partial)
            except RuntimeError as error:
                raise OSError(errno.EIO, "the film cannot be read back", str(self._path)) from error
            if frames != self.frames:
                message = f"the film holds {frames} of {self.frames} frames"
                raise OSError(errno.EIO, message, str(self._path))

    def add(self, frame: np.ndarray, fps: float) -> None:
        """Add a frame, `(height, width, 3)` bytes."""
        import imageio.v2 as imageio

        if self._writer is None:
            self._writer = imageio.get_writer(self._partial, fps=fps, macro_block_size=1)
        try:
            self._writer.append_data(_even(frame))
        except OSError as error:
            with explaining(self._path):
                raise OSError(error.errno, "the film cannot be written", str(self._path)) from error
        self.frames += 1
        self.full = self.frames >= self._seconds * fps


class Filmed(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose every step is filmed.

    Args:
        env: created with `render_mode="rgb_array"`.
        name: of the environment, for messages.
        film: receives the frames.
    """

    def __init__(self, env: Env, name: str, film: Film):
        super().__init__(env)
        self._name, self._film = name, film

    def reset(self, **kwargs: Any) -> Any:
        """Start an episode."""
        result = self.env.reset(**kwargs)
        self._add()
        return result

    def step(self, action: Any) -> Any:
        """Make one step."""
        result = self.env.step(action)
        self._add()
        return result

    def _add(self) -> None:
        if not self._film.full:
            with held():  # the first frame opens a renderer and starts ffmpeg
                self._film.add(self._frame(), float(self.env.metadata.get("render_fps") or RENDER_FPS))

    def _frame(self) -> np.ndarray:
        try:
            frame: Any = self.env.render()
        except Exception as error:
            reason = one_line(error) or type(error).__name__
            hint = "; without a display, MuJoCo needs MUJOCO_GL=egl or osmesa" if "gl" in reason.lower() else ""
            raise UserError(f"env.id={self._name}: cannot render: {reason}{hint}") from error
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[-1] == 3):
            shown = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise UserError(f"env.id={self._name}: cannot render: render() returned {shown}, not a picture")
        return frame


def rendering(create: Callable[[str], Env], name: str, mode: str) -> Env:
    """An environment that renders.

    Args:
        create: creates one, given its `render_mode`.
        name: of the environment, for messages.
        mode: `rgb_array` or `human`.

    Raises:
        UserError: it cannot render.
    """
    try:
        env = create(mode)
    except UserError as error:
        raise UserError(f"env.id={name}: cannot render: {str(error).partition(': ')[2]}") from error
    modes = env.metadata.get("render_modes", [])
    reason = None
    if mode not in modes:
        reason = f"it has no mode {mode}; it has {', '.join(modes) or 'none'}"
    elif env.render_mode != mode:
        reason = f"its render_mode is {env.render_mode}; its __init__ must set self.render_mode = render_mode"
    if reason is not None:
        env.close()
        raise UserError(f"env.id={name}: cannot render: {reason}")
    _follow(env)
    return env


@contextlib.contextmanager
def shown(name: str) -> Iterator[None]:
    """Within this context, an environment shows its episodes.

    Args:
        name: of the environment, for messages.

    Raises:
        UserError: it lacks a package for that.
    """
    try:
        yield
    except SimulatorError as error:
        if isinstance(error.__cause__, gym.error.DependencyNotInstalled):
            raise UserError(f"env.id={name}: cannot render: {error.__cause__}") from error
        raise


def _follow(env: Env) -> None:
    """Let MuJoCo's camera follow the robot, which otherwise leaves the picture in HalfCheetah and Ant.

    Gymnasium 1.4 has a free camera unless a camera is chosen; only some environments let it follow a body.
    """
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    model = getattr(env.unwrapped, "model", None)
    if renderer is None or model is None or renderer.camera_id != -1:
        return
    if "trackbodyid" not in (renderer.default_cam_config or {}):
        mujoco = sys.modules["mujoco"]
        renderer.camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")  # -1 without one


def _even(frame: np.ndarray) -> np.ndarray:
    """Without the last row or column of an odd size, which common video formats do not have."""
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    return frame[:height, :width]
