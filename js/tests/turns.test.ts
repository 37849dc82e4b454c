import { expect, test } from "vitest";
import { Turns } from "../src/turns";
import { Transcript } from "../src/transcript";
import { VoiceDetector, type Voice } from "../src/voice";
import type { Item } from "../src/session_events";

const item = (role: Item["role"], text: string, more: Partial<Item> = {}): Item => ({
  id: text,
  role,
  text,
  interrupted: false,
  metrics: {},
  spoken: null,
  ...more,
});
const voice = (start_s: number, end_s: number): Voice => ({ start_s, end_s });

function spoken(turns: Turns, start_s: number, end_s: number): void {
  turns.userStarts(voice(start_s, start_s));
  turns.userEnds(voice(start_s, end_s));
}

test("what is heard before the first turn is the greeting", () => {
  const turns = new Turns();
  turns.agentStarts(voice(1.2, 1.2));
  turns.item(item("assistant", "Hello"));
  expect(turns.greetingHeard_s).toBe(1.2);
  expect(turns.greeting).toBe("Hello");
  expect(turns.counted()).toEqual([]);
});

test("a turn holds its marks, words and figures", () => {
  const turns = new Turns();
  spoken(turns, 10, 12);
  turns.item(item("user", "How are you?", { metrics: { end_of_turn_delay: 0.3 } }));
  turns.agentStarts(voice(12.8, 12.8));
  turns.item(item("assistant", "Well.", { metrics: { e2e_latency: 0.5 } }));
  turns.figures({ "Well.": { playback_latency: 0.02 }, "of another": { playback_latency: 9 } });
  const [turn] = turns.counted();
  expect(turn).toMatchObject({
    marks: { user_speech_start: 10, user_speech_end: 12, reply_heard: 12.8 },
    metrics: { end_of_turn_delay: 0.3, e2e_latency: 0.5, playback_latency: 0.02 },
    transcript: "How are you?",
    reply: "Well.",
    outcome: "ok",
  });
});

test("a pause inside a turn does not split it, and its last word ends it", () => {
  const turns = new Turns();
  spoken(turns, 10, 11);
  spoken(turns, 11.5, 13);
  turns.agentStarts(voice(13.7, 13.7));
  expect(turns.counted()).toHaveLength(1);
  expect(turns.counted()[0]!.marks["user_speech_end"]).toBe(13);
});

test("talking into the reply ends the turn as interrupted and begins the next", () => {
  const turns = new Turns();
  spoken(turns, 10, 11);
  turns.agentStarts(voice(11.6, 11.6));
  turns.userStarts(voice(12, 12));
  turns.item(item("assistant", "Once upon", { interrupted: true }));
  turns.agentEnds();
  turns.userEnds(voice(12, 13));
  turns.item(item("user", "Stop."));
  turns.agentStarts(voice(13.6, 13.6));
  const [first, second] = turns.counted();
  expect(first).toMatchObject({ outcome: "interrupted", reply: "Once upon" });
  expect(second).toMatchObject({ outcome: "ok", transcript: "Stop.", marks: { reply_heard: 13.6 } });
});

test("a cough that nobody took for speech is no turn, a sentence that got no answer is", () => {
  const turns = new Turns();
  spoken(turns, 5, 5.1);
  expect(turns.counted()).toEqual([]);
  turns.userEnds(voice(6, 7));
  expect(turns.counted()[0]!.outcome).toBe("no_reply");
});

test("a typed turn has its text and no voice marks", () => {
  const turns = new Turns();
  turns.typed("Hi", 2.5);
  turns.agentStarts(voice(3, 3));
  expect(turns.counted()[0]).toMatchObject({ typed: true, said: "Hi", transcript: "Hi", outcome: "ok" });
  expect(turns.counted()[0]!.marks["user_speech_end"]).toBeUndefined();
});

test("an agent that is interrupted by the button leaves its turn interrupted", () => {
  const turns = new Turns();
  turns.typed("Tell me a story.", 10);
  turns.agentStarts(voice(10.6, 10.6));
  turns.item(item("user", "Tell me a story."));
  turns.item(item("assistant", "Once upon", { interrupted: true }));
  turns.agentEnds();
  expect(turns.counted()[0]).toMatchObject({ outcome: "interrupted", reply: "Once upon" });
});

test("an agent that is stopped before LiveKit has a message of it leaves its turn interrupted", () => {
  const turns = new Turns();
  turns.typed("Tell me a story.", 10);
  turns.stopped();
  turns.agentStarts(voice(10.6, 10.6)); // on its way already
  expect(turns.counted()[0]).toMatchObject({ outcome: "interrupted", marks: { reply_heard: 10.6 } });
});

test("interim words are replaced, and both sides keep their order", () => {
  const transcript = new Transcript();
  transcript.set("a", "you", "How", false);
  transcript.set("b", "agent", "I am", false);
  transcript.set("a", "you", "How are you?", true);
  transcript.set("a", "you", "", true);
  expect(transcript.lines.map((line) => [line.who, line.text, line.final])).toEqual([
    ["you", "How are you?", true],
    ["agent", "I am", false],
  ]);
});

function heard(levels: number[], learns = false): Voice[] {
  const voices: Voice[] = [];
  const detector = new VoiceDetector({ onStart: () => undefined, onEnd: (one) => voices.push(one) }, learns);
  levels.forEach((level, at) => detector.feed(level, at / 100));
  detector.finish();
  return voices;
}
const frames = (count: number, level: number) => Array<number>(count).fill(level);

test("voice is dated by its first and last voiced frame", () => {
  const [found] = heard([...frames(50, 0), ...frames(100, 0.1), ...frames(60, 0)]);
  expect(found!.start_s).toBeCloseTo(0.5);
  expect(found!.end_s).toBeCloseTo(1.49);
});

test("a click of two frames is no voice", () => {
  expect(heard([...frames(20, 0), 0.5, 0.5, ...frames(60, 0)])).toEqual([]);
});

test("a microphone's steady noise is learnt", () => {
  const noise = [...frames(300, 0.01), ...frames(50, 0.1), ...frames(100, 0.01)];
  const found = heard(noise, true).at(-1)!;
  expect(found.start_s).toBeCloseTo(3.0);
  expect(found.end_s).toBeCloseTo(3.49);
});

test("a muted microphone does not make its noise be forgotten", () => {
  const found = heard(
    [...frames(300, 0.01), ...frames(300, 0), ...frames(300, 0.01), ...frames(50, 0.1), ...frames(100, 0.01)],
    true,
  );
  // The first second's noise was not known yet; what follows the silence is no voice.
  expect(found.filter((voice) => voice.start_s > 3)).toHaveLength(1);
  expect(found.at(-1)!.start_s).toBeCloseTo(9.0);
});
