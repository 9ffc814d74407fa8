"""The polls that cost least, given how likely an end is at each age.

R. E. Barlow, L. C. Hunter and F. Proschan, "Optimum checking procedures", Journal of the Society
for Industrial and Applied Mathematics 11, 1963.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

PER_GAP = 10  # places where a poll may be planned, for each poll that is likely
PER_BIN = 9  # at most


class Plan(NamedTuple):
    """For each of `places` (ages in seconds), the age of the poll after one at that age."""

    places: Sequence[float]
    polls: Sequence[float]

    def gap(self, age: float) -> float:
        """Return the seconds to the next poll, as planned for the nearest place."""
        number = bisect_right(self.places, min(age, self.places[-1])) - 1
        if number + 1 < len(self.places):
            number += self.places[number + 1] - age < age - self.places[number]
        return self.polls[number] - self.places[number]


def plan_polls(chances: Sequence[float], edges: Sequence[float], cost: float) -> Plan:
    """Plan all polls of a generation so that their cost plus the delay is least.

    It works back from the last place. Let S(t) be the share that has ended by t. After a poll at t
    there is left to pay: `cost` for each generation that has not ended, and the least, over all
    later u, of u (S(u) - S(t)) plus what is left after a poll at u. Each u is a straight line in
    S(t), and the lowest line moves only towards smaller u. So it is enough to keep the lines that
    are lowest somewhere, and the time is linear.

    Args:
        chances: The chance of an end in each bin, or proportional to it; the last is the rest.
        edges: The bounds of the bins in seconds, one more than there are bins.
        cost: Seconds of delay that one poll is worth.
    """
    places, ended = _places(chances, edges, cost)
    times, heights = [places[-1]], [places[-1] * ended[-1]]  # of the lines
    polls, best = [edges[-1]], 0
    for time, share in zip(places[-2::-1], ended[-2::-1], strict=True):
        best = min(best, len(times) - 1)
        least = heights[best] - times[best] * share
        while best + 1 < len(times) and heights[best + 1] - times[best + 1] * share <= least:
            best += 1
            least = heights[best] - times[best] * share
        polls.append(times[best])
        height = least + time * share + cost * (1 - share)
        while len(times) > 1 and (  # the last line is lowest nowhere
            (height - heights[-2]) * (times[-2] - times[-1])
            <= (heights[-1] - heights[-2]) * (times[-2] - time)
        ):
            times.pop()
            heights.pop()
        times.append(time)
        heights.append(height)
    return Plan(places, polls[::-1])


def _places(
    chances: Sequence[float], edges: Sequence[float], cost: float
) -> tuple[list[float], list[float]]:
    """Return ages at which a poll may be planned, and the share that has ended by each.

    They are denser at ages at which polls will be close together. The best density of polls is
    about sqrt(h / 2c), with the hazard rate h and the cost c (J. B. Keller, "Optimum checking
    schedules for systems subject to random failure", Management Science 21, 1974). The fewer
    generations are left, the less it matters.
    """
    total = sum(chances)
    factor = PER_GAP**2 / (2 * cost * total)
    places, ended, share = [edges[0]], [0.0], 0.0
    for weight, (start, end) in zip(chances[:-1], pairwise(edges[:-1]), strict=True):
        width, chance = end - start, weight / total
        count = min(math.ceil(math.sqrt(weight * width * factor)), PER_BIN)
        for number in range(1, count):
            places.append(start + width * number / count)
            ended.append(share + chance * number / count)
        share += chance
        places.append(end)
        ended.append(share)
    return places, ended
