"""What tests of the commands share."""

import json

TOY = "env=toy_envs:Toy/Reach-v0"
SMALL = ["algo.hidden_sizes=[8]", "algo.batch_size=4", "total_steps=60", "random_steps=10", "eval.every=20"]
SMALL += ["eval.episodes=2", "checkpoint.every=30", "log.every=20", "threads=1"]
# What lets an algorithm learn after each step, with small networks.
EVERY_STEP = {
    "d4pg": ["network.actor_sizes=[16]", "network.critic_sizes=[16]"],
    "td7": ["algo.policy_checkpoints=false", "algo.encoder_sizes=[16]", "algo.embedding_size=8"],
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(records):
    return [{k: v for k, v in r.items() if k != "time" and not k.startswith("perf/")} for r in records]
