// The page around a call: exchanges the key for a cookie, shows the chain's lights, and gives
// the call a backend that asks this service.

const $ = (id) => document.getElementById(id);
const KEPT_ALIVE = 60_000; // of the 64 KiB that Fetch allows for all that outlives a page
let lab = null; // what `/api/lab` tells: the agent's name, strategies, names that reports use
let traceparent = null; // of the current call; its dispatch continues the trace

function hex(bytes) {
  return [...crypto.getRandomValues(new Uint8Array(bytes))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

let BackendError = class extends Error {
  constructor(message, hint = "", outcome = "error") {
    super(message);
    Object.assign(this, { hint, outcome });
  }
}; // until the call's program brings its own

/** @param {boolean} last The page may be closing: the browser sends it all the same. */
async function ask(method, path, body, last = false) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (traceparent) headers.traceparent = traceparent;
  const text = body === undefined ? undefined : JSON.stringify(body);
  let answer;
  try {
    const keepalive = last && text.length < KEPT_ALIVE; // the browser refuses more
    answer = await fetch(path, { method, headers, body: text, credentials: "same-origin", keepalive });
  } catch {
    throw new BackendError("the service does not answer", "is `labvoice up` still running?");
  }
  const result = await answer.json();
  if (result.error && !("success" in result)) {
    const error = new BackendError(result.error.message, result.error.hint, result.error.code);
    throw Object.assign(error, { status: answer.status });
  }
  return result;
}

const known = (values, names, change) =>
  Object.fromEntries(
    Object.entries(values)
      .filter(([name]) => names.includes(name))
      .map(([name, value]) => [name, change(value)]),
  );

/** An error's code, where the service has no outcome of that name, is just an error. */
const outcome = (name) => (lab.outcomes.includes(name) ? name : "error");

/** What was measured of a call, from its click, without the words that were said. */
function report(record) {
  const marks = Object.fromEntries(record.marks.map((mark) => [mark.name, mark.at_s]));
  const click = marks.click ?? 0;
  return {
    room: record.room,
    strategy: record.strategy || null,
    dispatch_id: record.notes.dispatch_id ?? null,
    outcome: outcome(record.outcome),
    sent_s: performance.now() / 1000 - click,
    marks: known(marks, lab.marks, (at_s) => at_s - click),
    turns: record.turns.map((turn) => ({
      number: turn.number,
      outcome: outcome(turn.outcome),
      marks: known(turn.marks, lab.turn_marks, (at_s) => at_s - click),
      metrics: known(turn.metrics, lab.turn_metrics, (seconds) => seconds),
    })),
  };
}

const backend = {
  token(request) {
    traceparent = `00-${hex(16)}-${hex(8)}-01`;
    return ask("POST", "/api/token", request);
  },
  async dispatch({ room, letta_agent_id }) {
    const answer = await ask("POST", "/api/dispatch-agent", { room, letta_agent_id });
    return { ...answer, hint: answer.error?.hint };
  },
  async agents() {
    const { agents, letta } = await ask("GET", "/api/agents");
    return letta ? agents : null; // while Letta starts there are none, and the call asks again
  },
  async diagnose() {
    const { checks } = await ask("POST", "/api/diagnose", {});
    return checks.map(({ name, ok, message, hint }) => ({ name, ok, detail: message, hint }));
  },
  async record(callId, record) {
    if (!record.room) return;
    await ask("POST", `/api/calls/${encodeURIComponent(callId)}`, report(record), record.ended);
  },
};

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function showChain() {
  let checks = [];
  try {
    const answer = await fetch("/readyz");
    checks = [{ name: "service", ok: true, message: "answers" }, ...(await answer.json()).checks];
  } catch {
    checks = [{ name: "service", ok: false, message: "does not answer", hint: "" }];
  }
  $("lights").replaceChildren(
    ...checks.map((check) => {
      const item = document.createElement("li");
      const light = document.createElement("span");
      light.className = `light ${check.ok ? "ok" : "bad"}`;
      light.setAttribute("aria-hidden", "true");
      const words = check.ok ? check.message : [check.message, check.hint].filter(Boolean).join("; ");
      item.append(light, `${check.name}: ${check.ok ? "ok" : "trouble"}, ${words}`);
      return item;
    }),
  );
}

async function open() {
  notice("");
  $("key-form").hidden = true;
  $("chain").hidden = $("call").hidden = false;
  $("refresh").addEventListener("click", showChain);
  await showChain();
  setInterval(() => document.hidden || showChain(), 10000);
  let program;
  try {
    program = await import("/static/widgets/call.js");
  } catch {
    notice("The call's program (call.js) is not part of this installation.");
    return;
  }
  BackendError = program.BackendError;
  lab = await ask("GET", "/api/lab");
  const { strategies, agent_name: agentName } = lab;
  program.mountCall($("call"), { backend, strategies, agentName });
}

async function signIn(key) {
  await ask("POST", "/api/session", { key });
}

async function start() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  // The key leaves the address bar and the history at once; it was never sent in a URL.
  if (key) history.replaceState(null, "", location.pathname);
  try {
    if (key) await signIn(key);
    await ask("GET", "/api/session");
  } catch (error) {
    notice(error.status === 401 ? "This page needs a key." : error.message);
    $("key-form").hidden = false;
    $("key").focus();
    return;
  }
  await open();
}

$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await signIn($("key").value);
  } catch (error) {
    notice(error.message);
    return;
  }
  $("key").value = "";
  await open();
});

start();
