"""Questions about images for chat models: asked, parsed, scored, kept, shown.

CVR-LLM and MuCR stand on this. A question is one decision (`Question`); what is only right together
counts as one unit (`Count`). Answers are read by fixed rules, and what cannot be read is wrong and
counted as unread, never a default letter (`parsing`). A row of plain JSON keeps all that was asked
and said (`rows`), is scored without a model, and beside each score stands what chance would give
(`scores`).
"""

from .asking import (
    Reader,
    Reply,
    ask_all,
    ask_letters,
    fill,
    keep_answers,
    template_hash,
)
from .gather import gather_shares, share_of
from .module import ReasoningModule
from .parsing import Parsed, lettered, letters, read_choice, read_choices, read_label
from .question import Count, Item, Question
from .rows import VERDICTS, Row, chance_of, jaccard, row_of, save_picture, score_row
from .scores import ReasoningScores, Score, logged

__all__ = [
    "VERDICTS",
    "Count",
    "Item",
    "Parsed",
    "Question",
    "Reader",
    "ReasoningModule",
    "ReasoningScores",
    "Reply",
    "Row",
    "Score",
    "ask_all",
    "ask_letters",
    "chance_of",
    "fill",
    "gather_shares",
    "jaccard",
    "keep_answers",
    "lettered",
    "letters",
    "logged",
    "read_choice",
    "read_choices",
    "read_label",
    "row_of",
    "save_picture",
    "score_row",
    "share_of",
    "template_hash",
]
