"""C4: a tensor that the adapter touches is a right rounding of W + Δ; a tensor that it replaces is the adapter's."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds import Bound, Delta, additions, beyond_rounding
from certify.diagnosis import diagnose
from certify.errors import DamagedError
from certify.expect.expectation import Expectation, Part, columns_of, factors
from certify.expect.target import BLOCK, Block, Target
from certify.fidelity import Fidelity
from certify.finding import Figure, Finding, Outcome
from certify.grid import Grid
from certify.inputs.adapter import AdapterTensor
from certify.inputs.stored import Stored
from certify.mistakes import mistaken
from certify.relatives import Relative
from certify.request import CRITERIA

CODE = "C4"
TITLE = "merged tensors are W + Δ, rounded as declared, and every adapter tensor is used"
TOLD = 0.05 / 2  # of ‖Δ‖: halfway to the smallest lack of a delta that the gate claims to see, the ×0.95 that C6 plants
RATIO_MAX = 1e30  # what NaN and infinity count as
Listener = Callable[[Block, Tensor, Grid], None]  # the expectation of some rows, these rows as stored, what can stand there


def merged_tensor(
    subject: str,
    base: Stored,
    merged: Stored,
    parts: Sequence[Part],
    criterion: str,
    relatives: Callable[[], Iterable[Relative]] = tuple,
    listener: Listener | None = None,
) -> Finding:
    """One touched matrix against the interval of `certify.bounds`, block of rows by block of rows.

    Undecided where every element is in its interval, but only float32's own noise explains a share of Δ that the gate claims to see.

    Where it fails, the looser criteria are tried (the finding's figure `passes_under` names the first that would accept the tensor), and
    the cause is looked for; `relatives`: the touched tensors of the same shape, whose deltas may have landed here.

    listener: is given each block as well, so that another check needs no reading of its own
    """
    try:
        deltas = [factors(part) for part in parts]
        tally = Tally(base.shape, Fidelity.of(deltas, parts[0].orientation, noisy=criterion == "faithful"))
        for block, theirs, grid in expected(base, merged, deltas):
            tally.judge(block, theirs, grid, criterion)
            if listener:
                listener(block, theirs, grid)
        figures = tally.figures()
        if not tally.beyond:
            return tally.within(subject, figures)
        others = [other for other in CRITERIA if other != criterion and (other != "faithful" or tally.kept_most())]
        looser = (other for other in others if _accepts(base, merged, deltas, other))
        figures["passes_under"] = next(looser, None)
        cause = diagnose(base, merged, deltas, (tally.rows_beyond, tally.columns_beyond), criterion, relatives)
        figures |= cause.figures()
    except DamagedError as error:
        return Finding(CODE, subject, Outcome.FAILED, str(error), {"unreadable": True})
    return Finding(CODE, subject, Outcome.FAILED, f"{tally.sentence()}; {cause.sentence}", figures)


def composed_tensor(subject: str, expectation: Expectation, merged: Stored, criterion: str, listener: Listener | None = None) -> Finding:
    """Any other touched tensor: experts, convolutions, biases, DoRA, replaced rows, tensors that the base has not.

    The interval is that of `certify.bounds`, with its gain; a replaced row is the adapter's own value, converted once.
    """
    try:
        target = Target(expectation, criterion)
        tally = Tally((expectation.rows, expectation.columns), Fidelity(None, flipped=False, noisy=criterion == "faithful"))
        for block, theirs, grid in target.against(merged):
            tally.judge(block, theirs, grid, criterion)
            if listener:
                listener(block, theirs, grid)
        figures = tally.figures()
        if not tally.beyond:
            return tally.within(subject, figures)
        others = [other for other in CRITERIA if other != criterion and (other != "faithful" or tally.kept_most())]
        figures["passes_under"] = next((other for other in others if _holds(expectation, merged, other)), None)
        cause = mistaken(expectation, merged, criterion)
    except DamagedError as error:
        return Finding(CODE, subject, Outcome.FAILED, str(error), {"unreadable": True})
    return Finding(CODE, subject, Outcome.FAILED, f"{tally.sentence()}; cause: {cause}", figures | {"cause": cause})


def replaced_tensor(subject: str, merged: Stored, source: AdapterTensor) -> Finding:
    """One tensor of a module that was trained and saved whole: the adapter's value, rounded once to the stored dtype."""
    try:
        differing = 0
        for block, theirs, grid in Target(Expectation(source, columns_of(source.shape)), "nearest").against(merged):
            differing += int(((grid.once(block.base.float()) != theirs) | ~torch.isfinite(theirs)).sum())
    except DamagedError as error:
        return Finding(CODE, subject, Outcome.FAILED, str(error), {"unreadable": True})
    figures: dict[str, Figure] = {"elements": merged.entry.elements, "beyond": differing, "replaced": True}
    if not differing:
        return Finding(CODE, subject, Outcome.PASSED, figures=figures)
    sentence = f"the adapter replaces this tensor, but {differing:,} of {merged.entry.elements:,} elements are not the adapter's"
    return Finding(CODE, subject, Outcome.FAILED, sentence, figures)


@dataclass
class Tally:
    """What the blocks of one tensor add up to.

    beyond     elements outside their interval        ratio  largest |M − v| / (½ ulp + e) seen; 1 is what one rounding may use
    fidelity   how much of Δ is in the stored weights
    worst      the element farthest from v of those beyond: index, stored value, allowed interval
    rows_beyond, columns_beyond   how many elements of each row and column are beyond
    unexplained, due   squares: what only float32's noise explains of M − v, and Δ, in the rows that are not our own float32 merge
    doubtful   rows in which the noise of the ranks' products, and nothing else, explains too much of M − v; columns, in `within`
    """

    shape: tuple[int, ...]
    fidelity: Fidelity
    beyond: int = 0
    changed: int = 0
    ratio: float = 0.0
    unexplained: float = 0.0
    due: float = 0.0
    doubtful: int = 0
    worst: dict[str, Figure] = field(default_factory=dict)
    _farthest: float = -1.0

    def __post_init__(self) -> None:
        self.rows_beyond, self.columns_beyond = (torch.zeros(size, dtype=torch.int64) for size in self.shape)
        self._of_columns = torch.zeros(2, self.shape[1], dtype=torch.float64)  # unexplained by additions, due

    def judge(self, block: Block, merged: Tensor, grid: Grid, criterion: str) -> None:
        """One block of rows. A float32 merge of our own is one of the right ones: rows of it, or of its neighbours, are right."""
        (W, change, own), M = block.parts(), merged.float()
        self.fidelity.fold(block.row, M - W, change, own, grid)
        self.changed += int((M != W).sum())
        finite = math.isfinite(float(M.sum())) or torch.isfinite(M)  # the sum is seldom too large, and costs a fifth
        same = ((grid.once(own) == merged) & finite).all(dim=1)
        if criterion == "faithful" and not bool(same.all()):
            same = (grid.beside(merged, own) & finite).all(dim=1)
        used = (M - own).abs_().div_(grid.half_step(own)).amax(dim=1)  # e is left out: it only makes the ratio smaller
        self.ratio = max(self.ratio, float(used[same].max()) if bool(same.any()) else 0.0)
        if not bool(same.all()):
            rows = (~same).nonzero().view(-1)
            some, grid, rows = block.of(rows), grid.of(rows), rows + block.row
            bound = some.bound(grid, criterion)
            self._examine(rows, merged[~same], bound, grid)
            unexplained = beyond_rounding(merged[~same].double(), bound, block.base.dtype, grid, criterion, len(block.deltas))
            self._weigh(some, bound, unexplained)

    def _weigh(self, block: Block, bound: Bound, unexplained: Tensor) -> None:
        """What only noise explains, against the delta that is due: together, row by row and column by column."""
        due = (bound.exact - block.base.double()).square_()
        of_products = (unexplained - additions(block.base, block.deltas, block.gain, bound.exact)).clamp_(min=0).square_()
        self.unexplained += float(unexplained.square_().sum())
        self.due += float(due.sum())
        self.doubtful += int((of_products.sum(dim=1) > TOLD**2 * due.sum(dim=1)).sum())
        self._of_columns += torch.stack([of_products.sum(dim=0), due.sum(dim=0)])

    def _examine(self, rows: Tensor, merged: Tensor, right: Bound, grid: Grid) -> None:
        """The rows (their numbers in the tensor) that need the interval itself."""
        M = merged.double()
        outside = ~right.holds(M)
        ratio = ((M - right.exact).abs() / (grid.half_step(right.exact) + right.slack)).nan_to_num(RATIO_MAX, RATIO_MAX)
        self.ratio = max(self.ratio, float(ratio.max()))
        count = int(outside.sum())
        if not count:
            return
        self.beyond += count
        self.rows_beyond[rows] += outside.sum(dim=1)
        self.columns_beyond += outside.sum(dim=0)
        distance = torch.where(outside, (M - right.exact).abs().nan_to_num(torch.inf, torch.inf), -1.0)
        place = int(distance.argmax())
        if float(distance.view(-1)[place]) > self._farthest:
            self._farthest = float(distance.view(-1)[place])
            at = divmod(place, M.shape[1])
            low, high = right.intervals[0]
            self.worst = {"worst_index": f"[{int(rows[at[0]])}, {at[1]}]", "worst_value": _json(M[at])}
            self.worst |= {"worst_low": _json(low[at]), "worst_high": _json(high[at])}

    def figures(self) -> dict[str, Figure]:
        rows, columns = self.shape
        return {"elements": rows * columns, "beyond": self.beyond, "changed": self.changed, "ratio": self.ratio,
                **self.fidelity.figures(), **self.worst}  # fmt: skip

    def kept_most(self) -> bool:
        """Whether most of Δ is there: where Δ is faint the base itself is a neighbour of W + Δ, and C8 would refuse it."""
        kept = self.fidelity.figures()["retention"]
        return isinstance(kept, float) and kept >= 0.5

    def within(self, subject: str, figures: dict[str, Figure]) -> Finding:
        """Every element is in its interval; undecided where the stored values could as well be those of a merge that lost a part of Δ."""
        columns = int((self._of_columns[0] > TOLD**2 * self._of_columns[1]).sum())
        if self.unexplained <= TOLD**2 * self.due and not self.doubtful and not columns:
            return Finding(CODE, subject, Outcome.PASSED, figures=figures)
        parts = f", in {self.doubtful:,} of its rows and {columns:,} of its columns by too much" if self.doubtful or columns else ""
        sentence = (
            f"the stored values are {self.unexplained**0.5:.3g} away from W + Δ rounded, where Δ is {self.due**0.5:.3g} (norms){parts}: "
            f"ranks cancel, or Δ is below the last bits of W, so that float32 may miss as much, and so may a wrong merge; merge in float64"
        )
        return Finding(CODE, subject, Outcome.UNDECIDED, sentence, figures)

    def sentence(self) -> str:
        """What was found at the worst element, and what was allowed."""
        elements = self.shape[0] * self.shape[1]
        return (
            f"{self.beyond:,} of {elements:,} elements ({self.beyond / elements:.2%}) are no right rounding of W + Δ; "
            f"worst at {self.worst['worst_index']}: stored {self.worst['worst_value']}, "
            f"allowed [{self.worst['worst_low']}, {self.worst['worst_high']}]"
        )


def _json(value: Tensor) -> float | str:
    """A number that JSON can carry and a person can read: six digits; NaN and infinity by name."""
    return float(f"{float(value):.6g}") if bool(torch.isfinite(value)) else str(float(value))


def rows_of(delta: Delta, row: int, count: int) -> Delta:
    """The share of a delta in some rows of the tensor."""
    return Delta(delta.left[row : row + count], delta.right, delta.scaling, delta.dtype)


def blocks(base: Stored, merged: Stored) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, rows of the base, rows of the merged tensor)."""
    columns = base.shape[1]
    height = max(1, BLOCK // max(1, columns))
    step = max(1, height * columns)
    pairs = zip(base.elements(step), merged.elements(step), strict=True)
    for number, (ours, theirs) in enumerate(pairs):
        yield number * height, ours.view(-1, columns), theirs.view(-1, columns)


def expected(base: Stored, merged: Stored, deltas: Sequence[Delta]) -> Iterator[tuple[Block, Tensor, Grid]]:
    """(what is expected of some rows, these rows of the merged tensor, what can stand there)."""
    for row, ours, theirs in blocks(base, merged):
        here = tuple(rows_of(delta, row, len(ours)) for delta in deltas)
        yield Block(row, ours, here, decoded=base.decoded), theirs, merged.grid(range(row, row + len(ours)))


def _holds(expectation: Expectation, merged: Stored, criterion: str) -> bool:
    """The same for any expectation."""
    blocks = Target(expectation, criterion).against(merged)
    return all(bool(block.bound(grid, criterion).holds(theirs.double()).all()) for block, theirs, grid in blocks)


def _accepts(base: Stored, merged: Stored, deltas: Sequence[Delta], criterion: str) -> bool:
    """True if another criterion accepts every element; stops at the first block that it refuses."""
    blocks = expected(base, merged, deltas)
    return all(bool(block.bound(grid, criterion).holds(theirs.double()).all()) for block, theirs, grid in blocks)
