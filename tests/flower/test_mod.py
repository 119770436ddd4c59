"""FedRotMod: what it changes in a reply, what it leaves alone and what it refuses."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import fedrot
from fedrot.errors import AdapterError, ConfigError
from fedrot.flower import FedRotMod
from tests.flower.records import (
    CONTEXT,
    NAMINGS,
    SHAPES,
    answering,
    factors,
    moved,
    named,
    random_adapter,
    record,
    reply_arrays,
    reply_metrics,
    train_message,
)

RECEIVED = random_adapter(0)
TRAINED = moved(RECEIVED, 1)


def apply(mod: FedRotMod, sent: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Message:
    return mod(train_message(record(named(RECEIVED)), config), CONTEXT, answering(record(sent)))


@given(
    seed=st.integers(0, 2**16),
    number=st.integers(1, 5),
    anchor=st.sampled_from(["alternate", "a", "b", "joint"]),
    strength=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    path=st.sampled_from(["chordal", "geodesic"]),
    guard=st.sampled_from([False, "client"]),
    naming=st.sampled_from(sorted(NAMINGS)),
)
@settings(max_examples=60, deadline=None)
def test_the_mod_does_what_the_method_does_and_keeps_every_product(
    seed: int, number: int, anchor: Any, strength: float, path: Any, guard: Any, naming: str
):
    options: dict[str, Any] = {"strength": strength, "anchor": anchor, "path": path, "guard": guard}
    received = random_adapter(seed)
    trained = moved(received, seed + 1, 1.0)
    sent, incoming = record(named(trained, naming)), record(named(received, naming))
    before = {key: array.data for key, array in incoming.items()}
    message = train_message(incoming, {"server-round": number})

    reply = FedRotMod(**options)(message, CONTEXT, answering(sent))

    expected = fedrot.methods()["fedrot"](**options).before_upload(trained, received, number).adapter
    got = factors(reply_arrays(reply), naming)
    for site in SHAPES:
        torch.testing.assert_close(got.sites[site].a, expected.sites[site].a, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.sites[site].b, expected.sites[site].b, rtol=1e-6, atol=1e-6)
        product, kept = (f.sites[site].b.double() @ f.sites[site].a.double() for f in (trained, got))
        assert torch.linalg.norm(product - kept) <= 1e-6 * torch.linalg.norm(product)
    assert list(reply_arrays(reply)) == list(sent)
    head = "base_model.model.score.weight"
    assert reply.content.array_records["arrays"][head].data == sent[head].data
    assert {key: array.data for key, array in message.content.array_records["arrays"].items()} == before


def test_the_reply_is_as_long_as_without_the_mod_but_for_less_than_a_kilobyte_of_metrics():
    sent = named(TRAINED)
    plain = answering(record(sent))(train_message(record(named(RECEIVED))), CONTEXT)
    reply = apply(FedRotMod(), sent)
    (before,), (after,) = plain.content.array_records.values(), reply.content.array_records.values()
    assert {k: len(v.data) for k, v in after.items()} == {k: len(v.data) for k, v in before.items()}
    sizes = [m.content.metric_records["metrics"].count_bytes() for m in (plain, reply)]
    assert 0 < sizes[1] - sizes[0] < 1000


def test_a_client_that_returns_the_records_it_received_leaves_the_message_as_it_was():
    incoming = record(named(RECEIVED))
    message = train_message(incoming)
    message.content["metrics"] = MetricRecord({"num-examples": 1})

    def echo(received: Message, context: Any) -> Message:
        return Message(received.content, reply_to=received)

    reply = FedRotMod(strength=1.0, anchor="joint")(message, CONTEXT, echo)
    assert message.content.array_records["arrays"] is incoming
    assert dict(message.content.metric_records["metrics"]) == {"num-examples": 1}
    assert "fedrot-rotation" in reply_metrics(reply)


def test_a_client_that_empties_the_record_it_received_is_still_aligned_to_it():
    def careless(message: Message, context: Any) -> Message:
        message.content.array_records["arrays"].to_torch_state_dict(keep_input=False)
        return answering(record(named(TRAINED)))(message, context)

    reply = FedRotMod()(train_message(record(named(RECEIVED))), CONTEXT, careless)
    expected = reply_arrays(apply(FedRotMod(), named(TRAINED)))
    for key, value in reply_arrays(reply).items():
        np.testing.assert_array_equal(value, expected[key])


def test_the_first_round_is_sent_to_the_bit_and_has_the_same_metrics():
    sent = named(TRAINED)
    first, second = (apply(FedRotMod(), sent, {"server-round": number}) for number in (1, 2))
    for key, value in reply_arrays(first).items():
        np.testing.assert_array_equal(value, sent[key])
    assert reply_metrics(first).keys() == reply_metrics(second).keys()
    assert reply_metrics(first)["fedrot-rotation"] == 0 < reply_metrics(second)["fedrot-rotation"]
    assert (reply_metrics(first)["fedrot-aligned"], reply_metrics(second)["fedrot-aligned"]) == (0, 1)


def test_sites_that_are_not_rotated_keep_their_bytes():
    received, sent = named(RECEIVED), named(TRAINED)
    quiet = NAMINGS["peft"]("layers.0.v_proj", "b")
    received[quiet] = np.zeros_like(received[quiet])
    reply = FedRotMod(anchor="joint")(train_message(record(received)), CONTEXT, answering(record(sent)))
    kept = [key for key, value in reply_arrays(reply).items() if np.array_equal(value, sent[key])]
    assert kept == [k for k in sent if "v_proj" in k or "score" in k]
    assert (reply_metrics(reply)["fedrot-degenerate"], reply_metrics(reply)["fedrot-kept"]) == (1, 2)


def test_without_a_round_number_the_first_round_is_told_by_zero_factors():
    mod = FedRotMod(round_key=None, anchor="a", strength=1.0)
    start = named(RECEIVED)
    for key in start:
        if "lora_B" in key:
            start[key] = np.zeros_like(start[key])
    sent = record(named(TRAINED))
    first = mod(train_message(record(start), {}), CONTEXT, answering(sent))
    later = mod(train_message(record(named(RECEIVED)), {}), CONTEXT, answering(sent))
    assert reply_metrics(first)["fedrot-aligned"] == 0
    expected = reply_arrays(apply(FedRotMod(anchor="a", strength=1.0), named(TRAINED)))
    for key, value in reply_arrays(later).items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("kind", ["evaluate", "query", "evaluate.custom"])
def test_other_messages_pass_untouched(kind: str):
    message = train_message(ArrayRecord(), {}, kind)
    answer = Message(RecordDict({"any": MetricRecord({"x": 1.0})}), reply_to=message)
    reply = FedRotMod()(message, CONTEXT, lambda *_: answer)
    assert reply is answer
    assert list(reply.content) == ["any"]


def test_an_error_of_the_client_passes_untouched():
    message = train_message(record(named(RECEIVED)))
    failed = Message(Error(1, "out of memory"), reply_to=message)
    assert FedRotMod()(message, CONTEXT, lambda *_: failed) is failed


def test_float64_stays_float64_and_float16_comes_back_as_float16_with_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    mod = FedRotMod(strength=1.0, anchor="a")
    for dtype, tolerance in ((np.float64, 1e-12), (np.float16, 2e-3)):
        received, sent = named(RECEIVED, dtype=dtype), named(TRAINED, dtype=dtype)
        for _ in range(2):
            reply = mod(train_message(record(received)), CONTEXT, answering(record(sent)))
            got = reply_arrays(reply)
        for site in SHAPES:
            a, b = (NAMINGS["peft"](site, f) for f in "ab")
            product = sent[b].astype(np.float64) @ sent[a].astype(np.float64)
            kept = got[b].astype(np.float64) @ got[a].astype(np.float64)
            assert got[a].dtype == got[b].dtype == dtype
            assert np.linalg.norm(product - kept) <= tolerance * np.linalg.norm(product)
    said = [entry.message for entry in caplog.records if "float16" in entry.message]
    assert len(said) == 1


def test_a_bare_list_works_with_names_and_is_refused_without():
    names = list(named(RECEIVED))
    incoming, sent = (ArrayRecord(list(named(adapter).values())) for adapter in (RECEIVED, TRAINED))
    with pytest.raises(AdapterError, match=r"bare list of 7 arrays.*names="):
        FedRotMod()(train_message(incoming), CONTEXT, answering(sent))
    reply = FedRotMod(names=names)(train_message(incoming), CONTEXT, answering(sent))
    expected = reply_arrays(apply(FedRotMod(), named(TRAINED)))
    assert list(reply_arrays(reply)) == [str(i) for i in range(7)]
    for value, other in zip(reply_arrays(reply).values(), expected.values(), strict=True):
        np.testing.assert_array_equal(value, other)
    with pytest.raises(AdapterError, match=r"7 arrays, but names= lists 3"):
        FedRotMod(names=names[:3])(train_message(incoming), CONTEXT, answering(sent))


def test_a_pattern_finds_other_names_and_leaves_the_rest_alone():
    def renamed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in arrays.items()}

    pattern = r".*q_proj\.(?:(?P<a>lora_down)|(?P<b>lora_up))\.weight"
    incoming, sent = renamed(named(RECEIVED)), renamed(named(TRAINED))
    with pytest.raises(AdapterError, match=r"lora_down.*looks like a LoRA factor.*pattern="):
        FedRotMod()(train_message(record(incoming)), CONTEXT, answering(record(sent)))
    reply = FedRotMod(pattern=pattern)(train_message(record(incoming)), CONTEXT, answering(record(sent)))
    changed = [key for key, value in reply_arrays(reply).items() if not np.array_equal(value, sent[key])]
    assert changed == [key for key in sent if "q_proj" in key]


def test_the_round_is_needed_and_its_key_can_be_named():
    with pytest.raises(ConfigError, match=r"no 'server-round'.*keys: \['lr'\].*round_key="):
        apply(FedRotMod(), named(TRAINED), {"lr": 0.1})
    with pytest.raises(ConfigError, match=r"'server-round' = 'two'"):
        apply(FedRotMod(), named(TRAINED), {"server-round": "two"})
    reply = apply(FedRotMod(round_key="epoch"), named(TRAINED), {"epoch": 2})
    assert reply_metrics(reply)["fedrot-aligned"] == 1


A0, B0 = (NAMINGS["peft"]("layers.0.q_proj", f) for f in "ab")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({A0: None}, rf"'{B0}' lacks factor 'a'"),
        ({A0: np.zeros((2, 10), np.float32)}, r"do not fit; expected \(rank, d_in\) and \(d_out, rank\)"),
        (
            {A0: np.zeros((2, 10), np.float32), B0: np.zeros((12, 2), np.float32)},
            r"q_proj.*shapes \[\(2, 10\), \(12, 2\)\], expected \[\(3, 10\), \(12, 3\)\]",
        ),
        ({A0: np.zeros((3, 10, 1, 1), np.float32)}, r"expected a matrix; convolutions"),
        ({A0: np.zeros((3, 10), np.int8)}, r"is int8: expected float16"),
        ({A0: None, B0: None}, r"2 sites, expected 3.*was sent out and is missing"),
        ({"x.lora_A.weight": np.zeros((3, 2)), "x.lora_B.weight": np.zeros((2, 3))}, r"was not sent out"),
        ({"x.lora_E": np.zeros(3)}, r"AdaLoRA"),
        ({"x.lora_A": np.zeros(3)}, r"looks like a LoRA factor"),
    ],
)
def test_a_reply_that_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str):
    arrays = {key: value for key, value in (named(TRAINED) | change).items() if value is not None}
    with pytest.raises(AdapterError, match=message):
        apply(FedRotMod(), arrays)


def test_a_record_without_factors_or_with_one_of_a_pair_is_refused_before_training():
    trained = []

    def train(message: Message, context: Any) -> Message:
        trained.append(message)
        raise AssertionError

    lonely = {key: value for key, value in named(RECEIVED).items() if key != A0}
    whole = {"layers.0.weight": np.zeros((3, 3), np.float32)}
    for arrays, expected in ((lonely, "lacks factor 'a'"), (whole, "no LoRA factors among its 1 arrays")):
        with pytest.raises(AdapterError, match=expected):
            FedRotMod()(train_message(record(arrays)), CONTEXT, train)
    assert not trained


def test_several_records_need_the_name_of_one():
    message = train_message(record(named(RECEIVED)))
    message.content["control"] = record({"c": np.zeros(2)})
    answer = answering(record(named(TRAINED)))
    with pytest.raises(AdapterError, match=r"\['arrays', 'control'\].*arrayrecord_key="):
        FedRotMod()(message, CONTEXT, answer)
    reply = FedRotMod(arrayrecord_key="arrays")(message, CONTEXT, answer)
    assert reply_metrics(reply)["fedrot-aligned"] == 1


def test_metrics_can_be_a_marker_or_left_out():
    assert set(reply_metrics(apply(FedRotMod(metrics="marker"), named(TRAINED)))) == {
        "num-examples",
        "train_loss",
        "fedrot-aligned",
    }
    assert set(reply_metrics(apply(FedRotMod(metrics="off"), named(TRAINED)))) == {
        "num-examples",
        "train_loss",
    }


def test_a_reply_without_metrics_is_refused_unless_they_are_off():
    def answer(message: Message, context: Any) -> Message:
        return Message(RecordDict({"arrays": record(named(TRAINED))}), reply_to=message)

    message = train_message(record(named(RECEIVED)))
    with pytest.raises(AdapterError, match=r"MetricRecords \[\], expected exactly one.*metrics='off'"):
        FedRotMod()(message, CONTEXT, answer)
    assert list(FedRotMod(metrics="off")(message, CONTEXT, answer).content) == ["arrays"]


def test_numbers_that_are_not_finite_are_sent_on_as_they_are():
    sent = named(TRAINED)
    sent[A0][0, 0] = np.nan
    reply = apply(FedRotMod(strength=1.0, anchor="joint"), sent)
    np.testing.assert_array_equal(reply_arrays(reply)[A0], sent[A0])
    np.testing.assert_array_equal(reply_arrays(reply)[B0], sent[B0])
    assert reply_metrics(reply)["fedrot-degenerate"] == 1


def huge() -> bytes:
    """A header of 10**15 numbers, and no numbers."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**8, 10**7)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (Array("float32", (3, 10), "numpy.ndarray", b"\x80\x04pickle"), r"is not in NumPy's format"),
        (Array("float32", (3, 10), "numpy.ndarray", huge()), r"bytes long, which does not fit its header"),
        (Array("float32", (3, 10), "torch", b""), r"came in 'torch', expected 'numpy.ndarray'"),
    ],
)
def test_an_array_that_is_no_array_is_refused_before_memory_is_taken(array: Array, message: str):
    sent = record(named(TRAINED))
    sent[A0] = array
    with pytest.raises(AdapterError, match=message):
        FedRotMod()(train_message(record(named(RECEIVED))), CONTEXT, answering(sent))


