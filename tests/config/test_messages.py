"""Mistakes of a command line: each is one line that names the key and shows the right form."""

import pytest

from dpg_cli import config
from dpg_cli.config import check_spaces, choices, compose, names_elsewhere, validate
from dpg_cli.config.messages import Known, unknown_key
from dpg_cli.config.names_elsewhere import counterpart
from dpg_cli.config.tree import keys_by_choice
from dpg_cli.errors import UserError


def message(*overrides):
    with pytest.raises(UserError) as caught:
        validate(compose(list(overrides)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names of other programs ---


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("gamma", "algo.discount"),
        ("lr", "algo.actor_lr and algo.critic_lr"),
        ("learning_rate", "algo.actor_lr and algo.critic_lr"),
        ("actor_learning_rate", "algo.actor_lr"),
        ("polyak", "algo.tau, which is 1 - polyak"),
        ("net_arch", "algo.hidden_sizes, such as [256,256]"),
        ("hidden_dim", "algo.hidden_sizes, such as [256,256]"),
        ("start_steps", "random_steps"),
        ("start_timesteps", "random_steps"),
        ("expl_noise", "noise.scale"),
        ("exploration_noise", "noise.scale"),
        ("noise_std", "noise.scale"),
        ("max_timesteps", "total_steps"),
        ("total_timesteps", "total_steps"),
        ("env_id", "env"),
        ("n_envs", "num_envs"),
        ("policy_freq", "algo.policy_delay"),
        ("target_noise", "algo.policy_noise"),
        ("replay_size", "buffer_size"),
        ("eval_freq", "eval.every"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "algo."])
def test_a_name_of_another_program_is_answered_with_the_key(prefix, name, use):
    known = Known(["algo.name", "seed", "env"], {"algo": "td3", "noise": "gaussian"})
    assert unknown_key(f"{prefix}{name}", known) == f"{prefix}{name}: unknown key; use {use}"


@pytest.mark.parametrize("override", ["gamma=1", "algo.gamma=1", "+gamma=1", "+algo.gamma=1", "++eval.gamma=1"])
def test_wherever_it_stands(override):
    assert message(override) == f"{override.lstrip('+')[:-2]}: unknown key; use algo.discount"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["network.size=1"],
            "network.size: unknown key; did you mean network.actor_size, a key of network=simba, not of ",
        ),
        (["network.nmae=1"], "network.nmae: unknown key"),
        (["network=simba", "network.size=1"], "network.size: unknown key; did you mean network.actor_size?"),
        (["replay.size=1"], "replay.size: unknown key; use buffer_size"),
        (["replay.capacity=1"], "replay.capacity: unknown key; use buffer_size"),
        (["network.hidden_sizes=1"], "network.hidden_sizes: unknown key; use algo.hidden_sizes, such as [256,256]"),
        *[
            (["network=simba", f"{name}=1"], f"{name}: unknown key; use network.actor_size and network.critic_size")
            for name in ("network.hidden_dim", "algo.hidden_dim", "network.hidden_sizes")
        ],
        (["network=layer_norm", "hidden_dim=1"], "use network.actor_sizes and network.critic_sizes, such as [256,256]"),
        (["network=simba", "network.num_blocks=1"], "use network.actor_blocks and network.critic_blocks"),
        (["num_blocks=1"], "and network.critic_blocks, keys of network=simba, not of network=mlp"),
        (
            ["network=simba", "algo.critic_num_blocks=1"],
            "algo.critic_num_blocks: unknown key; use network.critic_blocks",
        ),
        (["critic_hidden_dim=1"], "use network.critic_size, a key of network=simba, not of network=mlp"),
        (["network=simba", "network.actor_hidden_dim=1"], "use network.actor_size"),
        (["layer_norm=true"], "layer_norm: unknown key; use network=layer_norm, or network=simba"),
        (["algo.use_layernorm=true"], "use network=layer_norm, or network=simba"),
        (["simba=true"], "simba: unknown key; use network=simba"),
        (["lap=true"], "lap: unknown key; use replay=lap"),
        (["per=true"], "per: unknown key; use replay=lap"),
        (["noise_color=1"], "noise_color: unknown key; use noise=colored and noise.beta"),
        (["noise.color=1"], "noise.color: unknown key; use noise=colored and noise.beta"),
        (["offline=true"], "offline: unknown key; use dataset=RUN_DIR, or dataset=minari:NAME"),
        (["replay=per"], "replay=per: must be one of lap, uniform; use lap"),
    ],
)
def test_a_suggestion_can_be_used_as_it_is(overrides, expected):
    answer = message(*overrides)
    assert expected in answer
    assert ".name" not in answer


