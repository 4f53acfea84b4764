"""Reports of ablations: tables to read and to print, and one page with plots and pictures that needs no network."""

from linear_probe.report.contents import Unreportable
from linear_probe.report.write import write_report

__all__ = ["Unreportable", "write_report"]
