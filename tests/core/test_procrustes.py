from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from fedrot.core import align, procrustes, rotate, soften
from fedrot.core.polar import nearest_orthogonal
from fedrot.errors import AdapterError, ConfigError
from tests.core.strategies import normal, planar, property_test, ranks, rotations, seeds, size, strengths


def svd_rotation(matrix: Tensor, group: str = "rotation") -> Tensor:
    """The textbook solution, in float64."""
    u, _, vh = torch.linalg.svd(matrix.double())
    sign = torch.ones(*matrix.shape[:-1], dtype=torch.float64)
    if group == "rotation":
        sign[..., -1] = torch.linalg.det(u @ vh)
    return (u * sign[..., None, :]) @ vh


def separated(matrix: Tensor) -> bool:
    """Whether the nearest rotation is well determined."""
    s = torch.linalg.svdvals(matrix)
    return bool(
        (s[..., -1] > 1e-3 * s[..., 0]).all() and (len(s) < 2 or (s[..., -2] - s[..., -1] > 1e-3).all())
    )


@property_test(seeds, ranks)
def test_orthogonal_procrustes_equals_scipy(seed: int, rank: int) -> None:
    source, target = normal(seed, 2, 12, rank)
    assume(separated(source.T @ target))
    oracle, _ = scipy.linalg.orthogonal_procrustes(source.numpy(), target.numpy())
    torch.testing.assert_close(
        procrustes(source, target, "orthogonal"), torch.from_numpy(oracle), atol=1e-9, rtol=0
    )


@property_test(seeds, ranks)
def test_no_rotation_beats_the_procrustes_one(seed: int, rank: int) -> None:
    source, target = normal(seed, 2, 12, rank)
    best = procrustes(source, target)
    torch.testing.assert_close(torch.linalg.det(best), torch.tensor(1.0, dtype=torch.float64))
    residual = (source @ best - target).norm()
    for other in rotations(seed + 1, 20, rank, rank):
        near = best @ soften(other, 0.01)  # both far ones and neighbours
        assert residual <= (source @ other - target).norm() + 1e-10
        assert residual <= (source @ near - target).norm() + 1e-10


@property_test(seeds, ranks)
def test_no_orthogonal_matrix_beats_the_orthogonal_one(seed: int, rank: int) -> None:
    source, target = normal(seed, 2, 12, rank)
    residual = (source @ procrustes(source, target, "orthogonal") - target).norm()
    mirror = torch.ones(rank, dtype=torch.float64)
    mirror[0] = -1
    for other in rotations(seed + 1, 20, rank, rank):
        assert residual <= (source @ other - target).norm() + 1e-10
        assert residual <= (source @ (other * mirror) - target).norm() + 1e-10


@property_test(seeds, ranks)
def test_a_reflection_is_replaced_by_the_nearest_rotation_and_flagged(seed: int, rank: int) -> None:
    matrix = rotations(seed, rank, rank) * torch.linspace(2, 1, rank, dtype=torch.float64)
    matrix[:, -1] *= -1
    near = nearest_orthogonal(matrix)
    assert bool(near.flipped)
    torch.testing.assert_close(near.matrix, svd_rotation(matrix))
    assert not nearest_orthogonal(matrix, "orthogonal").flipped


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("rank", [1, 2, 4, 16, 32, 64])
def test_polar_iteration_equals_the_float64_svd(dtype: torch.dtype, tolerance: float, rank: int) -> None:
    reference = normal(rank, rank, 256)
    matrix = ((reference + 0.5 * normal(rank + 1, 100, rank, 256)) @ reference.T).to(dtype)
    near = nearest_orthogonal(matrix)
    torch.testing.assert_close(near.matrix.double(), svd_rotation(matrix), atol=tolerance, rtol=0)
    assert not near.degenerate.any()


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e5])
def test_ill_conditioned_correlations_lose_no_more_than_their_condition(condition: float) -> None:
    q = rotations(1, 64, 16, 16)
    spectrum = torch.logspace(0, -math.log10(condition), 16, dtype=torch.float64)
    matrix = (rotations(2, 64, 16, 16) * spectrum @ q).float()
    near = nearest_orthogonal(matrix)
    error = (near.matrix.double() - svd_rotation(matrix)).abs().max()
    assert error < 4 * condition * torch.finfo(torch.float32).eps
    orthogonality = near.matrix.double().mT @ near.matrix.double() - torch.eye(16)
    assert orthogonality.abs().max() < 2e-6


