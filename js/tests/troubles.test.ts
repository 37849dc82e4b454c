import { expect, test } from "vitest";
import documented from "../../docs/troubleshooting.md?raw";
import { autoplayTrouble, connectTrouble, dispatchTrouble, disconnectedTrouble, microphoneTrouble } from "../src/troubles";

const local = { protocol: "http:", hostname: "127.0.0.1", secure: true };
const LOCAL_URL = "ws://127.0.0.1:7880";
const named = (name: string) => new DOMException("detail", name);

test.each([
  ["NotAllowedError", "denied", "allow the microphone"],
  ["NotFoundError", "no microphone", "Plug one in"],
  ["NotReadableError", "another program", "Close what records"],
  ["OverconstrainedError", "is gone", "Choose another"],
  ["SomethingElse", "could not be turned on: detail", "Choose another"],
])("%s of the microphone is said in words, with what to do", (name, observed, todo) => {
  const { message, hint } = microphoneTrouble(named(name), local);
  expect(message).toContain(observed);
  expect(hint).toContain(todo);
  expect(hint).toContain("you can type");
});

test("before a call there is nothing to hang up", () => {
  for (const name of ["NotAllowedError", "NotFoundError", "NotReadableError", "SomethingElse"]) {
    const { hint } = microphoneTrouble(named(name), local, "test again");
    expect(hint).toContain("test again");
    expect(hint).not.toContain("hang up");
  }
});

test("an insecure page is told apart from a denied microphone", () => {
  const remote = { protocol: "http:", hostname: "lab.example", secure: false };
  const { message, hint } = microphoneTrouble(named("SecurityError"), remote);
  expect(message).toContain("lab.example is not one");
  expect(hint).toContain("http://localhost");
});

test("VS Code's notebook view is named, with the way out", () => {
  const editor = { protocol: "vscode-webview:", hostname: "x", secure: true };
  expect(microphoneTrouble(named("NotAllowedError"), editor).message).toContain("VS Code");
  expect(connectTrouble(new Error("x"), LOCAL_URL, editor).hint).toContain("labvoice lab");
});

test("a browser on another machine learns that loopback cannot be reached from there", () => {
  const remote = { protocol: "https:", hostname: "hub.example", secure: true };
  const { message, hint } = connectTrouble(new Error("x"), LOCAL_URL, remote);
  expect(message).toContain("on another one and cannot reach it");
  expect(hint).toContain("LIVEKIT_URL");
});

test("a token that is refused is not taken for a server that is down", () => {
  const refused = Object.assign(new Error("could not establish"), { status: 401 });
  expect(connectTrouble(refused, LOCAL_URL, local).message).toContain("refuses the token");
  expect(connectTrouble(new Error("gone"), LOCAL_URL, local).message).toContain("No LiveKit server answers");
});

test("an https page and a ws:// server do not go together", () => {
  const remote = { protocol: "https:", hostname: "hub.example", secure: true };
  expect(connectTrouble(new Error("x"), "ws://lk.example:7880", remote).hint).toContain("wss://");
});

test("a dispatch's outcome, sentence and hint are those of the dispatcher", () => {
  const answer = { success: false, outcome: "no_worker", message: "no worker is registered", hint: "start one" };
  expect(dispatchTrouble(answer)).toEqual({ link: "dispatch", outcome: "no_worker", message: answer.message, hint: "start one" });
});

test("an end that the server made says why", () => {
  expect(disconnectedTrouble("ROOM_DELETED").message).toContain("deleted");
  expect(disconnectedTrouble("SERVER_SHUTDOWN").message).toContain("server shutdown");
});

test("every trouble of the browser that docs/troubleshooting.md quotes is said here", () => {
  const editor = { protocol: "vscode-webview:", hostname: "x", secure: true };
  const remote = { protocol: "http:", hostname: "lab.example", secure: false };
  const said = [
    ...["NotAllowedError", "NotFoundError", "NotReadableError"].map((name) => microphoneTrouble(named(name), local)),
    microphoneTrouble(named("SecurityError"), remote),
    microphoneTrouble(named("NotAllowedError"), editor),
    connectTrouble(new Error("x"), LOCAL_URL, editor),
    connectTrouble(new Error("x"), LOCAL_URL, remote),
    autoplayTrouble(),
  ].map((trouble) => trouble.message);
  const section = documented.slice(documented.indexOf("## In the browser"));
  const entries = [...section.matchAll(/^> (.+)$/gm)].map((match) => match[1]!);
  expect(entries).toHaveLength(said.length);
  for (const words of said) expect(entries.filter((entry) => words.includes(entry))).toHaveLength(1);
});
