"""From pictures, questions and answers to what a model of transformers takes.

Shapes: B conversations, L sequence length.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import ProcessorMixin

IGNORED = -100
MAX_CACHED_TEXTS = 65536
Images = Tensor | Sequence[Sequence[Any]]


class Encoded(NamedTuple):
    """A batch for the network.

    Attributes:
        inputs: Token ids and mask (B, L), pixels, and whatever else the processor gives.
        labels: (B, L) int64: the token after each that is part of an answer, else -100.
    """

    inputs: dict[str, Tensor]
    labels: Tensor


class Conversations:
    """Turns conversations about images into tokens and pixels by a processor of transformers.

    Each question and answer is tokenised by itself, so that a prompt has the same tokens in
    training and when it is answered.

    A tokenizer of whole words knows a few only: with it an unknown one is an error, for it would be
    lost silently.

    Args:
        processor: With a chat template and a tokenizer.

    Raises:
        ValueError: The processor has no chat template, or one that does not write questions and
            answers as they are.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        self._has_few_words = isinstance(getattr(backend, "model", None), WordLevel)
        if processor.chat_template is None:
            raise ValueError(
                "processor: it has no chat template; save one with it "
                "(processor.chat_template = ...; processor.save_pretrained(folder))"
            )
        self._skeleton = lru_cache(maxsize=64)(self._make_skeleton)
        self._ids = lru_cache(maxsize=MAX_CACHED_TEXTS)(self._tokenize)

    def encode(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
        device: torch.device | str = "cpu",
    ) -> Encoded:
        """Encodes conversations.

        Args:
            images: (B, K, 3, H, W) float in [0, 1], or for each conversation a list of tensors or
                PIL images.
            questions: For each conversation its questions, in turn, the first about the images.
            answers: As many; or, to be answered, one fewer for each conversation. None: none.
            device: Where the tensors shall be.

        Returns:
            Padded on the right if every question has an answer, else on the left, for generation.

        Raises:
            ValueError: Numbers that do not fit, or a word that the tokenizer does not know.
        """
        given = answers if answers is not None else [()] * len(questions)
        counts = {len(ask) - len(reply) for ask, reply in zip(questions, given, strict=True)}
        if len(images) != len(questions) or counts - {0, 1} or len(counts) != 1:
            raise ValueError(
                f"{len(images)} sets of images, {len(questions)} of questions: expected one each, "
                "and an answer for every question, or for every one but the last"
            )
        is_open = counts == {1}
        prompts, rests = [], []
        for asked, replied, shown in zip(questions, given, images, strict=True):
            texts = self._segments(asked, replied, len(shown))
            prompts.append(texts[0])
            rests.append(texts[1:])
        encoded = self._process(images, prompts, device)
        return self._join(encoded, rests, "left" if is_open else "right")

    def decode(self, ids: Tensor) -> list[str]:
        """Returns the text of (B, L) token ids, without special tokens."""
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _process(
        self, images: Images, prompts: list[str], device: torch.device | str
    ) -> dict[str, Tensor]:
        """Runs the processor on the first question of each conversation with its images."""
        scaled = _is_float(images[0][0])
        # In single precision, whatever that of the network: resizing is.
        nested = [[x.float() if _is_float(x) else x for x in shown] for shown in images]
        has_bos = bool(self.tokenizer.bos_token) and prompts[0].startswith(self.tokenizer.bos_token)
        try:
            encoded = self.processor(
                images=nested,
                text=prompts,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                add_special_tokens=not has_bos,
                **({"do_rescale": False} if scaled else {}),
            )
        except ValueError as error:
            raise ValueError(f"processor: {' '.join(str(error).split())}") from error
        self._check_known(encoded["input_ids"].flatten().tolist(), prompts)
        return {name: value.to(device) for name, value in encoded.items()}

    def _join(
        self, encoded: dict[str, Tensor], rests: list[list[str]], padding_side: str
    ) -> Encoded:
        """Appends what follows the prompts, and marks the answers."""
        prompt_BL, mask_BL = encoded["input_ids"], encoded["attention_mask"]
        per_token = [name for name, value in encoded.items() if value.shape == prompt_BL.shape]
        pad_id, device = self.tokenizer.pad_token_id, prompt_BL.device
        lengths = mask_BL.sum(dim=1).tolist()
        tails: list[tuple[list[int], list[int]]] = []
        for rest in rests:
            ids: list[int] = []
            labels: list[int] = []
            for number, text in enumerate(rest):
                piece = self._ids(text)
                ids += piece
                labels += piece if number % 2 == 0 else [IGNORED] * len(piece)
            tails.append((ids, labels))
        total = max(n + len(ids) for n, (ids, _) in zip(lengths, tails, strict=True))
        fills = dict.fromkeys(per_token, 0) | {"input_ids": pad_id}
        joined = {name: prompt_BL.new_full((len(rests), total), fills[name]) for name in per_token}
        labels_BL = torch.full((len(rests), total), IGNORED)
        for row, (length, (ids, labels)) in enumerate(zip(lengths, tails, strict=True)):
            size = length + len(ids)
            start = total - size if padding_side == "left" else 0
            for name in per_token:
                joined[name][row, start : start + length] = encoded[name][row, -length:]
            if ids:
                end = start + size
                joined["input_ids"][row, start + length : end] = torch.tensor(ids, device=device)
                joined["attention_mask"][row, start + length : end] = 1
                # Position t predicts token t + 1.
                labels_BL[row, start + length - 1 : end - 1] = torch.tensor(labels)
        return Encoded({**encoded, **joined}, labels_BL.to(device))

    def _segments(
        self, questions: Sequence[str], answers: Sequence[str], num_images: int
    ) -> list[str]:
        """Returns the first prompt, then answers and further prompts in turn."""
        before, between, after, end = self._skeleton(num_images)
        texts = [before + questions[0] + between]
        for number, answer in enumerate(answers):
            texts.append(after[0] + answer + end)
            if number + 1 < len(questions):
                texts.append(after[1] + questions[number + 1] + between)
        return texts

    def _make_skeleton(self, num_images: int) -> tuple[str, str, tuple[str, str], str]:
        """Returns what the chat template writes around questions and answers.

        That is: before the first question; from a question to where generation begins; from there
        to the answer, and from the end of the answer to the next question; what ends an answer.
        """
        marks = ["[[q0]]", "[[a0]]", "[[q1]]", "[[a1]]"]
        messages: list[dict[str, Any]] = [
            {
                "role": "user" if mark[2] == "q" else "assistant",
                "content": [{"type": "text", "text": mark}],
            }
            for mark in marks
        ]
        messages[0]["content"] = [{"type": "image"}] * num_images + messages[0]["content"]
        template = self.processor.apply_chat_template
        whole = template(messages, tokenize=False)
        open_end = template(messages[:1], tokenize=False, add_generation_prompt=True)
        pieces, rest = [], whole
        for mark in marks:
            piece, found, rest = rest.partition(mark)
            if not found:
                raise ValueError(
                    "processor: its chat template does not write questions and answers as they "
                    "are, so that answers cannot be told from prompts"
                )
            pieces.append(piece)
        between = open_end.partition(marks[0])[2]
        if not pieces[1].startswith(between):
            raise ValueError(
                f"processor: its chat template writes {pieces[1]!r} before an answer, but "
                f"{between!r} where one shall be generated"
            )
        end = self._leading_special(pieces[2])
        after_answer = pieces[2].removeprefix(end)
        end = end or self.tokenizer.eos_token or ""
        return pieces[0], between, (pieces[1].removeprefix(between), after_answer), end

    def _leading_special(self, text: str) -> str:
        """Returns the special token that a text begins with, with blanks before it."""
        stripped = text.lstrip()
        blanks = text[: len(text) - len(stripped)]
        known = [str(token) for token in self.tokenizer.all_special_tokens]
        return next((blanks + token for token in known if stripped.startswith(token)), "")

    def _tokenize(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        self._check_known(ids, [text])
        return tuple(ids)

    def _check_known(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        if not self._has_few_words or self.tokenizer.unk_token_id not in ids:
            return
        vocabulary = self.tokenizer.get_vocab()
        backend = self.tokenizer.backend_tokenizer
        for text in texts:
            words = backend.normalizer.normalize_str(text) if backend.normalizer else text
            for token in self.tokenizer.all_special_tokens:
                words = words.replace(token, " ")
            for word, _ in backend.pre_tokenizer.pre_tokenize_str(words):
                if word not in vocabulary:
                    raise ValueError(
                        f"{word!r} in {text!r} is not in the tokenizer's vocabulary: add it to "
                        "model.init_args.vocabulary, for a model with random weights"
                    )


def _is_float(image: Any) -> bool:
    return isinstance(image, Tensor) and image.is_floating_point()
