"""Trained policies as ONNX files for decentralised execution: what one agent computes, without torch and without shoal.

A group becomes one file; a row of its inputs is one agent at one instant, and `agent` says which of the group it is.

    inputs    agent [batch], obs [batch, *obs_shape], legal [batch, size], memory [batch, width],
              messages [batch, rounds, speaker, message], heard [batch, rounds, speaker]
    outputs   action [batch] or [batch, size], logits or std [batch, size], next_memory [batch, width],
              message [batch, rounds, message]

Inputs and outputs that a policy does not need are not there. Agents that talk are asked `rounds + 1` times in a step,
with all that they have heard so far: the k-th answer's `message[:, k]` is what they say in round k (from 0), and the
last answer's `action` and `next_memory` count. `policy.json` beside the files says what must be known to run them.
"""

from shoal.export.agent import Agent
from shoal.export.files import FILE, PACKAGES, export, to_onnx, write
from shoal.export.player import players
from shoal.export.same import TOLERANCE, check

__all__ = ["FILE", "PACKAGES", "TOLERANCE", "Agent", "check", "export", "players", "to_onnx", "write"]
