"""Adapters trained anywhere, merged: held to PEFT's own weights and to dense sums of products."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import fedrot
from fedrot.cli import app
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.rng import generator
from fedrot.errors import ConfigError, ModelError, OutputError
from fedrot.model.peft_format import read_peft, write_peft

Make = Callable[..., Path]


class Tiny(nn.Module):
    """Two blocks of linear layers and a head: what PEFT needs to load an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(12, 16), "value": nn.Linear(16, 12)}) for _ in range(2)
        )
        self.score = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["value"](block["query"](x).tanh())
        return self.score(x)


def tiny() -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny()


@pytest.fixture
def train(tmp_path: Path) -> Make:
    """An adapter made and saved by PEFT itself, from a seed; returns its directory."""

    def make(name: str, seed: int, **config: Any) -> Path:
        settings = {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["query", "value"],
            "modules_to_save": ["score"],
        }
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            base = tiny()
            torch.manual_seed(seed)
            model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings | config))
            with torch.no_grad():
                for name_, parameter in model.named_parameters():
                    if "modules_to_save" in name_:
                        parameter.normal_()
            model.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    return make


def loaded(directory: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny(), str(directory)).eval()


def deltas(directory: Path) -> dict[str, Tensor]:
    """The weights that PEFT adds, layer by layer, in float64: the independent oracle."""
    found = {}
    for name, module in loaded(directory).named_modules():
        if hasattr(module, "get_delta_weight"):
            found[name] = module.get_delta_weight("default").double()
    return found


def heads(directory: Path) -> dict[str, Tensor]:
    return dict(read_peft(directory, "adapter").head)


def ideal(directories: list[Path], weights: list[float]) -> dict[str, Tensor]:
    each = [deltas(directory) for directory in directories]
    return {
        site: sum(w / sum(weights) * d[site] for w, d in zip(weights, each, strict=True)) for site in each[0]
    }


def relative(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    gap = sum(float((found[site] - wanted[site]).square().sum()) for site in wanted)
    return (gap / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5


UNLIKE: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 6},
    {"r": 4, "lora_alpha": 3, "use_rslora": True},
    {"r": 2, "lora_alpha": 8, "rank_pattern": {"query": 4, "value": 4}, "alpha_pattern": {"0.query": 5}},
]


def test_one_adapter_of_any_form_comes_out_as_it_went_in(train: Make, tmp_path: Path) -> None:
    for number, config in enumerate(UNLIKE):
        given, out = train(f"in{number}", number, **config), tmp_path / f"out{number}"
        result = fedrot.merge([given], out=out)
        assert relative(deltas(out), deltas(given)) < 1e-6
        assert result.error < 1e-6
        x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(loaded(out)(x), loaded(given)(x), rtol=0, atol=1e-5)


def test_the_error_reported_is_that_of_the_files(train: Make, tmp_path: Path) -> None:
    """Unlike scales, a rank pattern and weights: PEFT's own delta weights, summed densely, are the judge."""
    given = [train(f"in{n}", n, **config) for n, config in enumerate(UNLIKE)]
    weights = [1.0, 2.0, 0.5]
    wanted = ideal(given, weights)
    for method in ("fedit", "fedrot"):
        result = fedrot.merge(given, method, weights=weights, out=tmp_path / method)
        assert relative(deltas(tmp_path / method), wanted) == pytest.approx(result.error, rel=1e-4)
    best = sum(float(torch.linalg.svdvals(w)[4:].square().sum()) for w in wanted.values())
    total = sum(float(w.square().sum()) for w in wanted.values())
    assert result.error_best == pytest.approx((best / total) ** 0.5, rel=1e-4)
    assert result.error_best < result.error


