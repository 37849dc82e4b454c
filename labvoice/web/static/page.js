// The page around a call: exchanges the key for a cookie, shows the chain's lights, and gives
// the call a backend that asks this service.

const $ = (id) => document.getElementById(id);
let traceparent = null; // of the current call; its dispatch continues the trace

function hex(bytes) {
  return [...crypto.getRandomValues(new Uint8Array(bytes))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

class ServiceError extends Error {
  constructor(status, { code, message, hint }) {
    super(hint ? `${message} (${hint})` : message);
    Object.assign(this, { status, code, hint, observed: message });
  }
}

async function ask(method, path, body) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (traceparent) headers.traceparent = traceparent;
  const text = body === undefined ? undefined : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: text, credentials: "same-origin" });
  } catch {
    throw new ServiceError(0, {
      code: "unreachable",
      message: "the service does not answer",
      hint: "is `labvoice up` still running?",
    });
  }
  const result = await answer.json();
  if (result.error) throw new ServiceError(answer.status, result.error);
  return result;
}

const backend = {
  token(wish = {}) {
    traceparent = `00-${hex(16)}-${hex(8)}-01`;
    return ask("POST", "/api/token", wish);
  },
  dispatch: (wish) => ask("POST", "/api/dispatch-agent", wish),
  agents: () => ask("GET", "/api/agents"),
  diagnose: () => ask("POST", "/api/diagnose", {}),
  record: (callId, report) => ask("POST", `/api/calls/${encodeURIComponent(callId)}`, report),
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
  let mountCall;
  try {
    ({ mountCall } = await import("/static/widgets/call.js"));
  } catch {
    notice("The call's program (call.js) is not part of this installation.");
    return;
  }
  mountCall($("call"), { backend });
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
