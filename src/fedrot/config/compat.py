"""Deviations of published code that a recipe may ask for, one key each."""

from __future__ import annotations

from fedrot.config.section import Section


class CompatConfig(Section):
    """What published code does otherwise, each under a key of its own, see [Published code](published-code.md).

    A key that is unset follows `published`; one that is set decides for itself. All are off by default.
    """

    published: bool = False
    """All deviations that mean something with the recipe's method and settings; the run's notes list them."""
    hard_reflections: bool | None = None
    """Of `fedrot`: the full orthogonal Procrustes solution, reflections included, whatever `method.strength` says."""
    half_rotations: bool | None = None
    """Of `fedrot` and `random-rotation`: rotations are rounded to float16 before they are applied."""
    half_weights: bool | None = None
    """Base model, adapter and head are kept in float16: after every local step, on the wire, and after the average."""
    anchor_parity: bool | None = None
    """Of `fedrot` and `rescale` with `anchor = "alternate"`: `a` is aligned in even rounds and `b` in odd ones."""
    endless_warm_up: bool | None = None
    """Of `fedrot` at a learning rate of 5e-4 or 1e-3: a warm-up at 5e-3 that never ends."""
    weight_by_steps: bool | None = None
    """Clients weigh as many examples as their local steps read, not as they have."""
    validation_maximum: bool | None = None
    """The run is reported by the round that was best on the very split it reports (of GLUE, validation)."""
    ffa_trains_a: bool | None = None
    """Of `ffa`: `a` is trained and averaged after all."""
    rolora_a_first: bool | None = None
    """Of `rolora`: `a` is trained in odd rounds, so in the first one, while `b` is zero."""
    rolora_freezes_head: bool | None = None
    """Of `rolora`: the head is not trained."""
    unscaled_residual: bool | None = None
    """Of methods with a residual: it is added to the base weights without `alpha / rank`."""
    lopsided_svd: bool | None = None
    """Of `flexlora`: `a = V.T` without its `sqrt(S)`."""
