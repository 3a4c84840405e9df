# SPDX-License-Identifier: Apache-2.0
"""What `BeatsChampion` and the shadow evaluation decide about models whose difference is known.

`BeatsChampion` first, on two detectors. Beside it stands the comparison of two numbers: promote
what scored higher. Both see the same holdout of 127 pictures, drawn anew for each trial from one
endless population:

- A picture has 1 to about 50 true boxes (geometric, 7 on average, as in a set of aquarium
  photographs), eight in ten of one class; half of all are of the most frequent of 7 classes.
- How hard a box is to find is a normal number: in equal parts the picture's, the box's own, and
  noise that each model has for itself. A model finds the box if its skill exceeds that, and the
  confidence grows with by how much. So both models err on much the same boxes, not on all.
- About 20 wrong boxes a picture, two thirds of them found by both models; their confidence is
  mostly low and sometimes high.

Equally good models have equal skill, so that neither is better by construction. For a true
difference the candidate's skill is raised until its mAP50 on 20,000 pictures is that much higher.

Then `BeatsChampion` on examples of clips, with numbers and with right or wrong answers, and any of
8 rounds' candidates as good as the champion. Three tenths of the variance of a score are the
clip's, for each model anew. Clips stand one after the other and are of equal size, or of very
different ones. The gate knows the groups, or not. The peer takes the examples to be independent.

Then the shadow evaluation, of two classifiers that nodes score, 4 other nodes in each of up to 10
rounds (where no other number is told), with a look after every round. Beside it stands a paired
t-test at 5 % (for A/B one of two samples) after every round, which is made for one look:

- A node has 60 examples at the median (log-normal, 20 to some 300). The two models disagree on
  a tenth of them.
- The data of nodes differ: the true difference on a node is normal around that of all nodes, with
  a standard deviation of 2 points, and so is the score of both, with one of 10 points.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import numpy as np
from scipy.stats import ttest_1samp, ttest_ind

from benchmarks.table import Row, parser, report
from fl_app.shares import largest_weight
from fl_models.map_results import Matches
from fl_registry import BeatsChampion, Evidence, ExampleScores
from fl_registry.gates.paired import bootstrap_interval, mcnemar, sequential_test

PICTURES, POPULATION = 127, 20_000
TRIALS, POWER_TRIALS, SESSIONS, ROUNDS = 1000, 400, 200, 8
SHARES = np.array([0.5, 0.17, 0.11, 0.08, 0.06, 0.05, 0.03])  # of the classes
SKILL, CLEAR = 0.7, 4.0
WRONG_SHARED, WRONG_OWN = 13.0, 7.0
CLIP_SESSIONS, ALIKE, CLIP_PEER = 2000, 0.3, "examples taken to be independent"
SHADOW_ROUNDS, NODES_A_ROUND, DISAGREE, POINTS_APART = 10, 4, 0.1, 0.02
SHARE = functools.partial(largest_weight, shares=2.0)  # as by default
Random = np.random.Generator


class Holdout:
    """Pictures with true boxes and with what tempts a model to find one where there is none."""

    def __init__(self, random: Random, pictures: int = PICTURES) -> None:
        counts = random.geometric(1 / 7, pictures)
        subject = random.choice(len(SHARES), pictures, p=SHARES)
        self.pictures, self.subject = pictures, subject
        self.picture = np.repeat(np.arange(pictures), counts)
        other = random.choice(len(SHARES), len(self.picture), p=SHARES)
        stray = random.random(len(self.picture)) < 0.2
        self.category = np.where(stray, other, subject[self.picture])
        self.hardness = random.normal(size=pictures)[self.picture]
        self.hardness += random.normal(size=len(self.picture))
        self.wrong = self._tempt(random, WRONG_SHARED)

    def _tempt(self, random: Random, mean: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picture, class and mean confidence of wrong boxes."""
        picture = np.repeat(np.arange(self.pictures), random.poisson(mean, self.pictures))
        other = random.choice(len(SHARES), len(picture), p=SHARES)
        category = np.where(random.random(len(picture)) < 0.5, other, self.subject[picture])
        return picture, category, random.normal(-3.0, 1.3, len(picture))

    def found_by(self, random: Random, skill: float) -> Matches:
        """What a model of that skill finds, with noise of its own."""
        ease = skill - (self.hardness + random.normal(size=len(self.picture))) / np.sqrt(3)
        right = ease > 0
        own = self._tempt(random, WRONG_OWN)
        picture, category, tempting = (
            np.concatenate(parts) for parts in zip(self.wrong, own, strict=True)
        )
        sure = [CLEAR * ease[right] - 2, tempting + random.normal(0, 0.7, len(tempting))]
        return Matches(
            num_pictures=self.pictures,
            picture=np.concatenate([self.picture[right], picture]),
            category=np.concatenate([self.category[right], category]),
            conf=1 / (1 + np.exp(-np.concatenate(sure))),
            right=np.repeat([True, False], [right.sum(), len(picture)])[:, None],
            true_picture=self.picture,
            true_category=self.category,
            names=[*"abcdefg"],
        )


