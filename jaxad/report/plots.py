"""How the report's figures look. Matplotlib without its global state; jax is not imported."""

from __future__ import annotations

import io

GRID, FAINT = "#e4e6e8", "#b0b4b8"


def figure(title: str, x: str, y: str):
    """(figure, axes) of one plot."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(5.2, 4.2), dpi=110)
    made.subplots_adjust(left=0.13, right=0.97, bottom=0.13, top=0.92)
    axes = made.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    dress(axes)
    return made, axes


def dress(axes) -> None:
    """Two spines and a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def png(made) -> bytes:
    """The same figure gives the same bytes."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", metadata={"Software": None})  # the same bytes whatever the library's version
    return buffer.getvalue()
