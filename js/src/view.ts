// The view of a call: choices, status, transcript, log and the live waterfall.
import css from "./style.css";
import { h, type Child } from "./dom";
import type { Choice, BrowserCall } from "./browser_call";
import { preflight } from "./preflight";
import { backendTrouble } from "./troubles";
import type { Backend, LettaAgent, Link, Strategy } from "./types";
import { axisEnd, connectionRows, turnRows, turnZero, type Row } from "./waterfall";
import { now_s } from "./meter";

export interface ViewOptions {
  backend: Backend;
  strategies: Strategy[];
  /** Shown in the heading. */
  agentName: string;
}

const LINKS: Record<Link, string> = {
  server: "Server",
  microphone: "Microphone",
  dispatch: "Dispatch",
  agent: "Agent",
  sound: "Sound",
};
const LINK_WORDS = { idle: "not yet", busy: "under way", ok: "works", bad: "trouble" };
const LINK_WORDS_AFTERWARDS = { idle: "not reached", busy: "not reached", ok: "worked", bad: "trouble" };
const PHASES = {
  idle: "Ready",
  connecting: "Connecting…",
  live: "In the call",
  ended: "Call ended",
  failed: "No call",
};
const AGENT_WORDS: Record<string, string> = {
  listening: "the agent listens",
  thinking: "the agent thinks",
  speaking: "the agent speaks",
};

const AGENTS_AGAIN_MS = 10_000;

let count = 0;

