"""Pictures as SVG, drawn here: sparklines. Colours come from the stylesheet, by class."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 120, 28


def sparkline(values: Sequence[float | None], label: str) -> Markup:
    """A line of the values, oldest first, with a text for who cannot see it. None is a gap."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup("")
    highest = max(known) or 1.0
    step = WIDTH / (len(values) - 1)
    runs: list[list[str]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            y = HEIGHT - 2 - (HEIGHT - 4) * value / highest
            runs[-1].append(f"{place * step:.1f},{y:.1f}")
    lines = Markup("").join(
        Markup('<polyline points="{}"/>').format(" ".join(run)) for run in runs if len(run) > 1
    )
    text = f"{label}: {known[-1]:,.4g} now, at most {max(known):,.4g}"
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}" '
        'preserveAspectRatio="none">{}</svg>'
    ).format(WIDTH, HEIGHT, text, lines)
