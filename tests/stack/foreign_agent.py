"""An agent that is not labvoice's, and behaves as its job's metadata asks for.

The metadata is a JSON object: `nameless` (as agents of livekit-agents before 1.4 join), `identity`
(chosen by the request handler), `greeting` (text), `background` and `music` (volumes of the
background player's office ambience and music on hold), `filler` (said before the answer),
`untold` (any of `events`, `text`, `state`: what the agent does not publish), `report` (a folder, to
which the session's report and its recording are written at the end).
"""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    AudioConfig,
    BackgroundAudioPlayer,
    BuiltinAudioClip,
    JobContext,
    JobRequest,
    cli,
    inference,
)
from livekit.agents.llm import ChatContext, ChatMessage
from livekit.agents.voice.room_io import RoomOptions

server = AgentServer(load_fnc=lambda _: 0.0)  # tests beside it make the host busy
NAME = "foreign-agent"
FILLER_GAP_S = 1.5


async def on_request(request: JobRequest) -> None:
    """Takes every job, under the name and identity that the metadata asks for."""
    asked = json.loads(request.job.metadata or "{}")
    attributes = {"lk.agent.name": ""} if asked.get("nameless") else None
    await request.accept(identity=asked.get("identity", ""), attributes=attributes)


class Clerk(Agent):
    """Answers, after a filler where it is asked to."""

    def __init__(self, filler: str) -> None:
        super().__init__(instructions="You answer the phone of a small shop.")
        self._filler = filler

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        """Says the filler, and is then busy for a moment."""
        if self._filler:
            await self.session.say(self._filler, add_to_chat_ctx=True)
            await asyncio.sleep(FILLER_GAP_S)


async def on_session_end(ctx: JobContext) -> None:
    """Writes the report, the recording first: who waits for the report finds both."""
    folder = json.loads(ctx.job.metadata or "{}").get("report")
    if folder is None:
        return
    report = ctx.make_session_report()
    assert report.audio_recording_path is not None
    shutil.copy(report.audio_recording_path, folder)
    written = Path(folder) / "report.tmp"
    written.write_text(json.dumps(report.to_dict(), default=str))
    written.rename(written.with_suffix(".json"))


@server.rtc_session(agent_name=NAME, on_request=on_request, on_session_end=on_session_end)
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    asked: dict[str, Any] = json.loads(ctx.job.metadata or "{}")
    untold = asked.get("untold", [])
    await ctx.connect()
    if "state" in untold:

        async def nothing(_: dict[str, str]) -> None:
            """Tells nobody."""

        ctx.room.local_participant.set_attributes = nothing  # type: ignore[method-assign, assignment]
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3",
        llm="openai/gpt-4.1-mini",
        tts="cartesia/sonic-3",
        turn_detection=inference.TurnDetector(),
    )
    await session.start(
        agent=Clerk(asked.get("filler", "")),
        room=ctx.room,
        record={"audio": "report" in asked, "traces": False, "logs": False, "transcript": False},
        session_host="events" not in untold,
        room_options=RoomOptions(text_output="text" not in untold),
    )
    sounds = {
        "background": BuiltinAudioClip.OFFICE_AMBIENCE,
        "music": BuiltinAudioClip.HOLD_MUSIC,
    }
    for name, clip in sounds.items():
        if volume := asked.get(name):
            player = BackgroundAudioPlayer(ambient_sound=AudioConfig(clip, volume=volume))
            await player.start(room=ctx.room, agent_session=session)
    if greeting := asked.get("greeting"):
        session.say(greeting)


if __name__ == "__main__":
    cli.run_app(server)
