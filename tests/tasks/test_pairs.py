"""Pairs of posts are what their labels say."""

from __future__ import annotations

from collections import Counter

from fedrot.tasks.pairs import LABELS, SUBJECT, WORDS, pair_posts

GROUPS = ("comp.a", "comp.b", "comp.c", "rec.a", "rec.b", "alt.x")


def posts(length: int = SUBJECT + WORDS + 5) -> list[tuple[str, str]]:
    """Posts that name their group and their own number in every word."""
    return [(group, " ".join([f"{group}/{number}"] * length)) for group in GROUPS for number in range(6)]


def source(text: object) -> tuple[str, str]:
    group, _, number = str(text).split()[0].partition("/")
    return group, number


def test_pairs_are_what_their_labels_say() -> None:
    rows = pair_posts(posts(), 300, "train")
    assert Counter(row["label"] for row in rows) == dict.fromkeys(LABELS, 100)
    for row in rows:
        (group, number), (other, other_number) = source(row["text"]), source(row["text_pair"])
        hierarchies = {name.partition(".")[0] for name in (group, other)}
        assert len(str(row["text"]).split()) == len(str(row["text_pair"]).split()) == WORDS
        if row["label"] == "same group":
            assert group == other
            assert number != other_number
        else:
            assert group != other
            assert len(hierarchies) == (1 if row["label"] == "same hierarchy" else 2)


def test_pairs_are_the_same_every_time_and_differ_between_splits() -> None:
    assert pair_posts(posts(), 30, "train") == pair_posts(posts(), 30, "train")
    assert pair_posts(posts(), 30, "train") != pair_posts(posts(), 30, "test")


def test_posts_too_short_to_pair_are_left_out() -> None:
    short = [(group, "word " * 20) for group in GROUPS]
    texts = {str(row["text"]) for row in pair_posts(posts() + short, 60, "train")}
    assert not any(text.startswith("word") for text in texts)