def test_names_are_found_in_any_spelling():
    assert counterpart("Learning-Rate") == counterpart("learning_rate")
    assert counterpart("nonsense") is None


def test_every_key_of_the_table_exists_and_no_name_does():
    own = validate(compose([])).model_dump()
    nested = {f"{group}.{name}" for group in own if isinstance(own[group], dict) for name in own[group]}
    nested |= {f"{group}.{name}" for group in ("network", "noise", "replay") for name in keys_by_choice(group)}
    known = {*own, *nested, "experiment", "resume", "hydra.run.dir", "env.kwargs.NAME"}
    for name, found in names_elsewhere._COUNTERPARTS.items():
        assert {key.partition("=")[0] for key in found.keys} <= known, name
        for group, choice in (key.split("=") for key in found.keys if "=" in key):
            assert group == "dataset" or choice in choices(group)
        assert name not in known


def test_no_name_is_in_the_table_twice():
    names = [name for names, _, _ in names_elsewhere.TABLE for name in names.split()]
    assert len(names) == len(set(names))


def owners(key):
    """The algorithms that have a key, as messages name them."""
    *others, last = (f"algo={name}" for name in keys_by_choice("algo")[key])
    return f"{', '.join(others)} and {last}" if others else last


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["algo=ddpg", "algo.policy_noise=1"],
            f"algo.policy_noise: a key of {owners('policy_noise')}, not of algo=ddpg",
        ),
        (
            ["algo=ddpg", "+algo.policy_noise=1"],
            f"algo.policy_noise: a key of {owners('policy_noise')}, not of algo=ddpg",
        ),
        (
            ["noise=none", "noise.scale=1"],
            "noise.scale: a key of noise=colored, noise=gaussian, noise=ou and noise=pink, not of noise=none",
        ),
        (["noise=pink", "noise.beta=0.5"], "noise.beta: a key of noise=colored, not of noise=pink"),
        (["noise.theta=1"], "noise.theta: a key of noise=ou, not of noise=gaussian"),
        (
            ["algo=ddpg", "policy_noise=1"],
            f"did you mean algo.policy_noise, a key of {owners('policy_noise')}, not of algo=ddpg?",
        ),
        (["algo=ddpg", "policy_freq=1"], f"use algo.policy_delay, a key of {owners('policy_delay')}, not of algo=ddpg"),
        (["experiment=overestimation", "algo=ddpg"], f"a key of {owners('num_critics')}, not of algo=ddpg"),
    ],
)
def test_a_key_of_another_choice_is_reported_as_such(overrides, expected):
    assert expected in message(*overrides)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algo.seed=1", "algo.seed: unknown key; did you mean seed?"),
        ("eval.batch_size=1", "did you mean algo.batch_size?"),
        ("algo@x=td3", "algo@x: unknown key"),
        ("hydra=x", "hydra: unknown key"),
        ("hydra.run.dri=x", "did you mean hydra.run.dir?"),
    ],
)
def test_the_group_before_a_key_may_be_wrong(override, expected):
    assert expected in message(override)


# --- groups and their choices ---


@pytest.mark.parametrize("group", ["algo", "noise", "experiment", "hydra/launcher", "hydra/help"])
@pytest.mark.parametrize("value", ["{a:1}", "[[1]]", "[64, 64]", "null", "5", "nonsense", "", "[]"])
def test_what_names_no_choice_is_answered_with_the_choices(group, value):
    known = {"hydra/launcher": "basic", "hydra/help": "default"}.get(group) or choices(group)[0]
    answer = message(f"{group}={value}")
    assert answer.startswith(f"{group}=")
    assert f": must be one of {known}" in answer


@pytest.mark.parametrize("value", ["{a:1}", "[[1]]", "null", "5", ""])
def test_what_is_no_environment_id_is_answered_with_one(value):
    assert "must be a Gymnasium id, such as" in message(f"env={value}")