/** Draws a call into an element; returns a function that removes it. */
export function view(root: HTMLElement, call: BrowserCall, options: ViewOptions): () => void {
  const id = `labvoice-${++count}`;
  const { backend, strategies } = options;
  let agents: LettaAgent[] = [];

  const act = (work: () => Promise<void>) => () => {
    call.notify(null);
    work().catch((error: unknown) => call.notify(backendTrouble(error)));
  };

  // -- choices
  const agentSelect = h("select", { id: `${id}-agent`, change: () => prepare() }) as HTMLSelectElement;
  const agentFilter = h("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search Letta agents",
    input: () => fillAgents(),
  }) as HTMLInputElement;
  const refresh = h("button", { type: "button", class: "lv-quiet", click: () => void loadAgents() }, "Refresh");
  const newAgent = h(
    "button",
    {
      type: "button",
      class: "lv-quiet",
      title: "Makes a Letta agent that knows nothing yet, and chooses it",
      hidden: !backend.createAgent,
      click: act(makeAgent),
    },
    "New agent",
  );
  const agentField = h(
    "div",
    { class: "lv-field", hidden: true },
    h("label", { for: `${id}-agent` }, "Memory (Letta agent)"),
    h("div", { class: "lv-inline" }, agentSelect, agentFilter, newAgent, refresh),
  );
  const micSelect = h("select", { id: `${id}-mic` }) as HTMLSelectElement;
  const strategySelect = h("select", {
    id: `${id}-strategy`,
    change: () => prepare(),
  }) as HTMLSelectElement;
  for (const strategy of strategies)
    strategySelect.append(h("option", { value: strategy.name }, strategy.title));
  const field = (name: string, select: HTMLSelectElement, ...more: Child[]) =>
    h("div", { class: "lv-field" }, h("label", { for: select.id }, name), select, ...more);
  const microphoneTest = preflight(() => micSelect.value, () => void fillMicrophones());
  const choices = h(
    "fieldset",
    { class: "lv-choices" },
    agentField,
    field("Microphone", micSelect, microphoneTest.element),
    field("Dispatch", strategySelect),
  ) as HTMLFieldSetElement;

  // -- actions
  const connect = h("button", { type: "button", class: "lv-main", click: () => press() }, "Connect");
  const button = (name: string, work: () => Promise<void>) =>
    h("button", { type: "button", click: act(work) }, name) as HTMLButtonElement;
  const mute = button("Mute", () => call.mute(!call.state.muted));
  const interrupt = button("Interrupt", () => call.interrupt());
  const startAudio = button("Start audio", () => call.startAudio());
  startAudio.classList.add("lv-main");
  const diagnosis = h("ul", { class: "lv-checks", hidden: true });
  const diagnose = button("Diagnose", async () => {
    diagnosis.replaceChildren(h("li", {}, "looking…"));
    diagnosis.hidden = false;
    const checks = await backend.diagnose().catch((error: unknown) => {
      diagnosis.hidden = true;
      throw error;
    });
    diagnosis.replaceChildren(
      ...checks.map((check) =>
        h(
          "li",
          { class: check.ok ? "lv-ok" : "lv-bad" },
          h("b", {}, check.name),
          ` ${check.ok ? "ok" : "trouble"}: ${check.detail}`,
          check.hint ? h("div", { class: "lv-hint" }, check.hint) : null,
        ),
      ),
    );
  });
  diagnose.classList.add("lv-quiet");

  const save = h("a", { class: "lv-quiet", hidden: true }, "Save recording") as HTMLAnchorElement;
  let saved = "";

  /** Offers the recording of a call that is over. */
  function offerRecording(): void {
    const of = call.connected ? "" : call.callId;
    if (of === saved) return;
    saved = of;
    URL.revokeObjectURL(save.href);
    const file = call.recording;
    save.hidden = file === null;
    if (file === null) return save.removeAttribute("href");
    save.href = URL.createObjectURL(file);
    save.download = `${call.roomName || "call"}.wav`;
  }

  // -- display
  const phase = h("span", { class: "lv-phase", role: "status" });
  const lights = new Map(
    Object.entries(LINKS).map(([name, title]) => {
      const word = h("span", { class: "lv-word" });
      return [name as Link, h("li", {}, h("i", { "aria-hidden": "true" }), `${title} `, word)];
    }),
  );
  const troubleBox = h("div", { class: "lv-trouble", role: "alert", hidden: true });
  const meter = (name: string) => {
    const bar = h("i");
    const element = h("div", { class: "lv-meter" }, h("span", {}, name), h("div", { class: "lv-track" }, bar));
    return { bar, element };
  };
  const you = meter("You");
  const agent = meter("Agent");
  const talk = h("div", {
    class: "lv-talk",
    role: "log",
    tabindex: "0",
    "aria-label": "Transcript of both sides",
  });
  const input = h("input", {
    type: "text",
    placeholder: "Type instead of speaking",
    "aria-label": "Type to the agent",
    autocomplete: "off",
    keydown: (event: KeyboardEvent) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    },
  }) as HTMLInputElement;
  const sendButton = h("button", { type: "submit" }, "Send") as HTMLButtonElement;
  const form: HTMLFormElement = h(
    "form",
    {
      class: "lv-type",
      submit: (event: Event) => {
        event.preventDefault();
        const text = input.value;
        input.value = "";
        act(() => call.type(text))();
      },
    },
    input,
    sendButton,
  ) as HTMLFormElement;
  const log = h("ol", { class: "lv-log", tabindex: "0", "aria-label": "Event log" });
  const waterfall = h("div", { class: "lv-waterfall" });

  const panel = (name: string, ...children: Child[]) =>
    h("section", { class: "lv-panel", "aria-label": name }, h("h3", {}, name), ...children);
  const box = h(
    "div",
    // Otherwise JupyterLab handles Enter and letters as shortcuts.
    { class: "labvoice", "data-lm-suppress-shortcuts": "true" },
    h("style", {}, css),
    h(
      "header",
      {},
      h("div", { class: "lv-title" }, h("b", {}, "Talk to "), h("code", {}, options.agentName)),
      phase,
    ),
    choices,
    h("div", { class: "lv-actions" }, connect, mute, interrupt, startAudio, save, diagnose),
    h("ul", { class: "lv-lights", "aria-label": "Links of the chain" }, ...lights.values()),
    troubleBox,
    diagnosis,
    h(
      "div",
      { class: "lv-panels" },
      panel("Conversation", you.element, agent.element, talk, form),
      panel("Log", log),
    ),
    panel("Waterfall", waterfall),
  );
  root.append(box);

  // -- input

  function choiceNow(): Choice | null {
    const strategy = strategies.find((one) => one.name === strategySelect.value) ?? strategies[0];
    return strategy
      ? { strategy, letta_agent_id: agentSelect.value, device_id: micSelect.value }
      : null;
  }

  function prepare(): void {
    const choice = choiceNow();
    if (choice && !call.connected) call.prepare(choice);
  }

  function press(): void {
    microphoneTest.stop();
    if (call.connected) {
      act(async () => {
        await call.hangUp();
        prepare();
      })();
      return;
    }
    const choice = choiceNow();
    if (!choice) return;
    act(async () => {
      await call.connect(choice);
      await fillMicrophones(); // their names are known once the microphone is allowed
    })();
  }

  async function fillMicrophones(): Promise<void> {
    const chosen = micSelect.value;
    const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    const named = devices.filter((one) => one.kind === "audioinput" && one.deviceId && one.deviceId !== "default");
    micSelect.replaceChildren(
      h("option", { value: "" }, "The browser's default"),
      ...named.map((one, at) => h("option", { value: one.deviceId }, one.label || `Microphone ${at + 1}`)),
    );
    if (named.some((one) => one.deviceId === chosen)) micSelect.value = chosen;
  }

  function fillAgents(): void {
    const chosen = agentSelect.value;
    const sought = agentFilter.value.toLowerCase();
    const shown = agents.filter((one) => one.name.toLowerCase().includes(sought));
    agentSelect.replaceChildren(
      h("option", { value: "" }, "none"),
      ...shown.map((one) => h("option", { value: one.id, title: one.description ?? "" }, one.name)),
    );
    if (shown.some((one) => one.id === chosen)) agentSelect.value = chosen;
  }

  async function makeAgent(): Promise<void> {
    const made = await backend.createAgent?.();
    if (!made) return;
    agentFilter.value = "";
    await loadAgents();
    agentSelect.value = made.id;
    prepare();
  }

  let again: ReturnType<typeof setTimeout> | undefined;
  async function loadAgents(): Promise<void> {
    clearTimeout(again);
    try {
      const found = await backend.agents();
      agentField.hidden = found === null;
      agents = found ?? [];
      agentFilter.hidden = agents.length < 8;
      fillAgents();
      // A Letta server that is starting has none yet.
      if (found?.length === 0) again = setTimeout(() => void loadAgents(), AGENTS_AGAIN_MS);
    } catch (error) {
      call.notify(backendTrouble(error));
    }
  }

  // -- drawing

  function show(trouble: { message: string; hint: string } | null): void {
    troubleBox.hidden = trouble === null;
    const key = trouble ? `${trouble.message}\n${trouble.hint}` : "";
    if (troubleBox.dataset["key"] === key) return; // otherwise a screen reader repeats it
    troubleBox.dataset["key"] = key;
    troubleBox.replaceChildren(
      ...(trouble ? [h("b", {}, trouble.message), h("div", { class: "lv-hint" }, trouble.hint)] : []),
    );
  }

  /** Changes only what differs, so that selection and scroll position stay. */
  function list(into: HTMLElement, items: { class: string; head: string; text: string }[]): void {
    const atEnd = into.scrollHeight - into.scrollTop - into.clientHeight < 24;
    while (into.children.length > items.length) into.lastElementChild?.remove();
    items.forEach((item, at) => {
      const key = `${item.class}|${item.head}|${item.text}`;
      const old = into.children[at] as HTMLElement | undefined;
      if (old?.dataset["key"] === key) return;
      const tag = into.tagName === "OL" ? "li" : "p";
      const element = h(tag, { class: item.class, "data-key": key }, h("b", {}, item.head), ` ${item.text}`);
      if (old) old.replaceWith(element);
      else into.append(element);
    });
    if (atEnd) into.scrollTop = into.scrollHeight;
  }

  function chart(name: string, note: string, rows: Row[], now_ms: number): HTMLElement {
    const end = axisEnd(rows, now_ms);
    const lines = rows.map((row) => {
      const to_ms = row.end_ms ?? Math.max(now_ms, row.start_ms);
      // Bars that start before zero, such as a dispatch ahead of the click, are cut off there.
      const left = Math.max(0, Math.min(row.start_ms, to_ms));
      const right = Math.max(left, row.start_ms, to_ms);
      const bar = h("i", { class: `lv-bar lv-${row.kind}${row.end_ms === null ? " lv-open" : ""}` });
      bar.style.left = `${(100 * left) / end}%`;
      bar.style.width = `${Math.max(0.25, (100 * (right - left)) / end)}%`;
      const figure = row.end_ms === null ? "…" : `${Math.round(row.end_ms - row.start_ms)} ms`;
      return h(
        "tr",
        { title: row.title },
        h("th", { scope: "row" }, row.name),
        h("td", { class: "lv-lane" }, bar),
        h("td", { class: "lv-figure" }, figure),
      );
    });
    return h(
      "table",
      { class: "lv-chart" },
      h("caption", {}, h("b", {}, name), ` ${note}`),
      h("tbody", {}, ...lines),
      h("tfoot", {}, h("tr", {}, h("td"), h("td", { class: "lv-axis" }, h("span", {}, "0"), h("span", {}, `${end} ms`)), h("td"))),
    );
  }

  let drawnWaterfall = "";
  function drawWaterfall(): boolean {
    const click = call.marks["click"];
    const turns = call.countedTurns;
    const now = now_s();
    const first = connectionRows(call.marks);
    const parts = turns.map((turn) => turnRows(turn));
    const open =
      call.connected &&
      ([...first, ...parts.flat()].some((row) => row.end_ms === null) );
    const key = JSON.stringify([first, parts, call.connected, open ? Math.round(now * 10) : 0]);
    if (key === drawnWaterfall) return open;
    drawnWaterfall = key;
    // In an ended call, open stages never ended.
    const done = (rows: Row[]) => (call.connected ? rows : rows.filter((row) => row.end_ms !== null));
    const charts = click
      ? [chart("Connection", "since the click", done(first), (now - click.at_s) * 1000)]
      : [h("p", { class: "lv-empty" }, "Press Connect: each step appears here as it happens.")];
    turns.forEach((turn, at) => {
      const zero = turnZero(turn);
      const rows = done(parts[at] ?? []);
      const said = turn.transcript || turn.said;
      const words = said ? `“${said}”` : "";
      if (zero !== undefined && rows.length)
        charts.push(chart(`Turn ${turn.number + 1}`, words, rows, (now - zero) * 1000));
    });
    waterfall.replaceChildren(...charts);
    return open;
  }

  function draw(): void {
    const { state } = call;
    phase.textContent = AGENT_WORDS[state.agent] ?? PHASES[state.phase];
    box.dataset["phase"] = state.phase;
    box.dataset["agent"] = state.agent;
    const over = state.phase === "ended" || state.phase === "failed";
    const words = over ? LINK_WORDS_AFTERWARDS : LINK_WORDS;
    for (const [name, light] of lights) {
      light.className = `lv-${state.links[name]}`;
      (light.querySelector(".lv-word") as HTMLElement).textContent = words[state.links[name]];
    }
    connect.textContent = call.connected
      ? "Hang up"
      : state.phase === "idle"
        ? "Connect"
        : "Connect again";
    connect.classList.toggle("lv-stop", call.connected);
    choices.disabled = call.connected;
    const live = state.phase === "live";
    mute.disabled = !live || state.links.microphone !== "ok";
    mute.textContent = state.muted ? "Unmute" : "Mute";
    mute.setAttribute("aria-pressed", String(state.muted));
    interrupt.disabled = !live;
    startAudio.hidden = !state.audioBlocked;
    input.disabled = sendButton.disabled = !live;
    show(state.notice ?? state.trouble);
    offerRecording();
    list(
      talk,
      call.lines.map((line) => ({
        class: `lv-${line.who}${line.final ? "" : " lv-interim"}`,
        head: line.who === "you" ? "You" : "Agent",
        text: line.text,
      })),
    );
    list(
      log,
      call.log.map((line) => ({ class: "", head: `${line.at_s.toFixed(2)} s`, text: line.text })),
    );
  }

  // -- updates, at most once a frame

  let drawn = -1;
  let dirty = true;
  let frame = requestAnimationFrame(function loop() {
    frame = requestAnimationFrame(loop);
    if (dirty) draw();
    for (const [{ bar }, level] of [[you, call.levels.you], [agent, call.levels.agent]] as const) {
      // -60 dB to 0 dB over the whole width.
      const wide = level > 0 ? Math.max(0, 1 + Math.log10(level) / 3) : 0;
      bar.style.transform = `scaleX(${wide.toFixed(3)})`;
    }
    const now = now_s();
    if (dirty || now - drawn > 0.1) {
      drawn = now;
      drawWaterfall();
    }
    dirty = false;
  });
  const stop = call.onChange(() => {
    dirty = true;
  });
  const devices = navigator.mediaDevices;
  const onDevices = () => void fillMicrophones();
  devices?.addEventListener("devicechange", onDevices);
  fillMicrophones().catch((error: unknown) => call.notify(backendTrouble(error)));
  void loadAgents();

  return () => {
    microphoneTest.stop();
    cancelAnimationFrame(frame);
    clearTimeout(again);
    stop();
    devices?.removeEventListener("devicechange", onDevices);
    URL.revokeObjectURL(save.href);
    box.remove();
  };
}