def score(found: Matches) -> float:
    """mAP50 of the set as it is."""
    scored = found.resampled("mAP50", np.ones((1, len(found)), np.float32))
    assert scored is not None  # noqa: S101  # mAP50 is what it scores
    return float(scored[0])


@functools.cache
def true_score(skill: float) -> float:
    """mAP50 of a model on the population; the same pictures and noise for every skill."""
    random = np.random.default_rng(11)
    return score(Holdout(random, POPULATION).found_by(random, skill))


def skill_for(gain: float) -> float:
    """Skill with which a model scores that much more on the population."""
    low, high = SKILL, SKILL + 2.0
    while gain and high - low > 1e-3:
        middle = (low + high) / 2
        enough = true_score(middle) - true_score(SKILL) >= gain
        low, high = (low, middle) if enough else (middle, high)
    return low


def decide(old: Matches, new: Matches, looks: int = 1) -> tuple[bool, bool]:
    """Whether the gate, and whether the two numbers alone, let the candidate pass."""
    numbers = score(old), score(new)
    evidence = Evidence(
        {"mAP50": numbers[1]},
        {"mAP50": numbers[0]},
        results=new,
        champion_results=old,
        looks=looks,
    )
    return BeatsChampion("mAP50")(evidence).passed, numbers[1] > numbers[0]


def promoted(gain: float, trials: int, seed: int) -> tuple[float, float]:
    """Share of trials in which the gate and the two numbers promote a candidate so much better."""
    random, skill = np.random.default_rng(seed), skill_for(gain)
    passed = np.zeros(2)
    for _ in range(trials):
        holdout = Holdout(random)
        passed += decide(holdout.found_by(random, SKILL), holdout.found_by(random, skill))
    return float(passed[0]) / trials, float(passed[1]) / trials


def promoted_in_a_session(gain: float, sessions: int, seed: int) -> tuple[float, float]:
    """Share of sessions in which any of the rounds' candidates, so much better, is promoted."""
    random, passed, skill = np.random.default_rng(seed), np.zeros(2), skill_for(gain)
    for _ in range(sessions):
        holdout = Holdout(random)
        old = holdout.found_by(random, SKILL)
        rounds = [decide(old, holdout.found_by(random, skill), ROUNDS) for _ in range(ROUNDS)]
        passed += np.any(rounds, axis=0)
    return float(passed[0]) / sessions, float(passed[1]) / sessions


