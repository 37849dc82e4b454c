// @vitest-environment happy-dom
import { beforeEach, expect, test, vi } from "vitest";
import { backend, CAME, FakeMeters, FakeRoom, later, TOKEN } from "./fakes";

vi.mock("livekit-client", async (original) => ({
  ...(await original<typeof import("livekit-client")>()),
  Room: FakeRoom,
}));
vi.mock("../src/meter", () => ({ Meters: FakeMeters, now_s: () => performance.now() / 1000 }));

const { BrowserCall } = await import("../src/browser_call");
const { Transcript } = await import("../src/transcript");
const { BackendError } = await import("../src/types");
type Choice = import("../src/browser_call").Choice;
type DispatchAnswer = import("../src/types").DispatchAnswer;

const choice = (when: Choice["strategy"]["when"], agent = "", lifetime_s = 50): Choice => ({
  strategy: { name: when, title: when, when, lifetime_s },
  letta_agent_id: agent,
  device_id: "",
});
const AFTER = choice("after");
/** A dispatch that was made, and took its server side 20 ms. */
const MADE: DispatchAnswer = {
  ...CAME,
  marks: { dispatch_requested: 500.005, dispatch_acknowledged: 500.01 },
  clock: { received_s: 500, answered_s: 500.02 },
};
const room = () => FakeRoom.all.at(-1)!;
/** Longer than the fake dispatch claims to have taken. */
const aWhile = () => new Promise((done) => setTimeout(done, 50));

beforeEach(() => {
  FakeRoom.all = [];
  vi.stubGlobal("isSecureContext", true);
  vi.stubGlobal("navigator", { mediaDevices: {} });
});

async function live(over = backend()) {
  const call = new BrowserCall(over);
  await call.connect(AFTER);
  room().agentJoins();
  expect(call.state.phase).toBe("live");
  return call;
}

test("a call goes from the click to the agent, and its record ends with the hang-up", async () => {
  const over = backend();
  const call = await live(over);
  await call.hangUp();
  expect(call.state.phase).toBe("ended");
  expect(over.records.at(-1)).toMatchObject({ room: "room-1", outcome: "ok", ended: true });
  expect(Object.keys(call.marks)).toEqual(
    expect.arrayContaining(["click", "room_connected", "mic_published", "dispatch_requested", "agent_listening"]),
  );
});

test("two presses of Connect make one call", async () => {
  const over = backend();
  const call = new BrowserCall(over);
  await Promise.all([call.connect(AFTER), call.connect(AFTER)]);
  expect(FakeRoom.all).toHaveLength(1);
  expect(over.token).toHaveBeenCalledTimes(1);
});

test("two presses of Hang up end the call once", async () => {
  const over = backend();
  const call = await live(over);
  await Promise.all([call.hangUp(), call.hangUp()]);
  expect(room().disconnect).toHaveBeenCalledTimes(1);
  expect(call.log.filter((line) => line.text === "hung up")).toHaveLength(1);
  expect(over.records.filter((record) => record.ended)).toHaveLength(1);
});

test("a hang-up that waits for the last figures leaves a call alone that began meanwhile", async () => {
  const call = await live();
  room().localParticipant.performRpc.mockImplementation(() => new Promise(() => undefined));
  const hangingUp = call.hangUp();
  room().emit("disconnected", 0);
  expect(call.state.phase).toBe("failed");
  await call.connect(AFTER);
  await hangingUp;
  expect(call.connected).toBe(true);
});

test("an answer that comes after the end of the call changes nothing", async () => {
  const dispatched = later<DispatchAnswer>();
  const call = new BrowserCall(backend({ dispatch: () => dispatched.promise }));
  const connecting = call.connect(AFTER);
  await vi.waitFor(() => expect(call.marks["dispatch_requested"]).toBeDefined());
  await call.hangUp();
  dispatched.resolve({ ...CAME, success: false, message: "too late" });
  await connecting;
  expect(call.state).toMatchObject({ phase: "ended", trouble: null });
});

test("an agent that is chosen to come ahead is dispatched once, before the click", async () => {
  const over = backend();
  const call = new BrowserCall(over);
  await call.prepare(choice("ahead"));
  await call.prepare(choice("ahead"));
  expect(over.dispatch).toHaveBeenCalledTimes(1);
  await call.connect(choice("ahead"));
  expect(over.token).toHaveBeenCalledTimes(1); // the room that was prepared
  expect(over.dispatch).toHaveBeenCalledTimes(2); // confirmed after the click
});

test("an agent that came ahead has the marks of its dispatch, before the click", async () => {
  const dispatch = vi.fn(async () => CAME).mockImplementationOnce(async () => MADE);
  const call = new BrowserCall(backend({ dispatch }));
  await call.prepare(choice("ahead"));
  await aWhile();
  await call.connect(choice("ahead"));
  const { click, dispatch_requested: asked, dispatch_acknowledged: taken } = call.marks;
  expect(asked!.at_s).toBeLessThan(click!.at_s);
  expect(taken!.at_s - asked!.at_s).toBeCloseTo(0.005);
});

