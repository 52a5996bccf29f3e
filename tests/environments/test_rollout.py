"""Acting in environments, on toy environments whose every number can be told beforehand."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from toy_envs import local

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.config import config_dir
from dpg_cli.environments.evaluation import Trajectories, evaluate, run_episodes, value_bias
from dpg_cli.environments.rollout import Environments, Episode, collect
from dpg_cli.errors import DivergedError
from dpg_cli.noise import Gaussian, NoNoise, OrnsteinUhlenbeck
from dpg_cli.seeding import Purpose, generator

EPISODE, TIME, START = range(3)  # what an observation tells


class Clock(gym.Env):
    """Observes the number of its episode, the time in it and where it started; the reward is 10 · episode + time.

    Args:
        lengths: of its episodes, over and over.
        end: how they end: `terminated`, `truncated` or `both`.
        wrong: at a step counted over all episodes from 1, the quantity that is then not finite, and what it is.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, lengths=(3,), end="terminated", wrong=None):
        self.lengths, self.end, self.wrong = lengths, end, wrong or {}
        self.episode, self.steps, self.actions, self.start = -1, 0, [], 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time, self.start = self.episode + 1, 0, self.np_random.uniform()
        return self._obs("reset"), {}

    def step(self, action):
        self.actions.append(np.array(action))
        self.time += 1
        self.steps += 1
        reward = 10.0 * self.episode + self.time
        if "reward" in self.wrong.get(self.steps, {}):
            reward = self.wrong[self.steps]["reward"]
        ended = self.time == self.lengths[self.episode % len(self.lengths)]
        return (
            self._obs("obs"),
            reward,
            ended and self.end != "truncated",
            ended and self.end != "terminated",
            {},
        )

    def _obs(self, kind):
        obs = np.array([self.episode, self.time, self.start], np.float32)
        if kind in self.wrong.get(self.steps, {}):
            obs[0] = self.wrong[self.steps][kind]
        return obs


class Policy:
    """A fixed policy and critic: μ(s) = scale (start, -start), Q(s, a) = 100 + time."""

    def __init__(self, discount=0.9, scale=0.5, broken_at=None):
        self.discount, self.scale, self.broken_at = discount, scale, broken_at

    def act(self, obs):
        start = obs[..., START]
        action = self.scale * np.stack([start, -start], axis=-1)
        if self.broken_at is not None:
            action[obs[..., TIME] == self.broken_at] = np.nan
        return action.astype(np.float32)

    act_to_evaluate = act

    def value(self, obs):
        return 100.0 + obs[..., TIME]


def make_learner(name, seeds, **changes):
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / "algo" / f"{name}.yaml"))
    values.pop("name")
    values.pop("defaults", None)
    values |= {"hidden_sizes": [8], **changes}
    return ALGORITHMS[name](**values, obs_dim=3, action_dim=2, seeds=seeds)


def make_environments(seeds=(0,), num_envs=1, **options):
    environments = Environments(local([[Clock(**options) for _ in range(num_envs)] for _ in seeds]), seeds)
    environments.reset()
    return environments


def make_noise(seeds=(0,), num_envs=1, kind=NoNoise, **values):
    streams = [[generator(seed, Purpose.NOISE, e) for e in range(num_envs)] for seed in seeds]
    return kind(**values, action_dim=2, generators=streams, episode_steps=None)


def gaussian(scale, seeds=(0,), num_envs=1):
    return make_noise(seeds, num_envs, Gaussian, scale=scale, final_scale=scale, decay_steps=None)


def run(environments, *, policy=None, noise=None, total_steps, random_steps=0, step=0):
    noise = noise or make_noise(environments.seeds, environments.num_envs)
    policy = policy or Policy()
    return list(collect(policy, environments, noise, step=step, total_steps=total_steps, random_steps=random_steps))


def evaluation_envs(members, episodes, **options):
    return [[Clock(**options) for _ in range(episodes)] for _ in range(members)]


# --- collect ---