@property_test(seeds, ranks, st.floats(1e-30, 1e30))
def test_the_rotation_does_not_depend_on_scale(seed: int, rank: int, scale: float) -> None:
    matrix = normal(seed, rank, rank)
    assume(separated(matrix))
    torch.testing.assert_close(
        nearest_orthogonal(scale * matrix).matrix, svd_rotation(matrix), atol=1e-8, rtol=0
    )


@property_test(seeds, ranks)
def test_softening_runs_from_the_identity_to_the_rotation(seed: int, rank: int) -> None:
    rotation = rotations(seed, rank, rank)
    for path in ("chordal", "geodesic"):
        torch.testing.assert_close(soften(rotation, 0, path), torch.eye(rank, dtype=torch.float64))
        torch.testing.assert_close(soften(rotation, 1, path), rotation)


@property_test(seeds, ranks, strengths)
def test_soft_rotations_are_rotations_within_the_bound(seed: int, rank: int, strength: float) -> None:
    rotation = rotations(seed, rank, rank)
    for path in ("chordal", "geodesic"):
        soft = soften(rotation, strength, path)
        torch.testing.assert_close(soft.mT @ soft, torch.eye(rank, dtype=torch.float64))
        assert torch.linalg.det(soft) > 0
        assert size(soft) <= 2 * strength * size(rotation) + 1e-9


angles = st.lists(st.floats(-3.1, 3.1), min_size=1, max_size=3)


