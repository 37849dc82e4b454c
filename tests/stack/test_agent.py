"""The agent's choices: which models serve it."""

from __future__ import annotations

from pydantic import SecretStr

from labvoice.lab import Lab
from labvoice.stack.models.paced_model import REPLY
from tests.stack.fake_deepgram import HEARD, KEY, FakeDeepgram
from tests.stack.talking import PATIENCE_S


async def test_deepgram_recognises_and_speaks_where_its_key_is_set(lab: Lab) -> None:
    """With DEEPGRAM_API_KEY a call is heard and answered by Deepgram, and nothing is embedded."""
    async with FakeDeepgram(await lab.utterance(REPLY)).serving() as fake:
        name = "deepgram-agent"
        await lab.add_workers(
            agent_name=name, deepgram_api_key=SecretStr(KEY), deepgram_base_url=fake.base_url
        )
        async with lab.call(agent_name=name) as call:
            await call.hear_greeting(PATIENCE_S)
            await call.say(await lab.utterance("Why is the sky blue during the day?"))
            turn = await call.hear(PATIENCE_S)
    assert turn.transcript == HEARD
    assert turn.reply == REPLY
    assert fake.said == [lab.settings.greeting, REPLY]
    assert fake.refused == 0
    assert turn.metrics["tts_node_ttfb"] > 0
