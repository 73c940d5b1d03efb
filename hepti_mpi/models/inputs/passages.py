"""Built-in texts of many kinds, about a thousand tokens in all, that show what rows of a model that writes texts are like."""

PASSAGES = (
    "A river begins where more water reaches the ground than the ground can hold. In the hills it is narrow and quick, and carries stones; "
    "on the plain it slows down, bends from side to side and lets fall what it has carried. Over thousands of years this builds a delta, "
    "whose soil is among the richest that farmers know. Many of the oldest cities were founded in such places, since boats could reach "
    "them and the fields around them fed more people than worked there. Floods were the price: each generation learned again how high "
    "the water could rise, and built its walls a little higher than the one before.",
    "\"You are late,\" said Anna without looking up from the table. \"The bridge was closed,\" he answered, \"so I walked along the "
    "canal.\" She laughed. \"Nobody walks along the canal in November.\" He put the wet coat over a chair, sat down beside the stove and "
    "told her everything: how the letter had come that morning, what was written in it, and why he had not opened it until noon. When he "
    "had finished she was silent for a long time. Then she asked the only question that mattered to either of them. \"And what will you "
    "do now?\"",
    "To make bread for four people you need 500 grams of flour, 330 millilitres of water, 10 grams of salt and 5 grams of yeast. Mix the "
    "flour with the water and let it rest for 30 minutes. Add salt and yeast, knead for ten minutes, cover the bowl and wait until the "
    "dough is twice as large, which takes about two hours in a warm room. Heat the oven to 240 degrees. Bake for 35 minutes; the loaf is "
    "done when it sounds hollow. 1. Do not open the oven in the first 15 minutes. 2. Let the bread cool before you cut it.",
    "def mean(values):\n    \"\"\"Return the arithmetic mean of a list of numbers.\"\"\"\n    if not values:\n        raise ValueError("
    "\"no values\")\n    total = 0.0\n    for value in values:\n        total += value\n    return total / "
    "len(values)\n\n\nfor name, row in "
    "sorted(table.items()):\n    print(f\"{name:10} {mean(row):8.2f}\")\n",
    "Question: What is the capital of Australia, and why is it not Sydney?\nAnswer: The capital is Canberra. When the colonies joined in "
    "1901, Sydney and Melbourne both wanted to be the capital, so a new city was planned between them. Question: How many legs does a "
    "spider have?\nAnswer: Eight. Insects have six. Question: If a train travels 180 kilometres in 1.5 hours, how fast is it on average?\n"
    "Answer: 180 divided by 1.5 is 120, so its average speed is 120 km/h.",
    "The committee met on 14 March 2019 and approved the budget by eleven votes to three. According to the report, spending on schools "
    "will grow by 4.2 % next year, while the cost of roads falls for the first time since 2008. Critics said that the plan relies on "
    "taxes which have not been agreed upon. \"We cannot promise what we do not have,\" the mayor told journalists after the meeting. The "
    "new library, whose opening has been delayed twice, is expected to cost $23 million.",
    "Let f be a continuous function on the interval [0, 1] with f(0) < 0 and f(1) > 0. Then there is a point c between 0 and 1 with "
    "f(c) = 0. Proof. Let S be the set of all x for which f(x) < 0, and let c be its least upper bound. If f(c) were positive, f would be "
    "positive near c as well, so that a smaller number would bound S; if it were negative, S would have elements above c. Hence f(c) = 0.",
    "| city | people | founded |\n|---|---|---|\n| Lisbon | 545,000 | 1200 BC |\n| Oslo | 709,000 | 1040 |\n| Quito | 1,763,000 | 1534 |\n"
    "\nDear Dr. Meyer,\n\nthank you for your message of last Tuesday. I am sorry that the parcel has not arrived yet; "
    "our records show that "
    "it left the warehouse on Friday. Please let us know whether we should send another one.\n\nKind regards,\nTom Hughes\n",
    "Le chat dort sur la chaise, et la pluie tombe depuis ce matin. Der Zug nach Hamburg hat heute zwanzig Minuten Verspätung. El libro "
    "que buscas está en la mesa de la cocina. Plants take in carbon dioxide through small openings in their leaves; "
    "with the energy of light "
    "they turn it and water into sugar, and give off oxygen. At night the process stops, but the plant goes on breathing.",
)
