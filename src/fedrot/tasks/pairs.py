"""Pairs of newsgroup posts: a task at which a frozen encoder alone fails, so that an adapter must do the work."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from fedrot.core.rng import derive

SUBJECT = 12
"""Words at the start of a post, mostly its subject line and whom it answers, that are left out."""
WORDS = 40
LABELS = ("same group", "same hierarchy", "neither")


def pair_posts(posts: Sequence[tuple[str, str]], count: int, split: str) -> list[dict[str, object]]:
    """`count` pairs of posts, as many of each label: from one group, from two groups of one hierarchy, from two.

    The hierarchy is the first part of a group's name, as in `comp.graphics`. Groups are drawn uniformly, then posts.
    The draw is fixed: a corpus does not depend on the seed of a run.

    Args:
        posts: group and text of each post.
        count: pairs to draw, a multiple of three.
        split: `train` or `test`, which draw differently.

    Returns:
        Rows of `text`, `text_pair` and `label`; a post may occur in several pairs, but not twice in one.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for group, text in posts:
        words = text.split()[SUBJECT : SUBJECT + WORDS]
        if len(words) == WORDS:
            groups[group].append(" ".join(words))
    hierarchies: dict[str, list[str]] = defaultdict(list)
    for group in sorted(groups):
        hierarchies[group.partition(".")[0]].append(group)
    shared = [name for name, members in hierarchies.items() if len(members) > 1]
    draw = random.Random(derive(0, f"newsgroup pairs, {split}"))
    rows: list[dict[str, object]] = []
    for index in range(count):
        label = LABELS[index % len(LABELS)]
        if label == "same hierarchy":
            first, second = draw.sample(hierarchies[draw.choice(shared)], 2)
        else:
            first = second = draw.choice(sorted(groups))
            if label == "neither":
                away = (
                    group for group in sorted(groups) if group.partition(".")[0] != first.partition(".")[0]
                )
                second = draw.choice(list(away))
        if first == second:
            text, other = draw.sample(groups[first], 2)
        else:
            text, other = draw.choice(groups[first]), draw.choice(groups[second])
        rows.append({"text": text, "text_pair": other, "label": label})
    return rows
