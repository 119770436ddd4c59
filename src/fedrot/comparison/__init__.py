"""Comparisons: variants by seeds by grid points, each cell one run of one recipe, with statistics that pair by seed."""

from __future__ import annotations

from fedrot.comparison.run import Comparison, Watcher, compare

__all__ = ["Comparison", "Watcher", "compare"]
