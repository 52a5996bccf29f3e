"""What a run writes about itself: means, two JSON files and TensorBoard, all in the run folder."""

import json
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from dpg_cli.environments.evaluation import Evaluation
from dpg_cli.environments.rollout import Episode
from dpg_cli.metrics import Averages, Recorder

TAGS = {
    "train/episode_return",
    "train/episode_length",
    "eval/return_mean",
    "eval/return_std",
    "eval/episode_length",
    "loss/critic",
    "loss/actor",
    "value/q_mean",
    "value/target_mean",
    "value/bias",
    "policy/saturation",
    "grad/critic_norm",
    "grad/actor_norm",
    "noise/scale",
    "perf/steps_per_second",
    "perf/updates_per_second",
}
CONFIG = {
    "seed": 3,
    "precision": "float32",
    "truncation_bootstraps": True,
    "algo": {"name": "td3", "actor_lr": 3e-4, "hidden_sizes": [256, 256]},
    "env": {"id": "Pendulum-v1", "max_episode_steps": None, "kwargs": {"g": 9.81}},
}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def accumulated(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder(tmp_path, CONFIG, "a run")
    yield recorder
    recorder.close()


# --- averages ---


def test_scalars_are_averaged_not_sampled():
    averages = Averages(2)
    for value in (1.0, 2.0, 6.0):
        averages.add({"loss/critic": torch.tensor([value, 10 * value])})
    assert averages.take() == [{"loss/critic": 3.0}, {"loss/critic": 30.0}]


def test_a_scalar_that_came_less_often_is_averaged_over_its_own_updates():
    averages = Averages(1)
    for update in range(6):
        scalars = {"loss/critic": torch.tensor([float(update)])}
        if update % 2:
            scalars["loss/actor"] = torch.tensor([10.0 * update])
        averages.add(scalars)
    assert averages.take() == [{"loss/critic": 2.5, "loss/actor": 30.0}]


def test_episodes_are_averaged_for_each_member():
    averages = Averages(3)
    averages.add_episodes([Episode(0, 10.0, 5), Episode(2, -1.0, 3)])
    averages.add_episodes([Episode(0, 20.0, 8)])
    assert averages.take() == [
        {"train/episode_return": 15.0, "train/episode_length": 6.5},
        {},
        {"train/episode_return": -1.0, "train/episode_length": 3.0},
    ]


def test_numbers_in_info_are_averaged_over_the_episodes_that_report_them():
    averages = Averages(1)
    averages.add_episodes([Episode(0, 1.0, 5, {"is_success": 1.0, "energy": 2.0}), Episode(0, 3.0, 5, {"energy": 4.0})])
    state = averages.state(0)
    taken = averages.take()[0]
    assert {tag: value for tag, value in taken.items() if "info" in tag} == {
        "train/info/is_success": 1.0,
        "train/info/energy": 3.0,
    }
    averages.load_state([state])
    assert averages.take()[0] == taken
    averages.load_state([state | {"episodes": [[1.0, 5]]}])  # of an older checkpoint
    assert averages.take()[0] == {"train/episode_return": 1.0, "train/episode_length": 5.0}


def test_the_noise_scale_is_averaged_and_the_same_for_every_member():
    averages = Averages(2)
    for scale in (0.2, 0.1, 0.0):
        averages.add_noise_scale(scale)
    assert averages.take() == [{"noise/scale": pytest.approx(0.1)}] * 2


def test_what_did_not_come_is_absent_and_nothing_is_left_for_the_next_time():
    averages = Averages(1)
    assert averages.take() == [{}]
    averages.add({"loss/critic": torch.tensor([5.0])})
    averages.add_noise_scale(0.5)
    averages.add_episodes([Episode(0, 10.0, 5)])
    assert len(averages.take()[0]) == 4
    assert averages.take() == [{}]
    averages.add({"loss/critic": torch.tensor([7.0])})
    assert averages.take() == [{"loss/critic": 7.0}]


def test_averages_are_plain_floats_and_leave_the_scalars_alone():
    averages, scalar = Averages(1), torch.tensor([1.0])
    averages.add({"loss/critic": scalar})
    averages.add({"loss/critic": scalar})
    assert type(averages.take()[0]["loss/critic"]) is float
    assert scalar.item() == 1.0


# --- files ---


def test_metrics_jsonl_holds_one_object_a_record(recorder, tmp_path):
    before = time.time()
    recorder.scalars(1000, {"loss/critic": 0.5, "value/q_mean": -3.25})
    recorder.scalars(2000, {"loss/critic": 0.25})
    first, second = lines(tmp_path / "metrics.jsonl")
    assert list(first) == ["step", "time", "loss/critic", "value/q_mean"]
    assert before <= first["time"] <= second["time"] <= time.time()
    assert first == {"step": 1000, "time": first["time"], "loss/critic": 0.5, "value/q_mean": -3.25}
    assert second == {"step": 2000, "time": second["time"], "loss/critic": 0.25}
    assert type(first["step"]) is int


def test_a_record_is_on_disk_at_once(recorder, tmp_path):
    recorder.scalars(1, {"loss/critic": 0.5})
    recorder.evaluation(1, Evaluation([1.0], [2], None))
    assert len(lines(tmp_path / "metrics.jsonl")) == 2
    assert len(lines(tmp_path / "evaluations.jsonl")) == 1


def test_an_evaluation_writes_its_episodes_and_its_scalars(recorder, tmp_path):
    recorder.evaluation(5000, Evaluation([1.0, 2.0, 6.0], [10, 20, 60], -0.5))
    assert lines(tmp_path / "evaluations.jsonl") == [
        {"step": 5000, "returns": [1.0, 2.0, 6.0], "lengths": [10, 20, 60]}
    ]
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert record.pop("time") > 0
    assert record == {
        "step": 5000,
        "eval/return_mean": 3.0,
        "eval/return_std": pytest.approx((14 / 3) ** 0.5),
        "eval/episode_length": 30.0,
        "value/bias": -0.5,
    }


def test_an_unknown_bias_is_absent(recorder, tmp_path):
    recorder.evaluation(0, Evaluation([1.0], [2], None))
    assert "value/bias" not in lines(tmp_path / "metrics.jsonl")[0]
    assert "value/bias" not in accumulated(tmp_path).Tags()["scalars"]


def test_tensorboard_holds_the_same_scalars_at_the_same_steps(recorder, tmp_path):
    for step in range(100, 400, 100):
        recorder.scalars(step, {tag: step + index / 8 for index, tag in enumerate(sorted(TAGS)) if "eval" not in tag})
    recorder.evaluation(300, Evaluation([1.0, 2.0], [10, 20], None))
    recorder.close()
    expected, times = {}, {}
    for record in lines(tmp_path / "metrics.jsonl"):
        step, now = record.pop("step"), record.pop("time")
        for tag, value in record.items():
            expected.setdefault(tag, []).append((step, value))
            times.setdefault(tag, []).append(now)
    assert set(expected) == TAGS
    accumulator = accumulated(tmp_path)
    assert set(accumulator.Tags()["scalars"]) == TAGS
    for tag in TAGS:
        events = accumulator.Scalars(tag)
        assert [(event.step, event.value) for event in events] == expected[tag]
        assert [event.wall_time for event in events] == pytest.approx(times[tag], abs=1e-3)


def test_tensorboard_keeps_more_points_than_a_reader_shows(recorder, tmp_path):
    """Written one by one: nothing thins them out on the way."""
    for step in range(1500):
        recorder.scalars(step, {"loss/critic": 1.0})
    assert [event.step for event in accumulated(tmp_path).Scalars("loss/critic")] == list(range(1500))


def test_hparams_are_in_the_run_itself(recorder, tmp_path):
    recorder.evaluation(0, Evaluation([1.0], [2], None))
    recorder.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    contents = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(content)
        for tag, content in accumulated(tmp_path).PluginTagToContent("hparams").items()
    }
    start = contents["_hparams_/session_start_info"].session_start_info
    assert start.group_name == "a run"
    assert "_hparams_/experiment" not in contents  # one run's columns would hide what only other runs have
    values = start.hparams
    assert values["seed"].number_value == 3
    assert values["precision"].string_value == "float32"
    assert values["algo.name"].string_value == "td3"
    assert values["algo.actor_lr"].number_value == 3e-4
    assert values["env.id"].string_value == "Pendulum-v1"
    assert values["env.kwargs.g"].number_value == 9.81
    assert values["algo.hidden_sizes"].string_value == "[256, 256]"
    assert "truncation_bootstraps" in values


def test_the_layout_groups_the_tags(recorder, tmp_path):
    (event,) = accumulated(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = [set(chart.multiline.tag) for category in layout.category for chart in category.chart]
    shown = set().union(*charts)
    # Without evaluations, of td7, of d4pg and offline.
    further = {"loss/encoder", "grad/encoder_norm", "value/clipped_targets", "loss/behavior_cloning"}
    assert shown <= TAGS | further | {"train/last_10_returns"}
    assert TAGS - shown <= {"eval/return_std"}
    assert {"value/q_mean", "value/target_mean"} in charts


def test_the_config_is_there_as_text(recorder, tmp_path):
    (event,) = accumulated(tmp_path).Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    for word in ("td3", "Pendulum-v1", "hidden_sizes", "0.0003"):
        assert word in text


def test_a_recorder_goes_on_where_one_before_it_stopped(tmp_path):
    for step in (1, 2):
        recorder = Recorder(tmp_path, CONFIG, "a run")
        recorder.scalars(step, {"loss/critic": 1.0})
        recorder.close()
    assert [record["step"] for record in lines(tmp_path / "metrics.jsonl")] == [1, 2]
