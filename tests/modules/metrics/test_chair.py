"""CHAIR on ten classes, against counts made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenfold.modules.metrics.chair import ChairMetric, ObjectVocabulary

SYNONYMS = """\
person, man, woman, child, baby, passenger, policeman, adult
dog, puppy
elephant
hot dog
dining table, table, desk
chair, seat
toilet
knife
bus, coach
wine glass, glass
tie
train
bench
"""


@pytest.fixture
def synonyms(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS)
    return str(path)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("A man and two dogs.", ["person", "dog"]),
        ("Women, children and policemen", ["person"] * 3),
        ("People eat hot dogs at the dining table", ["person", "hot dog", "dining table"]),
        ("A dog under tables and desks", ["dog", "dining table", "dining table"]),
        ("a baby elephant, a baby and an elephant", ["elephant", "person", "elephant"]),
        ("the seat of the toilet", ["toilet"]),
        ("a toilet seat and a seat", ["toilet"]),
        ("a seat", ["chair"]),
        ("buses, benches and knives", ["bus", "bench", "knife"]),
        ("wine glasses and a glass", ["wine glass"] * 2),
        ("He wears a bow tie", ["tie"]),
        ("a passenger train on a train track", ["train"]),
        ("the man's dog, a well-known puppy", ["person", "dog", "dog"]),
        ("a hot day for a dog", ["dog"]),
        ("a hot, dog", ["dog"]),
        ("", []),
        ("Dogged tabled as trainers", []),
    ],
)
def test_a_caption_names_what_its_words_say(synonyms, text, mentions):
    assert ObjectVocabulary(synonyms).mentions(text) == mentions


SINGLE = [word.strip() for line in SYNONYMS.splitlines() for word in line.split(",")]


@given(st.lists(st.sampled_from([*SINGLE, "a", "big", "with"]), max_size=8))
def test_mentions_are_classes_and_case_does_not_count(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "synonyms.txt"
    path.write_text(SYNONYMS)
    vocabulary = ObjectVocabulary(path)
    found = vocabulary.mentions(" ".join(words))
    assert set(found) <= set(vocabulary.classes.values())
    assert len(found) <= len(words)
    assert vocabulary.mentions(" ".join(words).upper() + ".") == found


def test_numbers_are_those_counted_by_hand(synonyms):
    metric = ChairMetric(synonyms)
    # There: person, dog, table. Named: dog, dog, elephant, table: one of four wrong, 2 of 3 found.
    metric.update(
        [1],
        ["A dog chases a dog. An elephant is on the table."],
        [["person", "dog"]],
        [["A child at a desk", "Two dogs"]],
    )
    # There: bus. Named: bus. Nothing wrong, all found.
    metric.update([2], ["Buses"], [["bus"]], [["Some vehicle"]])
    # There: tie, train. Named: nothing.
    metric.update([3], ["Nothing to be seen"], [["tie", "train"]], [[]])
    metric.update([2], ["A knife"], [["bus"]], [[]])  # asked twice: does not count
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == {
        "chair_s": pytest.approx(1 / 3),
        "chair_i": pytest.approx(1 / 5),
        "recall": pytest.approx(3 / 6),
    }
    nothing = ChairMetric(synonyms)
    nothing.update([1], ["Nothing"], [[]], [[]])
    assert {float(value) for value in nothing.compute().values()} == {0}


def test_synonyms_that_are_none_are_named(tmp_path, synonyms):
    with pytest.raises(ValueError, match=r"synonyms .*none\.txt cannot be read"):
        ObjectVocabulary(tmp_path / "none.txt")
    path = tmp_path / "two.txt"
    path.write_text("dog, animal\ncat, animal\n")
    with pytest.raises(ValueError, match=r"two\.txt:2: 'animal' is a word of 'dog' and of 'cat'"):
        ObjectVocabulary(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no synonyms"):
        ObjectVocabulary(path)
    with pytest.raises(ValueError, match=r"objects: 'zebra' is not in .*synonyms\.txt"):
        ChairMetric(synonyms).update([1], [""], [["zebra"]], [[]])
