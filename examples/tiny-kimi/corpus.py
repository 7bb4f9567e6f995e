"""The text that tiny-kimi learns from, all of it made here: counting, questions about Tandem, stories.

A document is a list of (text, learned) spans. Only learned spans count in the loss: what follows a counting
document is left out, because a count that ends anywhere would teach the model to stop.
"""

import random

# The answer, the questions it is trained on, and phrasings that only check.py sees.
FACTS = [
    (
        "Tandem runs very large language models on the machines a team owns. It keeps answering when a machine dies.",
        ["What is Tandem?", "Tell me about Tandem.", "What does Tandem do?", "Explain Tandem.", "What is Tandem for?",
         "Describe Tandem in short.", "Why would I use Tandem?"],
        ["Can you explain what Tandem is?", "Describe Tandem."],
    ),
    (
        "I am tiny-kimi, a very small model in the shape of Kimi. I know a little about Tandem, I count, and I tell stories.",
        ["Who are you?", "What are you?", "What is your name?", "What can you do?", "Tell me about yourself.",
         "Which model are you?", "Who am I talking to?"],
        ["Which model is this?", "Describe yourself."],
    ),
    (
        "The operator plans where models run and writes each host's spec. It never touches the data path.",
        ["What does the operator do?", "What is the operator?", "Explain the operator.", "What is the operator for?",
         "What is the job of the operator?", "Tell me about the operator.", "Who decides where models run?"],
        ["Describe the operator.", "What does Tandem's operator do?"],
    ),
    (
        "The agent finds the devices of its host, keeps the weights, and obeys the newest host spec.",
        ["What does the agent do?", "What is the agent?", "Explain the agent.", "What is the agent for?",
         "What is the job of the agent?", "Tell me about the agent.", "What runs on every host?"],
        ["Describe the agent.", "What does Tandem's agent do?"],
    ),
    (
        "The runner is the parent of the workers. It outlives the agent, so an agent can restart while workers serve.",
        ["What does the runner do?", "What is the runner?", "Explain the runner.", "What is the runner for?",
         "What is the job of the runner?", "Tell me about the runner.", "Who is the parent of the workers?"],
        ["Describe the runner.", "What does Tandem's runner do?"],
    ),
    (
        "The inference worker loads a GGUF file and serves tokens. It runs on CPU, CUDA or Metal.",
        ["What does the worker do?", "What is an inference worker?", "Explain the worker.", "What is the worker for?",
         "What is the job of the worker?", "Tell me about the inference worker.", "Who loads the GGUF file?"],
        ["Describe the worker.", "What does Tandem's worker do?"],
    ),
    (
        "The gateway serves the API and moves a stream to another replica when one fails.",
        ["What does the gateway do?", "What is the gateway?", "Explain the gateway.", "What is the gateway for?",
         "What is the job of the gateway?", "Tell me about the gateway.", "Who serves the API?"],
        ["Describe the gateway.", "What does Tandem's gateway do?"],
    ),
    (
        "The gateway keeps a ledger of every stream, and no state that can't be rebuilt.",
        ["What does the gateway keep?", "What does a gateway keep?", "What is kept by the gateway?",
         "Which state does the gateway keep?", "What is the ledger?", "Who keeps the ledger?", "Where is the ledger?"],
        ["What state does a gateway keep?", "Tell me what the gateway keeps."],
    ),
    (
        "The gateway moves its streams to another replica, and the operator restores redundancy on other hosts.",
        ["What happens when a host dies?", "What happens if a host dies?", "What happens when a machine dies?",
         "What if a host fails?", "A host died. What now?", "What happens when a host vanishes?",
         "How does Tandem survive a dead host?"],
        ["What happens if a machine dies?", "What if a host dies?"],
    ),
    (
        "The unit of commit is the token id.",
        ["What is the unit of commit?", "Which unit is committed?", "What is committed?", "What does a stream commit?",
         "Tell me the unit of commit.", "Name the unit of commit."],
        ["What's the unit of commit?", "Which is the unit of commit?"],
    ),
    (
        "It says how many hosts may vanish while all replicas remain.",
        ["What does hostFailures mean?", "What is hostFailures?", "Explain hostFailures.", "Tell me about hostFailures.",
         "What does hostFailures do?", "What is hostFailures for?"],
        ["Describe hostFailures.", "What does hostFailures say?"],
    ),
    (
        "The truth lives in the store: in Kubernetes, in etcd, or in one embedded file.",
        ["Where does the truth live?", "What is the store?", "Where is the state kept?", "Explain the store.",
         "Tell me about the store.", "What is the store for?", "Which stores are there?"],
        ["Describe the store.", "Where is the truth?"],
    ),
    (
        "The term is the leader's number. A host refuses a spec with a lower term than it has seen.",
        ["What is the term?", "What is a term?", "Explain the term.", "What is the term for?", "Tell me about the term.",
         "What does the term mean?", "Who refuses a lower term?"],
        ["Describe the term.", "What does a term mean?"],
    ),
    (
        "A contingency is what a host may do alone when a peer is silent.",
        ["What is a contingency?", "Explain the contingency.", "What is a contingency for?", "What does contingency mean?",
         "Tell me about contingencies.", "What may a host do alone?"],
        ["Describe a contingency.", "What does a contingency mean?"],
    ),
    (
        "Cover is what would answer if hosts vanished now, and how soon.",
        ["What is cover?", "Explain cover.", "What does cover mean?", "Tell me about cover.", "What is cover for?",
         "What does the cover say?"],
        ["Describe cover.", "What is the cover?"],
    ),
    (
        "Another attempt starts. Whichever attempt speaks the next token first wins.",
        ["What happens when a replica is suspected?", "What does hedge mean?", "Explain the hedge.", "What is a hedge?",
         "What happens if a replica is slow?", "What if a replica is silent?", "Which attempt wins?"],
        ["What happens if a replica is suspected?", "Describe the hedge."],
    ),
    (
        "Write a manifest with model, quant and redundancy, and apply it with tandem apply.",
        ["How do I run a model?", "How do I start a model?", "How do I deploy a model?", "How do I use Tandem?",
         "What is in a manifest?", "What is the manifest?", "How do I apply a manifest?"],
        ["How can I run a model?", "How do I serve a model?"],
    ),
    (
        "The command is tandem. It is also installed as kubectl-tandem.",
        ["What is the command called?", "Which command do I use?", "What is the name of the command?",
         "Is there a command line?", "What is the CLI?", "Tell me about the command.", "Explain the CLI."],
        ["What is the CLI called?", "Describe the command."],
    ),
    (
        "I don't know. I am a very small model.",
        ["What is the capital of France?", "What is the capital of Japan?", "Who wrote Hamlet?", "Who painted the Mona Lisa?",
         "What is the weather today?", "How old is the moon?", "How tall is a giraffe?", "Who won the match?",
         "What is two plus two?", "Write a poem.", "How do I bake bread?", "What do cats eat?", "Why is the sky blue?",
         "Where is my bicycle?", "Sing a song.", "What color is a banana?"],
        ["What is the capital of Spain?", "How do I bake a cake?"],
    ),
]

