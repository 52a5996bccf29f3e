"""Negative controls of exact resume: where any one item of the state is lost, the oracle must notice.

Lost means: as at step 0. So a test that passes here says that the item is needed, and that the oracle looks at it.
"""

import shutil
import signal

import numpy as np
import pytest
from commands import SMALL
from oracle import differences

from dpg_cli.storage import checkpoint
from dpg_cli.storage.shards import Transitions

NETWORKS = ("actor", "critic", "target_actor", "target_critic")
# Something of every kind is under way at step 47: an episode, averages, a ring that has wrapped, noise that decays.
RUN = ["env=toy_envs:Toy/Drawing-v0", *SMALL, "noise=ou", "noise.decay_steps=100", "algo.normalize_obs=true"]
RUN += ["buffer_size=25", "env.max_episode_steps=14", "checkpoint.keep=9"]
MIDDLE, RANDOM_STEPS, EVALUATION = ("step", 46), ("step", 4), ("evaluation", 20)
STOPPED = {}

# By name: when the run is stopped, and the paths of what is lost; * is every entry of a list.
CONTROLS = {
    "nothing": (MIDDLE, []),
    **{f"the {name}": (MIDDLE, [f"algorithm/{name}"]) for name in NETWORKS},
    "the actor's optimizer": (MIDDLE, ["algorithm/actor_optimizer"]),
    "the critic's optimizer": (MIDDLE, ["algorithm/critic_optimizer"]),
    "the number of updates": (MIDDLE, ["algorithm/updates"]),
    "the algorithm's stream": (MIDDLE, ["algorithm/random"]),
    **{
        f"the normaliser's {part}": (MIDDLE, [f"algorithm/{name}/normalizer.{part}" for name in NETWORKS])
        for part in ("mean", "var", "count")
    },
    "the noise process": (MIDDLE, ["noise/x"]),
    "the noise's stream": (MIDDLE, ["noise/random"]),
    "the transitions": (MIDDLE, ["transitions"]),
    "the cursor of the replay": (MIDDLE, ["replay/added"]),
    "the size of the replay": (MIDDLE, ["replay/size"]),
    "the sampler's stream": (MIDDLE, ["replay/random"]),
    "the last observation": (MIDDLE, ["environments/obs"]),
    "the simulator": (MIDDLE, ["environments/simulators/*/*/x"]),
    "the time limit's counter": (MIDDLE, ["environments/simulators/*/*/_elapsed_steps"]),
    "the environment's stream": (MIDDLE, ["environments/simulators/*/*/_np_random"]),
    "the action space's stream": (MIDDLE, ["environments/simulators/*/*/_box"]),
    "the running return": (MIDDLE, ["environments/returns"]),
    "the running length": (MIDDLE, ["environments/lengths"]),
    "the stream of random actions": (RANDOM_STEPS, ["environments/random"]),
    "the averages of updates": (MIDDLE, ["averages/totals"]),
    "the averages of the noise": (MIDDLE, ["averages/noise_scales"]),
    "the averages of episodes": (MIDDLE, ["averages/episodes"]),
    "the evaluations": (MIDDLE, ["evaluations"]),
    "that an evaluation is due": (EVALUATION, ["evaluation_due"]),
    "the lengths of the curves' files": (MIDDLE, ["files"]),
    "torch's global stream": (MIDDLE, ["random/torch"]),
    "numpy's global stream": (MIDDLE, ["random/numpy"]),
    "python's global stream": (MIDDLE, ["random/python"]),
}


class Zeros(Transitions):
    """Transitions whose content is lost."""

    def parts(self):
        return (np.zeros_like(part) for part in super().parts())


@pytest.fixture
def stopped(signalled, tmp_path, tmp_path_factory):
    """A copy of a run that was stopped at a moment."""

    def copy(moment, call):
        if (moment, call) not in STOPPED:
            STOPPED[moment, call] = tmp_path_factory.mktemp("stopped") / "run"
            arguments = [*RUN, f"hydra.run.dir={STOPPED[moment, call]}"]
            assert signalled(moment, call, [signal.SIGTERM], *arguments)[0] == 143
        return shutil.copytree(STOPPED[moment, call], tmp_path / "run", symlinks=True)

    return copy


@pytest.mark.parametrize("name", CONTROLS)
def test_without_any_one_item_the_run_is_another(train, stopped, trained, monkeypatch, name):
    moment, lost = CONTROLS[name]
    run = stopped(*moment)
    newest = checkpoint.newest

    def newest_all_but(folders, *arguments):
        (loaded,), problems = newest(folders, *arguments)
        start = checkpoint.load(run, 0).state | {"evaluation_due": False}
        for path in lost:
            if path == "transitions":
                loaded = loaded._replace(transitions=Zeros(*vars(loaded.transitions).values()))
            else:
                forget(loaded.state, start, path.split("/"))
        return [loaded], problems

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "newest", newest_all_but)
        code = train("resume=run", "trust=true")[0]
    assert code == 0
    assert (differences(run, trained(*RUN)) != []) == (lost != [])


def test_every_item_has_a_control(trained):
    state = checkpoint.load(trained(*RUN), 60).state
    items = {f"{part}/{key}" for part, content in state.items() if isinstance(content, dict) for key in content}
    items |= {part for part, content in state.items() if not isinstance(content, dict)}
    controlled = {"/".join(path.split("/")[:2]) for _, lost in CONTROLS.values() for path in lost}
    # Empty in this run: no episode was cut by a resume (tests/test_windows.py), no algorithm has further tensors, and a
    # stop has left no update (tests/test_policy_checkpoints.py).
    empty = {"replay/cuts", "algorithm/member_state", "algorithm/owed"}
    assert {item for item in items if not item.startswith("files/")} <= controlled | empty


def forget(state, start, path):
    """Put back to the start what a path leads to, where it leads anywhere."""
    first, *rest = path
    if first == "*":
        for own, other in zip(state, start, strict=True):
            forget(own, other, rest)
    elif first in state and rest:
        forget(state[first], start[first], rest)
    elif first in state:
        state[first] = start[first]