def clip_sizes(random: Random, examples: int, clips: int, *, equal: bool) -> np.ndarray:
    """Number of examples of each clip, one at least."""
    shares = np.ones(clips) if equal else random.exponential(size=clips)
    more = random.multinomial(examples - clips, shares / shares.sum())
    even = np.full(clips, examples // clips) + (np.arange(clips) < examples % clips)
    return even if equal else more + 1


def scores_by_clip(random: Random, clips: np.ndarray, gain: float, *, binary: bool) -> np.ndarray:
    """Scores of one model, whose variance is 1 and partly the clip's."""
    alike = random.normal(0, ALIKE**0.5, clips.max() + 1)[clips] if clips.any() else 0.0
    own = random.normal(0, (1 - ALIKE) ** 0.5 if clips.any() else 1.0, len(clips))
    scores: np.ndarray = gain + alike + own
    return (scores > 0).astype(float) if binary else scores


def seems_better(old: np.ndarray, new: np.ndarray, confidence: float, *, binary: bool) -> bool:
    """Whether a candidate is better if the examples are independent; no gate passes others."""
    if new.mean() <= old.mean():
        return False
    if binary:
        return mcnemar(old > 0, new > 0)[2] <= 1 - confidence
    one, two = (ExampleScores({"m": side.tolist()}) for side in (old, new))
    interval = bootstrap_interval(one, two, "m", confidence=confidence)
    return interval is not None and interval[0] > 0


def promoted_on_clips(
    examples: int, clips: int, *, given: bool, equal: bool, binary: bool, gain: float = 0.0
) -> tuple[float, float, float]:
    """Share of sessions in which a candidate is promoted, ours and the peer's.

    The last number is the share of the peer's in which the gate warns. With numbers there is one
    round a session, since a bootstrap takes 3 to 12 milliseconds.
    """
    random, passed = np.random.default_rng(6), np.zeros(3)
    rounds = ROUNDS if binary else 1
    for _ in range(CLIP_SESSIONS):
        sizes = clip_sizes(random, examples, clips, equal=equal) if clips else np.array([examples])
        clip = np.repeat(np.arange(len(sizes)), sizes)
        old = scores_by_clip(random, clip, 0.0, binary=binary)
        found = np.zeros(3, bool)
        for _ in range(rounds):
            new = scores_by_clip(random, clip, gain, binary=binary)
            if not seems_better(old, new, 1 - 0.05 / rounds, binary=binary):
                continue
            groups = clip.tolist() if given else None
            one, two = (ExampleScores({"m": side.tolist()}, groups) for side in (old, new))
            metrics = [{"m": float(side.mean())} for side in (new, old)]
            verdict = BeatsChampion("m")(
                Evidence(*metrics, results=two, champion_results=one, looks=rounds)
            )
            found |= [verdict.passed, True, "vary together" in verdict.note]
        passed += found
    ours, peer, warned = passed / CLIP_SESSIONS
    return float(ours), float(peer), float(warned / max(peer, 1 / CLIP_SESSIONS))


def clip_rows() -> Iterator[Row]:
    """`BeatsChampion` on examples of clips."""
    cases = [(127, 0, False, True), (500, 0, False, True)]
    cases += [(n, g, given, True) for n, g in ((127, 12), (500, 5)) for given in (True, False)]
    cases += [(127, 12, True, False), (127, 12, False, False), (500, 5, True, False)]
    for binary in (True, False):
        for examples, clips, given, equal in cases:
            ours, peer, warned = promoted_on_clips(
                examples, clips, given=given, equal=equal, binary=binary
            )
            whose = f"of {clips} clips{'' if equal else ' of any size'}" if clips else "independent"
            known = f", {'groups given' if given else 'not given'}" if clips else ""
            what = f"right or wrong, any of {ROUNDS} rounds" if binary else "numbers, 1 round"
            name = f"promoted, equally good, {examples} {whose}{known}; {what}"
            yield row(name, (ours, peer), 0.05 if given or not clips else 0.1, CLIP_PEER)
            print(f"  a warning in {warned:.0%} of the peer's", flush=True)
    for gain in (0.3, 1.0):
        for clips, given in ((0, False), (12, True), (12, False)):
            ours, peer, _ = promoted_on_clips(
                127, clips, given=given, equal=True, binary=True, gain=gain
            )
            known = ("groups given" if given else "not given") if clips else "independent"
            name = f"found, {gain:g} deviations better, 127 of {clips or 127} clips, {known}"
            yield row(name, (ours, peer), peer=CLIP_PEER)


def seconds_per_decision(repeats: int = 15) -> tuple[float, float]:
    """Median seconds of one decision by the gate, and of counting the two numbers."""
    random = np.random.default_rng(5)
    holdout = Holdout(random)
    old, new = holdout.found_by(random, SKILL), holdout.found_by(random, SKILL)
    took = np.empty((repeats, 2))
    for repeat in range(repeats):
        began = time.perf_counter()
        decide(old, new)
        middle = time.perf_counter()
        score(old), score(new)
        took[repeat] = middle - began, time.perf_counter() - middle
    ours, numbers = np.median(took, axis=0)
    return float(ours - numbers), float(numbers)


def node_scores(random: Random, gain: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of champion and candidate, so much better on average, on each of some nodes."""
    examples = np.maximum(20, random.lognormal(np.log(60), 0.7, nodes)).astype(int)
    ahead = np.clip(random.normal(gain, POINTS_APART, nodes), -DISAGREE, DISAGREE)
    both = random.normal(0.75, 0.1, nodes).clip(0.4, 0.9 - DISAGREE / 2)
    chances = np.stack(
        [both, (DISAGREE - ahead) / 2, (DISAGREE + ahead) / 2, 1 - both - DISAGREE], axis=1
    )
    right, old, new, _ = random.multinomial(examples, chances).T
    return (right + old) / examples, (right + new) / examples


def shadow_evaluation(
    random: Random, gain: float, *, rounds: int, ab_test: bool
) -> tuple[str, str]:
    """What ours and the t-tests decide, rounds one after the other, until they do."""
    ours: list[np.ndarray] = []
    peer, told = "undecided", sequential_test([])
    every: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(rounds):
        old, new = node_scores(random, gain, NODES_A_ROUND)
        if ab_test:  # half of the nodes score one model each
            old, new = old[::2], new[1::2]
        ours.append(new - old)
        every.append((old, new))
        if told.outcome == "undecided":
            told = sequential_test(ours, span=1, largest=SHARE)
        if peer == "undecided" and len(every) > 1:
            peer = t_test(*np.concatenate(every, axis=1), ab_test=ab_test)
    return told.outcome, peer


def t_test(old: np.ndarray, new: np.ndarray, *, ab_test: bool) -> str:
    """What a t-test at 5 % says of all scores so far."""
    result = ttest_ind(new, old) if ab_test else ttest_1samp(new - old, 0)
    if not result.pvalue < 0.05:
        return "undecided"
    return "better" if result.statistic > 0 else "worse"


def found(
    outcomes: tuple[str, ...],
    gain: float,
    trials: int,
    *,
    rounds: int = SHADOW_ROUNDS,
    ab_test: bool = False,
) -> tuple[float, float]:
    """Share of shadow evaluations in which ours and the t-tests come to one of these outcomes."""
    random = np.random.default_rng(5)
    ends = [shadow_evaluation(random, gain, rounds=rounds, ab_test=ab_test) for _ in range(trials)]
    ours, peer = ([end in outcomes for end in side] for side in zip(*ends, strict=True))
    return float(np.mean(ours)), float(np.mean(peer))


def row(
    name: str,
    values: tuple[float, float],
    goal: float | None = None,
    peer: str = "two numbers on the same pictures",
) -> Row:
    """One line of the table; a goal is an upper bound of ours."""
    ours, value = values
    return Row(name, ours, peer, value, goal, met=None if goal is None else ours <= goal)


def holdout_rows() -> Iterator[Row]:
    """`BeatsChampion` on a holdout of pictures."""
    yield row("seconds per decision, 127 pictures", seconds_per_decision())
    null = promoted(0.0, TRIALS, seed=1)
    yield row(f"promoted, equally good ({TRIALS} trials)", null, 0.05)
    for gain in (0.02, 0.05):
        name = f"promoted, {100 * gain:.0f} points better ({POWER_TRIALS} trials)"
        yield row(name, promoted(gain, POWER_TRIALS, seed=2))
    name = f"any of {ROUNDS} rounds promoted, equally good ({SESSIONS} sessions)"
    yield row(name, promoted_in_a_session(0.0, SESSIONS, seed=3), 0.05)
    name = f"any of {ROUNDS} rounds promoted, 5 points better ({SESSIONS} sessions)"
    yield row(name, promoted_in_a_session(0.05, SESSIONS, seed=4))


def shadow_rows() -> Iterator[Row]:
    """The shadow evaluation on the nodes."""
    peer, wrong = "t-test after every round", ("better", "worse")
    for ab_test in (False, True):
        name = f"decided, equally good{', A/B' * ab_test} ({TRIALS} evaluations)"
        yield row(name, found(wrong, 0.0, TRIALS, ab_test=ab_test), 0.05, peer)
    for gain, rounds in ((0.02, 3), (0.02, 10), (0.02, 25), (0.05, 3), (0.05, 10)):
        nodes = rounds * NODES_A_ROUND
        name = f"found, {100 * gain:.0f} points better, {nodes} nodes ({POWER_TRIALS} evaluations)"
        share = found(("better",), gain, POWER_TRIALS, rounds=rounds)
        yield row(name, share, peer=peer)
    name = f"better, 2 points worse ({TRIALS} evaluations)"
    yield row(name, found(("better",), -0.02, TRIALS), 0.05, peer)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    parts = {"holdout": holdout_rows, "clips": clip_rows, "shadow": shadow_rows}
    options = parser(__doc__)
    options.add_argument("--only", choices=parts, help="this part alone")
    asked, began = options.parse_args(), time.perf_counter()
    chosen = [asked.only] if asked.only else parts
    report((found for name in chosen for found in parts[name]()), asked.json)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
