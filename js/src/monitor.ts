// The monitor's bundle: draws the snapshots that the kernel sends, at most once a second.
import css from "./monitor.css";
import { h } from "./dom";
import { sparkline } from "./sparkline";
import type { Model } from "./notebook";

interface Snapshot {
  running?: boolean;
  trouble?: string;
  parts: { name: string; state: string; address: string; memory: string }[];
  workers: { name: string; id: string; jobs: number; load: number }[];
  silent_workers: number;
  rooms: { name: string; callers: number; agents: string[] }[];
  dispatches: number;
  failed: number;
  last_failure: string;
  turns: number;
  figures: Record<string, number | null>;
  series: Record<string, (number | null)[]>;
}

const ms = (seconds: number | null | undefined) =>
  seconds == null ? "–" : `${Math.round(seconds * 1000)} ms`;

function tile(name: string, value: string, note: string, series: (number | null)[] | undefined): HTMLElement {
  const box = h("div", { class: "lv-tile" }, h("span", {}, name), h("b", {}, value));
  box.append(sparkline(series ?? [], 120, 28), h("small", {}, note));
  return box;
}

function table(names: string[], rows: string[][], empty: string): HTMLElement {
  if (!rows.length) return h("p", { class: "lv-none" }, empty);
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell))))),
  );
}

function draw(seen: Snapshot): HTMLElement[] {
  const trouble = seen.trouble ? [h("p", { class: "lv-trouble", role: "alert" }, seen.trouble)] : [];
  if (seen.running === undefined) return [...trouble, h("p", {}, "looking…")];
  if (!seen.running) return [h("p", {}, "The lab is not running any more.")];
  const { figures, series } = seen;
  const good = seen.dispatches - seen.failed;
  const rate = seen.dispatches ? `${Math.round((100 * good) / seen.dispatches)} %` : "–";
  const failure = seen.failed ? `${seen.failed} failed, the last: ${seen.last_failure}` : "none failed";
  return [
    ...trouble,
    h(
      "div",
      { class: "lv-tiles" },
      tile("Rooms", String(figures["rooms"]), `${figures["agents"]} agents in them`, series["rooms"]),
      tile(
        "Load of the workers",
        figures["load"] == null ? "–" : `${Math.round(figures["load"] * 100)} %`,
        seen.silent_workers ? `${seen.silent_workers} do not answer` : `${seen.workers.length} answer`,
        series["load"],
      ),
      tile("Dispatches that succeeded", rate, failure, series["success"]),
      tile("Dispatch to agent", ms(figures["dispatch_s"]), "median of the last 20", series["dispatch_s"]),
      tile("Voice to voice", ms(figures["voice_to_voice_s"]), seen.turns ? `median of the last 20 of ${seen.turns} turns` : "no turn yet", series["voice_to_voice_s"]),
      ...(figures["memory_backlog"] == null
        ? [] // the lab runs without Letta
        : [tile("Memory backlog", String(figures["memory_backlog"]), "turns on their way to Letta", series["memory_backlog"])]),
    ),
    h("h4", {}, "Rooms"),
    table(
      ["room", "callers", "agents"],
      seen.rooms.map((room) => [room.name, String(room.callers), room.agents.join(", ") || "none"]),
      "No room is open.",
    ),
    h("h4", {}, "Workers"),
    table(
      ["agent name", "worker", "jobs", "load"],
      seen.workers.map((one) => [one.name, one.id, String(one.jobs), `${Math.round(one.load * 100)} %`]),
      "No worker answers: an agent that is dispatched now will not come.",
    ),
    h("h4", {}, "Parts"),
    table(
      ["part", "state", "address", "memory"],
      seen.parts.map((part) => [part.name, part.state, part.address, part.memory]),
      "",
    ),
  ];
}

export default {
  render({ model, el }: { model: Model; el: HTMLElement }) {
    const body = h("div", { class: "lv-body" });
    el.append(h("div", { class: "labvoice-monitor" }, h("style", {}, css), body));
    const onChange = () => body.replaceChildren(...draw(model.get("snapshot") as Snapshot));
    model.on("change:snapshot", onChange);
    onChange();
    return () => model.off("change:snapshot", onChange);
  },
};
