"""What models are told. The paper publishes no prompts but one; these are ours.

A recipe may replace any; `metrics.json` has their hash, so that results name what was asked.
"""

from dataclasses import dataclass, fields

from ..visual_reasoning.asking import template_hash


@dataclass(frozen=True)
class Prompts:
    """Templates; `{name}` is filled in.

    Args:
        caption: For the captioner, of any image.
        ask_system: Who writes questions for the captioner.
        ask_initial: Asks for a question about an image: `{task}`, `{question}`, `{options}`,
            `{image}` (its number), `{images}` (how many there are).
        ask_followup: The same after a tentative answer: also `{description}`, `{prediction}`.
        answer_system: Who answers.
        answer: `{demonstrations}`, `{task}`, `{descriptions}`, `{question}`, `{options}`,
            `{instruction}`.
        demonstration: A solved example: `{descriptions}`, `{question}`, `{options}`, `{answer}`.
        description: An image in words: `{number}`, `{text}`.
        choose_one: `{instruction}` where one option is right.
        choose_several: Where several are: `{number}`.
        explain: Where an answer is free.
        judge: Is a free answer right? `{question}`, `{descriptions}`, `{references}`,
            `{candidate}`. The last line of what it asks for is "Verdict: correct" or "incorrect".
    """

    caption: str = "Describe this image in detail."
    ask_system: str = (
        "You question an image captioning model. You cannot see the image, the model can. Ask "
        "exactly one question about what is visible, whose answer gives the information that is "
        "most needed to solve the task. Write the question and nothing else."
    )
    ask_initial: str = (
        "Task: {task}\n{question}\n{options}\n\n"
        "Your question is about image {image} of {images}.\nQuestion:"
    )
    ask_followup: str = (
        "Task: {task}\n{question}\n{options}\n\n"
        "What is known of image {image} of {images}: {description}\n"
        "Tentative answer: {prediction}\n\n"
        'Ask one question that begins with "What" and whose answer would confirm or refute the '
        "tentative answer.\nQuestion:"
    )
    answer_system: str = (
        "You solve tasks about images that you cannot see, from descriptions of them. Descriptions "
        "may be incomplete: always choose what fits them best."
    )
    answer: str = (
        "{demonstrations}{task}\n\n{descriptions}\n\n{question}\n{options}\n\n{instruction}"
    )
    demonstration: str = "{descriptions}\n\n{question}\n{options}\n\nAnswer: {answer}\n\n---\n\n"
    description: str = "Image {number}: {text}"
    choose_one: str = (
        'Think briefly, then end with one line "Answer: X", where X is the letter of one option.'
    )
    choose_several: str = (
        'Think briefly, then end with one line "Answer: " followed by exactly {number} letters, '
        "separated by commas."
    )
    explain: str = "Answer in one or two sentences."
    judge: str = (
        "{question}\n\nThese explanations are right:\n{references}\n\n"
        "This one is to be judged:\n{candidate}\n\n"
        "Does it give the same reason as one of the right explanations? Other words do not matter; "
        'a missing or another reason does. End with one line: "Verdict: correct" or "Verdict: '
        'incorrect".'
    )

    @property
    def digest(self) -> str:
        """SHA-256 of all templates, as 64 hexadecimal digits."""
        return template_hash({field.name: getattr(self, field.name) for field in fields(self)})
