"""The steps of an adaptive graph of thoughts, asked of a language model.

Each step is a completion after a few examples of its kind, in the texts of `LMSteps`; the names in
braces are filled in. Tasks are proposed as JSON under a regex or a schema, the check is a `Choice`,
so that the graph has a probability: everything that was chosen is a site of the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmppl.chat import Chat
from lmppl.choice import Choice
from lmppl.graphs.methods.adaptive import Known
from lmppl.graphs.methods.proposals import Task, listed, parse_tasks, task_regex, task_schema
from lmppl.primitives import sample
from lmppl.strings import LM
from lmppl.templates import prompt

INITIAL = """\
Split the question into tasks that can be done on their own.
Question: Who is older, Ann or the sister of Bob?
Tasks: ["How old is Ann?", "How old is the sister of Bob?"]
Question: {task}
Tasks:"""
SIMPLE = """\
Question: What is the capital of France?
Can it be answered in one step? yes
Question: Who is older, Ann or the sister of Bob?
Can it be answered in one step? no
Question: {task}
Can it be answered in one step?"""
EXECUTE = "{context}{known}Question: {task}\nAnswer:"
MORE = """\
{context}{known}Question: {task}
Is another task needed before the answer?"""
FINAL = "{context}{known}Question: {task}\nSo the answer is"


@dataclass(frozen=True)
class LMSteps:
    """The steps of `agot`, by one language model.

    Args:
        context: what stands before every question: facts, examples.
        lm: the model or its name; the run's own when left out.
        initial_prompt, simple_prompt, execute_prompt, more_prompt, final_prompt: the prompts, with
            `{task}`, `{known}`, `{context}`.
        max_tokens: of an answer.
        proposal_tokens: of a proposal, 60 per task when left out: one that is cut has weight zero.
        answer: a regex of answers, if they have one.
        after: whether proposals may say which tasks a task reads; the examples of the prompt
            must then show it.
        chat: ask by messages, `Chat` in place of `LM`.
    """

    context: str = ""
    lm: Any = None
    initial_prompt: str = INITIAL
    simple_prompt: str = SIMPLE
    execute_prompt: str = EXECUTE
    more_prompt: str = MORE
    final_prompt: str = FINAL
    max_tokens: int = 24
    proposal_tokens: int | None = None
    answer: str | None = None
    after: bool = False
    chat: bool = False

    def initial(self, task: Any, most: int) -> tuple[Task, ...]:
        """Ask for a list of tasks."""
        return self._tasks("tasks", self.initial_prompt, task, (), most)

    def simple(self, task: Any, known: Known, depth: int) -> float:
        """Ask whether one step is enough."""
        return float(self._choice("simple", self.simple_prompt, task, known))

    def execute(self, task: Any, known: Known) -> str:
        """Ask for the answer of a task."""
        return self._answer("answer", self.execute_prompt, task, known)

    def more(self, task: Any, known: Known, most: int) -> tuple[Task, ...] | None:
        """Ask whether something is missing, then what."""
        if not self._choice("more", self.more_prompt, task, known):
            return None
        return self._tasks("tasks", self.initial_prompt, task, known, most)

    def final(self, task: Any, known: Known) -> str:
        """Ask for the answer, given the others."""
        return self._answer("final", self.final_prompt, task, known)

    def _tasks(
        self, name: str, template: str, task: Any, known: Known, most: int
    ) -> tuple[Task, ...]:
        asked = self._fill(template, task, known)
        law: LM | Chat
        room = self.proposal_tokens or 60 * most
        if self.after:
            law = self._law(asked, json_schema=task_schema(most), max_tokens=room)
        else:  # no room for blanks between the parts
            space = "" if self.chat else " "
            law = self._law(asked, regex=space + task_regex(most), max_tokens=room)
        return parse_tasks(sample(name, law), most=most, known=len(known))

    def _answer(self, name: str, template: str, task: Any, known: Known) -> str:
        asked = self._fill(template, task, known)
        law = self._law(asked, stop="\n", max_tokens=self.max_tokens, regex=self.answer)
        return str(sample(name, law)).strip()

    def _law(self, asked: str, **options: Any) -> LM | Chat:
        return (Chat if self.chat else LM)(asked, lm=self.lm, **options)

    def _choice(self, name: str, template: str, task: Any, known: Known) -> bool:
        asked = self._fill(template, task, known)
        options = ("yes", "no") if self.chat else (" yes", " no")
        law = Choice([("user", asked)] if self.chat else asked, options, lm=self.lm)
        return bool(sample(name, law) == options[0])

    def _fill(self, template: str, task: Any, known: Known) -> str:
        question = task.text if isinstance(task, Task) else str(task)
        seen = listed((t.text if isinstance(t, Task) else t, a) for t, a in known)
        parts = {"task": question, "known": seen, "context": self.context}
        return prompt(template, **{k: v for k, v in parts.items() if f"{{{k}}}" in template})
