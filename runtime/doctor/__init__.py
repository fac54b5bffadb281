"""What this machine is, which bundles run on it, what is missing, and what an animation would cost here."""

from .report import Question, Report, examine, show

__all__ = ["Question", "Report", "examine", "show"]
