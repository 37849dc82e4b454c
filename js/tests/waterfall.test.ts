import { expect, test } from "vitest";
import { readSessionMessage } from "../src/session_events";
import type { Mark, Turn } from "../src/types";
import { axisEnd, connectionRows, turnRows } from "../src/waterfall";

const marked = (at: Record<string, number>): Record<string, Mark> =>
  Object.fromEntries(
    Object.entries(at).map(([name, at_s]) => [name, { name, at_s, clock: "caller", uncertainty_s: 0 }]),
  );

test("a row is open until its second mark comes", () => {
  const marks = marked({ click: 10, token_issued: 10.1 });
  const rows = connectionRows(marks);
  expect(rows.find((row) => row.name === "token")).toMatchObject({ start_ms: 0 });
  expect(rows.find((row) => row.name === "token")!.end_ms).toBeCloseTo(100);
  expect(rows.find((row) => row.name === "room")!.end_ms).toBeNull();
  expect(rows.some((row) => row.kind === "worker")).toBe(false);
  expect(connectionRows({})).toEqual([]);
});

const turn = (marks: Turn["marks"], metrics: Turn["metrics"]): Turn => ({
  number: 0,
  typed: false,
  said: "",
  marks,
  metrics,
  transcript: "",
  reply: "",
  user_messages: 1,
  outcome: "ok",
});

test("a turn grows from the end of speech; what the figures leave unexplained is the rest", () => {
  expect(turnRows(turn({ user_speech_end: 5 }, {}))).toMatchObject([{ name: "voice_to_voice", end_ms: null }]);
  const rows = turnRows(
    turn({ user_speech_end: 5, reply_heard: 6 }, { e2e_latency: 0.8, tts_node_ttfb: 0.1, llm_node_ttfs: 0.3 }),
  );
  const at = Object.fromEntries(rows.map((row) => [row.name, row]));
  expect(at["transport"]!.start_ms).toBeCloseTo(800);
  expect(at["transport"]!.end_ms).toBeCloseTo(1000);
  expect(at["tts_node_ttfb"]!.end_ms).toBeCloseTo(800);
  expect(at["llm_node_ttfs"]!.end_ms).toBeCloseTo(700);
});

test("a typed turn grows from the moment it was sent, through LiveKit's figures", () => {
  const figures = { llm_node_ttft: 0.2, llm_node_ttfs: 0.3, tts_node_ttfb: 0.1 };
  const rows = turnRows({ ...turn({ typed: 5, reply_heard: 5.6 }, figures), typed: true });
  const at = Object.fromEntries(rows.map((row) => [row.name, row]));
  expect(at["typed to voice"]!.end_ms).toBeCloseTo(600);
  expect(at["llm_node_ttfs"]!.start_ms).toBeCloseTo(0);
  expect(at["tts_node_ttfb"]!.end_ms).toBeCloseTo(400);
  expect(at["transport"]!.start_ms).toBeCloseTo(400);
  expect(turnRows({ ...turn({ typed: 5 }, {}), typed: true })).toHaveLength(1);
});

test("what cannot be has no row", () => {
  const marks = { user_speech_start: 3, user_speech_end: 5, reply_heard: 6 };
  const rows = turnRows(turn(marks, { e2e_latency: 203, tts_node_ttfb: -1, end_of_turn_delay: 0.4 }));
  expect(rows.map((row) => row.name)).toEqual(["voice_to_voice", "end_of_turn_delay"]);
  const before = connectionRows(marked({ click: 10, dispatch_requested: 10, job_received: 9 }));
  expect(before.some((row) => row.name === "job_request")).toBe(false);
});

test("a turn without an end of speech has no rows", () => {
  expect(turnRows(turn({}, { e2e_latency: 1 }))).toEqual([]);
});

test("the axis ends at a round number at or behind the last bar", () => {
  const rows = connectionRows(marked({ click: 0, agent_listening: 0.844 }));
  expect(axisEnd(rows, 0)).toBe(850);
  expect(axisEnd([], 1234)).toBe(100);
});

// AgentSessionMessage{event{conversation_item_added{item{message{id: "m", role: ASSISTANT,
// content{text: "Hi"}, interrupted: true, metrics{started_speaking_at: 511.5,
// stopped_speaking_at: 513, e2e_latency: 0.5}}}}}} as Python's protobuf of livekit-protocol 1.1.29
// writes it.
const MESSAGE =
  "1a2e622c0a2a0a280a016d10031a040a02486920013a190a0908ff031080cab5ee01120308810441000000000000e03f";
const STATE = "1a06520408021004";
const bytes = (hex: string) => Uint8Array.from(hex.match(/../g)!, (two) => parseInt(two, 16));

test("an item of the conversation is read as Python wrote it", () => {
  const item = { id: "m", role: "assistant", text: "Hi", interrupted: true };
  expect(readSessionMessage(bytes(MESSAGE))).toEqual({
    item: { ...item, metrics: { e2e_latency: 0.5 }, spoken: [511.5, 513] },
  });
});

test("a change of state is read, and anything else is let pass", () => {
  expect(readSessionMessage(bytes(STATE))).toEqual({ agentState: "speaking" });
  expect(readSessionMessage(new Uint8Array())).toBeNull();
});
