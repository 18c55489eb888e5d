"""Shows a decision in words, and the ledger of a campaign as a table or as JSON."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from lmtrain.comparison.labels import cut_middle
from lmtrain.decide.campaign import describe
from lmtrain.decide.idea import Idea
from lmtrain.decide.ledger import DROP, KEEP, UNDECIDED, Contents, Entry
from lmtrain.decide.pairs import UNITS, SeedPair
from lmtrain.decide.rule import REASONS, Judgement
from lmtrain.terminal.console import console
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.units import counted, duration, si

MAX_CHANGES_CHARS = 48
LEAST_GAIN = 0.0001  # a smaller one is shown with its exponent
OPEN = "open"  # an idea that has started and not ended
NOTHING = "–"
LARGEST_EXPONENT = 700  # of e, in a float


def show_start(idea: Idea, entry: Entry) -> None:
    """Print which idea is decided, and at which level."""
    for note in dict.fromkeys([*idea.baseline.notes, *idea.challenger.notes]):
        console.print(note, style="yellow")
    console.print(
        f"idea {entry.number}: {idea.title}; level {entry.level:.2g}: a keep needs evidence of {1 / entry.level:,.0f}"
    )


def show_pair(idea: Idea, pairs: Sequence[SeedPair], judgement: Judgement) -> None:
    """Print the newest pair and the evidence so far."""
    pair = pairs[-1]
    values = " and ".join(NOTHING if one is None else f"{one:.4f}" for one in (pair.baseline, pair.challenger))
    words = f"seed {pair.seed}: {values}"
    words += f", {better_or_worse(pair.gain)}" if pair.gain is not None else f" ({' and '.join(pair.statuses)})"
    console.print(f"{words}; evidence {evidence_text(judgement.log_evidence)}")
    for note in pair.notes:
        console.print(f"seed {pair.seed}: {note}", style="yellow")


def show_verdict(result: Mapping[str, Any]) -> None:
    """Print a verdict with its reason, the gain and the cost."""
    console.print(verdict_line(result))
    console.print(f"cost: {cost_text(result['cost'])}; runs in {short_path(Path(result['campaign']).absolute())}")


def verdict_line(result: Mapping[str, Any]) -> str:
    """Return a verdict in one line."""
    words = f"{result['verdict']} {' '.join(result.get('changes', []))}: {REASONS[result['reason']]}"
    if result["gain"] is not None:
        words += f"; {better_or_worse(result['gain'])} on average over {counted(len(result['seeds']), 'pair')}"
    least, most = result["interval"]
    if least is not None and most is not None:
        words += f"; the true gain is at least {least:.3g}, and at most {most:.3g}"
    return words


def better_or_worse(gain: float) -> str:
    if not gain:
        return "equal"
    size = f"{abs(gain):.4f}" if abs(gain) >= LEAST_GAIN else f"{abs(gain):.1e}"
    return f"{'better' if gain > 0 else 'worse'} by {size}"


def evidence_text(log_evidence: float) -> str:
    return f"{math.exp(min(log_evidence, LARGEST_EXPONENT)):,.3g}"


def cost_text(cost: Mapping[str, float]) -> str:
    return f"{duration(cost['seconds'])} of training, {si(cost['tokens'])} tokens, {si(cost['flops'])} FLOPs"


def ledger_as_json(contents: Contents, campaign: Path) -> dict[str, Any]:
    """Return the whole ledger as one JSON object."""
    counts = dict.fromkeys((KEEP, DROP, UNDECIDED, OPEN), 0)
    for entry in contents.entries.values():
        counts[entry.verdict or OPEN] += 1
    return {
        "campaign": str(campaign),
        "level": contents.level,
        "planned_ideas": contents.planned,
        "verdicts": counts,
        "cost": campaign_cost(contents),
        "damaged_lines": contents.damaged,
        "ideas": [describe(entry, campaign) for entry in contents.entries.values()],
    }


def campaign_cost(contents: Contents) -> dict[str, float]:
    """Return the cost of all runs in the ledger; a run of a baseline that several ideas share counts once."""
    runs: dict[tuple[Any, ...], Mapping[str, float]] = {}
    for entry in contents.entries.values():
        for pair in (entry.ended or {}).get("pairs", []):
            for side, cost in pair["cost"].items():
                place = entry.started.get(side, {}).get("directory", f"{entry.key} {side}")
                runs[place, pair["seed"]] = cost
    return {unit: math.fsum(cost[unit] for cost in runs.values()) for unit in UNITS} | {"runs": len(runs)}


def show_ledger(contents: Contents, campaign: Path) -> None:
    """Print the ledger as a table, in the order in which the ideas started."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("idea", "changes", "verdict", "gain", "pairs", "evidence", "needed", "reason"):
        rows.add_column(heading, justify="left" if heading in ("changes", "verdict", "reason") else "right")
    for entry in contents.entries.values():
        ended = entry.ended or {}
        gain = ended.get("gain")
        rows.add_row(
            str(entry.number),
            cut_middle(" ".join(entry.started.get("changes", [])), MAX_CHANGES_CHARS),
            entry.verdict or OPEN,
            NOTHING if gain is None else f"{gain:+.4f}",
            str(len(ended["seeds"])) if ended else NOTHING,
            evidence_text(ended["log_evidence"]) if ended else NOTHING,
            f"{1 / entry.level:,.0f}",
            REASONS.get(ended.get("reason", ""), ""),
        )
    console.print(rows)
    whole = ledger_as_json(contents, campaign)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in whole["verdicts"].items() if count)
    console.print(
        f"{counted(len(contents.entries), 'idea')}: {counts or 'none'}; at most {contents.level:.0%} of the kept ones "
        f"are expected to be false; cost {cost_text(whole['cost'])} in {counted(whole['cost']['runs'], 'run')}"
    )
    if contents.damaged:
        console.print(f"{counted(contents.damaged, 'line')} cannot be read; each counts as an idea", style="yellow")