@pytest.mark.parametrize("overrides", [["algo=td3", "algo=ddpg"], ["algo=td3", "seed=1", "algo=td3"]])
def test_a_group_given_twice_is_an_error(overrides):
    with pytest.raises(UserError, match=f"{overrides[0]} {overrides[-1]}: algo is given twice"):
        config.check_given_once(overrides)
    with pytest.raises(UserError, match="algo is given twice"):
        config.check_given_once(["algo=td3,ddpg", overrides[-1]])


def test_a_key_given_twice_has_its_last_value():
    assert validate(compose(["seed=1", "seed=2"])).seed == 2


def test_a_group_needs_no_plus():
    assert message("+algo=ddpg") == "+algo=ddpg: write algo=ddpg"


def test_a_folder_of_ones_own_has_choices_too(tmp_path):
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "loud.yaml").write_text("name: gaussian\nscale: 1.0\n")
    own = f"hydra.searchpath=['file://{tmp_path}','gymnasium://']"
    for wrong in ("lood", "{a:1}"):
        assert "must be one of colored, gaussian, loud, none, ou, pink" in message(own, f"noise={wrong}")
    assert "did you mean loud?" in message(own, "noise=lood")
    assert "did you mean noise.scale?" in message(own, "noise=loud", "noise.scal=1")


# --- spaces and special characters ---


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("algo.hidden_sizes=[64, 64]", "'algo.hidden_sizes=[64, 64]'"),
        ("algo.hidden_sizes=[ 64 , 64 ]", "'algo.hidden_sizes=[ 64 , 64 ]'"),
        ("env.kwargs.x={a: [1, 2]}", "'env.kwargs.x={a: [1, 2]}'"),
        ("seed=range(0, 3)", "'seed=range(0, 3)'"),
        ("seed=0, 1, 2", "seed=0,1,2"),
        ("algo=ddpg, td3", "algo=ddpg,td3"),
        ("total_steps = 5", "total_steps=5,"),
        ("total_steps= 5", "total_steps=5,"),
        ("total_steps =5", "total_steps=5,"),
    ],
)
def test_what_a_shell_splits_is_answered_with_the_right_form(words, right):
    with pytest.raises(UserError) as caught:
        check_spaces(["noise=ou", *words.split(" "), "num_envs=2"])
    assert f"write {right}" in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "algo.hidden_sizes=[64,64]",
        "env.kwargs.x= seed=3",
        "~seed",
        "env.kwargs.x='[' seed=3",
        "a=[ b=1",
        "a=",
        "=",
        "a =",
    ],
)
def test_what_a_shell_leaves_whole_passes(words):
    check_spaces(words.split(" "))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("total_steps = 5", "write total_steps=5, without spaces around the key"),
        (" total_steps=5", "write total_steps=5, without spaces around the key"),
        ("hydra.run.dir=a=b", """quote this value: 'hydra.run.dir="a=b"'"""),
        ("hydra.run.dir=é", """quote this value: 'hydra.run.dir="é"'"""),
        ("algo.hidden_sizes=[64", "a bracket or a quote is not closed"),
        ("hydra.run.dir='a", "a bracket or a quote is not closed"),
        ("algo.hidden_sizes=[64,]", "a value is missing before or after a comma"),
        ("seed=1,", "a value is missing before or after a comma"),
        ("seed=int(x)", "seed=int(x): invalid literal for int()"),
        ("seed=rnage(3)", "seed=rnage(3): Unknown function 'rnage'"),
        ("seed=range(3)", "seed=range(3): several values; add -m to sweep over them"),
        ("seed", "seed: not of the form key=value"),
    ],
)
def test_what_hydra_cannot_parse_is_answered_with_the_right_form(override, expected):
    assert expected in message(override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algo.actor_lr=interval(0,1)"], "algo.actor_lr=interval(0,1): has no list of values"),
        (["seed=range(1e9)"], "seed=range(1e9): more than 10,000 values"),
        (["seed=shuffle(range(1e9))"], "more than 10,000 values"),
        (["seed=range(0,1,0)"], "the step must not be 0"),
        (["seed=range(101)", "buffer_size=range(300,400)"], "-m: the sweep has 10,100 jobs; the limit is 10,000"),
    ],
)
def test_a_sweep_without_a_list_of_jobs_is_an_error(overrides, expected):
    with pytest.raises(UserError) as caught:
        list(config.combinations(overrides, compose([])))
    assert expected in str(caught.value)
