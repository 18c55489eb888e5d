"""Shows the effect of each setting: a table, and sentences about trends, optima and interactions."""

import math

from rich.table import Table

from lmtrain.comparison.labels import setting_text, short_names
from lmtrain.comparison.output.tables import NOTHING, plain_table
from lmtrain.comparison.statistics.effects import Effect, SettingEffects
from lmtrain.comparison.statistics.significance import ALPHA
from lmtrain.comparison.statistics.wording.numbers import p_in_table, p_in_words, plus_minus
from lmtrain.terminal.units import counted


def are_worth_showing(found: SettingEffects) -> bool:
    """Return whether there are several effects, or one that says more than the comparison of two settings."""
    return len(found.effects) > 1 or any(len(effect.means) > 2 and effect.test for effect in found.effects)


def effects_heading(found: SettingEffects) -> str:
    if not any(effect.test for effect in found.effects):
        return "effect of each setting"
    if found.by_seeds:
        return "effect of each setting, tested against its own noise between seeds"
    return (
        "effect of each setting, tested against its variation between the values of the other settings, as no setting "
        "has several seeds"
    )


def effects_table(found: SettingEffects) -> Table:
    table = plain_table("setting", "effect", "F", "p", "mean for each value, other settings equal")
    for effect in found.effects:
        if not effect.means:
            table.add_row(effect.key, NOTHING, NOTHING, NOTHING, _why_undetermined(effect))
            continue
        means = ", ".join(f"{setting_text(value, effect.key)}: {mean:.4f}" for value, mean in effect.means.items())
        f = NOTHING if effect.test is None else f"{effect.test.f:.3g}"
        p = NOTHING if effect.p is None else p_in_table(effect.p)
        words = [means]
        if effect.alike:
            words.append(f"always changes together with {', '.join(effect.alike)}")
        if effect.left_out:
            left_out = ", ".join(setting_text(value, effect.key) for value in effect.left_out)
            words.append(f"without {left_out}, which was not tried with the same values of the other settings")
        if effect.places[0] < effect.places[1]:
            words.append("at {} of the {} values of the other settings at which it was varied".format(*effect.places))
        if effect.remark:
            words.append(effect.remark)
        table.add_row(effect.key, f"{effect.size:.4f}", f, p, "; ".join(words))
    table.columns[-1].overflow, table.columns[-1].justify = "fold", "left"
    return table


def effect_sentences(found: SettingEffects) -> list[str]:
    """Return what the table cannot show: interactions, trends, optima, and how p and the intervals were made."""
    names = short_names([effect.key for effect in found.effects])
    lines = [
        f"the effect of {names[first]} depends on {names[second]} ({p_in_words(interaction.p)}): read the table of "
        "settings, not the effect of each"
        for interaction in found.interactions
        for first, second in [interaction.keys]
        if interaction.p < ALPHA
    ]
    lines += [text for effect in found.effects for text in _response(effect, names[effect.key])]
    tested = [effect for effect in found.effects if effect.test or effect.rank]
    if not tested:
        return lines
    line = f"p is from {'F tests' if any(effect.test for effect in tested) else 'rank correlations'}"
    several = len(tested) > 1
    if several:
        line += f", corrected for {counted(len(tested), 'setting')} (Holm)"
    if any(effect.trend or (effect.optimum and not effect.optimum.why_not) for effect in tested):
        line += f"; intervals hold with {found.confidence:.0%} confidence" + (" together" if several else "")
    if found.interactions:
        line += f"; {counted(len(found.interactions), 'pair')} of settings tested for interaction"
    elif len(found.effects) > 1:
        line += "; interactions could not be tested"
    return [*lines, line]


def _response(effect: Effect, name: str) -> list[str]:
    """Return the trend of a numeric setting and its best value in words."""
    lines = []
    best = effect.optimum
    if (trend := effect.trend) is not None and (best is None or best.why_not):  # a trend would hide the optimum
        per = f"per doubling of {name}" if trend.log else f"per unit of {name}"
        if abs(trend.slope) > trend.half_width:
            direction = "rises" if trend.slope > 0 else "falls"
            lines.append(f"{name}: the value {direction} by {plus_minus(abs(trend.slope), trend.half_width)} {per}")
        else:
            lines.append(f"{name}: no clear trend ({plus_minus(trend.slope, trend.half_width)} {per})")
    if best is not None:
        if best.why_not:
            lines[-1:] = [f"{line}; {best.why_not}" for line in lines[-1:]]
        else:
            tried = [float(value) for value in effect.means]
            beyond = best.low < min(tried) or best.high > max(tried)
            end = ", which reaches beyond the values tried" if beyond else ""
            lines.append(
                f"{name}: best near {best.best:.3g}, by a parabola (interval {best.low:.3g} to {best.high:.3g}{end})"
            )
    return lines


def _why_undetermined(effect: Effect) -> str:
    together = f"it changes only together with {', '.join(effect.together)}"
    text = f"cannot be determined: {together if effect.together else effect.remark}"
    if (rank := effect.rank) is None or not math.isfinite(rank.r):
        return text
    return (
        f"{text}; rank correlation with the result {rank.r:+.2f} (Spearman, {rank.n} settings, {p_in_words(rank.p)}), "
        "other settings not held equal"
    )
