// @vitest-environment happy-dom
import { beforeEach, expect, test, vi } from "vitest";
import { backend, CAME, FakeMeters, FakeRoom, later, TOKEN } from "./fakes";

vi.mock("livekit-client", async (original) => ({
  ...(await original<typeof import("livekit-client")>()),
  Room: FakeRoom,
}));
vi.mock("../src/meter", () => ({ Meters: FakeMeters, now_s: () => performance.now() / 1000 }));

const { Session } = await import("../src/session");
const { BackendError } = await import("../src/types");
type Choice = import("../src/session").Choice;
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
  const session = new Session(over);
  await session.connect(AFTER);
  room().agentJoins();
  expect(session.state.phase).toBe("live");
  return session;
}

test("a call goes from the click to the agent, and its record ends with the hang-up", async () => {
  const over = backend();
  const session = await live(over);
  await session.hangUp();
  expect(session.state.phase).toBe("ended");
  expect(over.records.at(-1)).toMatchObject({ room: "room-1", outcome: "ok", ended: true });
  expect(Object.keys(session.marks)).toEqual(
    expect.arrayContaining(["click", "room_connected", "mic_published", "dispatch_requested", "agent_listening"]),
  );
});

test("two presses of Connect make one call", async () => {
  const over = backend();
  const session = new Session(over);
  await Promise.all([session.connect(AFTER), session.connect(AFTER)]);
  expect(FakeRoom.all).toHaveLength(1);
  expect(over.token).toHaveBeenCalledTimes(1);
});

test("two presses of Hang up end the call once", async () => {
  const over = backend();
  const session = await live(over);
  await Promise.all([session.hangUp(), session.hangUp()]);
  expect(room().disconnect).toHaveBeenCalledTimes(1);
  expect(session.log.filter((line) => line.text === "hung up")).toHaveLength(1);
  expect(over.records.filter((record) => record.ended)).toHaveLength(1);
});

test("a hang-up that waits for the last figures leaves a call alone that began meanwhile", async () => {
  const session = await live();
  room().localParticipant.performRpc.mockImplementation(() => new Promise(() => undefined));
  const hangingUp = session.hangUp();
  room().emit("disconnected", 0);
  expect(session.state.phase).toBe("failed");
  await session.connect(AFTER);
  await hangingUp;
  expect(session.connected).toBe(true);
});

test("an answer that comes after the end of the call changes nothing", async () => {
  const dispatched = later<DispatchAnswer>();
  const session = new Session(backend({ dispatch: () => dispatched.promise }));
  const connecting = session.connect(AFTER);
  await vi.waitFor(() => expect(session.marks["dispatch_requested"]).toBeDefined());
  await session.hangUp();
  dispatched.resolve({ ...CAME, success: false, message: "too late" });
  await connecting;
  expect(session.state).toMatchObject({ phase: "ended", trouble: null });
});

test("an agent that is chosen to come ahead is dispatched once, before the click", async () => {
  const over = backend();
  const session = new Session(over);
  await session.prepare(choice("ahead"));
  await session.prepare(choice("ahead"));
  expect(over.dispatch).toHaveBeenCalledTimes(1);
  await session.connect(choice("ahead"));
  expect(over.token).toHaveBeenCalledTimes(1); // the room that was prepared
  expect(over.dispatch).toHaveBeenCalledTimes(2); // confirmed after the click
});

test("an agent that came ahead has the marks of its dispatch, before the click", async () => {
  const dispatch = vi.fn(async () => CAME).mockImplementationOnce(async () => MADE);
  const session = new Session(backend({ dispatch }));
  await session.prepare(choice("ahead"));
  await aWhile();
  await session.connect(choice("ahead"));
  const { click, dispatch_requested: asked, dispatch_acknowledged: taken } = session.marks;
  expect(asked!.at_s).toBeLessThan(click!.at_s);
  expect(taken!.at_s - asked!.at_s).toBeCloseTo(0.005);
});

test("where the agent that came ahead has left, the dispatch after the click counts", async () => {
  const session = new Session(backend({ dispatch: async () => MADE }));
  await session.prepare(choice("ahead"));
  const before_s = performance.now() / 1000;
  await aWhile();
  await session.connect(choice("ahead"));
  expect(session.marks["dispatch_requested"]!.at_s).toBeGreaterThan(before_s);
});

test("another choice of memory, or one that is too old, is prepared anew", async () => {
  const over = backend();
  const session = new Session(over);
  await session.prepare(choice("ahead", "a"));
  await session.prepare(choice("ahead", "b"));
  await session.prepare(choice("ahead", "b", 0));
  expect(over.dispatch).toHaveBeenCalledTimes(3);
  expect(session.prepare(AFTER)).toBeNull();
});

test("a preparation that failed is tried again at the click", async () => {
  const token = vi.fn(async () => TOKEN).mockRejectedValueOnce(new BackendError("no lab"));
  const session = new Session(backend({ token }));
  await expect(session.prepare(choice("ahead"))).rejects.toThrow("no lab");
  await session.connect(choice("ahead"));
  expect(session.marks["room_connected"]).toBeDefined();
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
  const session = await live(backend({ record }));
  await session.hangUp();
  await vi.waitFor(() => expect(session.state.notice?.message).toBe("the disk is full"));
});
