"""Published results, the scores of a random policy, and the reference that both give for normalised scores."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class Published:
    """A published number. data/published.yaml says what its convention means; None where the source does not say."""

    source: str
    url: str
    env: str
    env_version: str
    algorithm: str
    convention: str
    mean: float
    std: float | None = None
    steps: int | None = None
    seeds: int | None = None
    arxiv: str | None = None
    note: str | None = None


@cache
def published() -> tuple[Published, ...]:
    """All numbers, in the order of data/published.yaml."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of libyaml, which not every installation has
    sources = yaml.load((DATA / "published.yaml").read_text(encoding="utf-8"), loader)
    return tuple(Published(**source, **row) for source in sources for row in source.pop("rows"))


def published_for(env_id: str) -> list[Published]:
    """The numbers of an environment in any version: `HalfCheetah-v4` has those of HalfCheetah."""
    name = re.sub(r"-v\d+$", "", env_id)
    return [number for number in published() if number.env == name]


@cache
def random_scores() -> dict[str, dict[str, Any]]:
    """Mean, std and number of episodes of uniformly random actions by environment id (scripts/random_scores.py)."""
    scores: dict[str, dict[str, Any]] = json.loads((DATA / "random.json").read_text(encoding="utf-8"))["scores"]
    return scores


def reference(env_id: str) -> tuple[float, float, Published] | None:
    """The returns that normalised scores map to 0 and 1: of a random policy and of published TD3.

    TD3 is Table 1 of Fujimoto et al. 2018 where it has the environment, otherwise the first other TD3 number of
    data/published.yaml. Its version of the environment may differ from `env_id`, that of the random policy does not.

    Returns:
        The two returns, and where the second is from; None where either is missing.
    """
    td3 = next((number for number in published_for(env_id) if number.algorithm == "TD3"), None)
    if td3 is None or env_id not in random_scores():
        return None
    return random_scores()[env_id]["mean"], td3.mean, td3