def test_transitions_chain_and_an_episode_ends_in_its_own_last_observation():
    made = run(make_environments(lengths=(3, 2)), total_steps=8)
    assert [step for step, _, _ in made] == [1, 2, 3, 4, 5, 6, 7, 8]
    where = [(t.obs[0, 0, :2].tolist(), t.next_obs[0, 0, :2].tolist()) for _, t, _ in made]
    assert where == [
        ([0, 0], [0, 1]),
        ([0, 1], [0, 2]),
        ([0, 2], [0, 3]),  # not [1, 0]: that is the reset's
        ([1, 0], [1, 1]),  # and no step from [0, 3] to [1, 0]
        ([1, 1], [1, 2]),
        ([2, 0], [2, 1]),
        ([2, 1], [2, 2]),
        ([2, 2], [2, 3]),
    ]
    assert [t.reward.item() for _, t, _ in made] == [1, 2, 3, 11, 12, 21, 22, 23]


@pytest.mark.parametrize("end", ["terminated", "truncated", "both"])
def test_termination_and_truncation_are_kept_apart(end):
    made = run(make_environments(lengths=(3,), end=end), total_steps=6)
    ends = [False, False, True] * 2
    never = [False] * 6
    assert [t.terminated.item() for _, t, _ in made] == (never if end == "truncated" else ends)
    assert [t.truncated.item() for _, t, _ in made] == (never if end == "terminated" else ends)


def test_shapes_and_types_of_a_transition():
    _, transition, _ = run(make_environments((0, 1), 3), total_steps=3)[0]
    assert transition.obs.shape == transition.next_obs.shape == (2, 3, 3)
    assert transition.obs.dtype == transition.next_obs.dtype == np.float32
    assert transition.action.shape == (2, 3, 2)
    assert transition.reward.shape == transition.terminated.shape == transition.truncated.shape == (2, 3)
    assert transition.terminated.dtype == transition.truncated.dtype == np.bool_


def test_a_transition_stays_what_it_was():
    """What was yielded does not change when the environment steps again."""
    kept = run(make_environments((0, 1), 2, lengths=(3, 2)), total_steps=20)
    generator_ = collect(
        Policy(),
        make_environments((0, 1), 2, lengths=(3, 2)),
        make_noise((0, 1), 2),
        step=0,
        total_steps=20,
        random_steps=0,
    )
    for (_, later, _), (_, at_once, _) in zip(kept, generator_, strict=True):
        for a, b in zip(later, at_once, strict=True):
            np.testing.assert_array_equal(a, b)


def test_episodes_report_return_and_length():
    made = run(make_environments(lengths=(3, 2), end="truncated"), total_steps=8)
    episodes = {step: ended for step, _, ended in made if ended}
    assert episodes == {3: [Episode(0, 6.0, 3)], 5: [Episode(0, 23.0, 2)], 8: [Episode(0, 66.0, 3)]}


def test_environments_of_one_seed_end_for_themselves():
    envs = [[Clock(lengths=(2,)), Clock(lengths=(3,))], [Clock(lengths=(4,)), Clock(lengths=(3,))]]
    environments = Environments(local(envs), (0, 1))
    environments.reset()
    made = run(environments, total_steps=8)
    assert [step for step, _, _ in made] == [2, 4, 6, 8]
    ended = {step: [episode[:3] for episode in episodes] for step, _, episodes in made}
    assert ended == {2: [], 4: [(0, 3.0, 2)], 6: [(0, 6.0, 3), (1, 6.0, 3)], 8: [(0, 23.0, 2), (1, 10.0, 4)]}
    for (_, before, _), (_, after, _) in pairwise(made):
        going_on = ~(before.terminated | before.truncated)
        np.testing.assert_array_equal(after.obs[going_on], before.next_obs[going_on])
        assert (after.obs[~going_on][:, TIME] == 0).all()


@pytest.mark.parametrize(("num_envs", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 6]), (3, [3, 6]), (7, [7])])
def test_the_last_vector_step_may_go_over(num_envs, steps):
    assert [step for step, _, _ in run(make_environments(num_envs=num_envs), total_steps=5)] == steps


