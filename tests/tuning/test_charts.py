"""Charts of sweeps draw what there is, and nothing else."""

from __future__ import annotations

import re

from rayrec.tuning.charts import Axis, Line, parallel


def test_a_line_does_not_touch_an_axis_on_which_it_has_no_value() -> None:
    axes = [Axis.of_numbers(name, [0.0, 1.0]) for name in "abcd"]
    drawn = parallel("title", "about", [Line((0.1, 0.2, None, 0.4), "tip", 1.0)], axes)
    stretches = [points.split() for points in re.findall(r'<polyline[^>]* points="([^"]*)"', drawn)]
    assert [len(points) for points in stretches] == [2, 1]
