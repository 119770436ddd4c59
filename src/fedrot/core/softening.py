"""Going part of the way to a rotation, along a chord or along a geodesic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrot.core import linalg
from fedrot.core.polar import full_precision, identity_like, polar, widen
from fedrot.errors import ConfigError, nearest

Path = Literal["chordal", "geodesic"]


@torch.no_grad()
def soften(rotation: Tensor, strength: float, path: Path = "chordal") -> Tensor:
    """A rotation between the identity (`strength` 0) and `rotation` (`strength` 1).

    In a plane that `rotation` turns by `theta`, `"chordal"`, the nearest rotation to `(1 - l) I + l R`
    (FedRot-LoRA, lemma A.1: `||soft - I||_F <= 2 l ||R - I||_F`), turns by `atan2(l sin(theta), 1 - l + l
    cos(theta))`, and `"geodesic"`, `R**l`, by `l theta`.

    A half turn is where both jump. The chordal path drops it for `l < 1/2` and keeps it for `l > 1/2`; at `l
    = 1/2` all turns of that plane are equally near and none is taken. The geodesic path may go either way
    round, and goes the same way for equal input. A reflection has no geodesic; the chordal path drops its
    mirror up to `l = 1/2`.

    >>> quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> half = soften(quarter, 0.5, "geodesic")
    >>> torch.allclose(half @ half, quarter, atol=1e-6)
    True

    Args:
        rotation: `(..., r, r)`, orthogonal.
        strength: in [0, 1].
        path: `"chordal"`, the paper's, or `"geodesic"`.

    Returns:
        `(..., r, r)` in float32 or better.

    Raises:
        ConfigError: `strength` outside [0, 1], an unknown path, or the geodesic of a reflection.
    """
    check_strength(strength)
    check_choice("path", path, Path)
    with full_precision(rotation.device):
        (wide,) = widen(rotation)
        if strength == 0:
            return identity_like(wide).expand_as(wide)
        flat = wide.reshape(-1, *wide.shape[-2:])
        soft = flat if strength == 1 else (_chordal if path == "chordal" else _geodesic)(flat, strength)
        return soft.view(wide.shape)


def _chordal(rotation: Tensor, strength: float) -> Tensor:
    eye = identity_like(rotation)
    chord = torch.lerp(eye.expand_as(rotation), rotation, strength)
    soft, settled = polar(chord, 0.5)
    if len(rest := (~settled).nonzero()[:, 0]):
        # A half turn at strength 1/2 leaves only rounding in its plane; a larger bias settles on no turn.
        u, _, vh = linalg.svd(chord[rest].double() + torch.finfo(rotation.dtype).eps ** 0.75 * eye)
        soft[rest] = (u @ vh).to(soft.dtype)
    return soft


def _geodesic(rotation: Tensor, strength: float) -> Tensor:
    """`R**l` from the commuting parts `S = (R + R.T) / 2` and `K = (R - R.T) / 2`.

    In a plane of angle `theta` they are `cos(theta) I` and `sin(theta) J`, so that, with one eigenproblem for
    `S`, `R**l = cos(l theta)(S) + (sin(l theta) / sin(theta))(S) K`: both functions are smooth away from the
    half turn. There `K` vanishes, and pairs of eigenvectors span the planes.
    """
    if bool((linalg.det(rotation) < 0).any()):
        raise ConfigError("path = 'geodesic': a reflection has none; use path='chordal' or group='rotation'")
    wide = rotation.double()
    cosines, v = linalg.eigh((wide + wide.mT) / 2)
    paired = cosines.shape[-1] // 2 * 2
    # Ascending, so that the two eigenvalues of a plane are neighbours; in odd dimensions the axis comes last.
    tolerance = 4 * math.sqrt(torch.finfo(rotation.dtype).eps)
    planes = (cosines[:, 0:paired:2] + cosines[:, 1:paired:2]) / 2 < -math.sqrt(1 - tolerance**2)
    half = pad(torch.stack([planes, planes], -1).flatten(1), (0, cosines.shape[-1] - paired))
    theta = torch.where(half, math.pi, cosines.clamp(-1, 1).acos())
    ratio = torch.where(theta > 0, (strength * theta).sin() / theta.sin(), strength).where(~half, 0)
    quarter = torch.zeros_like(v)  # every pair of eigenvectors turned by a right angle
    quarter[..., 0:paired:2], quarter[..., 1:paired:2] = v[..., 1:paired:2], -v[..., 0:paired:2]
    turn = half.to(v) * math.sin(strength * math.pi)
    power = (v * (strength * theta).cos()[:, None] + quarter * turn[:, None]) @ v.mT
    power = power + (v * ratio[:, None]) @ v.mT @ ((wide - wide.mT) / 2)
    # Near a half turn the parts are only as orthogonal as `K` is exact; the polar factor restores that.
    return polar(power / 2, 0.45)[0].to(rotation.dtype)


def check_strength(strength: object) -> None:
    """Refuse anything but a number in [0, 1]."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise ConfigError(
            f"strength = {strength!r}: expected a number in [0, 1]; 0 leaves alone, 1 rotates fully"
        )


def check_choice(name: str, value: str, options: object) -> None:
    """Refuse a value that is not one of the literals `options`, naming the nearest."""
    known: Iterable[str] = get_args(options)
    if value not in known:
        raise ConfigError(f"{name} = {value!r}: {nearest(value, known)}")
