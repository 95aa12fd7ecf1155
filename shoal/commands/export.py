"""`shoal export DIR --out DIR`: a run's policy as ONNX files, one a group, that run without torch and without shoal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from shoal.export import FILE, TOLERANCE, export


@dataclass(frozen=True)
class Options:
    """One ONNX file a group for decentralised execution, compared with the policy, and policy.json beside them."""

    directory: tyro.conf.Positional[Path]
    """Of the run."""
    out: Path
    """New directory."""
    checkpoint: Literal["best", "last"] = "best"
    """The best evaluation's policy, or the newest."""


def main(arguments: list[str]) -> int:
    """Write the files, and say what was compared."""
    options = tyro.cli(Options, args=arguments, prog="shoal export")
    about = export(options.directory, options.out, options.checkpoint)
    print(f"{about['algorithm']} on {about['env']}, {about['checkpoint']} checkpoint, {about['env_steps']:,} steps")
    for name, group in about["groups"].items():
        checked, size = about["check"][name], (options.out / group["file"]).stat().st_size / 1024
        facts = [f"agents: {len(group['agents'])}", f"{size:.0f} KiB"]
        facts += [f"memory {group['memory']}"] if group["memory"] else []
        facts += [f"messages of {group['message']} in rounds: {group['rounds']}"] if group["rounds"] else []
        print(f"  {group['file']}   {', '.join(facts)}")
        print(f"    {checked['compared']:,} random and played observations: ONNX Runtime chose the same actions,")
        print(f"    numbers differ by {checked['largest_difference']:.1g} at most (allowed {TOLERANCE:g})")
    print(f"wrote {options.out / FILE}")
    return 0
