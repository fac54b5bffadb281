"""What this machine is, which bundles run on it, what is missing, and what an animation would cost here."""

from .printed import show
from .report import Outlook, Question, Report, examine

__all__ = ["Outlook", "Question", "Report", "examine", "show"]
