// The bundle: `mountCall` for a page, and as its default export the notebook's widget.
import { notebookBackend, type Model } from "./notebook";
import { Session } from "./session";
import type { Strategy } from "./types";
import { view, type ViewOptions } from "./view";

export { Session } from "./session";
export { BackendError } from "./types";
export type * from "./types";

/**
 * Puts a call's interface into an element.
 *
 * A page with a content security policy must allow `blob:` among its script sources.
 * Returns the session, and what hangs up and takes everything away.
 */
export function mountCall(
  element: HTMLElement,
  options: ViewOptions,
): { session: Session; unmount: () => void } {
  const session = new Session(options.backend);
  const remove = view(element, session, options);
  return {
    session,
    unmount: () => {
      void session.hangUp();
      remove();
    },
  };
}

/** One session for each widget, however many views show it. */
export default () => {
  let session: Session | null = null;
  let backend: ReturnType<typeof notebookBackend> | null = null;
  return {
    initialize({ model }: { model: Model }) {
      const made = notebookBackend(model);
      const call = new Session(made);
      backend = made;
      session = call;
      made.hello();
      return () => {
        void call.hangUp();
        made.close();
      };
    },
    render({ model, el }: { model: Model; el: HTMLElement }) {
      if (!session || !backend) return undefined;
      return view(el, session, {
        backend,
        strategies: model.get("strategies") as Strategy[],
        agentName: model.get("agent_name") as string,
      });
    },
  };
};
