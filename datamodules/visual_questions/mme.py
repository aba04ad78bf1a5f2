"""MME (Fu et al. 2023): two questions about each image, to be answered yes or no."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .module import Found, QuestionDataModule, QuestionSet, parsed
from .questions import ImageFolder, VisualQuestion, field_of, read_entries

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
SUFFIX = "\nAnswer the question using a single word or phrase."
ASKS_FOR_YES_OR_NO = "Please answer yes or no."


class MmeDataModule(QuestionDataModule):
    """MME from its folders, or from the JSON lines that LLaVA's and others' evaluations use.

    One set of questions, `mme/test`. Batches are those of `QuestionDataModule`; answers are "yes"
    or "no"; the category is MME's. `image_names` (category and file) tell which two questions
    belong together; `question_ids` are these with #1 and #2.

    Args:
        root: Folder with one for each category, that has `images` and `questions_answers_YN`, or
            images and texts together. A text has the name of its image and a line for each
            question: question, tab, Yes or No.
        question_file: JSON lines with `image` ("category/file"), `text` and `category`; the answer
            is that of the folders, or `label` where an entry has it. None: the folders' questions.
        categories: Asks only these.
        prompt_suffix: Follows each question; in a question file it is taken off first.
        **settings: Those of `QuestionDataModule`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        root: str,
        question_file: str | None = None,
        categories: Sequence[str] | None = None,
        prompt_suffix: str = SUFFIX,
        **settings: Any,
    ) -> None:
        super().__init__(prompt_suffix, **settings)
        self.root = Path(root).expanduser()
        self.question_file = None if question_file is None else Path(question_file).expanduser()
        self.categories = None if categories is None else list(categories)

    def read(self) -> list[QuestionSet]:
        """See `QuestionDataModule`."""
        folders = category_folders(self.root)
        if self.question_file is None:
            found = read_folders(folders)
        else:
            asked = partial(parse_line, answers=Answers(folders), suffix=self.prompt_suffix)
            found = number_questions(parsed(read_entries(self.question_file), asked))
        questions = self.keep(found, "mme/test")
        if self.categories is not None:
            known = {question.category for question in questions}
            unknown = [name for name in self.categories if name not in known]
            if unknown:
                raise ValueError(f"categories: {unknown} not among {', '.join(sorted(known))}")
            questions = [q for q in questions if q.category in self.categories]
        return [QuestionSet("mme/test", questions, MmeImages(self.root))]


class MmeImages(ImageFolder):
    """Images by "category/file", whichever way the folders are."""

    def _open(self, name: str) -> Any:
        category, _, file = name.rpartition("/")
        nested = f"{category}/images/{file}"
        return super()._open(nested if (self.folder / nested).is_file() else name)


def category_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Finds the folders of texts and of images of each category.

    Raises:
        ValueError: There is none.
    """
    folders = {}
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        texts, images = folder / "questions_answers_YN", folder / "images"
        texts = texts if texts.is_dir() else folder
        if any(texts.glob("*.txt")):
            folders[folder.name] = (texts, images if images.is_dir() else folder)
    if not folders:
        raise ValueError(
            f"{root}: no category of MME (expected <category>/questions_answers_YN/*.txt and "
            "<category>/images, or both in <category>)"
        )
    return folders


def read_folders(folders: Mapping[str, tuple[Path, Path]]) -> Iterable[Found]:
    """Reads the questions of all texts, in the order of their names."""
    for category, (texts, images) in folders.items():
        for path in sorted(texts.glob("*.txt")):
            names = [f"{path.stem}{suffix}" for suffix in IMAGE_SUFFIXES]
            file = next((name for name in names if (images / name).is_file()), names[0])
            yield from _read_text(path, category, f"{category}/{file}")


def _read_text(path: Path, category: str, image: str) -> Iterable[Found]:
    asked = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        text, _, answer = line.strip().rpartition("\t")
        asked += 1
        if answer.strip().lower() in ("yes", "no") and text:
            yield VisualQuestion(
                id=f"{image}#{asked}",
                image=image,
                text=text.strip(),
                answer=answer.strip().lower(),
                category=category,
                source=where,
            )
        else:
            yield ValueError(f"{where}: expected question, tab, Yes or No, found {line.strip()!r}")


class Answers:
    """The answers of MME's folders, by image and question.

    Spaces and the request for yes or no do not count, which copies write in different ways.

    Args:
        folders: As `category_folders` finds them.
    """

    def __init__(self, folders: Mapping[str, tuple[Path, Path]]) -> None:
        self._answers = {
            (question.category, Path(question.image).stem, plain(question.text)): question.answer
            for question in read_folders(folders)
            if isinstance(question, VisualQuestion)
        }

    def find(self, category: str, image: str, text: str) -> str | None:
        """Returns yes or no, None if there is no such question."""
        return self._answers.get((category, Path(image).stem, plain(text)))


def plain(text: str) -> str:
    """Returns a question without the request for yes or no, and with single spaces."""
    return " ".join(text.replace(ASKS_FOR_YES_OR_NO, "").split())


def parse_line(
    entry: Mapping[str, Any], where: str, answers: Answers, suffix: str
) -> VisualQuestion:
    """Reads a line of a question file.

    Raises:
        ValueError: A key is missing, or there is no answer.
    """
    category, image = field_of(entry, "category", where), field_of(entry, "image", where)
    text = field_of(entry, "text", where).removesuffix(suffix).removesuffix(SUFFIX)
    answer = str(entry.get("label", "")).lower() or answers.find(category, image, text)
    if answer not in ("yes", "no"):
        raise ValueError(f"{where}: no text of category {category} has this question on {image}")
    return VisualQuestion("", image, text, answer, category, source=where)


def number_questions(found: Iterable[Found]) -> Iterable[Found]:
    """Gives each question its image's name and a number as id: both of an image have one name."""
    asked: dict[str, int] = defaultdict(int)
    for item in found:
        if isinstance(item, VisualQuestion):
            asked[item.image] += 1
            yield replace(item, id=f"{item.image}#{asked[item.image]}")
        else:
            yield item
