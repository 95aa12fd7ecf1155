"""Acting in one compiled call a step: networks, exploration, and memory, for all groups (see `shoal.roll`).

What is chosen is what `actions` and `explore` choose from the same random numbers, which are drawn before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor

from shoal import actions, elementary, pointers
from shoal.elementary import exp, tanh
from shoal.jit import c_function
from shoal.nets import gru, perceptron, product
from shoal.nets.dense import AgentNet
from shoal.nets.gru import cell
from shoal.nets.perceptron import BLOCK, RELU, standardise
from shoal.nets.product import NOTHING, affine
from shoal.pointers import addresses_of, at, flags, layer, matrix, move, words
from shoal.roll import SIGNATURE
from shoal.surrogate import EXACT
from shoal.threads import Crew
from shoal.types import Compiled, Groups

Way = Literal["greedy", "draw", "log_std", "std"]
WAYS: tuple[Way, ...] = ("greedy", "draw", "log_std", "std")
GREEDY, DRAW, LOG_STD, STD = range(4)
LOWEST, HIGHEST = (np.float32(bound) for bound in actions.LOG_STD)
WORTH = 30_000_000
"""Weights that are met in a rollout, from which a thread's wake-up is worth it."""
(
    AGENTS, COPIES, OBS, OBS_ENV, OBS_AGENT, COLUMNS, NAMED, LAYERS, PARAMETERS, SIZES, MOST, UNIT, MEMORY, WIDTH,
    LEGAL, LEGAL_ENV, LEGAL_AGENT, ACTION, ACTION_ENV, ACTION_AGENT, SIZE, WAY, NOISE, NOISE_STEP, SECOND, SPREAD,
    SPREAD_COPY, OF_STATE, NORM, FIELDS,
) = range(30)  # fmt: skip


@dataclass(frozen=True)
class Chooser:
    """How a group chooses by what its network says.

    greedy          the best action, or with the step's `chance` a random one; noise `[2, env, agent]` in [0, 1): which,
                    and whether
    draw            from the softmax; noise `[env, agent]` in [0, 1)
    log_std, std    tanh of the output plus noise `[env, agent, size]`, standard normal, times a deviation; clipped

    Where the chance is 1, the last three take a random action: if it is continuous, the noise itself.
    """

    way: Way
    spread: Tensor | None = None
    """Of continuous actions: the deviation, or its logarithm, clamped to [-5, 1]: `[copies, size]`."""
    of_state: bool = False
    """The second half of the network's output is added to that."""


