// The backend over a notebook's kernel: requests and answers as custom messages of the widget.
import { BackendError, type Backend } from "./types";

/** The part of anywidget's model that is used here. */
export interface Model {
  get(name: string): unknown;
  send(content: unknown, callbacks?: unknown, buffers?: ArrayBufferView[]): void;
  on(name: string, callback: (...args: never[]) => void): void;
  off(name: string, callback: (...args: never[]) => void): void;
}

interface Answer {
  kind: "answer";
  id: number;
  result?: unknown;
  error?: { message: string; hint?: string; outcome?: string };
}

/** A dispatch takes 10 s at most (Dispatcher.dispatch); the rest is for a kernel that is busy. */
const PATIENCE_MS = 20_000;
/** The diagnosis dispatches an agent too, after everything else has answered or not. */
const DIAGNOSIS_MS = 40_000;

export function notebookBackend(model: Model): Backend & { hello(): void; close(): void } {
  let last = 0;
  const waiting = new Map<number, (answer: Answer) => void>();
  const onMessage = (content: Answer) => {
    if (content?.kind !== "answer") return;
    waiting.get(content.id)?.(content);
    waiting.delete(content.id);
  };
  model.on("msg:custom", onMessage as (...args: never[]) => void);

  function ask<T>(
    method: string,
    args: unknown,
    patience_ms = PATIENCE_MS,
    ...buffers: ArrayBufferView[]
  ): Promise<T> {
    const id = ++last;
    return new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => {
        waiting.delete(id);
        reject(
          new BackendError(
            "The notebook's kernel does not answer.",
            "A cell that computes without `await` keeps it busy: wait for it or interrupt it. " +
              "After a restart of the kernel run the notebook from its top again.",
          ),
        );
      }, patience_ms);
      waiting.set(id, ({ result, error }) => {
        clearTimeout(timer);
        if (error) reject(new BackendError(error.message, error.hint, error.outcome));
        else resolve(result as T);
      });
      model.send({ kind: "request", id, method, args }, undefined, buffers);
    });
  }

  return {
    token: (args) => ask("token", args),
    dispatch: (args) => ask("dispatch", args),
    agents: () => ask("agents", {}),
    createAgent: () => ask("create_agent", {}),
    diagnose: () => ask("diagnose", {}, DIAGNOSIS_MS),
    record: (_, record) => ask("record", record),
    sound:
      model.get("recording") === "none"
        ? null
        : (call_id, { samples, ...about }) =>
            ask("sound", { call_id, ...about }, PATIENCE_MS, samples),
    // Not awaited: the kernel ends the calls that an earlier page has left.
    hello: () => void ask("hello", {}).catch(() => undefined),
    close: () => model.off("msg:custom", onMessage as (...args: never[]) => void),
  };
}
