"""The assistant and its memory: hybrid (the default), letta, or direct.

hybrid: a fast streaming model answers; Letta's blocks are in its prompt, and every finished turn
is written back in the background. letta: Letta itself answers, token by token, and the queue
makes sure afterwards that it has kept the turn. direct: no memory. A call never waits for Letta:
late memory is used when it arrives, and the fast model answers if Letta does not.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Final

from livekit import rtc
from livekit.agents import (
    Agent,
    ConversationItemAddedEvent,
    FlushSentinel,
    ModelSettings,
    llm,
    stt,
)

from labvoice.agent.call_memory import CallMemory
from labvoice.choices import Mode
from labvoice.errors import LabvoiceError
from labvoice.memory.blocks import MemorySnapshot
from labvoice.protocol.metadata import ChatTurn
from labvoice.speech.graded import SpokenDetector

logger = logging.getLogger("labvoice.agent")

INSTRUCTIONS: Final = (
    "You are a helpful voice assistant. Answer in one or two short spoken sentences, "
    "without lists or markup."
)


class LabAgent(Agent):
    """The assistant.

    Args:
        mode: How it answers and remembers.
        history: The conversation of the lost agent that this one replaces.
        turn_detector: Hears what the recogniser does; None where it hears LiveKit's audio.

    Attributes:
        figures: Measured here and not by LiveKit, in seconds: by message id, then stage.
    """

    def __init__(
        self,
        mode: Mode,
        memory: CallMemory,
        history: Sequence[ChatTurn] = (),
        turn_detector: SpokenDetector | None = None,
    ) -> None:
        chat = llm.ChatContext.empty()
        for message in history:
            chat.add_message(role=message.role, content=message.text)
        super().__init__(instructions=INSTRUCTIONS, chat_ctx=chat)
        self.figures: dict[str, dict[str, float]] = {}
        self._mode = mode
        self._memory = memory
        self._turn_detector = turn_detector
        owed = [*itertools.takewhile(lambda said: said.role == "user", reversed(history))]
        self._user_text = " ".join(said.text for said in reversed(owed))
        self._owes_answer = bool(owed)
        self._letta_ttft_s: float | None = None
        self._letta_turn: tuple[str, str] | None = None  # started, and not written back yet
        self._letta_kept = False  # whether Letta has stored that turn
        self._asking: dict[str, str] = {}  # the user's messages in it
        self._letta_has: set[str] = set()  # the user's messages that Letta has stored
        self._turn_ids: dict[str, str] = {}

    async def on_enter(self) -> None:
        """Starts to follow the memory once the session runs."""
        if self._mode == "hybrid":
            self._memory.start(self._take_memory)
        elif self._mode == "letta":
            self._memory.start(lambda _: None)  # its prompt is Letta's own

    def _take_memory(self, snapshot: MemorySnapshot) -> None:
        text = INSTRUCTIONS
        if snapshot.text:
            # At the end, so that the instructions stay in the model's prefix cache.
            text += f"\n\nThis is your memory of yourself and of the user:\n\n{snapshot.text}"
        self._memory.spawn(self.update_instructions(text))

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterable[stt.SpeechEvent | str]:
        """Recognises the caller; the turn detector hears the same audio, and what is recognised."""
        detector = self._turn_detector
        heard = audio if detector is None else _heard(audio, detector)
        async for event in Agent.default.stt_node(self, heard, model_settings):
            if detector is not None and isinstance(event, stt.SpeechEvent):
                detector.push_event(event)
            yield event

    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        """Ends the turn for the turn detector."""
        if self._turn_detector is not None:
            self._turn_detector.flush()

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterable[llm.ChatChunk | str | FlushSentinel]:
        """Streams Letta's answer in letta mode if Letta responds, otherwise the fast model's."""
        self._letta_ttft_s = None
        if self._mode == "letta" and (said := await self._begin_turn(_unanswered(chat_ctx))):
            asked_s = time.monotonic()
            try:
                async for piece in self._memory.stream(*said, self._on_kept):
                    if self._letta_ttft_s is None:
                        self._letta_ttft_s = time.monotonic() - asked_s
                    yield piece
                self._on_kept()
                return
            except LabvoiceError as error:
                if self._letta_ttft_s is not None:
                    logger.warning("Letta broke off: %s", error.observed)
                    return
                logger.warning("the fast model answers instead of Letta: %s", error.observed)
        async for chunk in Agent.default.llm_node(self, chat_ctx, tools, model_settings):
            yield chunk

    async def _begin_turn(self, unanswered: dict[str, str]) -> tuple[str, str] | None:
        """Records a request to Letta: a turn's id and text; None if Letta has it already.

        Letta has it if the replaced agent sent the request before it was lost: Letta finishes such
        a run, the queue verifies it, and the fast model answers the user.
        """
        before, self._letta_turn = self._letta_turn, None
        if before and self._letta_kept:
            self._memory.write_back(*before, "", sent=True)  # stored, but its answer never heard
            before = None
        owes, self._owes_answer = self._owes_answer, False
        if owes and (asked := await self._memory.begun()):
            self._letta_turn = asked
            self._asking = unanswered
            self._on_kept()
            return None
        self._asking = {i: text for i, text in unanswered.items() if i not in self._letta_has}
        if not self._asking:
            return None
        self._letta_turn = turn = (uuid.uuid4().hex, " ".join(self._asking.values()))
        self._letta_kept = False
        await self._memory.begin(*turn, instead_of=before[0] if before else None)
        return turn

    def _on_kept(self) -> None:
        """Marks the messages as stored in Letta: they are not sent again."""
        self._letta_kept = True
        self._letta_has.update(self._asking)

    def on_item(self, event: ConversationItemAddedEvent) -> None:
        """Records a finished message: its figures, and the turn to write back."""
        message = event.item
        if not isinstance(message, llm.ChatMessage):
            return
        text = message.text_content or ""
        if message.role == "user":
            self._user_text = f"{self._user_text} {text}".strip()
        elif message.role == "assistant":
            figures = self.figures.setdefault(message.id, {})
            if "playback_latency" in message.metrics:
                figures["playback_latency"] = message.metrics["playback_latency"]
            if self._letta_ttft_s is not None:
                figures["letta_ttft"] = self._letta_ttft_s
            self._write_back(message.id, text)

    def _write_back(self, message_id: str, text: str) -> None:
        """Queues the user's text since the last answer, with this answer."""
        said, self._user_text = self._user_text, ""
        asked, self._letta_turn = self._letta_turn, None
        if self._mode == "letta" and asked:
            self._turn_ids[asked[0]] = message_id
            self._memory.write_back(asked[0], asked[1], text, sent=True)
        elif said and self._mode != "direct":
            self._memory.write_back(message_id, said, text, sent=False)

    def on_close(self) -> None:
        """Queues the user's last text if the call ended before an answer."""
        self._write_back(uuid.uuid4().hex, "")

    async def synced(self) -> dict[str, float]:
        """Seconds from the end of each turn until it is stored in Letta, by message id."""
        synced = await self._memory.synced()
        return {self._turn_ids.get(turn_id, turn_id): s for turn_id, s in synced.items()}


async def _heard(
    audio: AsyncIterable[rtc.AudioFrame], detector: SpokenDetector
) -> AsyncIterator[rtc.AudioFrame]:
    async for frame in audio:
        detector.push_audio(frame)
        yield frame


def _unanswered(chat_ctx: llm.ChatContext) -> dict[str, str]:
    """Returns the user's messages since the last answer: text by message id."""
    found: dict[str, str] = {}
    for message in chat_ctx.messages():
        if message.role == "assistant":
            found.clear()
        elif message.role == "user":
            found[message.id] = message.text_content or ""
    return found
