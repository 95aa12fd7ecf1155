"""OpenSpiel's games by name: turn-based and simultaneous ones, with chance and hidden information.

One step is one decision. In a turn-based game only the player whose turn it is acts; the others wait: they are not
`alive`, have one legal action (0, which does nothing), and go on seeing what they know. In a simultaneous game all act.
Chance plays between the steps, from a random stream of the environment's own. All players are one group `player`,
always masked; each earns what its return grew by.

A player sees OpenSpiel's information state where the game has it as a tensor, else its observation. There is no global
state. Written for `open-spiel` 2.0.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.envs.common.extras import require
from shoal.types import Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View, nearest

OPEN = True
GAMES = [
    "amazons", "antichess", "backgammon", "banqi", "bargaining", "battleship", "blotto", "breakthrough", "bridge",
    "capture_the_flag", "checkers", "chess", "chinese_checkers", "clobber", "colored_trails", "connect_four",
    "coop_box_pushing", "crazy_eights", "crazyhouse", "cursor_go", "dark_chess", "dark_hex", "dots_and_boxes",
    "dou_dizhu", "einstein_wurfelt_nicht", "euchre", "first_sealed_auction", "gin_rummy", "go", "go_fish", "gomoku",
    "goofspiel", "hanabi", "havannah", "hearts", "hex", "hive", "kriegspiel", "kuhn_poker", "laser_tag", "latent_ttt",
    "leduc_poker", "lewis_signaling", "liars_dice", "lines_of_action", "maedn", "mancala", "markov_soccer",
    "matching_pennies_3p", "matrix_bos", "matrix_brps", "matrix_cd", "matrix_coordination", "matrix_mp", "matrix_pd",
    "matrix_rps", "matrix_rpsw", "matrix_sh", "matrix_shapleys_game", "mnk", "nim", "nine_mens_morris", "oh_hell",
    "oshi_zumo", "othello", "oware", "pentago", "phantom_go", "phantom_ttt", "pig", "quoridor", "rbc",
    "repeated_leduc_poker", "sheriff", "shogi", "skat", "snake", "spades", "tic_tac_toe", "tiny_bridge_2p",
    "tiny_bridge_4p", "tiny_hanabi", "trade_comm", "twixt", "ultimate_tic_tac_toe", "universal_poker", "xiangqi", "y",
    "yacht",
]  # fmt: skip


class OpenSpielEnvs:
    """Games side by side; satisfies `VecEnv`. Environment i draws its chance from a stream seeded with (seed, i).

    Args:
        num_envs: games that step together.
        name: of the game.
        arguments: its parameters.

    Raises:
        ShoalError: no such game or parameter, or one that does not fit (mean-field games, games without tensors,
            games that draw random numbers of their own).
    """

    def __init__(self, num_envs: int, name: str, **arguments: Any) -> None:
        self.pyspiel, self.name, self.num_envs = require("pyspiel", "openspiel"), name, num_envs
        self.game = _load(self.pyspiel, name, arguments)
        kind = self.game.get_type()
        if kind.dynamics == kind.Dynamics.MEAN_FIELD or kind.chance_mode == kind.ChanceMode.SAMPLED_STOCHASTIC:
            raise ShoalError(f"{name} does not fit: it is a mean-field game, or draws random numbers of its own")
        if not (kind.provides_information_state_tensor or kind.provides_observation_tensor):
            raise ShoalError(f"{name} does not fit: it has no tensors to observe")
        self.informed = bool(kind.provides_information_state_tensor)
        shape = self.game.information_state_tensor_shape() if self.informed else self.game.observation_tensor_shape()
        self.players, self.size = self.game.num_players(), self.game.num_distinct_actions()
        agents = tuple(f"player_{p}" for p in range(self.players))
        self.spec = EnvSpec({"player": GroupSpec(agents, tuple(shape), Discrete(self.size), masked=True)})
        self.states: list[Any] = []
        self.random: list[np.random.Generator] = []
        lead = num_envs, self.players
        self._obs, self._next_obs = (np.zeros((*lead, int(np.prod(shape))), np.float32) for _ in range(2))
        self._legal, self._next_legal = (np.zeros((*lead, self.size), np.bool_) for _ in range(2))
        self._reward, self._terminated = np.zeros(lead, np.float32), np.zeros(lead, np.bool_)
        self._alive, self._ended = np.zeros(lead, np.bool_), np.zeros(num_envs, np.bool_)
        self._returns = np.zeros(lead)
        nothing = torch.zeros(num_envs, 0)
        self._view, successor = (
            View({"player": torch.from_numpy(obs).view(*lead, *shape)}, {"player": torch.from_numpy(legal)}, nothing)
            for obs, legal in ((self._obs, self._legal), (self._next_obs, self._next_legal))
        )
        reward, terminated, alive = (
            {"player": torch.from_numpy(x)} for x in (self._reward, self._terminated, self._alive)
        )
        self._step = Step(self._view, successor, reward, terminated, alive, torch.from_numpy(self._ended))

    def observe(self, state: Any, player: int) -> list[float]:
        """What a player sees in a state, flat."""
        seen = state.information_state_tensor(player) if self.informed else state.observation_tensor(player)
        return seen  # type: ignore[no-any-return]

    def _show(self, index: int) -> None:
        """Write what a game shows into the view; who has something to decide may choose, the others wait."""
        state, legal = self.states[index], self._legal[index]
        legal[:] = False
        for player in range(self.players):
            self._obs[index, player] = self.observe(state, player)
            legal[player, state.legal_actions(player) or 0] = True

    def _acting(self, state: Any) -> list[int]:
        if not state.is_simultaneous_node():
            return [state.current_player()]
        return [p for p in range(self.players) if state.legal_actions(p)]

    def _chance(self, index: int) -> None:
        """Let chance play until a player must decide."""
        state, random = self.states[index], self.random[index]
        while state.is_chance_node():
            outcomes, probabilities = zip(*state.chance_outcomes(), strict=True)
            below = np.cumsum(probabilities)
            drawn = int(np.searchsorted(below, random.random(), "right"))
            state.apply_action(outcomes[min(drawn, len(outcomes) - 1)])

    def _start(self, index: int) -> None:
        self.states[index] = self.game.new_initial_state()
        self._returns[index] = 0.0
        self._chance(index)
        self._show(index)

    def reset(self, seed: int | None = None) -> View:
        """Start every game anew; without a seed the random streams go on (or start from 0)."""
        if seed is not None or not self.random:
            self.random = [np.random.default_rng([seed or 0, i]) for i in range(self.num_envs)]
        self.states = [None] * self.num_envs
        for index in range(self.num_envs):
            self._start(index)
        return self._view

    def step(self, actions: Groups) -> Step:
        if not self.states:
            raise ShoalError("reset the environment before its first step")
        chosen: list[list[int]] = actions["player"].tolist()
        self._alive[:] = False
        for index, state in enumerate(self.states):
            acting = self._acting(state)
            for player in acting:
                if not (0 <= (action := chosen[index][player]) < self.size and self._legal[index, player, action]):
                    raise ShoalError(f"{self.name}, environment {index}: action {action} of player_{player} is illegal")
            self._alive[index, acting] = True
            if state.is_simultaneous_node():  # a player without a choice is given 0, which stands for none
                state.apply_actions([chosen[index][p] if p in acting else 0 for p in range(self.players)])
            else:
                state.apply_action(chosen[index][acting[0]])
            self._chance(index)
            returns = np.asarray(state.returns())
            self._reward[index] = returns - self._returns[index]
            self._returns[index] = returns
            ended = state.is_terminal()
            self._ended[index] = self._terminated[index] = ended
            self._show(index)
            self._next_obs[index], self._next_legal[index] = self._obs[index], self._legal[index]
            if ended:
                self._start(index)
        return self._step

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """OpenSpiel's text of the game, drawn: `[height, width, 3]`."""
        from PIL import Image, ImageDraw, ImageFont

        state = self.states[index]
        turn = "all" if state.is_simultaneous_node() else f"player_{state.current_player()}"
        text, font = f"{self.name}, to move: {turn}\n\n{state}", ImageFont.load_default(16)
        size = 480
        picture = Image.new("RGB", (size, size), "white")
        ImageDraw.Draw(picture).multiline_text((16, 16), text, fill="#222222", font=font)
        return np.asarray(picture)

    def state_dict(self) -> Tree:
        return {
            "games": [state.serialize() for state in self.states],
            "random": [random.bit_generator.state for random in self.random],
        }

    def load_state_dict(self, state: Tree) -> None:
        self.states = [self.game.deserialize_state(game) for game in state["games"]]
        self.random = [np.random.default_rng() for _ in state["random"]]
        for random, saved in zip(self.random, state["random"], strict=True):
            random.bit_generator.state = saved
        for index, game in enumerate(self.states):
            self._returns[index] = game.returns()
            self._show(index)

    def close(self) -> None:
        pass


def _load(pyspiel: ModuleType, name: str, arguments: dict[str, Any]) -> Any:
    if name not in pyspiel.registered_names():
        raise ShoalError(f"OpenSpiel has no game {name!r}; {nearest(name, names())}")
    try:
        return pyspiel.load_game(name, arguments)
    except pyspiel.SpielError as error:
        raise ShoalError(f"OpenSpiel does not make {name} with {arguments}: {error}") from error


def names() -> list[str]:
    """Games of two and more players that fit as they are by default."""
    return GAMES


def make(name: str, num_envs: int, **arguments: Any) -> OpenSpielEnvs:
    """`kuhn_poker`, with OpenSpiel's own parameters (`players=3`)."""
    return OpenSpielEnvs(num_envs, name, **arguments)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The game's parameters, with their defaults."""
    pyspiel = require("pyspiel", "openspiel")
    known = {kind.short_name: kind for kind in pyspiel.registered_games()}
    if name not in known:
        raise ShoalError(f"OpenSpiel has no game {name!r}; {nearest(name, names())}")
    specified = known[name].parameter_specification
    keyword = inspect.Parameter.KEYWORD_ONLY
    return {key: inspect.Parameter(key, keyword, default=d) for key, d in specified.items() if key.isidentifier()}
