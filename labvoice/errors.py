"""The exception tree: every error says what was observed and gives a hint."""

from __future__ import annotations


class LabvoiceError(Exception):
    """Base of every error that labvoice raises on purpose.

    Args:
        observed: What was observed, one sentence.
        hint: The next thing to do; commands in back-ticks.

    Attributes:
        observed: As given.
        hint: As given.
        exit_code: What the command line exits with: 1 when a check or a service
            failed, 2 when the command was used wrongly.
    """

    exit_code = 1

    def __init__(self, observed: str, hint: str = "") -> None:
        self.observed = observed
        self.hint = hint
        super().__init__(observed if not hint else f"{observed}\n\nhint: {hint}")


class UsageError(LabvoiceError):
    """Something was asked for in a way that cannot work; nothing was started."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is missing, malformed, or contradicts another."""


class RoomNameError(UsageError):
    """A room, agent or participant name holds characters that travel badly."""


class MetadataError(UsageError):
    """The metadata of a dispatch is not what the agent understands."""


class AudioFormatError(UsageError):
    """An audio file is not one that the caller can speak."""


class RunFileError(UsageError):
    """A run file cannot be read, or runs that differ too much were to be compared."""


class WeightsError(LabvoiceError):
    """Model weights could not be obtained, or are not the ones that were pinned."""


class ModelError(LabvoiceError):
    """A model failed to load or to answer."""


class BuildError(LabvoiceError):
    """A part of the stack could not be built."""


class PortInUseError(LabvoiceError):
    """A port that was asked for by number belongs to another process."""


class ServerUnreachableError(LabvoiceError):
    """Nothing that speaks the expected protocol answers at an address."""


class ServerAnswerError(LabvoiceError):
    """A server answered with an error of its own."""


class CredentialsError(LabvoiceError):
    """A server answered and refused the key or the secret."""


class ProcessError(LabvoiceError):
    """A process of the stack ended, or did not become ready in time.

    Args:
        observed: What was observed, one sentence.
        hint: The next thing to do.
        log_tail: The last lines of the process's log; shown below the sentence.

    Attributes:
        log_tail: As given.
    """

    def __init__(self, observed: str, hint: str = "", log_tail: str = "") -> None:
        self.log_tail = log_tail
        if log_tail:
            observed = f"{observed}\n\nlast log lines:\n{log_tail}"
        super().__init__(observed, hint)


class StageTimeoutError(LabvoiceError):
    """A wait came to its end.

    Args:
        stage: The name of what was waited for.
        timeout_s: How long, in seconds.
        observed: What was seen instead.
        hint: The next thing to do.

    Attributes:
        stage: As given.
        timeout_s: As given.
    """

    def __init__(self, stage: str, timeout_s: float, observed: str, hint: str = "") -> None:
        self.stage = stage
        self.timeout_s = timeout_s
        super().__init__(f"{stage} did not happen within {timeout_s:g} s: {observed}", hint)


class MediaBlockedError(StageTimeoutError):
    """The server's signalling answers, and no media connection to it comes about."""


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
    """No worker is registered that could take the job."""

    outcome = "no_worker"


class WorkerFullError(DispatchError):
    """Every worker of that name is at or above its load threshold."""

    outcome = "worker_full"


class NameMismatchError(DispatchError):
    """Workers are registered, but none under the name that was asked for."""

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
