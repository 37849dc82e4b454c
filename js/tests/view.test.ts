// @vitest-environment happy-dom
import { beforeEach, expect, test, vi } from "vitest";
import { backend, FakeMeters, FakeRoom } from "./fakes";

vi.mock("livekit-client", async (original) => ({
  ...(await original<typeof import("livekit-client")>()),
  Room: FakeRoom,
}));
vi.mock("../src/meter", () => ({ Meters: FakeMeters, now_s: () => performance.now() / 1000 }));

const { BrowserCall } = await import("../src/browser_call");
const { view } = await import("../src/view");
const { BackendError } = await import("../src/types");

const STRATEGIES = [
  { name: "sequential", title: "After the microphone is on", when: "after" as const, lifetime_s: 50 },
  { name: "ahead", title: "Before the click", when: "ahead" as const, lifetime_s: 50 },
];
const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));

function shown(over = backend()) {
  const call = new BrowserCall(over);
  const root = document.createElement("div");
  document.body.replaceChildren(root);
  const remove = view(root, call, { backend: over, strategies: STRATEGIES, agentName: "an-agent" });
  const button = (name: string) =>
    [...root.querySelectorAll("button")].find((one) => one.textContent === name) as HTMLButtonElement;
  const alert = () => root.querySelector(".lv-trouble") as HTMLElement;
  return { call, root, remove, button, alert };
}

beforeEach(() => {
  FakeRoom.all = [];
  vi.stubGlobal("isSecureContext", true);
});

test("what an action failed with stays until the next action", async () => {
  const diagnose = vi.fn(async () => []).mockRejectedValueOnce(new BackendError("the kernel is busy", "wait"));
  const { call, button, alert } = shown(backend({ diagnose }));
  button("Diagnose").click();
  await vi.waitFor(() => expect(alert().textContent).toContain("the kernel is busy"));
  call.notify(call.state.notice);
  await drawn();
  await drawn();
  expect(alert().hidden).toBe(false);
  button("Diagnose").click();
  await vi.waitFor(() => expect(alert().hidden).toBe(true));
});

test("Connect becomes Hang up and back, and two presses of it make one call", async () => {
  const { call, button, root } = shown();
  button("Connect").click();
  await vi.waitFor(() => expect(call.state.links.dispatch).toBe("ok"));
  FakeRoom.all.at(-1)!.agentJoins();
  await vi.waitFor(() => expect(root.querySelector(".lv-phase")!.textContent).toBe("the agent listens"));
  const hangUp = button("Hang up");
  hangUp.click();
  hangUp.click();
  await vi.waitFor(() => expect(hangUp.textContent).toBe("Connect again"), 3000);
  expect(FakeRoom.all).toHaveLength(1);
  const links = [...root.querySelectorAll(".lv-lights li")].map((one) => one.textContent);
  expect(links).toEqual(expect.arrayContaining(["Server worked", "Agent worked", "Sound not reached"]));
});

test("choosing that the agent comes ahead has it dispatched at once", async () => {
  const over = backend();
  const { root } = shown(over);
  const select = [...root.querySelectorAll("select")].at(-1)!;
  select.value = "ahead";
  select.dispatchEvent(new Event("change"));
  await vi.waitFor(() => expect(over.dispatch).toHaveBeenCalledTimes(1));
});

test("a new agent is made, listed and chosen", async () => {
  const made = { id: "agent-2", name: "voice 2" };
  const agents = vi.fn(async () => [{ id: "agent-1", name: "voice 1" }, made]);
  const { button, root } = shown(backend({ agents, createAgent: async () => made }));
  await vi.waitFor(() => expect(root.querySelectorAll("select")[0]!.options).toHaveLength(3));
  button("New agent").click();
  await vi.waitFor(() => expect(root.querySelectorAll("select")[0]!.value).toBe("agent-2"));
});

test("a backend that cannot make agents offers no button for it", () => {
  expect(shown().button("New agent").hidden).toBe(true);
});

test("a recording that the page keeps is offered when the call is over", async () => {
  const { button, root } = shown(backend());
  const link = () => root.querySelector("a[download]") as HTMLAnchorElement | null;
  button("Connect").click();
  await vi.waitFor(() => expect(FakeRoom.all).toHaveLength(1));
  FakeRoom.all.at(-1)!.agentJoins();
  FakeMeters.onPiece!({ first: 0, rate_hz: 24000, start_s: 1, samples: new Int16Array([1, 2, 3, 4]) });
  await vi.waitFor(() => expect(button("Hang up")).toBeTruthy());
  expect(link()).toBeNull();
  button("Hang up").click();
  await vi.waitFor(() => expect(link()?.hidden).toBe(false), 3000);
  expect(link()!.download).toBe("room-1.wav");
});
