"""Selection: a budget's schedule, the largest scores of a whole network, the error where none decide."""

import torch
from torch import Tensor


class PruningBreakdown(RuntimeError):
    """A pruning method has no answer for this network at this density; the message says why.

    Either its scores do not say which weights to keep (all zero, fewer non-zero than the budget, not finite),
    or what it keeps is no network: layers without any weight cut the output off from the input (layer
    collapse, Tanaka et al., NeurIPS 2020). Price & Tanner (ICML 2021, section 4) report both.
    """


def exponential_schedule(total: int, budget: int, steps: int) -> list[int]:
    """Weights left after each step t: total (budget/total)^(t/steps), rounded; `budget` after the last.

    Source: de Jorge et al. (ICLR 2021), section 4; the same as Tanaka et al. (NeurIPS 2020), algorithm 1.
    """
    return [round(total * (budget / total) ** (t / steps)) for t in range(1, steps)] + [budget]


def objection(scores: dict[str, Tensor], count: int, candidates: dict[str, Tensor], last: bool) -> str | None:
    """Why these scores do not say which `count` of the candidates to keep; None where they do.

    Before the last step only scores that are all zero, or not finite, are refused: which of the zeros stay
    does not matter yet.
    """
    positive = zero = negative = 0
    for name, score in scores.items():
        here = score[candidates[name]]
        if not torch.isfinite(here).all():
            return "some scores are infinite or NaN"
        positive += int((here > 0).sum())
        zero += int((here == 0).sum())
        negative += int((here < 0).sum())
    if positive + negative == 0:
        return "all scores are zero"
    if last and positive < count < positive + zero:
        return (
            f"only {positive} weights have a score above zero, and the budget of {count} would be filled up "
            "with weights whose score is exactly zero"
        )
    return None


def keep_largest(scores: dict[str, Tensor], count: int, candidates: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks, True at the `count` candidates of largest score in the whole network; of equals the first."""
    keep = largest(torch.cat([score[candidates[name]] for name, score in scores.items()]), count)
    masks, start = {}, 0
    for name in scores:
        size = int(candidates[name].sum())
        masks[name] = candidates[name].clone()
        masks[name][candidates[name]] = keep[start : start + size]
        start += size
    return masks


def largest(values: Tensor, count: int) -> Tensor:
    """A bool mask of the `count` largest of 1-D `values`; of equals the first."""
    keep = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    if count:
        smallest = values.kthvalue(values.numel() - count + 1).values
        keep |= values > smallest
        keep[(values == smallest).nonzero().flatten()[: count - int(keep.sum())]] = True
    return keep
