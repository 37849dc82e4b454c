// The bundle: `mountCall` for a page, and as its default export the notebook's widget.
import { notebookBackend, type Model } from "./notebook";
import { BrowserCall } from "./browser_call";
import type { Strategy } from "./types";
import { view, type ViewOptions } from "./view";

export { BrowserCall } from "./browser_call";
export { BackendError } from "./types";
export type * from "./types";

/**
 * Puts a call's interface into an element.
 *
 * A page with a content security policy must allow `blob:` among its script sources.
 * Returns the call, and a function that hangs up and removes the interface.
 */
export function mountCall(
  element: HTMLElement,
  options: ViewOptions,
): { call: BrowserCall; unmount: () => void } {
  const call = new BrowserCall(options.backend);
  const remove = view(element, call, options);
  return {
    call,
    unmount: () => {
      void call.hangUp();
      remove();
    },
  };
}

/** One call for each widget, however many views show it. */
export default () => {
  let call: BrowserCall | null = null;
  let backend: ReturnType<typeof notebookBackend> | null = null;
  return {
    initialize({ model }: { model: Model }) {
      const made = notebookBackend(model);
      const created = new BrowserCall(made);
      backend = made;
      call = created;
      made.hello();
      return () => {
        void created.hangUp();
        made.close();
      };
    },
    render({ model, el }: { model: Model; el: HTMLElement }) {
      if (!call || !backend) return undefined;
      return view(el, call, {
        backend,
        strategies: model.get("strategies") as Strategy[],
        agentName: model.get("agent_name") as string,
      });
    },
  };
};
