import { expect, test } from "vitest";
import { initial, next, type Event, type State } from "../src/state";
import { agentLeftTrouble, autoplayTrouble, microphoneTrouble } from "../src/troubles";

const page = { protocol: "http:", hostname: "localhost", secure: true };
const run = (...events: Event[]): State => events.reduce(next, initial);
const GOOD: Event[] = [
  { type: "click" },
  { type: "room_connected" },
  { type: "mic_published" },
  { type: "dispatch_requested" },
  { type: "agent_visible" },
  { type: "agent_audio_subscribed" },
  { type: "agent_state", state: "listening" },
  { type: "dispatch_confirmed" },
];

test("a good call ends live with every link ok", () => {
  const state = run(...GOOD);
  expect(state.phase).toBe("live");
  expect(new Set(Object.values(state.links))).toEqual(new Set(["ok"]));
  expect(state.trouble).toBeNull();
});

test("a call is live only when the agent hears", () => {
  expect(run(...GOOD.slice(0, 6), { type: "agent_state", state: "initializing" }).phase).toBe("connecting");
});

test("a microphone that is denied does not end the call", () => {
  const trouble = microphoneTrouble(new DOMException("", "NotAllowedError"), page);
  const state = run(...GOOD.slice(0, 2), { type: "trouble", trouble, fatal: false }, ...GOOD.slice(3));
  expect(state.phase).toBe("live");
  expect(state.links.microphone).toBe("bad");
  expect(state.trouble).toBe(trouble);
});

test("an agent that takes over clears the trouble of the one that left", () => {
  const left = run(...GOOD, { type: "agent_left", trouble: agentLeftTrouble() });
  expect(left.trouble?.outcome).toBe("agent_lost");
  const back = next(left, { type: "agent_visible" });
  expect(back.trouble).toBeNull();
  expect(back.links.agent).toBe("ok");
});

test("sound that was blocked works after the click", () => {
  const blocked = run(...GOOD, { type: "audio_blocked", blocked: true, trouble: autoplayTrouble() });
  expect(blocked.audioBlocked).toBe(true);
  expect(blocked.links.sound).toBe("bad");
  const freed = next(blocked, { type: "audio_blocked", blocked: false, trouble: autoplayTrouble() });
  expect(freed.links.sound).toBe("ok");
  expect(freed.trouble).toBeNull();
});

test("what comes after the end changes nothing, and a click begins anew", () => {
  const ended = run(...GOOD, { type: "hang_up" });
  expect(ended.phase).toBe("ended");
  expect(next(ended, { type: "agent_state", state: "speaking" })).toBe(ended);
  expect(next(ended, { type: "click" }).phase).toBe("connecting");
});

test("what was found in a call is kept when it is over, and what was not reached is said so", () => {
  expect(run(...GOOD, { type: "hang_up" }).links).toEqual(run(...GOOD).links);
  const early = run({ type: "click" }, { type: "room_connected" }, { type: "hang_up" });
  expect(early.links).toMatchObject({ server: "ok", microphone: "idle", agent: "idle" });
  const trouble = { ...agentLeftTrouble(), link: "microphone" as const };
  const failed = run({ type: "click" }, { type: "room_connected" }, { type: "trouble", trouble, fatal: true });
  expect(failed.links).toMatchObject({ server: "ok", microphone: "bad", sound: "idle" });
  expect(new Set(Object.values(next(failed, { type: "click" }).links))).toEqual(new Set(["busy", "idle"]));
});

test("a second click while it connects changes nothing", () => {
  const connecting = run({ type: "click" });
  expect(next(connecting, { type: "click" })).toBe(connecting);
});

test("a notice stays through what the call does, after its end too, and a click clears it", () => {
  const notice = agentLeftTrouble();
  const live = run(...GOOD, { type: "notice", notice }, { type: "agent_state", state: "speaking" });
  expect(live.notice).toBe(notice);
  expect(live.trouble).toBeNull();
  const ended = next(run(...GOOD, { type: "hang_up" }), { type: "notice", notice });
  expect(ended.notice).toBe(notice);
  expect(next(ended, { type: "click" }).notice).toBeNull();
});
