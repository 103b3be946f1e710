"""Seeing a posterior: one HTML file with everything that a run did, and the server that shows it."""

from lmppl.inference.view.forest import Forest
from lmppl.inference.view.landscape import Landscape, by_model, landscape
from lmppl.inference.view.page import report_page, write_report
from lmppl.inference.view.state import run_state

__all__ = [
    "Forest",
    "Landscape",
    "by_model",
    "landscape",
    "report_page",
    "run_state",
    "write_report",
]
