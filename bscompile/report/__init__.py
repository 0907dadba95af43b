"""What was done to each layer, what it costs, and why: made by the compiler, kept in artifacts."""

from bscompile.report.model import LayerReport, PassNote, Report

__all__ = ["LayerReport", "PassNote", "Report"]
