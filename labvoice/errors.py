"""The exception tree: every error says what was observed and gives a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LabvoiceError(Exception):
    """Base of every error that labvoice raises on purpose.

    Args:
        observed: What was observed, one sentence.
        hint: The next thing to do; commands in back-ticks.

    Attributes:
        exit_code: What the command line exits with: 1 when a check or a service
            failed, 2 when the command was used wrongly.
    """

    exit_code = 1

    def __init__(self, observed: str, hint: str = "") -> None:
        self.observed = observed
        self.hint = hint
        super().__init__(observed if not hint else f"{observed}\n\nhint: {hint}")


class UsageError(LabvoiceError):
    """The arguments cannot work; nothing was started."""

    exit_code = 2


@contextmanager
def writing(path: Path, hint: str, kind: type[UsageError] | None = None) -> Iterator[None]:
    """Makes the folder of a file that the block writes; what the disk refuses is a user's error.

    Raises:
        UsageError: The file cannot be written; of another kind where one is given.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        words = f"{error.filename or path} cannot be written: {error.strerror}"
        raise (kind or UsageError)(words, hint) from None


class SettingsError(UsageError):
    """A setting is missing, malformed, or contradicts another."""


class RoomNameError(UsageError):
    """A room, agent or participant name is not safe in URLs, logs or shells."""


class MetadataError(UsageError):
    """The metadata of a dispatch is invalid."""


class AudioFormatError(UsageError):
    """An audio file is not in a supported format."""


class RunFileError(UsageError):
    """A run file cannot be read, or the runs are too different to compare."""


class WeightsError(LabvoiceError):
    """Model weights could not be obtained, or do not match the pinned checksum."""


class ModelError(LabvoiceError):
    """A model failed to load or to answer."""


class BuildError(LabvoiceError):
    """A part of the stack could not be built."""


class PortInUseError(LabvoiceError):
    """A requested port is in use by another process."""


class ServerUnreachableError(LabvoiceError):
    """No server with the expected protocol answers at an address."""


class ServerAnswerError(LabvoiceError):
    """A server answered with an error."""


class CredentialsError(LabvoiceError):
    """A server refused the key or the secret."""


class ProcessError(LabvoiceError):
    """A process of the stack ended, or did not become ready in time.

    Args:
        log_tail: The last lines of the process's log; shown below the sentence.
    """

    def __init__(self, observed: str, hint: str = "", log_tail: str = "") -> None:
        self.log_tail = log_tail
        if log_tail:
            observed = f"{observed}\n\nlast log lines:\n{log_tail}"
        super().__init__(observed, hint)


class StageTimeoutError(LabvoiceError):
    """A wait timed out.

    Args:
        stage: Name of the step that was awaited.
    """

    def __init__(self, stage: str, timeout_s: float, observed: str, hint: str = "") -> None:
        self.stage = stage
        self.timeout_s = timeout_s
        super().__init__(f"{stage} did not happen within {timeout_s:g} s: {observed}", hint)


class MediaBlockedError(StageTimeoutError):
    """The server's signalling answers, but no media connection to it can be established."""


class MediaPathError(LabvoiceError):
    """Media of a call went round its link, so that no figure of the call is the link's."""


class NoReplyError(StageTimeoutError):
    """The agent did not answer a turn in time."""


class DispatchError(LabvoiceError):
    """A dispatch did not end with exactly one live agent in the room.

    Attributes:
        outcome: One of :data:`labvoice.protocol.vocabulary.OUTCOMES`.
        dispatch_ids: Ids that the server gave, in order of the attempts.
    """

    outcome = "error"
    dispatch_ids: tuple[str, ...] = ()


class NoWorkerError(DispatchError):
    """No worker is registered for the job."""

    outcome = "no_worker"


class WorkerFullError(DispatchError):
    """Every worker of that name is at or above its load threshold."""

    outcome = "worker_full"


class NameMismatchError(DispatchError):
    """Workers are registered, but none under the requested name."""

    outcome = "name_mismatch"


class RejectedError(DispatchError):
    """The worker's request handler refused the job."""

    outcome = "rejected"


class JoinTimeoutError(DispatchError):
    """A worker took the job, but its agent was not in the room in time."""

    outcome = "join_timeout"


class DuplicateAgentError(DispatchError):
    """More than one agent of that name is in the room."""

    outcome = "duplicate_agent"


class AgentLostError(DispatchError):
    """The agent joined and left, or its job ended."""

    outcome = "agent_lost"
