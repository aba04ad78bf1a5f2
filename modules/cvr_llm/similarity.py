"""The floor under a language model: options by their similarity with what is asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..encoders import Encoder
from ..visual_reasoning.module import ReasoningModule
from ..visual_reasoning.parsing import letters
from ..visual_reasoning.question import Item, Question
from ..visual_reasoning.rows import Row, row_of
from .text_similarity import Array, CharacterNgrams, TextSimilarity, unit_rows


class SimilarityModule(ReasoningModule):
    """Chooses the options that are most similar to the query, without any reasoning.

    With an encoder of images and texts in one space this is what CLIP is measured by: images are
    compared with the query, or an image with texts. Without one, texts are compared with the
    descriptions that come with the data.

    Of options that are as similar as each other, the first is taken where several are to be chosen,
    and none where one is: Winoground counts a tie as wrong.

    Args:
        encoder: Of images and texts in one space. None: descriptions are compared.
        text: How descriptions are compared; None: `CharacterNgrams`.
        save_pictures: See `ReasoningModule`.

    Raises:
        ValueError: The encoder lacks a tower.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        text: TextSimilarity | None = None,
        save_pictures: bool = True,
    ) -> None:
        super().__init__(save_pictures)
        if encoder is not None and not (encoder.supports_images and encoder.supports_texts):
            raise ValueError(f"encoder: {type(encoder).__name__} has not both towers")
        self.encoder, self.text = encoder, text or CharacterNgrams()
        self._places: dict[str, int] = {}

    def on_test_start(self) -> None:
        """Fits the comparison of texts to all descriptions."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined] # set at run time
        if self.encoder is None:
            self.fit(list(data.questions))

    def on_predict_start(self) -> None:
        """As for a test."""
        self.on_test_start()

    def fit(self, questions: Sequence[Question]) -> None:
        """Fits the comparison of texts to the descriptions and texts of questions."""
        texts = sorted({text for question in questions for text in _candidates(question)})
        self._places = {text: place for place, text in enumerate(texts)}
        self.text.fit(texts)

    def answer(self, items: Sequence[Item]) -> list[Row]:
        """See `ReasoningModule`."""
        rows = []
        for item, scores in zip(items, self._similarities(items), strict=True):
            question = item.question
            order = np.argsort(-scores, kind="stable")[: len(question.answers)]
            tied = len(question.answers) == 1 and int((scores == scores[order[0]]).sum()) > 1
            names = letters(len(question.options))
            raw = "" if tied else "Answer: " + ", ".join(names[place] for place in order)
            rows.append(
                row_of(
                    question,
                    raw=raw,
                    pictures=self.pictures_of(item),
                    calls=0,
                    similarities=[round(float(score), 6) for score in scores],
                )
            )
        return rows

    def run_info(self) -> dict[str, Any]:
        """See `ReasoningModule`."""
        encoder = None if self.encoder is None else self.encoder.identity
        return {**super().run_info(), "encoder": encoder}

    def _similarities(self, items: Sequence[Item]) -> list[Array]:
        """Of each question how similar each option is."""
        if self.encoder is not None:
            return [self._seen(item) for item in items]
        queries = [query_of(item.question) for item in items]
        tables = self.text.similarities(queries)
        return [
            row[[self._places[text] for text in _candidates(item.question)]]
            for item, row in zip(items, tables, strict=True)
        ]

    def _seen(self, item: Item) -> Array:
        """Compares images with texts."""
        assert self.encoder is not None
        question, pictures = item.question, item.pictures
        if any(picture is None for picture in pictures):
            raise ValueError("encoder: there are no images: set data.init_args.image_dir")
        images = unit_rows(
            self.encoder.encode_images([p for p in pictures if p is not None]).double().numpy()
        )
        texts = [query_of(question)] if question.option_images else list(question.options)
        vectors = unit_rows(self.encoder.encode_texts(texts).double().numpy())
        if question.option_images:
            return np.asarray(images[list(question.option_images)] @ vectors[0])
        return np.asarray(vectors @ images.mean(axis=0))


def query_of(question: Question) -> str:
    """What options are compared with: what the data name as `query`, else the question."""
    return str(question.extra.get("query", question.text))


def _candidates(question: Question) -> list[str]:
    """What stands for each option: a description of its image, or its text."""
    if not question.option_images:
        return list(question.options)
    if not question.captions:
        raise ValueError(
            f"question {question.id} of {question.set} has no descriptions of its images: give "
            "model.init_args.encoder"
        )
    return [question.captions[place] for place in question.option_images]