def test_it_goes_on_where_it_stopped():
    whole = run(make_environments(), total_steps=12, random_steps=8)
    environments, noise = make_environments(), make_noise()
    parts = run(environments, noise=noise, total_steps=5, random_steps=8)
    parts += run(environments, noise=noise, total_steps=12, random_steps=8, step=5)
    assert len(whole) == len(parts)
    for (step, one, episodes), (again, other, same) in zip(whole, parts, strict=True):
        assert (step, episodes) == (again, same)
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.next_obs, other.next_obs)


def test_random_actions_first_then_the_policy():
    made = run(make_environments(), total_steps=300, random_steps=200)
    action = np.array([t.action[0, 0] for _, t, _ in made])
    policy = np.array([Policy().act(t.obs)[0, 0] for _, t, _ in made])
    assert (action[:200] != policy[:200]).all()
    np.testing.assert_array_equal(action[200:], policy[200:])
    random = action[:200]
    assert np.abs(random).max() <= 1
    assert random.mean() == pytest.approx(0, abs=4 * np.sqrt(1 / 3 / random.size))
    assert random.var() == pytest.approx(1 / 3, rel=0.2)
    assert np.abs(random).max() > 0.95


@pytest.mark.parametrize(("random_steps", "num_envs", "vector_steps"), [(0, 1, 0), (5, 1, 5), (6, 3, 2), (7, 3, 3)])
def test_random_steps_count_environment_steps(random_steps, num_envs, vector_steps):
    made = run(make_environments(num_envs=num_envs), total_steps=30, random_steps=random_steps)
    from_policy = [np.array_equal(t.action, Policy().act(t.obs)) for _, t, _ in made]
    assert from_policy == [False] * vector_steps + [True] * (len(made) - vector_steps)


def test_noise_is_added_and_the_sum_clipped():
    made = run(make_environments(), policy=Policy(scale=0.9), noise=gaussian(0.5), total_steps=200)
    again = gaussian(0.5)
    clipped = 0
    for step, transition, _ in made:
        wanted = Policy(scale=0.9).act(transition.obs) + again.sample(step - 1)
        np.testing.assert_array_equal(transition.action, np.clip(wanted, -1, 1))
        clipped += (np.abs(transition.action) == 1).sum()
    assert clipped > 10


def test_the_environment_gets_the_action_that_is_stored():
    environments = make_environments((0, 1), 2)
    made = run(environments, noise=gaussian(0.5, (0, 1), 2), total_steps=40, random_steps=20)
    for s in range(2):
        for e in range(2):
            stored = [t.action[s, e] for _, t, _ in made]
            np.testing.assert_array_equal(environments.envs.envs[2 * s + e].actions, stored)


def test_noise_decays_with_environment_steps():
    noise = make_noise(num_envs=2, kind=Gaussian, scale=0.1, final_scale=0.0, decay_steps=10)
    made = run(make_environments(num_envs=2), policy=Policy(scale=0.0), noise=noise, total_steps=14)
    assert [bool(t.action.any()) for _, t, _ in made] == [True] * 5 + [False] * 2


def test_noise_begins_anew_where_an_episode_ended():
    """θ dt = 0 and no reset would be a random walk; every episode's first noise is one draw."""
    values = {"scale": 0.01, "final_scale": 0.0, "decay_steps": None, "theta": 0.0, "dt": 1.0}
    envs = [[Clock(lengths=(3,), end="truncated"), Clock(lengths=(4,))]]
    environments = Environments(local(envs), (0,))
    environments.reset()
    noise = make_noise(num_envs=2, kind=OrnsteinUhlenbeck, **values)
    made = run(environments, policy=Policy(scale=0.0), noise=noise, total_steps=48)
    for e, length in enumerate((3, 4)):
        g, walked = generator(0, Purpose.NOISE, e), np.zeros(2)
        for index, (_, transition, _) in enumerate(made):
            walked = walked * (index % length > 0) + 0.01 * g.standard_normal(2)
            np.testing.assert_allclose(transition.action[0, e], walked, rtol=1e-9)


def test_every_environment_starts_differently_and_goes_its_own_way():
    made = run(make_environments((0, 1), 3), total_steps=6, random_steps=6)
    starts = made[0][1].obs[..., START]
    assert np.unique(starts).size == 6
    for _, transition, _ in made:
        assert np.unique(transition.action[..., 0]).size == 6


