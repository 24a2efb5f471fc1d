"""Public learners that are no packages, for `bench`: classes of their authors, out of a checkout that the user names.

Each is built in the sizes of our recipe and calls what its authors' training loop calls, sampling from their own replay
included; nothing of theirs is changed but what is said here. The libraries that a checkout needs must be installed
beside it: jax, flax, optax, tensorflow-probability and gym for RLPD, the same with gymnasium, wandb, omegaconf and
termcolor for XQC, torch for MR.Q.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from robot_rl.learn.bench import ACTION, BATCH, FILL, OBS, PERIOD

EPISODE = 1_000


def contestant(request: dict[str, Any]) -> tuple[Callable[[], int], dict[str, Any]]:
    """A function that makes the updates of one environment step (of MR.Q one period), and nothing to report.

    `request` has name, path (the checkout), updates (in a call) and options, those of our recipe.
    """
    makers = {"rlpd": _rlpd, "mrq": _mrq, "xqc": _xqc}
    return makers[request["name"]](request["path"], request["updates"], request["options"]), {}


def _rlpd(path: str, updates: int, options: dict[str, Any]) -> Callable[[], int]:
    """`ikostrikov/rlpd`: as many layer-normalised critics, as many of them in a target, one actor update a call."""
    os.environ["FLAX_RETURN_FROZENDICT"] = "1"  # it was written for a flax that did so always
    sys.path.insert(0, path)
    import gym
    import jax
    import numpy as np
    import tensorflow_probability.substrates.jax  # noqa: F401  # it takes this for loaded
    from rlpd.agents import SACLearner
    from rlpd.data import ReplayBuffer

    seen = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    done = gym.spaces.Box(-1, 1, (ACTION,), np.float32)
    learner = SACLearner.create(0, seen, done, hidden_dims=tuple(options["hidden"]), num_qs=options["critics"],
                                num_min_qs=options["subset"], critic_layer_norm=True)
    replay, random = ReplayBuffer(seen, done, 2 * FILL), np.random.default_rng(0)
    for _ in range(FILL):
        obs, following = random.normal(size=(2, OBS))
        replay.insert({"observations": obs, "actions": random.uniform(-1, 1, ACTION), "rewards": random.normal(),
                       "masks": 1.0, "dones": False, "next_observations": following})

    def call() -> int:
        nonlocal learner
        learner, said = learner.update(replay.sample(BATCH * updates), updates)
        jax.block_until_ready(said)
        return updates

    return call


def _mrq(path: str, updates: int, options: dict[str, Any]) -> Callable[[], int]:
    """`facebookresearch/MRQ`, whose actor learns in every update.

    It asks a GPU for its free memory; here it is told that there is enough.
    """
    sys.path.insert(0, os.path.join(path, "MRQ"))
    import numpy as np
    import torch

    torch.cuda.mem_get_info = lambda *device: (2**62, 2**62)
    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from MRQ import Agent

    width, hidden = options["width"], options["hidden"][0]
    sizes = {"batch_size": BATCH, "buffer_size": 2 * FILL, "buffer_size_before_training": 1,
             "target_update_freq": PERIOD, "enc_horizon": options["horizon"], "value_hdim": hidden,
             "policy_hdim": hidden, "zs_dim": width, "zsa_dim": width, "enc_hdim": width, "za_dim": width // 2}
    learner = Agent((OBS,), ACTION, 1.0, False, False, torch.device("cpu"), 1, sizes)
    learner.replay_buffer.priority.zero_()  # of places not yet used; as they come, some are no numbers
    random = np.random.default_rng(0)
    for step in range(FILL):
        obs, following = random.normal(size=(2, OBS))
        learner.replay_buffer.add(obs, random.uniform(-1, 1, ACTION), following, random.normal(), False,
                                  step % EPISODE == EPISODE - 1)

    def call() -> int:
        for _ in range(updates):
            learner.train()
        return updates

    return call


def _xqc(path: str, updates: int, options: dict[str, Any]) -> Callable[[], int]:
    """`danielpalenicek/xqc`, its own options in the sizes of our default."""
    sys.path.insert(0, path)
    import gymnasium
    import jax
    import numpy as np
    from xqc.agents.xqc.xqc_learner import XQCLearner
    from xqc.replay_buffer import ParallelReplayBuffer

    rates = {"actor_lr": 3e-4, "critic_lr": 3e-4, "temp_lr": 3e-4, "lr_end": 3e-4, "num_interactions": 10**6}
    shape = {"use_layer_norm": False, "use_batch_norm": True, "use_weight_norm": True, "normalize_last_layer": True,
             "skip_connections": False, "pre_activation_bn": True, "decay_bn": False, "weight_decay": 0.0}
    learner = XQCLearner(
        0, np.zeros((1, OBS), np.float32), np.zeros((1, ACTION), np.float32),
        hidden_dims_critic=tuple(options["critic_hidden"]), hidden_dims_actor=tuple(options["hidden"]),
        n_critics=options["critics"], critic_loss="categorical", max_v=5.0,
        min_v=-5.0, policy_delay=3, updates_per_step=updates, tau=0.005, target_net_update_freq=1,
        target_entropy="auto", init_temperature=0.01, num_seeds=1, **rates, **shape)
    seen = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    done = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)
    replay, random = ParallelReplayBuffer(seen, done, 2 * FILL, 1, 1, 0.99), np.random.default_rng(0)
    one, zero = np.ones(1), np.zeros(1)
    for step in range(FILL):
        obs, following = random.normal(size=(2, 1, OBS))
        ends = one if step % EPISODE == EPISODE - 1 else zero
        replay.insert(obs, random.uniform(-1, 1, (1, ACTION)), random.normal(size=1), one, ends, following)

    def call() -> int:
        jax.block_until_ready(learner.update(replay.sample_parallel_multibatch(BATCH, updates), updates))
        return updates

    return call
