"""Learning algorithms: one file a family. A module lists its presets, by the papers' names, in `PRESETS`."""