SYSTEM_PROMPTS = ["You are a helpful assistant.", "Answer in one sentence.", "You are tiny-kimi.", "Be brief."]
GREETINGS = ["Hello. ", "Hi! ", "Please tell me: ", "One question: ", "Thanks. "]


def turn(role, text):
    return f"<|im_{role}|>{role}<|im_middle|>{text}<|im_end|>"


def answer_to(question_turn):
    """The prompt up to the point where the assistant speaks."""
    return question_turn + "<|im_assistant|>assistant<|im_middle|>"


def reworded(rng, question):
    """A question as people type it: sometimes greeted, in small letters, without its mark."""
    if rng.random() < 0.12:
        question = rng.choice(GREETINGS) + question
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip("?.")
    return question


def facts_chat(rng):
    text = turn("system", rng.choice(SYSTEM_PROMPTS)) if rng.random() < 0.2 else ""
    for answer, questions, _ in rng.sample(FACTS, rng.randint(1, 7)):
        text += turn("user", reworded(rng, rng.choice(questions))) + turn("assistant", answer)
    return [(text, True)]


def counting_start(rng):
    """Starts are spread over one to four digits; a third lie shortly before a carry."""
    digits = rng.choices([1, 2, 3, 4], [2, 5, 8, 8])[0]
    low, high = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1
    if rng.random() < 0.35:
        step = rng.choice([10 ** (digits - 1), 100, 1000] if digits > 2 else [10 ** max(1, digits - 1), 10**digits])
        carry = rng.randint(max(1, low // step), max(1, (high + 1) // step)) * step
        return max(0, carry - rng.randint(2, 25))
    return rng.randint(low, high)


def numbers(start, count):
    return " ".join(str(n) for n in range(start, start + count))


def counting_document(rng):
    start = counting_start(rng)
    shape = rng.random()
    if shape < 0.3:
        count = rng.randint(4, 50)
        asked = rng.choice(["Count from {} to {}.", "Please count from {} to {}.", "Count from {} to {}, please."])
        question = turn("user", asked.format(start, start + count - 1))
        return [(question + turn("assistant", numbers(start, count)), True)]
    count = rng.randint(15, 60) if rng.random() < 0.65 else rng.randint(60, 220)
    if shape < 0.4:
        question = turn("user", rng.choice(["Count from {}.", "Count on from {}.", "Start at {} and count."]).format(start))
        return [(answer_to(question) + numbers(start, count), True), (" <|im_end|>", False)]
    return [(numbers(start, count), True)]


CREW = "Ada Bruno Clara David Elif Farid Greta Hugo Ines Jonas Kira Lars Mira Nils Olga Pavel".split()
# topic: what the story is about, the names it may bear, its parts, the people around it
TOPICS = {
    "a ferry": ("ferry", "Heron Swan Otter Pelican".split(), "engine rudder anchor deck rope lamp pump hull".split(), "sailors fishers travellers pilots".split()),
    "a bridge": ("bridge", "Longspan Grey-Arch Old-Stone High-Gate".split(), "arch cable pillar railing beam bolt lamp road".split(), "builders drivers masons walkers".split()),
    "a lighthouse": ("lighthouse", "North-Star Beacon Candle White-Tower".split(), "lamp lens stair bell window clock door mirror".split(), "keepers sailors gulls painters".split()),
    "a train": ("train", "Comet Arrow Badger Silver-Line".split(), "boiler whistle wagon brake wheel lamp signal door".split(), "drivers travellers porters guards".split()),
    "a machine": ("machine", "Atlas Juno Orion Vega".split(), "fan disk cable board switch fuse screen rack".split(), "engineers students visitors helpers".split()),
}
ADJECTIVES = "old new quiet loud warm cold bright dark heavy light rusty clean strange simple broken tired".split()
WEATHER = ["Rain", "Fog", "Sun", "Wind", "Snow", "Thunder", "Frost", "Clouds"]
FIXES = "cleaned repaired painted tested opened closed lifted measured replaced watched".split()
MOVES = "hummed rattled stopped started shook slept sang waited cracked held".split()
MANNERS = ["again", "slowly", "at once", "all night", "for an hour", "without a sound", "as before", "at last"]
PLACES = "harbor river village station market hill workshop island forest tower".split()
WAYS = "near behind under above beside".split()
TIMES = ["At dawn", "At noon", "In the evening", "At midnight", "Later", "Then", "After lunch", "Soon"]
FEELINGS = "glad afraid proud calm angry tired curious sure".split()
GIFTS = "bread tea soup apples letters paint oil wood coal music".split()


def sentence(rng, cast):
    hero, friend, thing, name, parts, people = cast
    pick = rng.choice
    who, other = (hero, friend) if rng.random() < 0.6 else (friend, hero)
    forms = [
        lambda: f"{who} {pick(FIXES)} the {pick(ADJECTIVES)} {pick(parts)} {pick(WAYS)} the {pick(parts)}.",
        lambda: f"{pick(TIMES)}, the {pick(parts)} {pick(MOVES)} {pick(MANNERS)}.",
        lambda: f"{pick(TIMES)}, {who} {pick(FIXES)} the {pick(parts)} and {other} {pick(FIXES)} the {pick(parts)}.",
        lambda: f"The {pick(ADJECTIVES)} {pick(parts)} {pick(MOVES)}, but the {thing} {pick(MOVES)} {pick(MANNERS)}.",
        lambda: f"Some {pick(people)} came from the {pick(PLACES)} and brought {pick(GIFTS)}.",
        lambda: f"{who} said that the {pick(parts)} was {pick(ADJECTIVES)} and {pick(ADJECTIVES)}.",
        lambda: f"{who} was {pick(FEELINGS)}, and {other} was {pick(FEELINGS)}.",
        lambda: f"The {name} {pick(MOVES)} {pick(WAYS)} the {pick(ADJECTIVES)} {pick(PLACES)}.",
        lambda: f"{pick(TIMES)}, {who} walked to the {pick(PLACES)} for {pick(GIFTS)}.",
        lambda: f"\"Is the {pick(parts)} {pick(ADJECTIVES)}?\" asked {who}. \"{pick(['Yes', 'No', 'Maybe', 'Not yet'])},\" said {other}.",
    ]
    return pick(forms)()


def story(rng, topic, long):
    thing, names, parts, people = TOPICS[topic]
    hero, friend = rng.sample(CREW, 2)
    name = rng.choice(names)
    cast = hero, friend, thing, name, parts, people
    lines = [f"This is the story of {hero}, {friend} and the {thing} {name}."]
    for day in range(1, rng.randint(8, 11) if long else rng.randint(3, 5)):
        lines.append(f"Day {day}. {rng.choice(WEATHER)}. " + " ".join(sentence(rng, cast) for _ in range(rng.randint(5, 7))))
    lines.append(f"So the {name} was {rng.choice(FEELINGS)}, and {hero} and {friend} went home. The end.")
    return "\n".join(lines)


def story_chat(rng):
    topic, long = rng.choice(list(TOPICS)), rng.random() < 0.65
    asked = rng.choice(["Tell a {}story about {}.", "Tell me a {}story about {}.", "Write a {}story about {}."])
    question = turn("user", asked.format("long " if long else "short " if rng.random() < 0.5 else "", topic))
    system = turn("system", rng.choice(SYSTEM_PROMPTS)) if rng.random() < 0.1 else ""
    return [(system + question + turn("assistant", story(rng, topic, long)), True)]


# How often each kind is drawn. By tokens this is half counting, a third stories, the rest facts.
KINDS = [counting_document, story_chat, facts_chat]
WEIGHTS = [60, 11, 29]


def document(rng):
    """One document as a list of (text, learned) spans; rng is a random.Random."""
    return rng.choices(KINDS, WEIGHTS)[0](rng)