@property_test(seeds, angles, strengths, st.integers(0, 1))
def test_both_paths_turn_every_plane_by_their_law(
    seed: int, turns: list[float], strength: float, axis: int
) -> None:
    theta = torch.tensor(turns, dtype=torch.float64)
    frame = rotations(seed, 2 * len(turns) + axis, 2 * len(turns) + axis)
    rotation = planar(theta, frame)
    geodesic = planar(strength * theta, frame)
    torch.testing.assert_close(soften(rotation, strength, "geodesic"), geodesic, atol=1e-9, rtol=0)
    sine, cosine = strength * theta.sin(), 1 - strength + strength * theta.cos()
    assume(torch.hypot(sine, cosine).min() > 1e-3)
    chordal = planar(torch.atan2(sine, cosine), frame)
    torch.testing.assert_close(soften(rotation, strength, "chordal"), chordal, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("planes", [1, 2, 3])
def test_half_turns(dtype: torch.dtype, planes: int) -> None:
    frame = rotations(3, 7, 7)
    half = planar(torch.full((planes,), math.pi, dtype=torch.float64), frame).to(dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-4
    for strength, expected in ((0.3, 0.0), (0.5, 0.0), (0.7, 1.0)):
        soft = soften(half, strength)
        assert torch.equal(soft, soften(half, strength))
        torch.testing.assert_close(
            soft, torch.lerp(torch.eye(7, dtype=dtype), half, expected), atol=tolerance, rtol=0
        )
        geodesic = soften(half, strength, "geodesic")
        torch.testing.assert_close(geodesic.mT @ geodesic, torch.eye(7, dtype=dtype), atol=1e-5, rtol=0)
        cosines = torch.linalg.eigvalsh((geodesic + geodesic.mT).double() / 2)
        law = torch.tensor([math.cos(strength * math.pi)] * 2 * planes + [1.0] * (7 - 2 * planes))
        torch.testing.assert_close(cosines, law.double(), atol=1e-5, rtol=0)
    root = soften(half, 0.5, "geodesic")
    torch.testing.assert_close(root @ root, half, atol=1e-5, rtol=0)


def test_a_mirror_is_dropped_up_to_strength_one_half() -> None:
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    for strength, expected in ((0.4, torch.eye(3)), (0.5, torch.eye(3)), (0.6, mirror)):
        torch.testing.assert_close(soften(mirror, strength), expected)
    with pytest.raises(ConfigError, match="reflection"):
        soften(mirror, 0.5, "geodesic")


@property_test(seeds, ranks, st.sampled_from(["a", "b", "joint"]))
def test_alignment_undoes_any_rotation(seed: int, rank: int, anchor: str) -> None:
    a, b = normal(seed, rank, 12), normal(seed + 1, 10, rank)
    turned = rotate(a, b, rotations(seed + 2, rank, rank))
    assume(separated(a @ a.T) or rank == 1)
    assume(separated(b.T @ b) or rank == 1)
    back_a, back_b, rotation = align(*turned, a, b, anchor=anchor, strength=1.0)
    torch.testing.assert_close(back_a, a, atol=1e-9, rtol=0)
    torch.testing.assert_close(back_b, b, atol=1e-9, rtol=0)
    assert not rotation.degenerate


@property_test(seeds, ranks, strengths, st.sampled_from(["chordal", "geodesic"]))
def test_alignment_preserves_the_product(seed: int, rank: int, strength: float, path: str) -> None:
    a, b = normal(seed, rank, 12), normal(seed + 1, 10, rank)
    a_ref, b_ref = normal(seed + 2, rank, 12), normal(seed + 3, 10, rank)
    new_a, new_b, _ = align(a, b, a_ref, b_ref, strength=strength, path=path)
    torch.testing.assert_close(new_b @ new_a, b @ a, atol=1e-9, rtol=0)


@property_test(seeds, ranks)
def test_hard_alignment_minimises_the_distance_of_its_anchor(seed: int, rank: int) -> None:
    a, b = normal(seed, rank, 12), normal(seed + 1, 10, rank)
    a_ref, b_ref = a + normal(seed + 2, rank, 12), b + normal(seed + 3, 10, rank)

    def distances(a: Tensor, b: Tensor) -> dict[str, Tensor]:
        on_a, on_b = (a - a_ref).norm() ** 2, (b - b_ref).norm() ** 2
        return {"a": on_a, "b": on_b, "joint": on_a / a_ref.norm() ** 2 + on_b / b_ref.norm() ** 2}

    for anchor in ("a", "b", "joint"):
        best = distances(*align(a, b, a_ref, b_ref, anchor, 1.0)[:2])[anchor]
        for other in rotations(seed + 4, 10, rank, rank):
            assert best <= distances(*rotate(a, b, other))[anchor] + 1e-9


@pytest.mark.parametrize("anchor", ["a", "b", "joint"])
@pytest.mark.parametrize("path", ["chordal", "geodesic"])
def test_a_batch_equals_its_members(anchor: str, path: str) -> None:
    a, b = normal(1, 5, 2, 4, 12), normal(2, 5, 2, 10, 4)
    a_ref, b_ref = normal(3, 2, 4, 12), normal(4, 2, 10, 4)
    whole_a, whole_b, rotation = align(a, b, a_ref, b_ref, anchor, 0.7, path)
    assert rotation.size.shape == rotation.angle.shape == rotation.degenerate.shape == (5, 2)
    for i in range(5):
        for j in range(2):
            one_a, one_b, one = align(a[i, j], b[i, j], a_ref[j], b_ref[j], anchor, 0.7, path)
            torch.testing.assert_close(whole_a[i, j], one_a, atol=1e-9, rtol=0)
            torch.testing.assert_close(whole_b[i, j], one_b, atol=1e-9, rtol=0)
            torch.testing.assert_close(rotation.angle[i, j], one.angle, atol=1e-9, rtol=0)


@pytest.mark.parametrize("anchor", ["a", "b", "joint"])
@pytest.mark.parametrize("broken", ["zero", "nan", "inf", "deficient"])
def test_degenerate_references_are_flagged_and_leave_the_site_alone(anchor: str, broken: str) -> None:
    a, b = normal(1, 3, 4, 12).float(), normal(2, 3, 10, 4).float()
    a_ref, b_ref = a + 0.1, b + 0.1
    if broken == "deficient":
        a_ref[1, 3], b_ref[1, :, 3] = a_ref[1, 2], b_ref[1, :, 2]
    else:
        value = {"zero": 0.0, "nan": math.nan, "inf": math.inf}[broken]
        a_ref[1], b_ref[1] = value, value
    new_a, new_b, rotation = align(a, b, a_ref, b_ref, anchor, 1.0)
    assert rotation.degenerate.tolist() == [False, True, False]
    assert torch.equal(new_a[1], a[1])
    assert torch.equal(new_b[1], b[1])
    assert rotation.size[1] == 0
    assert not torch.equal(new_a[0], a[0])


def test_a_joint_anchor_needs_both_references() -> None:
    a, b = normal(1, 4, 12), normal(2, 10, 4)
    assert align(a, b, a, torch.zeros_like(b), "joint")[2].degenerate
    assert align(a, b, torch.zeros_like(a), b, "joint")[2].degenerate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_are_rotated_in_float32(dtype: torch.dtype) -> None:
    a, b = normal(1, 6, 8, 64).to(dtype), normal(2, 6, 48, 8).to(dtype)
    a_ref, b_ref = normal(3, 8, 64).to(dtype), normal(4, 48, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        new_a, new_b, rotation = align(a, b, a_ref, b_ref, strength=0.7)
    assert new_a.dtype == new_b.dtype == rotation.matrix.dtype == torch.float32
    before, after = b.double() @ a.double(), new_b.double() @ new_a.double()
    assert (after - before).norm() < 1e-6 * before.norm()
    reference = align(a.double(), b.double(), a_ref.double(), b_ref.double(), strength=0.7)
    torch.testing.assert_close(new_a, reference[0].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("api", ["new", "legacy"])
def test_reduced_matmul_precision_is_suspended_and_restored(api: str) -> None:
    a, b, reference = normal(1, 8, 64).float(), normal(2, 48, 8).float(), normal(3, 8, 64).float()
    expected, _, _ = align(a, b, reference, b)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        if api == "new":
            matmul.fp32_precision = "bf16"
        else:
            torch.set_float32_matmul_precision("medium")
        assert torch.equal(align(a, b, reference, b)[0], expected)
        assert (matmul.fp32_precision if api == "new" else torch.get_float32_matmul_precision()) in (
            "bf16",
            "medium",
        )
    finally:
        if api == "legacy":
            torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_float64_stays_float64() -> None:
    a, b = normal(1, 4, 12), normal(2, 10, 4)
    assert {t.dtype for t in align(a, b, a, b)[:2]} == {torch.float64}
    assert procrustes(b, b).dtype == soften(torch.eye(3).double(), 0.5).dtype == torch.float64


def test_the_angle_of_a_small_rotation_is_accurate() -> None:
    a, b = torch.eye(2, 4), torch.ones(3, 2)
    turn = planar(torch.tensor([1e-3], dtype=torch.float64), torch.eye(2, dtype=torch.float64)).float()
    _, _, rotation = align(*rotate(a, b, turn), a, b, strength=1.0)
    torch.testing.assert_close(rotation.angle, torch.tensor(1e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close(rotation.size, torch.tensor(1e-3 * math.sqrt(2)), rtol=1e-3, atol=0)


def test_inputs_are_not_modified() -> None:
    tensors = [normal(1, 4, 12), normal(2, 10, 4), normal(3, 4, 12), normal(4, 10, 4)]
    copies = [t.clone() for t in tensors]
    align(*tensors, strength=0.5)
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies, strict=True))


@property_test(seeds, st.integers(2, 8))
def test_gradient_flow_from_shared_factors_turns_the_joint_frame_only_to_second_order(
    seed: int, rank: int
) -> None:
    """`(da/dt) a.T = b.T (db/dt)` keeps the joint correlation symmetric to first order in the drift.

    With references of equal norm the two terms of the joint objective carry equal weights.
    """
    a, b = normal(seed, rank, 12), normal(seed + 1, 10, rank)
    a, b, goal = a / a.norm(), b / b.norm(), normal(seed + 2, 10, 12) / 10
    assume(separated(a @ a.T) and separated(b.T @ b))

    def turns(horizon: float) -> tuple[float, float]:
        x, y = a, b
        for _ in range(40):
            gradient = y @ x - goal
            x, y = x - horizon / 40 * y.T @ gradient, y - horizon / 40 * gradient @ x.T
        return tuple(float(align(x, y, a, b, anchor, 1.0)[2].size) for anchor in ("joint", "a"))  # type: ignore[return-value]

    (joint, alone), (joint_half, alone_half) = turns(1e-3), turns(5e-4)
    assert joint < 1e-2 * alone
    assert joint_half < 0.3 * joint + 1e-12
    assert alone_half > 0.45 * alone


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan, True, "0.5"])
def test_strength_outside_the_unit_interval_is_refused(strength: object) -> None:
    a, b = normal(1, 4, 12), normal(2, 10, 4)
    with pytest.raises(ConfigError, match=r"strength = .*expected a number in \[0, 1\]"):
        align(a, b, a, b, strength=strength)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="strength"):
        soften(torch.eye(3), strength)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"anchor": "c"}, {"path": "cordal"}, {"group": "so"}, {"path": "geodesic", "group": "orthogonal"}],
)
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    a, b = normal(1, 4, 12), normal(2, 10, 4)
    with pytest.raises(ConfigError, match=next(iter(options))):
        align(a, b, a, b, **options)  # type: ignore[arg-type]


def test_factors_that_do_not_fit_are_refused() -> None:
    a, b = normal(1, 4, 12), normal(2, 10, 4)
    with pytest.raises(AdapterError, match="rank"):
        align(a, b, a[:3], b[:, :3])
    with pytest.raises(AdapterError, match="rank"):
        align(a, b[:, :3], a, b)
    with pytest.raises(AdapterError, match="procrustes"):
        procrustes(a, b)


def test_a_failed_input_is_not_hidden_by_procrustes() -> None:
    source = torch.eye(3)
    source[0, 0] = math.nan
    assert procrustes(source, torch.eye(3)).isnan().all()
