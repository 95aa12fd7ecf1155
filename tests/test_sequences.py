"""Sequences: recurrent units against PyTorch's, returns and running scales against numbers, replays row by row."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shoal import tree
from shoal.nets.dense import AgentNet
from shoal.nets.gru import CHUNK, Gru, plain
from shoal.nets.mixers import Monotonic, Sum, _Mixed, mix
from shoal.nets.normalise import ValueNorm
from shoal.nets.together import foresee
from shoal.replay import Replay, SumTree, allocate
from shoal.returns import n_step, td_target
from shoal.threads import Crew
from shoal.types import Batch, Discrete, EnvSpec, GroupSpec, ShoalError

TIME, ROWS, SIZE, WIDTH = 6, 5, 4, 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Recurrent units


def gru_inputs(
    copies: int, dtype: torch.dtype, resets: bool, rows: int = ROWS
) -> tuple[Gru, Tensor, Tensor, Tensor, Tensor]:
    """A unit, x, memory, keep and a gradient of the output."""
    g = generator(copies)
    gru = Gru(SIZE, WIDTH, copies, g).to(dtype)
    x = torch.randn(copies, TIME, rows, SIZE, generator=g, dtype=dtype).requires_grad_()
    memory = torch.randn(copies, rows, WIDTH, generator=g, dtype=dtype).requires_grad_()
    keep = torch.rand(TIME, rows, generator=g) < 0.6 if resets else torch.ones(TIME, rows, dtype=torch.bool)
    return gru, x, memory, keep, torch.randn(copies, TIME, rows, WIDTH, generator=g, dtype=dtype)


def torch_gru(gru: Gru, copy: int) -> nn.GRU:
    """PyTorch's, with the weights of one copy."""
    theirs = nn.GRU(SIZE, WIDTH).to(gru.input_weight.dtype)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(gru.input_weight[copy].T)
        theirs.weight_hh_l0.copy_(gru.memory_weight[copy].T)
        theirs.bias_ih_l0.copy_(gru.input_bias[copy, 0])
        theirs.bias_hh_l0.copy_(gru.memory_bias[copy, 0])
    return theirs


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_gru_and_its_gradients_are_torchs(copies: int, dtype: torch.dtype, atol: float) -> None:
    """Double precision goes through `plain`, single through the compiled loops."""
    gru, x, memory, keep, grad = gru_inputs(copies, dtype, resets=False)
    out = gru(x, memory, keep)
    weights = [gru.input_weight, gru.input_bias, gru.memory_weight, gru.memory_bias]
    ours = torch.autograd.grad(out, [x, memory, *weights], grad)
    for c in range(copies):
        theirs = torch_gru(gru, c)
        expected, _ = theirs(x[c], memory[c].unsqueeze(0))
        assert torch.allclose(out[c], expected, atol=atol)
        names = ["weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0"]
        wanted = torch.autograd.grad(expected, [x, memory, *(getattr(theirs, name) for name in names)], grad[c])
        assert torch.allclose(ours[0][c], wanted[0][c], atol=atol)
        assert torch.allclose(ours[1][c], wanted[1][c], atol=atol)
        for mine, other in zip(ours[2:], wanted[2:], strict=True):
            assert torch.allclose(mine[c], other.T if other.ndim == 2 else other.unsqueeze(0), atol=atol)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("rows", [ROWS, 45, 300])  # all steps' gradients gathered at once, in parts, a step at a time
def test_compiled_gru_resets_as_the_plain_one_does(copies: int, rows: int) -> None:
    gru, x, memory, keep, grad = gru_inputs(copies, torch.float32, resets=True, rows=rows)
    assert not keep[0].all()
    assert not keep[1:].all()
    drive = torch.baddbmm(gru.input_bias, x.flatten(1, 2), gru.input_weight).unflatten(1, x.shape[1:3])
    expected = plain(drive, memory, gru.memory_weight, gru.memory_bias, keep)
    out = gru(x, memory, keep)
    assert torch.allclose(out, expected, atol=1e-4)
    inputs = [x, memory, *gru.parameters()]
    for mine, other in zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-4)


