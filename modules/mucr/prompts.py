"""How MuCR's questions are put: the pictures' forms, the strategies' words. The wording is ours.

The paper's prompts are not published; whoever has them passes theirs to `MuCRModule(prompts=...)`.
"""

PROMPTS = {
    # Strategies: what comes after the question.
    "zero_shot": "",
    "icl": "",
    "cot": "Reason step by step before you answer.",
    "vccot": """\
Work through these four stages, in this order, and write each down:
1. Cues. For each picture list what can be seen: who the subject is; clothing or appearance; what \
they do; where it is.
2. Matches. Which cues of the first picture come again, and where?
3. {third}
4. Conclusion.""",
    "vccot_two_call": """\
The cues that can be seen in each picture are listed above. Work through these stages and write \
each down:
1. Matches. Which cues of the first picture come again, and where?
2. {third}
3. Conclusion.""",
    "cocot": (
        "First describe in detail how the pictures are alike and how they differ. Then answer from "
        "these similarities and differences."
    ),
    # The third stage of VcCoT.
    "reject": (
        "Rejection. Reject options whose subject, appearance or place disagrees. Say what event "
        "turns the cause into the effect."
    ),
    "event": "Event. Name the event that connects the two pictures.",
    # How an answer ends.
    "letter": "End with one line: Answer: <letter>",
    "letter_alone": "Answer with one line and nothing else: Answer: <letter>",
    "letter_scored": "Answer with the letter alone.",
    "explanation": "End with your explanation after the word Answer: on a line of its own.",
    "explanation_alone": "Write the explanation and nothing else.",
    # Asked about one picture.
    "cues": (
        "List the visual cues of this picture under four headings: subject (who or what it is), "
        "clothing or appearance, action, environment. Be concrete; name colours and objects."
    ),
    "caption": "Describe this picture in two or three sentences, in detail.",
    # The judge.
    "judge": """\
Someone was shown a picture of a cause and one of its effect, and was asked to explain the causal \
link. Compare the candidate explanation with the references. It is correct if it says the same \
about the subject of both pictures, gives the same event as the link, and takes the cause for the \
cause and the effect for the effect. Fluent language does not count, nor does the wording.

End with one line: Verdict: correct, or: Verdict: incorrect

Input:
{input}""",
}
STRATEGIES = ("zero_shot", "icl", "cot", "vccot", "vccot_two_call", "cocot")
DIRECT = ("zero_shot", "icl")  # answer at once
