"""Notes that the table has no room for: the problem that a loss solves, in one sentence, and its traps.

The pages under docs/ say more. The numbers are for the row's defaults, computed with this code. Your own losses need no
entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notes:
    """One loss: a sentence on the problem it solves, and sentences that save a reader a wasted run."""

    problem: str
    traps: tuple[str, ...] = ()


_IDLE_CLIP = "With one update per step every ratio is 1 and the clip cannot act."
_ONE_SIDED = "The clip is one-sided: a token with A < 0 whose ratio rose to 5 has weight 5; delta bounds it."

NOTES: dict[str, Notes] = {
    "grpo": Notes(
        "Policy gradients without a value network: a completion is judged against the others of its prompt.",
        (
            _IDLE_CLIP,
            _ONE_SIDED,
            "A token of a 25-token answer weighs 32 times one of an 800-token answer: long failures are "
            "punished softly.",
            "At ratio 1 the loss is about 0 whatever the policy does; look at the reward.",
        ),
    ),
    "bnpo": Notes(
        "A token mean that needs no communication between ranks.",
        (
            "It depends on how sequences are dealt to ranks, by definition; on one rank it is a plain token"
            " mean.",
            "The paper called BNPO (arXiv 2506.02864, Beta normalisation of rewards) is something else.",
            "A rank with half the tokens gives each of them twice the weight.",
        ),
    ),
    "dr_grpo": Notes(
        "Takes two biases out of GRPO: towards long wrong answers, and towards questions that are nearly "
        "solved or hopeless.",
        (
            "The gradient is proportional to 1 / max_completion_length, so a limit raised for safety lowers"
            " its norm, and max_grad_norm then clips at another point.",
            "Advantages are not divided by the group's deviation: with 0/1 rewards none is above 1 in size.",
            _IDLE_CLIP,
        ),
    ),
    "dapo": Notes(
        "Keeps entropy up and lets long answers count: unlikely tokens may grow further, and every token "
        "weighs the same.",
        (
            "Its value at ratio 1 is not 0 where length and success go together: one short success among "
            "seven long failures gives +0.30.",
            "A token with a probability above 0.78 can never reach the upper clip (1 / 1.28).",
            "The paper averages within each prompt's group first (reduction prompt_mean); practice counts "
            "all tokens.",
            _IDLE_CLIP,
        ),
    ),
    "cispo": Notes(
        "No token loses its gradient: rare words that turn a line of thought are just those that a clip "
        "silences.",
        (
            "epsilon_high is an absolute cap on the ratio, not 1 + epsilon: 0.28 would scale every gradient"
            " by 0.28, and is refused.",
            "Below the cap its gradient is the unclipped one; with ratios spread by 0.5 in log space the "
            "cap touches 1 token in 1,400.",
            "The value contains log π and means nothing on its own; it cannot be compared with other "
            "losses' values.",
        ),
    ),
    "sapo": Notes(
        "A gate that closes gradually, in place of a clip that drops a token at one exact ratio.",
        (
            "The gate is half closed only at ratio 2.76 (A > 0) and 2.68 (A < 0); it is no tight trust "
            "region.",
            "Below ratio 1 it hardly closes at all: 0.79 (0.77) of the unclipped weight is left as the "
            "ratio goes to 0.",
            "sapo_gain none is a quarter of the other losses' gradient on-policy.",
        ),
    ),
    "gspo": Notes(
        "The reward is the sequence's, so the ratio and the clip are too; token ratios of a sparse expert "
        "model are noise.",
        (
            "Its epsilon is some 600 times smaller than a token clip's: 0.2 here switches the clip off.",
            "Large clipped shares are normal: with token log-ratios spread by 0.02, 32 % of 500-token "
            "sequences are outside.",
            "The spread of the sequence ratio falls as 1 / √T, so one epsilon is tight for short answers "
            "and loose for long.",
        ),
    ),
    "gspo_token": Notes(
        "GSPO's ratio and clip, with a gradient that takes an advantage for each token.",
        (
            "With one advantage per sequence its gradient is gspo's exactly; choose it only for per-token "
            "advantages.",
            "The same narrow epsilon as gspo.",
        ),
    ),
    "gmpo": Notes(
        "One wild ratio moves an arithmetic mean; it hardly moves a geometric one.",
        (
            "epsilon is in log space: 0.4 lets ratios through from 0.67 to 1.49.",
            "A clipped token leaves the gradient, but its clipped ratio still scales all the others' of its"
            " sequence.",
            "Where whole sequences are not kept together its value changes with the micro-batch: by a "
            "factor of 8 in one trainer, measured in 2026.",
        ),
    ),
    "luspo": Notes(
        "GSPO weighs each sequence alike, so a long answer's tokens weigh less; this multiplies by the "
        "length.",
        (
            "The gradient is T times gspo's: 500 times for 500-token answers, so max_grad_norm 1 acts at "
            "every step.",
            "Its value grows with the lengths and can be in the hundreds at ratio 1.",
            "Defined on the sequence ratio only.",
        ),
    ),
    "vespo": Notes(
        "Weighs a whole sequence by its true importance ratio, softly, so that stale sequences fade out "
        "instead of exploding.",
        (
            "The ratio is a product: 500 tokens at 1.01 make W = 145, and the weight is 1e-183. At 1.001 it"
            " is 0.39.",
            "For a 500-token answer half the weight is gone once the mean log-ratio leaves −0.0030 … "
            "+0.0008 (A > 0).",
            "Engine noise between sampler and trainer adds up over the sequence in the same way; watch "
            "ratio/ess.",
        ),
    ),
    "dppo_tv": Notes(
        "A ratio clip is far too tight for rare tokens and too loose for common ones; this bounds the "
        "change in probability.",
        (
            "Anchored on the sampler: it needs sampler_logps, at the same temperature and over the same "
            "support.",
            "A token of probability 0.01 may rise to 0.21 (a ratio of 21, capped at 20); one of 0.9 may "
            "fall to 0.7.",
            "A token with A < 0 and a sampler probability below 0.2 is never dropped, however far it falls.",
        ),
    ),
    "dppo_kl": Notes(
        "The trust region of dppo_tv, measured by the binary KL divergence: tighter for rare tokens.",
        (
            "Anchored on the sampler: it needs sampler_logps, at the same temperature and over the same "
            "support.",
            "A token of probability 0.01 may rise to 0.078, one of 0.5 to 0.654; one of 0.9 may fall to "
            "0.78.",
        ),
    ),
    "spo": Notes(
        "A clip stops pushing but never pulls back; a parabola has its best point at 1 ± ε and returns a "
        "token to it.",
        (
            "Beyond that point the gradient turns and grows with ρ²: weight −8 at ratio 2, −440 at ratio 10"
            " (A > 0). A few stray tokens can own the step; watch ratio/max.",
            "Small epsilon makes it steeper, not gentler: the parabola's curvature is 1 / ε.",
        ),
    ),
    "reinforce": Notes(
        "The plain policy gradient, and the yardstick: at ratio 1 nearly every loss here has its gradient.",
        (
            "No ratio at all: after the first update of a step it is biased. Use num_iterations 1 and "
            "updates_per_step 1.",
            "The value is mean −A·log π: it falls as the policy grows sure, which is not progress.",
        ),
    ),
    "importance_sampling": Notes(
        "The unbiased off-policy objective, with nothing to tame it: a baseline for all that do.",
        (
            "Variance is unbounded. With log-ratios spread by 0.5 the effective sample is 78 % of the "
            "tokens, by 1 it is 37 %.",
            "Set it beside cispo: they differ only above the cap.",
        ),
    ),
    "fipo": Notes(
        "Credit for a token by what the policy now thinks of the tokens after it, without a value network.",
        (
            "The weight only grows (1 to 1.2); a sum F below 0 changes nothing.",
            "F sums log-ratios with a half-life of 32 tokens, the token's own included: ratios of 1.0039 "
            "all the way reach the cap.",
            "At ratio 1 it is plain clip: it acts from the second update of a step.",
        ),
    ),
    "real": Notes(
        "Rewards that are right or wrong are labels, and a classification loss has bounded gradients where "
        "a ratio has none.",
        (
            "Only the sign of A matters: 0.9 against 1.0 is the same as 0 against 1.",
            "The push is not balanced: one success among seven failures is pulled with 1, and they are "
            "pushed with 1.75.",
            "Its value at ratio 1 is log(1+n₊) + log(1+n₋), 2.77 for that group, and says nothing about the"
            " policy.",
            "Groups with one label only have no loss, but they count in the divisor.",
        ),
    ),
    "clip_cov": Notes(
        "Entropy falls through a few tokens whose log-probability and advantage go together; some of them "
        "lose their gradient.",
        (
            "It touches 20 of 100,000 tokens, and 1 in any update below 10,000.",
            "Where half a group is right (A = ±0.94) and the mean log-prob is above −1, only unlikely "
            "tokens of wrong answers can be drawn: they are the ones with cov > 1.",
            "Chosen per micro-batch, the same step loses 50 tokens in cuts of 2,000 and 20 in cuts of "
            "5,000: hence the statistics pass.",
        ),
    ),
    "kl_cov": Notes(
        "Like clip_cov, but the tokens that drive entropy down are held near the old policy by a penalty.",
        (
            "At ratio 1 the penalty's gradient is 0: with one update per step it is importance_sampling.",
            "The penalty has the constant slope ±1, and is not scaled by A: on a token with |A| < 1 it "
            "outweighs the reward.",
            "No token is clipped: the 99.8 % that are not selected have the bare ratio.",
        ),
    ),
    "m2po": Notes(
        "For stale rollouts: drop as few extreme tokens as it takes to bound the second moment of the log-"
        "ratio.",
        (
            "Nothing happens until log-ratios spread by 0.2 (the threshold is its square); at 0.3 a tenth "
            "of the tokens goes, at 0.5 a quarter.",
            "Only tokens that moved the way A pushes can go; those on their way back are kept.",
            "The moment is of log π − log π_old. Others take it against the policy that sampled, which "
            "differs when rollouts are older than the step.",
        ),
    ),
}


def notes_of(name: str) -> Notes | None:
    """Returns the notes on a loss; None for a loss without any, such as a registered one."""
    return NOTES.get(name)
