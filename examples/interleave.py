"""Several topics' rows as one stream, in the order of a number that all of them carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.void]


def interleave(
    topics: Mapping[str, tuple[Rows, npt.NDArray[np.integer]]], published: Mapping[str, int] | None = None
) -> Iterator[tuple[str, Rows]]:
    """Yield (topic, rows) by rising number, as long runs of one topic as that order allows.

    topics: name -> its rows and their numbers, which never fall. At equal numbers the first named topic goes first.
    published: how many rows of a topic are out already (its last sequence). They are left out, so a restarted publisher
        goes on where the log ends.
    """
    names = list(topics)
    lengths = [len(rows) for rows, _ in topics.values()]
    topic_of = np.repeat(np.arange(len(names)), lengths)
    numbers = np.concatenate([number.astype(np.int64) for _, number in topics.values()])
    topic_of = topic_of[np.lexsort((topic_of, numbers))]
    bounds = [0, *(np.flatnonzero(np.diff(topic_of)) + 1).tolist(), len(topic_of)] if len(topic_of) else [0]
    done = [0] * len(names)
    for start, end in pairwise(bounds):
        topic = int(topic_of[start])
        first = max(done[topic], (published or {}).get(names[topic], 0))
        done[topic] += end - start
        if first < done[topic]:
            yield names[topic], topics[names[topic]][0][first : done[topic]]