class Player:
    """Plays the groups of `nets` in `env`, see `Compiled`, in rollouts of `steps` steps.

    Args:
        nets: see `can_play`.
        choosers: of each group.
        memory: `[env, agent, width]` by group, contiguous; what is remembered is written there.
        draw: fills the noise of one step by group, and returns the chance.
        crew: threads that share the environments.
    """

    def __init__(
        self,
        nets: dict[str, AgentNet],
        choosers: dict[str, Chooser],
        env: Compiled,
        memory: Groups,
        steps: int,
        draw: Callable[[Groups], float],
        crew: Crew | None,
    ) -> None:
        view = env.result.view
        self.num_envs, self.steps, self.draw, self.crew = len(env.result.ended), steps, draw, crew
        self.chance = np.zeros(steps, np.float32)
        self.noise = {name: self._noise(net.num_agents, choosers[name], env.inputs[name]) for name, net in nets.items()}
        self.rows = [{name: noise[t] for name, noise in self.noise.items()} for t in range(steps)]
        self.kept: list[Any] = [nets, choosers, env.inputs, view, memory]  # whose addresses are in the tables
        seats = [
            self._seat(net, choosers[n], view.obs[n], view.legal[n], memory[n], env.inputs[n], self.noise[n])
            for n, net in nets.items()
        ]
        self.seats = np.array(seats, np.int64)
        parts = 1 if crew is None else min(crew.others + 1, self.num_envs, max(self._work(nets) // WORTH, 1))
        self.edges = [self.num_envs * k // parts for k in range(parts + 1)]
        room = max(_scratch(net) for net in nets.values())
        self.scratch = torch.zeros(parts, room)
        heads = [
            (len(seats), self.seats.ctypes.data, self.chance.ctypes.data, one.data_ptr(), product.address())
            for one in self.scratch
        ]
        self.heads = np.array(heads, np.int64)
        self.tables = [self.heads.ctypes.data + row.nbytes * k for k, row in enumerate(self.heads)]
        """Addresses, one for each part of the environments."""

    def _noise(self, agents: int, chooser: Chooser, inputs: Tensor) -> Tensor:
        lead = self.steps, *((2,) if chooser.way == "greedy" else ()), self.num_envs, agents
        return torch.zeros((*lead, *inputs.shape[2:]))

    def _work(self, nets: dict[str, AgentNet]) -> int:
        each = [
            sum(w.numel() for w in net.parameters()) * (net.num_agents if net.shared else 1) for net in nets.values()
        ]
        return sum(each) * self.num_envs * self.steps

    def _seat(
        self, net: AgentNet, chooser: Chooser, obs: Tensor, legal: Tensor, memory: Tensor, inputs: Tensor, noise: Tensor
    ) -> list[int]:
        layers = net.dense_layers
        parameters = addresses_of([tensor for pair in layers for tensor in pair])
        sizes = np.array([weight.shape[1:] for weight, _ in layers], np.int64)
        self.kept += [parameters, sizes]
        found = dict.fromkeys(range(FIELDS), 0)
        found |= {AGENTS: net.num_agents, COPIES: 1 if net.shared else net.num_agents}
        found |= {OBS: obs.data_ptr(), OBS_ENV: obs.stride(0) * 4, OBS_AGENT: obs.stride(1) * 4}
        found |= {COLUMNS: net.size, NAMED: net.identity.shape[1], NORM: int(net.mlp.norm)}
        found |= {LAYERS: len(layers), PARAMETERS: parameters.ctypes.data, SIZES: sizes.ctypes.data}
        found |= {MOST: int(sizes.max()), UNIT: len(net.mlp.layers) if net.memory else -2}
        found |= {MEMORY: memory.data_ptr(), WIDTH: net.memory}
        if legal.shape[-1]:
            found |= {LEGAL: legal.data_ptr(), LEGAL_ENV: legal.stride(0), LEGAL_AGENT: legal.stride(1)}
        item = inputs.element_size()
        found |= {ACTION: inputs.data_ptr(), ACTION_ENV: inputs.stride(0) * item, ACTION_AGENT: inputs.stride(1) * item}
        found[SIZE] = inputs.shape[2] if inputs.dim() == 3 else int(sizes[-1, 1])
        found |= {WAY: WAYS.index(chooser.way), NOISE: noise.data_ptr(), NOISE_STEP: noise.stride(0) * 4}
        found |= {SECOND: noise.stride(1) * 4, OF_STATE: int(chooser.of_state)}
        if chooser.spread is not None:
            found |= {SPREAD: chooser.spread.data_ptr(), SPREAD_COPY: chooser.spread.stride(0) * 4}
        return [found[k] for k in range(FIELDS)]

    @property
    def address(self) -> int:
        """Of the C function that acts."""
        return function().address  # type: ignore[no-any-return]

    def share(self, play: Callable[[int], None]) -> None:
        """`play` of every part of the environments, by as many threads."""
        parts = range(len(self.tables))
        if self.crew is None:
            play(0)
        else:
            self.crew.map(play, parts)

    def prepare(self) -> None:
        """Draws what the next rollout needs."""
        for t, row in enumerate(self.rows):
            self.chance[t] = self.draw(row)


def can_play(nets: dict[str, AgentNet], env: Compiled) -> bool:
    """Whether `Player` can: perceptrons on a CPU, with or without memory, that read numbers."""
    for name, net in nets.items():
        obs, weight = env.result.view.obs[name], net.mlp.layers[0][0]
        plain = net.eyes.plain and not net.channel.rounds
        numbers = obs.dtype == weight.dtype == torch.float32 and obs[0, 0].is_contiguous()
        if not (plain and numbers and weight.is_cpu and net.size):
            return False
    return True


def _scratch(net: AgentNet) -> int:
    rows, layers = max(BLOCK, net.num_agents), net.dense_layers
    most = max(max(weight.shape[1:]) for weight, _ in layers)
    return rows * (net.eyes.size + 2 * most) + 4 * net.memory


def _act(table: int, low: int, high: int, t: int) -> None:
    """Actions of environments low..high-1 in the t-th step."""
    head = words(table, 1, 5)[0]
    chance, scratch = at(head[2] + 4 * t, 1, 1)[0, 0], head[3]
    for g in range(head[0]):
        seat = words(head[1] + 8 * FIELDS * g, 1, FIELDS)[0]
        copies = seat[COPIES]
        each = seat[AGENTS] // copies
        block = max(BLOCK // each, 1)
        for c in range(copies):
            for first in range(low, high, block):
                envs = min(block, high - first)
                out, wide = _outputs(head[4], seat, c, first, envs, each, scratch)
                for row in range(envs * each):
                    _choose(seat, out + 4 * wide * row, first + row // each, c + row % each, c, t, chance)


@njit(nogil=True, error_model="numpy", fastmath=EXACT)
def _outputs(dot: Any, seat: Any, c: Any, first: Any, envs: Any, each: Any, scratch: Any) -> Any:
    """Where the network's outputs lie for the agents of copy `c` in some environments, and their width."""
    columns, named, width, rows = seat[COLUMNS], seat[NAMED], seat[WIDTH], envs * each
    layers, most, unit = seat[LAYERS], seat[MOST], seat[UNIT]
    span, place = columns + named, scratch
    for row in range(rows):
        agent = c + row % each
        here = place + 4 * span * row
        move(here, seat[OBS] + (first + row // each) * seat[OBS_ENV] + agent * seat[OBS_AGENT], 4 * columns)
        if named:
            name = at(here + 4 * columns, 1, named)[0]
            name[:] = RELU
            name[agent] = np.float32(1.0)
    high = max(BLOCK, seat[AGENTS])
    parameters, sizes = words(seat[PARAMETERS], layers, 4), words(seat[SIZES], layers, 2)
    buffers = place + 4 * high * span
    seen = at(buffers + 8 * high * most, 1, 4 * width)[0]
    for k in range(layers):
        weight, bias = layer(parameters, sizes, k, c)
        after = buffers + 4 * high * most * (k % 2)
        if k == unit + 1:
            known, apart = seat[MEMORY] + 4 * width * (first * seat[AGENTS] + c), width * (seat[AGENTS] // each)
            affine(
                dot, matrix(known, rows, width, apart), weight, bias, matrix(after, rows, 3 * width, 3 * width), NOTHING
            )
            drive = buffers + 4 * high * most * (unit % 2)
            for row in range(rows):
                own = at(known + 4 * apart * row, 1, width)[0]
                recalled = at(after + 12 * width * row, 1, 3 * width)[0]
                cell(at(drive + 12 * width * row, 1, 3 * width)[0], recalled, own, seen, own)
            place, span = known, apart
        else:
            inside = k != unit and k + 1 < layers
            floor = RELU if inside and not seat[NORM] else NOTHING
            inputs, outputs = sizes[k, 0], sizes[k, 1]
            affine(dot, matrix(place, rows, inputs, span), weight, bias, matrix(after, rows, outputs, outputs), floor)
            if inside and seat[NORM]:
                for row in range(rows):
                    hidden = at(after + 4 * outputs * row, 1, outputs)[0]
                    standardise(hidden)
                    for j in range(outputs):
                        hidden[j] = max(hidden[j], RELU)
            place, span = after, outputs
    return place, span


@njit(nogil=True, error_model="numpy", fastmath=EXACT)
def _choose(seat: Any, out: Any, env: Any, agent: Any, c: Any, t: Any, chance: Any) -> None:
    """One agent's action, from the address of its network's output."""
    size, way = seat[SIZE], seat[WAY]
    number = env * seat[AGENTS] + agent
    noise = seat[NOISE] + t * seat[NOISE_STEP]
    action = seat[ACTION] + env * seat[ACTION_ENV] + agent * seat[ACTION_AGENT]
    says = at(out, 1, 2 * size)[0]
    if way >= LOG_STD:
        spread = at(seat[SPREAD] + c * seat[SPREAD_COPY], 1, size)[0]
        push, chosen = at(noise + 4 * size * number, 1, size)[0], at(action, 1, size)[0]
        _push(says, spread, push, chosen, way == LOG_STD, seat[OF_STATE], chance >= 1)
    else:
        legal = flags(seat[LEGAL] + env * seat[LEGAL_ENV] + agent * seat[LEGAL_AGENT], size)
        luck, random = at(noise + 4 * number, 1, 1)[0, 0], chance >= 1
        if way == GREEDY:
            random = at(noise + seat[SECOND] + 4 * number, 1, 1)[0, 0] < chance
        words(action, 1, 1)[0, 0] = _pick(says, legal, seat[LEGAL] != 0, luck, random, way == DRAW)


@njit(nogil=True, error_model="numpy", fastmath=EXACT)
def _push(says: Any, spread: Any, push: Any, chosen: Any, log: Any, of_state: Any, random: Any) -> None:
    """A continuous action."""
    one = np.float32(1.0)
    for k in range(len(spread)):
        deviation = spread[k]
        if log:
            shift = says[len(spread) + k] if of_state else RELU
            deviation = exp(min(max(deviation + shift, LOWEST), HIGHEST))
        drawn = min(max(tanh(says[k]) + push[k] * deviation, -one), one)
        chosen[k] = push[k] if random else drawn


@njit(nogil=True, error_model="numpy", fastmath=EXACT)
def _pick(says: Any, legal: Any, masked: Any, luck: Any, random: Any, draw: Any) -> Any:
    """The number of a discrete action: a random one, a draw of the softmax, or the best; of those that are legal."""
    size = len(legal)
    best, count, most = np.int64(0), np.int64(0), np.float32(-np.inf)
    for k in range(size):
        if not masked or legal[k]:
            best = np.int64(k) if count == 0 or says[k] > most else best
            most = max(most, says[k])
            count += 1
    chosen = np.int64(0)
    if random:
        left = min(np.int64(luck * np.float32(count)), count - 1)  # legal ones to pass by
        while chosen < size - 1 and (left > 0 or (masked and not legal[chosen])):
            if not masked or legal[chosen]:
                left -= 1
            chosen += 1
        return chosen
    if not draw:
        return best
    total, below = RELU, RELU
    for k in range(size):
        if not masked or legal[k]:
            total += exp(says[k] - most)
    place = (np.float32(1.0) - luck) * total
    for k in range(size - 1):
        if not masked or legal[k]:
            below += exp(says[k] - most)
        if below < place:
            chosen += 1
    return chosen


@cache
def function() -> Any:
    """`_act` in C."""
    return c_function(_act, SIGNATURE, product, perceptron, gru, elementary, pointers, fastmath=EXACT)
