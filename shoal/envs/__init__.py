"""Environments. A module or package here is a suite: `make(name, num_envs, **arguments)` and `names()`."""
