"""Names of keys in other programs: CleanRL, stable-baselines3, its RL Zoo, Spinning Up, TD3.py, SimBa and others.

None of them sets anything here. A message about an unknown key names the keys to use.
"""

from typing import NamedTuple


class Counterpart(NamedTuple):
    """The keys to use in place of a name.

    Attributes:
        keys: at least one. A key may have a value, such as `replay=lap`.
        remark: how their values differ from the name's, or what they look like; may be empty.
    """

    keys: tuple[str, ...]
    remark: str = ""


def counterpart(key: str) -> Counterpart | None:
    """The keys to use in place of a name, which may have a group before it, such as `algo.gamma`; None if unknown."""
    name = key.lower().replace("-", "_")
    return _COUNTERPARTS.get(name) or _COUNTERPARTS.get(name.rpartition(".")[2])


TABLE = (
    # names elsewhere, keys here, remark
    ("gamma discount_factor", "algo.discount", ""),
    ("lr learning_rate", "algo.actor_lr algo.critic_lr", ""),
    ("actor_learning_rate policy_learning_rate policy_lr pi_lr lr_actor", "algo.actor_lr", ""),
    ("critic_learning_rate q_learning_rate qf_lr q_lr value_lr lr_critic", "algo.critic_lr", ""),
    ("polyak", "algo.tau", "which is 1 - polyak"),
    ("soft_tau soft_target_tau critic_target_tau target_tau", "algo.tau", ""),
    ("batch mini_batch_size minibatch_size", "algo.batch_size", ""),
    ("net_arch hidden_dim hidden_size hidden_layers num_cells hid ac_kwargs", "algo.hidden_sizes", "such as [256,256]"),
    ("policy_kwargs hidden_sizes", "algo.hidden_sizes", "such as [256,256]"),
    ("simba use_simba", "network=simba", ""),
    ("num_blocks n_blocks", "network.actor_blocks network.critic_blocks", ""),
    ("actor_num_blocks", "network.actor_blocks", ""),
    ("critic_num_blocks", "network.critic_blocks", ""),
    ("actor_hidden_dim", "network.actor_size", ""),
    ("critic_hidden_dim", "network.critic_size", ""),
    ("layer_norm layernorm use_layer_norm use_layernorm use_ln", "network=layer_norm", "or network=simba"),
    ("policy_freq policy_frequency policy_update_freq", "algo.policy_delay", ""),
    ("actor_update_freq update_actor_freq", "algo.policy_delay", ""),
    ("target_noise target_policy_noise target_sigma", "algo.policy_noise", ""),
    ("target_noise_clip", "algo.noise_clip", ""),
    ("n_critics n_qs num_qs", "algo.num_critics", ""),
    ("weight_decay adamw", "algo.weight_decay algo.critic_weight_decay", "AdamW's of all networks and an L2 penalty"),
    ("n_step nstep multi_step", "algo.n_steps", ""),
    ("grad_clip clip_grad clip_grad_norm gradient_clipping grad_norm_clip", "algo.max_grad_norm", ""),
    (
        "target_update_interval target_network_frequency target_update_freq target_update_period",
        "algo.target_copy_every",
        "",
    ),
    ("prioritized_replay per use_per prioritized lap use_lap", "replay=lap", ""),
    ("prioritized_replay_alpha per_alpha", "replay=lap replay.alpha", ""),
    ("torch_compile compile_mode jit", "compile", ""),
    ("normalize norm_obs normalize_observations obs_norm", "algo.normalize_obs", ""),
    ("expl_noise exploration_noise noise_std act_noise sigma ou_sigma std stddev", "noise.scale", ""),
    ("action_noise noise_type", "noise noise.scale", ""),
    ("noise_color color noise_beta", "noise=colored noise.beta", ""),
    ("pink pink_noise", "noise=pink", ""),
    ("ou_theta", "noise.theta", ""),
    ("ou_dt", "noise.dt", ""),
    ("start_steps start_timesteps warmup warmup_steps seed_steps num_seed_steps", "random_steps", ""),
    ("init_steps init_random_steps init_random_frames initial_random_steps", "random_steps", ""),
    ("update_after min_replay_size learning_start", "learning_starts", ""),
    ("gradient_steps train_freq update_every utd utd_ratio update_per_step", "updates_per_step", ""),
    ("max_timesteps total_timesteps n_timesteps num_timesteps timesteps max_steps", "total_steps", ""),
    ("num_steps train_steps num_train_steps total_env_steps total_frames steps", "total_steps", ""),
    ("epochs epoch n_epochs steps_per_epoch step_per_epoch", "total_steps", "of all epochs together"),
    ("replay_size memory_size replay_buffer_size max_replay_size buffer_limit", "buffer_size", ""),
    ("buffer_capacity replay_capacity replay_buffer_capacity capacity replay.size replay.max_size", "buffer_size", ""),
    ("offline dataset_path dataset_name dataset_id", "dataset=RUN_DIR", "or dataset=minari:NAME"),
    ("optimize_memory_usage", "share_next_obs", ""),
    ("handle_timeout_termination", "truncation_bootstraps", ""),
    ("env_id env_name env.name gym_id environment task", "env", ""),
    ("env_kwargs env_args", "env.kwargs.NAME", ""),
    ("max_ep_len max_episode_length max_episode_len time_limit", "env.max_episode_steps", ""),
    ("n_envs num_env n_env training_num", "num_envs", ""),
    ("n_seeds", "num_seeds", ""),
    ("algorithm agent policy", "algo", ""),
    ("preset hyperparams", "experiment", ""),
    ("cuda gpu use_cuda use_gpu", "device", "such as cuda or cpu"),
    ("num_threads torch_threads n_threads", "threads", ""),
    ("dtype", "precision", ""),
    ("eval_freq eval_frequency eval_interval eval_every eval.freq eval.interval", "eval.every", ""),
    ("n_eval_episodes eval_episodes num_eval_episodes num_test_episodes test_num", "eval.episodes", ""),
    ("save_freq save_interval checkpoint_freq checkpoint_interval save_every", "checkpoint.every", ""),
    ("log_interval log_freq log_frequency", "log.every", ""),
    ("exp_name run_name log_dir logdir log_folder tensorboard_log", "hydra.run.dir", ""),
    ("save_dir output_dir out_dir run_dir", "hydra.run.dir", ""),
    ("load_model load trained_agent checkpoint_path", "resume", "which takes a run folder"),
)
CHOICES = {"replay": {"per": "lap", "prioritized": "lap", "prioritised": "lap"}}  # names elsewhere, by group
_COUNTERPARTS = {
    name: Counterpart(tuple(keys.split()), remark) for names, keys, remark in TABLE for name in names.split()
}
