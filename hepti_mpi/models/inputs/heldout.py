"""Built-in inputs that no weight is rounded by, so that what a format costs can be measured on others: texts of many kinds and lengths,
and pictures whose numbers vary as those of photos do. Knows no model.
"""

from collections.abc import Iterator

import numpy as np

TEXTS = (
    "thanks",
    "Which platform does the night bus leave from?",
    "Two of the three engines failed within a minute of each other, and the crew had to land on a road.",
    "red wine",
    "The patient was given 40 mg twice a day; after a week the fever was gone.",
    "Return the number of items in the list, or zero if it is empty.",
    "I have never been so bored in a cinema. The story makes no sense, the actors seem asleep, and it lasts three hours.",
    "Photosynthesis",
    "A woman in a yellow raincoat is walking her dog along the beach.",
    "Shares of the company fell by 7.3 % on Monday after it said that profits would be lower than expected.",
    "ok, see you at 5",
    "The Treaty of Westphalia, signed in 1648, ended the Thirty Years' War.",
    "Click the button in the upper right corner, choose Settings, and enter the new password twice.",
    "Error 404: page not found",
    "My grandmother used to say that a garden is never finished; you only stop working in it.",
    "Quantum computers use qubits, which can be in a superposition of two states until they are measured.",
    "Can you recommend a quiet hotel near the station that takes cats?",
    "SELECT name, price FROM products WHERE price < 20 ORDER BY name;",
    "He scored in the last minute, and the whole stadium was on its feet.",
    "Wo kann ich hier Briefmarken kaufen?",
    "The moon is about 384,400 kilometres away from the earth.",
    "best laptop for students 2024",
    "Under section 12 of this agreement either party may terminate it with thirty days' written notice, provided that all invoices which "
    "are due at that time have been paid in full and all materials have been returned to their owner.",
    "Whales are mammals.",
    "It was raining. Nobody had thought of bringing a tent, so they slept in the car, and in the morning the field had become a lake.",
    "How do I remove a stain of coffee from a white shirt?",
    "New study links sleep to memory in older adults",
    "J'ai perdu mes clés dans le train ce matin.",
    "The violin concerto in D major was first performed in Leipzig, with the composer himself conducting.",
    "import numpy as np",
    "Absolutely wonderful service, the food was warm, and the waiter even remembered my name from last year!",
    "Iron melts at 1,538 degrees Celsius, lead at 327.",
    "not bad",
    "Voters in the northern districts have to renew their registration before the end of March, the ministry announced on Thursday.",
    "A recursive function must have a case in which it does not call itself.",
    "What is the difference between weather and climate?",
    "Preheat the pan, add a spoonful of oil and fry the onions until they are golden.",
    "Dos niños juegan al fútbol en la calle.",
    "The old lighthouse keeper climbed the 212 steps every evening, lit the lamp, and wrote the direction of the wind into a book that "
    "nobody but him had ever opened.",
    "Delivery took two weeks and the box was empty. I want my money back.",
)
PICTURES = 8
SIZE = (48, 64)  # of a picture, in pixels


def masked(text: str, mask: str) -> str:
    """Return a text with `mask` in place of the word in its middle."""
    words = text.split(" ")
    words[len(words) // 2] = mask
    return " ".join(words)


def pictures() -> Iterator[np.ndarray]:
    """Yield pictures, uint8 [height, width, 3]: noise whose waves are the larger the longer they are, with a disc in another colour."""
    random = np.random.default_rng(20)
    lengths = np.sqrt(sum(np.square(one) for one in np.meshgrid(*map(np.fft.fftfreq, SIZE), indexing="ij")))
    heights, (y, x) = 1 / np.maximum(lengths, 1 / max(SIZE)), np.mgrid[: SIZE[0], : SIZE[1]]
    for _ in range(PICTURES):
        waves = np.fft.ifft2(heights * np.fft.fft2(random.standard_normal((3, *SIZE)))).real
        waves = np.tensordot(random.uniform(0, 1, (3, 3)) + np.eye(3), waves, 1)  # colours are alike
        waves = (waves / np.abs(waves).max() * 110 + random.uniform(90, 160, (3, 1, 1))).clip(0, 255)
        middle, radius = random.uniform(10, 40, 2), random.uniform(4, 14)
        inside = np.hypot(y - middle[0], x - middle[1]) < radius
        yield np.where(inside, random.uniform(0, 255, (3, 1, 1)), waves).astype(np.uint8).transpose(1, 2, 0)
