"""`lmppl run --ray ADDRESS`: the questions of a run over many processes and machines, by Ray.

    driver (this process)   holds the run folder, hands out portions of questions, writes results
    actors                  one process each: the program, the engine, and its language model

Questions are sharded, never particles: all requests of a question come from one actor, which always
asks the same server of a tier (`--lm http://a:8000,http://b:8000`), so that a server sees whole
questions and its prefix cache serves them. Every result is written as soon as its question has
ended. An actor that dies costs the questions that it had not finished: they are asked again, and
come out the same, since all randomness is a function of seed and question. One that kills its actor
again and again is a failed question, and the others go on.

Ray comes with the extra `ray`. Part of the command line.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmppl.commands.loading import Loaded, load_models, load_program
from lmppl.data import Question
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference.calls import infer_stream
from lmppl.inference.questions.rundir import RunDirectory
from lmppl.inference.questions.runs import Event, Task, pending, record_of
from lmppl.inference.specs import parse_engine
from lmppl.lm.http.url import is_server
from lmppl.records import ResultRecord

LOCAL = "local"
TRIES = 3
"""Actors that a question may kill."""


class ActorDied(LmpplError):
    """The process that answered a question ended, several times."""


class Portion(NamedTuple):
    """Questions that go to one actor together."""

    positions: tuple[int, ...]
    tries: int = 0


# -- in an actor ----------------------------------------------------------------------------------


class Driver:
    """One process: answers portions of questions, one result after the other.

    Args:
        files: the program's file, first, and those of its folder that it imports, by name.
        name: of the program in its file.
        sources: language models, by the name that the program uses.
    """

    def __init__(self, files: Mapping[str, bytes], name: str, sources: Mapping[str, str]) -> None:
        """Write the files where this process can import them."""
        self._folder = tempfile.TemporaryDirectory(prefix="lmppl-ray-")
        for file, content in files.items():
            (Path(self._folder.name) / file).write_bytes(content)
        path = Path(self._folder.name) / next(iter(files))
        self._loaded = load_program(f"{path}:{name}")
        self._sources = dict(sources)
        self._models: dict[str, Any] | None = None

    def models(self) -> dict[str, Any]:
        """Its language models, loaded once."""
        if self._models is None:
            self._models = load_models(self._sources)
        return self._models

    def fingerprints(self) -> dict[str, str]:
        """What its language models are."""
        return {name: m.fingerprint for name, m in self.models().items()}

    def answer(
        self, engine: str, questions: Sequence[Question], options: Mapping[str, Any]
    ) -> Iterator[tuple[int, str]]:
        """(number of a question, its record as JSON), as they end."""
        spec = parse_engine(engine)
        task = Task(self._loaded.program, self._loaded.name, spec, questions)
        stream = infer_stream(
            task.program,
            [q.fields for q in questions],
            ids=[q.id for q in questions],
            engine=spec.engine,
            lm=self.models() or None,
            on_dead="return",
            **options,
        )
        for at, outcome in stream:
            yield at, record_of(task, questions[at], outcome).model_dump_json()


# -- in the process of the run --------------------------------------------------------------------


class Crew:
    """The actors of a run.

    Args:
        address: of the Ray cluster: "local" starts one here, "auto" finds a running one,
            "HOST:PORT" or "ray://HOST:PORT" names it.
        actors: how many; None takes one for each CPU of the cluster.
        program: as it was loaded here: its files are what the actors load.
        sources: language models by name; several servers separated by commas form a tier.
    """

    def __init__(
        self, address: str, actors: int | None, program: Loaded, sources: Mapping[str, str]
    ) -> None:
        """Connect to the cluster."""
        try:
            import ray
        except ImportError:
            raise BadArgument(
                "--ray needs the Python package ray", fix='run: pip install "lmppl-lang[ray]"'
            ) from None
        self._files = {file.name: file.read_bytes() for file in program.files}
        self._name = program.name
        self._sources = dict(sources)
        self._ray: Any = ray
        self._began = not ray.is_initialized()
        _listening(address)
        if self._began:
            try:
                ray.init(
                    address=None if address == LOCAL else address,
                    num_cpus=actors if address == LOCAL else None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            except ConnectionError as error:
                raise BadArgument(
                    f"no Ray cluster at {address}: {str(error).splitlines()[0]}",
                    fix="start one by: ray start --head; or write --ray local",
                ) from None
        self.size = actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._made = 0
        self._spare: list[Any] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Leave the cluster, if this joined it."""
        if self._began:
            self._ray.shutdown()

    def fingerprints(self) -> dict[str, str]:
        """Of the language models, as the first actor loads them."""
        actor = self._actor()
        try:
            found: dict[str, str] = self._ray.get(actor.fingerprints.remote())
        except self._ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except self._ray.exceptions.RayError as error:
            raise ActorDied(
                "the first process of the run ended before it answered anything",
                value=" ".join(str(error).split())[-600:],
                fix="run it without --ray to see how",
            ) from None
        self._spare.append(actor)
        return found

    def run_tasks(
        self,
        tasks: Iterable[Task],
        folder: RunDirectory,
        *,
        seed: int = 0,
        concurrency: int = 16,
        on_error: str = "raise",
        driver: str | None = None,
        retry_failed: bool = False,
        notify: Callable[[Event], None] = lambda event: None,
        **_: Any,
    ) -> None:
        """As `lmppl.inference.questions.runs.run_tasks`."""
        options = {"seed": seed, "concurrency": concurrency, "on_error": on_error, "driver": driver}
        for task in tasks:
            todo = pending(task, folder, retry_failed)
            self._run(task, folder, todo, options, notify)

    # -- inside ------------------------------------------------------------------------------

    def _run(
        self,
        task: Task,
        folder: RunDirectory,
        todo: Sequence[int],
        options: Mapping[str, Any],
        notify: Callable[[Event], None],
    ) -> None:
        """One task: a thread for each actor; the results are written here, one at a time."""
        size = min(int(options["concurrency"]), max(1, -(-len(todo) // self.size)))
        waiting = deque(Portion(tuple(todo[i : i + size])) for i in range(0, len(todo), size))
        failures: list[BaseException] = []

        def take() -> Portion | None:
            with self._lock:
                return waiting.popleft() if waiting and not failures else None

        def keep(position: int, record: ResultRecord) -> None:
            with self._lock:
                folder.append(record)
                notify(Event(task, 0, record))

        def work() -> None:
            try:
                actor = self._spare.pop() if self._spare else self._actor()
                while (portion := take()) is not None:
                    left = self._answered(actor, task, portion, options, keep)
                    if left:
                        actor = self._actor()
                        waiting.extend(self._again(task, left, portion.tries + 1, keep))
                self._spare.append(actor)
            except BaseException as error:  # told by the thread that waits for this one
                failures.append(error)

        threads = [
            threading.Thread(target=work, name=f"lmppl-ray-{i}", daemon=True)
            for i in range(min(self.size, max(1, len(waiting))))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except BaseException:
            failures.append(KeyboardInterrupt())
            raise
        if failures:
            raise failures[0]

    def _answered(
        self,
        actor: Any,
        task: Task,
        portion: Portion,
        options: Mapping[str, Any],
        keep: Callable[[int, ResultRecord], None],
    ) -> list[int]:
        """Keep the results of a portion; the positions that the actor's death left open."""
        questions = [task.questions[i] for i in portion.positions]
        left = dict(enumerate(portion.positions))
        call = actor.answer.options(num_returns="streaming")
        errors = self._ray.exceptions
        try:
            for reference in call.remote(task.engine.text, questions, dict(options)):
                at, text = self._ray.get(reference)
                keep(left[at], ResultRecord.model_validate(json.loads(text)))
                del left[at]
        except errors.RayTaskError as error:
            raise _cause(error) from None
        except errors.RayError:
            return list(left.values())
        return []

    def _again(
        self,
        task: Task,
        positions: Sequence[int],
        tries: int,
        keep: Callable[[int, ResultRecord], None],
    ) -> list[Portion]:
        """Portions of what a dead actor had not finished: smaller ones, and at last none."""
        if tries < TRIES:
            return [Portion((i,), tries) for i in positions]
        for i in positions:
            error = ActorDied(
                f"the process that answered it ended {tries} times",
                why="the program, a package or the machine ended it: out of memory, or a crash",
                fix="run this question alone without --ray to see how",
            )
            keep(i, record_of(task, task.questions[i], error))
        return []

    def _actor(self) -> Any:
        """A new process; those of a tier of servers take them in turn."""
        with self._lock:
            number, self._made = self._made, self._made + 1
        sources = {name: _of_tier(source, number) for name, source in self._sources.items()}
        remote = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Driver)
        return remote.remote(self._files, self._name, sources)


def _listening(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise BadArgument(
            f"no Ray cluster at {address}: {error.strerror or error}",
            fix="start one by: ray start --head; or write --ray local",
        ) from None


def _cause(error: Any) -> BaseException:
    """What an actor raised, as if it had been raised here."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LmpplError) else error


def _of_tier(source: str, number: int) -> str:
    """The server that an actor asks."""
    tier = source.split(",")
    if len(tier) > 1 and all(map(is_server, tier)):
        return tier[number % len(tier)]
    return source


@contextlib.contextmanager
def crew(
    address: str, actors: int | None, program: Loaded, sources: Mapping[str, str]
) -> Iterator[Crew]:
    """A crew for the length of a block."""
    found = Crew(address, actors, program, sources)
    try:
        yield found
    finally:
        found.close()