test("where the agent that came ahead has left, the dispatch after the click counts", async () => {
  const call = new BrowserCall(backend({ dispatch: async () => MADE }));
  await call.prepare(choice("ahead"));
  const before_s = performance.now() / 1000;
  await aWhile();
  await call.connect(choice("ahead"));
  expect(call.marks["dispatch_requested"]!.at_s).toBeGreaterThan(before_s);
});

test("another choice of memory, or one that is too old, is prepared anew", async () => {
  const over = backend();
  const call = new BrowserCall(over);
  await call.prepare(choice("ahead", "a"));
  await call.prepare(choice("ahead", "b"));
  await call.prepare(choice("ahead", "b", 0));
  expect(over.dispatch).toHaveBeenCalledTimes(3);
  expect(call.prepare(AFTER)).toBeNull();
});

test("a preparation that failed is tried again at the click", async () => {
  const token = vi.fn(async () => TOKEN).mockRejectedValueOnce(new BackendError("no lab"));
  const call = new BrowserCall(backend({ token }));
  await expect(call.prepare(choice("ahead"))).rejects.toThrow("no lab");
  await call.connect(choice("ahead"));
  expect(call.marks["room_connected"]).toBeDefined();
});

test("a page that is left ends its record at once", async () => {
  const over = backend();
  await live(over);
  window.dispatchEvent(new Event("pagehide"));
  expect(over.record).toHaveBeenLastCalledWith(expect.anything(), expect.objectContaining({ ended: true }));
  expect(over.records.at(-1)!.detail).toContain("reloaded or closed");
});

test("a record that cannot be saved is said to the user", async () => {
  const record = vi.fn(async () => {
    throw new BackendError("the disk is full", "make room");
  });
  const call = await live(backend({ record }));
  await call.hangUp();
  await vi.waitFor(() => expect(call.state.notice?.message).toBe("the disk is full"));
});

test("the recording goes to the backend piece by piece, or the page keeps it", async () => {
  const piece = { first: 0, rate_hz: 24000, start_s: 1, samples: new Int16Array([1, -1, 2, -2]) };
  const sound = vi.fn(async () => undefined);
  const posted = await live(backend({ sound }));
  FakeMeters.onPiece!(piece);
  expect(sound).toHaveBeenCalledWith(posted.callId, piece);
  await posted.hangUp();
  expect(posted.recording).toBeNull();

  const kept = await live();
  FakeMeters.onPiece!(piece);
  FakeMeters.onPiece!({ ...piece, first: 2 });
  expect(kept.recording).toBeNull(); // while the call lasts
  await kept.hangUp();
  const bytes = new DataView(await kept.recording!.arrayBuffer());
  expect(bytes.byteLength).toBe(44 + 16);
  expect(bytes.getUint16(22, true)).toBe(2);
  expect(bytes.getUint32(24, true)).toBe(24000);
  expect([44, 46, 48, 50].map((at) => bytes.getInt16(at, true))).toEqual([1, -1, 2, -2]);
});

test("a call that is not to be recorded is not", async () => {
  FakeMeters.onPiece = null;
  const call = await live(backend({ sound: null }));
  expect(FakeMeters.onPiece).toBeNull();
  await call.hangUp();
});

test("a recording that the backend does not take is said, and the call goes on", async () => {
  const sound = vi.fn(async () => {
    throw new BackendError("busy");
  });
  const call = await live(backend({ sound }));
  FakeMeters.onPiece!({ first: 0, rate_hz: 24000, start_s: 1, samples: new Int16Array(2) });
  await vi.waitFor(() => expect(call.log.at(-1)!.text).toBe("a part of the recording was lost"));
  expect(call.connected).toBe(true);
});

/** A field of a protocol buffer: an enumeration, or bytes. */
const field = (number: number, value: number | string | Uint8Array): Uint8Array => {
  if (typeof value === "number") return Uint8Array.of(number << 3, value);
  const bytes = typeof value === "string" ? new TextEncoder().encode(value) : value;
  return Uint8Array.of((number << 3) | 2, bytes.length, ...bytes);
};
/** The session event of a message that the agent has spoken. */
const spoken = (id: string, text: string): Uint8Array => {
  const message = [field(1, id), field(2, 3), field(3, field(1, text))].flatMap((part) => [...part]);
  return [1, 1, 12, 3].reduce<Uint8Array>((inner, number) => field(number, inner), Uint8Array.from(message));
};

test("a message whose text stream was lost gets its line from the session's event", async () => {
  const call = await live();
  room().sessionEvent(spoken("item-1", "Hello."));
  await vi.waitFor(() => expect(call.lines.map((line) => line.text)).toEqual(["Hello."]));
});

test("a message whose text came has one line", () => {
  const transcript = new Transcript();
  transcript.set("segment-1", "agent", "Hello", false);
  transcript.set("segment-1", "agent", "Hello.", true);
  transcript.spoken("item-1", "Hello.");
  transcript.spoken("item-2", "It is sunny.");
  expect(transcript.lines.map((line) => line.text)).toEqual(["Hello.", "It is sunny."]);
});
