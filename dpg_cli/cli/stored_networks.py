"""Which settings make networks of given tensors, for messages about networks that do not fit a run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dpg_cli.config import TrainConfig
from dpg_cli.config.defaults import defaults

Shapes = Mapping[str, tuple[int, ...]]  # of weights, by name: (rows, columns), or (critics, rows, columns)


class Made(NamedTuple):
    """What an actor and its critics were made for, as far as their tensors say.

    Attributes:
        family: `td7`, `d4pg` or, for critics that learn values, `values`.
        network: the choice of the group `network`.
        obs_dim: size of an observation.
        action_dim: size of an action.
        critics: of a seed.
        settings: values of further keys, such as `network.critic_size`.
    """

    family: str
    network: str
    obs_dim: int
    action_dim: int
    critics: int
    settings: Mapping[str, Any]


def made(networks: Mapping[str, Any]) -> Made:
    """What networks were made for.

    Args:
        networks: an actor, critics and others: tensors by network and name, without a member axis. They may come from
            a stranger.
    """
    actor, critic, encoder = (_shapes(networks.get(name)) for name in ("actor", "critic", "encoder"))
    first, last = _ends(actor)
    critics, atoms = (*_ends(critic)[1], 1, 1)[0], _ends(critic)[1][-1]
    settings: dict[str, Any] = {"algo.normalize_obs": "normalizer.mean" in networks["actor"]}
    family, network = "d4pg" if atoms > 1 else "values", "mlp"
    if "first.weight" in actor:
        family = "td7"
        *sizes, embedding = _columns(encoder, "state.{}") or [0]
        settings["algo.hidden_sizes"] = _columns(actor, "layers.{}")[:-1]
        settings |= {"algo.encoder_sizes": sizes, "algo.embedding_size": embedding}
    elif "embedding.weight" in actor:
        network = "simba"
        for name, shapes in (("actor", actor), ("critic", critic)):
            settings[f"network.{name}_size"] = _ends(shapes)[0][-1]
            settings[f"network.{name}_blocks"] = len(_columns(shapes, "blocks.{}.expand"))
    elif "norm.weight" in actor:
        network = "layer_norm"
        for name, shapes in (("actor", actor), ("critic", critic)):
            settings[f"network.{name}_sizes"] = _columns(shapes, "layers.{}")[:-1]
    else:
        settings["algo.hidden_sizes"] = sizes = _columns(actor, "layers.{}")[:-1]
        inputs = [first[-2], *sizes]
        rows = [critic.get(f"layers.{i}.weight", (0, 0))[-2] for i in range(len(inputs))]
        with_action = [i for i, (own, plain) in enumerate(zip(rows, inputs, strict=True), start=1) if own != plain]
        settings["algo.critic_action_layer"] = (*with_action, 1)[0]
    settings |= {"algo.num_critics": critics} | ({"algo.num_atoms": atoms} if family == "d4pg" else {})
    return Made(family, network, first[-2], last[-1], critics, settings)


def misfit(config: TrainConfig, own: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """Which settings a run needs for stored networks, and which it has; None if it has these.

    Args:
        config: of the run.
        own: its networks; see `made`.
        stored: the others.
    """
    needs, has = made(stored), made(own)
    algo, network = config.algo["name"], config.network["name"]
    several = needs.critics != has.critics and "num_critics" not in config.algo
    if needs.family != has.family or several:
        algo = {"values": "td3" if needs.critics > 1 else "ddpg"}.get(needs.family, needs.family)
    choices = {"algo": algo, "network": needs.network}

    def value(key: str) -> Any:
        """What the run has, or what it would have with the choices that it needs."""
        group, _, name = key.partition(".")
        given = getattr(config, group)
        if choices[group] == given["name"]:  # an algorithm of the user's own may not have the layers of its config
            return has.settings.get(key, given[name]) if name in given else None
        usual = defaults(group, choices[group]).get(key)
        return list(usual) if isinstance(usual, tuple) else usual

    keys = [key for key, needed in needs.settings.items() if value(key) not in (None, needed)]
    use = " ".join(f"{key}={_text(needs.settings[key])}" for key in keys)
    if several and needs.family == has.family and network == needs.network:
        use = " ".join(filter(None, [f"algo={algo}", use]))
        return f"these networks have {needs.critics} critics, this run has {has.critics}; use {use}"
    if algo != config.algo["name"]:
        use = " ".join(filter(None, [f"algo={algo} network={needs.network}", use]))
        return f"these networks need {use}; this run has algo={config.algo['name']} network={network}"
    if needs.network != network:
        use = " ".join(filter(None, [f"network={needs.network}", use]))
        return f"these networks need {use}; this run has network={network}"
    if (needs.obs_dim, needs.action_dim) != (has.obs_dim, has.action_dim):
        return (
            f"these networks are for observations of size {needs.obs_dim} and actions of size {needs.action_dim}; "
            f"env={config.env.id} has {has.obs_dim} and {has.action_dim}"
        )
    if not keys:
        return None
    has_own = [f"{key}={_text(value(key))}" for key in keys] if len(keys) > 1 else [_text(value(keys[0]))]
    return f"these networks need {use}; this run has {' '.join(has_own)}"


def _shapes(tensors: object) -> Shapes:
    if not isinstance(tensors, Mapping):
        return {}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return {key: shape for key, shape in found.items() if key.endswith(".weight") and len(shape) > 1}


def _columns(shapes: Shapes, name: str) -> list[int]:
    """The outputs of the layers `name`, in which `{}` is their number."""
    numbers = range(len(shapes))
    return [shapes[key][-1] for number in numbers if (key := f"{name.format(number)}.weight") in shapes]


def _ends(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the first and the last layer."""
    names = (
        *(name for name in ("first", "embedding") if f"{name}.weight" in shapes),
        *(f"layers.{number}" for number in range(len(shapes))),
        "head",
    )
    found = [shapes[key] for name in names if (key := f"{name}.weight") in shapes] or [(0, 0)]
    return found[0], found[-1]


def _text(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower().replace(" ", "")
