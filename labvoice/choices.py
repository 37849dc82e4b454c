"""Settings that are one of a few words; they load nothing, for `--help` must not wait for more."""

from typing import Literal

Llm = Literal["small", "paced", "script", "openai"]
Mode = Literal["hybrid", "letta", "direct"]
TurnDetector = Literal["v1-mini", "smart-turn", "either", "vad"]
RecordingFormat = Literal["ogg", "wav", "none"]
