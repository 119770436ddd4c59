"""Two clients learn almost the same update in different frames: averaging their factors fails until aligned.

Client 0 sends its factors as they came out of training. Client 1 holds its own in another frame: turned by a
rotation, or in singular value form. Products `b @ a` hardly differ; factors do. The signs of singular vectors
are arbitrary, so that a singular value form may be a mirror image of the reference's frame, as it is here:
rotations then repair all directions but one, and `group="orthogonal"`, which allows reflections, all of them.
"""

from __future__ import annotations

from typing import Literal

import torch

import fedrot

RANK, D_IN, D_OUT = 8, 256, 192
Pair = tuple[torch.Tensor, torch.Tensor]
Group = Literal["rotation", "orthogonal"]


def turned(a: torch.Tensor, b: torch.Tensor, draw: torch.Generator) -> Pair:
    """The same product in a frame turned by a random rotation."""
    q = torch.linalg.qr(torch.randn(RANK, RANK, generator=draw))[0]
    q[:, 0] *= torch.linalg.det(q).sign()
    return q.T @ a, b @ q


def svd_form(a: torch.Tensor, b: torch.Tensor) -> Pair:
    """The same product with `b = U sqrt(S)`, `a = sqrt(S) V.T`."""
    u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)
    root = s[:RANK].sqrt()
    return root[:, None] * vh[:RANK], u[:, :RANK] * root


def compare(
    name: str, clients: list[Pair], reference: Pair, group: Group = "rotation"
) -> tuple[float, float]:
    """Relative errors of averaging factors as sent, and after a full alignment to the reference."""
    a, b = (
        torch.stack(factors) for factors in zip(*clients, strict=True)
    )  # (2, rank, d_in), (2, d_out, rank)
    plain = fedrot.aggregation_error(a, b, weights=[1, 1])
    a_new, b_new, rotation = fedrot.align(a, b, *reference, anchor="joint", strength=1.0, group=group)
    aligned = fedrot.aggregation_error(a_new, b_new, weights=[1, 1])
    change = float((b_new @ a_new - b @ a).norm() / (b @ a).norm())
    turns = "  ".join(f"{size:.3f}" for size in rotation.size)
    print(f"{name:12}  {plain.relative:13.4f}  {aligned.relative:15.4f}  {turns:>15}  {change:16.1e}")
    assert change < 1e-5, "a rotation must not change what a client learned"
    assert not rotation.degenerate.any()
    return float(plain.relative), float(aligned.relative)


def main() -> None:
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    reference = noise(RANK, D_IN), noise(D_OUT, RANK)  # what both clients received
    first, second = ([f + 0.1 * noise(*f.shape) for f in reference] for _ in range(2))

    print("client 1 in   error as sent  error if aligned  ||R - I|| of each  products changed")
    same, _ = compare("one frame", [(*first,), (*second,)], reference)
    plain, aligned = compare("turned frame", [(*first,), turned(*second, draw)], reference)
    factored = [(*first,), svd_form(*second)]
    plain_svd, by_rotation = compare("SVD form", factored, reference)
    _, by_reflection = compare("  orthogonal", factored, reference, "orthogonal")

    assert plain > 10 * same, "a frame of its own was expected to spoil the plain mean"
    assert aligned < 1.5 * same, "alignment was expected to repair it"
    assert by_rotation < 0.7 * plain_svd, (
        "a rotation was expected to help, though not to repair a mirror image"
    )
    assert by_reflection < 0.1 * by_rotation, "a reflection was expected to repair it"


if __name__ == "__main__":
    main()
