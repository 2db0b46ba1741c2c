"""The screen as text, for a terminal."""

from collections.abc import Sequence
from typing import Any

from certify.finding import Finding
from certify.report.text import figure, printable
from certify.screen.adapter import Trace, told
from certify.screen.screening import Screening, State

SHOWN = 20  # lines of a kind
MEANING = {
    State.CONSISTENT: "nothing looks unusual; a wrong adapter, a transposed or a doubled delta would look like this too",
    State.SUSPECT: "something looks unusual; it may be as it was meant",
    State.NOT_SCREENED: "nothing could be measured",
}


def lines(state: State, screening: Screening, faults: Sequence[Finding], trace: Trace | None) -> list[str]:
    """What was touched, the scalings, what to look at, and what is proven wrong."""
    figures = screening.figures
    shown = [f"screen   {state}: {MEANING[state]}"]
    shown.append(f"touched  {figures['touched']:,} of {figures['tensors']:,} tensors")
    if figures["lost"]["tensors"]:
        lower, middle, upper = (f"{value:.1%}" for value in figures["lost"]["quartiles"])
        spread = f" (half of the tensors between {lower} and {upper})" if lower != upper else ""
        shown.append(f"kept     {middle} of the change is in the stored values{spread}")
    shown += _some([_role(role) for role in figures["roles"]])
    if trace is not None:
        shown += _some([f"scaling  {sentence}" for sentence in told(trace)] or [f"scaling  unknown: {trace.reason or 'no tensor tells'}"])
    advice = [*screening.findings, *(trace.findings if trace else ())]
    shown += _some([f"look at  {sentence}" for sentence in advice])
    shown += _some([f"wrong    {fault.code} {fault.subject}: {fault.sentence}" for fault in faults])
    shown.append("verdict  " + ("REJECTED: wrong whatever the adapter is" if faults else "none: without an adapter nothing is certified"))
    return [printable(line) for line in shown]


def _role(role: dict[str, Any]) -> str:
    line = f"         {role['role']}   {role['touched']:,} of {role['tensors']:,}"
    if role["rho"]:
        least, middle, most = (figure(value) for value in role["rho"])
        line += f"   ρ {middle}" + (f" ({least} to {most})" if least != most else "") + f"   kept {role['retention']:.1%}"
    if role["ranks"]:
        line += f"   rank seen {', '.join(str(rank) for rank in role['ranks'])}"
    return line


def _some(told: list[str]) -> list[str]:
    return told if len(told) <= SHOWN else [*told[:SHOWN], f"         … and {len(told) - SHOWN:,} more"]
