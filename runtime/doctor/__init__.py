"""What this machine is, which bundles run on it, what is missing, and what an animation would cost here."""

from .report import Outlook, Question, Report, examine, show

__all__ = ["Outlook", "Question", "Report", "examine", "show"]