def test_arrays_in_columns_are_read_as_they_are_meant():
    columns = record({key: np.asfortranarray(value) for key, value in named(TRAINED).items()})
    reply = FedRotMod()(train_message(record(named(RECEIVED))), CONTEXT, answering(columns))
    for key, value in reply_arrays(apply(FedRotMod(), named(TRAINED))).items():
        np.testing.assert_array_equal(reply_arrays(reply)[key], value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 2}, r"FedRotMod strength = 2: expected"),
        ({"anchor": "c"}, r"FedRotMod anchor = 'c'"),
        ({"path": "geodesic", "group": "orthogonal"}, r"a reflection has none"),
        ({"guard": True}, r"guard = True.*FedRotStrategy"),
        ({"metrics": "some"}, r"metrics = 'some'"),
        ({"round_key": None}, r"needs the number of the round"),
        ({"round_key": None, "anchor": "a", "strength": [[1, 0.2]]}, r"needs the number of the round"),
        ({"pattern": "("}, r"not a regular expression"),
        ({"pattern": "(?P<a>x)"}, r"lacks the group 'b'"),
        ({"names": "abc"}, r"expected a list of names"),
        ({"names": ["x", "x"]}, r"given twice"),
    ],
)
def test_wrong_options_are_refused_when_the_mod_is_made(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        FedRotMod(**options)


def test_a_config_record_of_any_name_will_do():
    message = Message(
        RecordDict(
            {"model": record(named(RECEIVED)), "a": ConfigRecord({}), "b": ConfigRecord({"server-round": 3})}
        ),
        1,
        "train",
    )
    reply = FedRotMod(anchor="alternate")(message, CONTEXT, answering(record(named(TRAINED))))
    expected = reply_arrays(apply(FedRotMod(anchor="a"), named(TRAINED)))
    for key, value in reply_arrays(reply).items():
        np.testing.assert_array_equal(value, expected[key])
