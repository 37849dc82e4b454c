// The rules of turns, by the table that tests/unit/test_turn_rules.py runs too.
import { expect, test } from "vitest";
import table from "../../tests/turn_rules.json?raw";
import { Turns } from "../src/turns";

type Event = [name: string, ...given: unknown[]];
interface Case {
  name: string;
  events: Event[];
  greeting: string;
  turns: Record<string, unknown>[];
}

function feed(turns: Turns, [name, ...given]: Event): void {
  const [first, second, third, fourth] = given as [never, never, never, never];
  if (name === "user_starts") turns.userStarts({ start_s: first, end_s: first });
  else if (name === "user_ends") turns.userEnds({ start_s: first, end_s: second });
  else if (name === "agent_starts") turns.agentStarts({ start_s: first, end_s: first });
  else if (name === "agent_ends") turns.agentEnds(first ?? null);
  else if (name === "speech_over") turns.speechOver();
  else if (name === "agent_lost") turns.agentLost();
  else if (name === "figures") turns.figures(first);
  else {
    const role = name === "user" ? "user" : "assistant";
    const message = { id: first, role, text: second, interrupted: name === "cut_off" } as const;
    turns.item({ ...message, metrics: third ?? {}, spoken: fourth ?? null });
  }
}

test.each(JSON.parse(table) as Case[])("$name", ({ events, greeting, turns: expected }) => {
  const turns = new Turns();
  for (const event of events) feed(turns, event);
  expect(turns.greeting).toBe(greeting);
  expect(turns.all).toHaveLength(expected.length);
  expected.forEach((fields, number) => {
    for (const [name, value] of Object.entries(fields))
      expect(turns.all[number]![name as "marks"]).toEqual(value);
  });
});
