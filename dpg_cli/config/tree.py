"""The config tree: where it is, and the choices of its groups."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

GROUPS = ("algo", "network", "env", "noise", "replay", "experiment")
NAMED = ("algo", "network", "noise", "replay")  # groups whose keys are the fields of a class, by `name`


def config_dir() -> Path:
    """The folder of the config tree: in the package if installed, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())


def choices(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The choices of a group: the names of its YAML files, with subfolders, such as `td3/without_delay`.

    Args:
        group: one of `GROUPS`.
        folders: further config trees, as of `--config-dir`.
    """
    roots = [folder / group for folder in (config_dir(), *folders)]
    files = [(root, path) for root in roots for path in root.rglob("*.yaml")]
    return sorted({path.relative_to(root).with_suffix("").as_posix() for root, path in files})


@functools.cache
def keys_by_choice(group: str) -> Mapping[str, list[str]]:
    """The choices that have each key of a group, without those that only vary another."""
    found: dict[str, list[str]] = {}
    for path in sorted((config_dir() / group).glob("*.yaml")):
        for key in dict(OmegaConf.load(path)).keys() - {"defaults"}:
            found.setdefault(str(key), []).append(path.stem)
    return found


class EnvironmentIds(ConfigSource):
    """Lets `env=<id>` name any environment, with or without a YAML file. An existing file wins."""

    @staticmethod
    def scheme() -> str:
        """`gymnasium://`."""
        return "gymnasium"

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """The groups, and the folders that an id with slashes implies."""
        return config_path.strip("/") in ("", *GROUPS) or self._below_env(config_path + "/")

    def is_config(self, config_path: str) -> bool:
        """Any name below `env` is taken as an environment's id. An unknown id fails when the environment is made."""
        return self._below_env(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """`{id: <id>}`."""
        env_id = config_path.removesuffix(".yaml").removeprefix("env/")
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create({"id": env_id}),
            header={"package": None},
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Full names for tab completion, since Hydra would stop at a slash: ids, and choices in subfolders."""
        path = config_path.strip("/")
        if path == "":
            return ["env"] if results_filter in (None, ObjectType.GROUP) else []
        if results_filter is ObjectType.GROUP:
            return []
        if path != "env":
            return [name for name in choices(path) if "/" in name] if path in GROUPS else []
        import gymnasium  # imported here, since only completion needs it

        # An id whose entry point is a function only reports where the environment has moved.
        return sorted(name for name, spec in gymnasium.registry.items() if not callable(spec.entry_point))

    @staticmethod
    def _below_env(path: str) -> bool:
        return path.startswith("env/") and len(path.removesuffix(".yaml")) > len("env/")


def register() -> None:
    """Register the environment ids with Hydra, and the resolver `${path_name:...}` with OmegaConf.

    Files in `configs/hydra` replace the configs of that name that plugins have stored: Hydra would validate one against
    the other, which it warns of or rejects.
    """
    Plugins.instance().register(EnvironmentIds)  # all plugins are loaded by now
    stored = ConfigStore.instance().repo.get("hydra", {})
    for path in (config_dir() / "hydra").glob("*/*.yaml"):
        stored.get(path.parent.name, {}).pop(path.name, None)
    OmegaConf.register_new_resolver("path_name", lambda name: re.sub(r"[/:]", "_", name), replace=True)
