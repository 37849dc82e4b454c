"""A Pipecat bot: Smart Turn ends the caller's turn, models come by OpenAI's HTTP.

It needs an environment of its own: `pip install "pipecat-ai[livekit,openai]==1.14.0"`. Its models
are OpenAI's: it needs `OPENAI_API_KEY`, and takes `OPENAI_BASE_URL`. With labvoice, offline and
with no key: `labvoice try "bot:.venv/bin/python examples/pipecat_bot.py {url} {token} {room}"`.
"""

import asyncio
import sys

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.transports.livekit.transport import LiveKitParams, LiveKitTransport
from pipecat.workers.runner import WorkerRunner

INSTRUCTIONS = "You sell flowers on the telephone. Answer in one sentence."


async def main(url: str, token: str, room: str) -> None:
    """Joins a room, greets its first participant, and answers until it leaves."""
    sound = LiveKitParams(audio_in_enabled=True, audio_out_enabled=True)
    transport = LiveKitTransport(url, token, room, sound)
    # Smart Turn, whose weights are in Pipecat's package, ends a turn where nothing else is asked.
    conversation = LLMContextAggregatorPair(
        LLMContext(),
        user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer()),
    )
    pipeline = Pipeline(
        [
            transport.input(),
            OpenAISTTService(),
            conversation.user(),
            OpenAILLMService(settings=OpenAILLMService.Settings(system_instruction=INSTRUCTIONS)),
            OpenAITTSService(),
            transport.output(),
            conversation.assistant(),
        ]
    )
    worker = PipelineWorker(pipeline)

    @transport.event_handler("on_first_participant_joined")
    async def greet(_: LiveKitTransport, __: str) -> None:
        await asyncio.sleep(1)  # until the caller has subscribed to the bot's track
        await worker.queue_frame(TTSSpeakFrame("Petal and Stem, which flowers would you like?"))

    @transport.event_handler("on_participant_left")
    async def leave(_: LiveKitTransport, __: str, ___: str) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigterm=True)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
