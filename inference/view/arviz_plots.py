"""The plots of ArviZ in a report: from the same draws as `posterior.to_arviz()`, as pictures.

Numbers are shown as they are, texts by the code of each (its labels stand below the plot), all on
draws of equal weight. `ess` and `rhat` of ArviZ mean nothing for particles and are left out.
"""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.html import text
from lmppl.inference.results.export import to_arviz

if TYPE_CHECKING:
    from lmppl.inference.results.posterior import Posterior

MOST = 8
"""Variables that are shown."""


def arviz_images(posterior: Posterior) -> str:
    """Figures as HTML with embedded PNG.

    Raises:
        BadArgument: arviz or matplotlib is not there.
    """
    try:
        import arviz as plots
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadArgument(
            f"the plots of ArviZ need {error.name}",
            fix='pip install "arviz<1" matplotlib, or leave arviz=True out',
        ) from None
    az: Any = plots  # its functions have no types
    tree = to_arviz(posterior)
    names = [
        str(name)
        for name, data in tree["posterior"].data_vars.items()
        if data.ndim == 2 and np.isfinite(data.values).all() and float(np.ptp(data.values)) > 0
    ][:MOST]
    if not names:
        return '<p class="sub">no variable that varies</p>'
    data = tree if not hasattr(az, "InferenceData") else az.InferenceData.from_datatree(tree)
    if not hasattr(az, "plot_posterior"):
        return '<p class="sub">ArviZ 1 draws by arviz.plot_dist(posterior.to_arviz())</p>'
    rows = (len(names) + 3) // 4
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, min(len(names), 4))).ravel()
    az.plot_posterior(data, var_names=names, ax=axes[: len(names)], textsize=8, hdi_prob=0.94)
    for spare in axes[len(names) :]:
        spare.set_visible(False)
    forest = Figure(figsize=(11, 0.8 + 0.35 * len(names)), layout="constrained")
    az.plot_forest(data, var_names=names, combined=True, ax=forest.subplots(), textsize=8)
    shown = _image(figure, "plot_posterior") + _image(forest, "plot_forest")
    return shown + "".join(_labels(tree["posterior"][name]) for name in names)


def _image(figure: Any, name: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure><img class="shot" alt="arviz.{name}" src="data:image/png;base64,{data}">'
        f"<figcaption>arviz.{name}</figcaption></figure>"
    )


def _labels(data: Any) -> str:
    """What the codes of a text stand for."""
    if "labels" not in data.attrs:
        return ""
    labels = json.loads(data.attrs["labels"])[:12]
    told = ", ".join(f"{k} = {label}" for k, label in enumerate(labels))
    return f'<p class="sub">{text(data.name)}: {text(told)}</p>'
