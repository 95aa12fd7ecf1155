"""simple_crypto (covert communication): Alice sends Bob a message that Eve, who hears every word, must not understand.

Nobody moves; each says one of four words. Alice knows the message, one of two words, and shares a random key with Bob.
Bob and Eve answer with what they take for the message. A listener's error is the squared distance of its word from the
message (2 where a wrong word is chosen, 0 where it says nothing). Eve is rewarded with minus her error, Alice and Bob
with Eve's less Bob's. Observation: message and key for Alice, key and Alice's word for Bob, Alice's word for Eve; each
is four numbers, words being one-hot.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.envs.common import pcg64
from shoal.envs.mpe.world import Agent, Landmark, Layout, scatter
from shoal.jit import compiled

EVE, BOB, ALICE = 0, 1, 2
WORDS = 4
COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # a landmark for each message and key there is
MESSAGE, KEY = 0, 1  # in w.goal


class Params(NamedTuple):
    """Nothing to choose."""


def layout(p: Params) -> Layout:
    dark = (0.25, 0.25, 0.25)
    agents = [
        Agent("eve_0", WORDS, movable=False, collide=False, silent=False, color=(0.75, 0.25, 0.25)),
        Agent("bob_0", 2 * WORDS, movable=False, collide=False, silent=False, color=dark),
        Agent("alice_0", 2 * WORDS, movable=False, collide=False, silent=False, color=dark),
    ]
    return Layout(agents, [Landmark(color=color) for color in COLORS], dim_c=WORDS, goals=2)


def colors(p, w):  # type: ignore[no-untyped-def]
    return {BOB: COLORS[w.goal[MESSAGE]]}


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    w.goal[MESSAGE] = pcg64.integer(w.rng, len(COLORS))
    w.goal[KEY] = pcg64.integer(w.rng, len(COLORS))
    scatter(w, 0, 3 + len(COLORS), 1.0)


@compiled
def _error(w, i):  # type: ignore[no-untyped-def]
    """Of listener i's answer."""
    error, silent = 0.0, True
    for c in range(WORDS):
        said = w.comm[i, c]
        silent = silent and said == 0.0
        error += (said - (c == w.goal[MESSAGE])) ** 2
    return 0.0 if silent else error


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    eve, bob = _error(w, EVE), _error(w, BOB)
    out[EVE] = -eve
    out[BOB] = out[ALICE] = eve - bob


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    for c in range(WORDS):
        key = 1.0 if c == w.goal[KEY] else 0.0
        if i == ALICE:
            out[c] = 1.0 if c == w.goal[MESSAGE] else 0.0
            out[WORDS + c] = key
        elif i == BOB:
            out[c] = key
            out[WORDS + c] = w.comm[ALICE, c]
        else:
            out[c] = w.comm[ALICE, c]