@pytest.mark.parametrize("rows", [ROWS, 3 * CHUNK + 1])
def test_threads_and_the_layers_before_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the equations one at a time; with two threads to the bit what one has."""
    monkeypatch.setattr("shoal.nets.gru.PART", 1000)  # a part for each chunk
    monkeypatch.setattr("shoal.nets.gru.LEAST", 1)
    g = generator(2)
    net = AgentNet(2, (4, 20, 9, 2), shared=False, generator=g, memory=WIDTH)
    x, memory = torch.randn(2, TIME, rows, 4, generator=g), torch.randn(2, rows, WIDTH, generator=g)
    keep = torch.rand(TIME, rows, generator=g) < 0.6
    layers = net.mlp.layers
    drive = net.mlp(x.flatten(1, 2)).relu() @ net.gru.input_weight + net.gru.input_bias
    drive = drive.unflatten(1, (TIME, rows))
    expected = plain(drive, memory, net.gru.memory_weight, net.gru.memory_bias, keep)
    weights = [tensor for layer in (*layers, *net.gru.layers) for tensor in layer]
    wanted = torch.autograd.grad(expected.square().sum(), weights)
    found = []
    for crew in (None, Crew(2)):
        net.gru.crew = crew
        out = net.gru.through(x, memory, keep, before=layers)[0]
        assert torch.allclose(out, expected, atol=1e-5)
        found.append(torch.autograd.grad(out.square().sum(), weights))
    for one, two, other in zip(*found, wanted, strict=True):
        assert torch.equal(one, two)
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [2, 19])  # which lie by columns, and by rows
@pytest.mark.parametrize(("shared", "asked"), [(True, "both"), (False, "both"), (True, "out"), (True, "memory")])
def test_compiled_networks_with_memory_are_the_plain_ones(
    shared: bool, asked: str, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision the equations are computed one at a time; the compiled way numbers agents, and adds parts."""
    monkeypatch.setattr("shoal.nets.gru.PART", 1000)
    monkeypatch.setattr("shoal.nets.gru.LEAST", 1)
    g = generator(3)
    net = AgentNet(3, (4, 20, 9, outputs), shared=shared, generator=g, memory=WIDTH)
    plainly = copy.deepcopy(net).double()
    batch = CHUNK + 1
    x, memory = torch.randn(TIME, batch, 3, 4, generator=g), torch.randn(batch, 3, WIDTH, generator=g)
    ended = torch.rand(TIME, batch, generator=g) < 0.3
    weights = [torch.randn(TIME, batch, 3, size, generator=g) for size in (outputs, WIDTH)]
    found = []
    for each in (net, plainly):
        kind = next(each.parameters()).dtype
        inputs = [tensor.to(kind).requires_grad_() for tensor in (x, memory)]
        results = each.unroll(*inputs, ended)
        if asked != "both":
            results = results[:1] if asked == "out" else results[1:]
        loss = sum((result * w).sum() for result, w in zip(results, weights[asked == "memory" :], strict=False))
        found.append((*results, *torch.autograd.grad(loss, [*inputs, *each.parameters()], materialize_grads=True)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-4)


def test_a_reset_gru_is_torchs_started_anew() -> None:
    gru, x, memory, _, _ = gru_inputs(1, torch.float32, resets=False)
    keep = torch.ones(TIME, ROWS, dtype=torch.bool)
    keep[3] = False
    theirs = torch_gru(gru, 0)
    first, second = theirs(x[0, :3], memory)[0], theirs(x[0, 3:])[0]
    assert torch.allclose(gru(x, memory, keep)[0], torch.cat([first, second]), atol=1e-4)


def unrolled(shared: bool) -> tuple[AgentNet, Tensor, Tensor, Tensor, Tensor]:
    """A net, x, next_x, memory and ended; next_x is x of the next time unless the episode ended."""
    g = generator(1)
    net = AgentNet(3, (4, 8, 6, 2), shared=shared, generator=g, memory=5)
    x, memory = torch.randn(TIME, ROWS, 3, 4, generator=g), torch.randn(ROWS, 3, 5, generator=g)
    ended = torch.rand(TIME, ROWS, generator=g) < 0.3
    assert ended[:-1].any()
    anew = ended.view(TIME, ROWS, 1, 1).clone()
    anew[-1] = True
    next_x = torch.where(anew, torch.randn(x.shape, generator=g), x.roll(-1, 0))
    return net, x, next_x, memory, ended


@pytest.mark.parametrize("shared", [False, True])
def test_unroll_is_repeated_steps(shared: bool) -> None:
    net, x, _, memory, ended = unrolled(shared)
    out, after = net.unroll(x, memory, ended)
    for t in range(TIME):
        expected, memory = net.step(x[t], memory)
        assert torch.allclose(out[t], expected, atol=1e-5)
        assert torch.allclose(after[t], memory, atol=1e-5)
        memory = memory * ~ended[t].view(-1, 1, 1)


@pytest.mark.parametrize("shared", [False, True])
def test_foresee_is_a_step_on_the_successor(shared: bool) -> None:
    net, x, next_x, memory, ended = unrolled(shared)
    out, after = net.unroll(x, memory, ended)
    before = out.clone()
    everyone = torch.zeros(TIME, ROWS, 0, 0, dtype=torch.bool)
    following = foresee({"a": net}, {"a": next_x}, {"a": out}, {"a": after}, ended, everyone)["a"]
    for t in range(TIME):
        assert torch.allclose(following[t], net.step(next_x[t], after[t])[0], atol=1e-5)
    assert torch.equal(out, before)


# Mixers


def test_sum_is_the_sum() -> None:
    q = torch.randn(4, 5, 3)
    assert torch.allclose(Sum()(q, q), q[..., 0] + q[..., 1] + q[..., 2])


@pytest.mark.parametrize("seed", range(4))
def test_monotonic_mixer_never_falls_with_an_agents_value(seed: int) -> None:
    g = generator(seed)
    mixer = Monotonic(3, 6, 8, 16, g)
    q = torch.randn(50, 3, generator=g).mul_(5).requires_grad_()
    state = torch.randn(50, 6, generator=g)
    (slope,) = torch.autograd.grad(mixer(q, state).sum(), q)
    assert (slope >= 0).all()
    assert (slope > 0).any(0).all()


@pytest.mark.parametrize(("agents", "embed"), [(1, 4), (3, 32), (5, 7)])
def test_compiled_mixing_is_the_plain_one(agents: int, embed: int) -> None:
    g = generator()
    q = torch.randn(6, 11, agents, generator=g).mul_(3).requires_grad_()
    weights = torch.randn(6, 11, (agents + 2) * embed + 1, generator=g).requires_grad_()
    grad = torch.randn(6, 11, generator=g)
    found, expected = _Mixed.apply(q, weights), mix(q, weights)
    assert torch.allclose(found, expected, atol=1e-4)
    gradients = (torch.autograd.grad(out, (q, weights), grad) for out in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


# Returns and scales


def columns(*numbers: float) -> Tensor:
    return torch.tensor(numbers).unsqueeze(1)


def test_three_step_return_without_an_end() -> None:
    no = torch.zeros(4, 1, dtype=torch.bool)
    target = n_step(columns(1, 2, 4, 8), no, no, columns(10, 20, 30, 40), 0.5, 3)
    assert target.squeeze(1).tolist() == [1 + 1 + 1 + 30 / 8, 2 + 2 + 2 + 40 / 8]


def test_termination_ends_a_return_for_good() -> None:
    stop = columns(0, 1, 0, 0).bool()
    target = n_step(columns(1, 2, 4, 8), stop, stop, columns(10, 20, 30, 40), 0.5, 3)
    assert target.squeeze(1).tolist() == [1 + 1, 2]


def test_time_limit_ends_a_return_with_its_own_successors_value() -> None:
    no, ended = torch.zeros(4, 1, dtype=torch.bool), columns(0, 1, 0, 0).bool()
    target = n_step(columns(1, 2, 4, 8), no, ended, columns(10, 20, 30, 40), 0.5, 3)
    assert target.squeeze(1).tolist() == [1 + 1 + 20 / 4, 2 + 20 / 2]


def test_termination_of_one_agent_leaves_the_others_returns() -> None:
    """The episode goes on: `ended` is broadcast over agents, `terminated` is each one's."""
    reward, value = torch.ones(3, 1, 2), torch.full((3, 1, 2), 8.0)
    terminated = torch.zeros(3, 1, 2, dtype=torch.bool)
    terminated[1:, 0, 0] = True
    target = n_step(reward, terminated, torch.zeros(3, 1, 1, dtype=torch.bool), value, 0.5, 3)
    assert target.flatten().tolist() == [1 + 0.5, 1 + 0.5 + 0.25 + 1]


def test_one_step_return_is_the_td_target() -> None:
    g = generator()
    reward, value = torch.randn(5, 4, generator=g), torch.randn(5, 4, generator=g)
    terminated, ended = torch.rand(5, 4, generator=g) < 0.3, torch.rand(5, 4, generator=g) < 0.3
    expected = td_target(reward, terminated, value, 0.9)
    assert torch.equal(n_step(reward, terminated, ended, value, 0.9, 1), expected)


def test_value_norm_is_the_weighted_mean_and_deviation_of_a_constant_stream() -> None:
    norm, g = ValueNorm(), generator()
    values, weights = torch.randn(40, generator=g) * 5 + 3, torch.rand(40, generator=g)
    weights = weights / weights.sum()
    for _ in range(5):
        norm.update(values, weights)
    mean = np.average(values.numpy(), weights=weights.numpy())
    variance = np.average((values.numpy() - mean) ** 2, weights=weights.numpy())
    got_mean, got_std = norm.scale()
    assert got_mean.item() == pytest.approx(mean, rel=1e-4)
    assert got_std.item() == pytest.approx(variance**0.5, rel=1e-4)


def test_value_norm_is_the_identity_at_first() -> None:
    x = torch.randn(5)
    assert torch.equal(ValueNorm().normalise(x), x)
    assert torch.equal(ValueNorm().restore(x), x)


def test_value_norm_restores_what_it_normalised() -> None:
    norm, x = ValueNorm(), torch.randn(30) * 7 - 20
    norm.update(x, torch.full((30,), 1 / 30))
    assert norm.normalise(x).mean().abs() < 1e-3
    assert torch.allclose(norm.restore(norm.normalise(x)), x, atol=1e-4)


# Replays

SPEC = EnvSpec({"agent": GroupSpec(("a", "b"), (2,), Discrete(3))}, 1)
ENVS = 3


def replay(rows: int = 10, length: int = 4, batch: int = 64, **settings: Any) -> Replay:
    return Replay(
        SPEC, ENVS, capacity=rows * ENVS, batch_size=batch, update_every=1_000_000, warmup=0, generator=generator(),
        length=length, memory=2, **settings,
    )  # fmt: skip


def play(into: Replay, steps: int, at_once: int = 1) -> None:
    """Rows whose observation is (time, environment) and whose memory is time + 0.5."""
    for _ in range(0, steps, at_once):
        rollout = allocate(SPEC, (at_once, ENVS), {"agent": 2})
        time = torch.arange(into.written, into.written + at_once).float().view(-1, 1, 1)
        agents = rollout.groups["agent"]
        agents.obs[..., 0] = time
        agents.obs[..., 1] = torch.arange(ENVS).view(1, -1, 1)
        agents.memory.copy_((time + 0.5).unsqueeze(-1).expand_as(agents.memory))
        list(into.add(rollout))


def times(batch: Batch) -> Tensor:
    """`[time, batch]` when each drawn row was played; all of a sequence in one environment, one after another."""
    obs = batch.groups["agent"].obs[:, :, 0]
    assert (obs[1:, :, 0] == obs[:-1, :, 0] + 1).all()
    assert (obs[..., 1] == obs[:1, :, 1]).all()
    return obs[..., 0]


@pytest.mark.parametrize("priority", [0.0, 0.6])
@pytest.mark.parametrize("steps", [5, 10, 13, 27])
def test_rows_of_a_sequence_follow_each_other(priority: float, steps: int) -> None:
    """Also after the ring of 10 rows wraps; and every possible start is drawn, in every environment."""
    ring = replay(batch=600, priority=priority)
    play(ring, steps)
    batch = ring.sample()
    first = times(batch)[0]
    assert set(first.tolist()) == set(range(max(steps - 10, 0), steps - 3))
    assert set(batch.groups["agent"].obs[0, :, 0, 1].tolist()) == {0, 1, 2}


def test_memory_is_stored_with_every_row() -> None:
    """Any can be a sequence's first, whose memory is drawn."""
    ring = replay(batch=600)
    play(ring, 13)
    batch = ring.sample()
    assert len(times(batch)[0].unique()) == 7
    assert torch.equal(batch.groups["agent"].memory[:, :, 1, 0], times(batch)[:1] + 0.5)


def test_cut_ends_the_sequences_at_the_latest_row_only() -> None:
    ring = replay(batch=400)
    ring.cut(torch.tensor([True, True, True]))  # nothing there yet
    assert not ring.storage.ended.any()
    play(ring, 12)
    ring.cut(torch.tensor([True, False, True]))
    play(ring, 3)
    batch = ring.sample()
    assert torch.equal(batch.ended, (times(batch) == 11) & (batch.groups["agent"].obs[..., 0, 1] != 1))
    assert batch.ended.any()


def test_sum_tree_draws_in_proportion() -> None:
    weights = SumTree(11, 1.0)
    p = torch.rand(11, generator=generator(3), dtype=torch.float64)
    p[4] = 0
    weights.set(torch.arange(11), p)
    slots, probability = weights.sample(20_000, generator())
    expected = p / p.sum()
    assert torch.allclose(torch.bincount(slots, minlength=11).double() / 20_000, expected, atol=1e-3)
    assert torch.allclose(probability, expected[slots].float())
    assert not (slots == 4).any()


def test_sum_tree_overwrites() -> None:
    weights = SumTree(6, 1.0)
    weights.set(torch.arange(6), torch.tensor([9.0, 9, 9, 0, 0, 9]))
    weights.set(torch.tensor([0, 1, 2, 3, 5, 5]), torch.tensor([0.0, 0, 1, 3, 7, 0]))
    slots, _ = weights.sample(4000, generator())
    assert torch.bincount(slots, minlength=6).tolist() == pytest.approx([0, 0, 1000, 3000, 0, 0], abs=2)
    assert weights.sums[1].item() == 4


def test_sum_tree_raises_errors_to_the_exponent_and_remembers_the_highest() -> None:
    weights = SumTree(4, 0.5)
    assert weights.of(torch.tensor([4.0, -9.0])).tolist() == pytest.approx([2, 3], abs=1e-5)
    weights.of(torch.tensor([1.0]))
    assert weights.highest.item() == pytest.approx(3, abs=1e-5)


def test_overwritten_rows_start_no_sequence() -> None:
    """Whatever the priorities were of what was there before."""
    ring = replay(priority=1.0)
    play(ring, 10)
    for _ in range(30):
        first = times(ring.sample())[0]
        assert first.min() >= ring.written - 10
        ring.prioritise(1e4 * (first == first.min()).float())
        play(ring, 1)


@pytest.mark.parametrize("at_once", [8, 10])
def test_rollouts_nearly_as_long_as_the_ring_start_no_broken_sequence(at_once: int) -> None:
    """Over 10 - 4 + 1 rows at once: some rows of which sequences would now be complete are gone again."""
    ring = replay(batch=600, priority=0.6)
    play(ring, 4 * at_once, at_once)
    assert set(times(ring.sample())[0].tolist()) == set(range(ring.written - 10, ring.written - 3))


def test_importance_weights_are_the_papers() -> None:
    """w = (N P)^-beta / max w, P = p^alpha / sum p^alpha; N = 7 starts in each of 3 environments."""
    ring = replay(batch=400, priority=0.6, correction=0.4)
    play(ring, 10)
    ring.sample()
    assert torch.allclose(ring.weight, torch.ones(400))
    assert len(ring.slots.unique()) == 21
    error = ring.slots.float() + 1
    ring.prioritise(error)
    ring.sample()
    p = (torch.arange(21) + 1 + 1e-6) ** 0.6
    weight = (21 * p / p.sum())[ring.slots] ** -0.4
    assert torch.allclose(ring.weight, weight / weight.max(), atol=1e-5)
    assert ring.weight.max() == 1


@pytest.mark.parametrize("priority", [0.0, 0.6])
@pytest.mark.parametrize("steps", [7, 14])
def test_a_restored_replay_draws_the_same(priority: float, steps: int) -> None:
    one, two = (replay(priority=priority, correction=0.4) for _ in range(2))
    play(one, steps)
    one.sample()
    one.prioritise(torch.rand(64, generator=generator(5)) * 10)
    two.load_state_dict(tree.map(torch.clone, one.state_dict()))
    for _ in range(3):
        drawn = tree.map(torch.clone, one.sample())
        for a, b in zip(tree.leaves(drawn), tree.leaves(two.sample()), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.weight, two.weight)
        for ring in (one, two):
            ring.prioritise(torch.arange(64.0))
            play(ring, 1)


@pytest.mark.parametrize(("rows", "length"), [(3, 4), (0, 0)])
def test_refusal_of_too_small_a_replay_names_buffer_size(rows: int, length: int) -> None:
    with pytest.raises(ShoalError, match=f"buffer_size.*use {ENVS * max(length, 1)} or more"):
        replay(rows=rows, length=length)


def test_refusal_of_too_large_a_replay_names_buffer_size() -> None:
    with pytest.raises(ShoalError, match="set buffer_size to"):
        replay(rows=10**12)


def test_new_rows_are_as_urgent_as_any_was() -> None:
    ring = replay(priority=1.0)
    play(ring, 5)
    ring.sample()
    ring.prioritise(torch.full((64,), 100.0))
    play(ring, 1)
    assert ring.priorities is not None
    newest = ring._slots(torch.tensor([ring.written - 4]))
    assert ring.priorities.sums[ring.priorities.leaves + newest].tolist() == pytest.approx([100.0] * ENVS)
