"""Engines: ways to run one recipe. `local` in this process."""