def test_a_seed_sees_the_same_beside_others_and_alone():
    together = run(make_environments((3, 8), 2), noise=gaussian(0.3, (3, 8), 2), total_steps=40, random_steps=20)
    alone = run(make_environments((8,), 2), noise=gaussian(0.3, (8,), 2), total_steps=40, random_steps=20)
    for (_, both, episodes), (_, own, own_episodes) in zip(together, alone, strict=True):
        for a, b in zip(both, own, strict=True):
            np.testing.assert_array_equal(a[1:], b)
        assert [episode[1:] for episode in episodes if episode.member == 1] == [e[1:] for e in own_episodes]


def test_same_seed_same_transitions_and_another_seed_others():
    first, again, other = (run(make_environments((seed,)), total_steps=20, random_steps=10) for seed in (0, 0, 1))
    for (_, a, _), (_, b, _), (_, c, _) in zip(first, again, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
        assert not np.array_equal(a.action, c.action)


def test_later_episodes_start_elsewhere():
    starts = {t.obs[0, 0, START] for _, t, _ in run(make_environments(), total_steps=30)}
    assert len(starts) == 10


# --- what is not finite ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantity", ["reward", "obs"])
@pytest.mark.parametrize("random_steps", [0, 100])
def test_an_environment_that_is_not_finite_is_named(quantity, value, random_steps):
    environments = make_environments(lengths=(3,), wrong={5: {quantity: value}})
    with pytest.raises(DivergedError, match=rf"seed 0\b.*step 5\b.*{quantity}"):
        run(environments, total_steps=20, random_steps=random_steps)


def test_the_seed_that_diverged_is_named():
    envs = [[Clock(), Clock()], [Clock(), Clock(wrong={4: {"reward": np.nan}})]]
    environments = Environments(local(envs), (7, 42))
    environments.reset()
    with pytest.raises(DivergedError, match=r"seed 42\b.*step 8\b.*reward"):
        run(environments, total_steps=20)


def test_an_action_that_is_not_finite_is_named_and_never_reaches_the_environment():
    environments = make_environments(lengths=(9,))
    with pytest.raises(DivergedError, match=r"seed 0\b.*step 5\b.*action"):
        run(environments, policy=Policy(broken_at=4), noise=gaussian(0.1), total_steps=20)
    assert len(environments.envs.envs[0].actions) == 4


def test_a_reset_that_is_not_finite_is_named():
    environments = Environments(local([[Clock(wrong={0: {"reset": np.nan}})]]), (7,))
    with pytest.raises(DivergedError, match=r"seed 7\b.*step 0\b.*obs"):
        environments.reset()
    environments = make_environments(lengths=(3,), wrong={3: {"reset": np.inf}})
    with pytest.raises(DivergedError, match=r"seed 0\b.*step 3\b.*obs"):
        run(environments, total_steps=9)


@pytest.mark.parametrize("quantity", ["reward", "obs", "reset", "action"])
def test_an_evaluation_that_is_not_finite_is_named(quantity):
    wrong = {0 if quantity == "reset" else 2: {quantity: np.nan}}
    envs = [[Clock(), Clock()], [Clock(), Clock(wrong=wrong)]]
    policy = Policy(broken_at=1 if quantity == "action" else None)
    seed = 7 if quantity == "action" else 42  # both members' policies are broken: the first is named
    named = "obs" if quantity == "reset" else quantity
    with pytest.raises(DivergedError, match=rf"seed {seed}\b.*step 5000\b.*{named}"):
        evaluate(policy, local(envs, "evaluation"), (7, 42), 5000)


# --- evaluate ---


def test_returns_and_lengths_of_episodes_that_end_at_different_times():
    envs = [[Clock(lengths=(2,)), Clock(lengths=(5,), end="truncated")], [Clock(lengths=(3,)), Clock(lengths=(1,))]]
    first, second = evaluate(Policy(), local(envs, "evaluation"), (0, 1), 0)
    assert (first.returns, first.lengths) == ([3.0, 15.0], [2, 5])
    assert (second.returns, second.lengths) == ([6.0, 1.0], [3, 1])
    assert type(first.returns[0]) is float
    assert type(first.lengths[0]) is int
    assert [len(env.actions) for member in envs for env in member] == [2, 5, 3, 1]  # none steps after its end


def test_an_evaluation_is_of_the_policy_without_noise():
    envs = evaluation_envs(2, 3)
    evaluate(Policy(), local(envs, "evaluation"), (0, 1), 0)
    for member in envs:
        for env in member:
            expected = 0.5 * np.array([env.start, -env.start])
            np.testing.assert_allclose(env.actions, [expected] * 3, rtol=1e-6)


def starts(envs):
    return [[env.start for env in member] for member in envs]


def test_every_episode_of_every_seed_and_step_starts_elsewhere():
    envs = evaluation_envs(2, 5)
    seen = set()
    for step in (0, 1, 5000):
        evaluate(Policy(), local(envs, "evaluation"), (0, 1), step)
        seen |= {start for member in starts(envs) for start in member}
    assert len(seen) == 3 * 2 * 5


def test_an_episode_starts_the_same_among_more_others_and_alone():
    envs, fewer = evaluation_envs(2, 5), evaluation_envs(1, 3)
    evaluate(Policy(), local(envs, "evaluation"), (3, 8), 5000)
    evaluate(Policy(), local(fewer, "evaluation"), (8,), 5000)
    assert starts(envs)[1][:3] == starts(fewer)[0]


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_evaluation_leaves_nothing_behind(name):
    algorithm = make_learner(name, (0, 1), normalize_obs=True)
    algorithm.observe(np.random.default_rng(0).normal(size=(2, 50, 3)).astype(np.float32))
    envs = evaluation_envs(2, 3, lengths=(4, 2, 7))
    for env in (env for member in envs for env in member):
        env.lengths = (4,)
    policy = [algorithm.policy_state(member) for member in range(2)]

    def outcome(step):
        for env in (env for member in envs for env in member):
            env.episode = -1  # the toy's reward counts its episodes
        return evaluate(algorithm, local(envs, "evaluation"), (0, 1), step)

    first = outcome(5000)
    for other in (0, 10_000, 5000):
        outcome(other)
    assert outcome(5000) == first
    for member in range(2):
        for tensor_name, tensor in algorithm.policy_state(member).items():
            assert torch.equal(tensor, policy[member][tensor_name])


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_training_does_not_notice_evaluations(name):
    def trained(evaluate_every):
        algorithm = make_learner(name, (0, 1), normalize_obs=True)
        envs = evaluation_envs(2, 3)
        environments, noise = make_environments((0, 1), 2, lengths=(3, 2)), gaussian(0.3, (0, 1), 2)
        made = []
        for step, transition, episodes in collect(
            algorithm, environments, noise, step=0, total_steps=40, random_steps=20
        ):
            made.append((*transition, episodes))
            if step % evaluate_every == 0:
                evaluate(algorithm, local(envs, "evaluation"), (0, 1), step)
        return made, algorithm.standard_normal((2, 5))

    (never, draws), (often, same_draws) = trained(1000), trained(2)
    for one, other in zip(never, often, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert torch.equal(draws, same_draws)


# --- the bias of values ---


def padded(rewards, terminated):
    """Trajectories of one member from each episode's rewards."""
    longest = max(map(len, rewards))
    reward, made = np.zeros((longest, 1, len(rewards))), np.zeros((longest, 1, len(rewards)), bool)
    for i, values in enumerate(rewards):
        reward[: len(values), 0, i], made[: len(values), 0, i] = values, True
    return Trajectories(np.zeros((longest, 1, len(rewards), 1)), reward, made, np.array([terminated]))


def test_all_states_count_before_a_termination():
    trajectories = padded([[1.0, 2.0, 4.0]], [True])
    q = np.array([5.0, 5.0, 5.0]).reshape(3, 1, 1)
    # The returns that followed: 1 + 0.5 (2 + 0.5 · 4) = 3, 2 + 0.5 · 4 = 4, and 4.
    assert value_bias(trajectories, q, 0.5) == [pytest.approx((2 + 1 + 1) / 3)]


def test_before_a_truncation_only_states_count_whose_tail_is_worth_nothing():
    trajectories = padded([[1.0, 2.0, 4.0, 8.0]], [False])
    q = np.array([5.0, 6.0, 1e9, 1e9]).reshape(4, 1, 1)
    # 0.2^k < 0.01 from k = 3 steps left on: the first two states.
    second = 2 + 0.2 * (4 + 0.2 * 8)
    first = 1 + 0.2 * second
    assert value_bias(trajectories, q, 0.2) == [pytest.approx(((5 - first) + (6 - second)) / 2)]


@pytest.mark.parametrize(("length", "discount"), [(3, 0.9), (43, 0.9), (1, 0.2), (100, 1.0)])
def test_without_a_state_that_counts_there_is_none(length, discount):
    trajectories = padded([[1.0] * length], [False])
    assert value_bias(trajectories, np.zeros((length, 1, 1)), discount) == [None]


def test_the_first_length_at_which_one_state_counts():
    assert 0.9**44 < 0.01 < 0.9**43
    (bias,) = value_bias(padded([[1.0] * 44], [False]), np.zeros((44, 1, 1)), 0.9)
    assert bias == pytest.approx(-(1 - 0.9**44) / 0.1)


def test_a_discount_of_nothing_and_of_one():
    trajectories = padded([[1.0, 2.0]], [False])
    q = np.array([4.0, 4.0]).reshape(2, 1, 1)
    assert value_bias(trajectories, q, 0.0) == [pytest.approx((3 + 2) / 2)]
    assert value_bias(trajectories, q, 1.0) == [None]
    assert value_bias(padded([[1.0, 2.0]], [True]), q, 1.0) == [pytest.approx((1 + 2) / 2)]


def test_episodes_of_different_lengths_weigh_by_their_states_and_padding_by_nothing():
    trajectories = padded([[1.0], [2.0, 2.0, 2.0]], [True, True])
    q = np.full((3, 1, 2), 10.0)
    q[1:, 0, 0] = 1e9  # after the first episode's end
    followed = [1.0, 2 + 0.5 * (2 + 0.5 * 2), 2 + 0.5 * 2, 2.0]
    assert value_bias(trajectories, q, 0.5) == [pytest.approx(10 - np.mean(followed))]


def test_each_episode_by_its_own_end():
    trajectories = padded([[1.0], [7.0]], [True, False])
    assert value_bias(trajectories, np.array([[[3.0, 1e9]]]), 0.5) == [pytest.approx(2.0)]


def test_each_member_by_itself():
    one, other = padded([[1.0, 1.0]], [True]), padded([[3.0, 3.0]], [False])
    both = Trajectories(
        *(np.concatenate([a, b], axis=1) for a, b in zip(one[:3], other[:3], strict=True)),
        np.concatenate([one.terminated, other.terminated]),
    )
    assert value_bias(both, np.full((2, 2, 1), 2.0), 0.5) == [pytest.approx((0.5 + 1.0) / 2), None]


def test_an_evaluation_measures_the_bias_of_its_own_episodes():
    envs = [[Clock(lengths=(2,)), Clock(lengths=(3,), end="truncated")]]
    (evaluation,) = evaluate(Policy(discount=0.05), local(envs, "evaluation"), (0,), 0)
    # Q is 100 + time. Two states of the first episode; in the second those with at least two steps left.
    followed = [1 + 0.05 * 2, 2, 1 + 0.05 * (2 + 0.05 * 3), 2 + 0.05 * 3]
    assert evaluation.value_bias == pytest.approx(np.mean(np.array([100, 101, 100, 101]) - followed))


def test_a_run_of_episodes_tells_how_each_ended():
    envs = [[Clock(lengths=(2,)), Clock(lengths=(3,), end="truncated"), Clock(lengths=(1,), end="both")]]
    trajectories = run_episodes(Policy().act, local(envs, "evaluation"), [[1, 2, 3]], seeds=[0], step=0)
    assert trajectories.obs.shape == (3, 1, 3, 3)
    assert trajectories.terminated.tolist() == [[True, False, True]]
    assert trajectories.made[:, 0].T.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert trajectories.reward[:, 0].T.tolist() == [[1, 2, 0], [1, 2, 3], [1, 0, 0]]
    assert trajectories.obs[:, 0, 1, TIME].tolist() == [0, 1, 2]