def test_heads_are_averaged_with_the_same_weights(train: Make, tmp_path: Path) -> None:
    given = [train("a", 1), train("b", 2)]
    for method in fedrot.methods():
        try:
            fedrot.merge(given, method, weights=[1, 3], out=tmp_path / method)
        except ConfigError:
            continue
        for name, tensor in heads(tmp_path / method).items():
            expected = heads(given[0])[name] / 4 + 3 * heads(given[1])[name] / 4
            torch.testing.assert_close(tensor, expected, msg=f"{method}: {name}")


def rewritten(source: Path, target: Path, change: Callable[[str, Factors], Factors]) -> Path:
    files = read_peft(source, "adapter")
    sites = {site: change(site, f) for site, f in files.sites.items()}
    scale = next(iter(files.scales.values()))
    write_peft(target, Adapter(sites, scale=scale), files.head, modules_to_save=["score"])
    return target


def haar(rank: int, seed: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(rank, rank, generator=generator(seed, "haar"), dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    return q.float()


@pytest.mark.parametrize("reference", [False, True])
def test_frames_that_differ_are_no_obstacle_to_fedrot(train: Make, tmp_path: Path, reference: bool) -> None:
    source = train("source", 5)

    def turned(seed: int) -> Path:
        turn = haar(4, seed)
        return rewritten(source, tmp_path / f"turned{seed}", lambda _, f: Factors(turn.T @ f.a, f.b @ turn))

    given = [turned(seed) for seed in range(4)]
    start = source if reference else None
    result = fedrot.merge(given, "fedrot", reference=start, out=tmp_path / "out")
    assert result.error < 1e-5
    assert result.error_plain > 0.2
    assert result.rotation["rotation"] > 0.5
    assert relative(deltas(tmp_path / "out"), deltas(source)) < 1e-5


def test_factors_that_differ_by_any_invertible_matrix_are_balanced_first(train: Make, tmp_path: Path) -> None:
    source = train("source", 5)

    def remixed(seed: int) -> Path:
        mix = torch.randn(4, 4, generator=generator(seed, "mix"), dtype=torch.float64)

        def change(_: str, f: Factors) -> Factors:
            return Factors((mix.inverse() @ f.a.double()).float(), (f.b.double() @ mix).float())

        return rewritten(source, tmp_path / f"mixed{seed}", change)

    given = [remixed(seed) for seed in range(4)]
    result = fedrot.merge(given, "fedrot")
    assert result.balanced
    assert result.error < 1e-4
    assert fedrot.merge(given, "fedrot", balance=False).error > 0.1, "a rotation alone cannot undo it"
    assert fedrot.merge(given, "fedit", balance=True).error > 0.1, "nor can the balanced form alone"
    assert not fedrot.merge(given, "fedit").balanced


def test_mixed_ranks_are_padded_and_the_padding_is_not_stored(train: Make, tmp_path: Path) -> None:
    given = [train("a", 1, r=2), train("b", 2, r=5)]
    assert fedrot.merge(given, "fedit").ranks == (5, 5)
    assert fedrot.merge(given, "fedit", weights=[1, 0], out=tmp_path / "out").ranks == (2, 2)
    assert relative(deltas(tmp_path / "out"), ideal(given, [1, 0])) < 1e-6
    narrow = [train("c", 3, r=2, rank_pattern={"query": 3}), train("d", 4, r=2)]
    result = fedrot.merge(narrow, "fedrot", out=tmp_path / "narrow")
    assert result.ranks == (2, 3)
    assert relative(deltas(tmp_path / "narrow"), ideal(narrow, [1, 1])) == pytest.approx(
        result.error, rel=1e-4
    )


def test_a_rank_beyond_what_is_there_is_told(train: Make, tmp_path: Path) -> None:
    given = [str(train("a", 1)), str(train("b", 2, r=2))]
    assert fedrot.merge(given, rank=4).warnings == ()
    done = CliRunner().invoke(app, ["merge", *given, "--rank", "99", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "warning: rank = 99: the result has rank 4; the directions beyond it carry nothing" in done.stderr


def test_truncation_is_optimal(train: Make, tmp_path: Path) -> None:
    given = [train("a", 1), train("b", 2)]
    wide = fedrot.merge(given, "fedit")
    result = fedrot.merge(given, "fedit", rank=2, out=tmp_path / "out")
    assert result.ranks == (2, 2)
    for site, f in wide.adapter.sites.items():
        u, s, vh = torch.linalg.svd(wide.adapter.scale * f.b.double() @ f.a.double())
        near = u[:, :2] * s[:2] @ vh[:2]
        torch.testing.assert_close(
            deltas(tmp_path / "out")[f"base_model.model.{site}"], near, atol=1e-5, rtol=0
        )


def test_half_precision_is_computed_in_float32(train: Make, tmp_path: Path) -> None:
    given = train("a", 1)
    file = given / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    result = fedrot.merge([given, given], "fedrot", out=tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    assert result.error < 1e-6


@pytest.mark.parametrize("method", sorted(fedrot.methods()))
def test_every_method_merges_or_says_why_not(method: str, train: Make, tmp_path: Path) -> None:
    given = [train("a", 1), train("b", 2), train("c", 3)]
    kept = {path: path.read_bytes() for directory in given for path in directory.iterdir()}
    travels = [fedrot.methods()[method]().uploads(number) for number in (2, 3)]
    if not any(t.a and t.b for t in travels):
        with pytest.raises(ConfigError, match="averages one factor and needs the other to be the same"):
            fedrot.merge(given, method, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    result = fedrot.merge(given, method, out=tmp_path / "out")
    assert relative(deltas(tmp_path / "out"), ideal(given, [1, 1, 1])) == pytest.approx(
        result.error, abs=1e-5
    )
    if fedrot.methods()[method].laws.exact:
        assert result.error < 1e-5
    assert kept == {path: path.read_bytes() for path in kept}, "inputs are left alone"


@pytest.mark.parametrize("method", sorted(fedrot.methods()))
def test_every_method_takes_unequal_sites_that_agree(method: str, train: Make, tmp_path: Path) -> None:
    shape = {"r": 2, "rank_pattern": {"0.query": 4}}
    first = train("a", 1, **shape)
    out = tmp_path / "out"
    result = fedrot.merge([first, first], method, reference=first, out=out)
    assert relative(deltas(out), ideal([first], [1])) == pytest.approx(result.error, abs=1e-5)
    if fedrot.methods()[method].laws.identical_clients:
        assert result.error < 1e-5


@pytest.mark.parametrize(("method", "fixed"), [("ffa", "a"), ("rolora", "a"), ("rolora", "b")])
def test_a_shared_factor_makes_averaging_the_other_exact(
    train: Make, tmp_path: Path, method: str, fixed: str
) -> None:
    first, second = train("a", 1), train("b", 2)
    shared = read_peft(first, "adapter").sites

    def swap(site: str, f: Factors) -> Factors:
        return Factors(shared[site].a, f.b) if fixed == "a" else Factors(f.a, shared[site].b)

    other = rewritten(second, tmp_path / "other", swap)
    result = fedrot.merge([first, other], method, weights=[1, 3], out=tmp_path / "out")
    assert result.error < 1e-6
    assert relative(deltas(tmp_path / "out"), ideal([first, other], [1, 3])) < 1e-6


def test_adapters_in_memory_and_their_residuals(train: Make) -> None:
    files = read_peft(train("a", 1), "adapter")
    whole = Adapter(files.sites, scale=1.5)
    halves = Adapter(
        {s: Factors(f.a[:3], f.b[:, :3]) for s, f in files.sites.items()},
        scale=1.5,
        residual={s: Factors(f.a[3:], f.b[:, 3:]) for s, f in files.sites.items()},
    )
    result = fedrot.merge([whole, halves], "fedrot")
    assert result.error < 1e-6
    assert result.directory is None
    with pytest.raises(ModelError, match=r"adapter 2: a stack of 3 clients"):
        fedrot.merge([whole, whole.expand(3)])


def test_adapters_that_do_not_belong_together_are_refused(train: Make, tmp_path: Path) -> None:
    first = train("a", 1)
    with pytest.raises(ModelError, match=r"adapter 2 .*adapts 2 layers.*4; 2 differ.*same target_modules"):
        fedrot.merge([first, train("query", 2, target_modules=["query"])])
    with pytest.raises(ModelError, match=r"head tensor 'score.bias' has shape none.*same modules_to_save"):
        fedrot.merge([first, train("bare", 2, modules_to_save=None)])
    other = rewritten(first, tmp_path / "w", lambda _, f: Factors(torch.zeros(4, 7), f.b))
    with pytest.raises(
        ModelError, match=r"is 16 x 7, that of adapter 1 .* 16 x 12; expected adapters of one base"
    ):
        fedrot.merge([first, other])
    with pytest.raises(ModelError, match=r"reference = '/nowhere': expected a PEFT directory"):
        fedrot.merge([first], reference="/nowhere")
    broken = rewritten(first, tmp_path / "nan", lambda _, f: Factors(f.a * torch.nan, f.b))
    with pytest.raises(ModelError, match=r"adapter 2 .*holds numbers that are not finite"):
        fedrot.merge([first, broken])
    for directory, labels in ((first, ["x", "y"]), (second := train("b", 2), ["y", "x"])):
        (directory / "fedrot.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ModelError, match=r"labels in fedrot.json = \['y', 'x'\], that of adapter 1"):
        fedrot.merge([first, second])


def test_another_base_model_is_a_warning(train: Make) -> None:
    given = [train("a", 1), train("b", 2)]
    for directory, name in zip(given, ("bert-one", "bert-two"), strict=True):
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
    (told,) = fedrot.merge(given).warnings
    assert "'bert-two'" in told
    assert "'bert-one'" in told


def test_bad_arguments_are_refused(train: Make, tmp_path: Path) -> None:
    given = [train("a", 1), train("b", 2)]
    for weights, said in (
        ([1], "1 weights for 2 adapters"),
        ([0, 0], "all 2 weights are zero"),
        ([1, -1], r"weights\[1\] = -1"),
    ):
        with pytest.raises(ConfigError, match=f"weights: {said}"):
            fedrot.merge(given, weights=weights)
    for options, said in (
        ({"anchor": "alternate"}, "merging is one round"),
        ({"strength": [[1, 0.5]]}, "merging is one round"),
        ({"reference": "two-back"}, "merging is one round"),
        ({"reference": "previous"}, "there is no reference; give one with --reference"),
        ({"strenght": 1}, "did you mean 'strength'"),
    ):
        with pytest.raises(ConfigError, match=said):
            fedrot.merge(given, "fedrot", options)
    with pytest.raises(ConfigError, match="did you mean 'fedrot'"):
        fedrot.merge(given, "fedrott")
    with pytest.raises(ConfigError, match="at least one"):
        fedrot.merge([])
    with pytest.raises(ConfigError, match="expected a list"):
        fedrot.merge(str(given[0]))
    with pytest.raises(ConfigError, match="rank = 0"):
        fedrot.merge(given, rank=0)
    with pytest.raises(OutputError, match="not an empty folder"):
        fedrot.merge(given, out=tmp_path / "a")


def test_mixed_ranks_with_a_method_that_cannot(train: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = fedrot.methods()["fedit"]
    monkeypatch.setattr(cls, "laws", replace(cls.laws, mixed_ranks=False))
    with pytest.raises(
        ConfigError, match=r"needs equal ranks: 'blocks.0.query' has rank 2 in adapter 1.*fedrot"
    ):
        fedrot.merge([train("a", 1, r=2), train("b", 2, r=4)], "fedit")


def test_the_command_line_merges_and_reports(train: Make, tmp_path: Path) -> None:
    given = [str(train("a", 1)), str(train("b", 2))]
    out = str(tmp_path / "out")
    options = ["--method", "fedrot", "--weights", "1,2", "--set", "method.strength=0.5", "--out", out]
    done = CliRunner().invoke(app, ["merge", *given, *options])
    assert done.exit_code == 0, done.output
    result = fedrot.merge(given, "fedrot", {"strength": 0.5}, weights=[1, 2])
    assert f"{'this result':20}{result.error:.4f}" in done.output
    assert f"{'plain averaging':20}{result.error_plain:.4f}" in done.output
    assert "alignment: mean size" in done.output
    wanted = ideal([Path(g) for g in given], [1, 2])
    assert relative(deltas(tmp_path / "out"), wanted) == pytest.approx(result.error, rel=1e-4)
    for extra, code in (
        (["--weights", "1,x"], 2),
        (["--set", "lora.rank=3"], 2),
        (["--set", "method.name=ffa"], 2),
        (["--weights", "1"], 2),
    ):
        wrong = CliRunner().invoke(app, ["merge", *given, "--out", str(tmp_path / "new"), *extra])
        assert wrong.exit_code == code, wrong.output
        assert not (tmp_path / "new").exists()
    again = CliRunner().invoke(app, ["merge", *given, "--out", out])
    assert again.exit_code == 5
    assert "choose another --out" in again.output


def random_adapter(seed: int, rank: int = 4, dtype: torch.dtype = torch.float32) -> Adapter:
    draw = generator(seed, "merge test")
    a, b = torch.randn(rank, 12, generator=draw), torch.randn(16, rank, generator=draw)
    return Adapter({"q": Factors(a, b)}).map(lambda t: t.to(dtype))


def test_adapters_of_single_and_double_precision_merge(tmp_path: Path) -> None:
    single, double = random_adapter(1), random_adapter(2, dtype=torch.float64)
    found = fedrot.merge([single, double], "fedit", out=tmp_path / "merged")
    wanted = (single.sites["q"].a.double() + double.sites["q"].a) / 2
    torch.testing.assert_close(found.adapter.sites["q"].a, wanted)
    stored = load_file(tmp_path / "merged" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert found.bytes == sum(4 * tensor.numel() for tensor in stored.values())


def test_a_refit_without_a_reference_begins_at_the_mean() -> None:
    clients = [random_adapter(seed) for seed in range(5)]
    plain, refitted = (fedrot.merge(clients, name) for name in ("fedit", "refit-or-mean"))
    assert refitted.error < 0.9 * plain.error


def test_a_consensus_with_a_reference_undoes_mirrors_too() -> None:
    base = random_adapter(1)
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    f = base.sites["q"]
    mirrored = replace(base, sites={"q": Factors(mirror @ f.a, f.b @ mirror)})
    found = fedrot.merge([base, mirrored], "fedrot", {"reference": "consensus"}, reference=base)
    assert found.error < 1e-5


@pytest.mark.parametrize("method", ["auto", "fedrot"])
def test_a_reference_of_higher_rank_than_all_others(method: str) -> None:
    options = {"reference": "consensus"} if method == "fedrot" else {}
    clients = [random_adapter(seed) for seed in range(3)]
    found = fedrot.merge(clients, method, options, reference=random_adapter(9, rank=6))
    assert found.error <= fedrot.merge(clients, "fedit").error + 1e-6


def test_a_larger_rank_than_there_is_can_be_trained_on() -> None:
    found = fedrot.merge([random_adapter(1, rank=2)], "fedit", rank=4)
    f, own = found.adapter.sites["q"], random_adapter(1, rank=2).sites["q"]
    torch.testing.assert_close(f.b @ f.a, own.b @ own.a)
    assert not f.b[:, 2:].any()
    assert (f.a[2:].norm(dim=1) > 0.1).all()
    assert torch.equal(f.a, fedrot.merge([random_adapter(1, rank=2)], "fedit", rank=4).adapter.sites["q"].a)
